//! What goes over HTTP: the requests and answers of version 1, shared by the server, the tools and `muster-agent`.
//!
//! Times are microseconds since the Unix epoch in fields that end in `_us`. Lists are pages: `items` and, when there is more, `next`, the
//! `cursor` to ask with. A request with a field that is not known is refused, so that a misspelt one is not passed over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::names::{AgentName, BundleName, Digest, LabelName, TeamName};

/// One page of a listing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// What to pass as `cursor` for the next page; none on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An error, after RFC 9457.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Problem {
    /// A short text for the kind of error.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// A stable word that a program can act on.
    pub code: String,
    /// What failed and why, this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The id of the request, to be found in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

/// What an agent says of itself, at its first contact and at each poll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The agent's name.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub name: AgentName,
    /// Its labels.
    #[cfg_attr(feature = "server", schema(value_type = Vec<String>))]
    pub labels: Vec<LabelName>,
    /// How many builds it takes at once.
    pub executors: u32,
    /// Its root: an absolute path.
    pub root: String,
    /// How it is reached, if it is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// `linux`, `darwin`.
    pub os: String,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// What the machine was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Anything else that its modules may want to know.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Its ssh host key, for the ssh link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_host_key: Option<String>,
    /// A random id of this start of the agent program. When it changes, the machine is provisioned again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// How it is reached during a run.
    #[serde(default, skip_serializing_if = "LinkKind::is_default")]
    pub link: LinkKind,
    /// The bundles that were brought to it when its image was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baked: Vec<Baked>,
}

/// A bundle that was brought to a machine when its image was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Baked {
    /// Which.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub bundle: BundleName,
    /// Its version.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub version: Digest,
    /// Where it is: an absolute path.
    pub destination: String,
}

/// How an agent is reached during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// It opens a session when it is told to.
    #[default]
    Session,
    /// The server dials its `address`.
    Ssh,
    /// It asks for its next step, with nothing but `sh` and `curl`.
    Poll,
}

impl LinkKind {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The answer to a registration or a poll.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Registered {
    /// The agent as the server knows it.
    pub agent: RegisteredAgent,
    /// The agent's own credential, shown once: in the answer that admitted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// In how many milliseconds to come back.
    pub poll_after_ms: u64,
    /// The path at which to open a session now, if one is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// The agent in the answer to its own registration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct RegisteredAgent {
    /// Its id; never used twice.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The labels that it was admitted with.
    pub labels: Vec<String>,
    /// Its state.
    pub state: AgentState,
    /// Why it is in that state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Where an agent is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// Known, and not yet provisioned.
    Registered,
    /// A run is under way.
    Provisioning,
    /// Every module of its labels succeeded, and what is to be launched was launched.
    Ready,
    /// A module did not succeed; tried again later unless it said never.
    Failed,
    /// Takes no more work.
    Draining,
    /// Missed its polls.
    Lost,
    /// Given up; its name is free.
    Gone,
    /// Stopped by an admin.
    Quarantined,
}

impl AgentState {
    /// The word for it, as JSON has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Provisioning => "provisioning",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Draining => "draining",
            Self::Lost => "lost",
            Self::Gone => "gone",
            Self::Quarantined => "quarantined",
        }
    }
}

/// One agent in a listing, and at the head of `show`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Agent {
    /// Its id; never used twice.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// Its state.
    pub state: AgentState,
    /// Why it is in that state.
    pub reason: String,
    /// Since when.
    pub since_us: i64,
    /// When it is tried again, if it failed and is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at_us: Option<i64>,
    /// When it was last heard of.
    pub last_seen_us: i64,
    /// When it registered.
    pub registered_us: i64,
    /// Whether its session is open.
    pub session: bool,
    /// The release that each of its labels was provisioned with.
    pub releases: BTreeMap<String, i64>,
    /// Executors.
    pub executors: u32,
    /// Its root.
    pub root: String,
    /// How it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub arch: String,
    /// What the machine was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Anything else it said.
    pub attributes: BTreeMap<String, String>,
    /// What was launched and how it is: `running (pid 12)`, say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launched: Option<String>,
    /// What it is at its controller, if its label's policy names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<AgentNode>,
}

/// An agent as its controller has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct AgentNode {
    /// The controller.
    pub controller: String,
    /// The node's name there.
    pub name: String,
    /// How it is, by the last list of the controller's nodes: `online`, `online, a build runs`, `offline: REASON`, `missing`, `unknown: WHY`.
    pub state: String,
}

/// One change of an agent's state.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct AgentEvent {
    /// When.
    pub at_us: i64,
    /// The state from then on.
    pub state: AgentState,
    /// Why.
    pub cause: String,
}

/// An agent with its history.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct AgentDetail {
    /// The agent.
    pub agent: Agent,
    /// Its changes of state, newest first.
    pub events: Vec<AgentEvent>,
    /// Its runs, newest first.
    pub runs: Vec<Run>,
    /// What was in its image, beside what the releases of its labels want: one for each bundle, place and version that is wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baked: Vec<BakedState>,
}

/// A bundle that was brought to an agent when its image was made, and how far it is from what is wanted now.
///
/// It tells of the image: what the machine was sent since does not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct BakedState {
    /// Which.
    pub bundle: String,
    /// The version in the image.
    pub version: String,
    /// Where it is.
    pub destination: String,
    /// The version that a release in force pins; none if no release of the agent's labels, as far as they are the caller's, has the bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// The labels of which the release in force pins that version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Files and symlinks that are not the same in both versions, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// Bytes of contents that the version in the image lacks, if it is known: what is sent at most, before compression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Why the difference is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// Why an agent is not ready, or that it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Explanation {
    /// The agent.
    pub name: String,
    /// Its state.
    pub state: AgentState,
    /// One sentence that answers.
    pub summary: String,
    /// What led there, each with its time where it has one: causes, the run, its last step, the module's message.
    pub because: Vec<Because>,
    /// What to do next.
    pub next: Vec<String>,
}

/// One reason in an explanation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Because {
    /// When, if it is something that happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_us: Option<i64>,
    /// What.
    pub text: String,
}

/// What an operator may say with a call that acts on an agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Act {
    /// Why; kept as the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ModuleKind {
    /// A WebAssembly component.
    #[default]
    Component,
    /// A plain script, which the server's script runner runs.
    Script,
}

impl ModuleKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Component => "component",
            Self::Script => "script",
        }
    }
}

/// A script as it was pushed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ScriptText {
    /// The name of its file.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// One version of a module.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Module {
    /// The sha256 of its bytes.
    pub digest: String,
    /// Its name.
    pub name: String,
    /// The team that it belongs to.
    pub team: String,
    /// Whether it is a component or a script.
    #[serde(default)]
    pub kind: ModuleKind,
    /// Its size.
    pub size_bytes: u64,
    /// The world that it implements; of a script, the one that its runner does.
    pub world: String,
    /// The interfaces that it imports; of a script, those that its runner does.
    pub imports: Vec<String>,
    /// The language it was written in, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// The grants that it asks for, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asks: Option<Asks>,
    /// When it was uploaded.
    pub uploaded_us: i64,
}

/// The grants that a module asks for. Nothing is granted by being asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Asks {
    /// Programs to run, probe and launch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub run: Vec<String>,
    /// Paths to write, remove, push to and mirror to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub write: Vec<String>,
    /// Paths to read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<String>,
    /// Secrets to give to commands.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// URLs to reach. No policy can grant any yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<String>,
}

impl Asks {
    /// What is asked for, by the kinds of grants, in a policy's order.
    pub fn kinds(&self) -> [(&'static str, &[String]); 5] {
        [("run", &self.run), ("write", &self.write), ("read", &self.read), ("secrets", &self.secrets), ("http", &self.http)]
    }
}

/// One version of a bundle.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Bundle {
    /// Its name.
    pub name: String,
    /// The sha256 of its manifest.
    pub version: String,
    /// The team that it belongs to.
    pub team: String,
    /// Its files and symlinks.
    pub files: u64,
    /// The bytes of its files.
    pub bytes: u64,
    /// When it was pushed.
    pub pushed_us: i64,
}

/// Which contents the server should look for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ContentsAsked {
    /// Digests of contents.
    pub digests: Vec<String>,
}

/// Which contents the server lacks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ContentsMissing {
    /// Digests of contents, in the order in which they were asked.
    pub missing: Vec<String>,
}

/// What an upload of contents brought.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ContentsStored {
    /// How many contents were stored.
    pub stored: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One label and its release in force.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Label {
    /// The label.
    pub label: String,
    /// The team that it belongs to.
    pub team: String,
    /// The release in force.
    pub release: Release,
    /// Living agents that carry it, by state.
    pub agents: BTreeMap<String, u64>,
}

/// A label with its release in force, and what the images of its agents cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct LabelDetail {
    /// The label.
    pub label: String,
    /// The team that it belongs to.
    pub team: String,
    /// The release in force.
    pub release: Release,
    /// Living agents that carry it, by state.
    pub agents: BTreeMap<String, u64>,
    /// What boots were sent, by image; what was sent most altogether is first.
    #[serde(default)]
    pub images: Vec<ImageCost>,
    /// Since when boots are counted. Of very many only the newest are.
    #[serde(default)]
    pub images_since_us: i64,
}

/// What the boots from one image cost, because of what the image lacks.
///
/// A boot is a start of the agent's program, and its cost that of the first run of the label that succeeded from then on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ImageCost {
    /// The image, as agents say it; null for all agents that say none.
    pub image: Option<String>,
    /// How many boots.
    pub boots: u64,
    /// Bytes of bundle content that a boot was sent, on average, before compression.
    pub bytes_per_boot: u64,
    /// Seconds that pushes and mirrors took a boot, on average.
    pub seconds_per_boot: f64,
    /// When the last of these boots was provisioned.
    pub last_boot_us: i64,
}

/// What waits for a label at its controller, and who is there for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Demand {
    /// The label.
    pub label: String,
    /// The controller.
    pub controller: String,
    /// When it was so.
    pub seen_us: i64,
    /// Builds that wait.
    pub queued: u64,
    /// The same by why they wait: `no-nodes`, `offline`, `busy`, `other` for an executor; `blocked`, `quiet`, `shutting-down` for none.
    pub reasons: BTreeMap<String, u64>,
    /// Executors that build.
    pub busy: u64,
    /// Executors that could.
    pub idle: u64,
    /// How long the one that waits longest has waited for an executor.
    pub oldest_waiting_seconds: u64,
    /// How many executors more would be used at once: builds that wait for one, less those that are idle.
    pub should_grow: u64,
    /// Why there are no newer figures, if the controller did not answer since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A controller of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Controller {
    /// Its name.
    pub name: String,
    /// What it is: `jenkins`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its URL.
    pub url: String,
    /// The user.
    pub user: String,
    /// The labels whose policies in force name it.
    pub labels: Vec<String>,
    /// Its version, if it was heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When it last said what waits there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_us: Option<i64>,
    /// Why it did not since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a controller lets its user do, as it was found out just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ControllerCheck {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// Whether it answers as a Jenkins that is ready.
    pub answers: bool,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Who it takes the user for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Permissions that the user lacks: `Agent/Create`.
    pub missing: Vec<String>,
    /// Permissions of which it could not be found out.
    pub unseen: Vec<String>,
    /// The node that was made for this, and that could not be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
    /// What kept more from being found out, or is wrong besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One recorded policy of a label.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Release {
    /// The label.
    pub label: String,
    /// Its number: 1 for the label's first.
    pub release: i64,
    /// When it was made.
    pub made_us: i64,
    /// Who made it: a token's id, never its secret.
    pub made_by: String,
    /// How it came about: `applied`, `swapped`, `rolled back to 3`.
    pub how: String,
    /// The policy, with module and bundles pinned.
    #[cfg_attr(feature = "server", schema(value_type = Object))]
    pub policy: serde_json::Value,
    /// The grants that its module asks for, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asks: Option<Asks>,
    /// What of that the policy does not grant, a line each: `grants.run /usr/bin/java`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_granted: Vec<String>,
}

/// What applying a policy did, or would do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Applied {
    /// The label.
    pub label: String,
    /// The release in force from now on. With `preview` or no changes: the one that is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<i64>,
    /// The release that was in force until now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<i64>,
    /// What differs, a line each: `~ module: a@… → a@…`. Empty: nothing, and no release was made.
    pub changes: Vec<String>,
    /// What the module asks for and the policy does not grant, a line each: `grants.run /usr/bin/java`. A call that needs it will be denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_granted: Vec<String>,
    /// How many living agents carry the label.
    pub agents: u64,
}

/// A swap: the policy in force with another module.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Swap {
    /// `NAME@DIGEST`, or a name alone for its newest version.
    pub module: String,
}

/// A rollback: an earlier release's policy, as a new release.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Which; the one before the release in force if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<i64>,
}

/// One execution of one release for one agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Run {
    /// Its id; ids sort by time.
    pub id: String,
    /// The agent's name.
    pub agent: String,
    /// The label.
    pub label: String,
    /// The release.
    pub release: i64,
    /// The module's digest.
    pub module: String,
    /// Which attempt at this release, for this agent.
    pub attempt: u32,
    /// `running`, or the verdict's word: `provisioned`, `refused-later`, `refused-never`, `refused`, `trapped`, `timed-out`,
    /// `over-limit`, `link-lost`, `host-fault`.
    pub verdict: String,
    /// What the module or the server said about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it began.
    pub began_us: i64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_us: Option<i64>,
    /// Calls made.
    pub calls: u64,
    /// Bytes of bundle content that were sent.
    pub bytes_sent: u64,
    /// Bytes of bundle content that the agent had already.
    pub bytes_saved: u64,
}

/// One line of a run's log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// Its place in the log, from 0.
    pub seq: i64,
    /// When.
    pub at_us: i64,
    /// `debug`, `info`, `warn`, `error`, `step`, `call`, `stdout`, `stderr`.
    pub level: String,
    /// The text.
    pub text: String,
}

/// A token to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenAsked {
    /// What it is for.
    pub kind: TokenKind,
    /// The team: needed for `team`; for `join`, the team that its agents belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub team: Option<TeamName>,
    /// For `join`: the labels that agents may carry. At least one.
    #[serde(default)]
    #[cfg_attr(feature = "server", schema(value_type = Vec<String>))]
    pub labels: Vec<LabelName>,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// Admits agents.
    Join,
    /// Acts for a team.
    Team,
    /// Does everything.
    Admin,
}

/// A token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Token {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub kind: TokenKind,
    /// Its team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Its labels.
    pub labels: Vec<String>,
    /// When it was made.
    pub made_us: i64,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_us: Option<i64>,
}

/// A token just made, with its secret, which is shown this once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct TokenMade {
    /// The token.
    pub token: Token,
    /// What to put into `Authorization: Bearer`.
    pub secret: String,
}
