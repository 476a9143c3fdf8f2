//! The last step: what is launched when every module has succeeded.
//!
//! A program of the policy's or a module's is started, and that is all. For a controller there is more to do, in this order: the agent's node,
//! its secret, the controller's own program as bits, a Java that runs it, and a file of arguments that the agent's user alone can read. What
//! is started then is ready when the controller says that it is online, and not before.

mod java;
mod online;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, TryFutureExt as _};
use tokio_util::sync::CancellationToken;

use crate::api::AgentState;
use crate::controller::Controller;
use crate::controller::jenkins::JenkinsError;
use crate::controller::jenkins::start::{ArgumentFile, Start};
use crate::controller::nodes::{AgentBundle, Closed, Kept, NodeError, Wish};
use crate::journal::now_us;
use crate::limits::{LAUNCH_MAX, NODES_PAUSE, REDACTED_BYTES_MIN};
use crate::link::Link;
use crate::machine::{CallError, Command, SyncMode, SyncRules};
use crate::policy::{Launch, NodeMode, NodeNaming};
use crate::provision::{Provision, outcome};
use crate::roster::agent::{Agent, View};
use crate::shelf::Release;
use crate::store::StoreError;
use crate::store::nodes::NodePlan;

/// Where a node's program is, below the agent's root.
const DIRECTORY: &str = "muster-node";

/// What is to be launched.
pub(super) enum Launching {
    /// A program.
    Program(Command),
    /// What this release's controller has its agents run.
    Node(Arc<Release>),
}

/// How a launch ended that did not succeed.
pub(super) enum Unlaunched {
    /// Somebody halted the agent, or it is to begin anew.
    Ended,
    /// It failed, for a reason that a person reads.
    Failed(String),
    /// The store failed.
    Store(StoreError),
}

impl From<StoreError> for Unlaunched {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// An agent while it is launched.
pub(super) struct Launcher<'a> {
    pub(super) provision: &'a Provision,
    pub(super) agent: &'a Arc<Agent>,
    pub(super) ending: &'a CancellationToken,
}

impl Provision {
    /// Launches, and says what came of it. Until what ran before is ended, the door stays closed.
    pub(super) async fn launch(
        &self,
        agent: &Arc<Agent>,
        link: &dyn Link,
        ending: &CancellationToken,
        launching: &Launching,
        closed: Option<Closed>,
    ) -> Result<(), StoreError> {
        let launcher = Launcher { provision: self, agent, ending };
        let launched = match launching {
            Launching::Program(command) => launcher.program(link, command).await,
            Launching::Node(release) => launcher.node(link, release, closed).await,
        };
        if launched.is_err() {
            // What ran before, and was not ended, works on.
            let _ = link.resume().await;
        }
        let (ready, cause) = match launched {
            Ok(cause) => (true, cause),
            Err(Unlaunched::Failed(cause)) => (false, cause),
            Err(Unlaunched::Store(error)) => return Err(error),
            Err(Unlaunched::Ended) => {
                // What it holds is worth nothing without its launch.
                let anew = |row: &mut crate::store::agents::AgentRow| {
                    (row.state == AgentState::Provisioning && agent.is_wanted_anew()).then(|| {
                        row.state = AgentState::Registered;
                        row.releases.clear();
                        "what it is to be has changed while it was launched".into()
                    })
                };
                return self.roster.change(agent, anew).await.map(drop);
            }
        };
        let changed = self.roster.change(agent, |row| {
            if row.state != AgentState::Provisioning {
                return None;
            }
            if ready {
                row.state = AgentState::Ready;
                row.attempt = 0;
            } else {
                row.state = AgentState::Failed;
                row.releases.clear();
                row.retry_at_us = Some(now_us() + outcome::pause_us(row.attempt));
            }
            Some(cause)
        });
        if changed.await? && ready {
            // What it was before at another controller, or at this one, is over.
            let stays = match launching {
                Launching::Program(_) => None,
                Launching::Node(release) => release.policy.launch.controller.as_ref(),
            };
            self.nodes.leave(agent.id(), stays).await?;
        }
        Ok(())
    }
}

impl Launcher<'_> {
    async fn program(&self, link: &dyn Link, command: &Command) -> Result<String, Unlaunched> {
        match self.start(link, command).await? {
            Ok(()) => Ok(format!("provisioned, and `{}` is launched", command.program)),
            Err(error) => Err(Unlaunched::Failed(format!(
                "`{}` can not be launched: {}",
                command.program,
                without_values(error.to_string(), command)
            ))),
        }
    }

    async fn start(&self, link: &dyn Link, command: &Command) -> Result<Result<(), CallError>, Unlaunched> {
        tokio::select! {
            biased;
            () = self.ending.cancelled() => Err(Unlaunched::Ended),
            launched = tokio::time::timeout(LAUNCH_MAX, link.launch(command)) => Ok(launched.unwrap_or(Err(CallError::TimedOut))),
        }
    }

    /// Makes the agent a node of its release's controller; says so when the controller does.
    async fn node(&self, link: &dyn Link, release: &Release, closed: Option<Closed>) -> Result<String, Unlaunched> {
        let launch = &release.policy.launch;
        let Some(name) = &launch.controller else { return Err(Unlaunched::Failed("its policy names no controller".into())) };
        let failed = |what: &str, error: &dyn std::fmt::Display| Unlaunched::Failed(format!("{what} at controller `{name}`: {error}"));
        let nodes = &self.provision.nodes;
        let controller = nodes.controller(name).map_err(|error| failed("it can not be a node", &error))?;
        let view = self.agent.view();
        let wish = wish(&view, release);
        let ensure = || {
            let (nodes, controller, wish) = (Arc::clone(nodes), Arc::clone(controller), wish.clone());
            let roster = Arc::clone(&self.provision.roster);
            // In a task of its own: what is between the store, the controller and memory is brought to its end, whoever halts the agent.
            let made = tokio::spawn(async move { nodes.ensure(&controller, &wish, &|id| roster.by_id(id).is_some()).await });
            made.map(|made| made.unwrap_or_else(|error| Err(JenkinsError::Lost(error.to_string()).into())))
        };
        let kept = self.patiently(controller, "its node can not be made yet", ensure).await?;
        let kept = kept.map_err(|error| failed("its node can not be made", &error))?;
        let told = format!("node `{}` at controller `{name}`", kept.name);
        let wait = "the secret of its node can not be read yet";
        let secret = || controller.jenkins.secret(&kept.name).map_err(NodeError::from);
        let inbound = self.patiently(controller, wait, secret).await?;
        let inbound = inbound.map_err(|error| failed("the secret of its node can not be read", &error))?;
        let wait = "the controller's agent.jar can not be fetched yet";
        let program = self.patiently(controller, wait, || nodes.agent_bundle(controller)).await?;
        let program = program.map_err(|error| failed("its agent.jar can not be had", &error))?;
        // All of it is done on the machine, and ends with whoever halts the agent.
        let java = self.while_wanted(self.prepare(link, launch, controller, &view, &kept, &inbound, &program)).await?;
        let java = java.map_err(|error| Unlaunched::Failed(format!("{told} can not be launched: {error}")))?;
        let root = view.claims.root.trim_end_matches('/');
        let command = Command {
            program: java,
            args: vec![format!("@{root}/{DIRECTORY}/arguments")],
            directory: Some(view.claims.root.clone()),
            ..Command::default()
        };
        if let Err(error) = self.start(link, &command).await? {
            return Err(Unlaunched::Failed(format!("{told} can not be launched: {error}")));
        }
        drop(closed);
        self.online(controller, &kept).await
    }

    /// Brings to the machine what is launched there; the Java that runs it.
    #[expect(clippy::too_many_arguments, reason = "what an argument file is made of")]
    async fn prepare(
        &self,
        link: &dyn Link,
        launch: &Launch,
        controller: &Controller,
        view: &View,
        kept: &Kept,
        inbound: &crate::controller::jenkins::Inbound,
        program: &AgentBundle,
    ) -> Result<String, String> {
        let root = view.claims.root.trim_end_matches('/');
        let version = controller.jenkins.last_about().map(|about| about.version).unwrap_or_default();
        let java = java::find(link, launch.java.as_deref(), program.jar.java_for(&version)).await?;
        let directory = format!("{DIRECTORY}/program");
        let rules = SyncRules { mode: SyncMode::Mirror, max_delete_percent: 100 };
        let brought = link.sync(&directory, &program.bundle, rules).await;
        brought.map_err(|error| format!("agent.jar can not be brought to the machine: {error}"))?;
        let arguments = ArgumentFile::new(&Start {
            jar: &format!("{root}/{directory}/{}", AgentBundle::FILE),
            remoting: &program.jar.remoting,
            url: &inbound.url,
            node: &kept.name,
            secret: &inbound.secret,
            work_dir: if root.is_empty() { "/" } else { root },
        });
        let arguments = arguments.map_err(|error| error.to_string())?;
        let written = link.write_file(&format!("{DIRECTORY}/arguments"), arguments.as_str().as_bytes(), 0o600).await;
        written.map_err(|error| format!("its file of arguments can not be written: {error}"))?;
        Ok(java)
    }

    /// Asks a controller until it answers. While it is away, one list tells all who wait when it is back.
    async fn patiently<T, F: Future<Output = Result<T, NodeError>>>(
        &self,
        controller: &Controller,
        waits: &str,
        ask: impl Fn() -> F,
    ) -> Result<Result<T, NodeError>, Unlaunched> {
        let mut told = false;
        loop {
            let error = match self.while_wanted(ask()).await? {
                Err(NodeError::Store(error)) => return Err(Unlaunched::Store(error)),
                Err(error) if error.is_passing() => error,
                done => return Ok(done),
            };
            if !std::mem::replace(&mut told, true) {
                self.tell(format!("{waits} at controller `{}`: {error}", controller.name)).await?;
            }
            let mut waiting = self.provision.nodes.wait(&controller.name);
            let back = async {
                // An answer that was lost was lost alone, perhaps: then the controller is there.
                tokio::time::sleep(NODES_PAUSE).await;
                while !matches!(error, NodeError::Controller(JenkinsError::Lost(_))) && waiting.next().await.is_err() {}
            };
            self.while_wanted(back).await?;
        }
    }

    /// Does something for as long as the agent is not halted, and is to be what it is launched as.
    async fn while_wanted<T>(&self, work: impl Future<Output = T>) -> Result<T, Unlaunched> {
        let mut work = std::pin::pin!(work);
        // Looked at first: what is asked again and again may each time be done sooner than the next look.
        while !self.agent.is_wanted_anew() {
            tokio::select! {
                biased;
                () = self.ending.cancelled() => return Err(Unlaunched::Ended),
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
        Err(Unlaunched::Ended)
    }

    /// Says how far it is, where a person looks.
    async fn tell(&self, reason: String) -> Result<(), Unlaunched> {
        let told = self
            .provision
            .roster
            .change(self.agent, |row| (row.state == AgentState::Provisioning && row.reason != reason).then_some(reason));
        Ok(told.await.map(drop)?)
    }
}

/// What an agent is to be at the controller of a release.
fn wish(view: &View, release: &Release) -> Wish {
    let launch = &release.policy.launch;
    Wish {
        agent_id: view.row.id.clone(),
        agent: view.row.name.clone(),
        label: release.label.clone(),
        plan: NodePlan {
            labels: view.row.labels.clone(),
            executors: view.claims.executors,
            root: view.claims.root.clone(),
            is_exclusive: launch.mode == NodeMode::Exclusive,
            environment: launch.environment.clone(),
            is_kept: launch.keep_node,
            is_plain: launch.node_name == NodeNaming::Plain,
            drain_seconds: u32::try_from(launch.drain().as_secs()).unwrap_or(u32::MAX),
            instance: view.row.instance.clone(),
        },
    }
}

/// What an agent says of a command, without the values of the command's variables: some are secrets.
fn without_values(mut text: String, command: &Command) -> String {
    let values =
        command.env.iter().flat_map(|(name, value)| std::iter::once(value.as_str()).chain(value.lines()).map(move |part| (name, part)));
    for (name, value) in values.filter(|(_, value)| value.len() >= REDACTED_BYTES_MIN) {
        text = text.replace(value, &format!("[{name}]"));
    }
    text
}
