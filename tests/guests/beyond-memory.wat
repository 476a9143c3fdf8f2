;; Refuses with a text of 100 MB, of which its memory holds the least part.
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (call $other (i32.const 1024) (i32.const 100000000)))
