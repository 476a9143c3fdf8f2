//! An agent's link over ssh: a session with the `muster-agent` of the machine, started through sshd, or steps for its shell.
//!
//! An agent is looked for that is of this program's version. If there is none and it is allowed, this server's own is placed below the
//! agent's root. If that may not be, or the machine is of another kind, the machine's own shell does it. What is run through the remote
//! shell is fixed text; what an agent named goes to it as quoted arguments.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::codec::{Decoder as _, Encoder as _};

use super::error::SshError;
use super::steps::OverSsh;
use super::transport::{Connection, Event as Remote, Exec, ExecInput, ExecOutput};
use crate::limits::{PIECE_BYTES, PROBE_BYTES_MAX, PROBE_MAX, SESSION_PING_INTERVAL, SESSION_SILENCE_MAX};
use crate::link::Link;
use crate::link::frames::{Launched, Message};
use crate::link::quote::{NulError, command};
use crate::link::session::{Event, Greeting, Session, greeting};
use crate::link::shell::Shell;
use crate::link::stream::Messages;
use crate::machine::CallError;
use crate::names::Digest;

/// How long the other side has to hear the last words of a session.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// Messages that wait to be sent.
const OUTGOING_WAITING: usize = 4;
/// Says which agents there are, and what the machine is.
const PROBE: &str = r#"
for program in "$1/.muster/bin/muster-agent" "$(command -v muster-agent 2>/dev/null)"; do
    [ -n "$program" ] && [ -x "$program" ] && printf 'agent %s %s\n' "$("$program" --version 2>/dev/null | tr ' ' _)" "$program"
done
for launched in "$1"/.muster/launch/*; do
    [ -d "$launched" ] && echo launched
done
printf 'machine %s\n' "$(uname -sm)"
"#;
/// Takes a program, checks it, and puts it in its place.
const PLACE: &str = r#"
set -e
umask 077
mkdir -p "$1/.muster/bin"
cd "$1/.muster/bin"
trap 'rm -f "new.$$"' EXIT
cat > "new.$$"
if [ "$(sha256sum < "new.$$")" != "$2  -" ]; then
    echo "the program did not come whole" >&2
    exit 1
fi
chmod 700 "new.$$"
mv -f "new.$$" muster-agent
"#;

/// Why there is no session over a connection.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The connection failed.
    #[error(transparent)]
    Ssh(Box<SshError>),
    /// The agent's root can not be named in a command.
    #[error("the agent's root")]
    Root(#[from] NulError),
    /// The program to be placed can not be read.
    #[error("this server's muster-agent can not be read")]
    Program(#[source] std::io::Error),
    /// There is an agent of another version, and none may be placed.
    #[error("the machine has `{found}`, and this server is of version {}; install that there, or let the label's policy place it: `place_agent = true`", env!("CARGO_PKG_VERSION"))]
    Version {
        /// What it says of itself.
        found: String,
    },
    /// A command there failed.
    #[error("{what} failed with status {status}: {said}")]
    Failed {
        /// What was done.
        what: &'static str,
        /// The command's status.
        status: i32,
        /// The end of what it said.
        said: String,
    },
    /// The agent did not begin as it should.
    #[error("the agent of the machine: {0}")]
    Greeting(String),
    /// The machine has no agent, and its shell can not stand in for one.
    #[error("there is no muster-agent {} on the machine, and its shell can not do without; install it there, or let the label's policy place it: `place_agent = true`", env!("CARGO_PKG_VERSION"))]
    Shell(#[source] CallError),
    /// The connection ended while the machine was looked at.
    #[error("the first steps on the machine were cut off: {0}")]
    Cut(String),
    /// It took too long, all steps together.
    #[error("no link was open within {0:?}; see what is slow on the machine, and what its sshd logs")]
    Slow(Duration),
}

impl From<SshError> for RemoteError {
    fn from(error: SshError) -> Self {
        Self::Ssh(Box::new(error))
    }
}

/// A link that is open, and what keeps it so.
pub struct Opened {
    /// The link.
    pub link: Arc<dyn Link>,
    /// Which start of the agent program it is; of a machine that has only a shell, which start of the machine.
    pub instance: String,
    /// What was launched there before, and how it is.
    pub launched: Launched,
    drive: Drive,
}

enum Drive {
    Session { session: Session, reader: Reader, input: ExecInput, queue: mpsc::Receiver<Message> },
    Shell { shell: Shell, connection: Connection },
}

/// Opens a link with the agent of a root, within a time. `place` is this server's `muster-agent`, if it may be placed there.
///
/// # Errors
/// When there is neither an agent to be had nor a shell that can stand in for it, or it does not begin as it should. What was begun on the
/// connection may go on until that is closed.
pub async fn open(connection: &Connection, root: &str, place: Option<&Path>, within: Duration) -> Result<Opened, RemoteError> {
    tokio::time::timeout(within, reach(connection, root, place)).await.unwrap_or(Err(RemoteError::Slow(within)))
}

async fn reach(connection: &Connection, root: &str, place: Option<&Path>) -> Result<Opened, RemoteError> {
    let probed = ask(connection, "looking for muster-agent", &["sh", "-c", PROBE, "sh", root], Bytes::new()).await?;
    let own = format!("muster-agent_{} ", env!("CARGO_PKG_VERSION"));
    let found = probed.lines().filter_map(|line| line.strip_prefix("agent ")).find_map(|line| line.strip_prefix(&own));
    let program = match found {
        Some(program) => program.to_owned(),
        None => {
            let machine = probed.lines().find_map(|line| line.strip_prefix("machine ")).unwrap_or("unknown");
            let place = place.filter(|_| machine == own_machine());
            let other = probed.lines().find_map(|line| line.strip_prefix("agent ")).and_then(|line| line.split(' ').next());
            match (place, other) {
                (Some(program), _) => put(connection, root, program).await?,
                // It may run there, and keep running what was launched.
                (None, Some(found)) => {
                    let found = found.chars().take(100).collect::<String>().escape_default().to_string();
                    return Err(RemoteError::Version { found });
                }
                (None, None) => return over_shell(connection, root).await,
            }
            format!("{root}/.muster/bin/muster-agent")
        }
    };
    if probed.lines().any(|line| line == "launched") {
        // By the machine's shell, before there was an agent.
        Shell::new(root, Arc::new(OverSsh(connection.clone()))).stop().await.map_err(RemoteError::Shell)?;
    }
    let exec = connection.exec(&format!("exec {}", command(&[&program, "link", "--root", root])?)).await?;
    greet(exec).await
}

/// What kind of machine this one is, as `uname -sm` says it.
fn own_machine() -> String {
    let own = rustix::system::uname();
    format!("{} {}", own.sysname().to_string_lossy(), own.machine().to_string_lossy())
}

/// Opens a link that needs nothing but the machine's shell and the programs that go with it.
async fn over_shell(connection: &Connection, root: &str) -> Result<Opened, RemoteError> {
    let shell = Shell::new(root, Arc::new(OverSsh(connection.clone())));
    let failed = |error| match error {
        CallError::Unreachable(why) => RemoteError::Cut(why),
        other => RemoteError::Shell(other),
    };
    let instance = shell.begin().await.map_err(failed)?;
    let launched = shell.launched().await.map_err(failed)?;
    Ok(Opened { link: Arc::new(shell.clone()), instance, launched, drive: Drive::Shell { shell, connection: connection.clone() } })
}

async fn put(connection: &Connection, root: &str, program: &Path) -> Result<(), RemoteError> {
    let mut bytes = Vec::new();
    let mut file = tokio::fs::File::open(program).await.map_err(RemoteError::Program)?;
    file.read_to_end(&mut bytes).await.map_err(RemoteError::Program)?;
    let digest = Digest::of(&bytes).to_string();
    ask(connection, "placing muster-agent", &["sh", "-c", PLACE, "sh", root, &digest], bytes.into()).await.map(drop)
}

/// Runs a command to its end, and answers what it wrote.
async fn ask(connection: &Connection, what: &'static str, words: &[&str], input: Bytes) -> Result<String, RemoteError> {
    let asking = async {
        let (mut to, mut from) = connection.exec(&command(words)?).await?.split();
        let sending = async {
            let mut input = input;
            while !input.is_empty() {
                to.write(input.split_to(PIECE_BYTES.min(input.len()))).await?;
            }
            to.finish().await
        };
        let (mut out, mut err, mut status) = (Vec::new(), Vec::new(), None);
        let reading = async {
            while let Some(event) = from.next().await? {
                let (kept, bytes) = match event {
                    Remote::Stdout(bytes) => (&mut out, bytes),
                    Remote::Stderr(bytes) => (&mut err, bytes),
                    Remote::Exit(code) => {
                        status = Some(code);
                        continue;
                    }
                };
                let room = PROBE_BYTES_MAX.saturating_sub(kept.len());
                kept.extend(bytes.iter().take(room));
            }
            Ok::<(), SshError>(())
        };
        let (sent, read) = tokio::join!(sending, reading);
        read?;
        match status {
            Some(0) => Ok(String::from_utf8_lossy(&out).into_owned()),
            Some(status) => {
                let said = String::from_utf8_lossy(&err).trim().chars().rev().take(200).collect::<Vec<_>>();
                let said: String = said.into_iter().rev().collect::<String>().escape_default().collect();
                Err(RemoteError::Failed { what, status, said })
            }
            None => {
                sent?;
                Err(RemoteError::Failed { what, status: -1, said: "it ended without a status".into() })
            }
        }
    };
    tokio::time::timeout(PROBE_MAX, asking)
        .await
        .unwrap_or_else(|_| Err(RemoteError::Failed { what, status: -1, said: format!("it took longer than {} s", PROBE_MAX.as_secs()) }))
}

/// Waits for the agent's greeting.
async fn greet(exec: Exec) -> Result<Opened, RemoteError> {
    let (input, output) = exec.split();
    let mut reader = Reader { output, buffer: BytesMut::new(), said: Vec::new() };
    let first = tokio::time::timeout(SESSION_SILENCE_MAX, reader.next()).await;
    let text = match first.map_err(|_| RemoteError::Greeting("no greeting came".into()))? {
        Ok(Message::Text(text)) => text,
        Ok(_) => return Err(RemoteError::Greeting("it did not begin with a greeting".into())),
        Err(why) => return Err(RemoteError::Greeting(why)),
    };
    let Greeting { instance, launched } = greeting(&text).map_err(RemoteError::Greeting)?;
    let (outgoing, queue) = mpsc::channel(OUTGOING_WAITING);
    let session = Session::new(outgoing);
    Ok(Opened { link: Arc::new(session.clone()), instance, launched, drive: Drive::Session { session, reader, input, queue } })
}

impl Opened {
    /// Keeps the link open until one side ends it, and answers why it ended. `said` is given what the agent says of its own accord;
    /// `heard` is called when anything comes.
    pub async fn drive(self, heard: impl Fn(), said: mpsc::Sender<Event>) -> String {
        let (session, mut reader, mut input, mut queue) = match self.drive {
            Drive::Session { session, reader, input, queue } => (session, reader, input, queue),
            Drive::Shell { shell, connection } => {
                let reason = tokio::select! {
                    reason = shell.watch(heard, said) => reason,
                    ending = connection.closed() => format!("the connection ended: {ending}"),
                };
                shell.close(&reason);
                return reason;
            }
        };
        let reading = async {
            loop {
                let message = match tokio::time::timeout(SESSION_SILENCE_MAX, reader.next()).await {
                    Err(_) => return format!("nothing was heard for {} s", SESSION_SILENCE_MAX.as_secs()),
                    Ok(Err(why)) => return why,
                    Ok(Ok(message)) => message,
                };
                heard();
                match session.receive(message).await {
                    Ok(None) => {}
                    // Nobody listens any more when the server ends.
                    Ok(Some(event)) => drop(said.send(event).await),
                    Err(error) => return format!("the agent sent what is no frame: {error}"),
                }
            }
        };
        let writing = async {
            let mut ping = tokio::time::interval_at(Instant::now() + SESSION_PING_INTERVAL, SESSION_PING_INTERVAL);
            loop {
                let message = tokio::select! {
                    // What was said before the session was closed is sent still.
                    biased;
                    message = queue.recv() => match message {
                        Some(message) => message,
                        None => return "the server closed it".into(),
                    },
                    () = session.over() => return "the server closed it".into(),
                    _ = ping.tick() => Message::Ping,
                };
                let mut bytes = BytesMut::new();
                if let Err(error) = Messages::default().encode(message, &mut bytes) {
                    return error.to_string();
                }
                match tokio::time::timeout(SESSION_SILENCE_MAX, input.write(bytes.freeze())).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return error.to_string(),
                    Err(_) => return format!("the agent took nothing for {} s", SESSION_SILENCE_MAX.as_secs()),
                }
            }
        };
        // One that takes nothing does not hear what was said before, and is not waited for.
        let closed = async {
            session.over().await;
            tokio::time::sleep(FAREWELL_MAX).await;
            "the server closed it".to_owned()
        };
        let mut reading = std::pin::pin!(reading);
        let (reason, ended_here) = tokio::select! {
            reason = &mut reading => (reason, false),
            reason = writing => (reason, true),
            reason = closed => (reason, false),
        };
        session.close(&reason);
        // What was said last is on its way still; the other side ends when it has heard it.
        if ended_here {
            let farewell = async {
                if input.finish().await.is_ok() {
                    reading.await;
                }
            };
            let _ = tokio::time::timeout(FAREWELL_MAX, farewell).await;
        }
        reason
    }
}

/// Reads messages.
struct Reader {
    output: ExecOutput,
    buffer: BytesMut,
    /// The end of what the program said beside them.
    said: Vec<u8>,
}

impl Reader {
    async fn next(&mut self) -> Result<Message, String> {
        loop {
            match Messages::default().decode(&mut self.buffer) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(error) => return Err(error.to_string()),
            }
            match self.output.next().await {
                Ok(Some(Remote::Stdout(bytes))) => self.buffer.extend_from_slice(&bytes),
                Ok(Some(Remote::Stderr(bytes))) => {
                    let room = PROBE_BYTES_MAX.saturating_sub(self.said.len());
                    self.said.extend(bytes.iter().take(room));
                }
                Ok(Some(Remote::Exit(status))) => return Err(format!("muster-agent ended with status {status}{}", self.said())),
                Ok(None) => return Err(format!("muster-agent ended{}", self.said())),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn said(&self) -> String {
        let said = String::from_utf8_lossy(&self.said);
        let said: String = said.trim().chars().take(300).collect();
        if said.is_empty() { String::new() } else { format!(": {}", said.escape_default()) }
    }
}
