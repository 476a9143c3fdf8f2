//! The way to one agent during a run.
//!
//! [`frames`] is the language of the session, shared with `muster-agent`. The server's side, [`session`], and [`local`], which does
//! everything on this machine for `muster module try`, stand behind the one trait [`Link`].

pub mod frames;
#[cfg(feature = "server")]
pub mod local;
#[cfg(feature = "server")]
pub mod session;

#[cfg(feature = "server")]
use crate::bits::contents::Bundle;
#[cfg(feature = "server")]
use crate::machine::{CallError, Change, Command, Output, Stream, SyncRules};

/// One agent, reachable. What it does is asked one call at a time; a dropped call is ended on the machine too.
#[cfg(feature = "server")]
#[async_trait::async_trait]
pub trait Link: Send + Sync {
    /// Runs a command to its end. `progress` sees the output as it comes, all of it; the answer holds it up to the limit.
    async fn exec(&self, command: &Command, progress: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<Output, CallError>;
    /// The content of a file of at most `bytes_max` bytes.
    async fn read_file(&self, path: &str, bytes_max: usize) -> Result<Vec<u8>, CallError>;
    /// Whether anything is at a path.
    async fn exists(&self, path: &str) -> Result<bool, CallError>;
    /// Makes a path a file with this content and mode.
    async fn write_file(&self, path: &str, contents: &[u8], mode: u32) -> Result<Change, CallError>;
    /// Removes what is at a path: a directory that is not empty only with all that is below it.
    async fn remove(&self, path: &str, with_below: bool) -> Result<Change, CallError>;
    /// Brings a bundle to a destination.
    async fn sync(&self, destination: &str, bundle: &Bundle, rules: SyncRules) -> Result<Change, CallError>;
    /// Ends what was launched; whether it ran.
    async fn stop(&self) -> Result<bool, CallError>;
    /// Ends what was launched and starts this, to be kept running.
    async fn launch(&self, command: &Command) -> Result<(), CallError>;
}
