//! Muster registers build agents and provisions them with sandboxed WebAssembly modules before they are launched.
//!
//! `ARCHITECTURE.md` draws the house. This library is for the two programs `muster` and `muster-agent`; it promises nothing to others.

#![forbid(unsafe_code)]

pub mod api;
pub mod limits;
pub mod names;
#[cfg(feature = "server")]
pub mod policy;
