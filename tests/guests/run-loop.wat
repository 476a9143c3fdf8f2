;; Runs /bin/true without end.
(import "muster:provision/agent@VERSION" "[constructor]command" (func $command (param i32 i32 i32 i32) (result i32)))
(import "muster:provision/agent@VERSION" "[resource-drop]output" (func $drop-output (param i32)))
(import "muster:provision/agent@VERSION" "run" (func $run (param i32 i32)))
(data (i32.const 1024) "/bin/true")
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (local $true i32)
  (local.set $true (call $command (i32.const 1024) (i32.const 9) (i32.const 0) (i32.const 0)))
  (loop $again
    (call $run (local.get $true) (i32.const 64))
    (if (call $answered-ok) (then (call $drop-output (call $answered-handle))))
    (br $again))
  unreachable)
