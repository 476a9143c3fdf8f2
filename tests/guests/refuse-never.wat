;; Refuses: never("no such image").
(data (i32.const 1024) "no such image")
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (call $never (i32.const 1024) (i32.const 13)))
