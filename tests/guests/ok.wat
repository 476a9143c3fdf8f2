;; Succeeds without a call.
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (call $ok))
