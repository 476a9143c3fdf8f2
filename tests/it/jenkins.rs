//! Jenkins as it was measured: `jenkins-rest.md`, traps included, in this process and on a port of its own.
//!
//! It stands for 2.372 and 2.452.2 without plugins but matrix-auth, for what a client of nodes, agents, queue and labels can meet. Only what
//! is said in a test happens: nothing takes time, unless the plan has the timings of the real one, and everything that a client could
//! observe can be read here without asking over HTTP.

pub(crate) mod agents;
mod alone;
pub(crate) mod config;
pub(crate) mod controller;
pub(crate) mod door;
pub(crate) mod jar;
mod pages;
pub(crate) mod routes;
mod traps;
mod tree;
pub(crate) mod users;
pub(crate) mod words;
mod xml;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::http::request::Parts;
use tokio::runtime::Handle;
use tokio::sync::{MutexGuard, watch};

use agents::Inbound;
use config::NodeConfig;
use controller::{BuildState, Cause, Controller, Outcome, Started};
use door::{Life, Phase, Port, RESTART, SAFE_RESTART_SECONDS};
use routes::{Op, Pace, answer};
use users::{Permission, User};
use words::Language;

/// For how long something that is to happen is waited for.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// How long a waiting build takes to start after its agent came online, and a build to end after its node was deleted.
const START_PAUSE: Duration = Duration::from_millis(40);
const DELETE_PAUSE: Duration = Duration::from_millis(500);
/// What a JVM takes until it connects, and what its agent waits before it looks for a lost controller.
const JVM_START: Duration = Duration::from_millis(1800);
const AGENT_PAUSE: Duration = Duration::from_secs(10);
/// How much longer a password takes than a token.
const PASSWORD_PAUSE: Duration = Duration::from_millis(68);
/// By how much the first call of a kind is slower after a boot.
const COLD: f64 = 7.0;

/// The API token of `admin`, who may do everything.
pub(crate) const ADMIN_TOKEN: &str = "11aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// The API token of `muster`, who has `Overall/Read` and the five permissions of the registration cycle.
pub(crate) const MUSTER_TOKEN: &str = "11bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
/// What `muster` may do.
pub(crate) const FIVE: [Permission; 6] =
    [Permission::Read, Permission::Create, Permission::Connect, Permission::Configure, Permission::Disconnect, Permission::Delete];

/// Which Jenkins it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V2_372,
    V2_452_2,
}

impl Version {
    /// What `X-Jenkins` says.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::V2_372 => "2.372",
            Self::V2_452_2 => "2.452.2",
        }
    }
}

/// What a test may set before a Jenkins starts.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    version: Version,
    users: Vec<User>,
    language: Language,
    real_timings: bool,
    root_url: Option<String>,
    restart_scale: f64,
    stuck_after: Duration,
    built_in_executors: usize,
    port: u16,
}

impl Default for Plan {
    /// 2.452.2 with `admin` and `muster`, two executors of its own, and restarts of a third of a second.
    fn default() -> Self {
        let admin = User::new("admin").token(ADMIN_TOKEN).may(&[Permission::Administer]);
        let muster = User::new("muster").token(MUSTER_TOKEN).may(&FIVE);
        Self {
            version: Version::V2_452_2,
            users: vec![admin, muster],
            language: Language::English,
            real_timings: false,
            root_url: None,
            restart_scale: 0.02,
            stuck_after: Duration::from_secs(6),
            built_in_executors: 2,
            port: 0,
        }
    }
}

impl Plan {
    /// Sets the version.
    pub(crate) fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Adds a user.
    pub(crate) fn user(mut self, user: User) -> Self {
        self.users.push(user);
        self
    }

    /// Sets what it speaks to those who ask for no language that it has.
    pub(crate) fn language(mut self, language: Language) -> Self {
        self.language = language;
        self
    }

    /// Makes everything take as long as in the real one: answers, the start of agents and builds, restarts.
    pub(crate) fn real_timings(mut self) -> Self {
        self.real_timings = true;
        self.restart_scale(1.0)
    }

    /// Sets how long a restart takes, as a part of the real one's 17 seconds. Agents pause by the same scale.
    pub(crate) fn restart_scale(mut self, scale: f64) -> Self {
        self.restart_scale = scale;
        self
    }

    /// Sets the configured URL, which `jnlp` has, whatever the client calls.
    pub(crate) fn root_url_is(mut self, url: &str) -> Self {
        self.root_url = Some(url.into());
        self
    }

    /// Sets where it listens, on 127.0.0.1.
    pub(crate) fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Sets after how long a build that nobody can run is stuck.
    pub(crate) fn stuck_after(mut self, time: Duration) -> Self {
        self.stuck_after = time;
        self
    }

    fn root_url(&self, address: SocketAddr) -> String {
        self.root_url.clone().unwrap_or_else(|| format!("http://{address}/"))
    }
}

/// What befalls one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection is reset, and nothing was done.
    Refuse,
    /// It is done, and the connection is reset in place of an answer.
    Lose,
    /// It is not done, and this is the status.
    Status(u16),
    /// It is done, after so long.
    Wait(Duration),
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) op: Op,
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// Empty where nobody found out who it was.
    pub(crate) user: String,
    /// 0 if there was no answer.
    pub(crate) status: u16,
    pub(crate) at: Instant,
    pub(crate) took: Duration,
}

impl Seen {
    fn new(parts: &Parts, op: Op) -> Self {
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
        Self { op, method: parts.method.to_string(), path, user: String::new(), status: 0, at: Instant::now(), took: Duration::ZERO }
    }
}

/// All that is known of a node.
#[derive(Debug, Clone)]
pub(crate) struct NodeState {
    pub(crate) config: NodeConfig,
    /// With its own name.
    pub(crate) labels: BTreeSet<String>,
    pub(crate) secret: String,
    /// A file on disk, and nothing that REST could see or remove.
    pub(crate) is_ghost: bool,
    pub(crate) is_online: bool,
    /// What the API says.
    pub(crate) is_temporarily_offline: bool,
    /// What the disk says.
    pub(crate) is_marked: bool,
    pub(crate) cause: Option<Cause>,
    pub(crate) is_connected: bool,
    /// How often an agent connected since it was made, or since Jenkins started.
    pub(crate) connections: u64,
    pub(crate) busy_executors: usize,
}

/// A Jenkins.
pub(crate) struct Jenkins {
    inner: Arc<Inner>,
}

/// A build, from when it is asked for.
pub(crate) struct Build {
    inner: Arc<Inner>,
    id: usize,
}

impl Jenkins {
    /// Starts one.
    pub(crate) async fn start(plan: Plan) -> Self {
        let scaled = AGENT_PAUSE.mul_f64(plan.restart_scale);
        let jvm_start = if plan.real_timings { JVM_START } else { Duration::ZERO };
        let controller = Controller::new(plan.version, plan.users.clone(), plan.built_in_executors, plan.stuck_after);
        let inner = Arc::new(Inner {
            jar: jar::agent_jar(plan.version, jvm_start, scaled),
            runtime: Handle::current(),
            port: Port::new(plan.port).unwrap(),
            controller: Mutex::new(controller),
            log: Mutex::default(),
            changes: watch::Sender::new(0),
            phase: watch::Sender::new(Phase::Ready),
            life: tokio::sync::Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            plan,
        });
        inner.enter(Phase::Ready).await;
        Self { inner }
    }

    /// Where it listens, with a slash at the end.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.inner.port.address)
    }

    /// `X-Jenkins-Session`, which is new after a restart.
    pub(crate) fn session(&self) -> String {
        self.inner.read(|controller| controller.boot.session.clone())
    }

    /// How many sessions it has to keep for clients that provoked them.
    pub(crate) fn sessions(&self) -> usize {
        self.inner.read(|controller| controller.boot.sessions.len())
    }

    /// The bytes of `agent.jar`.
    pub(crate) fn agent_jar(&self) -> &[u8] {
        &self.inner.jar
    }

    /// Makes a node without asking over HTTP: somebody else's, say.
    pub(crate) fn put(&self, config: NodeConfig) {
        self.inner.change(|controller| controller.keep(config));
    }

    /// Deletes a node without asking over HTTP: what an administrator does.
    pub(crate) fn delete(&self, name: &str) {
        self.inner.delete(name);
    }

    /// Marks a node offline, or takes the mark away: what an administrator does.
    pub(crate) fn mark_offline(&self, name: &str, message: Option<&str>) {
        self.inner.change(|controller| controller.mark(name, message.map(|message| Cause::user("admin", message))));
    }

    /// A node; none if there is no such one.
    pub(crate) fn node(&self, name: &str) -> Option<NodeState> {
        self.inner.read(|controller| state(controller, name))
    }

    /// All nodes, ghosts too.
    pub(crate) fn nodes(&self) -> BTreeMap<String, NodeState> {
        self.inner.read(|controller| controller.nodes.keys().filter_map(|name| Some((name.clone(), state(controller, name)?))).collect())
    }

    /// The names that `/computer/api/json` has, without Jenkins' own.
    pub(crate) fn listed(&self) -> Vec<String> {
        self.inner.read(|controller| controller.computers.keys().cloned().collect())
    }

    /// The secret that an agent of this name needs.
    pub(crate) fn secret(&self, name: &str) -> String {
        self.inner.read(|controller| controller.secret(name))
    }

    /// Connects an agent without a process, or says with which status it was refused.
    pub(crate) async fn connect(&self, name: &str) -> Result<Inbound, u16> {
        if self.inner.plan.real_timings {
            tokio::time::sleep(JVM_START).await;
        }
        Inbound::connect(&self.url(), name, &self.secret(name)).await
    }

    /// Breaks the connection of an agent.
    pub(crate) fn break_agent(&self, name: &str) {
        let channel = |controller: &Controller| controller.computers.get(name)?.channel.as_ref().map(|channel| channel.close.clone());
        self.inner.read(channel).unwrap_or_else(|| panic!("{name} has no agent")).cancel();
    }

    /// Asks for a build of a job of its own on a label, or a node, or an expression. It runs until it is ended.
    pub(crate) fn build(&self, label: &str) -> Build {
        let job = format!("job-{}", uuid::Uuid::new_v4().simple());
        self.build_of(&job, Some(label))
    }

    /// Asks for a build of a job, which is made if there is none. While one waits, that is the one.
    pub(crate) fn build_of(&self, job: &str, label: Option<&str>) -> Build {
        let id = self.inner.change(|controller| controller.enqueue(job, label));
        Build { inner: self.inner.clone(), id }
    }

    /// Holds the start of builds back: they get executors, which are not idle then, and have no executable.
    pub(crate) fn hold_starts(&self, hold: bool) {
        self.inner.change(|controller| controller.starts_held = hold);
    }

    /// How many builds wait.
    pub(crate) fn queue_length(&self) -> usize {
        self.inner.read(|controller| controller.waiting().count())
    }

    /// Lets something befall the next request of a kind that nothing befalls yet.
    pub(crate) fn next(&self, op: Op, fault: Fault) {
        self.inner.log.lock().unwrap().faults.entry(op).or_default().push_back(fault);
    }

    /// Delays every request by so much, from now on.
    pub(crate) fn slow(&self, pause: Duration) {
        self.inner.log.lock().unwrap().pause = pause;
    }

    /// Begins a restart as `/restart` does, and does not wait for its end.
    pub(crate) fn begin_restart(&self) {
        self.inner.restart(false);
    }

    /// Restarts, and waits until it is ready.
    pub(crate) async fn restart(&self) {
        self.begin_restart();
        self.until_ready().await;
    }

    /// Waits until it answers as it should.
    pub(crate) async fn until_ready(&self) {
        self.until("Jenkins is ready", |jenkins| (jenkins.phase() == Phase::Ready).then_some(())).await;
    }

    /// Goes to a phase of a restart, and stays there. The new life begins with `Refused`.
    pub(crate) async fn enter(&self, phase: Phase) {
        self.inner.enter(phase).await;
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.inner.phase.borrow()
    }

    /// How many requests of a kind came, whatever became of them.
    pub(crate) fn count(&self, op: Op) -> usize {
        self.inner.log.lock().unwrap().seen.iter().filter(|seen| seen.op == op).count()
    }

    /// How many requests of each kind came.
    pub(crate) fn counts(&self) -> BTreeMap<Op, usize> {
        let mut counts = BTreeMap::new();
        for seen in self.requests() {
            *counts.entry(seen.op).or_default() += 1;
        }
        counts
    }

    /// How often somebody followed a redirect to a page for people.
    pub(crate) fn followed(&self) -> usize {
        self.requests().iter().filter(|seen| seen.method == "GET" && matches!(seen.op, Op::ListPage | Op::NodePage)).count()
    }

    /// All requests, in the order in which they ended.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.inner.log.lock().unwrap().seen.clone()
    }

    /// How many requests were at most under way at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.inner.log.lock().unwrap().most_at_once
    }

    /// Waits until so many requests are under way at once.
    pub(crate) async fn until_at_once(&self, count: usize) {
        self.until(&format!("{count} requests are under way"), |jenkins| {
            (jenkins.inner.log.lock().unwrap().at_once >= count).then_some(())
        })
        .await;
    }

    /// Forgets all requests.
    pub(crate) fn forget_requests(&self) {
        let mut log = self.inner.log.lock().unwrap();
        log.seen.clear();
        log.most_at_once = log.at_once;
    }

    /// Waits until something is there to be seen, which is looked for after everything that happens.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> impl Future<Output = T> {
        self.inner.until(what, move || look(self))
    }

    /// Waits until a node is as wanted.
    pub(crate) async fn until_node(&self, name: &str, wanted: impl Fn(&NodeState) -> bool) -> NodeState {
        self.until(&format!("{name} is as wanted"), |jenkins| jenkins.node(name).filter(&wanted)).await
    }

    /// Waits until so many requests of a kind came.
    pub(crate) async fn until_count(&self, op: Op, count: usize) {
        self.until(&format!("{op:?} came {count} times"), |jenkins| (jenkins.count(op) >= count).then_some(())).await;
    }
}

impl Drop for Jenkins {
    fn drop(&mut self) {
        if let Ok(mut life) = self.inner.life.try_lock() {
            life.take();
        }
    }
}

impl Build {
    /// Waits until it has an executor; the node.
    pub(crate) async fn started(&self) -> String {
        self.until("the build is started", |build| build.node.clone().filter(|_| build.state == BuildState::Running)).await
    }

    /// Where it is or was.
    pub(crate) fn node(&self) -> Option<String> {
        self.inner.read(|controller| controller.builds[self.id].node.clone())
    }

    /// Ends it.
    pub(crate) fn end(&self, outcome: Outcome) {
        self.inner.end(self.id, outcome);
    }

    /// How it ended; none while it did not.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.inner.read(|controller| ended(&controller.builds[self.id]))
    }

    /// Waits until it ended.
    pub(crate) async fn ended(&self) -> Outcome {
        self.until("the build is ended", ended).await
    }

    async fn until<T>(&self, what: &str, look: impl Fn(&controller::Build) -> Option<T>) -> T {
        self.inner.until(what, || self.inner.read(|controller| look(&controller.builds[self.id]))).await
    }
}

fn ended(build: &controller::Build) -> Option<Outcome> {
    match build.state {
        BuildState::Ended(outcome) => Some(outcome),
        _ => None,
    }
}

fn state(controller: &Controller, name: &str) -> Option<NodeState> {
    let node = controller.nodes.get(name)?;
    let computer = controller.computers.get(name);
    Some(NodeState {
        config: node.config.clone(),
        labels: node.config.labels(),
        secret: controller.secret(name),
        is_ghost: computer.is_none(),
        is_online: computer.is_some_and(controller::Computer::is_online),
        is_temporarily_offline: computer.is_some_and(|computer| computer.temporarily_offline),
        is_marked: node.mark.is_some(),
        cause: computer.and_then(|computer| computer.cause.clone()),
        is_connected: computer.is_some_and(controller::Computer::is_connected),
        connections: computer.map_or(0, |computer| computer.connections),
        busy_executors: computer.map_or(0, |computer| computer.busy.len()),
    })
}

/// What the fixture and the server share.
struct Inner {
    plan: Plan,
    /// Where what takes time goes on, whoever began it.
    runtime: Handle,
    port: Port,
    jar: Vec<u8>,
    controller: Mutex<Controller>,
    log: Mutex<Log>,
    /// Moves with everything that happens.
    changes: watch::Sender<u64>,
    phase: watch::Sender<Phase>,
    life: tokio::sync::Mutex<Option<Life>>,
    /// Who writes nodes now.
    turn: tokio::sync::Mutex<()>,
}

/// What came, and what is to befall what comes.
#[derive(Default)]
struct Log {
    seen: Vec<Seen>,
    at_once: usize,
    most_at_once: usize,
    faults: HashMap<Op, VecDeque<Fault>>,
    pause: Duration,
    /// How many of a kind were answered since the boot of this session.
    answered: HashMap<(String, Op), u64>,
}

/// A request under way.
struct UnderWay(Arc<Inner>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.log.lock().unwrap().at_once -= 1;
    }
}

impl Inner {
    fn read<T>(&self, read: impl FnOnce(&Controller) -> T) -> T {
        read(&self.controller.lock().unwrap())
    }

    /// Changes something, and then lets Jenkins give executors to what waits.
    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut Controller) -> T) -> T {
        let (changed, started, waits) = {
            let mut controller = self.controller.lock().unwrap();
            let changed = change(&mut controller);
            let started = if self.plan.real_timings { Vec::new() } else { controller.schedule() };
            (changed, started, controller.waiting().next().is_some())
        };
        self.let_end(started);
        if self.plan.real_timings && waits {
            let inner = self.clone();
            self.runtime.spawn(async move {
                tokio::time::sleep(START_PAUSE).await;
                let started = inner.controller.lock().unwrap().schedule();
                inner.let_end(started);
                inner.stir();
            });
        }
        self.stir();
        changed
    }

    #[track_caller]
    fn until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> impl Future<Output = T> {
        let place = std::panic::Location::caller();
        let mut changes = self.changes.subscribe();
        let looking = async move {
            loop {
                changes.mark_unchanged();
                if let Some(found) = look() {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        };
        async move {
            let found = tokio::time::timeout(WAIT_MAX, looking).await;
            found.unwrap_or_else(|_| {
                let computers = self.read(|controller| controller.computers_json(Language::English, ""));
                panic!("{place}: not after {} s: {what}; {computers:#}", WAIT_MAX.as_secs())
            })
        }
    }

    fn stir(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn let_end(self: &Arc<Self>, started: Vec<Started>) {
        for Started { build, lasts } in started {
            let inner = self.clone();
            self.runtime.spawn(async move {
                tokio::time::sleep(lasts).await;
                inner.end(build, Outcome::Success);
            });
        }
    }

    fn end(self: &Arc<Self>, build: usize, outcome: Outcome) {
        self.change(|controller| controller.end(build, outcome));
    }

    fn delete(self: &Arc<Self>, name: &str) {
        let builds = self.change(|controller| controller.delete(name, self.plan.real_timings));
        if builds.is_empty() {
            return;
        }
        let (inner, name) = (self.clone(), name.to_owned());
        self.runtime.spawn(async move {
            tokio::time::sleep(DELETE_PAUSE).await;
            inner.change(|controller| controller.finish_delete(&name, &builds));
        });
    }

    /// Counts a request as under way, until what is returned is dropped.
    fn arrive(self: &Arc<Self>, op: Op) -> Option<UnderWay> {
        // Agents stay, and are none of a client's requests.
        if op == Op::Agent {
            return None;
        }
        let mut log = self.log.lock().unwrap();
        log.at_once += 1;
        log.most_at_once = log.most_at_once.max(log.at_once);
        drop(log);
        self.stir();
        Some(UnderWay(self.clone()))
    }

    fn note(&self, seen: Seen) {
        self.log.lock().unwrap().seen.push(seen);
        self.stir();
    }

    fn next_fault(&self, op: Op) -> Option<Fault> {
        self.log.lock().unwrap().faults.get_mut(&op)?.pop_front()
    }

    fn pause(&self, fault: Option<&Fault>) -> Duration {
        let always = self.log.lock().unwrap().pause;
        match fault {
            Some(Fault::Wait(pause)) => always + *pause,
            _ => always,
        }
    }

    /// Waits while nothing is answered.
    async fn answering_phase(&self) -> Phase {
        let mut phases = self.phase.subscribe();
        *phases.wait_for(|phase| !matches!(phase, Phase::Refused | Phase::Unanswered)).await.unwrap()
    }

    /// Waits for the turn to write a node.
    async fn turn(&self, op: Op) -> MutexGuard<'_, ()> {
        let turn = self.turn.lock().await;
        if self.plan.real_timings {
            let pace = Pace::of(op, StatusCode::FOUND, self.read(|controller| controller.nodes.len()));
            tokio::time::sleep(Duration::from_secs_f64(pace.alone / 1000.0)).await;
        }
        turn
    }

    /// Takes the rest of the time that the real one takes. Every twentieth answer is as slow as the slowest twentieth of them.
    async fn take_time(&self, op: Op, status: StatusCode, began: Instant) {
        if !self.plan.real_timings || op == Op::Agent {
            return;
        }
        let (session, nodes) = self.read(|controller| (controller.boot.session.clone(), controller.nodes.len()));
        let answered = {
            let mut log = self.log.lock().unwrap();
            let answered = log.answered.entry((session, op)).or_default();
            *answered += 1;
            *answered
        };
        let pace = Pace::of(op, status, nodes);
        let whole = if answered.is_multiple_of(20) { pace.p95 } else { pace.median };
        let factor = if answered == 1 { COLD } else { 1.0 };
        let rest = Duration::from_secs_f64((whole * factor - pace.alone) / 1000.0);
        // Whoever waited for a turn takes the rest after it.
        let spent = if pace.alone > 0.0 { Duration::ZERO } else { began.elapsed() };
        tokio::time::sleep(rest.saturating_sub(spent)).await;
    }

    async fn take_password_time(&self) {
        if self.plan.real_timings {
            tokio::time::sleep(PASSWORD_PAUSE).await;
        }
    }

    /// Goes to a phase, with what that does to the port and to what is in memory.
    async fn enter(self: &Arc<Self>, phase: Phase) {
        let mut life = self.life.lock().await;
        self.phase.send_replace(phase);
        if phase == Phase::Refused {
            if let Some(life) = life.take() {
                life.end().await;
            }
            self.change(Controller::reboot);
        } else if life.is_none() {
            *life = Some(Life::begin(self, Router::new().fallback(answer).with_state(self.clone())));
        }
        self.stir();
    }

    /// Restarts, by the clock. A safe restart waits for builds first.
    fn restart(self: &Arc<Self>, is_safe: bool) {
        if *self.phase.borrow() != Phase::Ready {
            return;
        }
        let inner = self.clone();
        if is_safe {
            self.change(|controller| controller.quieting_down = true);
        } else {
            self.phase.send_replace(Phase::Restarting);
        }
        self.runtime.spawn(async move {
            let mut late = 0.0;
            if is_safe {
                late = SAFE_RESTART_SECONDS;
                let mut changes = inner.changes.subscribe();
                while inner.read(|controller| controller.computers.values().any(|computer| !computer.busy.is_empty())) {
                    changes.changed().await.unwrap();
                }
            }
            let began = tokio::time::Instant::now();
            for (at, phase) in RESTART {
                let at = if phase == Phase::Restarting { at } else { at + late };
                tokio::time::sleep_until(began + Duration::from_secs_f64(at * inner.plan.restart_scale)).await;
                inner.enter(phase).await;
            }
        });
    }
}
