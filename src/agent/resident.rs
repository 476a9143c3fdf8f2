//! The agent where the server dials: sessions come over ssh, one after the other, and what was launched outlives them.
//!
//! sshd starts `muster-agent link`, which passes bytes between its standard input and output and a socket in `ROOT/.muster`. Behind the
//! socket is the agent itself: one that registers with `--link ssh`, or, where none runs, `muster-agent keep`, which `link` starts.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cap_std::fs::{OpenOptions, OpenOptionsExt as _};
use clap::Parser;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::codec::Framed;
use tokio_util::task::AbortOnDropHandle;

use super::baked::{Bake, Rollback};
use super::calls::Machine;
use super::session::{Ending, SessionError, serve_on};
use super::state::State;
use super::supervise::{Pace, Supervisor};
use super::{AgentError, Signals};
use crate::limits::{ACCEPT_PAUSE, LAUNCHED_LOG_BYTES_MAX};
use crate::link::frames::Launched;
use crate::link::stream::Messages;
use crate::machine::exec::Environment;
use crate::machine::root::Root;
use crate::machine::with_causes;

const SOCKET_NAME: &str = "link.sock";
const LOG_NAME: &str = "agent.log";
const OLD_LOG_NAME: &str = "agent.log.1";
/// How long an agent that `link` started has to listen.
const START_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether it does.
const START_LOOK: Duration = Duration::from_millis(20);
/// After how long without a session, and with nothing launched, an agent that `link` started ends.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// How often that is looked at.
const IDLE_LOOK: Duration = Duration::from_secs(10);

/// Passes a session from the server, over ssh, to the agent of a root; starts one if none runs.
#[derive(Debug, Parser)]
#[command(name = "muster-agent link", version)]
pub(super) struct Link {
    /// Directory that the agent works in.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Directory beside the root that provisioning may write to; may be given several times.
    #[arg(long = "allow-write", value_name = "DIR")]
    allow_write: Vec<PathBuf>,
}

/// Serves sessions that come through `muster-agent link`, and keeps running what they launched.
#[derive(Debug, Parser)]
#[command(name = "muster-agent keep", version)]
pub(super) struct Keep {
    /// Directory that the agent works in.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Directory beside the root that provisioning may write to; may be given several times.
    #[arg(long = "allow-write", value_name = "DIR")]
    allow_write: Vec<PathBuf>,
}

/// The socket of a root, by a path that is short enough for a socket however long the root's is.
fn socket(root: &Root) -> PathBuf {
    #[cfg(target_os = "linux")]
    return PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", root.state().as_raw_fd()));
    #[cfg(not(target_os = "linux"))]
    return root.path().join(crate::machine::root::STATE_NAME).join(SOCKET_NAME);
}

impl Link {
    /// Passes one session to its end.
    pub(super) async fn run(self) -> Result<ExitCode, AgentError> {
        let root = Root::open(&self.root, &self.allow_write)?;
        let mut stream = match UnixStream::connect(socket(&root)).await {
            Ok(stream) => stream,
            Err(_) => {
                self.start(&root).map_err(AgentError::Link)?;
                reached(&root).await.map_err(AgentError::Link)?
            }
        };
        // Whoever hangs up first ends it.
        let (mut from_agent, mut to_agent) = stream.split();
        let (mut from_server, mut to_server) = (tokio::io::stdin(), tokio::io::stdout());
        tokio::select! {
            _ = pass(&mut from_server, &mut to_agent) => {}
            _ = pass(&mut from_agent, &mut to_server) => {}
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Starts an agent that outlives this program.
    fn start(&self, root: &Root) -> io::Result<()> {
        let log = root.state().open_with(LOG_NAME, OpenOptions::new().create(true).append(true).mode(0o600))?.into_std();
        let mut keep = std::process::Command::new("/proc/self/exe");
        keep.arg0("muster-agent").arg("keep").arg("--root").arg(root.path());
        for directory in &self.allow_write {
            keep.arg("--allow-write").arg(directory);
        }
        // A group of its own, so that what ends this session does not end it.
        keep.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0).current_dir("/");
        keep.spawn().map(drop)
    }
}

/// Copies as it comes, each piece at once.
async fn pass(from: &mut (impl tokio::io::AsyncRead + Unpin), to: &mut (impl tokio::io::AsyncWrite + Unpin)) -> io::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else { return Ok(()) };
        to.write_all(piece).await?;
        to.flush().await?;
    }
}

/// Waits until the agent that was started listens.
async fn reached(root: &Root) -> io::Result<UnixStream> {
    let until = Instant::now() + START_MAX;
    loop {
        match UnixStream::connect(socket(root)).await {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => tokio::time::sleep(START_LOOK).await,
        }
    }
}

impl Keep {
    /// Serves until there is nothing to keep any more, or a signal comes.
    pub(super) async fn run(self, environment: Environment) -> Result<ExitCode, AgentError> {
        let mut signals = Signals::new().map_err(AgentError::Signals)?;
        let root = Arc::new(Root::open(&self.root, &self.allow_write)?);
        let _state = State::open(root.clone())?;
        let supervisor = Supervisor::start(root.clone(), environment.clone(), Pace::default()).await;
        let machine = Arc::new(Machine { root, environment, supervisor, syncing: Arc::default(), verify: false });
        let (ending, instance) = (Ending::default(), uuid::Uuid::new_v4().to_string());
        let ended = tokio::select! {
            ended = listen(machine.clone(), instance, ending.clone(), true) => ended,
            () = signals.next() => Ok(()),
        };
        ending.draining.cancel();
        machine.supervisor.end().await;
        ending.over.cancel();
        ended.map(|()| ExitCode::SUCCESS)
    }
}

/// Serves the sessions that come over the root's socket, one at a time: a new one takes the place of the one before, whose server is gone.
///
/// With `may_end` it ends when there is nothing to do for it any more.
pub(super) async fn listen(machine: Arc<Machine>, instance: String, ending: Ending, may_end: bool) -> Result<(), AgentError> {
    match machine.root.state().remove_file(SOCKET_NAME) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(AgentError::Link(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket(&machine.root)).map_err(AgentError::Link)?;
    let mut serving: Option<AbortOnDropHandle<()>> = None;
    let mut idle_since = Instant::now();
    let mut look = tokio::time::interval(IDLE_LOOK);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Too many open files, say: what was launched goes on, and so does the session that is open.
                        tracing::warn!("a session can not be accepted: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                drop(serving.take());
                let (machine, instance, ending) = (machine.clone(), instance.clone(), ending.clone());
                serving = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                    let (sink, stream) = Framed::new(stream, Messages::default()).split();
                    let stream = stream.map(|message| message.map_err(SessionError::Stream));
                    let sink = sink.sink_map_err(SessionError::Stream);
                    match serve_on(stream, sink, machine, &instance, &ending).await {
                        Ok(()) => tracing::info!("the session is closed"),
                        Err(error) => tracing::info!("the session ended: {}", with_causes(&error)),
                    }
                })));
            }
            _ = look.tick() => {
                if !machine.root.is_in_place() {
                    return Err(AgentError::RootGone(machine.root.path().display().to_string()));
                }
                if let Err(error) = turn_over_log(&machine.root) {
                    tracing::debug!("`.muster/{LOG_NAME}`: {error}");
                }
                let busy = serving.as_ref().is_some_and(|task| !task.is_finished());
                if busy || *machine.supervisor.state().borrow() != Launched::Nothing {
                    idle_since = Instant::now();
                } else if may_end && idle_since.elapsed() >= IDLE_MAX {
                    return Ok(());
                }
            }
        }
    }
}

/// Puts the log of an agent that `link` started away when it is large. The file stays, since that agent writes to it.
fn turn_over_log(root: &Root) -> io::Result<()> {
    let log = match root.state().open_with(LOG_NAME, OpenOptions::new().write(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    if log.metadata()?.len() < LAUNCHED_LOG_BYTES_MAX {
        return Ok(());
    }
    // On a full disk lines are lost rather than kept for ever.
    let copied = root.state().copy(LOG_NAME, root.state(), OLD_LOG_NAME);
    log.set_len(0)?;
    copied.map(drop)
}

/// Runs the command that the arguments name; none if they name none.
pub(super) async fn run(args: &[OsString], environment: Environment) -> Option<Result<ExitCode, AgentError>> {
    let command = args.get(1)?.to_str()?;
    let rest = || args.iter().take(1).chain(args.iter().skip(2));
    let failed = |error: clap::Error| {
        let _ = error.print();
        Ok(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)))
    };
    Some(match command {
        "link" => match Link::try_parse_from(rest()) {
            Ok(link) => link.run().await,
            Err(error) => failed(error),
        },
        "bake" => match Bake::try_parse_from(rest()) {
            Ok(bake) => Box::pin(bake.run()).await,
            Err(error) => failed(error),
        },
        "rollback" => match Rollback::try_parse_from(rest()) {
            Ok(rollback) => rollback.run(),
            Err(error) => failed(error),
        },
        "keep" => match Keep::try_parse_from(rest()) {
            Ok(keep) => keep.run(environment).await,
            Err(error) => failed(error),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_large_is_put_away_and_goes_on_from_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path(), &[]).unwrap();
        turn_over_log(&root).unwrap();
        let (log, old) = (directory.path().join(".muster/agent.log"), directory.path().join(".muster/agent.log.1"));
        let mut file = root.state().open_with(LOG_NAME, OpenOptions::new().create(true).append(true)).unwrap();
        io::Write::write_all(&mut file, b"small").unwrap();
        turn_over_log(&root).unwrap();
        assert!(!old.exists());
        file.set_len(LAUNCHED_LOG_BYTES_MAX).unwrap();
        turn_over_log(&root).unwrap();
        io::Write::write_all(&mut file, b"new").unwrap();
        assert_eq!(root.state().read(LOG_NAME).unwrap(), b"new");
        assert_eq!((log.metadata().unwrap().len(), old.metadata().unwrap().len()), (3, LAUNCHED_LOG_BYTES_MAX));
    }
}
