//! Registering and polling: who is let in, and what is kept of what they say.

use std::sync::Arc;
use std::sync::PoisonError;

use rand::RngExt as _;

use crate::api::{AgentState, LinkKind, Register, Registered, RegisteredAgent};
use crate::credential::{self, Holder};
use crate::journal::now_us;
use crate::limits::{
    AGENT_ATTRIBUTES_MAX, AGENT_EXECUTORS_MAX, AGENT_LABELS_MAX, AGENT_TEXT_BYTES_MAX, AGENTS_MAX, BAKED_MAX, HOST_KEY_BYTES_MAX,
    PATH_BYTES_MAX, POLL_JITTER_SHARE,
};
use crate::link::ssh::host::{Host, HostKey};
use crate::names::{Digest, LabelName};
use crate::roster::addresses::Admitted;
use crate::roster::agent::Agent;
use crate::roster::{NOT_REACHED, Roster, Why};
use crate::store::StoreError;
use crate::store::agents::AgentRow;
use crate::store::boots::Booted;
use crate::store::tokens::TokenRow;

/// Why an agent begins anew whose program is another than before.
const ANEW: &str = "the agent program was started anew";

/// The path at which a session is opened.
pub const SESSION_PATH: &str = "/v1/session";

/// Why an agent is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// What it said of itself can not be so.
    #[error("{field}: {problem}")]
    Claim {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// It claims labels that its token does not allow.
    #[error("the token does not allow the labels {0}")]
    Labels(String),
    /// Another agent of that name lives.
    #[error("the name `{0}` is held by an agent that lives, or that is not this token's to replace")]
    Taken(String),
    /// It goes by another name than the credential's.
    #[error("the credential is that of agent `{0}`; an agent that goes by another name registers anew with its join token")]
    OtherName(String),
    /// It wants to be dialled, and this server dials nobody.
    #[error("this server dials no agents: its configuration has no section `[ssh]`")]
    NotDialled,
    /// Another living agent is dialled at that address.
    #[error("another agent lives at the address `{0}`")]
    AddressTaken(Host),
    /// There is no room for another agent.
    #[error("this server holds {AGENTS_MAX} agents, and no more")]
    Full,
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

/// Checks what an agent says of itself, beyond what its types check.
fn check(claims: &Register, dials: bool) -> Result<(), AdmissionError> {
    let wrong = |field, problem: String| Err(AdmissionError::Claim { field, problem });
    if claims.labels.is_empty() || claims.labels.len() > AGENT_LABELS_MAX {
        return wrong("labels", format!("{} labels; an agent carries 1 to {AGENT_LABELS_MAX}", claims.labels.len()));
    }
    if let Some(twice) = claims.labels.iter().enumerate().find(|(at, label)| claims.labels.iter().take(*at).any(|other| other == *label)) {
        return wrong("labels", format!("`{}` is named twice", twice.1));
    }
    if claims.executors == 0 || claims.executors > AGENT_EXECUTORS_MAX {
        return wrong("executors", format!("{} is not between 1 and {AGENT_EXECUTORS_MAX}", claims.executors));
    }
    let odd_root =
        !claims.root.starts_with('/') || claims.root.split('/').any(|part| part == "..") || claims.root.contains(char::is_control);
    if odd_root || claims.root.len() > PATH_BYTES_MAX {
        return wrong("root", "it is an absolute path without `..`".into());
    }
    if claims.attributes.len() > AGENT_ATTRIBUTES_MAX {
        return wrong("attributes", format!("{}; an agent has at most {AGENT_ATTRIBUTES_MAX}", claims.attributes.len()));
    }
    let texts = [
        ("address", claims.address.as_ref()),
        ("os", Some(&claims.os)),
        ("arch", Some(&claims.arch)),
        ("image", claims.image.as_ref()),
        ("instance", claims.instance.as_ref()),
    ];
    let attributes = claims.attributes.iter().flat_map(|(name, value)| [("attributes", Some(name)), ("attributes", Some(value))]);
    for (field, text) in texts.into_iter().chain(attributes) {
        if text.is_some_and(|text| text.len() > AGENT_TEXT_BYTES_MAX || text.contains(char::is_control)) {
            return wrong(field, format!("at most {AGENT_TEXT_BYTES_MAX} bytes, and no control characters"));
        }
    }
    if claims.ssh_host_key.as_ref().is_some_and(|key| key.len() > HOST_KEY_BYTES_MAX || key.contains(char::is_control)) {
        return wrong("ssh_host_key", format!("at most {HOST_KEY_BYTES_MAX} bytes, and no control characters"));
    }
    if claims.baked.len() > BAKED_MAX || claims.baked.iter().any(|baked| baked.destination.len() > PATH_BYTES_MAX) {
        return wrong("baked", format!("at most {BAKED_MAX}, with destinations of at most {PATH_BYTES_MAX} bytes"));
    }
    match claims.link {
        LinkKind::Session | LinkKind::Poll => return Ok(()),
        LinkKind::Ssh => {}
    }
    if !dials {
        return Err(AdmissionError::NotDialled);
    }
    if let Err(error) = claims.address.as_deref().unwrap_or_default().parse::<Host>() {
        return wrong("address", error.to_string());
    }
    match claims.ssh_host_key.as_deref().map(str::parse::<HostKey>) {
        Some(Err(error)) => wrong("ssh_host_key", error.to_string()),
        _ => Ok(()),
    }
}

fn allowed(labels: &[LabelName], token_labels: &[LabelName]) -> Result<(), AdmissionError> {
    let foreign: Vec<_> = labels.iter().filter(|label| !token_labels.contains(label)).map(ToString::to_string).collect();
    if foreign.is_empty() { Ok(()) } else { Err(AdmissionError::Labels(foreign.join(", "))) }
}

impl Roster {
    /// Admits an agent with a join token, and answers with a credential of its own.
    ///
    /// A name that a living agent holds is refused, with one exception: the same machine asks again because the answer was lost. It is
    /// known by its `key`, a secret that it made before it first asked; it gets a new credential for the agent that it already is.
    ///
    /// # Errors
    /// When the claims are wrong or not allowed, the name is held, or the store fails.
    pub async fn admit(&self, token: &TokenRow, claims: Register, key: Option<&str>) -> Result<Registered, AdmissionError> {
        check(&claims, self.settings.dials)?;
        allowed(&claims.labels, &token.labels)?;
        let key_hash = key.map(|key| Digest::of(key.as_bytes()).to_string());
        let before = self.by_name(&claims.name);
        if let Some(agent) = &before {
            let (state, team, labels, known_key) = {
                let live = agent.live();
                (live.row.state, live.row.team.clone(), live.row.labels.clone(), live.row.registration_key_hash.clone())
            };
            if key_hash.is_some() && known_key == key_hash {
                return self.admit_again(agent, token, claims).await;
            }
            // The name of a lost one is for those to take who could have had it: its own team, with a token for all of its labels.
            if state != AgentState::Lost || team != token.team || allowed(&labels, &token.labels).is_err() {
                return Err(AdmissionError::Taken(claims.name.to_string()));
            }
        } else if self.agents().by_id.len() >= AGENTS_MAX {
            return Err(AdmissionError::Full);
        }
        let admitted = Admitted { token: &token.id, team: token.team.as_ref(), labels: &token.labels };
        let _address = self.take_address(&claims, admitted).await?;
        let made = credential::make(Holder::Agent, credential::new_id());
        let now = now_us();
        let cause = "it registered";
        let row = AgentRow {
            id: made.id,
            name: claims.name.clone(),
            credential_hash: made.hash,
            token_id: token.id.clone(),
            team: token.team.clone(),
            claims: kept(&claims)?,
            labels: claims.labels.clone(),
            state: AgentState::Registered,
            reason: cause.into(),
            since_us: now,
            retry_at_us: None,
            drained: None,
            attempt: 0,
            releases: std::collections::BTreeMap::new(),
            instance: claims.instance.clone(),
            booted: Booted::default(),
            registration_key_hash: key_hash,
            last_seen_us: now,
            registered_us: now,
        };
        // A lost one that polls at this moment either comes back first and keeps its name, or finds that it is gone.
        let _changing = match &before {
            Some(before) => Some(before.changing.lock().await),
            None => None,
        };
        if before.as_ref().is_some_and(|before| before.state() != AgentState::Lost) {
            return Err(AdmissionError::Taken(claims.name.to_string()));
        }
        let inserted = self.store.insert_agent(&row, cause, before.as_deref().map(Agent::id)).await;
        inserted.map_err(|error| match error {
            StoreError::Conflict(_) => AdmissionError::Taken(claims.name.to_string()),
            other => AdmissionError::Store(other),
        })?;
        let agent = Agent::new(row, claims);
        {
            let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(before) = &before {
                agents.by_id.remove(before.id());
            }
            agents.by_name.insert(agent.name.clone(), Arc::clone(&agent));
            agents.by_id.insert(agent.id.clone(), Arc::clone(&agent));
        }
        if let Some(before) = &before {
            before.live().row.state = AgentState::Gone;
            before.end();
            self.changes.send_replace(());
            if let Some(link) = before.link() {
                self.close_link(before, &link, "another machine took the agent's name");
            }
        }
        tracing::info!(agent = %agent.name, token = token.id, "agent {} registered", agent.name);
        self.wake(&agent, Why::Heard);
        self.dial(&agent);
        Ok(self.answer(&agent, Some(made.text)))
    }

    async fn admit_again(&self, agent: &Arc<Agent>, token: &TokenRow, claims: Register) -> Result<Registered, AdmissionError> {
        let admitted = Admitted { token: &token.id, team: token.team.as_ref(), labels: &token.labels };
        let _address = self.take_address(&claims, admitted).await?;
        let made = credential::make(Holder::Agent, agent.id.clone());
        let text = kept(&claims)?;
        let (labels, hash, token_id, team) = (claims.labels.clone(), made.hash, token.id.clone(), token.team.clone());
        let instance = claims.instance.clone();
        self.change(agent, |row| {
            row.credential_hash = hash;
            row.token_id = token_id;
            row.team = team;
            row.claims = text;
            row.labels = labels;
            row.drained = None;
            Some(begun_anew(row, instance, "it registered again: the answer to its first registration was lost"))
        })
        .await?;
        agent.heard();
        // The link is of the kind that it was opened as.
        self.end_former_life(agent);
        agent.live().claims = claims;
        self.wake(agent, Why::Restarted);
        self.dial(agent);
        Ok(self.answer(agent, Some(made.text)))
    }

    /// Notes that an agent that may be lost was reached by dialling it, and which start of its program answered. If that is another than was
    /// known, what it was brought to may be gone: it begins anew, but for what a person decided. Answers whether it does.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn reached(&self, agent: &Agent, instance: &str) -> Result<bool, StoreError> {
        agent.heard();
        let mut is_another = false;
        let reached = |row: &mut AgentRow| {
            if row.state == AgentState::Gone {
                return None;
            }
            is_another = row.instance.as_deref() != Some(instance);
            if is_another {
                let why = if row.instance.is_some() { ANEW } else { "it is reached" };
                return Some(begun_anew(row, Some(instance.to_owned()), why));
            }
            (row.state == AgentState::Lost).then(|| found_again(row, "it is reached again"))
        };
        self.change(agent, reached).await?;
        if is_another {
            self.end_former_life(agent);
        }
        Ok(is_another)
    }

    /// Ends what an earlier start of the agent program left: its session may look open until its silence is noticed.
    fn end_former_life(&self, agent: &Agent) {
        agent.end();
        if let Some(link) = agent.link() {
            self.close_link(agent, &link, "the agent program was started anew");
        }
    }

    /// Takes a poll that says nothing new of an agent that is not lost: memory alone is touched. None if it is another poll.
    pub fn poll_unchanged(&self, agent: &Agent, claims: &Register) -> Option<Registered> {
        {
            let live = agent.live();
            if live.claims != *claims || live.row.state == AgentState::Lost {
                return None;
            }
        }
        agent.heard();
        Some(self.answer(agent, None))
    }

    /// Takes any other poll.
    ///
    /// `token_labels` are the labels of the token that the agent registered with; they are asked for only when its labels have changed.
    ///
    /// # Errors
    /// When the claims changed to something that is wrong or not allowed, or the store fails.
    pub async fn poll<F>(
        &self,
        agent: &Arc<Agent>,
        claims: Register,
        token_labels: impl FnOnce(String) -> F,
    ) -> Result<Registered, AdmissionError>
    where
        F: Future<Output = Result<Vec<LabelName>, StoreError>>,
    {
        agent.heard();
        let (same, state) = {
            let live = agent.live();
            (live.claims == claims, live.row.state)
        };
        if !same {
            self.change_claims(agent, claims, token_labels).await?;
        } else if state == AgentState::Lost {
            self.change(agent, |row| (row.state == AgentState::Lost).then(|| found_again(row, "it polls again"))).await?;
            self.wake(agent, Why::Heard);
        }
        Ok(self.answer(agent, None))
    }

    async fn change_claims<F>(
        &self,
        agent: &Arc<Agent>,
        claims: Register,
        token_labels: impl FnOnce(String) -> F,
    ) -> Result<(), AdmissionError>
    where
        F: Future<Output = Result<Vec<LabelName>, StoreError>>,
    {
        if claims.name != agent.name {
            return Err(AdmissionError::OtherName(agent.name.to_string()));
        }
        check(&claims, self.settings.dials)?;
        let (row, before) = {
            let live = agent.live();
            (live.row.clone(), live.claims.clone())
        };
        if claims.labels != row.labels {
            allowed(&claims.labels, &token_labels(row.token_id.clone()).await?)?;
        }
        let moved = (claims.link, &claims.address, &claims.root) != (before.link, &before.address, &before.root);
        let admitted = Admitted { token: &row.token_id, team: row.team.as_ref(), labels: &claims.labels };
        let _address = if moved { self.take_address(&claims, admitted).await? } else { None };
        let restarted = claims.instance != before.instance;
        let relabelled = claims.labels != row.labels;
        let text = kept(&claims)?;
        let (labels, instance) = (claims.labels.clone(), claims.instance.clone());
        self.change(agent, |row| {
            row.claims = text;
            row.labels = labels;
            if !restarted {
                let changed = "what it says of itself has changed";
                return Some(if row.state == AgentState::Lost { found_again(row, changed) } else { changed.into() });
            }
            // Whoever starts the program again wants work done.
            row.drained = None;
            Some(begun_anew(row, instance, ANEW))
        })
        .await?;
        // The link is of the kind that it was opened as.
        if restarted || claims.link != before.link {
            self.end_former_life(agent);
        }
        agent.live().claims = claims;
        self.dial(agent);
        self.wake(
            agent,
            match (restarted, relabelled) {
                (true, _) => Why::Restarted,
                (false, true) => Why::Release("its labels have changed".into()),
                // A pause after a failure is not cut short by what an agent says.
                (false, false) => Why::Heard,
            },
        );
        Ok(())
    }

    fn answer(&self, agent: &Agent, credential: Option<String>) -> Registered {
        let live = agent.live();
        // An agent that waits for a run is let in beyond the bound: the bound is for those who merely stay.
        let waits = live.wants_session || matches!(live.row.state, AgentState::Registered | AgentState::Failed);
        let wanted =
            live.claims.link == LinkKind::Session && live.link.is_none() && (waits || self.sessions() < self.settings.sessions_max);
        let jitter = rand::rng().random_range(1.0 - POLL_JITTER_SHARE..=1.0 + POLL_JITTER_SHARE);
        Registered {
            agent: RegisteredAgent {
                id: agent.id.clone(),
                name: agent.name.to_string(),
                labels: live.row.labels.iter().map(ToString::to_string).collect(),
                state: live.row.state,
                // Why it is not reached tells of the server's own files and of what is near it: people see that.
                reason: Some(if live.row.reason.starts_with(NOT_REACHED) {
                    format!("{NOT_REACHED}; an admin sees why")
                } else {
                    live.row.reason.clone()
                }),
            },
            credential,
            poll_after_ms: u64::try_from(self.settings.poll.mul_f64(jitter).as_millis()).unwrap_or(u64::MAX),
            session: wanted.then(|| SESSION_PATH.to_owned()),
        }
    }
}

/// Has an agent begin anew with another start of its program: whatever it was brought to may be gone. Answers why.
fn begun_anew(row: &mut AgentRow, instance: Option<String>, why: &str) -> String {
    row.instance = instance;
    row.releases.clear();
    row.attempt = 0;
    row.retry_at_us = None;
    if row.state == AgentState::Quarantined { why.to_owned() } else { found_again(row, why) }
}

/// Brings a lost agent back to where it was before: drained, if a person had drained it. Answers why.
fn found_again(row: &mut AgentRow, why: &str) -> String {
    match row.drained.clone() {
        Some(cause) => {
            row.state = AgentState::Draining;
            cause
        }
        None => {
            row.state = AgentState::Registered;
            why.to_owned()
        }
    }
}

fn kept(claims: &Register) -> Result<String, AdmissionError> {
    serde_json::to_string(claims).map_err(|error| AdmissionError::Claim { field: "claims", problem: error.to_string() })
}
