//! An agent that is a machine with a POSIX shell, coreutils and tar, and no program of ours.
//!
//! Each call becomes a few steps: the text of `steps.sh` and a line that calls one of its functions, with every word quoted. What is large
//! or secret goes to a step's standard input. How a step gets to the machine is a [`Runner`]'s: over [ssh](super::ssh::steps), or fetched
//! by `muster-poll` ([`poll`](super::poll)). What to do is decided here: a bundle's destination is surveyed from afar, by what the machine
//! says is there, with the same rules as an agent's own.
//!
//! A step that was cut off, or that nobody waits for any more, is ended on the machine by another one. A machine that lies deceives itself
//! alone: what it answers is bounded, taken apart beside the server's other work, and used for nothing but its own steps.

mod plan;
mod snapshot;
mod sync;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::bits::contents::Bundle;
use crate::limits::{NAME_BYTES_MAX, OUTPUT_BYTES_MAX, PROBE_MAX, SHELL_ANSWER_BYTES_MAX, SHELL_LOOK_INTERVAL};
use crate::link::Link;
use crate::link::frames::Launched;
use crate::link::quote::{self, NulError};
use crate::link::session::Event;
use crate::machine::exec::check_words;
use crate::machine::{CallError, Change, Command, Output, Stream, SyncRules};
use crate::names::Digest;

/// What every step begins with.
const STEPS: &str = include_str!("shell/steps.sh");
/// Bytes at the end of standard error in which a command's status stands.
const EXIT_BYTES_MAX: usize = 64;
/// How long it is waited for that what was launched ends, where a person waits.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// What a step reads on its standard input.
pub enum Input {
    /// Nothing.
    None,
    /// This.
    Whole(Bytes),
    /// What comes from what this begins, to its end. It is begun when the machine takes it.
    Pieces(Box<dyn FnOnce() -> mpsc::Receiver<Bytes> + Send>),
}

/// One thing to be run by a shell on the machine.
pub struct Step {
    /// No other step of this machine has it, also after the server was started anew.
    pub id: u64,
    /// What the shell reads.
    pub text: String,
    /// What it reads beside.
    pub input: Input,
    /// Bytes that it writes at most to standard output, and likewise to standard error; what is beyond that is not worth keeping.
    pub output_bytes_max: usize,
}

/// Gets steps to a machine and runs them there, any number at once.
#[async_trait::async_trait]
pub trait Runner: Send + Sync {
    /// Runs a step to its end, and answers its status. `output` sees what it writes, at the latest then.
    ///
    /// # Errors
    /// [`CallError::Unreachable`] when the machine can not be reached.
    async fn run(&self, step: Step, output: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<i32, CallError>;
}

/// A link to a machine that only has a shell. Clones are the same link.
#[derive(Clone)]
pub struct Shell {
    inner: Arc<Inner>,
}

struct Inner {
    root: String,
    runner: Arc<dyn Runner>,
    next_id: AtomicU64,
    /// One destination takes one sync at a time, and a machine with a shell alone is not asked for more.
    syncing: tokio::sync::Mutex<()>,
    over: CancellationToken,
    reason: OnceLock<String>,
    launched: Notify,
    /// What is dropped outside of a runtime still has to end its step.
    runtime: tokio::runtime::Handle,
}

impl Shell {
    /// A link to the agent of a root.
    pub fn new(root: &str, runner: Arc<dyn Runner>) -> Self {
        // Numbers of an earlier link do not come again: what was asked for then may be under way still.
        let first = rand::random_range(1 << 40..1 << 60);
        let inner = Inner {
            root: root.to_owned(),
            runner,
            next_id: AtomicU64::new(first),
            syncing: tokio::sync::Mutex::default(),
            over: CancellationToken::new(),
            reason: OnceLock::new(),
            launched: Notify::new(),
            runtime: tokio::runtime::Handle::current(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Ends what an earlier link left under way, and sees that the machine has what steps need; answers which start of the machine it is.
    /// To be called before anything else.
    ///
    /// # Errors
    /// When it lacks something, or the steps fail.
    pub async fn begin(&self) -> Result<String, CallError> {
        let text = [self.call(&["muster_sweep", self.root()])?, self.call(&["muster_boot"])?, self.call(&["muster_lacks"])?].concat();
        let answer = self.ask_text(&text, Input::None).await?;
        let (boot, lacks) = answer.split_once('\n').ok_or_else(odd)?;
        let lacks: Vec<_> = lacks.split_whitespace().take(30).map(|word| word.escape_default().to_string()).collect();
        if lacks.is_empty() {
            return Ok(boot.chars().filter(|letter| !letter.is_control()).take(NAME_BYTES_MAX).collect());
        }
        Err(CallError::Other(format!(
            "the machine lacks {}; install it, or muster-agent, which needs none of it",
            lacks.join(", ").chars().take(300).collect::<String>()
        )))
    }

    /// Looks at what was launched until the link is closed, and answers why it was. `said` is told of changes; `heard` is called when the
    /// machine has answered.
    pub async fn watch(&self, heard: impl Fn(), said: mpsc::Sender<Event>) -> String {
        let mut last = None;
        loop {
            let launched = tokio::select! {
                () = self.inner.over.cancelled() => return self.reason(),
                launched = tokio::time::timeout(PROBE_MAX, self.launched()) => match launched {
                    Ok(launched) => launched,
                    // The step is there and does not end: it was killed, or the machine hangs.
                    Err(_) => return format!("the machine did not say within {} s how what was launched is", PROBE_MAX.as_secs()),
                },
            };
            if let Ok(launched) = launched {
                heard();
                if last.as_ref() != Some(&launched) {
                    last = Some(launched.clone());
                    // Nobody listens any more when the server ends.
                    let _ = said.send(Event::Launched(launched)).await;
                }
            }
            tokio::select! {
                () = self.inner.over.cancelled() => return self.reason(),
                () = tokio::time::sleep(SHELL_LOOK_INTERVAL) => {}
                () = self.inner.launched.notified() => {}
            }
        }
    }

    /// How what was launched is.
    ///
    /// # Errors
    /// When the machine can not be asked, or does not answer that.
    pub async fn launched(&self) -> Result<Launched, CallError> {
        let text = self.ask(&["muster_launched", self.root()], Input::None).await?;
        let mut words = text.split_whitespace();
        let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok()).ok_or_else(odd);
        let small = |number: u64| u32::try_from(number).map_err(|_| odd());
        match words.next() {
            Some("nothing") => Ok(Launched::Nothing),
            Some("running") => {
                let (pid, restarts) = (small(number(words.next())?)?, small(number(words.next())?)?);
                Ok(Launched::Running { pid, restarts })
            }
            Some("exited") => {
                let status = i32::try_from(number(words.next())?).map_err(|_| odd())?;
                Ok(Launched::Exited { status, restarts: small(number(words.next())?)?, again_in_ms: number(words.next())? })
            }
            _ => Err(odd()),
        }
    }

    /// Waits until the link is closed.
    pub async fn over(&self) {
        self.inner.over.cancelled().await;
    }

    /// Whether the link is closed.
    pub fn is_over(&self) -> bool {
        self.inner.over.is_cancelled()
    }

    fn root(&self) -> &str {
        &self.inner.root
    }

    fn reason(&self) -> String {
        self.inner.reason.get().cloned().unwrap_or_else(|| "the link was closed".into())
    }

    fn new_id(&self) -> u64 {
        self.inner.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// A line that calls a function of `steps.sh`.
    fn call(&self, words: &[&str]) -> Result<String, CallError> {
        Ok(format!("{}\n", quote::command(words).map_err(invalid)?))
    }

    /// Calls one function, and answers what it printed.
    async fn ask(&self, words: &[&str], input: Input) -> Result<String, CallError> {
        self.ask_text(&self.call(words)?, input).await
    }

    async fn ask_text(&self, text: &str, input: Input) -> Result<String, CallError> {
        let answer = self.ask_bytes(text, input, SHELL_ANSWER_BYTES_MAX).await?;
        String::from_utf8(answer).map_err(|_| odd())
    }

    /// Runs a step that can be cancelled, and answers what it printed, of at most so many bytes.
    async fn ask_bytes(&self, text: &str, input: Input, bytes_max: usize) -> Result<Vec<u8>, CallError> {
        let id = self.new_id();
        let begin = self.call(&["muster_begin", self.root(), &id.to_string()])?;
        let step = Step { id, text: format!("{STEPS}\n{begin}{text}"), input, output_bytes_max: bytes_max };
        let (mut out, mut said) = (Vec::new(), Said::default());
        let mut over = false;
        let status = self
            .run(step, &mut |stream, bytes| match stream {
                Stream::Stdout if out.len() + bytes.len() > bytes_max => over = true,
                Stream::Stdout => out.extend_from_slice(bytes),
                Stream::Stderr => said.hear(bytes),
            })
            .await?;
        match status {
            0 if over => Err(CallError::Other(format!("the machine answered with more than {bytes_max} bytes"))),
            0 => Ok(out),
            _ => Err(said.failed(status)),
        }
    }

    /// Runs a step. If it is given up, or the link is closed, it is ended on the machine, as far as that can be reached.
    async fn run(&self, step: Step, output: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<i32, CallError> {
        let unreachable = || CallError::Unreachable(self.reason());
        if self.inner.over.is_cancelled() {
            return Err(unreachable());
        }
        let mut running = Running { shell: self, id: step.id, ended: false };
        let status = tokio::select! {
            biased;
            () = self.inner.over.cancelled() => Err(unreachable()),
            status = self.inner.runner.run(step, output) => status,
        };
        // One that was killed left things behind.
        running.ended = matches!(status, Ok(0 | 44..=48));
        status
    }
}

/// A step under way.
struct Running<'a> {
    shell: &'a Shell,
    id: u64,
    ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let shell = self.shell.clone();
        if self.ended || shell.inner.over.is_cancelled() {
            return;
        }
        let id = self.id.to_string();
        shell.inner.runtime.clone().spawn(async move {
            // Not one that can be cancelled itself.
            let Ok(call) = shell.call(&["muster_cancel", shell.root(), &id]) else { return };
            let step = Step { id: shell.new_id(), text: format!("{STEPS}\n{call}"), input: Input::None, output_bytes_max: EXIT_BYTES_MAX };
            let mut ignore = |_, _: &[u8]| {};
            tokio::select! {
                () = shell.inner.over.cancelled() => {}
                _ = shell.inner.runner.run(step, &mut ignore) => {}
            }
        });
    }
}

/// The end of what a step wrote to standard error.
#[derive(Default)]
struct Said(Vec<u8>);

impl Said {
    /// Bytes of it that are kept.
    const BYTES_MAX: usize = 4096;

    fn hear(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let over = self.0.len().saturating_sub(Self::BYTES_MAX);
        self.0.drain(..over);
    }

    /// Why a step failed: its last line.
    fn failed(&self, status: i32) -> CallError {
        let text = String::from_utf8_lossy(&self.0);
        let line = text.trim_end().rsplit('\n').next().unwrap_or_default();
        let why: String = line.chars().take(1000).map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        // What did not come whole is the link's fault, and is tried again when that is back.
        let is_cut = ["the input was cut off", "the machine lost the step", "Unexpected EOF in archive", "short read"];
        if status == 48 && is_cut.iter().any(|cut| why.contains(cut)) {
            return CallError::Unreachable(why);
        }
        match status {
            44 => CallError::NotFound(why),
            45 => CallError::Denied(why),
            46 => CallError::Invalid(why),
            47 => CallError::TimedOut,
            48 if !why.is_empty() => CallError::Other(why),
            _ => CallError::Other(format!("a step ended with status {status} on the machine: {why}")),
        }
    }
}

/// Passes standard error on, but for its end, where the status of the command stands.
#[derive(Default)]
struct Held(Vec<u8>);

impl Held {
    fn pass(&mut self, bytes: &[u8], mut on: impl FnMut(&[u8])) {
        self.0.extend_from_slice(bytes);
        let free = self.0.len().saturating_sub(EXIT_BYTES_MAX);
        if free > 0 {
            on(&self.0.drain(..free).collect::<Vec<_>>());
        }
    }

    /// What is left of the output, and the command's status, and whether it wrote more than was kept.
    fn end(&self) -> Option<(&[u8], i32, bool)> {
        const MARK: &[u8] = b"\nMUSTER-EXIT ";
        let at = self.0.windows(MARK.len()).rposition(|window| window == MARK)?;
        let (output, exit) = self.0.split_at_checked(at)?;
        let (status, truncated) = std::str::from_utf8(exit.get(MARK.len()..)?).ok()?.strip_suffix('\n')?.split_once(' ')?;
        Some((output, status.parse().ok()?, truncated == "1"))
    }
}

fn invalid(error: NulError) -> CallError {
    CallError::Invalid(error.to_string())
}

fn odd() -> CallError {
    CallError::Other("the machine answered with something else than was asked".into())
}

/// Variables to which some shell gives a meaning: setting one does something else, or even runs what its value says.
const SHELL_NAMES: &[&str] = &[
    "_",
    "BASHOPTS",
    "BASHPID",
    "COPROC",
    "DIRSTACK",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "ERRNO",
    "EUID",
    "FUNCNAME",
    "GROUPS",
    "HISTCMD",
    "IFS",
    "LINENO",
    "MAPFILE",
    "OPTARG",
    "OPTERR",
    "OPTIND",
    "PIPESTATUS",
    "PPID",
    "PS1",
    "PS2",
    "PS3",
    "PS4",
    "RANDOM",
    "REPLY",
    "SECONDS",
    "SHELLOPTS",
    "SHLVL",
    "SRANDOM",
    "TMOUT",
    "UID",
];
/// What the names of others begin with.
const SHELL_NAME_PREFIXES: &[&str] = &["BASH_", "COMP_", "KSH_", "READLINE_", "m_", "muster_"];

/// Whether a shell can set a variable and does nothing else by it.
fn is_plain_variable(name: &str) -> bool {
    let is_name =
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') && !name.starts_with(|first: char| first.is_ascii_digit());
    is_name && !name.is_empty() && !SHELL_NAMES.contains(&name) && !SHELL_NAME_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// A command as a step reads it: as a list, with its input after it.
fn program(command: &Command) -> Result<Bytes, CallError> {
    if let Some((name, _)) = command.env.iter().find(|(name, _)| !is_plain_variable(name)) {
        let name: String = name.chars().take(100).collect::<String>().escape_default().collect();
        return Err(CallError::Invalid(format!(
            "the machine's shell can not give a command a variable `{name}`; where muster-agent is installed it can be given"
        )));
    }
    check_words(command)?;
    let count = command.env.len().to_string();
    let variables = command.env.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
    let words: Vec<&str> = ["muster_program", &count]
        .into_iter()
        .chain(variables)
        .chain([command.program.as_str()])
        .chain(command.args.iter().map(String::as_str))
        .collect();
    let list = format!("{}\n", quote::command(&words).map_err(invalid)?);
    let head = format!("{} {}\n{list}", list.len(), command.stdin.len());
    Ok([head.as_bytes(), &command.stdin].concat().into())
}

#[async_trait::async_trait]
impl Link for Shell {
    /// Over a link where output comes when a step has ended, `progress` sees it then.
    async fn exec(&self, command: &Command, progress: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<Output, CallError> {
        let (id, root) = (self.new_id(), self.root());
        let timeout = command.timeout_ms.map_or(0, |timeout| timeout.max(1)).to_string();
        let directory = command.directory.as_deref().unwrap_or(root);
        let call = self.call(&["muster_exec", &id.to_string(), root, directory, &timeout, &OUTPUT_BYTES_MAX.to_string()])?;
        let input = Input::Whole(program(command)?);
        let step = Step { id, text: format!("{STEPS}\n{call}"), input, output_bytes_max: OUTPUT_BYTES_MAX + EXIT_BYTES_MAX };
        let (mut output, mut held) = (Output::default(), Held::default());
        let mut take = |output: &mut Output, stream, bytes: &[u8]| {
            progress(stream, bytes);
            let kept = if stream == Stream::Stdout { &mut output.stdout } else { &mut output.stderr };
            let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
            output.truncated |= bytes.len() > room;
            kept.extend(bytes.iter().take(room));
        };
        let status = self
            .run(step, &mut |stream, bytes| match stream {
                Stream::Stdout => take(&mut output, stream, bytes),
                Stream::Stderr => held.pass(bytes, |bytes| take(&mut output, stream, bytes)),
            })
            .await?;
        let mut said = Said::default();
        said.hear(&held.0);
        let (rest, exit, truncated) = held.end().filter(|_| status == 0).ok_or_else(|| said.failed(status))?;
        take(&mut output, Stream::Stderr, rest);
        output.status = exit;
        output.truncated |= truncated;
        Ok(output)
    }

    async fn read_file(&self, path: &str, bytes_max: usize) -> Result<Vec<u8>, CallError> {
        let call = self.call(&["muster_read", self.root(), path, &bytes_max.to_string()])?;
        let content = self.ask_bytes(&call, Input::None, bytes_max.saturating_add(1)).await?;
        if content.len() > bytes_max {
            return Err(CallError::Invalid(format!("`{path}` has more than {bytes_max} bytes")));
        }
        Ok(content)
    }

    async fn exists(&self, path: &str) -> Result<bool, CallError> {
        truth(&self.ask(&["muster_exists", self.root(), path], Input::None).await?)
    }

    async fn write_file(&self, path: &str, contents: &[u8], mode: u32) -> Result<Change, CallError> {
        if mode > 0o777 {
            return Err(CallError::Invalid(format!("mode {mode:o} has more than permission bits")));
        }
        let (mode, digest, bytes) = (format!("{mode:03o}"), Digest::of(contents).to_string(), contents.len());
        let words = ["muster_write", self.root(), path, &mode, &digest, &bytes.to_string()];
        let answer = self.ask(&words, Input::Whole(Bytes::copy_from_slice(contents))).await?;
        let bytes = bytes as u64;
        let same = Change { files: 1, bytes, ..Change::default() };
        match answer.trim_end() {
            "same" => Ok(same),
            "changed" => Ok(Change { changed: true, files_changed: 1, bytes_sent: bytes, ..same }),
            _ => Err(odd()),
        }
    }

    async fn remove(&self, path: &str, with_below: bool) -> Result<Change, CallError> {
        let below = if with_below { "1" } else { "0" };
        let answer = self.ask(&["muster_remove", self.root(), path, below], Input::None).await?;
        match answer.trim_end().split_once(' ') {
            Some(("removed", count)) => {
                let files_removed = count.parse().map_err(|_| odd())?;
                Ok(Change { changed: true, files: files_removed, files_removed, ..Change::default() })
            }
            None if answer.trim_end() == "absent" => Ok(Change::default()),
            _ => Err(odd()),
        }
    }

    async fn sync(&self, destination: &str, bundle: &Bundle, rules: SyncRules) -> Result<Change, CallError> {
        let _one = self.inner.syncing.lock().await;
        // In a task of its own: what planning costs is not the module's, whose processor time is that of the task which calls here.
        let (shell, destination, bundle) = (self.clone(), destination.to_owned(), bundle.clone());
        let syncing = self.inner.runtime.spawn(async move { sync::sync(&shell, &destination, &bundle, rules).await });
        tokio_util::task::AbortOnDropHandle::new(syncing).await.map_err(|_| CallError::Other("the sync broke down".into()))?
    }

    async fn stop(&self) -> Result<bool, CallError> {
        let stopped = truth(&self.ask(&["muster_stop", self.root()], Input::None).await?);
        self.inner.launched.notify_one();
        stopped
    }

    async fn launch(&self, command: &Command) -> Result<(), CallError> {
        let (id, root) = (self.new_id(), self.root());
        let directory = command.directory.as_deref().unwrap_or(root);
        let call = self.call(&["muster_launch", &id.to_string(), root, directory])?;
        let input = Input::Whole(program(command)?);
        let step = Step { id, text: format!("{STEPS}\n{call}"), input, output_bytes_max: SHELL_ANSWER_BYTES_MAX };
        let mut said = Said::default();
        let status = self.run(step, &mut |_, bytes| said.hear(bytes)).await?;
        self.inner.launched.notify_one();
        if status == 0 { Ok(()) } else { Err(said.failed(status)) }
    }

    async fn hold(&self) -> Result<(), CallError> {
        self.ask(&["muster_hold", self.root()], Input::None).await.map(drop)
    }

    async fn resume(&self) -> Result<(), CallError> {
        self.ask(&["muster_resume", self.root()], Input::None).await.map(drop)
    }

    /// What is not ended after a few seconds is not waited for.
    async fn drain(&self, _reason: &str) -> Result<(), CallError> {
        let shell = self.clone();
        let stopping = self.inner.runtime.spawn(async move { shell.stop().await });
        let _ = tokio::time::timeout(DRAIN_MAX, stopping).await;
        Ok(())
    }

    fn close(&self, reason: &str) {
        let _ = self.inner.reason.set(reason.to_owned());
        self.inner.over.cancel();
    }
}

fn truth(answer: &str) -> Result<bool, CallError> {
    match answer.trim_end() {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(odd()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_command_is_cut_from_its_standard_error() {
        let mut held = Held::default();
        let mut passed = Vec::new();
        for piece in [b"out".as_slice(), &[b'x'; 100], b"\nMUSTER-EXIT 9 0\nmore", b"\nMUSTER-EXIT", b" 3 1\n"] {
            held.pass(piece, |bytes| passed.extend_from_slice(bytes));
        }
        let (rest, status, truncated) = held.end().unwrap();
        passed.extend_from_slice(rest);
        assert_eq!(passed, [b"out".as_slice(), &[b'x'; 100], b"\nMUSTER-EXIT 9 0\nmore"].concat());
        assert!(status == 3 && truncated);
        for cut in ["", "\nMUSTER-EXIT 3", "\nMUSTER-EXIT 3 1", "\nMUSTER-EXIT x 0\n"] {
            assert_eq!(Held(cut.into()).end(), None, "{cut:?}");
        }
    }

    #[test]
    fn a_variable_to_which_a_shell_gives_a_meaning_is_refused() {
        let with = |name: &str| {
            program(&Command { program: "/bin/true".into(), env: vec![(name.into(), "x[$(id)]".into())], ..Command::default() })
        };
        for name in ["KEY", "PATH", "HOME", "_own", "OPT", "a1"] {
            assert!(with(name).is_ok(), "{name}");
        }
        for name in ["", "1a", "a-b", "a.b", "a b", "a=b", "RANDOM", "OPTIND", "SECONDS", "BASH_ENV", "muster_n", "m_x", "_", "\u{e9}"] {
            assert!(matches!(with(name), Err(CallError::Invalid(_))), "{name}");
        }
    }

    #[test]
    fn a_steps_last_line_says_why_it_failed() {
        let mut said = Said::default();
        said.hear(&[b'x'; 10_000]);
        said.hear(b"\nno such\x1bfile\n");
        assert_eq!(said.failed(44), CallError::NotFound("no such file".into()));
        assert_eq!(said.failed(45), CallError::Denied("no such file".into()));
        assert_eq!(said.failed(47), CallError::TimedOut);
        let mut cut = Said::default();
        cut.hear(b"\nthe input was cut off\n");
        assert_eq!(cut.failed(48), CallError::Unreachable("the input was cut off".into()));
        assert_eq!(said.failed(137), CallError::Other("a step ended with status 137 on the machine: no such file".into()));
    }
}
