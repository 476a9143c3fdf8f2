//! Agents that are due: taken one at a time, looked at, and, when something is to be done for them, brought.

use std::sync::Arc;

use crate::api::AgentState;
use crate::journal::now_us;
use crate::limits::STORE_RETRY;
use crate::names::LabelName;
use tokio_util::sync::CancellationToken;

use crate::provision::launch::Launching;
use crate::provision::{Provision, Work};
use crate::roster::agent::{Agent, View};
use crate::roster::{Roster, Why};
use crate::shelf::Release;
use crate::store::StoreError;
use crate::store::agents::AgentRow;

impl Provision {
    /// Looks at agents as they become due, for as long as the server lives.
    pub async fn work(self: Arc<Self>) {
        loop {
            for (agent, why) in self.roster.due().await {
                if !agent.take(&why) {
                    continue;
                }
                let taken = Taken { roster: Arc::clone(&self.roster), agent };
                let provision = Arc::clone(&self);
                tokio::spawn(async move { provision.attend(&taken, why).await });
            }
        }
    }

    /// Attends to one agent that is due. What the store failed at is tried again: nobody else would bring it up.
    async fn attend(&self, taken: &Taken, why: Why) {
        let agent = &taken.agent;
        if let Err(error) = self.look_at(agent, &why).await {
            tracing::error!(agent = %agent.name(), %error, "agent {} could not be attended to: the store failed; it is tried again", agent.name());
            tokio::time::sleep(STORE_RETRY).await;
            self.roster.wake(agent, why);
        }
    }

    async fn look_at(&self, agent: &Arc<Agent>, why: &Why) -> Result<(), StoreError> {
        // Taken once, before anything: whoever halts the agent from now on ends all that follows.
        let ending = agent.ending();
        let cause = {
            // After a swap thousands are due at once, and the database is one.
            let _looking = self.looking.acquire().await;
            self.begin_again(agent, why).await?;
            match self.consider(agent, why).await? {
                Considered::Nothing => {
                    self.roster.spare_session(agent);
                    return Ok(());
                }
                Considered::Relaunch(release) => return self.relaunch(agent, &ending, release, why).await,
                Considered::Work(work) => work.cause,
            }
        };
        let Some(closed) = self.without_builds(agent, &ending, &cause).await? else { return Ok(()) };
        let slot = tokio::select! {
            () = ending.cancelled() => return Ok(()),
            slot = self.slots.acquire() => slot,
        };
        // It is never closed.
        let Ok(slot) = slot else { return Ok(()) };
        // The slot may have been long in coming, and another release be in force by now.
        if let Considered::Work(work) = self.consider(agent, why).await? {
            self.bring(agent, &ending, work, slot, closed).await?;
            self.roster.spare_session(agent);
        }
        Ok(())
    }

    /// Launches once more what an agent that is ready is at its controller, which says that it is not there.
    async fn relaunch(&self, agent: &Arc<Agent>, ending: &CancellationToken, release: Arc<Release>, why: &Why) -> Result<(), StoreError> {
        let (Some(link), Why::Relaunch(cause)) = (agent.link(), why) else { return Ok(()) };
        let begun = self.roster.change(agent, |row| {
            (row.state == AgentState::Ready).then(|| {
                row.state = AgentState::Provisioning;
                row.attempt += 1;
                cause.clone()
            })
        });
        if begun.await? {
            self.launch(agent, &*link, ending, &Launching::Node(release), None).await?;
        }
        Ok(())
    }

    /// Asks for an agent to be provisioned again from the beginning, whatever it is brought to and whatever holds it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn ask(&self, agent: &Arc<Agent>, cause: String) -> Result<(), StoreError> {
        let why = Why::Asked { halts: agent.halts(), cause };
        // While a run goes on, the wish is kept and looked at when the run has ended.
        if agent.take(&why) {
            let _taken = Taken { roster: Arc::clone(&self.roster), agent: Arc::clone(agent) };
            self.begin_again(agent, &why).await?;
            self.roster.wake(agent, Why::Release("it was asked for".into()));
        }
        Ok(())
    }

    async fn begin_again(&self, agent: &Agent, why: &Why) -> Result<(), StoreError> {
        let Why::Asked { halts, cause } = why else { return Ok(()) };
        let begun = self.roster.change(agent, |row| {
            // Somebody halted it after it was asked for, and said the last word.
            if agent.halts() != *halts {
                return None;
            }
            row.releases.clear();
            row.retry_at_us = None;
            row.drained = None;
            row.attempt = 0;
            if !matches!(row.state, AgentState::Lost | AgentState::Gone) {
                row.state = AgentState::Registered;
            }
            Some(cause.clone())
        });
        begun.await.map(drop)
    }

    /// Says what is to be done for an agent that is due, if anything is.
    async fn consider(&self, agent: &Arc<Agent>, why: &Why) -> Result<Considered, StoreError> {
        let View { row, session, .. } = agent.view();
        match row.state {
            state if halted(state) => return Ok(Considered::Nothing),
            AgentState::Failed if *why < Why::Release(String::new()) && row.retry_at_us.is_none_or(|at| at > now_us()) => {
                return Ok(Considered::Nothing);
            }
            _ => {}
        }
        let mut releases: Vec<_> = row.labels.iter().filter_map(|label| self.shelf.release(label)).collect();
        releases.sort_by(|a, b| (a.policy.order, &a.label).cmp(&(b.policy.order, &b.label)));
        if releases.is_empty() {
            let labels: Vec<_> = row.labels.iter().map(LabelName::as_str).collect();
            let cause = format!("none of its labels has a release: {}", labels.join(", "));
            let change = |row: &mut AgentRow| {
                (!halted(row.state) && (row.state != AgentState::Registered || row.reason != cause)).then(|| {
                    row.state = AgentState::Registered;
                    cause
                })
            };
            self.roster.change(agent, change).await?;
            return Ok(Considered::Nothing);
        }
        let behind = releases.iter().find(|release| row.releases.get(&release.label) != Some(&release.number));
        let Some(behind) = behind else {
            if let Why::Relaunch(_) = why
                && let Some(release) = self.launched(agent, &releases)
                && row.state == AgentState::Ready
            {
                return Ok(Considered::Relaunch(release));
            }
            if row.state != AgentState::Ready {
                let cause = "it holds the releases in force already".to_owned();
                let change = |row: &mut AgentRow| {
                    (!halted(row.state)).then(|| {
                        row.state = AgentState::Ready;
                        row.retry_at_us = None;
                        cause
                    })
                };
                self.roster.change(agent, change).await?;
            }
            return Ok(Considered::Nothing);
        };
        if !session {
            agent.want_session();
            return Ok(Considered::Nothing);
        }
        let cause = match (why, row.releases.get(&behind.label)) {
            (Why::Asked { cause, .. }, _) => cause.clone(),
            (_, Some(has)) => format!("label `{}` is at release {}, the agent at {has}", behind.label, behind.number),
            (_, None) => format!("release {} of label `{}` is not on it yet", behind.number, behind.label),
        };
        Ok(Considered::Work(Work { releases, cause }))
    }
    /// The release by which an agent is a node of its controller, or is to be one.
    fn launched(&self, agent: &Agent, releases: &[Arc<Release>]) -> Option<Arc<Release>> {
        let Some(kept) = self.nodes.current(agent.id()) else {
            return releases.iter().rfind(|release| release.policy.launch.controller.is_some()).cloned();
        };
        let row = kept.row();
        let release = releases.iter().find(|release| release.label == row.label)?;
        (release.policy.launch.controller.as_ref() == Some(&row.controller)).then(|| Arc::clone(release))
    }
}

/// What is to be done for an agent that is due.
enum Considered {
    /// Nothing.
    Nothing,
    /// It is to be provisioned.
    Work(Work),
    /// What it is at the controller of this release is to be launched again.
    Relaunch(Arc<Release>),
}

/// Whether nothing is to be done for an agent in this state, until somebody changes it.
fn halted(state: AgentState) -> bool {
    matches!(state, AgentState::Gone | AgentState::Lost | AgentState::Quarantined | AgentState::Draining)
}

/// An agent that is being looked at; given back when dropped.
struct Taken {
    roster: Arc<Roster>,
    agent: Arc<Agent>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(why) = self.agent.release() {
            self.roster.wake(&self.agent, why);
        }
    }
}
