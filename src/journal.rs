//! What a run leaves behind: its log for people, and its journal, every call with what it was answered.
//!
//! A [`Recorder`] is filled by the gate without waiting; whoever holds the other end, [`Records`], takes what has gathered in one piece
//! and keeps it. A run's budgets bound what can gather; [`Recorder::room`] makes the gate wait when the other end is slow.
//! Nothing here is stored, and no secret gets here: the gate cuts them first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::limits::RECORDS_WAITING_MAX;
use crate::machine::{CallError, Change};
use crate::names::Digest;

/// Microseconds since the Unix epoch.
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// What a line of a run's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The module's own note.
    Debug,
    /// The module's own note.
    Info,
    /// The module's own note.
    Warn,
    /// The module's own note.
    Error,
    /// The module began a step.
    Step,
    /// A call and what came of it.
    Call,
    /// What a command, or the module itself, wrote to standard output.
    Stdout,
    /// What a command, or the module itself, wrote to standard error.
    Stderr,
}

impl Level {
    /// The word for it in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Step => "step",
            Self::Call => "call",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its place, from 0.
    pub seq: i64,
    /// When, in microseconds since the Unix epoch.
    pub at_us: i64,
    /// What it is.
    pub level: Level,
    /// The text.
    pub text: String,
}

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "kebab-case")]
pub enum Entry {
    /// The module called. Written before anything is done.
    Asked {
        /// When, in microseconds since the Unix epoch.
        at_us: i64,
        /// What.
        asked: Asked,
    },
    /// The call was answered.
    Answered {
        /// When, in microseconds since the Unix epoch.
        at_us: i64,
        /// What came of it.
        answered: Result<Answered, CallError>,
    },
}

/// A command as the journal keeps it: input by hash, secrets by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedCommand {
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables of its environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// Variables that hold secrets, with the secrets' names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_env: Vec<(String, String)>,
    /// Where it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Its input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Content>,
    /// Its own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Bytes by hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// How many.
    pub bytes: u64,
    /// Their sha256.
    pub sha256: Digest,
}

impl Content {
    /// Describes some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: Digest::of(bytes) }
    }
}

/// A call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the calls of the contract, with its names")]
pub enum Asked {
    Probe { command: AskedCommand },
    Run { command: AskedCommand },
    ReadFile { path: String },
    Exists { path: String },
    WriteFile { path: String, contents: Content, mode: u32 },
    Remove { path: String },
    Push { bundle: String, destination: String },
    Mirror { bundle: String, destination: String },
    Stop {},
    Launch { command: AskedCommand },
    OpenSecret { name: String },
    OpenBundle { name: String },
    ReadBundle { bundle: String, path: String },
}

impl Asked {
    /// The bytes of the paths and names in it. Those of a command are not among them: its holder counts them.
    pub fn named_bytes(&self) -> usize {
        match self {
            Self::Probe { .. } | Self::Run { .. } | Self::Launch { .. } | Self::Stop {} => 0,
            Self::ReadFile { path } | Self::Exists { path } | Self::WriteFile { path, .. } | Self::Remove { path } => path.len(),
            Self::Push { bundle, destination } | Self::Mirror { bundle, destination } => bundle.len() + destination.len(),
            Self::OpenSecret { name } | Self::OpenBundle { name } => name.len(),
            Self::ReadBundle { bundle, path } => bundle.len() + path.len(),
        }
    }
}

/// What a call was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the answers of the contract, with its names")]
pub enum Answered {
    Output { status: i32, stdout: Content, stderr: Content, truncated: bool },
    File { contents: Content },
    Truth { value: bool },
    Change { change: Change },
    Nothing {},
}

/// The filling end.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

/// The emptying end.
#[derive(Debug)]
pub struct Records {
    shared: Arc<Shared>,
}

/// What was taken at once.
#[derive(Debug, Default)]
pub struct Taken {
    /// Lines of the log.
    pub lines: Vec<Line>,
    /// Entries of the journal as JSON, with their places from 0.
    pub entries: Vec<(i64, String)>,
}

impl Taken {
    /// Whether nothing was there.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.entries.is_empty()
    }
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    filled: Notify,
    emptied: Notify,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    taken: Taken,
    line_seq: i64,
    entry_seq: i64,
}

/// Makes a pair of ends.
pub fn channel() -> (Recorder, Records) {
    let shared = Arc::new(Shared::default());
    (Recorder { shared: Arc::clone(&shared) }, Records { shared })
}

impl Recorder {
    /// Adds a line to the log.
    pub fn line(&self, level: Level, text: String) {
        let at_us = now_us();
        let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = waiting.line_seq;
        waiting.line_seq += 1;
        waiting.taken.lines.push(Line { seq, at_us, level, text });
        drop(waiting);
        self.shared.filled.notify_one();
    }

    /// Adds an entry to the journal. An entry that can not be written as JSON does not exist: every one is made of texts and numbers.
    pub fn entry(&self, entry: &Entry) {
        let Ok(text) = serde_json::to_string(entry) else { return };
        let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = waiting.entry_seq;
        waiting.entry_seq += 1;
        waiting.taken.entries.push((seq, text));
        drop(waiting);
        self.shared.filled.notify_one();
    }

    /// Waits until there is room for more.
    pub async fn room(&self) {
        loop {
            let emptied = self.shared.emptied.notified();
            if self.count() < RECORDS_WAITING_MAX || self.shared.closed.load(Ordering::Acquire) {
                return;
            }
            emptied.await;
        }
    }

    fn count(&self) -> usize {
        let waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.taken.lines.len() + waiting.taken.entries.len()
    }
}

impl Records {
    /// Takes all that has gathered, without waiting.
    pub fn take(&self) -> Taken {
        let taken = std::mem::take(&mut self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).taken);
        self.shared.emptied.notify_waiters();
        taken
    }

    /// Waits until something has gathered.
    pub async fn gathered(&self) {
        self.shared.filled.notified().await;
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.emptied.notify_waiters();
    }
}
