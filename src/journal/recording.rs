//! A whole run as it leaves the server: its row, its log, its journal and the contents beside it, as lines of JSON.
//!
//! A recording is a `run` line; `line`, `entry` and `content` lines in any number; an `end` line with their numbers, without which it is cut
//! off. An export is an `export` line, then `module` lines, then recordings. Each line is an object with one field, which says what it is.

use std::str::FromStr as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::api::{LogLine, Run};
use crate::journal::kept::Contents;
use crate::limits::RECORDING_BYTES_MAX;
use crate::names::Digest;

/// The version of the lines that is written and read here.
pub const VERSION: u32 = 1;

/// A run, with everything that was recorded of it.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The run.
    pub run: Run,
    /// Its log.
    pub lines: Vec<LogLine>,
    /// Its journal, each entry as it was written.
    pub entries: Vec<Box<RawValue>>,
    /// The contents that stand beside the journal.
    pub contents: Contents,
}

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// An export begins.
    Export {
        /// The version of its lines.
        version: u32,
    },
    /// A module's bytes.
    Module(Content),
    /// A recording begins.
    Run(Box<Run>),
    /// A line of its log.
    Line(LogLine),
    /// An entry of its journal.
    Entry(Box<RawValue>),
    /// A content beside its journal.
    Content(Content),
    /// A recording ends.
    End {
        /// How many lines of the log there were.
        lines: u64,
        /// How many entries of the journal.
        entries: u64,
    },
}

/// Bytes under their digest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Content {
    /// Their sha256.
    pub sha256: String,
    /// Themselves.
    pub base64: String,
}

impl Content {
    /// Describes some bytes.
    pub fn of(digest: &Digest, bytes: &[u8]) -> Self {
        Self { sha256: digest.to_string(), base64: STANDARD.encode(bytes) }
    }

    fn read(&self) -> Result<(Digest, Bytes), ReadError> {
        let digest = Digest::from_str(&self.sha256).map_err(|_| ReadError::Content)?;
        let bytes = STANDARD.decode(&self.base64).map_err(|_| ReadError::Content)?;
        if Digest::of(&bytes) == digest { Ok((digest, bytes.into())) } else { Err(ReadError::Content) }
    }
}

impl Part {
    /// The line, with its end.
    pub fn to_line(&self) -> String {
        // Texts and numbers alone are always written.
        serde_json::to_string(self).map(|line| line + "\n").unwrap_or_default()
    }
}

/// Why lines are no recording.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A line is not one of these.
    #[error("a line is not one of a recording")]
    Line(#[source] serde_json::Error),
    /// It is of a later version.
    #[error("it is of version {0}, and this program reads version {VERSION}")]
    Version(u32),
    /// A content is not what its digest says.
    #[error("a content is not what its digest says")]
    Content,
    /// A line stands where it has no place.
    #[error("a line stands where it has no place")]
    Order,
    /// A recording has no end, or lacks lines.
    #[error("it was cut off")]
    CutOff,
    /// A recording is larger than any is.
    #[error("a recording has more than {RECORDING_BYTES_MAX} bytes")]
    TooLarge,
}

/// What was read whole.
#[derive(Debug)]
pub enum Whole {
    /// A run.
    Recording(Box<Recording>),
    /// A module.
    Module(Digest, Bytes),
}

/// Puts recordings together from lines.
#[derive(Debug, Default)]
pub struct Reader {
    open: Option<Box<Recording>>,
    bytes: usize,
}

impl Reader {
    /// Takes a line; what has become whole with it, if anything has.
    ///
    /// # Errors
    /// When it is no line of a recording, or has no place there.
    pub fn feed(&mut self, line: &str) -> Result<Option<Whole>, ReadError> {
        let part: Part = serde_json::from_str(line).map_err(ReadError::Line)?;
        self.bytes = self.bytes.saturating_add(line.len());
        if self.open.is_some() && self.bytes > RECORDING_BYTES_MAX {
            return Err(ReadError::TooLarge);
        }
        match (part, &mut self.open) {
            (Part::Export { version }, None) if version <= VERSION => {}
            (Part::Export { version }, None) => return Err(ReadError::Version(version)),
            (Part::Module(content), None) => {
                let (digest, bytes) = content.read()?;
                return Ok(Some(Whole::Module(digest, bytes)));
            }
            (Part::Run(run), None) => {
                self.bytes = line.len();
                let recording = Recording { run: *run, lines: Vec::new(), entries: Vec::new(), contents: Contents::new() };
                self.open = Some(Box::new(recording));
            }
            (Part::Line(line), Some(open)) => open.lines.push(line),
            (Part::Entry(entry), Some(open)) => open.entries.push(entry),
            (Part::Content(content), Some(open)) => {
                let (digest, bytes) = content.read()?;
                open.contents.insert(digest, bytes);
            }
            (Part::End { lines, entries }, Some(open)) => {
                if (open.lines.len() as u64, open.entries.len() as u64) != (lines, entries) {
                    return Err(ReadError::CutOff);
                }
                return Ok(self.open.take().map(Whole::Recording));
            }
            _ => return Err(ReadError::Order),
        }
        Ok(None)
    }

    /// Checks that nothing is left open.
    ///
    /// # Errors
    /// When a recording has no end.
    pub fn finish(self) -> Result<(), ReadError> {
        if self.open.is_none() { Ok(()) } else { Err(ReadError::CutOff) }
    }
}
