//! Inbound agents: the handshake, and the program that stands for `agent.jar`.

use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};

use super::{Ask as _, Caller};
use crate::jenkins::agents::Inbound;
use crate::jenkins::config::NodeConfig;
use crate::jenkins::door::Phase;
use crate::jenkins::jar::{java, python};
use crate::jenkins::{Jenkins, Plan, Version};

/// A process that runs the jar which a Jenkins serves.
struct Process {
    child: Child,
    log: BufReader<ChildStderr>,
    directory: TempDir,
}

impl Process {
    /// Starts it for the node `n1`, with these arguments too. `SECRET`, `ROOT` and `DIR` stand for what they say.
    fn start(jenkins: &Jenkins, arguments: &[&str]) -> Self {
        Self::with(jenkins, |jar| (python().to_owned(), vec!["-S".into(), "-E".into(), jar]), arguments)
    }

    fn with(jenkins: &Jenkins, program: impl FnOnce(String) -> (PathBuf, Vec<String>), arguments: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("agent.jar"), jenkins.agent_jar()).unwrap();
        std::fs::write(path("secret"), format!("{}\n", jenkins.secret("n1"))).unwrap();
        let (program, before) = program(path("agent.jar"));
        let fill = |argument: &&str| {
            let argument = argument.replace("ROOT", &jenkins.url()).replace("SECRET", &jenkins.secret("n1"));
            argument.replace("DIR", directory.path().to_str().unwrap())
        };
        let mut child = Command::new(program);
        child.args(before).args(arguments.iter().map(fill)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = child.kill_on_drop(true).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log, directory }
    }

    fn kill(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// Waits until it says something.
    async fn says(&mut self, text: &str) {
        let mut all = String::new();
        while !all.contains(text) {
            assert!(self.log.read_line(&mut all).await.unwrap() > 0, "it never said `{text}`, but: {all}");
        }
    }

    /// Its exit status, and the rest of what it said.
    async fn end(&mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.log.read_to_string(&mut log).await.unwrap();
        (self.child.wait().await.unwrap().code(), log)
    }
}

const USUAL: [&str; 9] = ["-url", "ROOT", "-secret", "@DIR/secret", "-name", "n1", "-webSocket", "-workDir", "DIR/work"];

/// A Jenkins with the node `n1`.
async fn with_node(plan: Plan) -> Jenkins {
    let jenkins = Jenkins::start(plan).await;
    jenkins.put(NodeConfig::new("n1"));
    jenkins
}

#[tokio::test]
async fn a_handshake_is_refused_by_its_reason() {
    let jenkins = with_node(Plan::default()).await;
    assert_eq!(jenkins.connect("n2").await.err(), Some(400));
    assert_eq!(Inbound::connect(&jenkins.url(), "n1", &jenkins.secret("n2")).await.err(), Some(403));
    let _first = jenkins.connect("n1").await.unwrap();
    assert_eq!(jenkins.connect("n1").await.err(), Some(500));
    assert!(jenkins.until_node("n1", |node| node.is_online).await.connections == 1);
    let anonymous = Caller::anonymous(&jenkins);
    let told = anonymous.get("wsagents/").await;
    assert!(told.is(400).text.contains("This endpoint is only for use from agent.jar in WebSocket mode"));
    Caller::muster(&jenkins).get("tcpSlaveAgentListener/").await.is(404);
    jenkins.enter(Phase::Refused).await;
    assert_eq!(jenkins.connect("n1").await.err(), Some(0));
}

#[tokio::test]
async fn a_handshake_that_is_no_websocket_leaves_the_place_free() {
    let jenkins = with_node(Plan::default()).await;
    let anonymous = Caller::anonymous(&jenkins);
    let request = anonymous.request(reqwest::Method::GET, "wsagents/").header("Node-Name", "n1").header("Secret-Key", jenkins.secret("n1"));
    let answer = request.header("X-Remoting-Capability", "x").ask().await;
    assert!((400..500).contains(&answer.status));
    jenkins.connect("n1").await.unwrap();
}

#[tokio::test]
async fn an_agent_process_is_online_until_sigterm_and_leaves_no_cause() {
    let jenkins = with_node(Plan::default()).await;
    let mut agent = Process::start(&jenkins, &USUAL);
    agent.says("Connected").await;
    jenkins.until_node("n1", |node| node.is_online).await;
    assert!(agent.directory.path().join("work/remoting/jarCache").is_dir());
    agent.kill(Signal::TERM);
    assert_eq!(agent.end().await.0, Some(143));
    let node = jenkins.until_node("n1", |node| !node.is_connected).await;
    assert_eq!(node.cause, None);
}

#[tokio::test]
async fn an_agent_process_that_is_killed_leaves_a_broken_connection() {
    let jenkins = with_node(Plan::default()).await;
    let agent = Process::start(&jenkins, &USUAL);
    jenkins.until_node("n1", |node| node.is_online).await;
    agent.kill(Signal::KILL);
    let node = jenkins.until_node("n1", |node| !node.is_connected).await;
    assert_eq!(node.cause.unwrap().class(), "hudson.slaves.OfflineCause$ChannelTermination");
}

#[tokio::test]
async fn every_failure_of_the_first_connect_ends_the_process_with_255() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let refused = async |what: &str, arguments: &[&str]| {
        for more in [&[][..], &["-noReconnect"]] {
            let (code, log) = Process::start(&jenkins, &[arguments, more].concat()).end().await;
            assert!(code == Some(255) && log.contains(what), "{what}: {code:?} {log}");
        }
    };
    refused("Response code was not 101: 400", &USUAL).await;
    jenkins.put(NodeConfig::new("n1"));
    let wrong = USUAL.map(|argument| if argument.starts_with('@') { "wrong" } else { argument });
    refused("Response code was not 101: 403", &wrong).await;
    let _first = jenkins.connect("n1").await.unwrap();
    refused("Response code was not 101: 500", &USUAL).await;
    refused("tcpSlaveAgentListener/ is invalid: 404", &USUAL.map(|argument| if argument == "-webSocket" { "-headless" } else { argument }))
        .await;
    refused("FileNotFoundException", &USUAL.map(|argument| if argument.starts_with('@') { "@DIR/none" } else { argument })).await;
    refused("does not exist", &[&USUAL[..], &["-failIfWorkDirIsMissing"]].concat()).await;
    jenkins.enter(Phase::GettingReady).await;
    refused("Response code was not 101: 503", &USUAL).await;
    jenkins.enter(Phase::Refused).await;
    refused("ConnectException", &USUAL).await;
}

#[tokio::test]
async fn an_agent_process_comes_back_as_the_same_process() {
    let jenkins = with_node(Plan::default()).await;
    let agent = Process::start(&jenkins, &USUAL);
    let pid = agent.child.id();
    jenkins.until_node("n1", |node| node.is_online).await;
    jenkins.break_agent("n1");
    jenkins.until_node("n1", |node| node.connections == 2).await;
    jenkins.restart().await;
    jenkins.until_node("n1", |node| node.is_online).await;
    assert_eq!(agent.child.id(), pid);
    Caller::muster(&jenkins).post("computer/n1/doDisconnect", &[]).await.is(302);
    jenkins.until_node("n1", |node| node.is_online && node.connections == 2).await;
}

#[tokio::test]
async fn an_agent_process_whose_node_is_deleted_ends_with_255() {
    let jenkins = with_node(Plan::default()).await;
    let mut agent = Process::start(&jenkins, &USUAL);
    jenkins.until_node("n1", |node| node.is_online).await;
    Caller::muster(&jenkins).post("computer/n1/doDelete", &[]).await.is(302);
    let (code, log) = agent.end().await;
    assert!(code == Some(255) && log.contains("Response code was not 101: 400"), "{code:?} {log}");
}

#[tokio::test]
async fn an_agent_process_that_is_not_to_reconnect_ends_when_the_link_breaks() {
    let jenkins = with_node(Plan::default()).await;
    let mut agent = Process::start(&jenkins, &[&USUAL[..], &["-noReconnect", "-webSocketHeader", "X-A=b"]].concat());
    jenkins.until_node("n1", |node| node.is_online).await;
    jenkins.break_agent("n1");
    assert_eq!(agent.end().await.0, Some(0));
}

#[tokio::test]
async fn the_agent_of_2_372_knows_no_url_and_says_so_with_success() {
    let jenkins = with_node(Plan::default().version(Version::V2_372)).await;
    let (code, log) = Process::start(&jenkins, &USUAL).end().await;
    assert!(code == Some(0) && log.contains("\"-url\" is not a valid option"), "{code:?} {log}");
    for arguments in [
        &["-jnlpUrl", "ROOTcomputer/n1/jenkins-agent.jnlp", "-secret", "SECRET", "-workDir", "DIR/work"][..],
        &["hudson.remoting.jnlp.Main", "-headless", "-url", "ROOT", "-webSocket", "-workDir", "DIR/work", "SECRET", "n1"],
    ] {
        let mut agent = Process::start(&jenkins, arguments);
        jenkins.until_node("n1", |node| node.is_online).await;
        agent.kill(Signal::TERM);
        agent.end().await;
        jenkins.until_node("n1", |node| !node.is_connected).await;
    }
    // That of a later version serves an older controller.
    let newer = with_node(Plan::default()).await;
    let directory = TempDir::new().unwrap();
    let jar = directory.path().join("agent.jar");
    std::fs::write(&jar, newer.agent_jar()).unwrap();
    let _agent = Process::with(&jenkins, |_| (python().to_owned(), vec![jar.to_str().unwrap().to_owned()]), &USUAL);
    jenkins.until_node("n1", |node| node.is_online).await;
}

#[tokio::test]
async fn what_stands_for_java_says_its_version_and_runs_the_jar_as_its_own_process() {
    let jenkins = with_node(Plan::default()).await;
    let directory = TempDir::new().unwrap();
    let java = java(directory.path(), "17.0.15");
    let said = Command::new(&java).arg("-version").output().await.unwrap();
    assert!(said.status.success() && String::from_utf8(said.stderr).unwrap().starts_with("openjdk version \"17.0.15\""));
    let program = |jar| (java.clone(), vec!["-Xmx96m".into(), "-XX:TieredStopAtLevel=1".into(), "-jar".into(), jar]);
    let mut agent = Process::with(&jenkins, program, &USUAL);
    jenkins.until_node("n1", |node| node.is_online).await;
    agent.kill(Signal::TERM);
    assert_eq!(agent.end().await.0, Some(143));
    let (code, log) = Process::with(&jenkins, |_| (java.clone(), vec!["-jar".into(), "none.jar".into()]), &USUAL).end().await;
    assert!(code == Some(1) && log.contains("Unable to access jarfile none.jar"), "{code:?} {log}");
}

#[tokio::test]
async fn what_stands_for_java_reads_a_file_of_arguments_and_shows_nothing_of_it_also_when_it_came_back() {
    let jenkins = with_node(Plan::default()).await;
    let directory = TempDir::new().unwrap();
    let java = java(directory.path(), "17.0.15");
    let file = directory.path().join("arguments");
    let program = |jar: String| {
        let work = format!("{}/a \\\"work\\\"", directory.path().display());
        let arguments =
            ["-jar", &jar, "-url", &jenkins.url(), "-secret", &jenkins.secret("n1"), "-name", "n1", "-webSocket", "-workDir", &work];
        std::fs::write(&file, arguments.map(|argument| format!("\"{argument}\"\n")).concat()).unwrap();
        (java.clone(), vec![format!("@{}", file.display())])
    };
    let agent = Process::with(&jenkins, program, &[]);
    let seen = || String::from_utf8(std::fs::read(format!("/proc/{}/cmdline", agent.child.id().unwrap())).unwrap()).unwrap();
    jenkins.until_node("n1", |node| node.is_online).await;
    assert!(seen().contains("arguments") && !seen().contains(&jenkins.secret("n1")), "{}", seen());
    assert!(directory.path().join("a \"work\"/remoting").is_dir());
    jenkins.break_agent("n1");
    jenkins.until_node("n1", |node| node.connections == 2).await;
    assert!(seen().contains("arguments") && !seen().contains(&jenkins.secret("n1")), "{}", seen());
}

#[tokio::test]
async fn a_node_that_is_not_for_websocket_takes_an_agent_that_is() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let launcher = json!({"stapler-class": "hudson.slaves.JNLPLauncher"});
    Caller::muster(&jenkins).create("n1", json!({"launcher": launcher})).await.is(302);
    assert!(!jenkins.node("n1").unwrap().config.launcher.unwrap().web_socket);
    let _agent = jenkins.connect("n1").await.unwrap();
    jenkins.until_node("n1", |node| node.is_online).await;
}

#[tokio::test]
async fn a_jar_that_is_not_whole_does_not_run() {
    let jenkins = with_node(Plan::default()).await;
    let mut process = Process::with(
        &jenkins,
        |jar| {
            std::fs::write(&jar, &jenkins.agent_jar()[..1000]).unwrap();
            (python().to_owned(), vec![jar])
        },
        &USUAL,
    );
    assert_ne!(process.end().await.0, Some(0));
    assert_eq!(json!(jenkins.node("n1").unwrap().connections), 0);
}
