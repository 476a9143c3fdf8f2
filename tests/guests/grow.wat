;; Takes memory without end, and writes to each page that it got; refuses if it is told that there is no more.
(data (i32.const 1024) "no more memory")
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (local $page i32)
  (loop $again
    (local.set $page (memory.grow (i32.const 1)))
    (if (i32.eq (local.get $page) (i32.const -1))
      (then (return (call $other (i32.const 1024) (i32.const 14)))))
    (i32.store (i32.shl (local.get $page) (i32.const 16)) (i32.const 1))
    (br $again))
  unreachable)
