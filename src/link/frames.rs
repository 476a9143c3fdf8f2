//! The frames of a session: what goes over the agent's WebSocket.
//!
//! A text message is one frame as JSON: the server sends [`ToAgent`], the agent [`FromAgent`]. A binary message is [`Data`]: a piece of
//! bytes that belongs to a call. A call is answered by exactly one [`FromAgent::Done`], after all of its data. Fields may be added;
//! an unknown one is ignored, so that an older agent serves a newer server as long as [`PROTOCOL`] is the same.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits::SESSION_MESSAGE_BYTES_MAX;
use crate::machine::{CallError, Change, Command, SyncRules};
use crate::names::Digest;

/// The version of this language. A server refuses a session in another.
pub const PROTOCOL: u32 = 2;

/// One message, whatever the transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A frame as JSON.
    Text(String),
    /// Encoded [`Data`].
    Binary(Bytes),
    /// Only says that the sender is there.
    Ping,
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "kebab-case")]
pub enum ToAgent {
    /// Do something. Ids are not used twice in a session.
    Call {
        /// The call's id.
        id: u32,
        /// What to do.
        call: Call,
    },
    /// Nobody waits for this call any more: end it, and answer nothing.
    Cancel {
        /// The call's id.
        id: u32,
    },
    /// A run begins: what was launched and ends is not started again until `Call::Launch`, or `Resume`.
    Hold {},
    /// The run changed nothing that matters: what was launched is kept running as before.
    Resume {},
    /// Take no more work: end what was launched, keep it ended, and stay registered.
    Drain {
        /// Why, for the agent's log.
        reason: String,
    },
}

/// One thing to do on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Call {
    /// Run a command. Its input follows as data on [`Channel::In`]; its output comes as data on `Out` and `Err`, as it is written.
    Exec {
        /// The command.
        command: Command,
        /// How many bytes of input follow.
        stdin_bytes: u64,
        /// How many bytes of each output are sent; the rest is read and thrown away.
        output_bytes_max: u64,
    },
    /// Read a file; it comes as data on `Out`.
    ReadFile {
        /// The path.
        path: String,
        /// A larger file is an error.
        bytes_max: u64,
    },
    /// Say whether anything is at a path.
    Exists {
        /// The path.
        path: String,
    },
    /// Write a file, whose content follows as data on `In`.
    WriteFile {
        /// The path.
        path: String,
        /// Permission bits.
        mode: u32,
        /// How many bytes follow.
        bytes: u64,
    },
    /// Remove what is at a path.
    Remove {
        /// The path.
        path: String,
        /// Whether a directory goes with all that is in it.
        with_below: bool,
    },
    /// Bring a bundle to a destination. An agent that does not know the manifest of the version asks for it with
    /// [`FromAgent::Manifest`]; then it follows on `In`, compressed, ended by data of length 0. One that lacks contents says on `Need`
    /// which, as 32-bit little-endian indices into the manifest's distinct contents, and ends that with [`FromAgent::Needed`]; then the
    /// pack (see `bits::pack`) follows on `In`, ended by data of length 0.
    Sync {
        /// A directory.
        destination: String,
        /// What may be done there.
        rules: SyncRules,
        /// The version of the bundle.
        version: Digest,
    },
    /// End what was launched.
    Stop {},
    /// End what was launched, start this and keep it running.
    Launch {
        /// What to start.
        command: Command,
        /// How many bytes of input follow as data on `In`.
        stdin_bytes: u64,
    },
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "kebab-case")]
pub enum FromAgent {
    /// The first frame of a session.
    Hello {
        /// The sender's [`PROTOCOL`].
        protocol: u32,
        /// The sender's version, for people.
        version: String,
        /// A random id of this start of the agent program.
        instance: String,
        /// What was launched, and how it is.
        launched: Launched,
    },
    /// The manifest of a sync is not known.
    Manifest {
        /// The call's id.
        id: u32,
    },
    /// All indices of what is lacking have been sent.
    Needed {
        /// The call's id.
        id: u32,
    },
    /// A call has ended.
    Done {
        /// The call's id.
        id: u32,
        /// What came of it.
        answer: Result<Answer, CallError>,
    },
    /// What was launched has changed.
    Launched {
        /// How it is now.
        launched: Launched,
    },
    /// The agent takes no more work and will end: SIGTERM, say.
    Draining {
        /// Why.
        reason: String,
    },
}

/// What comes of a call that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Answer {
    /// A command ended.
    Exited {
        /// Its status; 128 + N if signal N ended it.
        status: i32,
        /// Whether it wrote more than was sent.
        truncated: bool,
    },
    /// Yes or no.
    Truth {
        /// Which.
        value: bool,
    },
    /// What was changed.
    Changed {
        /// What.
        change: Change,
    },
    /// It was done, and there is nothing to say.
    Nothing {},
}

/// How what was launched is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Launched {
    /// Nothing was launched since this agent program started, or it was ended on the server's word.
    #[default]
    Nothing,
    /// It runs.
    Running {
        /// Its process id.
        pid: u32,
        /// How often it was started again.
        restarts: u32,
    },
    /// It ended by itself, and will be started again unless a run holds it.
    Exited {
        /// Its status; 128 + N if signal N ended it.
        status: i32,
        /// How often it was started again until now.
        restarts: u32,
        /// In how many milliseconds it is started again.
        again_in_ms: u64,
    },
}

/// Which way a piece of data goes, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// To the agent: input, a file's content, a manifest, a pack.
    In,
    /// From the agent: standard output, a file's content.
    Out,
    /// From the agent: standard error.
    Err,
    /// From the agent: indices of contents that it lacks.
    Need,
}

/// A piece of bytes that belongs to a call: the id (4 bytes, little-endian), the channel (1 byte), the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// The call's id.
    pub id: u32,
    /// What it is.
    pub channel: Channel,
    /// The bytes.
    pub bytes: Bytes,
}

/// Why a message is no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The JSON is not a frame that this side knows.
    #[error("a frame that is not understood")]
    Json(#[from] serde_json::Error),
    /// A binary message without its head, or with an unknown channel.
    #[error("a piece of data without a head")]
    Head,
    /// The message is too large.
    #[error("a message of {0} bytes; {SESSION_MESSAGE_BYTES_MAX} are allowed")]
    TooLarge(usize),
}

impl Data {
    /// Encodes it as a message.
    pub fn encode(&self) -> Message {
        Message::Binary([Self::head(self.id, self.channel).as_slice(), &self.bytes].concat().into())
    }

    /// What comes before the bytes in a message.
    pub fn head(id: u32, channel: Channel) -> [u8; 5] {
        let channel = match channel {
            Channel::In => 0,
            Channel::Out => 1,
            Channel::Err => 2,
            Channel::Need => 3,
        };
        let [a, b, c, d] = id.to_le_bytes();
        [a, b, c, d, channel]
    }

    /// Reads it from a binary message.
    ///
    /// # Errors
    /// When the head is short or names an unknown channel.
    pub fn decode(mut message: Bytes) -> Result<Self, FrameError> {
        if message.len() > SESSION_MESSAGE_BYTES_MAX {
            return Err(FrameError::TooLarge(message.len()));
        }
        let Some((&[a, b, c, d, channel], _)) = message.split_first_chunk() else {
            return Err(FrameError::Head);
        };
        let channel = match channel {
            0 => Channel::In,
            1 => Channel::Out,
            2 => Channel::Err,
            3 => Channel::Need,
            _ => return Err(FrameError::Head),
        };
        Ok(Self { id: u32::from_le_bytes([a, b, c, d]), channel, bytes: message.split_off(5) })
    }
}

/// Encodes a frame as a message.
///
/// # Errors
/// When the frame can not be written as JSON, or is too large.
pub fn encode<F: Serialize>(frame: &F) -> Result<Message, FrameError> {
    let text = serde_json::to_string(frame)?;
    if text.len() > SESSION_MESSAGE_BYTES_MAX {
        return Err(FrameError::TooLarge(text.len()));
    }
    Ok(Message::Text(text))
}

/// Reads a frame from a text message.
///
/// # Errors
/// When it is not one of `F`, or too large.
pub fn decode<'a, F: Deserialize<'a>>(text: &'a str) -> Result<F, FrameError> {
    if text.len() > SESSION_MESSAGE_BYTES_MAX {
        return Err(FrameError::TooLarge(text.len()));
    }
    Ok(serde_json::from_str(text)?)
}
