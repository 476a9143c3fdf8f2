//! SSH against a real sshd, and against hosts that do as they like.

mod hostile;
mod login;
mod quote;
pub(crate) mod sshd;
mod streams;
mod trust;
