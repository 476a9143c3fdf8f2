//! What waits at a controller, by label: whoever scales a group of machines follows these figures.
//!
//! One look is for all labels, and everybody reads what it found. A figure that is too old is not told: a machine too many or too few is
//! made from it, so that no answer is better.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::controller::Controller;
use crate::controller::jenkins::{JenkinsError, LabelUse, Queued, Task};
use crate::journal::now_us;
use crate::limits::{DEMAND_INTERVALS_KEPT, DEMAND_WAIT_MAX};
use crate::names::LabelName;

/// Why a build waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// No node has its label.
    NoNodes,
    /// The nodes that have it are offline.
    Offline,
    /// They build something else.
    Busy,
    /// For something else of a node.
    Other,
    /// For no executor: for another build, say.
    Blocked,
    /// In case that more of the same is asked for.
    Quiet,
    /// The controller begins nothing any more.
    ShuttingDown,
}

impl Wait {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::NoNodes, Self::Offline, Self::Busy, Self::Other, Self::Blocked, Self::Quiet, Self::ShuttingDown];

    /// The reason as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoNodes => "no-nodes",
            Self::Offline => "offline",
            Self::Busy => "busy",
            Self::Other => "other",
            Self::Blocked => "blocked",
            Self::Quiet => "quiet",
            Self::ShuttingDown => "shutting-down",
        }
    }

    /// Whether one executor more would help.
    pub fn is_for_executor(self) -> bool {
        matches!(self, Self::NoNodes | Self::Offline | Self::Busy | Self::Other)
    }

    fn of(item: &Queued) -> Self {
        match item.why.as_str() {
            "Jenkins is about to shut down" => Self::ShuttingDown,
            _ if item.blocked => Self::Blocked,
            _ if !item.buildable => Self::Quiet,
            why if why.starts_with("There are no nodes") => Self::NoNodes,
            why if why.ends_with("offline") => Self::Offline,
            why if why.starts_with("Waiting for next available executor") => Self::Busy,
            _ => Self::Other,
        }
    }
}

/// What waits for a label, and who is there for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    /// How many builds wait, by why.
    pub waiting: BTreeMap<Wait, u64>,
    /// Executors that build.
    pub busy: u64,
    /// Executors that could.
    pub idle: u64,
    /// How long the one that waits longest has waited for an executor.
    pub oldest: Duration,
}

impl Demand {
    /// Builds that wait.
    pub fn queued(&self) -> u64 {
        self.waiting.values().sum()
    }

    /// How many executors more would be used at once.
    pub fn should_grow(&self) -> u64 {
        let waiting: u64 = self.waiting.iter().filter(|(wait, _)| wait.is_for_executor()).map(|(_, count)| count).sum();
        waiting.saturating_sub(self.idle)
    }

    fn of(label: &LabelName, used: &LabelUse, queue: &[Queued], now_ms: i64) -> Self {
        let mut demand = Self { busy: used.busy, idle: used.idle, ..Self::default() };
        for item in queue.iter().filter(|item| is_for(item, label, used)) {
            let wait = Wait::of(item);
            *demand.waiting.entry(wait).or_default() += 1;
            if wait.is_for_executor() {
                // The two clocks may differ.
                let waited = Duration::from_millis(u64::try_from(now_ms.saturating_sub(item.in_queue_since)).unwrap_or_default());
                demand.oldest = demand.oldest.max(waited);
            }
        }
        demand
    }
}

/// Whether a build waits for a label. Jenkins does not say so of a build: its job may be tied to the label, or why it waits names it, or
/// names the only node that has it.
fn is_for(item: &Queued, label: &LabelName, used: &LabelUse) -> bool {
    let same =
        |job: &Task| if job.url.is_empty() || item.task.url.is_empty() { job.name == item.task.name } else { job.url == item.task.url };
    if used.jobs.iter().any(same) {
        return true;
    }
    let named = item.why.split_once('‘').and_then(|(_, rest)| rest.rsplit_once('’')).map(|(named, _)| named);
    let only = match used.nodes.as_slice() {
        [only] => Some(only.as_str()),
        _ => None,
    };
    named.is_some_and(|named| named == label.as_str() || Some(named) == only)
}

/// Where what a look found is read.
pub(super) struct Board {
    interval: Duration,
    seen: watch::Sender<Seen>,
    wanted: Notify,
}

/// What the looks found.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// The last look that found something.
    figures: Option<Arc<Figures>>,
    /// Why the last look found nothing.
    problem: Option<String>,
}

#[derive(Debug)]
struct Figures {
    at: Instant,
    at_us: i64,
    labels: BTreeMap<LabelName, Demand>,
}

impl Board {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, seen: watch::Sender::default(), wanted: Notify::new() }
    }
}

/// What is told of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The figures.
    pub demand: Demand,
    /// When they were so.
    pub seen_us: i64,
    /// Why there are no newer ones, if a look failed since.
    pub problem: Option<String>,
}

/// Why nothing is told of a label.
#[derive(Debug, thiserror::Error)]
#[error("what waits at controller `{controller}` is not known: {why}")]
pub struct NoDemand {
    controller: String,
    why: String,
}

impl Controller {
    /// How often it is to be looked at.
    pub fn demand_interval(&self) -> Duration {
        self.board.interval
    }

    /// Waits until somebody asks for what no look has found yet.
    pub async fn demand_wanted(&self) {
        self.board.wanted.notified().await;
    }

    /// When it was last heard, and why it was not since.
    pub fn demand_state(&self) -> (Option<i64>, Option<String>) {
        let seen = self.board.seen.borrow();
        (seen.figures.as_ref().map(|figures| figures.at_us), seen.problem.clone())
    }

    /// Looks once for all labels; what was found, by label.
    ///
    /// # Errors
    /// As any call of the controller.
    pub async fn look(&self, labels: &BTreeSet<LabelName>) -> Result<BTreeMap<LabelName, Demand>, JenkinsError> {
        let looked = self.look_once(labels).await;
        self.board.seen.send_modify(|seen| match &looked {
            Ok(labels) => {
                let figures = Figures { at: Instant::now(), at_us: now_us(), labels: labels.clone() };
                *seen = Seen { figures: Some(Arc::new(figures)), problem: None };
            }
            Err(error) => seen.problem = Some(error.to_string()),
        });
        looked
    }

    async fn look_once(&self, labels: &BTreeSet<LabelName>) -> Result<BTreeMap<LabelName, Demand>, JenkinsError> {
        let mut used = BTreeMap::new();
        for label in labels {
            used.insert(label, self.jenkins.label(label).await?);
        }
        // The queue is last: a build that gets an executor in between is counted nowhere, rather than twice.
        let (queue, now_ms) = (self.jenkins.queue().await?, now_us() / 1000);
        Ok(used.into_iter().map(|(label, used)| (label.clone(), Demand::of(label, &used, &queue, now_ms))).collect())
    }

    /// Whether the figures of the last look that found something may be told still.
    pub fn demand_is_fresh(&self) -> bool {
        self.board.seen.borrow().figures.as_ref().is_some_and(|figures| self.is_fresh(figures))
    }

    fn is_fresh(&self, figures: &Figures) -> bool {
        figures.at.elapsed() <= self.board.interval.saturating_mul(DEMAND_INTERVALS_KEPT)
    }

    /// What waits for a label. If no look has found it yet, one is waited for.
    ///
    /// # Errors
    /// When nothing is known, or only what is too old.
    pub async fn demand(&self, label: &LabelName) -> Result<Told, NoDemand> {
        let mut changes = self.board.seen.subscribe();
        let told = |seen: &Seen| {
            let figures = seen.figures.as_ref().filter(|figures| self.is_fresh(figures))?;
            let demand = figures.labels.get(label)?.clone();
            Some(Told { demand, seen_us: figures.at_us, problem: seen.problem.clone() })
        };
        if let Some(told) = told(&changes.borrow_and_update()) {
            return Ok(told);
        }
        let until = tokio::time::Instant::now() + DEMAND_WAIT_MAX;
        loop {
            self.board.wanted.notify_one();
            let changed = tokio::time::timeout_at(until, changes.changed()).await.is_ok();
            let seen = changes.borrow_and_update();
            if let Some(told) = told(&seen) {
                return Ok(told);
            }
            if seen.problem.is_some() || !changed {
                let why = seen.problem.clone().unwrap_or_else(|| "it did not answer yet".into());
                return Err(NoDemand { controller: self.name.to_string(), why });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(job: &str, why: &str) -> Queued {
        let task = Task { name: job.into(), url: format!("http://h/job/{job}/") };
        Queued { id: 1, why: why.into(), in_queue_since: 1000, task, blocked: false, buildable: true, stuck: false }
    }

    fn demand(used: &LabelUse, queue: &[Queued]) -> Demand {
        Demand::of(&"linux".parse().unwrap(), used, queue, 61_000)
    }

    #[test]
    fn a_build_counts_for_the_label_that_its_job_is_tied_to_or_that_its_reason_names() {
        let tied = Task { name: "a".into(), url: "http://h/job/a/".into() };
        let used = LabelUse { jobs: vec![tied], nodes: vec!["n1".into()], ..LabelUse::default() };
        let queue = [
            item("a", "‘n7’ is offline"),
            item("b", "There are no nodes with the label ‘linux’"),
            item("b", "Waiting for next available executor on ‘n1’"),
            item("b", "Waiting for next available executor on ‘linux-large’"),
            item("b", "Waiting for next available executor"),
        ];
        let found = demand(&used, &queue);
        assert_eq!(found.waiting, BTreeMap::from([(Wait::NoNodes, 1), (Wait::Offline, 1), (Wait::Busy, 1)]));
        assert_eq!((found.queued(), found.should_grow(), found.oldest), (3, 3, Duration::from_secs(60)));
        // With two nodes, a build that names one of them waits for that one.
        let two = LabelUse { nodes: vec!["n1".into(), "n2".into()], ..LabelUse::default() };
        assert_eq!(demand(&two, &queue).queued(), 1);
        // A job of the same name in another folder is another one.
        let mut other = item("a", "");
        other.task.url = "http://h/job/folder/job/a/".into();
        assert_eq!(demand(&used, &[other.clone()]).queued(), 0);
        other.task.url.clear();
        assert_eq!(demand(&used, &[other]).queued(), 1);
    }

    #[test]
    fn what_waits_for_no_executor_is_counted_and_nothing_grows_for_it() {
        let blocked = Queued { blocked: true, buildable: false, ..item("b", "Build #3 is in progress on ‘linux’") };
        let quiet = Queued { buildable: false, ..item("b", "In the quiet period of ‘linux’") };
        let used = LabelUse { jobs: vec![Task { name: "c".into(), url: "http://h/job/c/".into() }], ..LabelUse::default() };
        let queue = [blocked, quiet, item("c", "Jenkins is about to shut down"), item("b", "‘linux’ is reserved")];
        let found = demand(&used, &queue);
        assert_eq!(found.waiting, BTreeMap::from([(Wait::Blocked, 1), (Wait::Quiet, 1), (Wait::ShuttingDown, 1), (Wait::Other, 1)]));
        assert_eq!((found.queued(), found.should_grow()), (4, 1));
    }

    #[test]
    fn it_grows_by_what_idle_executors_do_not_take_and_never_shrinks() {
        let queue: Vec<_> = (0..5).map(|_| item("b", "All nodes of label ‘linux’ are offline")).collect();
        let grow = |idle, queue: &[Queued]| demand(&LabelUse { idle, busy: 7, ..LabelUse::default() }, queue).should_grow();
        assert_eq!((grow(0, &queue), grow(3, &queue), grow(5, &queue), grow(9, &queue), grow(0, &[])), (5, 2, 0, 0, 0));
    }

    #[test]
    fn a_clock_that_is_ahead_is_no_age() {
        let ahead = Queued { in_queue_since: 90_000, ..item("b", "‘linux’ is offline") };
        assert_eq!(demand(&LabelUse::default(), &[ahead]).oldest, Duration::ZERO);
    }
}
