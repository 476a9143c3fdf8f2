//! What may be asked of a machine, what it answers, and how it is done on this one.
//!
//! The types are shared by everything above: the gate asks with them, links carry them, the journal keeps them. The rooms below do the
//! work on the machine where they run: [`exec`] starts programs, [`root`] reaches files through cap-std, [`sync`] applies bundles.
//! Nothing here knows of a server, a run or a policy.

pub mod exec;
pub mod root;
pub mod sync;

use serde::{Deserialize, Serialize};

/// A program and what it is started with. Nothing of it is ever read by a shell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Command {
    /// The program's absolute path, or a path relative to the agent's root that holds a `/`.
    pub program: String,
    /// Its arguments, without its own name.
    pub args: Vec<String>,
    /// Variables set beside the few that it gets anyway (`PATH`, `HOME`, `LANG`, `USER`).
    pub env: Vec<(String, String)>,
    /// Where it starts; the agent's root if none.
    pub directory: Option<String>,
    /// What it reads on standard input. It goes beside the frame, not in it.
    #[serde(skip)]
    pub stdin: Vec<u8>,
    /// After how many milliseconds it is ended with all that it started; never if none.
    pub timeout_ms: Option<u64>,
}

/// Which of a command's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Output {
    /// Its exit status; 128 + N if signal N ended it.
    pub status: i32,
    /// What it wrote to standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, up to the limit.
    pub stderr: Vec<u8>,
    /// Whether it wrote more than was kept.
    pub truncated: bool,
}

/// What a changing call changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Change {
    /// Whether anything is different now: content, kind, mode, or presence.
    pub changed: bool,
    /// Files looked at.
    pub files: u64,
    /// Files (and symlinks) written.
    pub files_changed: u64,
    /// Files (and symlinks) removed.
    pub files_removed: u64,
    /// Bytes of all files looked at.
    pub bytes: u64,
    /// Bytes of content that had to be sent, before compression.
    pub bytes_sent: u64,
}

/// How a bundle is brought to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncMode {
    /// Other files are left alone.
    Push,
    /// What an earlier push or mirror put there and the bundle lacks is removed.
    Mirror,
    /// As `Mirror`, and what anybody else put there is removed too.
    MirrorDeletingForeign,
}

/// What a bundle may do at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRules {
    /// How it is brought there.
    pub mode: SyncMode,
    /// How much of what is there may be removed, in percent of its files.
    pub max_delete_percent: u8,
}

/// Why a call was not done. The same cases as `agent.error` of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum CallError {
    /// Not allowed; says which grant is missing.
    #[error("denied: {0}")]
    Denied(String),
    /// There is no such file, directory or program.
    #[error("not found: {0}")]
    NotFound(String),
    /// An argument can not be what it is.
    #[error("invalid: {0}")]
    Invalid(String),
    /// The link is lost.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The command's own limit was reached.
    #[error("timed out")]
    TimedOut,
    /// A budget of the run is spent; says which.
    #[error("over budget: {0}")]
    OverBudget(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// An error with what caused it, on one line, for an answer or a log.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors quote their cause.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
