//! The nodes of one controller beside the agents that they are of: listed once for all, and brought to agree.
//!
//! What the list shows is compared with what is known of the agents, and what differs is written, a few at once. A controller that is away is
//! asked again, and nothing is concluded from its silence.

mod plan;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream;

use self::plan::{Act, act_for, is_overdue, is_pressing};
use crate::api::AgentState;
use crate::controller::Controller;
use crate::controller::jenkins::{JenkinsError, Node, NodeName};
use crate::controller::nodes::{Kept, Look, NodeError, Nodes};
use crate::limits::{NODES_CHANGED_AT_ONCE, NODES_GATHER, NODES_INTERVAL, NODES_PAUSE, NODES_PAUSE_MIN};
use crate::machine::with_causes;
use crate::roster::agent::Agent;
use crate::roster::{Roster, Why};
use crate::shelf::Shelf;
use crate::store::nodes::NodeRow;

/// What part of a controller's time may be taken by lists while somebody waits.
const SHARE: u32 = 20;

/// What keeps the nodes of one controller.
pub struct Keeper {
    controller: Arc<Controller>,
    nodes: Arc<Nodes>,
    roster: Arc<Roster>,
    shelf: Arc<Shelf>,
}

/// Keeps the nodes of one controller, for as long as the server lives.
pub async fn work(keeper: Keeper) {
    let Keeper { controller, nodes, roster, shelf } = &keeper;
    let mut changes = roster.changes();
    let (mut next, mut away, mut is_swept) = (Instant::now(), false, false);
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            () = nodes.poked(&controller.name) => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(NODES_GATHER).await;
                changes.mark_unchanged();
                if !keeper.is_pressing() {
                    continue;
                }
            }
        }
        let is_named = || shelf.releases().values().any(|release| release.policy.launch.controller.as_ref() == Some(&controller.name));
        if is_swept && !nodes.has_any(&controller.name) && !nodes.is_awaited(&controller.name) && !is_named() {
            next = Instant::now() + NODES_INTERVAL;
            continue;
        }
        let began = Instant::now();
        let looked = nodes.look(controller).await;
        let (took, mut is_whole) = (began.elapsed(), true);
        // Whatever the controller says, or does not say.
        keeper.end_overdue().await;
        match looked {
            Ok(look) => {
                if std::mem::take(&mut away) {
                    tracing::info!(controller = %controller.name, "the nodes at controller {} are known again", controller.name);
                }
                is_whole = keeper.settle(&look).await;
                is_swept = true;
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(controller = %controller.name, %error, "the nodes at controller {} are not known: {error}", controller.name);
                }
            }
        }
        let pause = if away || !is_whole { NODES_PAUSE } else { (took * SHARE).clamp(NODES_PAUSE_MIN, NODES_PAUSE) };
        tokio::time::sleep(pause).await;
        let is_soon = !is_whole || nodes.is_awaited(&controller.name) || keeper.is_pressing();
        next = Instant::now() + if is_soon { Duration::ZERO } else { NODES_INTERVAL };
    }
}

impl Keeper {
    /// Puts it together, before any agent is let in: whoever is drained has the builds that it had when the server ended.
    pub fn new(controller: Arc<Controller>, nodes: Arc<Nodes>, roster: Arc<Roster>, shelf: Arc<Shelf>) -> Self {
        for kept in nodes.at(&controller.name) {
            if let Some(agent) = roster.by_id(&kept.row().agent_id) {
                agent.finishes(true);
            }
        }
        Self { controller, nodes, roster, shelf }
    }

    /// Whether an agent's change asks for something to be done before the next interval.
    fn is_pressing(&self) -> bool {
        self.nodes.at(&self.controller.name).iter().any(|kept| {
            let agent = self.roster.by_id(&kept.row().agent_id);
            // A drain ends in its time, whatever the controller refuses.
            let is_refused = kept.is_refused(Instant::now()) && !agent.as_ref().is_some_and(|agent| agent.is_finishing());
            !is_refused && is_pressing(&kept.row(), kept.door(), agent.as_deref())
        })
    }

    /// Ends what drained agents launched whose builds were waited for long enough.
    async fn end_overdue(&self) {
        for kept in self.nodes.at(&self.controller.name) {
            let row = kept.row();
            let Some(agent) = self.roster.by_id(&row.agent_id).filter(|agent| agent.is_finishing()) else { continue };
            let drained = agent.view().row;
            if is_overdue(&row, &drained) {
                tracing::warn!(agent = %row.agent, node = %kept.name, "what is built on node {} at controller {} is not waited for any longer", kept.name, self.controller.name);
                finish(&agent, &drained.reason).await;
            }
        }
    }

    /// Does what the list asks for; false if the controller is away by then. The rest waits for the next list.
    async fn settle(&self, look: &Look) -> bool {
        let now = Instant::now();
        let mut acts = Vec::new();
        for kept in self.nodes.at(&self.controller.name) {
            let (row, node) = (kept.row(), look.nodes.get(kept.name.as_str()));
            // What was written since is not in it.
            if kept.is_busy() || kept.is_older_than_write(look.began) || kept.is_refused(now) {
                continue;
            }
            let node = node.filter(|node| self.nodes.owns(&kept, node));
            let agent = self.roster.by_id(&row.agent_id);
            if let Some(act) = act_for(&kept, &row, node, agent.as_deref(), now) {
                acts.push(Todo::Of(kept, row, act));
            }
        }
        for node in look.nodes.values() {
            if let Some(agent_id) = self.nodes.orphan(&self.controller, node) {
                // One of an agent that lives and has no other is taken by its next launch.
                let is_wanted = self.roster.by_id(agent_id).is_some() && self.nodes.current(agent_id).is_none();
                if !is_wanted && let Ok(name) = node.name.parse::<NodeName>() {
                    acts.push(Todo::Orphan(name, node.clone()));
                }
            }
        }
        let is_away = &AtomicBool::new(false);
        let perform = |todo| async move {
            if !is_away.load(Ordering::Relaxed) && !self.perform(todo).await {
                is_away.store(true, Ordering::Relaxed);
            }
        };
        stream::iter(acts).for_each_concurrent(NODES_CHANGED_AT_ONCE, perform).await;
        !is_away.load(Ordering::Relaxed)
    }

    /// Does one thing; false if the controller is away.
    async fn perform(&self, todo: Todo) -> bool {
        let (name, done) = match &todo {
            Todo::Of(kept, row, act) => (&kept.name, self.do_one(kept, row, act).await),
            Todo::Orphan(name, node) => (name, self.remove_orphan(name, node).await),
        };
        match done {
            Ok(()) => true,
            Err(error) if error.is_passing() => {
                tracing::debug!(controller = %self.controller.name, node = %name, error = with_causes(&error), "node {name} is tried again");
                !matches!(error, NodeError::Controller(JenkinsError::Away(_)))
            }
            Err(error) => {
                if let Todo::Of(kept, ..) = &todo {
                    kept.refused();
                }
                tracing::warn!(controller = %self.controller.name, node = %name, error = with_causes(&error), "node {name} at controller {} is not as it should be: {error}", self.controller.name);
                true
            }
        }
    }

    async fn do_one(&self, kept: &Arc<Kept>, row: &Arc<NodeRow>, act: &Act) -> Result<(), NodeError> {
        match act {
            Act::Remove => {
                tracing::info!(controller = %self.controller.name, node = %kept.name, "node {} at controller {} is removed: agent {} is gone, or not there any more", kept.name, self.controller.name, row.agent);
                self.nodes.remove(kept, row).await
            }
            Act::Restore { labels, executors } => {
                let restored = self.nodes.restore(kept, labels.clone(), *executors).await;
                if let (Err(NodeError::Foreign(_)), Some(agent)) = (&restored, self.roster.by_id(&row.agent_id)) {
                    self.roster.wake(&agent, Why::Relaunch(format!("its node `{}` is somebody else's now", kept.name)));
                }
                restored
            }
            Act::Mark(why) => self.nodes.mark(kept, why).await,
            Act::Unmark => self.nodes.unmark(kept).await,
            Act::Finish(reason) => {
                if let Some(agent) = self.roster.by_id(&row.agent_id) {
                    finish(&agent, reason).await;
                }
                Ok(())
            }
            Act::Relaunch(cause) => {
                if let Some(agent) = self.roster.by_id(&row.agent_id) {
                    self.roster.wake(&agent, Why::Relaunch(cause.clone()));
                }
                Ok(())
            }
        }
    }

    /// Removes a node that no row tells of: what is built there comes to its end first.
    async fn remove_orphan(&self, name: &NodeName, node: &Node) -> Result<(), NodeError> {
        if node.is_idle {
            tracing::info!(controller = %self.controller.name, node = %name, "node {name} at controller {} is removed: this server made it, and has no agent for it", self.controller.name);
            return self.nodes.remove_orphan(&self.controller, name).await;
        }
        if !node.is_marked {
            self.nodes.close_orphan(&self.controller, name).await?;
        }
        Ok(())
    }
}

/// Ends what a drained agent launched.
async fn finish(agent: &Agent, reason: &str) {
    agent.finishes(false);
    // It may be taken back just now.
    if let Some(link) = agent.link().filter(|_| agent.state() == AgentState::Draining) {
        let _ = link.drain(reason).await;
    }
}

enum Todo {
    Of(Arc<Kept>, Arc<NodeRow>, Act),
    Orphan(NodeName, Node),
}
