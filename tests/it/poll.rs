//! Machines that have `sh`, `curl`, coreutils and `tar`, and run `scripts/muster-poll`.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use muster::names::Digest;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::house::{House, TEAM, claims, end, eventually};
use crate::ssh::sshd::program;

/// Which shell a machine has, and which programs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PollShell {
    /// Dash, and the machine's own programs, which are GNU's here.
    Dash,
    /// Busybox's shell and busybox's programs, and curl.
    Busybox,
}

/// The script `muster-poll`, which is ended with this, and what it started.
pub(crate) struct PollProcess {
    pub(crate) root: PathBuf,
    arguments: Vec<String>,
    shell: Vec<PathBuf>,
    path: String,
    log: PathBuf,
    child: Option<Child>,
    directory: TempDir,
}

impl PollProcess {
    /// Starts the script with a root of its own and the label `linux`. None, and a line that says so, where a program is missing.
    pub(crate) async fn start(house: &House, name: &str, shell: PollShell) -> Option<Self> {
        let curl = program("curl")?;
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        let (shell, path) = match shell {
            PollShell::Dash => (vec![program("dash")?], "/usr/bin:/bin".to_owned()),
            PollShell::Busybox => {
                let busybox = program("busybox")?;
                let bin = at("bin");
                fs::create_dir(&bin).unwrap();
                let list = Command::new(&busybox).arg("--list").output().unwrap();
                for applet in String::from_utf8(list.stdout).unwrap().lines() {
                    symlink(&busybox, bin.join(applet)).unwrap();
                }
                symlink(curl, bin.join("curl")).unwrap();
                (vec![busybox, "sh".into()], bin.to_str().unwrap().to_owned())
            }
        };
        fs::write(at("token"), house.join_token(&["linux"]).await).unwrap();
        let root = at("the root");
        let arguments =
            ["--server", &house.url(), "--token-file", at("token").to_str().unwrap(), "--label", "linux", "--name", name, "--root"]
                .into_iter()
                .chain([root.to_str().unwrap()])
                .map(str::to_owned)
                .collect();
        let mut process = Self { root, arguments, shell, path, log: at("log"), child: None, directory };
        process.begin();
        Some(process)
    }

    /// Starts it, again after it has ended.
    pub(crate) fn begin(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/muster-poll");
        let mut command = Command::new(&self.shell[0]);
        command.args(&self.shell[1..]).arg(script).args(&self.arguments);
        command.env_clear().env("PATH", &self.path).env("HOME", self.directory.path()).env("no_proxy", "*");
        self.child = Some(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child);
        }
    }

    /// Ends it as a crash does. What it started goes on.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for PollProcess {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("the log of muster-poll:\n{}", self.log());
        }
    }
}

fn is_running(detail: &Value) -> bool {
    detail["agent"]["launched"].as_str().is_some_and(|launched| launched.starts_with("running (pid "))
}

fn pid(detail: &Value) -> u32 {
    detail["agent"]["launched"].as_str().unwrap().trim_start_matches("running (pid ").trim_end_matches(')').parse().unwrap()
}

async fn until_gone(pid: u32) {
    let gone = async || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(());
    eventually(gone).await.unwrap_or_else(|| panic!("{pid} runs still"));
}

async fn house() -> House {
    let house = House::plan().poll(Duration::from_secs(2)).start().await;
    house.upload("ok").await;
    house.apply("linux", json!({"team": TEAM, "module": "ok", "launch": {"command": ["/bin/sleep", "1000"]}})).await;
    house
}

async fn from_registration_to_the_end(shell: PollShell) {
    let mut house = house().await;
    let Some(mut process) = PollProcess::start(&house, "web-1", shell).await else { return };
    let ready = |detail: &Value| detail["agent"]["state"] == "ready" && is_running(detail);
    let first = pid(&house.until_agent("web-1", ready).await);
    // The server is away for a while: what was launched runs on.
    house.restart().await;
    let again = house.until_agent("web-1", ready).await;
    assert_eq!(pid(&again), first);
    // A crash of the script: its next start ends what it left, and the machine is provisioned again.
    process.kill();
    process.begin();
    until_gone(first).await;
    let second = pid(&house.until_agent("web-1", |detail| ready(detail) && pid(detail) != first).await);
    // Another release is brought to it.
    house.apply("linux", json!({"team": TEAM, "module": "ok", "launch": {"command": ["/bin/sleep", "2000"]}})).await;
    until_gone(second).await;
    let third = pid(&house.until_agent("web-1", |detail| ready(detail) && pid(detail) != second).await);
    house.admin().post("/v1/agents/web-1/drain", json!({"reason": "maintenance"})).await.expect(200);
    until_gone(third).await;
    house.admin().post("/v1/agents/web-1/provision", json!({})).await.expect(200);
    let fourth = pid(&house.until_agent("web-1", |detail| ready(detail) && pid(detail) != third).await);
    // Told to end, it ends what it launched.
    process.stop();
    until_gone(fourth).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_dash_and_curl_is_provisioned_and_keeps_what_was_launched_while_the_server_is_away() {
    from_registration_to_the_end(PollShell::Dash).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_busybox_and_curl_is_provisioned_and_keeps_what_was_launched_while_the_server_is_away() {
    from_registration_to_the_end(PollShell::Busybox).await;
}

/// The text of a file between two lines that say so.
fn shared(path: &str, with: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let (_, rest) = text.split_once(&format!("# --- shared with {with}: begin ---\n")).unwrap();
    rest.split_once(&format!("# --- shared with {with}: end ---\n")).unwrap().0.trim().to_owned()
}

#[test]
fn what_the_script_and_the_steps_both_need_is_one_text() {
    let steps = shared("src/link/shell/steps.sh", "muster-poll");
    assert!(steps.len() > 1000);
    assert_eq!(steps, shared("scripts/muster-poll", "steps.sh"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_polls_is_answered_in_lines_and_has_its_own_steps_alone() {
    let house = House::plan().poll(Duration::from_secs(600)).start().await;
    let token = house.join_token(&["linux"]).await;
    let mut mine = claims("web-1", &["linux"]);
    mine["link"] = "poll".into();
    let headers = [("accept", "text/plain"), ("content-type", "application/json")];
    let admitted = house.client(Some(&token)).send(Method::POST, "/v1/register", &headers, mine.to_string()).await;
    assert_eq!(admitted.status, 201);
    let text = admitted.text;
    let value = |word: &str| text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')).unwrap().to_owned();
    assert_eq!((value("state"), value("reason")), ("registered".into(), "it registered".into()));
    assert!(value("poll_after_ms").parse::<u64>().unwrap() > 100_000);
    let machine = house.client(Some(&value("credential")));
    // The first poll opens the line, on which the first step waits.
    let poll = async |steps: &str| machine.send(Method::GET, "/v1/poll", &[("muster-steps", steps)], "").await;
    let handed = poll("none").await;
    assert_eq!(handed.status, 200);
    let step = handed.headers["muster-step"].to_str().unwrap().to_owned();
    assert_eq!(handed.headers["muster-sha256"].to_str().unwrap(), Digest::of(handed.text.as_bytes()).to_string());
    assert_eq!((&handed.headers["muster-input"], &handed.headers["muster-out-max"]), (&"0".parse().unwrap(), &"65536".parse().unwrap()));
    assert_eq!(poll("none").await.headers["muster-step"].to_str().unwrap(), step, "its answer was lost");
    for odd in ["x", "1;2", "-1", "99999999999999999999999"] {
        assert_eq!(poll(odd).await.problem(400)["code"], "steps");
    }
    machine.get(&format!("/v1/poll/{step}/input")).await.problem(404);
    let put = async |what: &str, bytes: usize| machine.send(Method::PUT, &format!("/v1/poll/{step}/{what}"), &[], vec![b'x'; bytes]).await;
    put("out", 65537).await.problem(413);
    put("err", 65537).await.problem(413);
    assert_eq!((put("out", 0).await.status, put("err", 65536).await.status), (204, 204));
    // Another agent, also one that polls, has nothing to do with it.
    let other = house.register("web-2", &["linux"]).await;
    assert_eq!(other.client.get("/v1/poll").await.problem(409)["code"], "link");
    mine["name"] = "web-3".into();
    let third = house.client(Some(&token)).post("/v1/register", mine).await.expect(201);
    let third = house.client(third["credential"].as_str());
    for stranger in [&other.client, &third] {
        let taken = stranger.post(&format!("/v1/poll/{step}/done?status=0"), json!({})).await;
        assert!([404, 409].contains(&taken.status), "{}", taken.status);
    }
    for odd in ["", "?status=", "?status=x", "?status=1&status=2", "?status=99999999999"] {
        machine.post(&format!("/v1/poll/{step}/done{odd}"), json!({})).await.problem(400);
    }
    assert_eq!(machine.post(&format!("/v1/poll/{step}/done?status=48"), json!({})).await.status, 204);
    machine.post(&format!("/v1/poll/{step}/done?status=48"), json!({})).await.problem(404);
    // A machine that can not do its first step is not provisioned, and a person sees why.
    let told = house.until_agent("web-1", |detail| detail["agent"]["reason"].as_str().unwrap().contains("by steps")).await;
    assert_eq!(told["agent"]["session"], false, "{told}");
}
