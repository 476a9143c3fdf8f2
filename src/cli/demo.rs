//! `muster demo`: the whole job on this machine in a temporary directory, each step seen to have happened.
//!
//! The server, the agents and what they launch are real; the agents are processes of this program under the name `muster-agent`.

use std::fmt;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Method;
use serde::Serialize;
use tokio::process::{Child, Command};

use crate::agent::Signals;
use crate::agent::supervise::end_leftover;
use crate::api::{Agent, AgentState, Applied, Bundle, Explanation, Module, Run, TokenAsked, TokenKind, TokenMade};
use crate::cli::bundle::push::push;
use crate::cli::client::Client;
use crate::cli::output::Output;
use crate::cli::{CliError, doing, program};
use crate::config::Config;
use crate::limits::{DEMO_STEP_MAX, STOP_GRACE};
use crate::machine::root::Root;
use crate::names::{BundleName, LabelName, TeamName};
use crate::policy::parse_file;
use crate::server::Server;

/// The modules of `examples/tools`, without and with the feature `verify`.
const MODULES: [&[u8]; 2] = [include_bytes!("../../examples/tools/tools.wasm"), include_bytes!("../../examples/tools/tools-verify.wasm")];
/// The files of the bundle, from `examples/tools/tree`.
const FILES: [(&str, &[u8], u32); 3] = [
    ("bin/ci-agent", include_bytes!("../../examples/tools/tree/bin/ci-agent"), 0o755),
    ("etc/ci-agent.conf", include_bytes!("../../examples/tools/tree/etc/ci-agent.conf"), 0o644),
    ("share/doc/README", include_bytes!("../../examples/tools/tree/share/doc/README"), 0o644),
];
/// Bytes of the bundle's one large file, which does not change between the versions.
const LARGE_BYTES: usize = 8 * 1024 * 1024;
const AGENTS: [&str; 3] = ["agent-1", "agent-2", "agent-3"];
const LABEL: &str = "linux";
const POLICY: &str = r#"
[label.linux]
team = "demo"
module = "tools"
bundles = ["tools"]
settings = { "env.LANG" = "C" }

[label.linux.grants]
run = ["tools/bin/ci-agent"]
write = ["tools/**"]
"#;

/// What `muster demo` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leaves it running, and says what to try next
    #[arg(long)]
    keep: bool,
}

/// Does the whole job on this machine.
pub(crate) async fn run(args: Args, json: bool) -> Result<(), CliError> {
    let mut output = Output::standard(json);
    // From here on a signal ends the demo in good order: agents and what they launched would outlive it otherwise.
    let mut signals = Signals::new().map_err(|error| CliError::failed("listen for signals", error))?;
    let directory = std::env::temp_dir().join(format!("muster-demo-{}", uuid::Uuid::new_v4().simple()));
    let made = std::fs::DirBuilder::new().mode(0o700).create(&directory);
    made.map_err(|error| CliError::failed(format!("make {}", directory.display()), error))?;
    let mut demo =
        Demo { began: Instant::now(), step: Instant::now(), directory, agents: Vec::new(), output: &mut output, steps: Vec::new() };
    let shown = demo.show(args.keep, &mut signals).await;
    let ended = demo.end().await;
    shown.and(ended)
}

struct Demo<'a> {
    began: Instant,
    step: Instant,
    directory: PathBuf,
    agents: Vec<Child>,
    output: &'a mut Output,
    steps: Vec<Step>,
}

/// One step that happened.
#[derive(Debug, Serialize)]
struct Step {
    step: String,
    milliseconds: u64,
}

/// What the demo says at its end, as JSON.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    steps: &'a [Step],
    agents: &'a [Agent],
    runs: &'a [Run],
}

impl Demo<'_> {
    async fn show(&mut self, keep: bool, signals: &mut Signals) -> Result<(), CliError> {
        let config = Config { data: self.directory.join("server"), listen: ([127, 0, 0, 1], 0).into(), ..Config::default() };
        let config = Config { register: crate::config::Register { poll_seconds: 0.5, ..config.register.clone() }, ..config };
        let server = Server::start(&config, program()?)
            .await
            .map_err(|error| CliError::Failed { what: "start the server".into(), source: error })?;
        let url = format!("http://{}", server.address);
        self.done(format!("a server runs at {url}"))?;
        let token = std::fs::read_to_string(&server.admin_token).map_err(|error| CliError::failed("read the admin's token", error))?;
        let client = Client::new(&url, token.trim()).map_err(doing("reach the server"))?;
        let told = tokio::select! {
            told = self.story(&client, &url) => told,
            () = signals.next() => Err(failed("go on with the demo", "it was told to end".into())),
        };
        if told.is_ok() && keep {
            self.keep(&url, &server.admin_token)?;
            signals.next().await;
        }
        // Agents first: a server that stops leaves them looking for it.
        self.stop_agents().await;
        let stopped = server.stop().await.map_err(|error| CliError::Failed { what: "stop the server".into(), source: error });
        told.and(stopped)
    }

    async fn story(&mut self, client: &Client, url: &str) -> Result<(), CliError> {
        let first = self.upload(client, 0).await?;
        self.done(format!("module tools is uploaded and compiled: {} KiB, @{}", first.size_bytes / 1024, short(&first.digest)))?;
        let bundle = self.push(client, 1).await?;
        self.done(format!("bundle tools is pushed: {} files, {} bytes, @{}", bundle.files, bundle.bytes, short(&bundle.version)))?;
        let applied = self.apply(client).await?;
        self.done(format!("label {LABEL} has its release {}", applied.release.unwrap_or_default()))?;

        self.start_agents(client, url).await?;
        let agents = self.agents_where(client, |agent| agent.state == AgentState::Ready && runs(agent)).await?;
        self.done(format!("{} agents registered, were provisioned, and run what was launched", agents.len()))?;
        self.check_tree(1)?;
        let runs = self.runs(client).await?;
        let (sent, saved) = totals(&runs, 1);
        self.done(format!("each holds all of the bundle: {sent} bytes sent, {saved} were there"))?;

        let second = self.upload(client, 1).await?;
        let bundle = self.push(client, 2).await?;
        self.done(format!("the next versions are there: module @{}, bundle @{}", short(&second.digest), short(&bundle.version)))?;
        let applied = self.apply(client).await?;
        let release = applied.release.unwrap_or_default();
        self.done(format!("swapped while the agents poll, release {release} is in force: {}", applied.changes.join("; ")))?;
        let at = |agent: &Agent| agent.releases.get(LABEL) == Some(&release) && agent.state == AgentState::Ready && self::runs(agent);
        self.agents_where(client, at).await?;
        self.done(format!("all agents hold release {release} and run what was launched anew"))?;
        self.check_tree(2)?;
        let runs = self.runs(client).await?;
        let (sent, saved) = totals(&runs, release);
        if sent == 0 || sent >= saved {
            return Err(failed("send only what changed", format!("{sent} bytes were sent, {saved} were there")));
        }
        self.done(format!("only what changed was sent: {sent} bytes, {saved} were there"))?;

        if let Some(agent) = self.agents.last_mut() {
            agent.kill().await.map_err(|error| CliError::failed("kill an agent", error))?;
        }
        let last = AGENTS.last().copied().unwrap_or_default();
        // What it had launched would go with its machine; here it has to be ended.
        let root = Root::open(&self.root(last), &[]).map_err(|error| CliError::failed("open the killed agent's root", error))?;
        end_leftover(&root, STOP_GRACE).await;
        self.done(format!("{last} is killed"))?;
        self.agents_where(client, |agent| (agent.state == AgentState::Lost) == (agent.name == last)).await?;
        let explained: Explanation = client.get(&["agents", last, "explain"], &[]).await.map_err(doing("have it explained"))?;
        self.done(format!("and missed: {}", explained.summary))?;
        self.table(client).await
    }

    async fn upload(&mut self, client: &Client, which: usize) -> Result<Module, CliError> {
        let bytes = MODULES.get(which).copied().unwrap_or_default();
        let body = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(bytes))]);
        let query = [("name", Some("tools".to_owned())), ("team", Some("demo".to_owned()))];
        client.upload(Method::POST, &["modules"], &query, Some(bytes.len() as u64), body).await.map_err(doing("upload the module"))
    }

    async fn push(&mut self, client: &Client, version: u32) -> Result<Bundle, CliError> {
        let tree = self.directory.join("tools");
        write_tree(&tree, version).map_err(|error| CliError::failed("write the bundle's files", error))?;
        let name: BundleName = "tools".parse().map_err(|error| CliError::failed("name the bundle", error))?;
        let team: TeamName = "demo".parse().map_err(|error| CliError::failed("name the team", error))?;
        Ok(push(&tree, &name, Some(&team), client).await?.bundle)
    }

    async fn apply(&mut self, client: &Client) -> Result<Applied, CliError> {
        let policies = parse_file(POLICY).map_err(|error| failed("read the demo's policy", error))?;
        let policy = policies.into_values().next();
        client.send(Method::PUT, &["labels", LABEL], &[], &policy).await.map_err(doing("apply the policy"))
    }

    async fn start_agents(&mut self, client: &Client, url: &str) -> Result<(), CliError> {
        let label: LabelName = LABEL.parse().map_err(|error| CliError::failed("name the label", error))?;
        let asked = TokenAsked { kind: TokenKind::Join, team: None, labels: vec![label] };
        let made: TokenMade = client.send(Method::POST, &["tokens"], &[], &asked).await.map_err(doing("make a join token"))?;
        let io = |error: std::io::Error| CliError::failed("start the agents", error);
        let token = self.directory.join("join.token");
        std::fs::write(&token, made.secret).map_err(io)?;
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
        let program = self.directory.join("muster-agent");
        std::os::unix::fs::symlink(std::env::current_exe().map_err(io)?, &program).map_err(io)?;
        for name in AGENTS {
            let log = std::fs::File::create(self.directory.join(format!("{name}.log"))).map_err(io)?;
            let mut agent = Command::new(&program);
            agent.args(["--server", url, "--label", LABEL, "--name", name]).arg("--token-file").arg(&token);
            agent.arg("--root").arg(self.root(name)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
            self.agents.push(agent.spawn().map_err(io)?);
        }
        Ok(())
    }

    fn root(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Waits until every agent passes.
    async fn agents_where(&mut self, client: &Client, passes: impl Fn(&Agent) -> bool) -> Result<Vec<Agent>, CliError> {
        let deadline = Instant::now() + DEMO_STEP_MAX;
        loop {
            let agents: Vec<Agent> = client.list(&["agents"], &[], None).await.map_err(doing("list the agents"))?;
            if agents.len() == AGENTS.len() && agents.iter().all(&passes) {
                return Ok(agents);
            }
            if Instant::now() > deadline {
                let states: Vec<_> =
                    agents.iter().map(|agent| format!("{}: {}: {}", agent.name, agent.state.as_str(), agent.reason)).collect();
                return Err(failed("see the agents come to where they should be", states.join("; ")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn runs(&self, client: &Client) -> Result<Vec<Run>, CliError> {
        client.list(&["runs"], &[], None).await.map_err(doing("list the runs"))
    }

    /// Sees that the files are on the agents, as they were pushed.
    fn check_tree(&self, version: u32) -> Result<(), CliError> {
        for name in AGENTS {
            let path = self.root(name).join("tools/VERSION");
            let text = std::fs::read_to_string(&path).map_err(|error| CliError::failed(format!("read {}", path.display()), error))?;
            if text != format!("{version}.0\n") {
                return Err(failed("see the bundle on the agents", format!("{} holds {text:?}", path.display())));
            }
        }
        Ok(())
    }

    async fn table(&mut self, client: &Client) -> Result<(), CliError> {
        let agents: Vec<Agent> = client.list(&["agents"], &[], None).await.map_err(doing("list the agents"))?;
        let runs = self.runs(client).await?;
        if self.output.json() {
            return self.output.value(&Summary { steps: &self.steps, agents: &agents, runs: &runs });
        }
        self.output.line("")?;
        self.output.listing(&agents, ["AGENT", "STATE", "RELEASE", "RUNS", "SENT", "SAVED", "WHY"], |output, agent| {
            let own: Vec<_> = runs.iter().filter(|run| run.agent == agent.name).collect();
            let release = agent.releases.get(LABEL).map(ToString::to_string).unwrap_or_default();
            let sent = own.iter().map(|run| run.bytes_sent).sum();
            let saved = own.iter().map(|run| run.bytes_saved).sum();
            let state = agent.state.as_str().to_owned();
            [agent.name.clone(), state, release, own.len().to_string(), output.bytes(sent), output.bytes(saved), agent.reason.clone()]
        })?;
        let took = self.began.elapsed();
        self.output.line("")?;
        self.output.line(&format!("All of it happened, in {:.2} s.", took.as_secs_f64()))
    }

    fn keep(&mut self, url: &str, token: &Path) -> Result<(), CliError> {
        let directory = self.directory.display().to_string();
        self.output.line("")?;
        self.output.line(&format!("It goes on running in {directory}. Try, in another terminal:"))?;
        let with = format!("--server {url} --token-file {}", token.display());
        for command in ["agent ls", "agent explain agent-3", "run ls", "label history linux", "label rollback linux"] {
            self.output.line(&format!("  muster {with} {command}"))?;
        }
        self.output.line("Ctrl-C ends it.")
    }

    fn done(&mut self, step: impl fmt::Display) -> Result<(), CliError> {
        let milliseconds = u64::try_from(self.step.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.step = Instant::now();
        self.steps.push(Step { step: step.to_string(), milliseconds });
        if self.output.json() {
            return Ok(());
        }
        self.output.line(&format!("{milliseconds:6} ms  {step}"))
    }

    async fn stop_agents(&mut self) {
        for agent in &mut self.agents {
            if let Some(pid) = agent.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
                // One that has ended meanwhile is as good.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        for mut agent in self.agents.drain(..) {
            if tokio::time::timeout(DEMO_STEP_MAX, agent.wait()).await.is_err() {
                let _ = agent.kill().await;
            }
        }
    }

    async fn end(mut self) -> Result<(), CliError> {
        self.stop_agents().await;
        // What was launched by an agent that could not end it.
        for name in AGENTS.iter().filter(|name| self.root(name).exists()) {
            if let Ok(root) = Root::open(&self.root(name), &[]) {
                end_leftover(&root, STOP_GRACE).await;
            }
        }
        std::fs::remove_dir_all(&self.directory).map_err(|error| CliError::failed(format!("remove {}", self.directory.display()), error))
    }
}

fn write_tree(tree: &Path, version: u32) -> std::io::Result<()> {
    for (path, content, mode) in FILES {
        let path = tree.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(tree))?;
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    std::fs::write(tree.join("VERSION"), format!("{version}.0\n"))?;
    std::fs::create_dir_all(tree.join("lib"))?;
    std::fs::create_dir_all(tree.join("empty"))?;
    // Stands for the large, seldom changing part of a team's tools: a JDK, say.
    let large: Vec<u8> = (0..LARGE_BYTES as u64 / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    std::fs::write(tree.join("lib/runtime.bin"), large)?;
    match std::os::unix::fs::symlink("ci-agent", tree.join("bin/agent")) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn failed(what: &str, why: String) -> CliError {
    CliError::failed(what, why)
}

fn runs(agent: &Agent) -> bool {
    agent.launched.as_deref().is_some_and(|launched| launched.starts_with("running"))
}

/// The bytes that the runs of a release sent, and those that they found there.
fn totals(runs: &[Run], release: i64) -> (u64, u64) {
    let runs = runs.iter().filter(|run| run.release == release);
    runs.fold((0, 0), |(sent, saved), run| (sent + run.bytes_sent, saved + run.bytes_saved))
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
