//! The agents: who is known, in which state and why, and who is due to be looked at.
//!
//! Every living agent is in memory, so that a poll of one that is ready reads and writes no SQL; every change of state is in the store
//! before it is seen here. Heartbeats are gathered and written in batches: after a crash an agent is at worst thought of as silent for a
//! little longer than it was, and each gets a fresh lease when the server starts.
//!
//! Registering is in [`admission`], where agents are dialled in `addresses`, missing agents in [`leases`]. Deciding what to run is `provision`'s.

mod addresses;
pub mod admission;
pub mod agent;
pub mod leases;
pub mod visitors;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::api::{AgentState, LinkKind, Register};
use crate::credential::Credential;
use crate::journal::now_us;
use crate::limits::REASON_BYTES_MAX;
use crate::link::frames::Launched;
use crate::link::session::Event;
use crate::link::{Link, is_same};
use crate::names::{AgentName, LabelName};
use crate::roster::agent::Agent;
use crate::store::agents::AgentRow;
use crate::store::{Store, StoreError};

/// The living agents.
pub struct Roster {
    store: Store,
    settings: Settings,
    agents: RwLock<Agents>,
    due: Mutex<HashMap<String, Why>>,
    due_changed: Notify,
    dialled: Mutex<HashSet<String>>,
    dialled_changed: Notify,
    /// Held while an agent takes an address at which it is dialled.
    addressing: tokio::sync::Mutex<()>,
    sessions: AtomicI64,
    /// Moves with every change of an agent.
    changes: watch::Sender<()>,
    /// When leases were last looked at.
    looked_us: AtomicI64,
}

#[derive(Default)]
struct Agents {
    by_name: BTreeMap<AgentName, Arc<Agent>>,
    by_id: HashMap<String, Arc<Agent>>,
}

/// What an admin sets.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often an agent polls.
    pub poll: Duration,
    /// How long a lost agent is kept before it is gone.
    pub lost_kept: Duration,
    /// The same, for one that came through the DynaSlave plugin's URL.
    pub dynaslave_kept: Duration,
    /// Sessions open at once.
    pub sessions_max: usize,
    /// Whether this server dials agents.
    pub dials: bool,
}

/// How the reason of an agent begins that can not be dialled.
pub const NOT_REACHED: &str = "it is not reached by ssh";

/// Why an agent is due to be looked at. A later one counts for more: it overrules a pause before a retry, for instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It polled, or its session opened.
    Heard,
    /// Its pause is over.
    Retry,
    /// What it launched is to be launched again, for a reason.
    Relaunch(String),
    /// A release of one of its labels is in force.
    Release(String),
    /// The agent program was started anew, so what it was brought to may be gone.
    Restarted,
    /// A person asked for it. A wish from before the agent was halted is worth nothing.
    Asked {
        /// How often the agent had been halted by then.
        halts: u64,
        /// Who asked, and why.
        cause: String,
    },
}

impl Roster {
    /// Loads the living agents and gives each a fresh lease.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn load(store: Store, settings: Settings) -> Result<Self, StoreError> {
        let (mut agents, mut dialled) = (Agents::default(), HashSet::new());
        let now = now_us();
        for mut row in store.living_agents().await? {
            let Ok(claims) = serde_json::from_str::<Register>(&row.claims) else {
                tracing::error!(agent = %row.name, "an agent's claims can not be read; it has to register again");
                row.state = AgentState::Gone;
                row.reason = "its record was damaged".into();
                store.update_agent(&row, Some("its record was damaged")).await?;
                continue;
            };
            // A release may have been made just before the server ended; one try finds out.
            if row.state == AgentState::Failed {
                row.retry_at_us.get_or_insert(now);
            }
            let lost = row.state == AgentState::Lost;
            if claims.link == LinkKind::Ssh {
                dialled.insert(row.id.clone());
            }
            let agent = Agent::new(row, claims);
            if !lost {
                agent.seen_us.store(now, Ordering::Relaxed);
            }
            agents.by_name.insert(agent.name.clone(), Arc::clone(&agent));
            agents.by_id.insert(agent.id.clone(), agent);
        }
        Ok(Self {
            store,
            settings,
            agents: RwLock::new(agents),
            due: Mutex::default(),
            due_changed: Notify::new(),
            dialled: Mutex::new(dialled),
            dialled_changed: Notify::new(),
            addressing: tokio::sync::Mutex::default(),
            sessions: AtomicI64::new(0),
            changes: watch::Sender::default(),
            looked_us: AtomicI64::new(now),
        })
    }

    fn agents(&self) -> std::sync::RwLockReadGuard<'_, Agents> {
        self.agents.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The living agent of a name.
    pub fn by_name(&self, name: &AgentName) -> Option<Arc<Agent>> {
        self.agents().by_name.get(name).cloned()
    }

    /// The living agent of an id.
    pub fn by_id(&self, id: &str) -> Option<Arc<Agent>> {
        self.agents().by_id.get(id).cloned()
    }

    /// Moves with every change of an agent's row, and when one is gone.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The living agent whose own credential this is.
    pub fn authenticate(&self, credential: &Credential) -> Option<Arc<Agent>> {
        let agent = self.agents().by_id.get(&credential.id).cloned()?;
        let fits = credential.fits(&agent.live().row.credential_hash);
        fits.then_some(agent)
    }

    /// All living agents, by name.
    pub fn all(&self) -> Vec<Arc<Agent>> {
        self.agents().by_name.values().cloned().collect()
    }

    /// Up to `limit` living agents after a name, that pass a test.
    pub fn page(&self, after: Option<&AgentName>, limit: usize, passes: impl Fn(&Agent) -> bool) -> Vec<Arc<Agent>> {
        let agents = self.agents();
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        agents
            .by_name
            .range((from, std::ops::Bound::Unbounded))
            .map(|(_, agent)| agent)
            .filter(|agent| passes(agent))
            .take(limit)
            .cloned()
            .collect()
    }

    /// How many living agents are in each state, of those that pass a test.
    pub fn count(&self, passes: impl Fn(&Agent) -> bool) -> BTreeMap<AgentState, u64> {
        let mut counts = BTreeMap::new();
        for agent in self.agents().by_name.values().filter(|agent| passes(agent)) {
            *counts.entry(agent.state()).or_insert(0) += 1;
        }
        counts
    }

    /// How many living agents of each label are in each state.
    pub fn count_by_label(&self) -> HashMap<LabelName, BTreeMap<AgentState, u64>> {
        let mut counts: HashMap<LabelName, BTreeMap<AgentState, u64>> = HashMap::new();
        for agent in self.agents().by_name.values() {
            let live = agent.live();
            for label in &live.row.labels {
                *counts.entry(label.clone()).or_default().entry(live.row.state).or_default() += 1;
            }
        }
        counts
    }

    /// Changes an agent's row: in the store first, then here. Answers whether anything was changed.
    ///
    /// `change` says what is different and why; when it answers none, nothing is written. It sees the row as it is when its turn comes, so
    /// what the change depends on is looked at there. The cause is kept as an event and becomes the row's reason; but one that is halted or
    /// lost, and stays so, keeps the reason that it has.
    ///
    /// # Errors
    /// When the store fails; nothing has changed then.
    pub async fn change(&self, agent: &Agent, change: impl FnOnce(&mut AgentRow) -> Option<String>) -> Result<bool, StoreError> {
        let _changing = agent.changing.lock().await;
        let mut row = agent.live().row.clone();
        let state = row.state;
        let Some(cause) = change(&mut row) else { return Ok(false) };
        let cause = stamp(agent, &mut row, state, &cause);
        self.store.update_agent(&row, Some(&cause)).await?;
        self.put(agent, row);
        Ok(true)
    }

    /// Changes an agent's row together with something else, in one transaction that `write` makes.
    ///
    /// # Errors
    /// When the store fails; nothing has changed then.
    pub async fn change_with<F>(
        &self,
        agent: &Agent,
        change: impl FnOnce(&mut AgentRow) -> String,
        write: impl FnOnce(AgentRow, String) -> F,
    ) -> Result<(), StoreError>
    where
        F: Future<Output = Result<(), StoreError>>,
    {
        let _changing = agent.changing.lock().await;
        let mut row = agent.live().row.clone();
        let state = row.state;
        let cause = change(&mut row);
        let cause = stamp(agent, &mut row, state, &cause);
        write(row.clone(), cause).await?;
        self.put(agent, row);
        Ok(())
    }

    fn put(&self, agent: &Agent, row: AgentRow) {
        let (state, reason) = (row.state, row.reason.clone());
        agent.live().row = row;
        let state = state.as_str();
        tracing::info!(agent = %agent.name, state, "agent {} is {state}: {reason}", agent.name);
        self.changes.send_replace(());
    }

    /// Opens an agent's link, in place of one that may be open still. The one before is closed.
    pub fn open_link(&self, agent: &Agent, link: Arc<dyn Link>, launched: Option<Launched>) {
        let before = {
            let mut live = agent.live();
            live.launched = launched;
            live.wants_session = false;
            live.link.replace(link)
        };
        match before {
            Some(before) => before.close("the agent opened another session"),
            None if agent.link_kind() == LinkKind::Session => {
                self.sessions.fetch_add(1, Ordering::Relaxed);
            }
            None => {}
        }
    }

    /// Closes an agent's link, unless another one has taken its place.
    pub fn close_link(&self, agent: &Agent, link: &Arc<dyn Link>, reason: &str) {
        link.close(reason);
        let mut live = agent.live();
        if live.link.as_ref().is_some_and(|open| is_same(open, link)) {
            live.link = None;
            live.launched = None;
            if live.claims.link == LinkKind::Session {
                self.sessions.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes what an agent said of its own accord in its session.
    pub async fn said(&self, agent: &Agent, event: Event) {
        match event {
            Event::Launched(launched) => {
                if let Launched::Exited { status, restarts, .. } = &launched {
                    tracing::debug!(agent = %agent.name(), status, restarts, "what agent {} launched ended with status {status}", agent.name());
                }
                agent.launched(launched);
            }
            Event::Draining(reason) => {
                let changed = self.change(agent, |row| {
                    let ends = !matches!(row.state, AgentState::Quarantined | AgentState::Draining | AgentState::Gone);
                    ends.then(|| {
                        row.state = AgentState::Draining;
                        row.retry_at_us = None;
                        format!("the agent is ending: {reason}")
                    })
                });
                if let Err(error) = changed.await {
                    tracing::error!(agent = %agent.name(), %error, "that agent {} is ending could not be stored", agent.name());
                }
                agent.end();
            }
        }
    }

    /// How many sessions are open.
    pub fn sessions(&self) -> usize {
        usize::try_from(self.sessions.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// Closes an agent's session if more are open than there should be, and nothing is to be done in it.
    pub fn spare_session(&self, agent: &Agent) {
        let idle = matches!(agent.state(), AgentState::Ready | AgentState::Draining | AgentState::Quarantined);
        let spare = idle && agent.link_kind() == LinkKind::Session && self.sessions() > self.settings.sessions_max;
        if let Some(link) = agent.link().filter(|_| spare) {
            self.close_link(agent, &link, "more sessions are open than this server keeps");
        }
    }

    /// Marks an agent as due to be looked at.
    pub fn wake(&self, agent: &Agent, why: Why) {
        {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let waiting = due.entry(agent.id.clone()).or_insert(Why::Heard);
            if why > *waiting {
                *waiting = why;
            }
        }
        self.due_changed.notify_one();
    }

    /// Marks all agents of a label as due.
    pub fn wake_label(&self, label: &LabelName, why: &Why) {
        for agent in self.all().iter().filter(|agent| agent.carries(label)) {
            self.wake(agent, why.clone());
        }
    }

    /// Waits for agents that are due, and takes them all.
    pub async fn due(&self) -> Vec<(Arc<Agent>, Why)> {
        loop {
            let changed = self.due_changed.notified();
            let due = std::mem::take(&mut *self.due.lock().unwrap_or_else(PoisonError::into_inner));
            if !due.is_empty() {
                let agents = self.agents();
                return due.into_iter().filter_map(|(id, why)| Some((Arc::clone(agents.by_id.get(&id)?), why))).collect();
            }
            changed.await;
        }
    }

    /// Has an agent dialled, if that is how it is reached.
    pub(super) fn dial(&self, agent: &Agent) {
        if agent.link_kind() == LinkKind::Ssh {
            self.dialled.lock().unwrap_or_else(PoisonError::into_inner).insert(agent.id.clone());
            self.dialled_changed.notify_one();
        }
    }

    /// Waits for agents that are to be dialled, and takes them all.
    pub async fn to_dial(&self) -> Vec<Arc<Agent>> {
        loop {
            let changed = self.dialled_changed.notified();
            let dialled = std::mem::take(&mut *self.dialled.lock().unwrap_or_else(PoisonError::into_inner));
            if !dialled.is_empty() {
                let agents = self.agents();
                return dialled.iter().filter_map(|id| agents.by_id.get(id).cloned()).collect();
            }
            changed.await;
        }
    }

    /// Gives an agent up, if it is to be given up still when its turn comes: its credential is worth nothing any more, what it launched is
    /// ended as far as it can be told, its session is closed and its name is free.
    ///
    /// # Errors
    /// When the store fails; then nothing has happened.
    pub async fn give_up(&self, agent: &Agent, cause: &str, still: impl FnOnce(&AgentRow) -> bool) -> Result<(), StoreError> {
        let change = |row: &mut AgentRow| {
            still(row).then(|| {
                row.state = AgentState::Gone;
                row.retry_at_us = None;
                cause.to_owned()
            })
        };
        match self.change(agent, change).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // It is gone in the store already: the answer to an earlier try was lost.
            Err(StoreError::Missing(_)) => agent.live().row.state = AgentState::Gone,
            Err(error) => return Err(error),
        }
        {
            let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
            agents.by_id.remove(&agent.id);
            if agents.by_name.get(&agent.name).is_some_and(|other| other.id == agent.id) {
                agents.by_name.remove(&agent.name);
            }
        }
        agent.end();
        self.changes.send_replace(());
        if let Some(link) = agent.link() {
            // One that is cut off just now can not be told, and finds out when it is back.
            let _ = link.drain(cause).await;
            self.close_link(agent, &link, cause);
        }
        Ok(())
    }

    /// Writes the heartbeats that came since the last time.
    ///
    /// # Errors
    /// When the store fails; they are written the next time then.
    pub async fn flush_heartbeats(&self) -> Result<usize, StoreError> {
        let mut seen = Vec::new();
        let mut agents = Vec::new();
        for agent in self.all() {
            let now = agent.seen_us.load(Ordering::Relaxed);
            if now != agent.seen_stored_us.load(Ordering::Relaxed) {
                seen.push((agent.id.clone(), now));
                agents.push(agent);
            }
        }
        if seen.is_empty() {
            return Ok(0);
        }
        self.store.update_agents_seen(&seen).await?;
        for (agent, (_, now)) in agents.iter().zip(&seen) {
            agent.seen_stored_us.store(*now, Ordering::Relaxed);
        }
        Ok(seen.len())
    }
}

/// Gives a changed row its reason, and answers the cause as it is kept: agents and modules wrote parts of it.
fn stamp(agent: &Agent, row: &mut AgentRow, state: AgentState, cause: &str) -> String {
    let end = cause.floor_char_boundary(REASON_BYTES_MAX);
    let cause = cause.get(..end).unwrap_or_default().replace(char::is_control, " ");
    row.last_seen_us = row.last_seen_us.max(agent.seen_us.load(Ordering::Relaxed));
    let keeps = matches!(row.state, AgentState::Quarantined | AgentState::Draining | AgentState::Lost);
    if row.state != state || !keeps {
        row.reason.clone_from(&cause);
    }
    if row.state != state {
        row.since_us = now_us();
    }
    cause
}
