//! The bits: file trees by content, from a team's directory to an agent's.
//!
//! A [`manifest`] says what a tree is; [`scan`] makes one of a directory; [`pack`] is how contents travel; [`apply`] brings a directory to
//! what a manifest says, and [`ledger`] remembers what was put where, so that only that is ever removed. Where contents come from is
//! behind `contents`. Nothing here knows of a server, a link or a machine.

pub mod apply;
#[cfg(feature = "server")]
pub mod contents;
pub mod ledger;
pub mod manifest;
pub mod pack;
pub mod path;
pub mod scan;
mod tree;
