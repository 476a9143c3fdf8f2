;; Calls itself until the stack ends. The addition keeps it from being a loop.
(func $deeper (param $depth i32) (result i32)
  (i32.add (call $deeper (i32.add (local.get $depth) (i32.const 1))) (i32.const 1)))
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (drop (call $deeper (i32.const 0)))
  (call $ok))
