//! The one place through which every call of a module goes.
//!
//! For each call, in this order: the arguments are checked, the policy's grants are looked up, the run's budgets are charged, the
//! journal is written, and only then is the agent asked. There is no second way from a module to a machine. Nothing is granted by
//! default, and a refusal names the grant that is missing. Secrets are cut from all that comes back.
//!
//! A lost link and a spent budget are told to the module once; the run ends with that verdict whatever the module makes of it, and at
//! once if it calls again.

mod grants;
mod handles;
mod output;
mod record;
mod redact;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bits::contents::Bundle;
use crate::journal::kept::Keeper;
use crate::journal::{Answered, Asked, AskedCommand, Content, Level, Recorder, Registration, now_us, shown as shown_arg};
use crate::limits::{
    CALL_FILE_BYTES_MAX, COMMAND_ARGS_MAX, COMMAND_BYTES_MAX, HANDLES_MAX, OUTPUT_LOG_LINES_MAX, RUN_BYTES_IN_MAX, RUN_BYTES_OUT_MAX,
    RUN_LOG_LINES_MAX, STDIN_BYTES_MAX,
};
use crate::link::Link;
use crate::machine::{CallError, Change, Command, Output, SyncMode, SyncRules};
use crate::names::{BundleName, SecretName};
use crate::policy::{LabelPolicy, MirrorForeign};
use crate::sandbox::clock::{Clock, Pace};
use crate::sandbox::replay::Tape;
use crate::sandbox::verdict::{Verdict, cut};
use crate::store::secrets::Secrets;

use output::OutputLog;
use redact::{Redactor, cut_line};

/// Bytes that a variable or an argument takes beside its own.
const HELD_ITEM_BYTES: usize = 64;

/// All that a run is given.
pub struct RunInputs {
    /// The agent.
    pub registration: Registration,
    /// The release's policy, with the grants and the limits.
    pub policy: Arc<LabelPolicy>,
    /// The bundles of the policy, each at its pinned version.
    pub bundles: BTreeMap<BundleName, Bundle>,
    /// Where the team's secrets are kept; none where there are none to have.
    pub secrets: Option<Secrets>,
    /// The way to the agent.
    pub link: Arc<dyn Link>,
    /// Where log and journal go.
    pub recorder: Recorder,
}

/// A secret that a module holds. Its bytes are never shown.
#[derive(Clone)]
pub struct Secret {
    name: SecretName,
    value: Arc<str>,
}

impl Secret {
    /// The secret's name.
    pub(crate) fn name(&self) -> &SecretName {
        &self.name
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.name)
    }
}

/// A command that a module puts together.
#[derive(Debug, Clone, Default)]
pub struct ModuleCommand {
    pub(crate) command: Command,
    pub(crate) secret_env: Vec<(String, Secret)>,
}

/// Why a call was not done.
#[derive(Debug)]
pub enum Refused {
    /// The module is told.
    Answer(CallError),
    /// The run ends here.
    End,
}

impl From<CallError> for Refused {
    fn from(error: CallError) -> Self {
        Self::Answer(error)
    }
}

/// What a run did, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls.
    pub calls: u32,
    /// Bytes of bundle content that were sent.
    pub bytes_sent: u64,
    /// Bytes of bundle content that the agent had already.
    pub bytes_saved: u64,
    /// The time that pushes and mirrors took, those that failed included.
    pub syncing: Duration,
    /// The memory of the module at its end, which is the most it had: it is never given back.
    pub memory_bytes: u64,
}

/// The gate of one run.
pub struct Gate {
    inputs: RunInputs,
    /// What answers instead of the agent, if this is a replay.
    tape: Option<Arc<Tape>>,
    clock: Arc<Clock>,
    keeper: Keeper,
    redactor: Redactor,
    counts: Counts,
    bytes_in: u64,
    bytes_out: u64,
    lines: u32,
    /// The title, and when it began by the module's clock, in microseconds since the Unix epoch.
    step: Option<(String, i64)>,
    launch: Option<Command>,
    over: Option<Verdict>,
}

impl Gate {
    /// Opens the gate of one run.
    pub(crate) fn new(inputs: RunInputs) -> Self {
        Self::opened(inputs, None, Clock::new(now_us(), Pace::Real))
    }

    /// Opens the gate of a replay.
    pub(crate) fn replaying(inputs: RunInputs, tape: Arc<Tape>) -> Self {
        let clock = Clock::new(tape.began_us(), Pace::Replayed { ends_us: tape.ends_us() });
        Self::opened(inputs, Some(tape), clock)
    }

    fn opened(inputs: RunInputs, tape: Option<Arc<Tape>>, clock: Clock) -> Self {
        Self {
            inputs,
            tape,
            clock: Arc::new(clock),
            keeper: Keeper::default(),
            redactor: Redactor::default(),
            counts: Counts::default(),
            bytes_in: 0,
            bytes_out: 0,
            lines: 0,
            step: None,
            launch: None,
            over: None,
        }
    }

    /// The module's clock.
    pub(crate) fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// What the module may know of its agent.
    pub(crate) fn registration(&self) -> &Registration {
        &self.inputs.registration
    }

    /// The policy's settings.
    pub(crate) fn settings(&self) -> &BTreeMap<String, String> {
        &self.inputs.policy.settings
    }

    /// The verdict that is certain whatever the module answers: a lost link, a spent budget.
    pub(crate) fn over(&self) -> Option<&Verdict> {
        self.over.as_ref()
    }

    /// What the run did, and what it asked to have launched.
    pub(crate) fn finish(mut self) -> (Counts, Option<Command>) {
        self.end_step();
        (self.counts, self.launch)
    }

    /// Cuts the secrets from a text that leaves the run.
    pub(crate) fn redact(&self, text: String) -> String {
        self.redactor.text(text)
    }

    // The log.

    /// Writes a note of the module.
    pub(crate) async fn log(&mut self, level: Level, message: &str) -> Result<(), Refused> {
        self.inputs.recorder.room().await;
        // An empty note is a line too: it costs what a line costs.
        let lines = message.lines().chain(message.is_empty().then_some(""));
        lines.into_iter().try_for_each(|line| self.log_line(level, line))
    }

    /// Begins a step.
    pub(crate) async fn step(&mut self, title: &str) -> Result<(), Refused> {
        self.inputs.recorder.room().await;
        self.end_step();
        let title = cut_line(title.lines().next().unwrap_or_default()).to_owned();
        self.log_line(Level::Step, &title)?;
        self.step = Some((title, self.clock.shown_us()));
        Ok(())
    }

    fn log_line(&mut self, level: Level, line: &str) -> Result<(), Refused> {
        self.lines += 1;
        if self.lines > RUN_LOG_LINES_MAX {
            return Err(self.end(Verdict::OverLimit { which: format!("the run wrote more than {RUN_LOG_LINES_MAX} log lines") }));
        }
        self.inputs.recorder.line(level, self.redactor.line(line));
        Ok(())
    }

    fn end_step(&mut self) {
        if let Some((title, began_us)) = self.step.take() {
            let text = format!("{title}: {} ms", (self.clock.shown_us() - began_us) / 1000);
            self.inputs.recorder.line(Level::Debug, self.redactor.line(&text));
        }
    }

    // Commands being put together.

    /// Charges what a module adds to a command, so that what the server holds for it is bounded: an empty variable takes room too.
    pub(crate) fn charge_held(&mut self, bytes: usize, items: usize) -> Result<(), Refused> {
        self.charge_out(bytes + items * HELD_ITEM_BYTES).map_err(|_| Refused::End)
    }

    // Calls that look.

    /// Runs a command that only looks.
    pub(crate) async fn probe(&mut self, command: &ModuleCommand) -> Result<Output, Refused> {
        self.exec("probe", command, |command| Asked::Probe { command }).await
    }

    /// Reads a file.
    pub(crate) async fn read_file(&mut self, path: &str) -> Result<Vec<u8>, Refused> {
        let checked = self.readable(path);
        let path = self.admit(Asked::ReadFile { path: path.into() }, 0, checked).await?;
        let result = self.inputs.link.read_file(&path, CALL_FILE_BYTES_MAX).await.map(|bytes| self.redactor.bytes(bytes, false));
        let bytes = self.close(&format!("read {path}"), result, |keeper, bytes| Answered::File { contents: keeper.keep(bytes) })?;
        self.charge_in(bytes.len())?;
        Ok(bytes)
    }

    /// Says whether anything is at a path.
    pub(crate) async fn exists(&mut self, path: &str) -> Result<bool, Refused> {
        let checked = self.readable(path);
        let path = self.admit(Asked::Exists { path: path.into() }, 0, checked).await?;
        let result = self.inputs.link.exists(&path).await;
        self.close(&format!("exists {path}"), result, |_, value| Answered::Truth { value: *value })
    }

    // Calls that change.

    /// Runs a command.
    pub(crate) async fn run(&mut self, command: &ModuleCommand) -> Result<Output, Refused> {
        self.exec("run", command, |command| Asked::Run { command }).await
    }

    /// Writes a file.
    pub(crate) async fn write_file(&mut self, path: &str, contents: &[u8], mode: u32) -> Result<Change, Refused> {
        let checked = self.writable(path).and_then(|path| match (contents.len(), mode) {
            (bytes, _) if bytes > CALL_FILE_BYTES_MAX => {
                Err(CallError::Invalid(format!("a file of {bytes} bytes; {CALL_FILE_BYTES_MAX} are allowed: larger ones go into a bundle")))
            }
            (_, mode) if mode > 0o777 => Err(CallError::Invalid(format!("{mode:#o} is no mode; 0 to 0o777 are"))),
            _ => Ok(path),
        });
        let asked = Asked::WriteFile { path: path.into(), contents: Content::of(contents), mode };
        let path = self.admit(asked, contents.len(), checked).await?;
        let result = self.inputs.link.write_file(&path, contents, mode).await;
        self.close_change(&format!("write {path}"), result)
    }

    /// Removes what is at a path.
    pub(crate) async fn remove(&mut self, path: &str) -> Result<Change, Refused> {
        let checked = self.writable(path);
        let with_below = self.destination(path).is_ok();
        let path = self.admit(Asked::Remove { path: path.into() }, 0, checked).await?;
        let result = self.inputs.link.remove(&path, with_below).await;
        self.close_change(&format!("remove {path}"), result)
    }

    /// Brings a bundle to a destination, leaving other files alone.
    pub(crate) async fn push(&mut self, bundle: &Bundle, destination: &str) -> Result<Change, Refused> {
        let asked = Asked::Push { bundle: bundle.name.to_string(), destination: destination.into() };
        self.sync("push", asked, bundle, destination, SyncMode::Push).await
    }

    /// Brings a bundle to a destination, removing what it no longer has.
    pub(crate) async fn mirror(&mut self, bundle: &Bundle, destination: &str) -> Result<Change, Refused> {
        let asked = Asked::Mirror { bundle: bundle.name.to_string(), destination: destination.into() };
        let mode = match self.inputs.policy.mirror_foreign {
            MirrorForeign::Keep => SyncMode::Mirror,
            MirrorForeign::Delete => SyncMode::MirrorDeletingForeign,
        };
        self.sync("mirror", asked, bundle, destination, mode).await
    }

    /// Ends what was launched.
    pub(crate) async fn stop(&mut self) -> Result<bool, Refused> {
        self.admit(Asked::Stop {}, 0, Ok(())).await?;
        let result = self.inputs.link.stop().await;
        self.close("stop", result, |_, value| Answered::Truth { value: *value })
    }

    /// Says what is to be launched when every module has succeeded.
    pub(crate) async fn launch(&mut self, command: &ModuleCommand) -> Result<(), Refused> {
        let (command, asked, bytes) = self.assemble(command);
        let command = self.admit(Asked::Launch { command: asked }, bytes, command).await?;
        let text = format!("launch {}", shown(&command));
        self.launch = Some(command);
        self.close(&text, Ok(()), |_, ()| Answered::Nothing {})
    }

    // How each of them is done.

    async fn exec(&mut self, verb: &str, command: &ModuleCommand, asked: fn(AskedCommand) -> Asked) -> Result<Output, Refused> {
        let (command, as_asked, bytes) = self.assemble(command);
        let command = self.admit(asked(as_asked), bytes, command).await?;
        let mut log = OutputLog::new(
            self.inputs.recorder.clone(),
            self.redactor.clone(),
            OUTPUT_LOG_LINES_MAX.min(RUN_LOG_LINES_MAX.saturating_sub(self.lines)),
        );
        let link = Arc::clone(&self.inputs.link);
        let result = link.exec(&command, &mut |stream, bytes| log.feed(stream, bytes)).await;
        if let Some(tape) = &self.tape {
            tape.output().iter().for_each(|(stream, text)| log.again(*stream, text));
        }
        let lines = log.finish(result.as_ref().map_or(true, |output| output.truncated));
        self.lines += lines;
        let result = result.map(|output| Output {
            stdout: self.redactor.bytes(output.stdout, output.truncated),
            stderr: self.redactor.bytes(output.stderr, output.truncated),
            ..output
        });
        let text = format!("{verb} {}", shown(&command));
        let output = self.close(&text, result, |keeper, output| Answered::Output {
            status: output.status,
            stdout: keeper.keep(&output.stdout),
            stderr: keeper.keep(&output.stderr),
            truncated: output.truncated,
            lines,
        })?;
        self.charge_in(output.stdout.len() + output.stderr.len())?;
        Ok(output)
    }

    async fn sync(&mut self, verb: &str, asked: Asked, bundle: &Bundle, to: &str, mode: SyncMode) -> Result<Change, Refused> {
        let checked = self.destination(to);
        let destination = self.admit(asked, 0, checked).await?;
        let rules = SyncRules { mode, max_delete_percent: self.inputs.policy.max_delete.percent() };
        let began = Instant::now();
        let result = self.inputs.link.sync(&destination, bundle, rules).await;
        self.counts.syncing += began.elapsed();
        if let Ok(change) = &result {
            let counts = &mut self.counts;
            counts.bytes_sent = counts.bytes_sent.saturating_add(change.bytes_sent);
            // The bundle's own bytes: what the agent says of them is what it likes.
            counts.bytes_saved = counts.bytes_saved.saturating_add(bundle.manifest.bytes().saturating_sub(change.bytes_sent));
        }
        self.close_change(&format!("{verb} {} to {destination}", bundle.name), result)
    }

    /// Charges, journals, and lets a call through whose check went well. One whose check did not is journalled, logged and refused.
    async fn admit<T>(&mut self, asked: Asked, bytes_out: usize, checked: Result<T, CallError>) -> Result<T, Refused> {
        if self.over.is_some() {
            return Err(Refused::End);
        }
        self.inputs.recorder.room().await;
        let said = match self.tape.as_ref().map(|tape| tape.ask(&asked)) {
            Some(Ok(said)) => said,
            Some(Err(())) => return Err(self.end(Verdict::HostFault { reason: "the replay ends here".into() })),
            None => None,
        };
        self.counts.calls += 1;
        self.record_asked(&asked);
        let max = self.inputs.policy.limits.calls;
        if self.counts.calls > max {
            self.counts.calls = max;
            let which = format!("the run made more calls than `limits.calls` = {max}");
            return Err(self.refuse(&asked, CallError::OverBudget(which)));
        }
        if let Err(error) = self.charge_out(bytes_out + asked.named_bytes()) {
            return Err(self.refuse(&asked, error));
        }
        // In a replay the journal knows what the gate said: the grants are not there.
        said.map_or(checked, Err).map_err(|error| self.refuse(&asked, error))
    }

    fn refuse(&mut self, asked: &Asked, error: CallError) -> Refused {
        if let CallError::OverBudget(which) = &error {
            self.over.get_or_insert(Verdict::OverLimit { which: which.clone() });
        }
        self.record_answered(true, Err(self.redacted(error.clone())));
        let what = match asked {
            Asked::Probe { command } | Asked::Run { command } | Asked::Launch { command } => command.program.as_str(),
            Asked::ReadFile { path } | Asked::Exists { path } | Asked::WriteFile { path, .. } | Asked::Remove { path } => path,
            Asked::Push { destination, .. } | Asked::Mirror { destination, .. } => destination,
            Asked::Stop {} => "stop",
            Asked::OpenSecret { name } | Asked::OpenBundle { name } => name,
            Asked::ReadBundle { path, .. } => path,
        };
        self.call_line(&format!("{what}: {error}"));
        Refused::Answer(error)
    }

    /// Journals and logs what came of a call.
    fn close<T>(
        &mut self,
        text: &str,
        result: Result<T, CallError>,
        answered: impl FnOnce(&mut Keeper, &T) -> Answered,
    ) -> Result<T, Refused> {
        match result {
            Ok(value) => {
                let answered = answered(&mut self.keeper, &value);
                self.call_line(&match &answered {
                    Answered::Output { status, .. } => format!("{text}: exit status {status}"),
                    Answered::Truth { value } => format!("{text}: {value}"),
                    Answered::Change { change } if !change.changed => format!("{text}: unchanged"),
                    Answered::Change { change } => format!(
                        "{text}: {} of {} files changed, {} removed, {} of {} bytes sent",
                        change.files_changed, change.files, change.files_removed, change.bytes_sent, change.bytes
                    ),
                    Answered::File { contents } => format!("{text}: {} bytes", contents.bytes),
                    Answered::Nothing {} => text.to_owned(),
                });
                self.record_answered(false, Ok(answered));
                Ok(value)
            }
            Err(error) => {
                let error = self.redacted(error);
                self.call_line(&format!("{text}: {error}"));
                self.record_answered(false, Err(error.clone()));
                if let CallError::Unreachable(reason) = &error {
                    self.over.get_or_insert(Verdict::LinkLost { reason: reason.clone() });
                }
                Err(Refused::Answer(error))
            }
        }
    }

    fn close_change(&mut self, text: &str, result: Result<Change, CallError>) -> Result<Change, Refused> {
        self.close(text, result, |_, change| Answered::Change { change: *change })
    }

    fn call_line(&self, text: &str) {
        self.inputs.recorder.line(Level::Call, self.redactor.line(text));
    }

    fn redacted(&self, error: CallError) -> CallError {
        // The text is the agent's: it may be of any length.
        let text = |text: String| cut(self.redactor.text(text));
        match error {
            CallError::Denied(t) => CallError::Denied(text(t)),
            CallError::NotFound(t) => CallError::NotFound(text(t)),
            CallError::Invalid(t) => CallError::Invalid(text(t)),
            CallError::Unreachable(t) => CallError::Unreachable(text(t)),
            CallError::TimedOut => CallError::TimedOut,
            CallError::OverBudget(t) => CallError::OverBudget(text(t)),
            CallError::Other(t) => CallError::Other(text(t)),
        }
    }

    fn charge_out(&mut self, bytes: usize) -> Result<(), CallError> {
        self.bytes_out = self.bytes_out.saturating_add(bytes as u64);
        if self.bytes_out <= RUN_BYTES_OUT_MAX {
            return Ok(());
        }
        let which = format!("the run sent more than {RUN_BYTES_OUT_MAX} bytes of arguments, input and files");
        self.over.get_or_insert(Verdict::OverLimit { which: which.clone() });
        Err(CallError::OverBudget(which))
    }

    fn charge_in(&mut self, bytes: usize) -> Result<(), CallError> {
        self.bytes_in = self.bytes_in.saturating_add(bytes as u64);
        if self.bytes_in <= RUN_BYTES_IN_MAX {
            return Ok(());
        }
        let which = format!("the run read more than {RUN_BYTES_IN_MAX} bytes of output and files");
        self.over.get_or_insert(Verdict::OverLimit { which: which.clone() });
        Err(CallError::OverBudget(which))
    }

    /// Ends the run of a module that holds too much at once.
    pub(crate) fn end_for_handles(&mut self) -> Refused {
        self.end(Verdict::OverLimit { which: format!("the module holds more than {HANDLES_MAX} handles at once") })
    }

    fn end(&mut self, verdict: Verdict) -> Refused {
        self.over.get_or_insert(verdict);
        Refused::End
    }

    /// The command as it goes to the agent, as it goes to the journal, and its bytes.
    fn assemble(&self, command: &ModuleCommand) -> (Result<Command, CallError>, AskedCommand, usize) {
        let ModuleCommand { command, secret_env } = command;
        let env_bytes = |(name, value): &(String, String)| name.len() + value.len();
        let bytes = command.args.iter().map(String::len).sum::<usize>()
            + command.env.iter().map(env_bytes).sum::<usize>()
            + secret_env.iter().map(|(name, secret)| name.len() + secret.value.len()).sum::<usize>();
        // One that is refused for its size is not kept at that size.
        let fits = bytes <= COMMAND_BYTES_MAX;
        let asked = AskedCommand {
            program: command.program.clone(),
            args: if fits { command.args.clone() } else { Vec::new() },
            env: if fits { command.env.clone() } else { Vec::new() },
            secret_env: secret_env.iter().map(|(name, secret)| (name.clone(), secret.name.to_string())).collect(),
            directory: command.directory.clone(),
            stdin: (!command.stdin.is_empty()).then(|| Content::of(&command.stdin)),
            timeout_ms: command.timeout_ms,
        };
        (self.check_command(command, secret_env, bytes), asked, bytes + command.stdin.len())
    }

    fn check_command(&self, command: &Command, secret_env: &[(String, Secret)], bytes: usize) -> Result<Command, CallError> {
        let program = self.program(&command.program)?;
        if command.args.len() + command.env.len() + secret_env.len() > COMMAND_ARGS_MAX || bytes > COMMAND_BYTES_MAX {
            return Err(CallError::Invalid(format!(
                "a command has at most {COMMAND_ARGS_MAX} arguments and variables, of {COMMAND_BYTES_MAX} bytes together"
            )));
        }
        if command.stdin.len() > STDIN_BYTES_MAX {
            return Err(CallError::Invalid(format!("a command reads at most {STDIN_BYTES_MAX} bytes of input")));
        }
        let mut env = command.env.clone();
        env.extend(secret_env.iter().map(|(name, secret)| (name.clone(), secret.value.to_string())));
        if let Some(problem) = grants::env_problem(&env).or_else(|| grants::args_problem(&command.args)) {
            return Err(CallError::Invalid(problem));
        }
        let directory = command.directory.as_deref().map(|path| self.path(path)).transpose()?;
        Ok(Command { program, args: command.args.clone(), env, directory, stdin: command.stdin.clone(), timeout_ms: command.timeout_ms })
    }
}

/// A command for the log: program and arguments, each quoted if it must be.
fn shown(command: &Command) -> String {
    let mut text = command.program.clone();
    for arg in &command.args {
        text.push(' ');
        text.push_str(&shown_arg(arg));
    }
    text
}
