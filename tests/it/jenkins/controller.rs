//! What Jenkins knows: nodes and their computers, jobs, the queue, builds. It knows nothing of HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::Version;
use super::config::{Label, Mode, NodeConfig};
use super::users::User;
use super::words::{Language, Wait};

/// What is on disk, and what is in memory until the next boot.
pub(super) struct Controller {
    pub(super) version: Version,
    pub(super) users: Vec<User>,
    pub(super) nodes: BTreeMap<String, Node>,
    /// By node. A ghost has none; a deleted node that still builds has one for a moment.
    pub(super) computers: BTreeMap<String, Computer>,
    /// That of Jenkins itself.
    pub(super) built_in: Computer,
    pub(super) built_in_executors: usize,
    /// The jobs and the label of each.
    pub(super) jobs: BTreeMap<String, Job>,
    /// All that were ever asked for, waiting, running or ended; the queue's ids are the places, from 1.
    pub(super) builds: Vec<Build>,
    pub(super) quieting_down: bool,
    /// Builds get an executor, and do not start.
    pub(super) starts_held: bool,
    pub(super) stuck_after: Duration,
    pub(super) boot: Boot,
    key: [u8; 32],
    last_channel: u64,
}

/// What is new with every boot.
pub(super) struct Boot {
    /// `X-Jenkins-Session`.
    pub(super) session: String,
    /// When the war was unpacked.
    pub(super) unpacked: SystemTime,
    pub(super) salt: [u8; 32],
    /// The sessions of browsers, and of those who behave like one.
    pub(super) sessions: BTreeSet<String>,
}

/// A node as it is on disk.
pub(super) struct Node {
    pub(super) config: NodeConfig,
    /// The offline mark.
    pub(super) mark: Option<Cause>,
}

/// A node as it runs.
#[derive(Default)]
pub(super) struct Computer {
    pub(super) temporarily_offline: bool,
    pub(super) cause: Option<Cause>,
    pub(super) channel: Option<Channel>,
    /// How often an agent came.
    pub(super) connections: u64,
    /// The builds on executors that are not idle.
    pub(super) busy: BTreeMap<usize, usize>,
    /// The configuration that it last had.
    config: Option<NodeConfig>,
}

/// An agent's connection.
pub(super) struct Channel {
    pub(super) id: u64,
    /// The handshake is over.
    pub(super) is_up: bool,
    /// Closes it from this side.
    pub(super) close: CancellationToken,
}

/// Why a node is offline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) kind: CauseKind,
    pub(crate) since: SystemTime,
}

/// The reasons that Jenkins has for an offline node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CauseKind {
    /// `OfflineCause$UserCause`.
    User { user: String, message: String },
    /// `OfflineCause$ChannelTermination`.
    Broken,
    /// `OfflineCause$LaunchFailed`.
    LaunchFailed,
}

/// What a job is to Jenkins here.
#[derive(Debug, Clone, Default)]
pub(super) struct Job {
    pub(super) label: Option<String>,
    /// For how long its builds run, if they end by themselves.
    pub(super) lasts: Option<Duration>,
    pub(super) builds: u64,
}

/// A build, from when it is asked for.
#[derive(Debug, Clone)]
pub(super) struct Build {
    pub(super) job: String,
    pub(super) label: Option<String>,
    pub(super) number: u64,
    pub(super) since: SystemTime,
    pub(super) node: Option<String>,
    pub(super) state: BuildState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BuildState {
    Waiting,
    Assigned,
    Running,
    Ended(Outcome),
}

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure,
}

/// A build that just started and ends by itself.
pub(super) struct Started {
    pub(super) build: usize,
    pub(super) lasts: Duration,
}

/// Why an agent is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Unknown,
    Secret,
    Connected,
}

impl Cause {
    fn new(kind: CauseKind) -> Self {
        // As precise as Jenkins shows it.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        Self { kind, since: UNIX_EPOCH + Duration::from_millis(since.try_into().unwrap()) }
    }

    pub(super) fn user(user: &str, message: &str) -> Self {
        Self::new(CauseKind::User { user: user.into(), message: message.trim().into() })
    }

    /// The name of its class in Jenkins.
    pub(crate) fn class(&self) -> &'static str {
        match self.kind {
            CauseKind::User { .. } => "hudson.slaves.OfflineCause$UserCause",
            CauseKind::Broken => "hudson.slaves.OfflineCause$ChannelTermination",
            CauseKind::LaunchFailed => "hudson.slaves.OfflineCause$LaunchFailed",
        }
    }

    /// `offlineCauseReason`.
    pub(crate) fn reason(&self) -> &str {
        match &self.kind {
            CauseKind::User { message, .. } => message,
            CauseKind::Broken => "Connection was broken",
            CauseKind::LaunchFailed => "This agent is offline because Jenkins failed to launch the agent process on it.",
        }
    }

    fn description(&self, language: Language) -> String {
        match &self.kind {
            CauseKind::User { user, message } => language.disconnected_by(user, message),
            _ => self.reason().into(),
        }
    }
}

impl Boot {
    fn new(after: Option<&Self>) -> Self {
        // HTTP dates have whole seconds, and a later boot has a later one.
        let now = UNIX_EPOCH + Duration::from_secs(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
        let unpacked = after.map_or(now, |before| now.max(before.unpacked + Duration::from_secs(1)));
        Self { session: hex::encode(rand::random::<[u8; 4]>()), unpacked, salt: rand::random(), sessions: BTreeSet::new() }
    }
}

impl Computer {
    /// Whether an agent is there.
    pub(super) fn is_connected(&self) -> bool {
        self.channel.as_ref().is_some_and(|channel| channel.is_up)
    }

    pub(super) fn is_online(&self) -> bool {
        self.is_connected() && !self.temporarily_offline
    }

    /// How many executors it shows: those that it is to have, and those that still build.
    fn executors(&self) -> usize {
        let wanted = self.config.as_ref().map_or(0, |config| usize::try_from(config.executors).unwrap_or(0));
        wanted.max(self.busy.keys().max().map_or(0, |most| most + 1))
    }
}

impl Controller {
    pub(super) fn new(version: Version, users: Vec<User>, built_in_executors: usize, stuck_after: Duration) -> Self {
        let up = Channel { id: 0, is_up: true, close: CancellationToken::new() };
        Self {
            version,
            users,
            nodes: BTreeMap::new(),
            computers: BTreeMap::new(),
            built_in: Computer { channel: Some(up), ..Computer::default() },
            built_in_executors,
            jobs: BTreeMap::new(),
            builds: Vec::new(),
            quieting_down: false,
            starts_held: false,
            stuck_after,
            boot: Boot::new(None),
            key: rand::random(),
            last_channel: 0,
        }
    }

    /// The secret of a name: 64 hexadecimal digits that depend on the name and on this controller alone.
    pub(super) fn secret(&self, name: &str) -> String {
        hex::encode(Sha256::new().chain_update(self.key).chain_update(name).finalize())
    }

    /// Keeps a node. It is nothing but a file if it has no executors.
    pub(super) fn keep(&mut self, config: NodeConfig) {
        let name = config.name.clone();
        if config.is_ghost() {
            self.drop_computer(&name);
        } else {
            self.computers.entry(name.clone()).or_default().config = Some(config.clone());
        }
        let mark = self.nodes.remove(&name).and_then(|node| node.mark);
        self.nodes.insert(name, Node { config, mark });
    }

    /// Puts a configuration in the place of a node. With another name it is renamed, and who had that name is no more.
    pub(super) fn replace(&mut self, name: &str, config: NodeConfig) {
        if config.name != name {
            self.nodes.remove(name);
            self.drop_computer(name);
            if let Some(overwritten) = self.nodes.get_mut(&config.name) {
                overwritten.mark = None;
            }
        }
        self.keep(config);
    }

    /// Deletes a node. Where its builds are to end a moment later, they are named.
    pub(super) fn delete(&mut self, name: &str, lingers: bool) -> Vec<usize> {
        self.nodes.remove(name);
        let Some(computer) = self.computers.get(name) else { return Vec::new() };
        let busy: Vec<usize> = computer.busy.values().copied().collect();
        if !lingers || busy.is_empty() {
            self.drop_computer(name);
            return Vec::new();
        }
        busy
    }

    /// Ends what was left of a deleted node.
    pub(super) fn finish_delete(&mut self, name: &str, builds: &[usize]) {
        for build in builds {
            self.end(*build, Outcome::Failure);
        }
        if !self.nodes.contains_key(name) {
            self.drop_computer(name);
        }
    }

    fn drop_computer(&mut self, name: &str) {
        let Some(computer) = self.computers.get(name) else { return };
        if let Some(channel) = &computer.channel {
            channel.close.cancel();
        }
        let builds: Vec<usize> = computer.busy.values().copied().collect();
        for build in builds {
            self.end(build, Outcome::Failure);
        }
        self.computers.remove(name);
    }

    /// Marks a node offline, or takes the mark away.
    pub(super) fn mark(&mut self, name: &str, cause: Option<Cause>) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.mark.clone_from(&cause);
        }
        if let Some(computer) = self.computer_mut(name) {
            computer.temporarily_offline = cause.is_some();
            computer.cause = cause;
        }
    }

    pub(super) fn launch_failed(&mut self, name: &str) {
        if let Some(computer) = self.computers.get_mut(name).filter(|computer| computer.channel.is_none()) {
            computer.cause = Some(Cause::new(CauseKind::LaunchFailed));
        }
    }

    /// The computer at a URL's name.
    pub(super) fn computer(&self, name: &str) -> Option<&Computer> {
        if is_built_in(name) { Some(&self.built_in) } else { self.computers.get(name) }
    }

    fn computer_mut(&mut self, name: &str) -> Option<&mut Computer> {
        if is_built_in(name) { Some(&mut self.built_in) } else { self.computers.get_mut(name) }
    }

    /// Lets an agent in, which is to say soon that it is up.
    pub(super) fn shake_hands(&mut self, name: &str, secret: &str) -> Result<(u64, CancellationToken), Refusal> {
        if !self.computers.contains_key(name) {
            return Err(Refusal::Unknown);
        }
        if secret != self.secret(name) {
            return Err(Refusal::Secret);
        }
        self.last_channel += 1;
        let channel = Channel { id: self.last_channel, is_up: false, close: CancellationToken::new() };
        let made = (channel.id, channel.close.clone());
        match self.computers.get_mut(name) {
            Some(computer) if computer.channel.is_none() => computer.channel = Some(channel),
            _ => return Err(Refusal::Connected),
        }
        Ok(made)
    }

    /// The agent is there. What is on disk of an offline mark counts again.
    pub(super) fn connected(&mut self, name: &str, id: u64) {
        let mark = self.nodes.get(name).and_then(|node| node.mark.clone());
        let Some(computer) = self.computers.get_mut(name) else { return };
        if let Some(channel) = computer.channel.as_mut().filter(|channel| channel.id == id) {
            channel.is_up = true;
            computer.connections += 1;
            computer.temporarily_offline = mark.is_some();
            computer.cause = mark;
        }
    }

    /// The agent is gone: as it wished, or not.
    pub(super) fn disconnected(&mut self, name: &str, id: u64, is_clean: bool) {
        let Some(computer) = self.computers.get_mut(name) else { return };
        if computer.channel.as_ref().is_none_or(|channel| channel.id != id) {
            return;
        }
        computer.channel = None;
        if !is_clean {
            computer.cause = Some(Cause::new(CauseKind::Broken));
        }
        let builds: Vec<usize> = computer.busy.values().copied().collect();
        for build in builds {
            self.end(build, Outcome::Failure);
        }
    }

    /// Asks for a build. While one of the job waits, it is the same one.
    pub(super) fn enqueue(&mut self, job: &str, label: Option<&str>) -> usize {
        self.jobs.entry(job.into()).or_insert_with(|| Job { label: label.map(ToOwned::to_owned), ..Job::default() });
        let waits = |build: &Build| build.job == job && build.state == BuildState::Waiting;
        if let Some(same) = self.builds.iter().position(waits) {
            return same;
        }
        let label = self.jobs[job].label.clone();
        let build = Build { job: job.into(), label, number: 0, since: SystemTime::now(), node: None, state: BuildState::Waiting };
        self.builds.push(build);
        self.builds.len() - 1
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = (usize, &Build)> {
        self.builds.iter().enumerate().filter(|(_, build)| build.state == BuildState::Waiting)
    }

    /// Gives executors to builds that wait, in their order.
    pub(super) fn schedule(&mut self) -> Vec<Started> {
        let mut started = Vec::new();
        if self.quieting_down {
            return started;
        }
        let waiting: Vec<usize> = self.waiting().map(|(id, _)| id).collect();
        for id in waiting {
            let label = self.builds[id].label.clone();
            let Some((node, executor)) = self.free_executor(label.as_deref()) else { continue };
            let job = self.builds[id].job.clone();
            if let Some(job) = self.jobs.get_mut(&job) {
                job.builds += 1;
                self.builds[id].number = job.builds;
            }
            self.computer_mut(&node).unwrap().busy.insert(executor, id);
            self.builds[id].node = Some(node);
            self.builds[id].state = BuildState::Assigned;
        }
        if !self.starts_held {
            for (id, build) in self.builds.iter_mut().enumerate().filter(|(_, build)| build.state == BuildState::Assigned) {
                build.state = BuildState::Running;
                if let Some(lasts) = self.jobs.get(&build.job).and_then(|job| job.lasts) {
                    started.push(Started { build: id, lasts });
                }
            }
        }
        started
    }

    fn free_executor(&self, label: Option<&str>) -> Option<(String, usize)> {
        let label = label.map(Label::parse);
        let fits = |labels: &BTreeSet<String>, mode| label.as_ref().map_or(mode == Mode::Normal, |label| label.fits(labels));
        let free = |computer: &Computer, count: usize| (0..count).find(|number| !computer.busy.contains_key(number));
        let agents = self.nodes.iter().find_map(|(name, node)| {
            let computer = self.computers.get(name).filter(|computer| computer.is_online())?;
            let count = usize::try_from(node.config.executors).ok()?;
            let executor = free(computer, count).filter(|_| fits(&node.config.labels(), node.config.mode))?;
            Some((name.clone(), executor))
        });
        agents.or_else(|| {
            let executor = free(&self.built_in, self.built_in_executors)?;
            let takes = self.built_in.is_online() && fits(&built_in_labels(), Mode::Normal);
            takes.then(|| (BUILT_IN.to_owned(), executor))
        })
    }

    /// Ends a build, wherever it is.
    pub(super) fn end(&mut self, id: usize, outcome: Outcome) {
        if matches!(self.builds[id].state, BuildState::Ended(_)) {
            return;
        }
        self.builds[id].state = BuildState::Ended(outcome);
        for computer in self.computers.values_mut().chain([&mut self.built_in]) {
            computer.busy.retain(|_, build| *build != id);
        }
    }

    /// What a controller is after a restart: all nodes, no agents, no running builds, and no offline marks until the agents are back.
    pub(super) fn reboot(&mut self) {
        let running: Vec<usize> = self.computers.values().chain([&self.built_in]).flat_map(|it| it.busy.values().copied()).collect();
        for build in running {
            self.end(build, Outcome::Failure);
        }
        for channel in self.computers.values().filter_map(|computer| computer.channel.as_ref()) {
            channel.close.cancel();
        }
        let known = self.nodes.iter().filter(|(_, node)| !node.config.is_ghost());
        let computer = |node: &Node| Computer { config: Some(node.config.clone()), ..Computer::default() };
        self.computers = known.map(|(name, node)| (name.clone(), computer(node))).collect();
        self.built_in.temporarily_offline = false;
        self.built_in.cause = None;
        self.quieting_down = false;
        self.boot = Boot::new(Some(&self.boot));
    }

    /// Why a build waits.
    pub(super) fn why(&self, build: &Build) -> Wait {
        if self.quieting_down {
            return Wait::ShuttingDown;
        }
        let Some(label) = &build.label else { return Wait::AnyExecutor };
        let nodes = self.nodes_of(&Label::parse(label));
        let offline = |name: &&String| !self.computer(name).is_some_and(Computer::is_online);
        match nodes.as_slice() {
            [] => Wait::NoNodes(label.clone()),
            [only] if offline(&only) => Wait::Offline(only.clone()),
            [only] => Wait::Executor(only.clone()),
            all if all.iter().all(|name| offline(&name)) => Wait::AllOffline(label.clone()),
            _ => Wait::Executor(label.clone()),
        }
    }

    /// The names of the nodes with a label, Jenkins itself among them.
    fn nodes_of(&self, label: &Label) -> Vec<String> {
        let own = label.fits(&built_in_labels()).then(|| BUILT_IN.to_owned());
        let agents = self.nodes.values().filter(|node| label.fits(&node.config.labels()));
        own.into_iter().chain(agents.map(|node| node.config.name.clone())).collect()
    }

    /// The JSON of `/computer/NAME/`, deep enough for any `tree`.
    pub(super) fn computer_json(&self, name: &str, language: Language, root: &str) -> Option<Value> {
        let computer = self.computer(name)?;
        let own = is_built_in(name);
        let labels = if own { built_in_labels() } else { self.label_names(computer, name) };
        let count = if own { self.built_in_executors } else { computer.executors() };
        let remote = computer.config.as_ref().filter(|_| computer.is_connected()).map(|config| config.remote_fs.clone());
        let description =
            if own { "the Jenkins controller's built-in node" } else { self.nodes.get(name).map_or("", |node| &node.config.description) };
        let icon = match (self.version, computer.is_online()) {
            (Version::V2_372, true) => "computer.png",
            (Version::V2_372, false) => "computer-x.png",
            (Version::V2_452_2, true) => "symbol-computer",
            (Version::V2_452_2, false) => "symbol-computer-offline",
        };
        let cause = computer.cause.as_ref().map(|cause| {
            let since = cause.since.duration_since(UNIX_EPOCH).unwrap().as_millis();
            json!({"_class": cause.class(), "timestamp": since, "description": cause.description(language)})
        });
        Some(json!({
            "_class": if own { "hudson.model.Hudson$MasterComputer" } else { "hudson.slaves.SlaveComputer" },
            "actions": [],
            "assignedLabels": labels.iter().map(|label| json!({"name": label})).collect::<Value>(),
            "description": description,
            "displayName": if own { language.built_in_node() } else { name },
            "executors": (0..count).map(|number| self.executor_json(computer, number, root)).collect::<Value>(),
            "icon": icon,
            "iconClassName": icon.trim_end_matches(".png"),
            "idle": computer.busy.is_empty(),
            "jnlpAgent": !own,
            "launchSupported": own,
            "loadStatistics": {"_class": "hudson.model.Label$1"},
            "manualLaunchAllowed": true,
            "monitorData": {
                "hudson.node_monitors.SwapSpaceMonitor": null,
                "hudson.node_monitors.TemporarySpaceMonitor": null,
                "hudson.node_monitors.DiskSpaceMonitor": null,
                "hudson.node_monitors.ArchitectureMonitor": null,
                "hudson.node_monitors.ResponseTimeMonitor": null,
                "hudson.node_monitors.ClockMonitor": null,
            },
            "numExecutors": if own { self.built_in_executors } else { computer.config.as_ref().map_or(0, |config| usize::try_from(config.executors).unwrap_or(0)) },
            "offline": !computer.is_online(),
            "offlineCause": cause,
            "offlineCauseReason": computer.cause.as_ref().map_or("", Cause::reason),
            "oneOffExecutors": [],
            "temporarilyOffline": computer.temporarily_offline,
            "absoluteRemotePath": remote,
        }))
    }

    fn label_names(&self, computer: &Computer, name: &str) -> BTreeSet<String> {
        let config = self.nodes.get(name).map(|node| &node.config).or(computer.config.as_ref());
        config.map(NodeConfig::labels).unwrap_or_default()
    }

    fn executor_json(&self, computer: &Computer, number: usize, root: &str) -> Value {
        let build = computer.busy.get(&number).map(|id| &self.builds[*id]);
        let running = build.filter(|build| build.state == BuildState::Running);
        json!({
            "currentExecutable": running.map(|build| build_reference(build, root)),
            "idle": build.is_none(),
            "likelyStuck": false,
            "number": number,
            "progress": -1,
        })
    }

    /// The JSON of `/computer/`.
    pub(super) fn computers_json(&self, language: Language, root: &str) -> Value {
        let names = std::iter::once(BUILT_IN).chain(self.computers.keys().map(String::as_str));
        let online = || {
            let agents = self.computers.values().filter(|computer| computer.is_online());
            agents.map(|computer| (computer.executors(), computer.busy.len()))
        };
        let own = self.built_in.is_online().then_some((self.built_in_executors, self.built_in.busy.len()));
        json!({
            "_class": "hudson.model.ComputerSet",
            "busyExecutors": online().chain(own).map(|(_, busy)| busy).sum::<usize>(),
            "computer": names.filter_map(|name| self.computer_json(name, language, root)).collect::<Value>(),
            "displayName": "Nodes",
            "totalExecutors": online().chain(own).map(|(count, _)| count).sum::<usize>(),
        })
    }

    /// The JSON of a label or an expression. One that nobody has is one with zeros.
    pub(super) fn label_json(&self, text: &str, root: &str) -> Value {
        let label = Label::parse(text);
        let names = self.nodes_of(&label);
        let own = |name: &str| if name == BUILT_IN { "" } else { name }.to_owned();
        let online =
            || names.iter().filter_map(|name| self.computer(name).map(|computer| (name, computer))).filter(|(_, it)| it.is_online());
        let count = |name: &str, computer: &Computer| if is_built_in(name) { self.built_in_executors } else { computer.executors() };
        let total: usize = online().map(|(name, computer)| count(name, computer)).sum();
        let busy: usize = online().map(|(_, computer)| computer.busy.len()).sum();
        let tied = self.jobs.iter().filter(|(_, job)| job.label.as_deref() == Some(text));
        json!({
            "_class": label.class(),
            "actions": [],
            "busyExecutors": busy,
            "clouds": [],
            "description": null,
            "idleExecutors": total - busy,
            "loadStatistics": {"_class": "hudson.model.Label$1"},
            "name": text,
            "nodes": names.iter().map(|name| {
                let class = if name == BUILT_IN { "hudson.model.Hudson" } else { "hudson.slaves.DumbSlave" };
                json!({"_class": class, "nodeName": own(name)})
            }).collect::<Value>(),
            "offline": online().next().is_none(),
            "tiedJobs": tied.map(|(name, _)| job_reference(name, root)).collect::<Value>(),
            "totalExecutors": total,
        })
    }

    /// The JSON of the queue, the newest first.
    pub(super) fn queue_json(&self, language: Language, root: &str) -> Value {
        let items = self.waiting().map(|(id, build)| self.item_json(id, build, language, root));
        let mut items: Vec<Value> = items.collect();
        items.reverse();
        json!({"_class": "hudson.model.Queue", "discoverableItems": [], "items": items})
    }

    /// The JSON of one that was in the queue.
    pub(super) fn item_json(&self, id: usize, build: &Build, language: Language, root: &str) -> Value {
        let since = build.since.duration_since(UNIX_EPOCH).unwrap().as_millis();
        if build.state != BuildState::Waiting {
            return json!({
                "_class": "hudson.model.Queue$LeftItem",
                "id": id + 1,
                "why": null,
                "stuck": false,
                "blocked": false,
                "buildable": false,
                "cancelled": false,
                "inQueueSince": since,
                "task": job_reference(&build.job, root),
                "executable": build_reference(build, root),
                "url": format!("queue/item/{}/", id + 1),
            });
        }
        let why = self.why(build);
        let hopeless = matches!(why, Wait::NoNodes(_) | Wait::Offline(_) | Wait::AllOffline(_));
        json!({
            "_class": "hudson.model.Queue$BuildableItem",
            "actions": [],
            "id": id + 1,
            "why": language.why(&why),
            "stuck": hopeless && build.since.elapsed().unwrap_or_default() >= self.stuck_after,
            "blocked": false,
            "buildable": true,
            "pending": false,
            "params": "",
            "inQueueSince": since,
            "buildableStartMilliseconds": since,
            "task": job_reference(&build.job, root),
            "url": format!("queue/item/{}/", id + 1),
        })
    }

    /// The JSON of a build; none if there is no such one.
    pub(super) fn build_json(&self, job: &str, number: &str, root: &str) -> Option<Value> {
        let wanted = if number == "lastBuild" { self.jobs.get(job)?.builds } else { number.parse().ok()? };
        let (id, build) = self.builds.iter().enumerate().find(|(_, build)| build.job == job && build.number == wanted && wanted > 0)?;
        let result = match build.state {
            BuildState::Ended(Outcome::Success) => Some("SUCCESS"),
            BuildState::Ended(Outcome::Failure) => Some("FAILURE"),
            _ => None,
        };
        let mut answer = build_reference(build, root);
        answer["building"] = result.is_none().into();
        answer["result"] = result.into();
        answer["queueId"] = (id + 1).into();
        answer["builtOn"] = build.node.as_deref().filter(|node| *node != BUILT_IN).unwrap_or_default().into();
        Some(answer)
    }
}

/// How the URL of Jenkins' own node names it.
pub(super) const BUILT_IN: &str = "(built-in)";

/// Whether a URL's name leads to Jenkins' own node, whatever nodes there are.
pub(super) fn is_built_in(name: &str) -> bool {
    matches!(name, BUILT_IN | "(master)")
}

fn built_in_labels() -> BTreeSet<String> {
    BTreeSet::from(["built-in".to_owned()])
}

fn job_reference(name: &str, root: &str) -> Value {
    json!({"_class": "hudson.model.FreeStyleProject", "name": name, "url": format!("{root}job/{name}/"), "color": "notbuilt"})
}

fn build_reference(build: &Build, root: &str) -> Value {
    let url = format!("{root}job/{}/{}/", build.job, build.number);
    json!({"_class": "hudson.model.FreeStyleBuild", "number": build.number, "url": url})
}
