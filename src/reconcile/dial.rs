//! The agents that the server dials: each has a task that opens its link by ssh, keeps it open, and dials again when it is lost.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::api::{AgentState, LinkKind};
use crate::journal::now_us;
use crate::limits::{DIAL_FIRST, DIAL_MAX, DIAL_STEADY, DIALS_AT_ONCE, REACH_MAX};
use crate::link::ssh::host::{Host, HostKey};
use crate::link::ssh::login::Settings;
use crate::link::ssh::remote::{self, Opened};
use crate::link::ssh::transport::{Connection, connect};
use crate::machine::with_causes;
use crate::roster::agent::Agent;
use crate::roster::{NOT_REACHED, Roster, Why};
use crate::shelf::Shelf;
use crate::store::Store;

/// What an agent said of its own accord and is not stored yet.
const EVENTS_WAITING: usize = 4;

/// What dials.
pub struct Dialler {
    /// Where keys of hosts are remembered.
    pub store: Store,
    /// Whom to dial.
    pub roster: Arc<Roster>,
    /// What the policies allow.
    pub shelf: Arc<Shelf>,
    /// How.
    pub settings: Settings,
    /// The user on machines that came through the DynaSlave plugin's URL, if it is another one.
    pub dynaslave_user: Option<String>,
    /// This server's `muster-agent`, for machines of its own kind.
    pub program: Option<PathBuf>,
}

/// Dials, for as long as the server lives.
pub async fn work(dialler: Dialler) {
    let (dialler, places) = (Arc::new(dialler), Arc::new(Semaphore::new(DIALS_AT_ONCE)));
    let mut kept: HashMap<String, AbortOnDropHandle<()>> = HashMap::new();
    loop {
        for agent in dialler.roster.to_dial().await {
            if kept.get(agent.id()).is_some_and(|task| !task.is_finished()) {
                continue;
            }
            let (dialler, places, id) = (Arc::clone(&dialler), Arc::clone(&places), agent.id().to_owned());
            kept.insert(id, AbortOnDropHandle::new(tokio::spawn(async move { dialler.keep(&agent, &places).await })));
        }
        kept.retain(|_, task| !task.is_finished());
    }
}

impl Dialler {
    /// Keeps one agent's link open until the agent is gone.
    async fn keep(&self, agent: &Arc<Agent>, places: &Semaphore) {
        let mut pause = DIAL_FIRST;
        let is_dialled = || agent.state() != AgentState::Gone && agent.link_kind() == LinkKind::Ssh;
        while is_dialled() {
            let dialled = {
                let _place = places.acquire().await;
                self.dial(agent).await
            };
            match dialled {
                Ok((opened, connection)) => {
                    let since = Instant::now();
                    self.serve(agent, opened).await;
                    connection.close().await;
                    if since.elapsed() >= DIAL_STEADY {
                        pause = DIAL_FIRST;
                    }
                }
                Err(why) => self.tell(agent, &why).await,
            }
            if !is_dialled() {
                return;
            }
            // What seems to last may pass: keys are installed a while after a machine answers.
            let share = rand::random_range(0.5..=1.0);
            tokio::time::sleep(pause.mul_f64(share)).await;
            pause = (pause * 2).min(DIAL_MAX);
        }
    }

    async fn dial(&self, agent: &Agent) -> Result<(Opened, Connection), String> {
        let claims = agent.view().claims;
        let address = claims.address.as_deref().unwrap_or_default();
        let host: Host = address.parse().map_err(|error| format!("its address `{}`: {error}", address.escape_default()))?;
        let pinned = claims.ssh_host_key.as_deref().map(str::parse::<HostKey>).transpose();
        let pinned = pinned.map_err(|error| format!("its ssh host key: {error}"))?;
        let remembered = self.store.host_key(&host.to_string()).await.map_err(|error| error.to_string())?;
        let remembered = remembered.as_deref().map(str::parse::<HostKey>).transpose();
        let remembered = remembered.map_err(|error| format!("the host key that is remembered: {error}"))?;
        let (connection, learnt) =
            connect(&self.settings_for(agent), &host, pinned.as_ref(), remembered.as_ref()).await.map_err(|error| with_causes(&error))?;
        if let Some(key) = learnt {
            tracing::warn!(agent = %agent.name(), host = %host, key = key.fingerprint(), "the key of {host} is trusted from now on, at its first use");
            self.store.remember_host_key(&host.to_string(), &key.to_string(), now_us()).await.map_err(|error| error.to_string())?;
        }
        if let Some(other) = self.roster.led_to(agent, connection.place()) {
            connection.close().await;
            let place = connection.place();
            return Err(format!(
                "at {place} lives agent `{other}` of others, which registered before; remove the one that is not to be there"
            ));
        }
        let placed = claims.labels.iter().filter_map(|label| self.shelf.release(label)).any(|release| release.policy.place_agent);
        let program = self.program.as_deref().filter(|_| placed);
        match remote::open(&connection, &claims.root, program, REACH_MAX).await {
            Ok(opened) => Ok((opened, connection)),
            Err(error) => {
                connection.close().await;
                Err(with_causes(&error))
            }
        }
    }

    /// How an agent is dialled.
    fn settings_for(&self, agent: &Agent) -> Cow<'_, Settings> {
        match &self.dynaslave_user {
            Some(user) if agent.is_of_dynaslave() => Cow::Owned(Settings { user: user.clone(), ..self.settings.clone() }),
            _ => Cow::Borrowed(&self.settings),
        }
    }

    async fn serve(&self, agent: &Arc<Agent>, opened: Opened) {
        let link = Arc::clone(&opened.link);
        let why = match self.roster.reached(agent, &opened.instance).await {
            Ok(true) => Why::Restarted,
            Ok(false) => Why::Heard,
            // What is not known of it can not be trusted to be there: it is dialled again.
            Err(error) => {
                tracing::error!(agent = %agent.name(), %error, "that agent {} is reached could not be stored", agent.name());
                return;
            }
        };
        self.roster.open_link(agent, Arc::clone(&link), Some(opened.launched.clone()));
        // It may have been given up just now: it can not stay.
        if agent.state() == AgentState::Gone {
            let _ = link.drain("the agent is gone").await;
            self.roster.close_link(agent, &link, "the agent is gone");
        } else {
            self.roster.wake(agent, why);
        }
        if agent.is_to_end() {
            let _ = link.drain(&agent.view().row.reason).await;
        }
        let (said, mut events) = mpsc::channel(EVENTS_WAITING);
        let telling = async {
            while let Some(event) = events.recv().await {
                self.roster.said(agent, event).await;
            }
        };
        let (reason, ()) = tokio::join!(opened.drive(|| agent.heard(), said), telling);
        self.roster.close_link(agent, &link, &reason);
        tracing::info!(agent = %agent.name(), reason, "the ssh session of agent {} is closed: {reason}", agent.name());
    }

    /// Says why an agent is not reached, where a person looks.
    async fn tell(&self, agent: &Agent, why: &str) {
        tracing::warn!(agent = %agent.name(), why, "agent {} is not reached by ssh: {why}", agent.name());
        let reason = format!("{NOT_REACHED}: {why}");
        let told = self.roster.change(agent, |row| (row.state == AgentState::Registered && row.reason != reason).then_some(reason));
        if let Err(error) = told.await {
            tracing::error!(agent = %agent.name(), %error, "why agent {} is not reached could not be stored", agent.name());
        }
    }
}
