//! Runs that are done again with what their journals answer.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use muster::api::{LogLine, Run};
use muster::bits::contents::Bundle;
use muster::journal::Asked;
use muster::journal::recording::{Part, ReadError, Reader, Recording, Whole};
use muster::limits::KEPT_INLINE_BYTES_MAX;
use muster::link::Link;
use muster::machine::{CallError, Change, Command, Output, Stream, SyncRules};
use muster::policy::{LabelPolicy, parse_file};
use muster::sandbox::Module;
use muster::sandbox::replay::{Difference, End, NoReplay, Replayed};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::guests::component_with;
use crate::house::{House, TEAM};
use crate::sandbox::{Manner, Witness, compiled, inputs, sandbox};

/// A policy with these lines of TOML below its `[label.NAME]`, that grants what the guests ask for.
fn policy(lines: &str) -> LabelPolicy {
    let text = format!(
        "[label.linux]\nteam = \"media\"\nmodule = \"base\"\n{lines}\n[label.linux.grants]\n\
         run = [\"/bin/true\", \"/bin/say\"]\nread = [\"/etc\"]\nwrite = [\"greeting\"]\n"
    );
    parse_file(&text).unwrap().into_values().next().unwrap()
}

/// Runs a module, and what was recorded of it.
async fn recorded(module: &Module, policy: LabelPolicy, link: Arc<dyn Link>) -> Recording {
    let (inputs, records) = inputs(policy, link);
    let (mut lines, mut entries, mut contents) = (Vec::new(), Vec::new(), HashMap::new());
    let mut take = || {
        let taken = records.take();
        lines.extend(taken.lines.into_iter().map(|line| LogLine {
            seq: line.seq,
            at_us: line.at_us,
            level: line.level.as_str().into(),
            text: line.text,
        }));
        entries.extend(taken.entries.into_iter().map(|(_, text)| RawValue::from_string(text).unwrap()));
        contents.extend(taken.contents.into_iter().map(|(digest, bytes)| (digest, Bytes::from(bytes))));
    };
    let mut running = std::pin::pin!(sandbox().run(module, inputs));
    let outcome = loop {
        tokio::select! {
            outcome = &mut running => break outcome,
            () = records.gathered() => take(),
        }
    };
    take();
    let run = Run {
        id: "r1".into(),
        agent: "a1".into(),
        label: "linux".into(),
        release: 1,
        module: module.digest().to_string(),
        attempt: 1,
        verdict: outcome.verdict.word().into(),
        reason: outcome.verdict.reason(),
        began_us: 0,
        ended_us: Some(1),
        calls: outcome.counts.calls.into(),
        bytes_sent: 0,
        bytes_saved: 0,
    };
    Recording { run, lines, entries, contents }
}

async fn recorded_guest(name: &str, lines: &str) -> (Module, Recording) {
    let module = compiled(name).await;
    let recording = recorded(&module, policy(lines), Arc::new(Witness::default())).await;
    (module, recording)
}

async fn changed(name: &str, from: &str, to: &str) -> Module {
    sandbox().compile(Bytes::from(component_with(name, from, to))).await.unwrap()
}

async fn replayed(module: &Module, recording: &Recording) -> Replayed {
    sandbox().replay(module, recording).await.unwrap()
}

#[track_caller]
fn assert_same(replayed: &Replayed, recording: &Recording) {
    assert_eq!((&replayed.difference, &replayed.log), (&None, &None));
    let end = End { verdict: recording.run.verdict.clone(), reason: recording.run.reason.clone() };
    // The call that was beyond the limit is asked for too.
    assert_eq!((&replayed.end, replayed.calls), (&end, recording.entries.len() / 2));
}

/// Which call differs, what the journal has, and what the module asks.
fn differing_call(replayed: &Replayed) -> Option<(usize, Option<&Asked>, Option<&Asked>)> {
    match replayed.difference.as_ref()? {
        Difference::Call { number, journal, module, .. } => Some((*number, journal.as_deref(), module.as_deref())),
        _ => None,
    }
}

#[tokio::test]
async fn the_module_that_was_recorded_does_the_same_to_the_last_line() {
    for (name, lines) in [
        ("ok", ""),
        ("calls", ""),
        ("clocks", ""),
        ("write-file", ""),
        ("write-setting", "settings = { path = \"greeting\" }"),
        ("write-setting", "settings = { path = \"/elsewhere\" }"),
        ("extra", "settings = { extra = \"yes\" }"),
        ("tell-output", ""),
        ("read", ""),
        ("refuse-later", ""),
        ("refuse-other", ""),
        ("trap", ""),
        ("beyond-memory", ""),
        ("run-loop", "limits = { calls = 100 }"),
        ("grow", "limits = { memory_mib = 2 }"),
        ("handles", ""),
        ("big-answer", ""),
        ("log-flood", "limits = { cpu_ms = 60000 }"),
    ] {
        let (module, recording) = recorded_guest(name, lines).await;
        let replayed = replayed(&module, &recording).await;
        assert!(!replayed.cut, "{name}");
        println!("{name}: {} after {} calls, {} lines", replayed.end.verdict, replayed.calls, recording.lines.len());
        assert_same(&replayed, &recording);
    }
}

#[tokio::test]
async fn what_a_module_sees_of_time_and_chance_is_the_journals() {
    let (module, one) = recorded_guest("clocks", "").await;
    let (_, other) = recorded_guest("clocks", "").await;
    let written =
        |recording: &Recording| recording.entries.iter().find(|entry| entry.get().contains("write-file")).unwrap().get().to_owned();
    let digest = |entry: String| serde_json::from_str::<Value>(&entry).unwrap()["asked"]["contents"]["sha256"].as_str().unwrap().to_owned();
    assert_ne!(digest(written(&one)), digest(written(&other)), "two runs saw the same");
    for _ in 0..3 {
        assert_same(&replayed(&module, &one).await, &one);
    }
    let first: Value = serde_json::from_str(one.entries[0].get()).unwrap();
    let seed = first["seed"].as_str().unwrap();
    let mut forged = one.clone();
    forged.entries[0] = RawValue::from_string(one.entries[0].get().replace(seed, "another")).unwrap();
    let found = replayed(&module, &forged).await;
    assert!(matches!(differing_call(&found), Some((2, Some(Asked::WriteFile { .. }), Some(Asked::WriteFile { .. })))), "{found:?}");
}

#[tokio::test]
async fn a_pause_costs_a_replay_no_time() {
    let module = changed("clocks", "20000000", "3000000000").await;
    let recording = recorded(&module, policy(""), Arc::new(Witness::default())).await;
    let began = std::time::Instant::now();
    assert_same(&replayed(&module, &recording).await, &recording);
    assert!(began.elapsed().as_secs() < 3, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_change_of_one_argument_is_found_in_every_run_that_it_touches_and_in_no_other() {
    let changed = changed("extra", "hello", "hellO").await;
    for at in 0..10 {
        let touched = at % 3 == 0;
        let (module, recording) = recorded_guest("extra", if touched { "settings = { extra = \"yes\" }" } else { "" }).await;
        assert_same(&replayed(&module, &recording).await, &recording);
        let found = replayed(&changed, &recording).await;
        match differing_call(&found) {
            Some((2, Some(journal), Some(module))) if touched => {
                assert_eq!(journal.to_string(), "write-file greeting, mode 644, 5 bytes (sha256 2cf24dba5fb0)");
                assert!(module.to_string().starts_with("write-file greeting, mode 644, 5 bytes (sha256 "), "{module}");
                assert_ne!(journal, module);
            }
            None if !touched => assert_same(&found, &recording),
            _ => panic!("{at}: {found:?}"),
        }
    }
}

#[tokio::test]
async fn another_module_is_told_from_the_recorded_one_by_its_first_call_that_differs() {
    let (calls, recording) = recorded_guest("calls", "").await;
    let fewer = changed("calls", "(i32.const 10))", "(i32.const 8))").await;
    let found = replayed(&fewer, &recording).await;
    assert_eq!(found.calls, 8);
    assert!(
        matches!(differing_call(&found), Some((9, Some(Asked::Exists { path }), None)) if path == "/etc")
            && found.end.verdict == "provisioned",
        "{found:?}"
    );
    let shorter = recorded(&fewer, policy(""), Arc::new(Witness::default())).await;
    let found = replayed(&calls, &shorter).await;
    assert!(matches!(differing_call(&found), Some((9, None, Some(Asked::Exists { .. })))), "{found:?}");
    // The same calls and another end.
    let (_, recording) = recorded_guest("ok", "").await;
    let found = replayed(&compiled("refuse-later").await, &recording).await;
    assert!(
        matches!(&found.difference, Some(Difference::Verdict { journal, module }) if journal.verdict == "provisioned" && module.verdict == "refused-later"),
        "{found:?}"
    );
}

#[tokio::test]
async fn another_modules_log_is_told_and_is_no_difference() {
    let (module, recording) = recorded_guest("clocks", "").await;
    let found = replayed(&changed("clocks", "\"pause\"", "\"Pause\"").await, &recording).await;
    assert_eq!(found.difference, None);
    assert_eq!(found.log.unwrap().module.as_deref(), Some("step Pause"));
    let mut forged = recording.clone();
    forged.lines[1].text = "another".into();
    assert!(matches!(replayed(&module, &forged).await.difference, Some(Difference::Log(log)) if log.line == 2));
}

#[tokio::test]
async fn a_run_that_was_ended_from_outside_is_the_same_as_far_as_its_journal_goes() {
    let module = compiled("calls").await;
    let recording = recorded(&module, policy("limits = { run_seconds = 1 }"), Witness::that(Manner::Hangs)).await;
    assert_eq!(recording.run.verdict, "timed-out");
    let found = replayed(&module, &recording).await;
    assert_eq!((found.cut, found.difference, found.calls), (true, None, 0));
    let recording = recorded(&module, policy(""), Witness::that(Manner::Lost)).await;
    assert_eq!(recording.run.verdict, "link-lost");
    let found = replayed(&module, &recording).await;
    assert_eq!((found.cut, found.difference, found.calls), (false, None, 1));
    let (module, recording) = recorded_guest("spin", "limits = { cpu_ms = 50 }").await;
    let found = replayed(&module, &recording).await;
    assert_eq!((found.end.verdict.as_str(), found.difference), ("over-limit", None));
}

/// An agent whose every command says the same.
struct Says(Vec<u8>);

#[async_trait::async_trait]
impl Link for Says {
    async fn exec(&self, _command: &Command, progress: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<Output, CallError> {
        progress(Stream::Stdout, &self.0);
        progress(Stream::Stderr, b"and more\n  ");
        Ok(Output { status: 3, stdout: self.0.clone(), stderr: b"and more\n  ".to_vec(), truncated: false })
    }

    async fn read_file(&self, _path: &str, _bytes_max: usize) -> Result<Vec<u8>, CallError> {
        Ok(self.0.clone())
    }

    async fn exists(&self, _path: &str) -> Result<bool, CallError> {
        Ok(true)
    }

    async fn write_file(&self, _path: &str, _contents: &[u8], _mode: u32) -> Result<Change, CallError> {
        Ok(Change::default())
    }

    async fn remove(&self, _path: &str, _with_below: bool) -> Result<Change, CallError> {
        Ok(Change::default())
    }

    async fn sync(&self, _destination: &str, _bundle: &Bundle, _rules: SyncRules) -> Result<Change, CallError> {
        Ok(Change::default())
    }

    async fn stop(&self) -> Result<bool, CallError> {
        Ok(false)
    }

    async fn launch(&self, _command: &Command) -> Result<(), CallError> {
        Ok(())
    }
}

#[tokio::test]
async fn what_a_command_wrote_is_answered_again_and_stands_in_the_log_again() {
    let module = compiled("tell-output").await;
    for output in [
        b"one\ntwo  \n\nthree".to_vec(),
        b"x".repeat(KEPT_INLINE_BYTES_MAX + 1),
        (0..1000).map(|at| format!("line {at}\n")).collect::<String>().into_bytes(),
        vec![b' '; 20_000],
    ] {
        let recording = recorded(&module, policy(""), Arc::new(Says(output.clone()))).await;
        assert_eq!(recording.contents.len(), usize::from(output.len() > KEPT_INLINE_BYTES_MAX));
        assert_same(&replayed(&module, &recording).await, &recording);
        if !recording.contents.is_empty() {
            let without = Recording { contents: HashMap::new(), ..recording };
            assert_eq!(sandbox().replay(&module, &without).await.unwrap_err(), NoReplay::NotKept { call: 1 });
        }
    }
}

#[tokio::test]
async fn a_run_that_can_not_be_replayed_is_told_with_the_reason() {
    let (module, recording) = recorded_guest("calls", "").await;
    let error = |recording: Recording| {
        let module = module.clone();
        async move { sandbox().replay(&module, &recording).await.unwrap_err().to_string() }
    };
    let earlier = Recording { entries: recording.entries[1..].to_vec(), ..recording.clone() };
    assert_eq!(error(earlier).await, "recorded by an earlier version");
    let nothing = Recording { entries: Vec::new(), ..recording.clone() };
    assert_eq!(error(nothing).await, "recorded by an earlier version");
    let cleared = Recording { entries: Vec::new(), lines: Vec::new(), ..recording.clone() };
    assert_eq!(error(cleared).await, "nothing of its log and its journal is kept any more");
    let running = Recording { run: Run { ended_us: None, ..recording.run.clone() }, ..recording.clone() };
    assert_eq!(error(running).await, "it has not ended");
    let mut later = recording.clone();
    later.entries[0] = RawValue::from_string(recording.entries[0].get().replace("\"version\":1", "\"version\":2")).unwrap();
    assert_eq!(error(later).await, "recorded by a later version");
    let mut damaged = recording.clone();
    damaged.entries.remove(2);
    assert!(error(damaged).await.starts_with("its journal is damaged"));
}

/// Does a run on a real agent; the run's id.
async fn run_on_an_agent(house: &House) -> String {
    let files: [(&str, &[u8]); 2] = [("bin/ci-agent", b"#!/bin/sh\nexec sleep 600\n"), ("etc/ci-agent.conf", b"url = {{controller}}\n")];
    house.push_bundle(&files).await;
    let module = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tools/tools.wasm")).unwrap();
    let path = format!("/v1/modules?name=tools&team={TEAM}");
    house.admin().send(reqwest::Method::POST, &path, &[("content-type", "application/wasm")], module).await.done();
    let grants = json!({"write": ["**"], "read": ["**"], "run": ["**"]});
    let settings = json!({"controller": "http://ci.example"});
    house.apply("linux", json!({"team": TEAM, "module": "tools", "bundles": ["tools"], "grants": grants, "settings": settings})).await;
    let _agent = house.agent_process("web-1", &["linux"]).await;
    let runs = house.until("/v1/runs", |runs| runs["items"][0]["ended_us"].is_number()).await;
    runs["items"][0]["id"].as_str().unwrap().to_owned()
}

fn read(text: &str) -> Result<Recording, ReadError> {
    let mut reader = Reader::default();
    for line in text.lines() {
        if let Some(Whole::Recording(recording)) = reader.feed(line)? {
            return Ok(*recording);
        }
    }
    reader.finish().and(Err(ReadError::CutOff))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_a_real_agent_is_replayed_from_the_server_and_from_an_export() {
    let house = House::start().await;
    let id = run_on_an_agent(&house).await;
    let recording = read(&house.admin().get(&format!("/v1/runs/{id}/recording")).await.text).unwrap();
    println!("{} after {} calls", recording.run.verdict, recording.run.calls);
    assert!(recording.run.calls > 2);
    let tools = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tools/tools.wasm")).unwrap();
    let module = sandbox().compile(Bytes::from(tools)).await.unwrap();
    assert_same(&replayed(&module, &recording).await, &recording);

    let token = house.token(json!({"kind": "team", "team": TEAM})).await;
    let here = tempfile::tempdir().unwrap();
    let run = async |token: Option<&str>, arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_muster"));
        command.args(arguments).current_dir(here.path()).env_remove("MUSTER_TOKEN").env("MUSTER_URL", house.url());
        if let Some(token) = token {
            command.env("MUSTER_TOKEN", token);
        }
        let done = command.output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
    };
    let (status, out, err) = run(Some(&token), &["run", "replay", &id]).await;
    assert!(status == 0 && out.contains("same"), "{out}{err}");
    let (status, out, err) = run(Some(&token), &["run", "export", "--label", "linux", "--with-module", "-o", "linux.export"]).await;
    assert_eq!(status, 0, "{out}{err}");
    // From here on no server is asked: there is no token.
    let (status, out, err) = run(None, &["run", "replay", "linux.export"]).await;
    assert!(status == 0 && out.contains("same"), "{out}{err}");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tools");
    let (tools, verify) = (example.join("tools.wasm"), example.join("tools-verify.wasm"));
    let (status, out, err) = run(None, &["module", "check", tools.to_str().unwrap(), "--from", "linux.export", "--json"]).await;
    assert_eq!(status, 0, "{out}{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()[0]["result"], "same");
    let (status, out, err) = run(None, &["module", "check", verify.to_str().unwrap(), "--from", "linux.export"]).await;
    assert!(status == 1 && out.contains("differs at call") && err.contains("1 differ"), "{out}{err}");
    let (status, out, err) = run(Some(&token), &["module", "check", verify.to_str().unwrap(), "--label", "linux", "--last", "500"]).await;
    assert!(status == 1 && out.contains("differs at call"), "{out}{err}");
    std::fs::write(here.path().join("cut.export"), &std::fs::read(here.path().join("linux.export")).unwrap()[..300]).unwrap();
    let (status, _, err) = run(None, &["run", "replay", "cut.export"]).await;
    assert!(status == 1 && err.contains("can not read cut.export"), "{err}");

    let other = house.team("other").await;
    for what in ["recording", "module"] {
        other.get(&format!("/v1/runs/{id}/{what}")).await.expect(404);
    }
}

#[tokio::test]
async fn lines_that_are_no_recording_are_refused() {
    let (_, recording) = recorded_guest("calls", "").await;
    let lines = |end: Part| {
        let mut parts = vec![Part::Run(Box::new(recording.run.clone()))];
        parts.extend(recording.lines.iter().cloned().map(Part::Line));
        parts.extend(recording.entries.iter().cloned().map(Part::Entry));
        parts.push(end);
        parts.iter().map(Part::to_line).collect::<String>()
    };
    let (count, entries) = (recording.lines.len() as u64, recording.entries.len() as u64);
    let whole = lines(Part::End { lines: count, entries });
    assert_eq!(read(&whole).unwrap().entries.len() as u64, entries);
    assert!(matches!(read(&lines(Part::End { lines: count, entries: entries + 1 })), Err(ReadError::CutOff)));
    assert!(matches!(read(&whole[..whole.len() - 40]), Err(ReadError::Line(_) | ReadError::CutOff)));
    assert!(matches!(read(whole.split_once('\n').unwrap().1), Err(ReadError::Order)));
    assert!(matches!(read("{\"export\":{\"version\":9}}\n"), Err(ReadError::Version(9))));
    assert!(matches!(read("{\"run\":1}\n"), Err(ReadError::Line(_))));
    let forged = "{\"content\":{\"sha256\":\"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\",\"base64\":\"eA==\"}}";
    let (first, rest) = whole.split_once('\n').unwrap();
    assert!(matches!(read(&format!("{first}\n{forged}\n{rest}")), Err(ReadError::Content)));
}
