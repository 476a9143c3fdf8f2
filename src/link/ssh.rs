//! SSH to one machine: a connection that the server dials, and the commands that it starts there.
//!
//! A host that is dialled is not trusted: everything that it may open, ask or send unasked is refused, ignored or bounded.

pub mod error;
pub mod host;
pub mod login;
pub mod remote;
pub mod steps;
pub mod transport;
mod trust;
mod wire;
