//! One node as memory holds it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::controller::Controller;
use crate::controller::jenkins::NodeName;
use crate::controller::nodes::Nodes;
use crate::limits::{NODE_OFFLINE_MAX, NODE_RELAUNCH_MAX, NODES_INTERVAL};
use crate::store::nodes::NodeRow;

/// A node that an agent has, or had.
pub struct Kept {
    /// Where.
    pub controller: Arc<Controller>,
    /// Its name there.
    pub name: NodeName,
    /// Held while it is being written, there or in the store.
    pub(super) turn: tokio::sync::Mutex<()>,
    row: Mutex<Arc<NodeRow>>,
    seen: Mutex<Seen>,
    closings: AtomicUsize,
    is_over: AtomicBool,
}

/// What is known of a node's door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Door {
    /// Nothing yet.
    #[default]
    Unknown,
    /// There is no node.
    Missing,
    /// It takes builds.
    Open,
    /// It is closed for a reason of Muster's.
    Ours,
    /// Somebody else closed it, and opens it again.
    Theirs,
}

struct Seen {
    /// When something was last written there: what was read before tells nothing of it.
    touched: Option<Instant>,
    /// Labels that it was seen with when they were right: Jenkins and its plugins add some of their own.
    labels: BTreeSet<String>,
    /// Since when it is offline without a reason of ours.
    offline: Option<Instant>,
    /// When its program may be started again, and the pause after that.
    relaunch: (Option<Instant>, Duration),
    door: Door,
    /// Since when its last build is waited for, before it is removed.
    leaving: Option<Instant>,
    /// When it is tried again what the controller refused.
    retry: Option<Instant>,
}

/// A door that is closed, for as long as this is held.
pub struct Closed {
    nodes: Arc<Nodes>,
    kept: Arc<Kept>,
}

impl Kept {
    pub(super) fn new(controller: Arc<Controller>, name: NodeName, row: NodeRow) -> Self {
        let seen = Seen {
            touched: None,
            labels: BTreeSet::new(),
            offline: None,
            relaunch: (None, NODE_OFFLINE_MAX),
            door: Door::Unknown,
            leaving: None,
            retry: None,
        };
        Self {
            controller,
            name,
            turn: tokio::sync::Mutex::default(),
            row: Mutex::new(Arc::new(row)),
            seen: Mutex::new(seen),
            closings: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// Its row.
    pub fn row(&self) -> Arc<NodeRow> {
        Arc::clone(&self.row.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn put(&self, row: NodeRow) {
        *self.row.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(row);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Whether it is known to be gone.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Whether it is being written now.
    pub fn is_busy(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    pub(super) fn touch(&self) {
        self.seen().touched = Some(Instant::now());
    }

    /// Whether what was read at that time may tell of it as it was before the last write.
    pub fn is_older_than_write(&self, began: Instant) -> bool {
        self.seen().touched.is_some_and(|touched| began <= touched)
    }

    /// Whether these labels were there when it was last found to be right.
    pub fn has_seen_labels(&self, labels: &BTreeSet<String>) -> bool {
        self.seen().labels == *labels
    }

    pub(super) fn see_labels(&self, labels: BTreeSet<String>) {
        self.seen().labels = labels;
    }

    pub(super) fn closing(self: &Arc<Self>, nodes: Arc<Nodes>) -> Closed {
        self.closings.fetch_add(1, Ordering::AcqRel);
        Closed { nodes, kept: Arc::clone(self) }
    }

    /// Whether somebody holds its door closed.
    pub fn is_closed(&self) -> bool {
        self.closings.load(Ordering::Acquire) > 0
    }

    /// Notes how its door is.
    pub fn see_door(&self, door: Door) {
        self.seen().door = door;
    }

    /// How its door was seen last.
    pub fn door(&self) -> Door {
        self.seen().door
    }

    /// For how long its last build has been waited for, before it is removed.
    pub fn leaving_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.seen().leaving.get_or_insert(now))
    }

    /// Notes that the controller refuses what is asked for it: that is not asked again at once.
    pub fn refused(&self) {
        self.seen().retry = Some(Instant::now() + NODES_INTERVAL);
    }

    /// Whether the controller refused it just now.
    pub fn is_refused(&self, now: Instant) -> bool {
        self.seen().retry.is_some_and(|retry| now < retry)
    }

    /// Notes that it is online, or out for a reason.
    pub fn is_well(&self) {
        let mut seen = self.seen();
        seen.offline = None;
        seen.relaunch = (None, NODE_OFFLINE_MAX);
    }

    /// Notes that it is offline although its program is to run; for how long it has been, if that is too long and its program was not started
    /// again just now. Each start is followed by a longer pause.
    pub fn is_unwell(&self, now: Instant) -> Option<Duration> {
        let mut seen = self.seen();
        let since = *seen.offline.get_or_insert(now);
        let lasted = now.saturating_duration_since(since);
        let (next, pause) = seen.relaunch;
        if lasted < NODE_OFFLINE_MAX || next.is_some_and(|next| now < next) {
            return None;
        }
        seen.relaunch = (Some(now + pause), (pause * 2).min(NODE_RELAUNCH_MAX));
        Some(lasted)
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.kept.closings.fetch_sub(1, Ordering::AcqRel);
        self.nodes.poke(&self.kept.controller.name);
    }
}
