//! The agents that poll for steps: each has a task from its first poll on, until its link is closed.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::api::AgentState;
use crate::limits::{DIAL_MAX, PROBE_MAX};
use crate::roster::agent::{Agent, Polled};
use crate::roster::{Roster, Why};

/// What an agent said of its own accord and is not stored yet.
const EVENTS_WAITING: usize = 4;

/// What an agent polls: its line of steps. The first poll after its link was closed opens another.
pub fn polled(roster: &Arc<Roster>, agent: &Arc<Agent>) -> Polled {
    let (polled, is_new) = agent.polled();
    if is_new {
        let (roster, agent, polled) = (Arc::clone(roster), Arc::clone(agent), polled.clone());
        tokio::spawn(async move { keep(&roster, &agent, polled).await });
    }
    polled
}

/// Makes sure that the machine can do what it is going to be asked for, and keeps its link open.
async fn keep(roster: &Roster, agent: &Arc<Agent>, polled: Polled) {
    let shell = &polled.shell;
    let begin = async {
        shell.begin().await?;
        shell.launched().await
    };
    let why = match tokio::time::timeout(PROBE_MAX, begin).await {
        Ok(Ok(launched)) => {
            let link = polled.link();
            roster.open_link(agent, Arc::clone(&link), Some(launched));
            // It may have been given up just now.
            if agent.state() == AgentState::Gone {
                let _ = link.drain("the agent is gone").await;
                roster.close_link(agent, &link, "the agent is gone");
                return;
            }
            roster.wake(agent, Why::Heard);
            if agent.is_to_end() {
                let _ = link.drain(&agent.view().row.reason).await;
            }
            let (said, mut events) = mpsc::channel(EVENTS_WAITING);
            let telling = async {
                while let Some(event) = events.recv().await {
                    roster.said(agent, event).await;
                }
            };
            let (reason, ()) = tokio::join!(shell.watch(|| (), said), telling);
            roster.close_link(agent, &link, &reason);
            tracing::debug!(agent = %agent.name(), reason, "the steps of agent {} end: {reason}", agent.name());
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("its first step is not done after {} s", PROBE_MAX.as_secs()),
    };
    tracing::warn!(agent = %agent.name(), why, "agent {} can not be provisioned by steps: {why}", agent.name());
    let reason = format!("it can not be provisioned by steps: {why}");
    let told = roster.change(agent, |row| (row.state == AgentState::Registered && row.reason != reason).then_some(reason));
    if let Err(error) = told.await {
        tracing::error!(agent = %agent.name(), %error, "why agent {} can not be provisioned could not be stored", agent.name());
    }
    // It is not asked again at once.
    tokio::select! {
        () = shell.over() => {}
        () = tokio::time::sleep(DIAL_MAX) => polled.link().close(&why),
    }
}
