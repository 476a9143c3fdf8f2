//! Where modules run: wasmtime, and nothing else knows of it.
//!
//! A module is inspected and compiled once, at upload. Each run gets a fresh store with its own limits, and ends in a [`Verdict`].
//! What a module may do to its machine is decided in [`gate`] alone. Runs have a runtime of their own, so that a module which spins
//! takes time from other modules at worst, never from the server.
//!
//! What a module can observe is in its run's journal, and nothing else is: its time is `clock`'s, its chance is `chance`'s. So [`replay`] can do a
//! run again.

mod bindings;
mod chance;
mod clock;
pub mod compiler;
mod engine;
pub mod gate;
mod host;
pub mod inspect;
mod limiter;
mod metered;
mod output;
pub mod replay;
pub mod script;
pub mod verdict;

pub use crate::journal::Registration;
pub use engine::{CompileError, Module, Outcome, Sandbox, SandboxError};
pub use gate::RunInputs;
pub use verdict::Verdict;
