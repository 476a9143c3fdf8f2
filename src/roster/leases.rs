//! Agents that do not come back: lost when they miss their polls, gone when they stay away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::api::{AgentState, LinkKind};
use crate::journal::now_us;
use crate::limits::{LEASE_INTERVALS, POLL_JITTER_SHARE, STEP_POLL_MAX};
use crate::roster::agent::Agent;
use crate::roster::{Roster, Why};
use crate::store::StoreError;

impl Roster {
    /// How long an agent's lease lasts from its last word, in microseconds.
    pub fn lease_us(&self) -> i64 {
        let lease = self.settings.poll.mul_f64(1.0 + POLL_JITTER_SHARE) * LEASE_INTERVALS;
        i64::try_from(lease.as_micros()).unwrap_or(i64::MAX)
    }

    /// How long a poll for steps is kept open: an agent is heard of when it asks, so no longer than it may be silent.
    pub fn step_poll(&self) -> Duration {
        self.settings.poll.min(STEP_POLL_MAX)
    }

    /// Marks agents lost whose lease is over, gives up those that were lost for too long, and wakes those whose pause is over. What could
    /// not be stored is logged, and done the next time.
    pub async fn expire(&self) {
        let now = now_us();
        let lease = self.lease_us();
        // The machine slept, its clock was set, or the store held this up: then it is this side that did not listen.
        let since_last = now - self.looked_us.swap(now, Ordering::Relaxed);
        if !(0..=lease / 2).contains(&since_last) {
            self.renew_leases(now);
        }
        for agent in self.all() {
            if let Err(error) = self.expire_one(&agent, now, lease).await {
                tracing::error!(agent = %agent.name(), %error, "the lease of agent {} could not be looked at", agent.name());
            }
        }
        // What this took does not count against the agents either.
        self.looked_us.store(now_us(), Ordering::Relaxed);
    }

    fn renew_leases(&self, now: i64) {
        for agent in self.all().iter().filter(|agent| agent.state() != AgentState::Lost) {
            agent.seen_us.store(now, Ordering::Relaxed);
        }
    }

    async fn expire_one(&self, agent: &Arc<Agent>, now: i64, lease: i64) -> Result<(), StoreError> {
        let kept = if agent.is_of_dynaslave() { self.settings.dynaslave_kept } else { self.settings.lost_kept };
        let kept = i64::try_from(kept.as_micros()).unwrap_or(i64::MAX);
        // One that is dialled need not poll: while its link is open it is there, and the link finds out by itself when it is not.
        if agent.link_kind() == LinkKind::Ssh && agent.link().is_some() {
            agent.heard();
        }
        let (state, since, retry_at) = {
            let live = agent.live();
            (live.row.state, live.row.since_us, live.row.retry_at_us)
        };
        match state {
            AgentState::Lost if now - since > kept => {
                let cause = format!("it was lost for {} s", (now - since) / 1_000_000);
                self.give_up(agent, &cause, |row| row.state == AgentState::Lost).await?;
            }
            AgentState::Lost | AgentState::Gone => {}
            _ if now - agent.seen_us.load(Ordering::Relaxed) > lease => self.lose(agent, now, lease).await?,
            // Its run could not be begun, or its end not be written: the store failed.
            AgentState::Provisioning if !agent.is_taken() => {
                self.begin_again(agent).await?;
            }
            AgentState::Registered if agent.link().is_some() => self.wake(agent, Why::Heard),
            AgentState::Failed if retry_at.is_some_and(|at| at <= now) => self.wake(agent, Why::Retry),
            _ => {}
        }
        Ok(())
    }

    async fn begin_again(&self, agent: &Agent) -> Result<bool, StoreError> {
        self.change(agent, |row| {
            (row.state == AgentState::Provisioning && !agent.is_taken()).then(|| {
                row.state = AgentState::Registered;
                "its run could not be recorded; it is tried again".into()
            })
        })
        .await
    }

    async fn lose(&self, agent: &Arc<Agent>, now: i64, lease: i64) -> Result<(), StoreError> {
        let lost = self.change(agent, |row| {
            let silent = now - agent.seen_us.load(Ordering::Relaxed);
            // It may have been heard of meanwhile. And what an admin decided about it holds still when it comes back.
            if silent <= lease || matches!(row.state, AgentState::Quarantined | AgentState::Lost | AgentState::Gone) {
                return None;
            }
            if row.state == AgentState::Provisioning {
                // It was not brought to the end, nor was anything launched.
                row.releases.clear();
            }
            row.state = AgentState::Lost;
            row.retry_at_us = None;
            Some(format!("no poll for {}.{} s", silent / 1_000_000, silent / 100_000 % 10))
        });
        if lost.await? {
            agent.end();
            if let Some(link) = agent.link() {
                self.close_link(agent, &link, "the agent missed its polls");
            }
        }
        Ok(())
    }
}
