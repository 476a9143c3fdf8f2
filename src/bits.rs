//! The bits: file trees by content, from a team's directory to an agent's.
//!
//! A [`manifest`] says what a tree is; [`scan`] makes one of a directory; [`pack`] is how contents travel; [`apply`] brings a directory to
//! what a manifest says, and [`ledger`] remembers what was put where, so that only that is ever removed; an index beside it knows what is
//! unchanged. Where contents come from is behind `contents`. Nothing here knows of a server, a link or a machine.

pub mod apply;
pub mod chunk;
#[cfg(feature = "server")]
pub mod contents;
#[cfg(feature = "server")]
pub mod difference;
mod index;
pub mod ledger;
pub mod manifest;
mod near;
pub mod pack;
pub mod path;
pub mod scan;
pub(crate) mod tree;
