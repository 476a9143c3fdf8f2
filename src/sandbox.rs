//! Where modules run: wasmtime, and nothing else knows of it.
//!
//! A module is inspected and compiled once, at upload. Each run gets a fresh store with its own limits, and ends in a [`Verdict`].
//! What a module may do to its machine is decided in [`gate`] alone. Runs have a runtime of their own, so that a module which spins
//! takes time from other modules at worst, never from the server.

mod bindings;
pub mod compiler;
mod engine;
pub mod gate;
mod host;
pub mod inspect;
mod limiter;
mod output;
pub mod verdict;

pub use engine::{CompileError, Module, Outcome, Sandbox, SandboxError};
pub use gate::{Registration, RunInputs};
pub use verdict::Verdict;
