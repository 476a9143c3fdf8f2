//! The calls of one session: what the server asks of this machine, each done in a task of its own.
//!
//! Input of known size (a command's, a file's, a manifest) is gathered before a call begins; it is small, or needed whole anyway. A pack
//! is handed on in pieces as it comes, and the socket is not read further while the disk is behind.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use super::supervise::Supervisor;
use crate::limits::{CALL_FILE_BYTES_MAX, CALLS_AT_ONCE_MAX, MANIFEST_BYTES_MAX, PIECE_BYTES, SESSION_PIECES_WAITING_MAX, STDIN_BYTES_MAX};
use crate::link::frames::{Answer, Call, Channel, Data, FromAgent, Message, encode};
use crate::machine::exec::{Environment, exec};
use crate::machine::root::Root;
use crate::machine::sync::{Source, sync_first};
use crate::machine::{CallError, Command, Stream};

/// What calls reach.
#[derive(Debug)]
pub struct Machine {
    /// Its files.
    pub root: Arc<Root>,
    /// What programs get of its environment.
    pub environment: Environment,
    /// What is kept running.
    pub supervisor: Supervisor,
    /// Held by the sync that is under way: one that was cancelled may still be clearing up when the next comes.
    pub syncing: Arc<tokio::sync::Mutex<()>>,
    /// Whether every file is read at each sync, whatever is known of it.
    pub verify: bool,
}

/// What a server sent that no server of this protocol sends. The session is closed.
#[derive(Debug, thiserror::Error)]
pub enum Misspoken {
    /// A call with the id of another that is under way.
    #[error("call {0} is under way and was sent again")]
    IdTwice(u32),
    /// More input than was announced.
    #[error("call {0} was sent more input than was announced")]
    TooMuch(u32),
    /// Data that only agents send.
    #[error("call {0} was sent data that only agents send")]
    Channel(u32),
}

/// The calls that are under way. When this is dropped they are ended, and what they started is killed.
pub(super) struct Calls {
    machine: Arc<Machine>,
    outbox: mpsc::Sender<Message>,
    under_way: HashMap<u32, UnderWay>,
    tasks: JoinSet<u32>,
}

enum UnderWay {
    /// Waits for the rest of its input.
    Gathering { call: Call, input: Vec<u8>, bytes: usize },
    /// Is done; a sync takes its pack here.
    Doing { pack: Option<mpsc::Sender<Bytes>>, task: AbortHandle },
}

impl Calls {
    pub(super) fn new(machine: Arc<Machine>, outbox: mpsc::Sender<Message>) -> Self {
        Self { machine, outbox, under_way: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Begins a call, or begins to gather its input.
    pub(super) fn begin(&mut self, id: u32, call: Call) -> Result<(), Misspoken> {
        if self.under_way.contains_key(&id) {
            return Err(Misspoken::IdTwice(id));
        }
        let (bytes, bytes_max) = match &call {
            Call::Exec { stdin_bytes, .. } | Call::Launch { stdin_bytes, .. } => (*stdin_bytes, STDIN_BYTES_MAX),
            Call::WriteFile { bytes, .. } => (*bytes, CALL_FILE_BYTES_MAX),
            _ => (0, 0),
        };
        let refused = match usize::try_from(bytes) {
            _ if self.under_way.len() >= CALLS_AT_ONCE_MAX => {
                CallError::OverBudget(format!("an agent does at most {CALLS_AT_ONCE_MAX} calls at once"))
            }
            Ok(0) => {
                self.start(id, call, Vec::new());
                return Ok(());
            }
            Ok(bytes) if bytes <= bytes_max => {
                self.under_way.insert(id, UnderWay::Gathering { call, input: Vec::new(), bytes });
                return Ok(());
            }
            _ => CallError::Invalid(format!("input of {bytes} bytes; {bytes_max} are allowed")),
        };
        // Answered from a task: the outbox may be full, and reading must go on.
        let outbox = self.outbox.clone();
        self.tasks.spawn(async move {
            done(&outbox, id, Err(refused)).await;
            id
        });
        Ok(())
    }

    /// Takes a piece of a call's input. One for a call that has ended is dropped: it was on its way.
    pub(super) async fn data(&mut self, data: Data) -> Result<(), Misspoken> {
        if data.channel != Channel::In {
            return Err(Misspoken::Channel(data.id));
        }
        match self.under_way.get_mut(&data.id) {
            None => return Ok(()),
            Some(UnderWay::Doing { pack: None, .. }) if data.bytes.is_empty() => return Ok(()),
            Some(UnderWay::Doing { pack: None, .. }) => return Err(Misspoken::TooMuch(data.id)),
            Some(UnderWay::Doing { pack: Some(pack), .. }) => {
                // A sync that failed takes no more, and its answer is on the way.
                let _ = pack.send(data.bytes).await;
                return Ok(());
            }
            Some(UnderWay::Gathering { input, bytes, .. }) => {
                if input.len() + data.bytes.len() > *bytes {
                    return Err(Misspoken::TooMuch(data.id));
                }
                input.extend_from_slice(&data.bytes);
                if input.len() < *bytes {
                    return Ok(());
                }
            }
        }
        if let Some(UnderWay::Gathering { call, input, .. }) = self.under_way.remove(&data.id) {
            self.start(data.id, call, input);
        }
        Ok(())
    }

    /// Ends a call. It may have been answered already.
    pub(super) fn cancel(&mut self, id: u32) {
        if let Some(UnderWay::Doing { task, .. }) = self.under_way.remove(&id) {
            task.abort();
        }
    }

    /// Waits until one of the calls has ended; for ever if there is none.
    pub(super) async fn ended(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(id)) => {
                self.under_way.remove(&id);
            }
            Some(Err(_)) => {}
            None => std::future::pending().await,
        }
    }

    fn start(&mut self, id: u32, call: Call, input: Vec<u8>) {
        let (machine, outbox) = (self.machine.clone(), self.outbox.clone());
        let (sender, pack) = mpsc::channel(SESSION_PIECES_WAITING_MAX);
        let sender = matches!(call, Call::Sync { .. }).then_some(sender);
        let task = self.tasks.spawn(async move {
            let answer = answer(&machine, &outbox, id, call, input, pack).await;
            done(&outbox, id, answer).await;
            id
        });
        self.under_way.insert(id, UnderWay::Doing { pack: sender, task });
    }
}

async fn done(outbox: &mpsc::Sender<Message>, id: u32, answer: Result<Answer, CallError>) {
    match encode(&FromAgent::Done { id, answer }) {
        // Nobody is there to be told when the session is over.
        Ok(message) => drop(outbox.send(message).await),
        Err(error) => tracing::error!(call.id = id, "the answer to call {id} can not be sent: {error}"),
    }
}

async fn answer(
    machine: &Arc<Machine>,
    outbox: &mpsc::Sender<Message>,
    id: u32,
    call: Call,
    input: Vec<u8>,
    pack: mpsc::Receiver<Bytes>,
) -> Result<Answer, CallError> {
    match call {
        Call::Exec { command, output_bytes_max, .. } => {
            let command = Command { stdin: input, ..command };
            run(machine, outbox, id, &command, size(output_bytes_max)).await
        }
        Call::ReadFile { path, bytes_max } => {
            let contents = blocking(machine, move |machine| machine.root.read_file(&path, size(bytes_max))).await?;
            let mut contents = Bytes::from(contents);
            while !contents.is_empty() {
                let piece = contents.split_to(PIECE_BYTES.min(contents.len()));
                send(outbox, id, Channel::Out, piece).await?;
            }
            Ok(Answer::Nothing {})
        }
        Call::Exists { path } => {
            let value = blocking(machine, move |machine| machine.root.exists(&path)).await?;
            Ok(Answer::Truth { value })
        }
        Call::WriteFile { path, mode, .. } => {
            let change = blocking(machine, move |machine| machine.root.write_file(&path, &input, mode)).await?;
            Ok(Answer::Changed { change })
        }
        Call::Remove { path, with_below } => {
            let change = blocking(machine, move |machine| machine.root.remove(&path, with_below)).await?;
            Ok(Answer::Changed { change })
        }
        Call::Sync { destination, rules, version } => {
            let alone = machine.syncing.clone().lock_owned().await;
            let mut source = Server { outbox: outbox.clone(), id, pack };
            let (answer, answered) = oneshot::channel();
            let machine = machine.clone();
            tokio::task::spawn_blocking(move || {
                let _alone = alone;
                let (change, rest) = match sync_first(&machine.root, &destination, rules, &version, machine.verify, &mut source) {
                    Ok((change, rest)) => (Ok(change), rest),
                    Err(error) => (Err(error), None),
                };
                // Nobody is there to be told when the call was cancelled.
                let _ = answer.send(change);
                if let Some(rest) = rest {
                    rest.finish();
                }
            });
            let change = answered.await.unwrap_or_else(|_| Err(broken()))?;
            Ok(Answer::Changed { change })
        }
        Call::Stop {} => Ok(Answer::Truth { value: machine.supervisor.stop().await }),
        Call::Launch { command, .. } => {
            machine.supervisor.launch(Command { stdin: input, ..command }).await?;
            Ok(Answer::Nothing {})
        }
    }
}

async fn run(machine: &Machine, outbox: &mpsc::Sender<Message>, id: u32, command: &Command, bytes_max: usize) -> Result<Answer, CallError> {
    let (sender, mut output) = mpsc::channel(1);
    let running = exec(&machine.root, &machine.environment, command, bytes_max, sender);
    let passing = async {
        while let Some((stream, bytes)) = output.recv().await {
            let channel = match stream {
                Stream::Stdout => Channel::Out,
                Stream::Stderr => Channel::Err,
            };
            send(outbox, id, channel, bytes).await?;
        }
        Ok::<(), CallError>(())
    };
    let (exited, passed) = tokio::join!(running, passing);
    let exited = exited?;
    passed?;
    Ok(Answer::Exited { status: exited.status, truncated: exited.truncated })
}

async fn send(outbox: &mpsc::Sender<Message>, id: u32, channel: Channel, bytes: Bytes) -> Result<(), CallError> {
    outbox.send(Data { id, channel, bytes }.encode()).await.map_err(|_| lost())
}

async fn blocking<T: Send + 'static>(
    machine: &Arc<Machine>,
    work: impl FnOnce(&Machine) -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    let machine = machine.clone();
    let ended = tokio::task::spawn_blocking(move || work(&machine)).await;
    ended.unwrap_or_else(|_| Err(broken()))
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn broken() -> CallError {
    CallError::Other("the agent failed in the middle of the call".to_owned())
}

fn lost() -> CallError {
    CallError::Unreachable("the session was lost".to_owned())
}

/// The server's side of a sync, asked from the thread of the sync.
struct Server {
    outbox: mpsc::Sender<Message>,
    id: u32,
    pack: mpsc::Receiver<Bytes>,
}

impl Server {
    fn say(&self, frame: &FromAgent) -> Result<(), CallError> {
        let message = encode(frame).map_err(|error| CallError::Other(error.to_string()))?;
        self.outbox.blocking_send(message).map_err(|_| lost())
    }
}

impl Source for Server {
    fn manifest(&mut self) -> Result<Bytes, CallError> {
        self.say(&FromAgent::Manifest { id: self.id })?;
        let mut manifest = Vec::new();
        while let Some(piece) = self.piece()? {
            if manifest.len() + piece.len() > MANIFEST_BYTES_MAX {
                return Err(CallError::Invalid(format!("a manifest of more than {MANIFEST_BYTES_MAX} bytes")));
            }
            manifest.extend_from_slice(&piece);
        }
        Ok(manifest.into())
    }

    fn need(&mut self, contents: &[u32]) -> Result<(), CallError> {
        for piece in contents.chunks(PIECE_BYTES / 4) {
            let bytes = piece.iter().flat_map(|index| index.to_le_bytes()).collect::<Vec<u8>>();
            let data = Data { id: self.id, channel: Channel::Need, bytes: bytes.into() };
            self.outbox.blocking_send(data.encode()).map_err(|_| lost())?;
        }
        self.say(&FromAgent::Needed { id: self.id })
    }

    fn piece(&mut self) -> Result<Option<Bytes>, CallError> {
        let bytes = self.pack.blocking_recv().ok_or_else(lost)?;
        Ok((!bytes.is_empty()).then_some(bytes))
    }
}
