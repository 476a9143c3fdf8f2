;; Reads /etc/shadow: succeeds if that is denied, refuses for ever if it is not.
(import "muster:provision/agent@VERSION" "read-file" (func $read-file (param i32 i32 i32)))
(data (i32.const 1024) "/etc/shadow")
(data (i32.const 1040) "it was not denied")
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (call $read-file (i32.const 1024) (i32.const 11) (i32.const 64))
  (if (call $answered-denied) (then (return (call $ok))))
  (call $never (i32.const 1040) (i32.const 17)))
