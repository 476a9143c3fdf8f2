//! One agent as memory holds it: its row, its session, and who has it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::api::{AgentState, LinkKind, Register};
use crate::journal::now_us;
use crate::link::Link;
use crate::link::frames::Launched;
use crate::link::poll::Line;
use crate::link::shell::Shell;
use crate::names::{AgentName, LabelName, TeamName};
use crate::roster::Why;
use crate::store::agents::AgentRow;

/// What an agent polls: its steps, as a queue, and the link that they are of.
#[derive(Clone)]
pub struct Polled {
    /// The steps.
    pub line: Arc<Line>,
    /// The link.
    pub shell: Shell,
}

impl Polled {
    /// The link, as the roster holds one.
    pub fn link(&self) -> Arc<dyn Link> {
        Arc::new(self.shell.clone())
    }
}

/// One living agent.
pub struct Agent {
    pub(super) id: String,
    pub(super) name: AgentName,
    /// Held while the row is being changed; the store's order is memory's order.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) live: Mutex<Live>,
    pub(super) seen_us: AtomicI64,
    pub(super) seen_stored_us: AtomicI64,
    pub(super) busy: AtomicBool,
}

pub(super) struct Live {
    pub(super) row: AgentRow,
    pub(super) claims: Register,
    pub(super) link: Option<Arc<dyn Link>>,
    /// Where dialling it led to the last time.
    pub(super) led_to: Option<SocketAddr>,
    /// What it polls, if that is its link.
    polled: Option<Polled>,
    pub(super) launched: Option<Launched>,
    pub(super) ending: CancellationToken,
    pub(super) deferred: Option<Why>,
    /// Whether there is something to do or to say that takes a session.
    pub(super) wants_session: bool,
    /// How often a person halted it.
    pub(super) halts: u64,
    /// The releases that were last tried.
    pub(super) tried: BTreeMap<LabelName, i64>,
    /// Whether builds go on at its controller that it may end before what was launched is.
    pub(super) finishes: bool,
}

/// An agent as it is at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// Its row.
    pub row: AgentRow,
    /// What it said of itself.
    pub claims: Register,
    /// Whether its link is open.
    pub session: bool,
    /// How what was launched is, if its link said so.
    pub launched: Option<Launched>,
    /// When it was last heard of.
    pub seen_us: i64,
}

impl Agent {
    pub(super) fn new(row: AgentRow, claims: Register) -> Arc<Self> {
        Arc::new(Self {
            id: row.id.clone(),
            name: row.name.clone(),
            changing: tokio::sync::Mutex::default(),
            seen_us: AtomicI64::new(row.last_seen_us),
            seen_stored_us: AtomicI64::new(row.last_seen_us),
            live: Mutex::new(Live {
                row,
                claims,
                link: None,
                led_to: None,
                polled: None,
                launched: None,
                ending: CancellationToken::new(),
                deferred: None,
                wants_session: false,
                halts: 0,
                tried: BTreeMap::new(),
                finishes: false,
            }),
            busy: AtomicBool::new(false),
        })
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its id, never used twice.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its name.
    pub fn name(&self) -> &AgentName {
        &self.name
    }

    /// The agent as it is now.
    pub fn view(&self) -> View {
        let live = self.live();
        View {
            row: live.row.clone(),
            claims: live.claims.clone(),
            session: live.link.is_some(),
            launched: live.launched.clone(),
            seen_us: self.seen_us.load(Ordering::Relaxed),
        }
    }

    /// Its state.
    pub fn state(&self) -> AgentState {
        self.live().row.state
    }

    /// Whether it carries a label.
    pub fn carries(&self, label: &LabelName) -> bool {
        self.live().row.labels.contains(label)
    }

    /// Whether it carries one of some labels.
    pub fn carries_any(&self, labels: &[LabelName]) -> bool {
        let live = self.live();
        labels.iter().any(|label| live.row.labels.contains(label))
    }

    /// The team whose token it registered with.
    pub fn team(&self) -> Option<TeamName> {
        self.live().row.team.clone()
    }

    /// How it is reached.
    pub fn link_kind(&self) -> LinkKind {
        self.live().claims.link
    }

    /// What it polls, and whether that is new: the first time, or because the link before is closed.
    pub fn polled(&self) -> (Polled, bool) {
        let mut live = self.live();
        if let Some(polled) = live.polled.as_ref().filter(|polled| !polled.shell.is_over()) {
            return (polled.clone(), false);
        }
        let line = Arc::new(Line::default());
        let polled = Polled { shell: Shell::new(&live.claims.root, Arc::new(Arc::clone(&line))), line };
        live.polled = Some(polled.clone());
        (polled, true)
    }

    /// Its open link.
    pub fn link(&self) -> Option<Arc<dyn Link>> {
        self.live().link.clone()
    }

    /// Cancelled when what is under way for the agent is to end: it is drained, stopped or removed.
    pub fn ending(&self) -> CancellationToken {
        self.live().ending.clone()
    }

    /// Ends what is under way for the agent.
    pub fn end(&self) {
        let mut live = self.live();
        live.ending.cancel();
        live.ending = CancellationToken::new();
    }

    /// Has the agent open a session at its next poll, beyond the bound if need be: there is something to do or to say. One of another link has
    /// it open anyway, or is being dialled.
    pub fn want_session(&self) {
        self.live().wants_session = true;
    }

    /// Notes that a person halts it: what was wished before is worth nothing.
    pub fn halted(&self) {
        let mut live = self.live();
        live.halts += 1;
        live.deferred = None;
    }

    /// How often a person has halted it.
    pub fn halts(&self) -> u64 {
        self.live().halts
    }

    /// Notes which releases are tried now, and answers whether others were tried before.
    pub fn tries(&self, releases: BTreeMap<LabelName, i64>) -> bool {
        let before = std::mem::replace(&mut self.live().tried, releases.clone());
        !before.is_empty() && before != releases
    }

    /// Whether it is to be looked at again for something that begins anew what is under way now.
    pub fn is_wanted_anew(&self) -> bool {
        self.live().deferred.as_ref().is_some_and(|why| *why >= Why::Release(String::new()))
    }

    /// Notes whether builds go on at its controller that may come to their end while it is drained.
    pub fn finishes(&self, finishes: bool) {
        self.live().finishes = finishes;
    }

    /// Whether it is drained, and what it launched has builds to bring to their end.
    pub fn is_finishing(&self) -> bool {
        let live = self.live();
        live.row.state == AgentState::Draining && live.finishes
    }

    /// Whether what it launched is to be ended now.
    pub fn is_to_end(&self) -> bool {
        let live = self.live();
        live.row.state == AgentState::Quarantined || (live.row.state == AgentState::Draining && !live.finishes)
    }

    /// Notes that the agent was heard of.
    pub fn heard(&self) {
        self.seen_us.fetch_max(now_us(), Ordering::Relaxed);
    }

    /// Notes how what was launched is.
    pub fn launched(&self, launched: Launched) {
        self.live().launched = Some(launched);
    }

    /// Takes the agent to look at it; false if somebody has it, who is then told of `why` when giving it back.
    ///
    /// Given back with [`Agent::release`].
    pub fn take(&self, why: &Why) -> bool {
        let mut live = self.live();
        let taken = !self.busy.swap(true, Ordering::AcqRel);
        if !taken && live.deferred.as_ref() < Some(why) {
            live.deferred = Some(why.clone());
        }
        taken
    }

    /// Whether somebody has it.
    pub fn is_taken(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// Gives the agent back, and says for what it is to be looked at again.
    pub fn release(&self) -> Option<Why> {
        let mut live = self.live();
        self.busy.store(false, Ordering::Release);
        live.deferred.take()
    }
}
