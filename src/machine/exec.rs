//! Starts programs on this machine and follows them to their end.
//!
//! Each program leads a process group of its own, so that what it started is ended with it. Nothing is read by a shell, and nothing of
//! this program's environment is passed on but the four variables of [`Environment`].

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::root::Root;
use super::{CallError, Command, Stream};
use crate::limits::{COMMAND_ARGS_MAX, COMMAND_BYTES_MAX, EXEC_LINGER_MAX, EXEC_PIECE_BYTES, STDIN_BYTES_MAX};

/// How often a program is tried again whose file is still open for writing in a process that was just forked elsewhere.
const BUSY_RETRIES_MAX: u32 = 10;
/// The pause before such a try.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How often a group that was asked to end is looked at.
const GROUP_LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// The variables that a program gets beside those of its command.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: Vec<(&'static str, OsString)>,
}

impl Environment {
    /// Takes `PATH`, `HOME`, `LANG` and `USER` from wherever the caller looks variables up.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let variables = ["PATH", "HOME", "LANG", "USER"].into_iter().filter_map(|name| Some((name, lookup(name)?))).collect();
        Self { variables }
    }

    /// The home directory, if there is one.
    pub fn home(&self) -> Option<&Path> {
        self.variables.iter().find(|(name, _)| *name == "HOME").map(|(_, value)| Path::new(value))
    }
}

/// What became of a program whose output went elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exited {
    /// Its exit status; 128 + N if signal N ended it.
    pub status: i32,
    /// Whether it wrote more than was passed on.
    pub truncated: bool,
}

/// Runs a command to its end and passes its output on as it comes, each stream up to `output_bytes_max`.
///
/// A full `output` slows the program down; a closed one is ignored. When the future is dropped, or the command's timeout is reached, the
/// whole group is killed. A program that was started in the background and keeps the output open is waited for [`EXEC_LINGER_MAX`] and
/// then killed too; one that left the group (`setsid`) is left alone.
///
/// # Errors
/// When the program can not be started, and [`CallError::TimedOut`]. A status other than 0 is no error.
pub async fn exec(
    root: &Root,
    environment: &Environment,
    command: &Command,
    output_bytes_max: usize,
    output: mpsc::Sender<(Stream, Bytes)>,
) -> Result<Exited, CallError> {
    let timeout = command.timeout_ms.map(Duration::from_millis);
    let work = follow(root, environment, command, output_bytes_max, output);
    match timeout {
        Some(timeout) => tokio::time::timeout(timeout, work).await.unwrap_or(Err(CallError::TimedOut)),
        None => work.await,
    }
}

async fn follow(
    root: &Root,
    environment: &Environment,
    command: &Command,
    output_bytes_max: usize,
    output: mpsc::Sender<(Stream, Bytes)>,
) -> Result<Exited, CallError> {
    let Started { mut child, group } = start(root, environment, command).await?;
    let exited = CancellationToken::new();
    let stdin = feed(child.stdin.take(), &command.stdin);
    let out = drain(child.stdout.take(), Stream::Stdout, output_bytes_max, &output, &exited);
    let err = drain(child.stderr.take(), Stream::Stderr, output_bytes_max, &output, &exited);
    let wait = async {
        let mut stdin = std::pin::pin!(stdin);
        let mut fed = false;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                () = &mut stdin, if !fed => fed = true,
            }
        };
        exited.cancel();
        status
    };
    let (status, out, err) = tokio::join!(wait, out, err);
    let status = status.map_err(|error| CallError::Other(format!("waiting for `{}`: {error}", command.program)))?;
    // Who keeps the output open would otherwise outlive the call unseen. Who closed it was started as a service, and stays.
    if out.left_open || err.left_open {
        drop(group);
    } else {
        group.release();
    }
    Ok(Exited { status: status_of(status), truncated: out.truncated || err.truncated })
}

/// A program that was started, and its group.
#[derive(Debug)]
pub struct Started {
    /// The program, with its input and outputs as pipes.
    pub child: Child,
    /// Everything that it starts.
    pub group: Group,
}

/// Starts a command as the leader of a new process group. Its standard input is a pipe that the caller feeds.
///
/// # Errors
/// When the command is not one, or the machine does not start it.
pub async fn start(root: &Root, environment: &Environment, command: &Command) -> Result<Started, CallError> {
    let program = check(root, command)?;
    let directory = match &command.directory {
        Some(directory) => root.absolute(directory)?,
        None => root.path().to_owned(),
    };
    // The machine says the same for a missing program and a missing directory.
    match tokio::fs::metadata(&directory).await {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(CallError::Invalid(format!("`{}` is no directory", directory.display()))),
        Err(error) => return Err(super::root::io(&directory, &error)),
    }

    let mut prepared = tokio::process::Command::new(&program);
    prepared.args(&command.args).env_clear().envs(environment.variables.iter().map(|(name, value)| (name, value)));
    prepared.envs(command.env.iter().map(|(name, value)| (name, value))).current_dir(&directory);
    prepared.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut tries = 0;
    let child = loop {
        match prepared.spawn() {
            Ok(child) => break child,
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_RETRIES_MAX => {
                tries += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(not_started(&program, &error)),
        }
    };
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    Ok(Started { child, group: Group { leader } })
}

fn check(root: &Root, command: &Command) -> Result<PathBuf, CallError> {
    check_words(command)?;
    root.absolute(&command.program)
}

/// Sees that a command is within its limits and can be given to a program.
///
/// # Errors
/// What can not be.
pub(crate) fn check_words(command: &Command) -> Result<(), CallError> {
    let invalid = |text: &str| Err(CallError::Invalid(text.to_owned()));
    if !command.program.contains('/') {
        return Err(CallError::Invalid(format!("a program is a path with a `/` in it: `{}` is not one", command.program.escape_default())));
    }
    if command.args.len() > COMMAND_ARGS_MAX || command.env.len() > COMMAND_ARGS_MAX {
        return Err(CallError::Invalid(format!("a command has at most {COMMAND_ARGS_MAX} arguments and as many variables")));
    }
    let bytes = command.args.iter().map(String::len).sum::<usize>()
        + command.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    if bytes > COMMAND_BYTES_MAX {
        return Err(CallError::Invalid(format!("arguments and variables have at most {COMMAND_BYTES_MAX} bytes, these have {bytes}")));
    }
    if command.stdin.len() > STDIN_BYTES_MAX {
        return Err(CallError::Invalid(format!("the input has at most {STDIN_BYTES_MAX} bytes, this one has {}", command.stdin.len())));
    }
    if command.args.iter().any(|text| text.contains('\0'))
        || command.env.iter().any(|(name, value)| name.contains('\0') || value.contains('\0'))
    {
        return invalid("an argument or a variable holds a NUL");
    }
    if command.env.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
        return invalid("a variable's name is empty or holds a `=`");
    }
    Ok(())
}

fn not_started(program: &Path, error: &io::Error) -> CallError {
    let program = program.display();
    match error.kind() {
        io::ErrorKind::NotFound => CallError::NotFound(format!("`{program}`, or the interpreter that it names")),
        io::ErrorKind::PermissionDenied => CallError::Denied(format!("`{program}` is not executable for this agent's user")),
        io::ErrorKind::NotADirectory | io::ErrorKind::ArgumentListTooLong => CallError::Invalid(format!("`{program}`: {error}")),
        _ if Errno::from_io_error(error) == Some(Errno::LOOP) => CallError::Invalid(format!("`{program}`: {error}")),
        _ if Errno::from_io_error(error) == Some(Errno::NOEXEC) => {
            CallError::Invalid(format!("`{program}` is no program: it has neither a known format nor a `#!` line"))
        }
        _ => CallError::Other(format!("starting `{program}`: {error}")),
    }
}

/// Writes a program's input and closes it. A program that does not read it, or ends before, is within its rights.
pub async fn feed(pipe: Option<ChildStdin>, input: &[u8]) {
    if let Some(mut pipe) = pipe {
        let _ = pipe.write_all(input).await;
    }
}

struct Drained {
    truncated: bool,
    left_open: bool,
}

async fn drain(
    pipe: Option<impl AsyncRead + Unpin>,
    stream: Stream,
    bytes_max: usize,
    output: &mpsc::Sender<(Stream, Bytes)>,
    exited: &CancellationToken,
) -> Drained {
    let mut drained = Drained { truncated: false, left_open: false };
    let Some(mut pipe) = pipe else { return drained };
    let mut left = bytes_max;
    // Time that is spent reading counts, time that the receiver takes does not: what the program wrote before it ended is not lost.
    let mut linger = EXEC_LINGER_MAX;
    let mut buffer = BytesMut::new();
    loop {
        if linger.is_zero() {
            drained.left_open = true;
            return drained;
        }
        buffer.reserve(EXEC_PIECE_BYTES);
        let began = Instant::now();
        let read = tokio::select! {
            biased;
            read = pipe.read_buf(&mut buffer) => read,
            () = async { exited.cancelled().await; tokio::time::sleep(linger).await } => {
                drained.left_open = true;
                return drained;
            }
        };
        if exited.is_cancelled() {
            linger = linger.saturating_sub(began.elapsed());
        }
        if matches!(read, Ok(0) | Err(_)) {
            return drained;
        }
        let mut piece = buffer.split();
        if piece.len() > left {
            piece.truncate(left);
            drained.truncated = true;
        }
        left -= piece.len();
        if !piece.is_empty() {
            let _ = output.send((stream, piece.freeze())).await;
        }
    }
}

/// An exit status as one number.
pub fn status_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// A process group, killed when this is dropped.
#[derive(Debug)]
pub struct Group {
    leader: Option<Pid>,
}

impl Group {
    /// The group that a process leads, by the id that was written down earlier.
    pub fn led_by(pid: u32) -> Self {
        Self { leader: i32::try_from(pid).ok().and_then(Pid::from_raw) }
    }

    /// Leaves the group alone.
    pub fn release(mut self) {
        self.leader = None;
    }

    /// Asks everything in the group to end.
    pub fn terminate(&self) {
        if let Some(leader) = self.leader {
            let _ = kill_process_group(leader, Signal::TERM);
        }
    }

    /// Waits until nothing of the group is left, until the deadline at most. The leader must be waited for by whoever started it.
    pub async fn gone(&self, deadline: Instant) {
        let Some(leader) = self.leader else { return };
        while test_kill_process_group(leader).is_ok() && Instant::now() < deadline {
            if !tokio::task::spawn_blocking(move || lives(leader)).await.unwrap_or(true) {
                return;
            }
            tokio::time::sleep(GROUP_LOOK_INTERVAL).await;
        }
    }
}

/// Whether any process of a group has not ended, as far as the machine tells.
///
/// One that has ended is in its group still until whoever inherited it waits for it: in a container that may be never.
fn lives(group: Pid) -> bool {
    let Ok(proc) = Dir::open_ambient_dir("/proc", ambient_authority()) else { return true };
    let Ok(processes) = proc.entries() else { return true };
    let pids = processes.filter_map(|process| process.ok()?.file_name().into_string().ok()).filter(|name| name.parse::<u32>().is_ok());
    // Without `/proc` as Linux has it, nothing is known.
    let mut known = false;
    let living = pids.filter_map(|pid| proc.read(format!("{pid}/stat")).ok()).any(|stat| {
        known = true;
        let stat = String::from_utf8_lossy(&stat);
        // The program's name is in parentheses and may hold anything; the state, the parent and the group follow its end.
        let mut fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace()).into_iter().flatten();
        let (state, own) = (fields.next(), fields.nth(1).and_then(|group| group.parse::<i32>().ok()));
        own == Some(group.as_raw_nonzero().get()) && !matches!(state, Some("Z" | "X"))
    });
    living || !known
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}
