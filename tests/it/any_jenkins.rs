//! What Muster does with a Jenkins, whichever it is: both that stand in, or a real one that `scripts/try-jenkins` started and that
//! `MUSTER_TRY_JENKINS` tells of.
//!
//! All is seen over REST and nothing from within, and no request is made to fail: for that there are the tests of the stand-in alone.

mod agents;
mod client;
mod life;
mod restart;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use muster::controller::jenkins::jar::AgentJar;
use muster::controller::jenkins::start::{ArgumentFile, Start};
use muster::controller::jenkins::{Created, Executors, Jenkins as Client, Node, NodeName, Settings, Wanted};
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::jenkins::{ADMIN_TOKEN, Jenkins, MUSTER_TOKEN, Plan, Version, jar};

/// The file that tells of a real Jenkins.
const TRY: &str = "MUSTER_TRY_JENKINS";
/// For how long something is waited for: a real one on a busy machine takes its time.
const WAIT_MAX: Duration = Duration::from_secs(120);
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// A real one is shared by all tests, and one that restarts it has it alone.
static REAL: RwLock<()> = RwLock::const_new(());

/// What the file says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Real {
    url: String,
    user: String,
    token_file: PathBuf,
    admin: String,
    admin_token_file: PathBuf,
    /// Its Java.
    java: PathBuf,
    /// Whether `user` has the five permissions and no more.
    is_least: bool,
}

/// A Jenkins.
struct Site {
    url: String,
    /// What it says that it is.
    version: String,
    user: String,
    token: String,
    admin: String,
    admin_token: String,
    java: PathBuf,
    is_least: bool,
    http: reqwest::Client,
    directory: TempDir,
    /// Kept while it is used.
    _stand_in: Option<Jenkins>,
    _shared: Option<RwLockReadGuard<'static, ()>>,
    _alone: Option<RwLockWriteGuard<'static, ()>>,
}

/// All that there are.
async fn sites() -> Vec<Site> {
    match real() {
        Some(real) => {
            let mut site = Site::real(&real).await;
            site._shared = Some(REAL.read().await);
            vec![site]
        }
        None => stand_ins().await,
    }
}

/// All that there are, each for one test alone, which may restart it.
async fn sites_alone() -> Vec<Site> {
    match real() {
        Some(real) => {
            let alone = REAL.write().await;
            let mut site = Site::real(&real).await;
            site._alone = Some(alone);
            vec![site]
        }
        None => stand_ins().await,
    }
}

#[expect(clippy::disallowed_methods, reason = "whoever starts the tests says which Jenkins they are for")]
fn real() -> Option<Real> {
    let file = std::env::var_os(TRY)?;
    let text = std::fs::read(&file).unwrap_or_else(|error| panic!("{TRY}: {}: {error}", Path::new(&file).display()));
    Some(serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{TRY}: {error}")))
}

async fn stand_ins() -> Vec<Site> {
    let mut sites = Vec::new();
    for version in [Version::V2_372, Version::V2_452_2] {
        let jenkins = Jenkins::start(Plan::default().version(version)).await;
        let mut site = Site::at(&jenkins.url(), ("muster", MUSTER_TOKEN), ("admin", ADMIN_TOKEN)).await;
        site.java = jar::java(site.directory.path(), "17.0.15");
        site.is_least = true;
        site._stand_in = Some(jenkins);
        sites.push(site);
    }
    sites
}

impl Site {
    async fn real(real: &Real) -> Self {
        let read = |file: &Path| std::fs::read_to_string(file).unwrap().trim().to_owned();
        let (token, admin_token) = (read(&real.token_file), read(&real.admin_token_file));
        let mut site = Self::at(&real.url, (&real.user, &token), (&real.admin, &admin_token)).await;
        site.java.clone_from(&real.java);
        site.is_least = real.is_least;
        site
    }

    async fn at(url: &str, (user, token): (&str, &str), (admin, admin_token): (&str, &str)) -> Self {
        let mut site = Self {
            url: url.into(),
            version: String::new(),
            user: user.into(),
            token: token.into(),
            admin: admin.into(),
            admin_token: admin_token.into(),
            java: PathBuf::new(),
            is_least: false,
            http: reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap(),
            directory: TempDir::new().unwrap(),
            _stand_in: None,
            _shared: None,
            _alone: None,
        };
        site.version = site.muster().about().await.unwrap().version;
        site
    }

    /// Muster's client.
    fn muster(&self) -> Client {
        self.muster_as(&self.user, &self.token, Duration::from_secs(60))
    }

    fn muster_as(&self, user: &str, token: &str, unsure: Duration) -> Client {
        let token_file = self.directory.path().join(format!("token-{}", uuid::Uuid::new_v4()));
        std::fs::write(&token_file, token).unwrap();
        let settings = Settings {
            url: Url::parse(&self.url).unwrap(),
            user: user.into(),
            token_file,
            ca: None,
            timeout: Duration::from_secs(30),
            at_once: 4,
            per_second: 100,
            unsure,
        };
        Client::new(settings).unwrap()
    }

    /// A name that nobody else has here.
    fn name(&self, what: &str) -> NodeName {
        let random = uuid::Uuid::new_v4().simple().to_string();
        format!("try-{what}-{}", &random[..12]).parse().unwrap()
    }

    /// A node that is wanted, below a directory of its own.
    fn wanted(&self, name: &NodeName) -> Wanted {
        Wanted {
            name: name.clone(),
            description: "an agent of Muster's".into(),
            executors: Executors::new(2).unwrap(),
            remote_root: self.directory.path().join(name.as_str()).to_str().unwrap().into(),
            labels: vec!["linux".parse().unwrap(), format!("l-{name}").parse().unwrap()],
            is_exclusive: true,
            environment: vec![("TRIED".into(), "a <b> & \"c\"".into())],
        }
    }

    async fn create(&self, what: &str) -> NodeName {
        let name = self.name(what);
        assert_eq!(self.muster().create(&self.wanted(&name)).await.unwrap(), Created::Made);
        name
    }

    /// Waits until a node is as wanted.
    async fn until_node(&self, name: &NodeName, what: &str, wanted: impl Fn(&Node) -> bool) -> Node {
        let muster = self.muster();
        let look = async || muster.node(name).await.ok().flatten().filter(|node| wanted(node));
        self.until(&format!("{name} is {what}"), look).await
    }

    async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, mut look: impl FnMut() -> F) -> T {
        let end = Instant::now() + WAIT_MAX;
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(Instant::now() < end, "Jenkins {}: not after {} s: {what}", self.version, WAIT_MAX.as_secs());
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// A request as somebody; as nobody without a login.
    fn request(&self, login: Option<(&str, &str)>, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match login {
            Some((user, token)) => request.basic_auth(user, Some(token)),
            None => request,
        }
    }

    fn as_admin(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(Some((&self.admin, &self.admin_token)), method, path)
    }

    fn as_muster(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(Some((&self.user, &self.token)), method, path)
    }

    /// Makes a job that runs for so long on a node or label, and asks for a build of it; the job.
    async fn build(&self, label: &str, seconds: f64) -> String {
        let job = self.name("job").to_string();
        let xml = format!(
            "<project><assignedNode>{label}</assignedNode><canRoam>false</canRoam><builders><hudson.tasks.Shell><command>sleep {seconds}</command></hudson.tasks.Shell></builders></project>"
        );
        let made = self.as_admin(Method::POST, &format!("createItem?name={job}")).header("content-type", "application/xml").body(xml);
        assert_eq!(made.send().await.unwrap().status(), StatusCode::OK);
        let asked = self.as_admin(Method::POST, &format!("job/{job}/build?delay=0sec")).send().await.unwrap();
        assert_eq!(asked.status(), StatusCode::CREATED);
        job
    }

    /// What is known of a job's first build; none before it began.
    async fn built(&self, job: &str) -> Option<Value> {
        let answer = self.as_admin(Method::GET, &format!("job/{job}/1/api/json")).send().await.ok()?;
        answer.json().await.ok()
    }

    /// Starts the agent of a node, with the jar of this Jenkins, as Muster does.
    async fn agent(&self, name: &NodeName) -> Agent {
        let muster = self.muster();
        let inbound = muster.secret(name).await.unwrap();
        self.agent_with(name, &inbound.secret, &inbound.url).await
    }

    async fn agent_with(&self, name: &NodeName, secret: &str, url: &str) -> Agent {
        let directory = TempDir::new_in(self.directory.path()).unwrap();
        let path = |file: &str| directory.path().join(file).to_str().unwrap().to_owned();
        let bytes = self.muster().jar(None).await.unwrap().unwrap().bytes;
        let read = AgentJar::read(&bytes).unwrap();
        std::fs::write(path("agent.jar"), bytes).unwrap();
        let start =
            Start { jar: &path("agent.jar"), remoting: &read.remoting, url, node: name, secret, work_dir: &self.wanted(name).remote_root };
        std::fs::write(path("arguments"), ArgumentFile::new(&start).unwrap().as_str()).unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let mut command = Command::new(&self.java);
        command.arg(format!("@{}", path("arguments"))).env("HOME", directory.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Agent { child: command.spawn().unwrap(), directory }
    }
}

/// The process of an agent, which is killed with this.
struct Agent {
    child: Child,
    directory: TempDir,
}

impl Agent {
    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The arguments that everybody on the machine sees.
    fn seen_arguments(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(format!("/proc/{}/cmdline", self.child.id())).unwrap()).replace('\0', " ")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// Waits until it ends; its exit status.
    async fn ended(&mut self, site: &Site) -> Option<i32> {
        let child = &mut self.child;
        let end = Instant::now() + WAIT_MAX;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "Jenkins {}: the agent runs still", site.version);
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("the log of the agent:\n{}", self.log());
        }
    }
}
