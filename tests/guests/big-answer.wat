;; Refuses with a text of 32 MiB, all of it in its memory.
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (local $page i32)
  (local.set $page (memory.grow (i32.const 512)))
  (if (i32.eq (local.get $page) (i32.const -1)) (then unreachable))
  (call $other (i32.shl (local.get $page) (i32.const 16)) (i32.const 33554432)))
