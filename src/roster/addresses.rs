//! Where agents are dialled: who may say that it lives at an address.
//!
//! An agent names its own address, and the server's key opens many machines. So nobody is dialled where an agent of others lives: that is
//! looked at when it registers, by what it says, and when it is dialled, by where that leads.

use std::net::SocketAddr;

use tokio::sync::MutexGuard;

use crate::api::{AgentState, LinkKind, Register};
use crate::link::ssh::host::Host;
use crate::names::{AgentName, LabelName, TeamName};
use crate::roster::Roster;
use crate::roster::admission::AdmissionError;
use crate::roster::agent::Agent;

/// What an agent was admitted with, or is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admitted<'a> {
    pub(super) token: &'a str,
    pub(super) team: Option<&'a TeamName>,
    pub(super) labels: &'a [LabelName],
}

impl Agent {
    /// Whether who was admitted like that could be this agent as well.
    fn is_kin(&self, admitted: Admitted<'_>) -> bool {
        let row = &self.live().row;
        let is_covered = || row.team.as_ref() == admitted.team && row.labels.iter().all(|label| admitted.labels.contains(label));
        row.token_id == admitted.token || is_covered()
    }

    fn is_dialled_at(&self, host: &Host) -> bool {
        let live = self.live();
        live.claims.link == LinkKind::Ssh && live.claims.address.as_deref().unwrap_or_default().parse().ok().as_ref() == Some(host)
    }
}

impl Roster {
    /// Sees that an agent is dialled where no other lives, or others of its own kin at other roots. One of its kin that is lost makes way.
    ///
    /// What is answered is held until the agent is known by its claims: of two that come at once, one is refused.
    pub(super) async fn take_address(
        &self,
        claims: &Register,
        admitted: Admitted<'_>,
    ) -> Result<Option<MutexGuard<'_, ()>>, AdmissionError> {
        let host = claims.address.as_deref().and_then(|address| address.parse::<Host>().ok());
        let Some(host) = host.filter(|_| claims.link == LinkKind::Ssh) else { return Ok(None) };
        let turn = self.addressing.lock().await;
        for other in self.all().iter().filter(|other| *other.name() != claims.name && other.is_dialled_at(&host)) {
            let is_kin = other.is_kin(admitted);
            if is_kin && other.view().claims.root != claims.root {
                continue;
            }
            if is_kin {
                let cause = format!("agent `{}` registered with its address", claims.name);
                self.give_up(other, &cause, |row| row.state == AgentState::Lost).await?;
            }
            if other.state() != AgentState::Gone {
                tracing::warn!(agent = %claims.name, other = %other.name(), %host, "agent {} is refused: agent {} lives at {host}", claims.name, other.name());
                return Err(AdmissionError::AddressTaken(host));
            }
        }
        Ok(Some(turn))
    }

    /// Notes where dialling an agent led to. Answers who lives there, if that is an agent of others that registered before; the link of
    /// one that registered after is closed.
    pub fn led_to(&self, agent: &Agent, place: SocketAddr) -> Option<AgentName> {
        let row = agent.view().row;
        let admitted = Admitted { token: &row.token_id, team: row.team.as_ref(), labels: &row.labels };
        for other in self.all().iter().filter(|other| other.id() != agent.id() && !other.is_kin(admitted)) {
            let (registered_us, link) = {
                let live = other.live();
                if live.led_to != Some(place) {
                    continue;
                }
                (live.row.registered_us, live.link.clone())
            };
            if (registered_us, other.id()) < (row.registered_us, agent.id()) {
                return Some(other.name().clone());
            }
            if let Some(link) = link {
                self.close_link(other, &link, "an agent of others, which registered before, lives at the same address");
            }
        }
        agent.live().led_to = Some(place);
        None
    }
}
