//! A journal that answers: what stands in the place of an agent while a run is replayed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bits::contents::Bundle;
use crate::journal::kept::{Contents, Kept};
use crate::journal::recording::Recording;
use crate::journal::{Answered, Asked, Began, Entry, VERSION};
use crate::link::Link;
use crate::machine::{CallError, Change, Command, Output, Stream, SyncRules};
use crate::sandbox::replay::alike::Marks;
use crate::sandbox::replay::{Difference, NoReplay};

/// A call with its answer, if it was answered.
#[derive(Debug)]
struct Call {
    asked: Asked,
    answer: Option<Answer>,
    /// What the command wrote, as the log has it.
    output: Vec<(Stream, String)>,
}

#[derive(Debug)]
struct Answer {
    at_us: i64,
    refused: bool,
    answered: Result<Answered, CallError>,
}

/// The journal of one run.
#[derive(Debug)]
pub(crate) struct Tape {
    pub(super) began: Began,
    pub(super) marks: Marks,
    /// The run was ended from outside, so that it might have gone on.
    pub(super) cut: bool,
    calls: Vec<Call>,
    contents: Contents,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Calls that were asked for.
    asked: usize,
    ended: Option<Ended>,
}

/// Why a replay does not go on.
#[derive(Debug, Clone)]
pub(super) enum Ended {
    /// The journal ends here, as its run was ended from outside.
    Cut,
    /// The module asks for something else.
    Differs(Difference),
}

impl Tape {
    /// Reads a journal whole, and finds whether it can answer everything that is in it.
    pub(super) fn new(recording: &Recording) -> Result<Self, NoReplay> {
        let run = &recording.run;
        if run.ended_us.is_none() {
            return Err(NoReplay::Running);
        }
        let mut entries = recording.entries.iter();
        let Some(first) = entries.next() else {
            return Err(if recording.lines.is_empty() { NoReplay::Cleared } else { NoReplay::Earlier });
        };
        let read = |text: &str| serde_json::from_str::<Entry>(text).map_err(|error| NoReplay::Damaged(error.to_string()));
        let began = match read(first.get())? {
            Entry::Began(began) if began.version <= VERSION => *began,
            Entry::Began(_) => return Err(NoReplay::Later),
            _ => return Err(NoReplay::Earlier),
        };
        let mut calls: Vec<Call> = Vec::with_capacity(recording.entries.len() / 2);
        for entry in entries {
            match (read(entry.get())?, calls.last_mut()) {
                (Entry::Asked { asked, .. }, last) if last.as_ref().is_none_or(|call| call.answer.is_some()) => {
                    calls.push(Call { asked, answer: None, output: Vec::new() });
                }
                (Entry::Answered { at_us, refused, answered }, Some(call)) if call.answer.is_none() => {
                    call.answer = Some(Answer { at_us, refused, answered });
                }
                _ => return Err(NoReplay::Damaged("an entry stands where it has no place".into())),
            }
        }
        let mut tape = Self {
            marks: Marks::of(&began.secrets),
            began,
            cut: is_cut(&run.verdict, run.reason.as_deref()) || calls.last().is_some_and(|call| call.answer.is_none()),
            calls,
            contents: recording.contents.clone(),
            state: Mutex::default(),
        };
        tape.take_output(recording);
        tape.check()?;
        Ok(tape)
    }

    /// Gives each command what it wrote, as the log has it: the lines right before the one that tells what came of the call.
    fn take_output(&mut self, recording: &Recording) {
        let mut since: Vec<(Stream, String)> = Vec::new();
        let mut calls = self.calls.iter_mut();
        for line in &recording.lines {
            match line.level.as_str() {
                "stdout" => since.push((Stream::Stdout, line.text.clone())),
                "stderr" => since.push((Stream::Stderr, line.text.clone())),
                "call" => {
                    let written = std::mem::take(&mut since);
                    let Some(call) = calls.next() else { return };
                    if let Some(Answer { answered: Ok(Answered::Output { lines, .. }), .. }) = &call.answer {
                        let own = written.len().saturating_sub(*lines as usize);
                        call.output = written.into_iter().skip(own).collect();
                    }
                }
                _ => {}
            }
        }
    }

    fn check(&self) -> Result<(), NoReplay> {
        for (at, call) in self.calls.iter().enumerate() {
            let Some(Answer { answered: Ok(answered), .. }) = &call.answer else { continue };
            let fits = match (&call.asked, answered) {
                (Asked::Probe { .. } | Asked::Run { .. }, Answered::Output { stdout, stderr, .. }) => {
                    self.holds(stdout) && self.holds(stderr)
                }
                (Asked::ReadFile { .. } | Asked::ReadBundle { .. }, Answered::File { contents }) => self.holds(contents),
                (Asked::Exists { .. } | Asked::Stop {} | Asked::OpenSecret { .. } | Asked::OpenBundle { .. }, Answered::Truth { .. })
                | (Asked::WriteFile { .. } | Asked::Remove { .. } | Asked::Push { .. } | Asked::Mirror { .. }, Answered::Change { .. })
                | (Asked::Launch { .. } | Asked::ReadBundle { .. }, Answered::Nothing {}) => true,
                _ => return Err(NoReplay::Damaged(format!("call {} is answered by what answers another", at + 1))),
            };
            if !fits {
                return Err(NoReplay::NotKept { call: at + 1 });
            }
        }
        Ok(())
    }

    fn holds(&self, kept: &Kept) -> bool {
        kept.read(&self.contents).is_some()
    }

    /// The module asks for its next call. Answers what the gate itself said, if it did not let the call through; `Err` if the replay ends here.
    pub(crate) fn ask(&self, asked: &Asked) -> Result<Option<CallError>, ()> {
        let mut state = self.state();
        if state.ended.is_some() {
            return Err(());
        }
        let number = state.asked + 1;
        let differs = |journal: Option<&Asked>| {
            Ended::Differs(Difference::Call {
                number,
                journal: journal.cloned().map(Box::new),
                module: Some(Box::new(asked.clone())),
                ended: None,
            })
        };
        let ended = match self.calls.get(state.asked) {
            None if self.cut => Ended::Cut,
            None => differs(None),
            Some(call) if !self.is_same(&call.asked, asked) => differs(Some(&call.asked)),
            Some(Call { answer: None, .. }) => Ended::Cut,
            Some(Call { answer: Some(answer), .. }) => {
                state.asked = number;
                return Ok(answer.answered.as_ref().err().filter(|_| answer.refused).cloned());
            }
        };
        state.ended = Some(ended);
        Err(())
    }

    /// When the call that was last asked for was answered, in microseconds since the Unix epoch.
    pub(crate) fn answered_us(&self) -> i64 {
        self.current().map_or(self.began.at_us, |answer| answer.at_us)
    }

    /// Whether there was a secret to be opened.
    pub(crate) fn truth(&self) -> Result<bool, CallError> {
        match self.answered()? {
            Answered::Truth { value } => Ok(*value),
            _ => broken(),
        }
    }

    /// What was read of a bundle.
    pub(crate) fn content(&self) -> Result<Option<Vec<u8>>, CallError> {
        match self.answered()? {
            Answered::File { contents } => self.bytes(contents).map(Some),
            Answered::Nothing {} => Ok(None),
            _ => broken(),
        }
    }

    /// What the command of the call wrote, as the log has it.
    pub(crate) fn output(&self) -> &[(Stream, String)] {
        self.call().map_or(&[], |call| &call.output)
    }

    /// How many calls were asked for, and why the replay ended, if it was ended here.
    pub(super) fn end(&self) -> (usize, Option<Ended>) {
        let state = self.state();
        (state.asked, state.ended.clone())
    }

    /// The call that the module would have to ask for next.
    pub(super) fn next(&self) -> Option<&Asked> {
        self.calls.get(self.state().asked).map(|call| &call.asked)
    }

    fn is_same(&self, recorded: &Asked, now: &Asked) -> bool {
        recorded == now
            || match (serde_json::to_value(recorded), serde_json::to_value(now)) {
                (Ok(recorded), Ok(now)) => self.marks.fit_value(&recorded, &now),
                _ => false,
            }
    }

    fn call(&self) -> Option<&Call> {
        let asked = self.state().asked;
        self.calls.get(asked.checked_sub(1)?)
    }

    fn current(&self) -> Option<&Answer> {
        self.call()?.answer.as_ref()
    }

    fn answered(&self) -> Result<&Answered, CallError> {
        match self.current().map(|answer| &answer.answered) {
            Some(Ok(answered)) => Ok(answered),
            Some(Err(error)) => Err(error.clone()),
            None => broken(),
        }
    }

    fn bytes(&self, kept: &Kept) -> Result<Vec<u8>, CallError> {
        kept.read(&self.contents).map_or_else(broken, |bytes| Ok(bytes.into_owned()))
    }

    fn change(&self) -> Result<Change, CallError> {
        match self.answered()? {
            Answered::Change { change } => Ok(*change),
            _ => broken(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A journal is checked whole before it answers, so that this is not reached.
fn broken<T>() -> Result<T, CallError> {
    Err(CallError::Other("the journal does not answer this call".into()))
}

/// Whether a verdict came from outside of the module and of what it was answered.
fn is_cut(verdict: &str, reason: Option<&str>) -> bool {
    match verdict {
        "timed-out" | "link-lost" | "host-fault" => true,
        "over-limit" => reason.is_some_and(|reason| reason.starts_with(super::COMPUTED)),
        _ => false,
    }
}

#[async_trait::async_trait]
impl Link for Tape {
    async fn exec(&self, _command: &Command, _progress: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<Output, CallError> {
        match self.answered()? {
            Answered::Output { status, stdout, stderr, truncated, .. } => {
                Ok(Output { status: *status, stdout: self.bytes(stdout)?, stderr: self.bytes(stderr)?, truncated: *truncated })
            }
            _ => broken(),
        }
    }

    async fn read_file(&self, _path: &str, _bytes_max: usize) -> Result<Vec<u8>, CallError> {
        self.content()?.map_or_else(broken, Ok)
    }

    async fn exists(&self, _path: &str) -> Result<bool, CallError> {
        self.truth()
    }

    async fn write_file(&self, _path: &str, _contents: &[u8], _mode: u32) -> Result<Change, CallError> {
        self.change()
    }

    async fn remove(&self, _path: &str, _with_below: bool) -> Result<Change, CallError> {
        self.change()
    }

    async fn sync(&self, _destination: &str, _bundle: &Bundle, _rules: SyncRules) -> Result<Change, CallError> {
        self.change()
    }

    async fn stop(&self) -> Result<bool, CallError> {
        self.truth()
    }

    async fn launch(&self, _command: &Command) -> Result<(), CallError> {
        Ok(())
    }
}
