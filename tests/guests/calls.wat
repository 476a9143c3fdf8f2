;; Asks ten times whether /etc exists, then succeeds, whatever the answers.
(import "muster:provision/agent@VERSION" "exists" (func $exists (param i32 i32 i32)))
(data (i32.const 1024) "/etc")
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (local $left i32)
  (local.set $left (i32.const 10))
  (loop $again
    (call $exists (i32.const 1024) (i32.const 4) (i32.const 64))
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br_if $again (local.get $left)))
  (call $ok))
