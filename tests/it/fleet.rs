//! Real agents from their first poll to their last, with what they launch, seen through the API.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{AgentProcess, House, TEAM, eventually};

/// The modules of `examples/tools`: both mirror the bundle `tools` and launch `ci-agent` out of it. The second asks it for its version first.
const TOOLS: &[u8] = include_bytes!("../../examples/tools/tools.wasm");
const TOOLS_VERIFY: &[u8] = include_bytes!("../../examples/tools/tools-verify.wasm");
/// Launched, it waits to be ended. It says its version when the file `go` is there, in the directory above the bundle's.
const CI_AGENT: &str = "#!/bin/sh
here=$(dirname \"$0\")
if [ \"${1-}\" = --version ]; then
  while [ ! -e \"$here/../../go\" ]; do sleep 0.02; done
  exec cat \"$here/../VERSION\"
fi
trap 'kill \"$sleeper\"; exit 0' TERM
while :; do sleep 60 & sleeper=$!; wait \"$sleeper\"; done
";
const LARGE_BYTES: usize = 300_000;

/// Pushes a version of the bundle `tools` with the program of the tools itself.
pub(crate) fn push(house: &House, version: &str) {
    let tree = house.data().join("tree");
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::write(tree.join("bin/ci-agent"), CI_AGENT).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(tree.join("bin/ci-agent"), mode).unwrap();
    std::fs::write(tree.join("large"), vec![7; LARGE_BYTES]).unwrap();
    std::fs::write(tree.join("VERSION"), version).unwrap();
    let pushed = muster(house, &["bundle", "push", tree.to_str().unwrap(), "--name", "tools", "--team", TEAM]).output().unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
}

/// The program `muster` as the admin uses it.
fn muster(house: &House, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(args).args(["--server", &house.url(), "--token-file"]).arg(house.data().join("admin.token"));
    command.env("NO_PROXY", "*").stdin(Stdio::null());
    command
}

async fn upload(house: &House, name: &str, component: &'static [u8]) {
    let path = format!("/v1/modules?name={name}&team={TEAM}");
    house.admin().send(Method::POST, &path, &[("content-type", "application/wasm")], component).await.done();
}

/// A policy under which the tools can do what they do.
pub(crate) fn tools(module: &str, order: i32) -> Value {
    let grants = json!({"run": ["tools/bin/ci-agent"], "write": ["tools/**"]});
    json!({"team": TEAM, "order": order, "module": module, "bundles": ["tools"], "grants": grants})
}

fn policy(module: &str) -> Value {
    json!({"team": TEAM, "module": module})
}

/// A house with both modules of the tools and a bundle.
pub(crate) async fn house_with_tools() -> House {
    let house = House::start().await;
    upload(&house, "tools", TOOLS).await;
    upload(&house, "tools-verify", TOOLS_VERIFY).await;
    push(&house, "1.0\n");
    house
}

pub(crate) fn is_ready_on(detail: &Value, release: i64) -> bool {
    detail["agent"]["state"] == "ready" && detail["agent"]["releases"]["linux"] == release
}

/// The process id of what an agent launched; none if nothing runs.
fn launched(detail: &Value) -> Option<u32> {
    detail["agent"]["launched"].as_str()?.strip_prefix("running (pid ")?.split([')', ',']).next()?.parse().ok()
}

fn lives(pid: u32) -> bool {
    // A program that has ended and was not waited for is there still, without arguments.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| !arguments.is_empty())
}

async fn until_ended(pid: u32) {
    eventually(async || (!lives(pid)).then_some(())).await.expect("what was launched has ended");
}

async fn explained(house: &House, name: &str) -> String {
    house.admin().get(&format!("/v1/agents/{name}/explain")).await.expect(200).to_string()
}

fn verdicts(detail: &Value) -> Vec<&str> {
    detail["runs"].as_array().unwrap().iter().map(|run| run["verdict"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_swap_sends_what_changed_and_launches_anew() {
    let house = house_with_tools().await;
    house.apply("linux", tools("tools", 0)).await;
    let agent = house.agent_process("web-1", &["linux"]).await;
    let first = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;
    let states: Vec<_> = first["events"].as_array().unwrap().iter().rev().map(|event| event["state"].as_str().unwrap()).collect();
    assert_eq!((states.first(), states.last()), (Some(&"registered"), Some(&"ready")), "{states:?}");
    assert!(states.contains(&"provisioning"), "{states:?}");
    let all = (CI_AGENT.len() + LARGE_BYTES + "1.0\n".len()) as u64;
    assert_eq!(first["runs"][0]["bytes_sent"], all);

    push(&house, "2.0 is longer\n");
    house.apply("linux", tools("tools", 0)).await;
    let second = house.until_agent("web-1", |detail| is_ready_on(detail, 2) && launched(detail).is_some()).await;
    assert_eq!(second["runs"][0]["bytes_sent"], "2.0 is longer\n".len());
    assert_eq!(second["runs"][0]["bytes_saved"], all - 4);
    assert_eq!(std::fs::read_to_string(agent.root.join("tools/VERSION")).unwrap(), "2.0 is longer\n");
    assert_ne!(launched(&first), launched(&second));
    assert!(lives(launched(&second).unwrap()));
    until_ended(launched(&first).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_policy_launches_has_each_agents_own_values_as_whole_arguments() {
    let house = House::start().await;
    house.upload("ok").await;
    let mut of_label = policy("ok");
    // What it is given goes to a file that appears when it is whole.
    let script = "printf '[%s]' \"$@\" >\"$0.part\"; mv \"$0.part\" \"$0\"; exec sleep 1000";
    let command = ["/bin/sh", "-c", script, "{root}/given", "{name}", "--labels={labels}", "{root}/a b", "{{name}}"];
    of_label["launch"] = json!({"command": command});
    house.apply("linux", of_label.clone()).await;
    house.apply("large", of_label).await;
    let agents = [house.agent_process("web-1", &["linux", "large"]).await, house.agent_process("web-2", &["linux"]).await];
    for (agent, (name, labels)) in agents.iter().zip([("web-1", "linux,large"), ("web-2", "linux")]) {
        let given = eventually(async || std::fs::read_to_string(agent.root.join("given")).ok()).await.expect("nothing was launched");
        let root = agent.root.to_str().unwrap();
        assert_eq!(given, format!("[{name}][--labels={labels}][{root}/a b][{{name}}]"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_does_not_succeed_fails_its_agent_with_the_cause_and_a_good_release_heals_it() {
    let house = House::start().await;
    for guest in ["ok", "refuse-later", "refuse-never", "trap"] {
        house.upload(guest).await;
    }
    house.apply("linux", policy("refuse-later")).await;
    let _agent = house.agent_process("web-1", &["linux"]).await;
    for (guest, release, verdict, cause, again) in [
        ("refuse-later", 1, "refused-later", "disk is full", true),
        ("refuse-never", 2, "refused-never", "no such image", false),
        ("trap", 3, "trapped", "unreachable", true),
    ] {
        house.apply("linux", policy(guest)).await;
        let failed = |detail: &Value| {
            detail["agent"]["state"] == "failed" && detail["runs"][0]["release"] == release && detail["runs"][0]["verdict"] == verdict
        };
        let detail = house.until_agent("web-1", failed).await;
        assert_eq!(detail["agent"]["retry_at_us"].is_number(), again, "{guest}: {detail:#}");
        let told = explained(&house, "web-1").await;
        assert!(told.contains(cause) && told.contains(verdict), "{guest}: {told}");
    }
    house.apply("linux", policy("ok")).await;
    let healed = house.until_agent("web-1", |detail| is_ready_on(detail, 4)).await;
    assert!(healed["agent"]["retry_at_us"].is_null(), "{healed:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_modules_end_within_their_limits_while_another_labels_runs_go_on() {
    let house = House::start().await;
    let hostile = ["spin", "grow", "recurse", "handles", "log-flood", "big-answer", "run-loop"];
    for guest in hostile.iter().chain(&["ok"]) {
        house.upload(guest).await;
    }
    let refused = house.admin().send(Method::POST, &format!("/v1/modules?name=none&team={TEAM}"), &[], "no component").await;
    assert_eq!(refused.problem(422)["code"], "not-a-module");
    house.apply("linux", policy("ok")).await;
    let _honest = house.agent_process("web-1", &["linux"]).await;
    house.until_agent("web-1", |detail| is_ready_on(detail, 1)).await;
    let mut agents = Vec::new();
    for guest in hostile {
        let limits = json!({"cpu_ms": if guest == "spin" { 300 } else { 2000 }, "calls": 100});
        house.apply(guest, json!({"team": TEAM, "module": guest, "limits": limits, "grants": {"run": ["/bin/true"]}})).await;
        agents.push(house.agent_process(guest, &[guest]).await);
    }
    let micros = |run: &Value| run["ended_us"].as_i64().unwrap() - run["began_us"].as_i64().unwrap();
    let mut honest = Value::Null;
    for runs in 2..12 {
        house.admin().post("/v1/agents/web-1/provision", json!({})).await.expect(200);
        let done = |page: &Value| page["items"].as_array().unwrap().len() == runs && page["items"][0]["verdict"] == "provisioned";
        honest = house.until("/v1/runs?agent=web-1", done).await;
    }
    let honest = honest["items"].as_array().unwrap();
    assert!(honest.iter().all(|run| run["verdict"] == "provisioned"), "{honest:#?}");
    println!("honest runs beside them: {:?} µs", honest.iter().map(micros).collect::<Vec<_>>());
    for guest in hostile {
        let detail = house.until_agent(guest, |detail| detail["runs"][0]["ended_us"].is_i64()).await;
        let first = detail["runs"].as_array().unwrap().last().unwrap();
        assert_eq!(first["verdict"], "over-limit", "{guest}: {first:#}");
        println!("{guest}: {} µs: {}", micros(first), first["reason"].as_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_is_lost_and_ready_again_with_its_own_credential_when_it_is_back() {
    let house = house_with_tools().await;
    house.apply("linux", tools("tools", 0)).await;
    let mut agent = house.agent_process("web-1", &["linux"]).await;
    let before = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;
    agent.kill();
    house.until_state("web-1", "lost").await;
    agent.start();
    let ready = |detail: &Value| is_ready_on(detail, 1) && launched(detail).is_some() && launched(detail) != launched(&before);
    let after = house.until_agent("web-1", ready).await;
    assert_eq!(after["agent"]["id"], before["agent"]["id"]);
    until_ended(launched(&before).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_lost_while_its_connection_held_opens_another_session() {
    let house = house_with_tools().await;
    house.apply("linux", tools("tools", 0)).await;
    let agent = house.agent_process("web-1", &["linux"]).await;
    let before = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;
    let pid = rustix::process::Pid::from_raw(agent.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    house.until_agent("web-1", |detail| detail["agent"]["state"] == "lost" && detail["agent"]["session"] == false).await;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let after = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && detail["agent"]["session"] == true).await;
    assert_eq!(launched(&before), launched(&after));
    assert_eq!(verdicts(&after), ["provisioned"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_server_costs_no_run_and_what_was_launched_does_not_notice() {
    let mut house = house_with_tools().await;
    house.apply("linux", tools("tools", 0)).await;
    let _agent = house.agent_process("web-1", &["linux"]).await;
    let before = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;
    house.restart().await;
    let after = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;
    assert_eq!(launched(&before), launched(&after));
    assert_eq!(verdicts(&after), ["provisioned"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_quarantine_provision_and_remove_do_what_they_say() {
    let house = house_with_tools().await;
    house.apply("linux", tools("tools", 0)).await;
    let mut agent = house.agent_process("web-1", &["linux"]).await;
    let mut before = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;
    for (act, state) in [("drain", "draining"), ("quarantine", "quarantined")] {
        let shown = house.admin().post(&format!("/v1/agents/web-1/{act}"), json!({"reason": "the disk"})).await.expect(200);
        assert_eq!(shown["state"], state);
        until_ended(launched(&before).unwrap()).await;
        let told = explained(&house, "web-1").await;
        assert!(told.contains("the disk") && told.contains(state), "{told}");
        house.admin().post("/v1/agents/web-1/provision", json!({})).await.expect(200);
        let anew = |detail: &Value| is_ready_on(detail, 1) && launched(detail).is_some() && launched(detail) != launched(&before);
        before = house.until_agent("web-1", anew).await;
    }
    // A quarantine outlasts a new start of the agent's program, a drain does not; and a drain does not take its place.
    house.admin().post("/v1/agents/web-1/quarantine", json!({})).await.expect(200);
    assert_eq!(house.admin().post("/v1/agents/web-1/drain", json!({})).await.problem(409)["code"], "quarantined");
    agent.stop();
    house.until_agent("web-1", |detail| detail["agent"]["session"] == false).await;
    agent.start();
    let back = house.until_agent("web-1", |detail| detail["agent"]["session"] == true).await;
    assert_eq!(back["agent"]["state"], "quarantined");
    agent.stop();

    house.admin().delete("/v1/agents/web-1").await.expect(204);
    assert_eq!(house.admin().get("/v1/agents").await.expect(200)["items"], json!([]));
    // Its credential is worth nothing, so it has to be admitted as another.
    agent.start();
    house.until_agent("web-1", |detail| is_ready_on(detail, 1) && detail["agent"]["id"] != before["agent"]["id"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_of_several_labels_run_in_their_order_and_nothing_is_launched_before_the_last() {
    let house = house_with_tools().await;
    for guest in ["ok", "refuse-never"] {
        house.upload(guest).await;
    }
    house.apply("zone", tools("tools-verify", 1)).await;
    house.apply("linux", json!({"team": TEAM, "order": 2, "module": "refuse-never"})).await;
    let agent = house.agent_process("web-1", &["linux", "zone"]).await;
    let during = house.until_agent("web-1", |detail| detail["runs"][0]["verdict"] == "running").await;
    assert_eq!((&during["runs"][0]["label"], during["runs"].as_array().unwrap().len()), (&json!("zone"), 1), "{during:#}");
    std::fs::write(agent.root.join("go"), "").unwrap();
    let failed = house.until_state("web-1", "failed").await;
    assert_eq!(verdicts(&failed), ["refused-never", "provisioned"]);
    assert_eq!(launched(&failed), None);

    house.apply("linux", json!({"team": TEAM, "order": 2, "module": "ok"})).await;
    let ready = house.until_agent("web-1", |detail| is_ready_on(detail, 2) && launched(detail).is_some()).await;
    assert_eq!(ready["agent"]["releases"]["zone"], 1);
    assert_eq!(ready["runs"][0]["label"], "linux");
    assert_eq!(ready["runs"][1]["label"], "zone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_between_the_modules_of_two_labels_has_both_run_again() {
    let mut house = house_with_tools().await;
    house.upload("ok").await;
    let first = |text: &str| json!({"team": TEAM, "order": 1, "module": "ok", "settings": {"text": text}});
    house.apply("zone", first("a")).await;
    house.apply("linux", tools("tools-verify", 2)).await;
    let agent = house.agent_process("web-1", &["linux", "zone"]).await;
    let go = agent.root.join("go");
    std::fs::write(&go, "").unwrap();
    let before = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;

    // Each label's release in force has been run on it by itself when the server goes, but the second not after the first.
    std::fs::remove_file(&go).unwrap();
    house.apply("zone", first("b")).await;
    let midst = |detail: &Value| detail["runs"][0]["label"] == "linux" && detail["runs"][0]["verdict"] == "running";
    house.until_agent("web-1", midst).await;
    house.restart().await;
    std::fs::write(&go, "").unwrap();
    let anew = |detail: &Value| is_ready_on(detail, 1) && launched(detail).is_some() && launched(detail) != launched(&before);
    let after = house.until_agent("web-1", anew).await;
    assert_eq!(after["agent"]["releases"]["zone"], 2);
    assert_eq!(verdicts(&after), ["provisioned", "provisioned", "link-lost", "provisioned", "provisioned", "provisioned"]);
}

/// A house whose agent is in the midst of a run: its module waits for the file `go`.
async fn in_the_midst() -> (House, AgentProcess, String) {
    let house = house_with_tools().await;
    house.apply("linux", tools("tools-verify", 0)).await;
    let agent = house.agent_process("web-1", &["linux"]).await;
    let detail = house.until_agent("web-1", |detail| detail["runs"][0]["verdict"] == "running").await;
    let run = detail["runs"][0]["id"].as_str().unwrap().to_owned();
    eventually(async || agent.root.join("tools/VERSION").exists().then_some(())).await.unwrap();
    (house, agent, run)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_link_was_cut_ends_so_and_is_run_again_when_the_agent_is_back() {
    let (house, mut agent, run) = in_the_midst().await;
    agent.kill();
    house.until(&format!("/v1/runs/{run}"), |run| run["verdict"] == "link-lost").await;
    std::fs::write(agent.root.join("go"), "").unwrap();
    agent.start();
    let detail = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;
    assert_eq!(verdicts(&detail), ["provisioned", "link-lost"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_shows_its_lines_while_they_come_and_ends_with_the_run() {
    let (house, agent, run) = in_the_midst().await;
    let log = house.data().join("followed");
    let mut follower = muster(&house, &["run", "logs", &run, "--follow"]).stdout(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    let shown = async |line: &str| eventually(async || std::fs::read_to_string(&log).unwrap().contains(line).then_some(())).await;
    shown("verify the tools").await.expect("the step is shown while the run goes on");
    assert!(follower.try_wait().unwrap().is_none(), "it ended before the run");
    std::fs::write(agent.root.join("go"), "").unwrap();
    let status = eventually(|| std::future::ready(follower.try_wait().unwrap())).await.expect("it ends with the run");
    assert!(status.success(), "{status}");
    shown("the agent is 1.0").await.expect("the last lines are shown");
}

/// `muster-agent` with arguments of the test's own, and its exit status.
struct Agent(Child);

impl Agent {
    async fn start(house: &House, root: &Path, args: &[&str]) -> Self {
        Self::start_as("web-1", house, root, args).await
    }

    async fn start_as(name: &str, house: &House, root: &Path, args: &[&str]) -> Self {
        let token = house.data().join("join.token");
        std::fs::write(&token, house.join_token(&["linux"]).await).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
        command.args(["--server", &house.url(), "--label", "linux", "--name", name]).args(args);
        command.arg("--token-file").arg(token).arg("--root").arg(root).env("NO_PROXY", "*");
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    async fn end(&mut self) -> ExitStatus {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::TERM).unwrap();
        eventually(|| std::future::ready(self.0.try_wait().unwrap())).await.expect("the agent ends")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Asked to, it ends what it launched; killed, it would leave that behind.
        if matches!(self.0.try_wait(), Ok(None)) {
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::TERM).ok();
        }
        self.0.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_told_to_end_drains_ends_what_it_launched_and_ends_well() {
    let house = house_with_tools().await;
    house.apply("linux", tools("tools", 0)).await;
    let root = house.data().join("web-1");
    let mut agent = Agent::start(&house, &root, &[]).await;
    let ready = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;
    let status = agent.end().await;
    assert_eq!(status.code(), Some(0));
    assert!(!lives(launched(&ready).unwrap()), "what was launched outlived its agent");
    // With the next missed polls it is lost; that it drained is told still.
    let told = |detail: &Value| detail["events"].as_array().unwrap().iter().any(|event| event["state"] == "draining");
    house.until_agent("web-1", told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_root_was_removed_says_so_and_ends_what_it_launched() {
    let house = house_with_tools().await;
    house.apply("linux", tools("tools", 0)).await;
    let root = house.data().join("web-1");
    let mut agent = Agent::start(&house, &root, &[]).await;
    let ready = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;
    // The agent may be tidying up still.
    while std::fs::remove_dir_all(&root).is_err() && root.exists() {}
    let status = eventually(|| std::future::ready(agent.0.try_wait().unwrap())).await.expect("the agent ends");
    assert_eq!(status.code(), Some(1));
    until_ended(launched(&ready).unwrap()).await;
    // Started anew it is another agent, once the one before is missed.
    let _anew = Agent::start(&house, &root, &[]).await;
    house.until_agent("web-1", |detail| is_ready_on(detail, 1) && detail["agent"]["id"] != ready["agent"]["id"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_beyond_the_bound_of_sessions_is_let_in_for_a_release_and_not_kept() {
    let house = House::plan().with(|config| config.sessions.max = 1).start().await;
    house.push_bundle(&[("VERSION", b"1.0")]).await;
    for guest in ["ok", "refuse-never"] {
        house.upload(guest).await;
    }
    house.apply("linux", policy("ok")).await;
    let (_one, _two) = (house.agent_process("web-1", &["linux"]).await, house.agent_process("web-2", &["linux"]).await);
    for release in [1, 2] {
        for name in ["web-1", "web-2"] {
            house.until_agent(name, |detail| is_ready_on(detail, release)).await;
        }
        let one_alone = |agents: &Value| agents["items"].as_array().unwrap().iter().filter(|agent| agent["session"] == true).count() == 1;
        house.until("/v1/agents", one_alone).await;
        house.apply("linux", json!({"team": TEAM, "module": "ok", "settings": {"release": (release + 1).to_string()}})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_decided_outlasts_lost_polls_and_keeps_its_reason() {
    let house = house_with_tools().await;
    house.apply("linux", tools("tools", 0)).await;
    let agent = house.agent_process("web-1", &["linux"]).await;
    let before = house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;
    house.admin().post("/v1/agents/web-1/drain", json!({"reason": "the disk"})).await.expect(200);
    until_ended(launched(&before).unwrap()).await;
    let pid = rustix::process::Pid::from_raw(agent.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    house.until_state("web-1", "lost").await;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let back = house.until_state("web-1", "draining").await;
    assert!(back["agent"]["reason"].as_str().unwrap().contains("the disk"), "{back:#}");
    house.admin().post("/v1/agents/web-1/provision", json!({})).await.expect(200);
    house.until_agent("web-1", |detail| is_ready_on(detail, 1) && launched(detail).is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_from_before_an_agent_was_halted_does_not_bring_it_back() {
    let (house, agent, run) = in_the_midst().await;
    house.admin().post("/v1/agents/web-1/provision", json!({})).await.expect(200);
    house.admin().post("/v1/agents/web-1/quarantine", json!({"reason": "the disk"})).await.expect(200);
    house.until(&format!("/v1/runs/{run}"), |run| run["verdict"] == "link-lost").await;
    std::fs::write(agent.root.join("go"), "").unwrap();
    // What would have been done for the wish is done for this one, which comes after it.
    house.apply("linux", json!({"team": TEAM, "module": "tools", "bundles": ["tools"], "order": 7})).await;
    let detail = house.until_state("web-1", "quarantined").await;
    assert!(detail["agent"]["reason"].as_str().unwrap().ends_with("the disk"), "{detail:#}");
    assert_eq!(verdicts(&detail), ["link-lost"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_goes_by_another_name_is_admitted_anew() {
    let house = House::start().await;
    house.upload("ok").await;
    house.apply("linux", policy("ok")).await;
    let root = house.data().join("web-1");
    let mut agent = Agent::start(&house, &root, &[]).await;
    house.until_state("web-1", "ready").await;
    agent.end().await;
    let _renamed = Agent::start_as("web-2", &house, &root, &[]).await;
    house.until_state("web-2", "ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_outside_of_the_root_needs_the_policy_and_the_agent() {
    let house = House::start().await;
    house.upload("write-setting").await;
    let beside = house.data().canonicalize().unwrap().join("beside");
    std::fs::create_dir(&beside).unwrap();
    let (path, root) = (beside.join("greeting"), house.data().join("web-1"));
    let grants = json!({"write": [format!("{}/**", beside.display())]});
    house.apply("linux", json!({"team": TEAM, "module": "write-setting", "settings": {"path": path}, "grants": grants})).await;
    let mut agent = Agent::start(&house, &root, &[]).await;
    house.until_state("web-1", "failed").await;
    let told = explained(&house, "web-1").await;
    assert!(told.contains("--allow-write"), "{told}");
    assert!(!path.exists());
    agent.end().await;

    let _allowed = Agent::start(&house, &root, &["--allow-write", beside.to_str().unwrap()]).await;
    house.until_state("web-1", "ready").await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_without_its_grant_fails_and_the_explanation_names_the_grant() {
    let house = house_with_tools().await;
    let _agent = house.agent_process("web-1", &["linux"]).await;
    for (release, grants, grant) in [(1, json!({"run": ["tools/bin/ci-agent"]}), "write"), (2, json!({"write": ["tools/**"]}), "run")] {
        house.apply("linux", json!({"team": TEAM, "module": "tools", "bundles": ["tools"], "grants": grants})).await;
        let ended = |detail: &Value| detail["runs"][0]["release"] == release && detail["runs"][0]["verdict"] == "refused-never";
        house.until_agent("web-1", ended).await;
        let told = explained(&house, "web-1").await;
        assert!(told.contains(&format!("grants.{grant}")), "{told}");
    }
}
