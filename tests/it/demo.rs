//! `muster demo`, as a person runs it.

use std::io::BufRead as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::house::eventually;

fn demo(temporary: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.arg("demo").args(arguments).env("TMPDIR", temporary).env("NO_PROXY", "*").stdin(Stdio::null());
    command
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// Programs that were started from a directory and run still.
fn running_from(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(directory)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_the_demo_happens_and_nothing_is_left() {
    let temporary = tempfile::tempdir().unwrap();
    let done = tokio::process::Command::from(demo(temporary.path(), &["--json"])).output().await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    let steps: Vec<&str> = summary["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    for told in ["is uploaded", "3 agents registered", "is in force", "only what changed was sent", "is killed", "no poll for"] {
        assert!(steps.iter().any(|step| step.contains(told)), "{told}: {steps:#?}");
    }
    let states: Vec<&str> = summary["agents"].as_array().unwrap().iter().map(|agent| agent["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["ready", "ready", "lost"]);
    assert_eq!(entries(temporary.path()), 0);
    assert_eq!(running_from(temporary.path()), Vec::<String>::new());
}

fn told_to_end(demo: &Child) {
    rustix::process::kill_process(rustix::process::Pid::from_child(demo), rustix::process::Signal::INT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_told_to_end_leaves_nothing_behind() {
    // In the midst of its story, which is a failure, and after it, which is how one that was kept ends.
    for (arguments, until, status) in [(&[][..], "has its release 1", 1), (&["--keep"], "Ctrl-C ends it", 0)] {
        let temporary = tempfile::tempdir().unwrap();
        let mut demo = demo(temporary.path(), arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = std::io::BufReader::new(demo.stdout.take().unwrap());
        let heard = tokio::task::spawn_blocking(move || {
            let mut lines = output.lines();
            let found = lines.any(|line| line.is_ok_and(|line| line.contains(until)));
            (found, lines)
        });
        let (found, lines) = heard.await.unwrap();
        assert!(found, "{until}");
        told_to_end(&demo);
        // What it goes on to say is read, so that it does not end for want of a reader.
        let rest = tokio::task::spawn_blocking(move || lines.count());
        let ended = eventually(|| std::future::ready(demo.try_wait().unwrap())).await.expect("the demo ends");
        rest.await.unwrap();
        assert_eq!(ended.code(), Some(status), "{until}");
        assert_eq!(entries(temporary.path()), 0, "{until}");
        assert_eq!(running_from(temporary.path()), Vec::<String>::new(), "{until}");
    }
}
