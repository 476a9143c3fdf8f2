//! Agents that do not come back: lost when they miss their polls, gone when they stay away.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::api::AgentState;
use crate::journal::now_us;
use crate::limits::{LEASE_INTERVALS, POLL_JITTER_SHARE};
use crate::roster::{Agent, Roster, Why};
use crate::store::StoreError;

impl Roster {
    /// How long an agent's lease lasts from its last word, in microseconds.
    pub fn lease_us(&self) -> i64 {
        let lease = self.settings.poll.mul_f64(1.0 + POLL_JITTER_SHARE) * LEASE_INTERVALS;
        i64::try_from(lease.as_micros()).unwrap_or(i64::MAX)
    }

    /// Marks agents lost whose lease is over, gives up those that were lost for too long, and wakes those whose pause is over.
    ///
    /// # Errors
    /// When the store fails; what is left is done the next time.
    pub async fn expire(&self) -> Result<(), StoreError> {
        let now = now_us();
        let lease = self.lease_us();
        let kept = i64::try_from(self.settings.lost_kept.as_micros()).unwrap_or(i64::MAX);
        for agent in self.all() {
            let (state, since, retry_at) = {
                let live = agent.live();
                (live.row.state, live.row.since_us, live.row.retry_at_us)
            };
            let silent = now - agent.seen_us.load(Ordering::Relaxed);
            match state {
                AgentState::Lost if now - since > kept => {
                    let cause = format!("it was lost for {} s", (now - since) / 1_000_000);
                    self.give_up(&agent, &cause).await?;
                }
                AgentState::Lost | AgentState::Gone => {}
                _ if silent > lease => self.lose(&agent, silent).await?,
                // Its run could not be begun, or its end not be written: the store failed.
                AgentState::Provisioning if !agent.is_taken() => self.begin_again(&agent).await?,
                AgentState::Registered if agent.session().is_some() => self.wake(&agent, Why::Heard),
                AgentState::Failed if retry_at.is_some_and(|at| at <= now) => self.wake(&agent, Why::Retry),
                _ => {}
            }
        }
        Ok(())
    }

    async fn begin_again(&self, agent: &Agent) -> Result<(), StoreError> {
        self.change(agent, |row| {
            (row.state == AgentState::Provisioning && !agent.is_taken()).then(|| {
                row.state = AgentState::Registered;
                "its run could not be recorded; it is tried again".into()
            })
        })
        .await
    }

    async fn lose(&self, agent: &Arc<Agent>, silent_us: i64) -> Result<(), StoreError> {
        #[expect(clippy::cast_precision_loss, reason = "a silence in seconds, for people")]
        let seconds = silent_us as f64 / 1e6;
        self.change(agent, |row| {
            // What an admin decided about it holds still when it comes back.
            if row.state == AgentState::Quarantined {
                return None;
            }
            if row.state == AgentState::Provisioning {
                // It was not brought to the end, nor was anything launched.
                row.releases.clear();
            }
            row.state = AgentState::Lost;
            row.retry_at_us = None;
            Some(format!("no poll for {seconds:.1} s"))
        })
        .await?;
        agent.end();
        if let Some(session) = agent.session() {
            self.close_session(agent, &session, "the agent missed its polls");
        }
        Ok(())
    }
}
