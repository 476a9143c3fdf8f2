//! What came of replays, for people and for programs.

use serde::Serialize;

use crate::api::Run;
use crate::cli::CliError;
use crate::cli::output::Output;
use crate::sandbox::replay::{Difference, End, LogDifference, Replayed};

/// What came of one run.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    run: String,
    agent: String,
    label: String,
    release: i64,
    /// The module that the run had.
    module: String,
    verdict: String,
    #[serde(flatten)]
    found: Found,
}

/// Whether the module does the same.
#[derive(Debug, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub(super) enum Found {
    /// It does.
    Same {
        calls: usize,
        /// Until its run was ended from outside: what comes then is not known.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        cut: bool,
        /// Its log is another.
        #[serde(skip_serializing_if = "Option::is_none")]
        log: Option<LogDifference>,
    },
    /// It does not.
    Differs { calls: usize, difference: Difference },
    /// Nobody knows.
    CanNotBeReplayed { reason: String },
}

impl Found {
    pub(super) fn of(replayed: Replayed) -> Self {
        let Replayed { calls, difference, log, cut, .. } = replayed;
        match difference {
            Some(difference) => Self::Differs { calls, difference },
            None => Self::Same { calls, cut, log },
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Same { cut: true, calls, .. } => format!("same, as far as the journal goes: {calls} calls"),
            Self::Same { log: Some(log), .. } => format!("same; its log differs in line {}", log.line),
            Self::Same { .. } => "same".into(),
            Self::Differs { difference, .. } => format!("differs {}", text(difference)),
            Self::CanNotBeReplayed { reason } => format!("can not be replayed: {reason}"),
        }
    }
}

impl Row {
    pub(super) fn of(run: Run, found: Found) -> Self {
        let Run { id, agent, label, release, module, verdict, .. } = run;
        Self { run: id, agent, label, release, module, verdict, found }
    }
}

fn text(difference: &Difference) -> String {
    match difference {
        Difference::Call { number, journal, module, ended } => {
            let journal = journal.as_ref().map_or("the journal ends".into(), |asked| format!("the journal has `{asked}`"));
            let module = match (module, ended) {
                (Some(asked), _) => format!("the module asks `{asked}`"),
                (None, Some(end)) => format!("the module ends {}", end_text(end)),
                (None, None) => "the module ends".into(),
            };
            format!("at call {number}: {journal}, {module}")
        }
        Difference::Verdict { journal, module } => {
            format!("in its end: the run ended {}, the module ends {}", end_text(journal), end_text(module))
        }
        Difference::Log(LogDifference { line, journal, module }) => {
            let shown = |text: &Option<String>| text.as_ref().map_or("nothing more".into(), |text| format!("`{text}`"));
            format!("in line {line} of the log: the run wrote {}, the module writes {}", shown(journal), shown(module))
        }
    }
}

fn end_text(end: &End) -> String {
    match &end.reason {
        Some(reason) => format!("{} ({reason})", end.verdict),
        None => end.verdict.clone(),
    }
}

/// Tells of one run at length. It is an error if the module does not do the same.
pub(super) fn one(row: &Row, output: &mut Output) -> Result<(), CliError> {
    if output.json() {
        output.value(row)?;
    } else {
        let mut fields = vec![
            ("run", row.run.clone()),
            ("agent", row.agent.clone()),
            ("label", row.label.clone()),
            ("release", row.release.to_string()),
            ("module", output.digest(&row.module)),
            ("verdict", row.verdict.clone()),
            ("replay", row.found.text()),
        ];
        if let Found::Same { calls, .. } = &row.found {
            fields.push(("calls", calls.to_string()));
        }
        output.fields(&fields)?;
    }
    match &row.found {
        Found::Same { .. } => Ok(()),
        Found::Differs { .. } => {
            Err(CliError::failed(format!("replay the run {} to the same end", row.run), "the module does something else"))
        }
        Found::CanNotBeReplayed { reason } => Err(CliError::failed(format!("replay the run {}", row.run), reason.clone())),
    }
}

/// Tells of many runs, a line each. It is an error if the module does not do the same in one of them, or if nothing is known of any.
pub(super) fn all(rows: &[Row], output: &mut Output) -> Result<(), CliError> {
    output.listing(rows, ["RUN", "AGENT", "RELEASE", "VERDICT", "REPLAY"], |_, row| {
        [row.run.clone(), row.agent.clone(), row.release.to_string(), row.verdict.clone(), row.found.text()]
    })?;
    let count = |wanted: fn(&Found) -> bool| rows.iter().filter(|row| wanted(&row.found)).count();
    let same = count(|found| matches!(found, Found::Same { .. }));
    let differ = count(|found| matches!(found, Found::Differs { .. }));
    let unknown = rows.len() - same - differ;
    output.aside(&format!("{} runs: {same} same, {differ} differ, {unknown} can not be replayed", rows.len()))?;
    let what = "say that the module does the same";
    match (same, differ) {
        (_, 1..) => Err(CliError::failed(what, format!("in {differ} of {} runs it does something else", rows.len()))),
        (0, 0) => Err(CliError::failed(what, "there is no run that can be replayed")),
        _ => Ok(()),
    }
}
