;; Refuses: other("it is broken").
(data (i32.const 1024) "it is broken")
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (call $other (i32.const 1024) (i32.const 12)))
