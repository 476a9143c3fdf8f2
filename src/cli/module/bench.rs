//! `muster module bench`: what a module costs, on this machine and against a directory of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;

use crate::agent::Signals;
use crate::cli::output::Output;
use crate::cli::try_module::{Given, Trial};
use crate::cli::{CliError, module_file};
use crate::journal;
use crate::limits::BENCH_RUNS_MAX;
use crate::sandbox::{Outcome, Sandbox, Verdict};

/// What `muster module bench` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The module
    file: PathBuf,
    /// The directory that stands for the agent's root; an empty one that goes afterwards, unless said
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(flatten)]
    given: Given,
    /// How many runs to measure, after the first
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(BENCH_RUNS_MAX)))]
    runs: u32,
}

/// What was measured. Times are in milliseconds.
#[derive(Debug, PartialEq, Serialize)]
struct Measured {
    size_bytes: u64,
    /// The compilation, which a server does once, when the module is uploaded.
    compile_ms: f64,
    /// The first run: nothing of it is in the processor's caches, and what is to be changed on the machine is.
    first_run_ms: f64,
    runs: u32,
    /// The runs after the first. What their calls took on this machine is among it.
    median_ms: f64,
    p95_ms: f64,
    slowest_ms: f64,
    /// The most memory that a run took.
    memory_bytes: u64,
    /// Calls of the first run, and of the last.
    calls_first: u32,
    calls: u32,
    verdict: &'static str,
}

/// Measures a module.
pub(crate) async fn run(args: Args, output: &mut Output) -> Result<(), CliError> {
    let bytes = module_file::read(&args.file)?;
    let size_bytes = bytes.len() as u64;
    let empty = match &args.root {
        Some(_) => None,
        None => Some(Empty::make().map_err(|error| CliError::failed("make a directory for the runs", error))?),
    };
    let root = args.root.as_ref().or(empty.as_ref().map(|empty| &empty.0));
    let trial = Trial::new(root.map(PathBuf::as_path).unwrap_or(std::path::Path::new(".")), &args.given)?;
    // Without a compiler, whose cache would hold what was compiled before.
    let sandbox = Sandbox::new(None, 1).map_err(|error| CliError::failed("start the sandbox", error))?;
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner.set_message("compiling");
    let began = Instant::now();
    let what = format!("use {}", args.file.display());
    let module = sandbox.compile(bytes).await.map_err(|error| CliError::failed(what, error))?;
    let compiled = began.elapsed();
    let mut signals = Signals::new().map_err(|error| CliError::failed("listen for signals", error))?;
    let runs = async {
        let mut took = Vec::new();
        let mut outcomes = Vec::new();
        for number in 0..=args.runs {
            spinner.set_message(format!("run {number} of {}", args.runs));
            let (recorder, records) = journal::channel();
            let began = Instant::now();
            let mut running = std::pin::pin!(sandbox.run(&module, trial.inputs(recorder)));
            // What is recorded is taken, as a server does, or the gate would wait for it.
            let outcome = loop {
                tokio::select! {
                    outcome = &mut running => break outcome,
                    () = records.gathered() => drop(records.take()),
                }
            };
            took.push(began.elapsed());
            let ended = outcome.verdict == Verdict::Provisioned;
            outcomes.truncate(1);
            outcomes.push(outcome);
            if !ended {
                break;
            }
        }
        (took, outcomes)
    };
    let done = tokio::select! {
        done = runs => Some(done),
        () = signals.next() => None,
    };
    spinner.finish_and_clear();
    let Some((took, outcomes)) = done else {
        // With a run what it started on this machine is ended.
        sandbox.end().await;
        return Err(CliError::failed("measure the module to the end", "it was told to end"));
    };
    tell(size_bytes, compiled, took, &outcomes, output)
}

fn tell(size_bytes: u64, compiled: Duration, mut took: Vec<Duration>, outcomes: &[Outcome], output: &mut Output) -> Result<(), CliError> {
    let (Some(first), Some(last)) = (outcomes.first(), outcomes.last()) else {
        return Err(CliError::failed("measure the module", "no run was made"));
    };
    if last.verdict != Verdict::Provisioned {
        let reason = last.verdict.reason().unwrap_or_else(|| last.verdict.word().to_owned());
        return Err(CliError::failed(format!("measure the module: run {} did not succeed", took.len()), reason));
    }
    let first_run = took.remove(0);
    took.sort();
    let measured = Measured {
        size_bytes,
        compile_ms: milliseconds(compiled),
        first_run_ms: milliseconds(first_run),
        runs: u32::try_from(took.len()).unwrap_or(u32::MAX),
        median_ms: milliseconds(of_a_hundred(&took, 50)),
        p95_ms: milliseconds(of_a_hundred(&took, 95)),
        slowest_ms: milliseconds(of_a_hundred(&took, 100)),
        memory_bytes: first.counts.memory_bytes.max(last.counts.memory_bytes),
        calls_first: first.counts.calls,
        calls: last.counts.calls,
        verdict: last.verdict.word(),
    };
    if output.json() {
        return output.value(&measured);
    }
    let time = |ms: f64| format!("{ms:.3} ms");
    output.fields(&[
        ("size", output.bytes(measured.size_bytes)),
        ("compile, once", time(measured.compile_ms)),
        ("first run", format!("{}, {} calls", time(measured.first_run_ms), measured.calls_first)),
        ("next runs", format!("{}, {} calls each", measured.runs, measured.calls)),
        ("median", time(measured.median_ms)),
        ("95 of 100 within", time(measured.p95_ms)),
        ("slowest", time(measured.slowest_ms)),
        ("memory", output.bytes(measured.memory_bytes)),
    ])
}

/// The time within which so many of a hundred were done. They are sorted.
fn of_a_hundred(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// An empty directory, which goes with the measurement.
struct Empty(PathBuf);

impl Empty {
    fn make() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("muster-bench-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        // Nobody is left to be told.
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_sorted_times_the_one_is_told_within_which_so_many_were_done() {
        let times: Vec<_> = (1..=20).map(Duration::from_millis).collect();
        assert_eq!(of_a_hundred(&times, 50), Duration::from_millis(10));
        assert_eq!(of_a_hundred(&times, 95), Duration::from_millis(19));
        assert_eq!(of_a_hundred(&times, 100), Duration::from_millis(20));
        assert_eq!(of_a_hundred(&times[..1], 95), Duration::from_millis(1));
        assert_eq!(of_a_hundred(&[], 95), Duration::ZERO);
        assert_eq!(milliseconds(Duration::from_nanos(1_234_567)), 1.235);
    }
}
