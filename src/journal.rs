//! What a run leaves behind: its log for people, and its journal, every call with what it was answered.
//!
//! A [`Recorder`] is filled by the gate without waiting; whoever holds the other end, [`Records`], takes what has gathered in one piece
//! and keeps it. A run's budgets bound what can gather; [`Recorder::room`] makes the gate wait when the other end is slow.
//! Nothing here is stored, and no secret gets here: the gate cuts them first.
//!
//! A journal begins with everything that a module can observe without a call, so that the run can be done again with the journal's answers.
//! [`kept`] decides what is kept of those; [`recording`] is a whole run as it leaves the server.

pub mod kept;
pub mod recording;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::journal::kept::Kept;
use crate::limits::{ASKED_SHOWN_BYTES_MAX, RECORDS_WAITING_MAX};
use crate::machine::{CallError, Change};
use crate::names::Digest;
use crate::policy::RunLimits;

/// The version of the journals that are written here. A replay needs to know it.
pub const VERSION: u32 = 1;

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

/// What stands in the place of a secret's value.
pub fn mark(secret: &str) -> String {
    format!("[secret {secret}]")
}

/// What the agent said of itself, as the module may ask for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The agent's name.
    pub name: String,
    /// The label of this run.
    pub label: String,
    /// All labels of the agent.
    pub labels: Vec<String>,
    /// Executors.
    pub executors: u32,
    /// The agent's root, absolute.
    pub root: String,
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub arch: String,
    /// What the machine was made from.
    pub image: Option<String>,
    /// What else it said.
    pub attributes: BTreeMap<String, String>,
    /// Which attempt this is.
    pub attempt: u32,
}

/// What a run begins with: all that its module can observe without a call, and what its limits are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Began {
    /// When, in microseconds since the Unix epoch. The module's clocks begin there.
    pub at_us: i64,
    /// The journal's version.
    pub version: u32,
    /// What the module's random numbers are made from. Whoever reads the journal knows them.
    pub seed: String,
    /// The agent.
    pub registration: Registration,
    /// The policy's settings.
    pub settings: BTreeMap<String, String>,
    /// The policy's limits.
    pub limits: RunLimits,
    /// The bundles that may be opened, by name, with their versions.
    pub bundles: BTreeMap<String, String>,
    /// The names of the secrets that are granted and there. Their values are cut from everything.
    pub secrets: Vec<String>,
}

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "kebab-case")]
pub enum Entry {
    /// The run began. The first entry.
    Began(Box<Began>),
    /// The module called. Written before anything is done.
    Asked {
        /// When, in microseconds since the Unix epoch.
        at_us: i64,
        /// What.
        asked: Asked,
    },
    /// The call was answered.
    Answered {
        /// When, in microseconds since the Unix epoch. The module's clocks go on from there.
        at_us: i64,
        /// Whether the gate answered by itself, and did not let the call through.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        refused: bool,
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

    /// The call with `cut` applied to each text that the module chose.
    #[must_use]
    pub fn with_cut(self, cut: impl Fn(String) -> String) -> Self {
        let all = |texts: Vec<String>| texts.into_iter().map(&cut).collect();
        let in_command = |command: AskedCommand| AskedCommand {
            program: cut(command.program),
            args: all(command.args),
            env: command.env.into_iter().map(|(name, value)| (cut(name), cut(value))).collect(),
            secret_env: command.secret_env.into_iter().map(|(name, secret)| (cut(name), secret)).collect(),
            directory: command.directory.map(&cut),
            ..command
        };
        match self {
            Self::Probe { command } => Self::Probe { command: in_command(command) },
            Self::Run { command } => Self::Run { command: in_command(command) },
            Self::Launch { command } => Self::Launch { command: in_command(command) },
            Self::ReadFile { path } => Self::ReadFile { path: cut(path) },
            Self::Exists { path } => Self::Exists { path: cut(path) },
            Self::WriteFile { path, contents, mode } => Self::WriteFile { path: cut(path), contents, mode },
            Self::Remove { path } => Self::Remove { path: cut(path) },
            Self::Push { bundle, destination } => Self::Push { bundle, destination: cut(destination) },
            Self::Mirror { bundle, destination } => Self::Mirror { bundle, destination: cut(destination) },
            Self::ReadBundle { bundle, path } => Self::ReadBundle { bundle, path: cut(path) },
            // A name that is asked for is a name, or is refused as none.
            Self::OpenSecret { name } => Self::OpenSecret { name },
            Self::OpenBundle { name } => Self::OpenBundle { name },
            Self::Stop {} => Self::Stop {},
        }
    }
}

/// One line for people: `write-file /srv/agent/x, mode 644, 12 bytes (sha256 0123456789ab)`.
impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Probe { command } => format!("probe {command}"),
            Self::Run { command } => format!("run {command}"),
            Self::Launch { command } => format!("launch {command}"),
            Self::ReadFile { path } => format!("read-file {path}"),
            Self::Exists { path } => format!("exists {path}"),
            Self::WriteFile { path, contents, mode } => format!("write-file {path}, mode {mode:o}, {contents}"),
            Self::Remove { path } => format!("remove {path}"),
            Self::Push { bundle, destination } => format!("push {bundle} to {destination}"),
            Self::Mirror { bundle, destination } => format!("mirror {bundle} to {destination}"),
            Self::Stop {} => "stop".into(),
            Self::OpenSecret { name } => format!("open secret {name}"),
            Self::OpenBundle { name } => format!("open bundle {name}"),
            Self::ReadBundle { bundle, path } => format!("read {path} of bundle {bundle}"),
        };
        match text.get(..text.floor_char_boundary(ASKED_SHOWN_BYTES_MAX)) {
            Some(cut) if cut.len() < text.len() => write!(f, "{cut}…"),
            _ => f.write_str(&text),
        }
    }
}

impl fmt::Display for AskedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program)?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", shown(arg)))?;
        self.env.iter().try_for_each(|(name, value)| write!(f, ", {name}={}", shown(value)))?;
        self.secret_env.iter().try_for_each(|(name, secret)| write!(f, ", {name}={}", mark(secret)))?;
        self.directory.iter().try_for_each(|directory| write!(f, ", in {}", shown(directory)))?;
        self.stdin.iter().try_for_each(|stdin| write!(f, ", with {stdin} of input"))?;
        self.timeout_ms.iter().try_for_each(|limit| write!(f, ", for {limit} ms"))
    }
}

/// An argument for people: as it is, or quoted if that could be misread.
pub fn shown(arg: &str) -> String {
    let plain = !arg.is_empty() && arg.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\'' | b'"' | b'\\'));
    if plain { arg.to_owned() } else { format!("{arg:?}") }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes (sha256 {})", self.bytes, self.sha256.short())
    }
}

/// What a call was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the answers of the contract, with its names")]
pub enum Answered {
    Output {
        status: i32,
        stdout: Kept,
        stderr: Kept,
        truncated: bool,
        /// Lines of it that were copied to the log.
        #[serde(default)]
        lines: u32,
    },
    File {
        contents: Kept,
    },
    Truth {
        value: bool,
    },
    Change {
        change: Change,
    },
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
    /// Contents that stand beside the journal.
    pub contents: Vec<(Digest, Vec<u8>)>,
}

impl Taken {
    /// Whether nothing was there.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.entries.is_empty() && self.contents.is_empty()
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

    /// Adds an entry to the journal, and the contents that it names. An entry that can not be written as JSON does not exist: every one is
    /// made of texts and numbers.
    pub fn entry(&self, entry: &Entry, contents: Vec<(Digest, Vec<u8>)>) {
        let Ok(text) = serde_json::to_string(entry) else { return };
        let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = waiting.entry_seq;
        waiting.entry_seq += 1;
        waiting.taken.entries.push((seq, text));
        waiting.taken.contents.extend(contents);
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
