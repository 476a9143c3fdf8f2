;; Computes for ever and calls nothing.
(func (export "muster:provision/provisioning@VERSION#provision") (result i32)
  (loop $again (br $again))
  unreachable)
