//! Muster registers build agents and provisions them with sandboxed WebAssembly modules before they are launched.
//!
//! `ARCHITECTURE.md` draws the house. This library is for the two programs `muster` and `muster-agent`; it promises nothing to others.

#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod bits;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod controller;
#[cfg(feature = "server")]
pub mod credential;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod journal;
pub mod limits;
pub mod link;
pub mod machine;
pub mod names;
#[cfg(feature = "server")]
pub mod policy;
#[cfg(feature = "server")]
pub mod provision;
#[cfg(feature = "server")]
pub mod reconcile;
#[cfg(feature = "server")]
pub mod roster;
#[cfg(feature = "server")]
pub mod sandbox;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod shelf;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod telemetry;
