//! `muster run`: what runs there were, what they said, while they say it too, and doing them again.

use clap::builder::styling::Style;
use tokio::time::sleep;

use crate::api::{LogLine, Run};
use crate::cli::agent::list_runs;
use crate::cli::client::{Client, ClientError};
use crate::cli::output::Output;
use crate::cli::{CliError, doing, export, id, replay};
use crate::limits::{ANSWER_BYTES_MAX, FOLLOW_TRIES, RECONNECT_FIRST, RECONNECT_MAX};
use crate::names::{AgentName, LabelName};

/// What `muster run` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists the runs, newest first
    Ls {
        /// Those of an agent
        #[arg(long)]
        agent: Option<AgentName>,
        /// Those for a label
        #[arg(long)]
        label: Option<LabelName>,
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Tells everything about a run
    Show {
        /// Its id
        #[arg(value_parser = id)]
        id: String,
    },
    /// Prints the log of a run
    Logs {
        /// Its id
        #[arg(value_parser = id)]
        id: String,
        /// Goes on until the run ends
        #[arg(long, short)]
        follow: bool,
    },
    /// Does a run again with what its journal answers, here and on no agent
    Replay(replay::Args),
    /// Writes what was recorded of runs to a file, to be replayed where no server is
    Export(export::Args),
}

/// Does it. A replay may need no server.
pub(crate) async fn run(command: Command, client: impl FnOnce() -> Result<Client, CliError>, output: &mut Output) -> Result<(), CliError> {
    match command {
        Command::Replay(args) => Box::pin(replay::run(args, client, output)).await,
        Command::Export(args) => Box::pin(export::run(args, &client()?, output)).await,
        Command::Ls { agent, label, limit } => {
            let query = [("agent", agent.map(|agent| agent.to_string())), ("label", label.map(|label| label.to_string()))];
            let runs: Vec<Run> = client()?.list(&["runs"], &query, limit).await.map_err(doing("list the runs"))?;
            list_runs(&runs, output)
        }
        Command::Show { id } => {
            let run: Run = client()?.get(&["runs", &id], &[]).await.map_err(doing(format!("show the run {id}")))?;
            if output.json() { output.value(&run) } else { show(&run, output) }
        }
        Command::Logs { id, follow: true } => Box::pin(follow(&id, &client()?, output)).await,
        Command::Logs { id, follow: false } if output.json() => {
            let client = client()?;
            let run: Run = client.get(&["runs", &id], &[]).await.map_err(doing(format!("show the run {id}")))?;
            if run.ended_us.is_none() {
                return Err(CliError::usage(format!("the run {id} still goes on, so that its log has no end yet"), "add --follow"));
            }
            Box::pin(follow(&id, &client, output)).await
        }
        Command::Logs { id, follow: false } => {
            let text = client()?
                .get_text(&["runs", &id, "log"], ANSWER_BYTES_MAX)
                .await
                .map_err(doing(format!("read the log of the run {id}")))?;
            text.lines().try_for_each(|line| output.line(line))
        }
    }
}

fn show(run: &Run, output: &mut Output) -> Result<(), CliError> {
    output.fields(&[
        ("id", run.id.clone()),
        ("agent", run.agent.clone()),
        ("label", run.label.clone()),
        ("release", run.release.to_string()),
        ("module", output.digest(&run.module)),
        ("attempt", run.attempt.to_string()),
        ("verdict", run.verdict.clone()),
        ("reason", run.reason.clone().unwrap_or_default()),
        ("began", output.moment(run.began_us)),
        ("ended", run.ended_us.map(|at| output.moment(at)).unwrap_or_default()),
        ("took", output.took(run.began_us, run.ended_us)),
        ("calls", run.calls.to_string()),
        ("sent", output.bytes(run.bytes_sent)),
        ("saved", output.bytes(run.bytes_saved)),
    ])
}

/// What the stream of a log came to.
enum Followed {
    /// The run has ended, with this verdict.
    Ended(String),
    /// The stream was cut.
    Cut,
}

/// Prints a log as it is written. When the stream is cut it is taken up after the last line that came.
async fn follow(id: &str, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let failed = |error: ClientError| doing(format!("follow the log of the run {id}"))(error);
    let mut last: Option<i64> = None;
    let (mut pause, mut tries) = (RECONNECT_FIRST, 0);
    loop {
        let before = last;
        let error = match stream(id, client, output, &mut last).await {
            Ok(Followed::Ended(verdict)) if output.json() => return output.value_line(&serde_json::json!({ "end": verdict })),
            Ok(Followed::Ended(verdict)) => return output.line(&format!("the run ended: {verdict}")),
            Ok(Followed::Cut) => None,
            Err(Stop::Client(error)) if error.passes() || last.is_some() && matches!(error, ClientError::NoServer { .. }) => Some(error),
            Err(Stop::Client(error)) => return Err(failed(error)),
            Err(Stop::Cli(error)) => return Err(error),
        };
        if last != before {
            (pause, tries) = (RECONNECT_FIRST, 0);
        }
        tries += 1;
        if tries == FOLLOW_TRIES {
            return Err(failed(error.unwrap_or_else(|| ClientError::Answer("its stream ends before the run does".into()))));
        }
        output.aside("the stream was cut; taking it up again")?;
        sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_MAX);
    }
}

enum Stop {
    Client(ClientError),
    Cli(CliError),
}

async fn stream(id: &str, client: &Client, output: &mut Output, last: &mut Option<i64>) -> Result<Followed, Stop> {
    let from = last.map(|seq| seq.to_string());
    let mut stream = client.follow(&["runs", id, "log"], from.as_deref()).await.map_err(Stop::Client)?;
    while let Some(event) = stream.next().await.map_err(Stop::Client)? {
        match event.kind.as_str() {
            "end" => return Ok(Followed::Ended(event.data)),
            "line" => {
                let line: LogLine =
                    serde_json::from_str(&event.data).map_err(|error| Stop::Client(ClientError::Answer(error.to_string())))?;
                // A server that starts from the beginning again must not make lines appear twice.
                if last.is_none_or(|last| line.seq > last) {
                    write(&line, output).map_err(Stop::Cli)?;
                    *last = Some(line.seq);
                }
            }
            _ => {}
        }
    }
    Ok(Followed::Cut)
}

/// Writes one line of a log: `12:03:04.123 step   mirror the tools`.
fn write(line: &LogLine, output: &mut Output) -> Result<(), CliError> {
    if output.json() {
        return output.value_line(line);
    }
    let style = match line.level.as_str() {
        "error" => clap::builder::styling::AnsiColor::Red.on_default(),
        "warn" => clap::builder::styling::AnsiColor::Yellow.on_default(),
        "step" => Style::new().bold(),
        _ => Style::new(),
    };
    output.styled(style, &format!("{} {:<6} {}", output.clock(line.at_us), line.level, line.text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::fixture::{NOW_US, output};

    #[test]
    fn a_line_of_a_log_has_its_time_its_level_and_its_text() {
        let line = LogLine { seq: 0, at_us: NOW_US + 43_384_123_000, level: "step".into(), text: "mirror\u{1b}[2J the tools".into() };
        let (mut out, text) = output(false, true);
        write(&line, &mut out).unwrap();
        assert_eq!(text.take(), "12:03:04.123 step   mirror\\u{1b}[2J the tools\n");
        let (mut out, text) = output(true, false);
        write(&line, &mut out).unwrap();
        assert_eq!(serde_json::from_str::<LogLine>(&text.take()).unwrap().text, line.text);
    }
}
