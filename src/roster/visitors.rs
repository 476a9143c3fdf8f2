//! Agents without a credential of their own, which the compatibility routes let in.

use std::future::ready;
use std::sync::Arc;

use crate::api::Register;
use crate::names::AgentName;
use crate::roster::Roster;
use crate::roster::admission::AdmissionError;
use crate::roster::agent::Agent;
use crate::store::tokens::TokenRow;

/// What stands for the token of agents that came through the DynaSlave plugin's URL. No token has such an id.
pub const DYNASLAVE: &str = "compat.dynaslave";
/// What stands for the token of agents that came through the Swarm plugin's URL.
pub const SWARM: &str = "compat.swarm";

impl Roster {
    /// Takes the word of an agent that was let in by the rule that `rule` stands for: counts it as heard if it is known, and admits it
    /// otherwise. Answers whether it was admitted.
    ///
    /// It is known by its name and its address, and only if it came in by the same rule. Whoever else asks for a name that is held is
    /// refused, unless its holder is lost.
    ///
    /// # Errors
    /// When the claims are wrong, the name is held, or the store fails.
    pub async fn visit(&self, rule: &TokenRow, claims: Register) -> Result<bool, AdmissionError> {
        let Some(agent) = self.by_name(&claims.name).filter(|agent| agent.is_visitor(&rule.id, claims.address.as_deref())) else {
            return self.admit(rule, claims, None).await.map(|_| true);
        };
        self.poll(&agent, claims, |_| ready(Ok(rule.labels.clone()))).await?;
        Ok(false)
    }

    /// The agent of a name, if it was let in by a rule, from an address.
    pub fn visitor(&self, name: &AgentName, rule: &str, address: &str) -> Option<Arc<Agent>> {
        self.by_name(name).filter(|agent| agent.is_visitor(rule, Some(address)))
    }
}

impl Agent {
    fn is_visitor(&self, rule: &str, address: Option<&str>) -> bool {
        let live = self.live();
        live.row.token_id == rule && live.claims.address.as_deref() == address
    }

    /// Whether the agent came through the DynaSlave plugin's URL.
    pub fn is_of_dynaslave(&self) -> bool {
        self.live().row.token_id == DYNASLAVE
    }
}
