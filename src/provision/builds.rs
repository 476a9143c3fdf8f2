//! Builds are not ended by what is done to their agent: the door is closed first, then their end is waited for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::api::AgentState;
use crate::controller::nodes::{Closed, Kept, NodeError};
use crate::limits::NODES_PAUSE;
use crate::link::frames::Launched;
use crate::provision::Provision;
use crate::roster::agent::Agent;
use crate::store::StoreError;

impl Provision {
    /// Closes the door of an agent's node, if its program runs, and waits until nothing is built there. The door stays closed for as long as
    /// what is answered is held. Builds that run for longer than the policy has them waited for are ended by what comes; a controller that is
    /// away is waited for as long, so that an agent can leave one that does not come back. None if somebody halted the agent meanwhile.
    pub(super) async fn without_builds(
        &self,
        agent: &Arc<Agent>,
        ending: &CancellationToken,
        cause: &str,
    ) -> Result<Option<Option<Closed>>, StoreError> {
        let Some(kept) = self.nodes.current(agent.id()).filter(|kept| kept.row().made_us.is_some()) else { return Ok(Some(None)) };
        if !matches!(agent.view().launched, Some(Launched::Running { .. })) {
            return Ok(Some(None));
        }
        tokio::select! {
            biased;
            () = ending.cancelled() => Ok(None),
            closed = self.wait_for_builds(agent, &kept, cause) => closed.map(Some),
        }
    }

    async fn wait_for_builds(&self, agent: &Agent, kept: &Arc<Kept>, cause: &str) -> Result<Option<Closed>, StoreError> {
        let name = &kept.controller.name;
        let node = format!("node `{}` at controller `{name}`", kept.name);
        let (began, limit) = (Instant::now(), Duration::from_secs(kept.row().plan.drain_seconds.into()));
        let is_over = || began.elapsed() >= limit;
        let give_up = || tracing::warn!(agent = %agent.name(), node = %kept.name, "what is built on {node} is not waited for any longer");
        let closed = loop {
            match self.nodes.close(kept, cause).await {
                Ok(closed) => break closed,
                Err(NodeError::Store(error)) => return Err(error),
                Err(error) => self.tell_waiting(agent, format!("{cause}; {node} can not be taken out yet: {error}")).await?,
            }
            let mut waiting = self.nodes.wait(name);
            tokio::time::sleep(NODES_PAUSE).await;
            while !is_over() && waiting.next().await.is_err() {}
            if is_over() {
                give_up();
                return Ok(None);
            }
        };
        let asked = Instant::now();
        let mut waiting = self.nodes.wait(name);
        loop {
            let unknown = match waiting.next().await {
                Ok(look) if look.began <= asked => continue,
                Ok(look) if look.nodes.get(kept.name.as_str()).is_none_or(|node| node.is_idle) => return Ok(Some(closed)),
                Ok(_) => String::new(),
                Err(problem) => format!(", which is not known: {problem}"),
            };
            if is_over() {
                give_up();
                return Ok(Some(closed));
            }
            self.tell_waiting(agent, format!("{cause}; waiting for a build to end on {node}{unknown}")).await?;
        }
    }

    async fn tell_waiting(&self, agent: &Agent, reason: String) -> Result<(), StoreError> {
        let told = self.roster.change(agent, |row| {
            let waits = matches!(row.state, AgentState::Ready | AgentState::Registered | AgentState::Failed);
            (waits && row.reason != reason).then_some(reason)
        });
        told.await.map(drop)
    }
}
