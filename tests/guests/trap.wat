;; Traps at once.
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  unreachable)
