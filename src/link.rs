//! The way to one agent during a run.
//!
//! [`frames`] is the language of the session, shared with `muster-agent`; [`stream`] carries it where there is no WebSocket. The server's side, [`session`], and [`local`], which does
//! everything on this machine for `muster module try`, stand behind the one trait [`Link`].

pub mod frames;
#[cfg(feature = "server")]
pub mod local;
#[cfg(feature = "server")]
pub mod poll;
#[cfg(feature = "server")]
pub mod quote;
#[cfg(feature = "server")]
pub mod session;
#[cfg(feature = "server")]
pub mod shell;
#[cfg(feature = "server")]
pub mod ssh;
pub mod stream;

#[cfg(feature = "server")]
use std::sync::Arc;

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
    /// A run begins: what was launched and ends is not started again for now. This and the following do nothing on a link that keeps nothing
    /// running.
    async fn hold(&self) -> Result<(), CallError> {
        Ok(())
    }
    /// No run is under way any more: what was launched is kept running.
    async fn resume(&self) -> Result<(), CallError> {
        Ok(())
    }
    /// The agent is to take no more work: what was launched is ended, and kept ended.
    async fn drain(&self, _reason: &str) -> Result<(), CallError> {
        Ok(())
    }
    /// Ends the link, and all calls with the reason why.
    fn close(&self, _reason: &str) {}
}

/// Whether two are the same link.
#[cfg(feature = "server")]
pub fn is_same(one: &Arc<dyn Link>, other: &Arc<dyn Link>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}
