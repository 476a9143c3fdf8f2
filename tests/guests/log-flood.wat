;; Writes notes without end.
(import "muster:provision/log@VERSION" "write" (func $write (param i32 i32 i32)))
(data (i32.const 1024) "again")
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (loop $again
    (call $write (i32.const 1) (i32.const 1024) (i32.const 5))
    (br $again))
  unreachable)
