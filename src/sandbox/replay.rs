//! Replay: a module runs against the journal of a run, which answers its calls in the agent's stead.
//!
//! Everything that a module can tell one run from another by is in the journal: its registration, its settings, its limits, the bundles and
//! secrets that it may open, each answer, the time of each, and what its random numbers are made from. So the module that made the journal
//! does again what it did, on any machine; and what another does in its place is known up to its first call that the journal has no answer
//! to. Nothing is reached from here: no agent, no secret, no clock.

mod alike;
mod tape;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::bits::contents::{Bundle, Contents};
use crate::bits::manifest::Manifest;
use crate::bits::pack::Packed;
use crate::journal::recording::Recording;
use crate::journal::{Asked, Began, Line, channel};
use crate::limits::{REPLAY_CPU_SPARE, RUN_KEPT_BYTES_MAX};
use crate::link::Link;
use crate::names::BundleName;
use crate::policy::{LabelPolicy, parse_file};
use crate::sandbox::engine::{Module, Outcome, Sandbox};
use crate::sandbox::gate::RunInputs;
use crate::sandbox::verdict::Verdict;

use alike::Marks;
use tape::Ended;
pub(crate) use tape::Tape;

/// How the reason of a verdict begins that says that the module computed for too long, which another machine may not say.
pub(super) const COMPUTED: &str = "the module computed for longer";

/// What a replay grants: everything, as what was refused stands in the journal.
const POLICY: &str = r#"
[label.replay]
team = "replay"
module = "replay"

[label.replay.grants]
run = ["/**"]
write = ["/**"]
read = ["/**"]
"#;

/// Why a run can not be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoReplay {
    /// It has no end yet.
    #[error("it has not ended")]
    Running,
    /// Its records are gone.
    #[error("nothing of its log and its journal is kept any more")]
    Cleared,
    /// Its journal lacks what a replay needs.
    #[error("recorded by an earlier version")]
    Earlier,
    /// Its journal has what this program does not know.
    #[error("recorded by a later version")]
    Later,
    /// An answer is not kept.
    #[error("what call {call} was answered is not kept: of a run at most {RUN_KEPT_BYTES_MAX} bytes are, for a time")]
    NotKept {
        /// Which call, from 1.
        call: usize,
    },
    /// Its journal is not one.
    #[error("its journal is damaged: {0}")]
    Damaged(String),
}

/// How a run ended, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct End {
    /// The verdict's word.
    pub verdict: String,
    /// What there is to say about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The first thing that is not as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Difference {
    /// A call.
    Call {
        /// Which, from 1.
        number: usize,
        /// What the journal has; none if its run asked for nothing more.
        journal: Option<Box<Asked>>,
        /// What the module asks for; none if it ends instead.
        module: Option<Box<Asked>>,
        /// How the module ends, if it does.
        #[serde(skip_serializing_if = "Option::is_none")]
        ended: Option<End>,
    },
    /// The verdict, after the same calls.
    Verdict {
        /// What was recorded.
        journal: End,
        /// How the module ends.
        module: End,
    },
    /// A line of the log, after the same calls and with the same verdict.
    Log(LogDifference),
}

/// The first line of a log that is not as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogDifference {
    /// Which, from 1.
    pub line: usize,
    /// What was recorded; none if nothing more was.
    pub journal: Option<String>,
    /// What the module writes; none if it writes nothing more.
    pub module: Option<String>,
}

/// What came of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// Calls that were the same.
    pub calls: usize,
    /// How the module ended; as the run did if that was ended from outside.
    pub end: End,
    /// What is different; nothing if the module does the same.
    pub difference: Option<Difference>,
    /// What is different in the log of another module that does the same.
    pub log: Option<LogDifference>,
    /// The run was ended from outside, so that nobody knows what would have come then.
    pub cut: bool,
}

impl Sandbox {
    /// Runs a module against a recording. The module that made it must do the same to the last line of the log; of another one, calls and
    /// verdict are compared.
    ///
    /// # Errors
    /// When the recording does not hold what a replay needs.
    pub async fn replay(&self, module: &Module, recording: &Recording) -> Result<Replayed, NoReplay> {
        let own = module.digest().to_string() == recording.run.module;
        let tape = Arc::new(Tape::new(recording)?);
        let (recorder, records) = channel();
        let began = &tape.began;
        let inputs = RunInputs {
            registration: began.registration.clone(),
            policy: Arc::new(policy(began)?),
            bundles: bundles(began)?,
            secrets: None,
            link: Arc::clone(&tape) as Arc<dyn Link>,
            recorder,
        };
        let mut log = Log::new(recording, &tape);
        let outcome = {
            let mut running = std::pin::pin!(self.run_with(module, inputs, Some(Arc::clone(&tape))));
            loop {
                tokio::select! {
                    outcome = &mut running => break outcome,
                    // Who does not take what gathers makes the run wait.
                    () = records.gathered() => log.take(records.take().lines),
                }
            }
        };
        log.take(records.take().lines);
        Ok(compare(recording, &tape, outcome, log, own))
    }
}

fn compare(recording: &Recording, tape: &Tape, outcome: Outcome, log: Log<'_>, own: bool) -> Replayed {
    let run = &recording.run;
    let recorded = End { verdict: run.verdict.clone(), reason: run.reason.clone() };
    let module = end_of(&outcome.verdict);
    let (calls, ended) = tape.end();
    let next = tape.next().cloned().map(Box::new);
    let fits = same_end(&tape.marks, &recorded, &module, own);
    let (end, difference, cut) = match ended {
        Some(Ended::Differs(difference)) => (recorded, Some(difference), false),
        Some(Ended::Cut) => (recorded, None, true),
        None if next.is_some() => {
            let difference = Difference::Call { number: calls + 1, journal: next, module: None, ended: Some(module.clone()) };
            (module, Some(difference), false)
        }
        None if fits => (module, None, false),
        None if tape.cut => (recorded, None, true),
        None => (module.clone(), Some(Difference::Verdict { journal: recorded, module }), false),
    };
    let log = if difference.is_none() { log.finish(cut) } else { None };
    match (own, difference, log) {
        (true, None, Some(log)) => Replayed { calls, end, difference: Some(Difference::Log(log)), log: None, cut },
        (_, difference, log) => Replayed { calls, end, difference, log, cut },
    }
}

fn end_of(verdict: &Verdict) -> End {
    End { verdict: verdict.word().into(), reason: verdict.reason() }
}

/// A trap's text names places in the module's own code: another module has others.
fn same_end(marks: &Marks, recorded: &End, now: &End, own: bool) -> bool {
    let reasons = match (&recorded.reason, &now.reason) {
        (Some(recorded), Some(now)) => marks.fit(recorded, &as_stored(now)),
        (recorded, now) => recorded == now,
    };
    recorded.verdict == now.verdict && (reasons || (!own && recorded.verdict == "trapped"))
}

/// The store has no NUL.
fn as_stored(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Compares a log with the one that was recorded.
struct Log<'a> {
    recorded: &'a Recording,
    tape: &'a Tape,
    /// Lines that came.
    lines: usize,
    first: Option<LogDifference>,
}

impl<'a> Log<'a> {
    fn new(recorded: &'a Recording, tape: &'a Tape) -> Self {
        Self { recorded, tape, lines: 0, first: None }
    }

    fn take(&mut self, lines: Vec<Line>) {
        for line in lines {
            let recorded = self.recorded.lines.get(self.lines);
            self.lines += 1;
            let text = as_stored(&line.text);
            if self.first.is_some() || recorded.is_some_and(|own| own.level == line.level.as_str() && self.tape.marks.fit(&own.text, &text))
            {
                continue;
            }
            let journal = recorded.map(|line| format!("{} {}", line.level, line.text));
            self.first = Some(LogDifference { line: self.lines, journal, module: Some(format!("{} {text}", line.level.as_str())) });
        }
    }

    /// The first difference. What a run that was cut off would have written after its last answer is not known.
    fn finish(self, cut: bool) -> Option<LogDifference> {
        if cut {
            let certain = self.recorded.lines.iter().rposition(|line| line.level == "call").map_or(0, |at| at + 1);
            return self.first.filter(|first| first.line <= certain);
        }
        let more = self.recorded.lines.get(self.lines).map(|line| LogDifference {
            line: self.lines + 1,
            journal: Some(format!("{} {}", line.level, line.text)),
            module: None,
        });
        self.first.or(more)
    }
}

fn policy(began: &Began) -> Result<LabelPolicy, NoReplay> {
    let policy = parse_file(POLICY).ok().and_then(|policies| policies.into_values().next());
    let policy = policy.ok_or_else(|| NoReplay::Damaged("its policy can not be made".into()))?;
    Ok(LabelPolicy { settings: began.settings.clone(), limits: began.limits, ..policy })
}

/// The bundles by name and version. Nothing of them is needed: what was read of them stands in the journal.
fn bundles(began: &Began) -> Result<BTreeMap<BundleName, Bundle>, NoReplay> {
    let damaged = |error: &dyn std::fmt::Display| NoReplay::Damaged(error.to_string());
    let bundle = |(name, version): (&String, &String)| {
        let name: BundleName = name.parse().map_err(|error| damaged(&error))?;
        let manifest = Manifest::new(Vec::new()).map_err(|error| damaged(&error))?;
        let version = version.parse().map_err(|error| damaged(&error))?;
        let mut bundle = Bundle::new(name.clone(), manifest, Arc::new(Nothing));
        bundle.version = version;
        Ok((name, bundle))
    };
    began.bundles.iter().map(bundle).collect()
}

impl Tape {
    /// What the module's random numbers are made from.
    pub(crate) fn seed(&self) -> String {
        self.began.seed.clone()
    }

    /// When the run began, in microseconds since the Unix epoch.
    pub(crate) fn began_us(&self) -> i64 {
        self.began.at_us
    }

    /// When it had to be over.
    pub(crate) fn ends_us(&self) -> i64 {
        self.began.at_us.saturating_add(i64::from(self.began.limits.run_seconds).saturating_mul(1_000_000))
    }

    /// The processor time that the module may take: another machine may be slower than the one that recorded it.
    pub(crate) fn cpu(&self) -> Duration {
        Duration::from_millis(self.began.limits.cpu_ms.into()).saturating_mul(2).saturating_add(REPLAY_CPU_SPARE)
    }
}

/// The contents of a bundle of which nothing is read.
struct Nothing;

#[async_trait::async_trait]
impl Contents for Nothing {
    fn group(&self, _index: u32) -> u64 {
        0
    }

    fn at_hand(&self, _groups: &BTreeMap<u64, Vec<u32>>) -> Option<u64> {
        None
    }

    async fn read(&self, _index: u32) -> io::Result<Packed> {
        Err(io::ErrorKind::NotFound.into())
    }

    async fn turn(&self) -> Box<dyn Send + Sync> {
        Box::new(())
    }

    async fn pace(&self, _bytes: usize) {}
}
