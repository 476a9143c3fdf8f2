;; Refuses: later("disk is full", 30).
(data (i32.const 1024) "disk is full")
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (call $later (i32.const 1024) (i32.const 12) (i32.const 30)))
