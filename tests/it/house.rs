//! A whole server in this process, on a port and in a directory of its own, and whoever talks to it.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant, UNIX_EPOCH};

use muster::bits::contents::read_spot;
use muster::bits::pack::{Packer, write_end};
use muster::bits::scan::scan;
use muster::config::Config;
use muster::link::Link;
use muster::server::Server;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName};
use serde_json::{Value, json};
use tempfile::TempDir;

/// For how long something that is to happen is waited for.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// The pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// The team of what the fixture makes, unless a test says otherwise.
pub(crate) const TEAM: &str = "media";

/// The program that compiles what is uploaded.
fn muster_program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_muster"))
}

/// A server and its directory.
pub(crate) struct House {
    _directory: TempDir,
    config: Config,
    server: Option<Server>,
    admin: Client,
}

/// What a test may set before a server starts.
pub(crate) struct Plan {
    config: Config,
}

impl Plan {
    /// Sets how often agents poll.
    pub(crate) fn poll(mut self, interval: Duration) -> Self {
        self.config.register.poll_seconds = interval.as_secs_f64();
        self
    }

    /// Sets how long a lost agent is kept.
    pub(crate) fn lost_kept_seconds(mut self, seconds: u64) -> Self {
        self.config.register.lost_kept_seconds = seconds;
        self
    }

    /// Sets anything.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Starts the server.
    pub(crate) async fn start(self) -> House {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap());
        let directory = TempDir::new().unwrap();
        let mut config = self.config;
        config.data = directory.path().join("data");
        let server = Server::start(&config, muster_program()).await.unwrap();
        // So that it is found again after a restart.
        config.listen = server.address;
        let secret = std::fs::read_to_string(&server.admin_token).unwrap();
        let admin = Client::new(server.address, Some(secret.trim()));
        House { _directory: directory, config, server: Some(server), admin }
    }
}

impl House {
    /// Starts a server whose agents poll every 100 ms.
    pub(crate) async fn start() -> Self {
        Self::plan().start().await
    }

    /// A server to be started: few runs at once, agents that poll every 100 ms.
    pub(crate) fn plan() -> Plan {
        let mut config = Config { listen: (Ipv4Addr::LOCALHOST, 0).into(), ..Config::default() };
        config.runs.at_once = 8;
        Plan { config }.poll(Duration::from_millis(100))
    }

    /// Where the server listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.config.listen)
    }

    /// The server's data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.config.data
    }

    /// Stops the server and starts it again, on the same directory and port.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.server = Some(Server::start(&self.config, muster_program()).await.unwrap());
    }

    /// Stops the server.
    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await.unwrap();
        }
    }

    /// The open link of an agent.
    pub(crate) fn link(&self, name: &str) -> Option<Arc<dyn Link>> {
        self.server.as_ref().unwrap().roster.by_name(&name.parse().unwrap())?.link()
    }

    /// The admin.
    pub(crate) fn admin(&self) -> &Client {
        &self.admin
    }

    /// Somebody with a credential, or with none.
    pub(crate) fn client(&self, credential: Option<&str>) -> Client {
        Client::new(self.config.listen, credential)
    }

    /// Makes a token; its secret.
    pub(crate) async fn token(&self, asked: Value) -> String {
        let made = self.admin.post("/v1/tokens", asked).await.done();
        made["secret"].as_str().unwrap().to_owned()
    }

    /// A member of a team.
    pub(crate) async fn team(&self, team: &str) -> Client {
        let token = self.token(json!({"kind": "team", "team": team})).await;
        self.client(Some(&token))
    }

    /// A join token for agents of these labels.
    pub(crate) async fn join_token(&self, labels: &[&str]) -> String {
        self.token(json!({"kind": "join", "labels": labels})).await
    }

    /// Registers an agent that does nothing but what the test makes it do.
    pub(crate) async fn register(&self, name: &str, labels: &[&str]) -> BareAgent {
        let token = self.join_token(labels).await;
        let answer = self.client(Some(&token)).post("/v1/register", claims(name, labels)).await;
        let registered = answer.expect(201);
        let credential = registered["credential"].as_str().unwrap().to_owned();
        let id = registered["agent"]["id"].as_str().unwrap().to_owned();
        BareAgent { client: self.client(Some(&credential)), claims: claims(name, labels), credential, id }
    }

    /// Uploads a guest under its own name for the team; its digest.
    pub(crate) async fn upload(&self, guest: &str) -> String {
        self.upload_as(guest, guest, TEAM).await
    }

    /// Uploads a guest; its digest.
    pub(crate) async fn upload_as(&self, guest: &str, name: &str, team: &str) -> String {
        let path = format!("/v1/modules?name={name}&team={team}");
        let module = crate::guests::component(guest);
        let answer = self.admin.send(Method::POST, &path, &[("content-type", "application/wasm")], module).await;
        answer.done()["digest"].as_str().unwrap().to_owned()
    }

    /// Makes a version of the bundle `tools` of the team from paths and contents; its version.
    pub(crate) async fn push_bundle(&self, files: &[(&str, &[u8])]) -> String {
        self.push_bundle_as("tools", TEAM, files).await
    }

    /// Makes a version of a bundle from paths and contents; its version.
    pub(crate) async fn push_bundle_as(&self, name: &str, team: &str, files: &[(&str, &[u8])]) -> String {
        let directory = TempDir::new().unwrap();
        for (path, content) in files {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            // So that the same files are the same version, whenever they are written.
            std::fs::File::options().append(true).open(path).unwrap().set_modified(UNIX_EPOCH).unwrap();
        }
        let opened = cap_std::fs::Dir::open_ambient_dir(directory.path(), cap_std::ambient_authority()).unwrap();
        let (manifest, spots) = scan(&opened, &mut |_| {}).unwrap();
        let (mut packer, mut pack, mut content) = (Packer::new().unwrap(), bytes::BytesMut::new(), Vec::new());
        for (digest, _) in manifest.contents() {
            read_spot(&opened, &spots[digest], &mut content).unwrap();
            packer.pack(*digest, &content).unwrap().write(&mut pack);
        }
        write_end(&mut pack);
        self.admin.send(Method::POST, "/v1/contents", &[], pack.to_vec()).await.expect(200);
        let path = format!("/v1/bundles/{name}?team={team}");
        self.admin.send(Method::PUT, &path, &[], manifest.to_bytes()).await.done()["version"].as_str().unwrap().to_owned()
    }

    /// Applies a policy; what came of it.
    pub(crate) async fn apply(&self, label: &str, policy: Value) -> Value {
        self.admin.put(&format!("/v1/labels/{label}"), policy).await.expect(200)
    }

    /// Waits until an agent is as wanted; it as it is then, with its events and runs.
    pub(crate) async fn until_agent(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.until(&format!("/v1/agents/{name}"), wanted).await
    }

    /// Waits until an agent is in a state.
    pub(crate) async fn until_state(&self, name: &str, state: &str) -> Value {
        self.until_agent(name, |detail| detail["agent"]["state"] == state).await
    }

    /// Waits until what the admin gets at a path is as wanted.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let last = std::cell::RefCell::new(Value::Null);
        let look = async || {
            let answer = self.admin.get(path).await;
            let fits = answer.status == 200 && wanted(&answer.body);
            *last.borrow_mut() = answer.body.clone();
            fits.then_some(answer.body)
        };
        match eventually(look).await {
            Some(found) => found,
            None => panic!("{path} is not as wanted after {} s, but {:#}", WAIT_MAX.as_secs(), last.borrow()),
        }
    }

    /// Starts the program `muster-agent` with a root of its own.
    pub(crate) async fn agent_process(&self, name: &str, labels: &[&str]) -> AgentProcess {
        let token = self.join_token(labels).await;
        let directory = TempDir::new().unwrap();
        let (token_file, root, log) = (directory.path().join("token"), directory.path().join("root"), directory.path().join("log"));
        std::fs::write(&token_file, token).unwrap();
        std::fs::create_dir(&root).unwrap();
        let mut agent = AgentProcess {
            url: self.url(),
            name: name.into(),
            labels: Vec::new(),
            token_file,
            root,
            log,
            image: None,
            child: None,
            _directory: directory,
        };
        agent.labels = labels.iter().map(ToString::to_string).collect();
        agent.start();
        agent
    }
}

/// Waits until something is there; none if it does not come.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> Option<T> {
    let until = Instant::now() + WAIT_MAX;
    loop {
        let found = look().await;
        if found.is_some() || Instant::now() > until {
            return found;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// What an agent says of itself.
pub(crate) fn claims(name: &str, labels: &[&str]) -> Value {
    json!({"name": name, "labels": labels, "executors": 1, "root": "/srv/agent", "os": "linux", "arch": "x86_64", "attributes": {}})
}

/// An agent without a program: a credential, and what it says of itself.
pub(crate) struct BareAgent {
    pub(crate) client: Client,
    pub(crate) claims: Value,
    pub(crate) credential: String,
    pub(crate) id: String,
}

impl BareAgent {
    /// Polls.
    pub(crate) async fn poll(&self) -> Answer {
        self.client.post("/v1/register", self.claims.clone()).await
    }
}

/// Somebody who talks to the server.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    address: SocketAddr,
    credential: Option<String>,
}

/// What the server answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    /// The text as JSON; null if it is none.
    pub(crate) body: Value,
    what: String,
}

impl Client {
    fn new(address: SocketAddr, credential: Option<&str>) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(WAIT_MAX).build().unwrap();
        Self { http, address, credential: credential.map(ToOwned::to_owned) }
    }

    /// Sends a request. `path` goes as it is.
    pub(crate) async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
        let what = format!("{method} {}", path.chars().take(200).collect::<String>());
        let mut request = self.http.request(method, format!("http://{}{path}", self.address)).body(body);
        if let Some(credential) = &self.credential {
            request = request.bearer_auth(credential);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = String::from_utf8_lossy(&response.bytes().await.unwrap()).into_owned();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Answer { status, headers, text, body, what }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }
}

impl Answer {
    /// The body of an answer that is to have this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}: {}", self.what, self.text);
        self.body
    }

    /// The body of an answer that says that it was done.
    #[track_caller]
    pub(crate) fn done(self) -> Value {
        assert!((200..300).contains(&self.status), "{}: {} {}", self.what, self.status, self.text);
        self.body
    }

    /// The body of an answer that is to be a problem with this status, and with all that problems have.
    #[track_caller]
    pub(crate) fn problem(self, status: u16) -> Value {
        let what = format!("{}: {} {:?} {}", self.what, self.status, self.headers, self.text);
        assert_eq!(self.status, status, "{what}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{what}");
        assert_eq!(self.body["status"], status, "{what}");
        for field in ["title", "code", "detail", "request"] {
            assert!(self.body[field].as_str().is_some_and(|text| !text.is_empty()), "no {field} in {what}");
        }
        assert_eq!(self.body["request"], self.header("x-request-id"), "{what}");
        self.body
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name.parse::<HeaderName>().unwrap()).map_or("", |value| value.to_str().unwrap())
    }
}

/// Asks a program to end, and waits until it has; it is killed if it does not.
pub(crate) fn end(mut child: Child) {
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).ok();
    let until = Instant::now() + WAIT_MAX;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
        std::thread::sleep(LOOK_PAUSE);
    }
    child.kill().ok();
    child.wait().ok();
}

/// The program `muster-agent`, which is ended with this.
pub(crate) struct AgentProcess {
    pub(crate) root: PathBuf,
    url: String,
    name: String,
    labels: Vec<String>,
    token_file: PathBuf,
    log: PathBuf,
    /// What it says from its next start on that it was made from.
    pub(crate) image: Option<String>,
    child: Option<Child>,
    _directory: TempDir,
}

impl AgentProcess {
    /// Starts the program, again after it was stopped.
    pub(crate) fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
        command.args(["--server", &self.url, "--name", &self.name, "--log", "debug"]);
        command.arg("--token-file").arg(&self.token_file).arg("--root").arg(&self.root);
        for label in &self.labels {
            command.args(["--label", label]);
        }
        if let Some(image) = &self.image {
            command.args(["--image", image]);
        }
        command.env_remove("MUSTER_SERVER").env_remove("MUSTER_LOG").env("NO_PROXY", "*");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// The program's id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Asks the program to end, and waits until it has.
    pub(crate) fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child);
        }
    }

    /// Ends the program as a crash does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// What the program logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("the log of agent {}:\n{}", self.name, self.log());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_provisions_an_agent_with_the_module_of_its_label_and_both_outlive_a_restart() {
    let mut house = House::start().await;
    house.upload("ok").await;
    house.push_bundle(&[("bin/tool", b"one"), ("readme", b"two")]).await;
    house.apply("linux", json!({"team": TEAM, "module": "ok", "bundles": ["tools"]})).await;
    let mut agent = house.agent_process("web-1", &["linux"]).await;
    let detail = house.until_state("web-1", "ready").await;
    assert_eq!(detail["agent"]["releases"]["linux"], 1);
    assert_eq!(detail["runs"][0]["verdict"], "provisioned");
    house.restart().await;
    house.until_agent("web-1", |detail| detail["agent"]["state"] == "ready" && detail["agent"]["session"] == true).await;
    assert!(agent.pid() > 0);
    agent.stop();
    house.until_agent("web-1", |detail| detail["agent"]["session"] == false).await;
    agent.start();
    house.until_state("web-1", "ready").await;
    agent.kill();
    house.until_state("web-1", "lost").await;
}
