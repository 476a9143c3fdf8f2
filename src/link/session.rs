//! The server's side of a session: calls over an agent's WebSocket.
//!
//! The transport is somebody else's: messages go out through a bounded channel, and what comes in is given to [`Session::receive`], which
//! waits when a call is slow to take its data. So a slow agent slows its own run and nothing else.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::bits::contents::{Bundle, Packing};
use crate::limits::{AGENT_TEXT_BYTES_MAX, NAME_BYTES_MAX, OUTPUT_BYTES_MAX, PIECE_BYTES};
use crate::link::Link;
use crate::link::frames::{Answer, Call, Channel, Data, FrameError, FromAgent, Launched, Message, PROTOCOL, ToAgent, decode, encode};
use crate::machine::{CallError, Change, Command, Output, Stream, SyncRules, with_causes};

/// Pieces of a call's data that wait for the call to take them.
const PIECES_WAITING: usize = 16;

/// One agent's session, open until it is [closed](Link::close). Clones are the same session.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

struct Shared {
    outgoing: mpsc::Sender<Message>,
    over: CancellationToken,
    calls: Mutex<Calls>,
    next_id: AtomicU32,
}

struct Calls {
    open: HashMap<u32, mpsc::Sender<Incoming>>,
    closed: Option<String>,
}

enum Incoming {
    Data(Channel, Bytes),
    Manifest,
    Needed,
    Done(Result<Answer, CallError>),
}

/// What an agent says of its own accord.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// What was launched has changed.
    Launched(Launched),
    /// The agent takes no more work and will end.
    Draining(String),
}

/// What an agent says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Which start of the agent program it is.
    pub instance: String,
    /// What was launched, and how it is.
    pub launched: Launched,
}

/// Reads an agent's greeting.
///
/// # Errors
/// Why the session can not begin.
pub fn greeting(text: &str) -> Result<Greeting, String> {
    match decode(text) {
        Ok(FromAgent::Hello { protocol: PROTOCOL, instance, .. })
            if instance.len() > AGENT_TEXT_BYTES_MAX || instance.contains(char::is_control) =>
        {
            Err(format!("its instance has more than {AGENT_TEXT_BYTES_MAX} bytes, or holds control characters"))
        }
        Ok(FromAgent::Hello { protocol: PROTOCOL, instance, launched, .. }) => Ok(Greeting { instance, launched }),
        Ok(FromAgent::Hello { protocol, version, .. }) => {
            let version = version.get(..version.floor_char_boundary(NAME_BYTES_MAX)).unwrap_or_default().escape_default();
            Err(format!("muster-agent {version} speaks session protocol {protocol}, this server {PROTOCOL}"))
        }
        Ok(_) => Err("it did not begin with a greeting".into()),
        Err(error) => Err(error.to_string()),
    }
}

impl Session {
    /// A session whose messages go out through `outgoing`.
    pub fn new(outgoing: mpsc::Sender<Message>) -> Self {
        let calls = Mutex::new(Calls { open: HashMap::new(), closed: None });
        Self { shared: Arc::new(Shared { outgoing, over: CancellationToken::new(), calls, next_id: AtomicU32::new(1) }) }
    }

    /// Takes a message that came in, and answers what is not part of a call.
    ///
    /// # Errors
    /// When it is no frame. The session is to be closed then.
    pub async fn receive(&self, message: Message) -> Result<Option<Event>, FrameError> {
        let (id, incoming) = match message {
            Message::Ping => return Ok(None),
            Message::Binary(bytes) => {
                let data = Data::decode(bytes)?;
                (data.id, Incoming::Data(data.channel, data.bytes))
            }
            Message::Text(text) => match decode::<FromAgent>(&text)? {
                FromAgent::Done { id, answer } => (id, Incoming::Done(answer)),
                FromAgent::Manifest { id } => (id, Incoming::Manifest),
                FromAgent::Needed { id } => (id, Incoming::Needed),
                FromAgent::Launched { launched } => return Ok(Some(Event::Launched(launched))),
                FromAgent::Draining { reason } => return Ok(Some(Event::Draining(reason))),
                // A second greeting says nothing new.
                FromAgent::Hello { .. } => return Ok(None),
            },
        };
        let slot = self.lock().open.get(&id).cloned();
        // A call that nobody waits for any more may still be answered: the cancellation is under way.
        if let Some(slot) = slot {
            let _ = slot.send(incoming).await;
        }
        Ok(None)
    }

    /// Waits until the session is closed, so that its connection is closed too: an agent that holds on to it would open no other.
    pub async fn over(&self) {
        self.shared.over.cancelled().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> CallError {
        let reason = self.lock().closed.clone();
        CallError::Unreachable(reason.unwrap_or_else(|| "the session was closed".into()))
    }

    async fn say(&self, frame: &ToAgent) -> Result<(), CallError> {
        let message = encode(frame).map_err(|error| CallError::Invalid(error.to_string()))?;
        self.shared.outgoing.send(message).await.map_err(|_| self.lost())
    }

    async fn begin(&self, call: Call) -> Result<Open, CallError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (slot, incoming) = mpsc::channel(PIECES_WAITING);
        {
            let mut calls = self.lock();
            if calls.closed.is_some() {
                drop(calls);
                return Err(self.lost());
            }
            calls.open.insert(id, slot);
        }
        let open = Open { session: self.clone(), id, incoming, done: false };
        self.say(&ToAgent::Call { id, call }).await?;
        Ok(open)
    }
}

/// A call under way. Dropped before its answer, it is cancelled on the machine.
struct Open {
    session: Session,
    id: u32,
    incoming: mpsc::Receiver<Incoming>,
    done: bool,
}

impl Open {
    async fn next(&mut self) -> Result<Incoming, CallError> {
        let Some(incoming) = self.incoming.recv().await else {
            self.done = true;
            return Err(self.session.lost());
        };
        self.done = matches!(incoming, Incoming::Done(_));
        Ok(incoming)
    }

    /// The answer of a call that sends no data.
    async fn answer(mut self) -> Result<Answer, CallError> {
        loop {
            if let Incoming::Done(answer) = self.next().await? {
                return answer;
            }
        }
    }

    fn sender(&self) -> Sender {
        Sender { session: self.session.clone(), id: self.id }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.session.lock().open.remove(&self.id);
        if self.done {
            return;
        }
        let Ok(cancel) = encode(&ToAgent::Cancel { id: self.id }) else { return };
        if let Err(mpsc::error::TrySendError::Full(cancel)) = self.session.shared.outgoing.try_send(cancel) {
            let outgoing = self.session.shared.outgoing.clone();
            tokio::spawn(async move {
                // The session may end first, and with it the call.
                let _ = outgoing.send(cancel).await;
            });
        }
    }
}

/// Sends a call's data.
struct Sender {
    session: Session,
    id: u32,
}

impl Sender {
    async fn piece(&self, bytes: Bytes) -> Result<(), CallError> {
        self.message(Data { id: self.id, channel: Channel::In, bytes }.encode()).await
    }

    async fn message(&self, message: Message) -> Result<(), CallError> {
        self.session.shared.outgoing.send(message).await.map_err(|_| self.session.lost())
    }

    async fn all(&self, bytes: &[u8]) -> Result<(), CallError> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.piece(Bytes::copy_from_slice(piece)).await?;
        }
        Ok(())
    }
}

fn odd() -> CallError {
    CallError::Other("the agent answered with something else than was asked".into())
}

fn changed(answer: Answer) -> Result<Change, CallError> {
    match answer {
        Answer::Changed { change } => Ok(change),
        _ => Err(odd()),
    }
}

fn truth(answer: Answer) -> Result<bool, CallError> {
    match answer {
        Answer::Truth { value } => Ok(value),
        _ => Err(odd()),
    }
}

#[async_trait::async_trait]
impl Link for Session {
    async fn exec(&self, command: &Command, progress: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<Output, CallError> {
        let call =
            Call::Exec { command: command.clone(), stdin_bytes: command.stdin.len() as u64, output_bytes_max: OUTPUT_BYTES_MAX as u64 };
        let mut open = self.begin(call).await?;
        let sender = open.sender();
        // Input and output at once: a command that writes before it has read all would otherwise wait for us while we wait for it.
        let mut input = std::pin::pin!(sender.all(&command.stdin));
        let mut sent = false;
        let mut output = Output::default();
        loop {
            let incoming = tokio::select! {
                result = &mut input, if !sent => {
                    result?;
                    sent = true;
                    continue;
                }
                incoming = open.next() => incoming?,
            };
            match incoming {
                Incoming::Data(channel, bytes) => {
                    let (stream, kept) = match channel {
                        Channel::Out => (Stream::Stdout, &mut output.stdout),
                        Channel::Err => (Stream::Stderr, &mut output.stderr),
                        Channel::In | Channel::Need => return Err(odd()),
                    };
                    progress(stream, &bytes);
                    let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
                    output.truncated |= bytes.len() > room;
                    kept.extend(bytes.iter().take(room));
                }
                Incoming::Manifest | Incoming::Needed => return Err(odd()),
                Incoming::Done(answer) => {
                    let Answer::Exited { status, truncated } = answer? else { return Err(odd()) };
                    output.status = status;
                    output.truncated |= truncated;
                    return Ok(output);
                }
            }
        }
    }

    async fn read_file(&self, path: &str, bytes_max: usize) -> Result<Vec<u8>, CallError> {
        let mut open = self.begin(Call::ReadFile { path: path.into(), bytes_max: bytes_max as u64 }).await?;
        let mut content = Vec::new();
        loop {
            match open.next().await? {
                Incoming::Data(Channel::Out, bytes) if content.len() + bytes.len() <= bytes_max => content.extend_from_slice(&bytes),
                Incoming::Done(answer) => return answer.map(|_| content),
                Incoming::Data(..) | Incoming::Manifest | Incoming::Needed => return Err(odd()),
            }
        }
    }

    async fn exists(&self, path: &str) -> Result<bool, CallError> {
        truth(self.begin(Call::Exists { path: path.into() }).await?.answer().await?)
    }

    async fn write_file(&self, path: &str, contents: &[u8], mode: u32) -> Result<Change, CallError> {
        let open = self.begin(Call::WriteFile { path: path.into(), mode, bytes: contents.len() as u64 }).await?;
        open.sender().all(contents).await?;
        changed(open.answer().await?)
    }

    async fn remove(&self, path: &str, with_below: bool) -> Result<Change, CallError> {
        changed(self.begin(Call::Remove { path: path.into(), with_below }).await?.answer().await?)
    }

    async fn sync(&self, destination: &str, bundle: &Bundle, rules: SyncRules) -> Result<Change, CallError> {
        let mut open = self.begin(Call::Sync { destination: destination.into(), rules, version: bundle.version }).await?;
        let sender = open.sender();
        let contents = bundle.manifest.contents();
        let (mut wanted, mut named, mut partial) = (Vec::new(), HashSet::new(), Vec::new());
        let mut asked = false;
        loop {
            match open.next().await? {
                // Once: otherwise an agent could have it sent without end.
                Incoming::Manifest if !asked => {
                    asked = true;
                    sender.all(&bundle.packed_manifest().await.map_err(|error| CallError::Other(error.to_string()))?).await?;
                    sender.piece(Bytes::new()).await?;
                }
                Incoming::Data(Channel::Need, bytes) => {
                    partial.extend_from_slice(&bytes);
                    let whole = partial.len() - partial.len() % 4;
                    for index in partial.drain(..whole).collect::<Vec<_>>().chunks_exact(4) {
                        let index = index.try_into().map(u32::from_le_bytes).map_err(|_| odd())?;
                        if !named.insert(index) || index as usize >= contents.len() {
                            return Err(odd());
                        }
                        wanted.push(index);
                    }
                }
                Incoming::Needed => break,
                Incoming::Done(answer) => return changed(answer?).map(|change| Change { bytes_sent: 0, ..change }),
                Incoming::Data(..) | Incoming::Manifest => return Err(odd()),
            }
        }
        let bytes_sent = wanted.iter().filter_map(|index| contents.get(*index as usize)).map(|(_, size)| size).sum();
        // In a task of its own: what sending costs is not the module's, whose processor time is that of the task which calls here.
        let bundle = bundle.clone();
        let packing = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut packing = Packing::new(&bundle, wanted).await;
            let head = Data::head(sender.id, Channel::In);
            while let Some(piece) = packing.next(&head).await.map_err(|error| CallError::Other(with_causes(&error)))? {
                sender.message(Message::Binary(piece)).await?;
            }
            sender.piece(Bytes::new()).await
        }));
        // The agent may end the call before all is sent: its disk is full, say. Then nothing more is sent.
        let answer = tokio::select! {
            biased;
            incoming = open.next() => match incoming? {
                Incoming::Done(answer) => changed(answer?),
                Incoming::Data(..) | Incoming::Manifest | Incoming::Needed => Err(odd()),
            },
            packed = packing => {
                packed.map_err(|_| CallError::Other("packing broke down".into()))??;
                changed(open.answer().await?)
            }
        };
        answer.map(|change| Change { bytes_sent, ..change })
    }

    async fn stop(&self) -> Result<bool, CallError> {
        truth(self.begin(Call::Stop {}).await?.answer().await?)
    }

    async fn launch(&self, command: &Command) -> Result<(), CallError> {
        let call = Call::Launch { command: command.clone(), stdin_bytes: command.stdin.len() as u64 };
        let open = self.begin(call).await?;
        open.sender().all(&command.stdin).await?;
        open.answer().await.map(drop)
    }

    async fn hold(&self) -> Result<(), CallError> {
        self.say(&ToAgent::Hold {}).await
    }

    async fn resume(&self) -> Result<(), CallError> {
        self.say(&ToAgent::Resume {}).await
    }

    async fn drain(&self, reason: &str) -> Result<(), CallError> {
        self.say(&ToAgent::Drain { reason: reason.into() }).await
    }

    fn close(&self, reason: &str) {
        let mut calls = self.lock();
        calls.closed.get_or_insert_with(|| reason.to_owned());
        calls.open.clear();
        self.shared.over.cancel();
    }
}
