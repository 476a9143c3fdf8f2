//! What is to be done about one node: decided by what the list shows of it, and what is known of its agent.

use std::time::Instant;

use crate::api::AgentState;
use crate::controller::jenkins::Node;
use crate::controller::nodes::{Door, Kept, is_our_mark};
use crate::journal::now_us;
use crate::link::frames::Launched;
use crate::names::LabelName;
use crate::roster::agent::{Agent, View};
use crate::store::agents::AgentRow;
use crate::store::nodes::NodeRow;

/// One thing to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// It is to go.
    Remove,
    /// It is missing, or has other labels or executors.
    Restore { labels: Vec<LabelName>, executors: u32 },
    /// Its door is to be closed, for this reason.
    Mark(String),
    /// Its door is to be opened.
    Unmark,
    /// Nothing is built there any more: its drained agent may end its program.
    Finish(String),
    /// Its program is to be started again, for this reason.
    Relaunch(String),
}

/// Whether something is to be done about a node before the next interval. `door` is what was seen of it.
pub(super) fn is_pressing(row: &NodeRow, door: Door, agent: Option<&Agent>) -> bool {
    let Some(agent) = agent.filter(|agent| agent.state() != AgentState::Gone) else {
        return row.leaving_us.is_some() || !row.plan.is_kept || matches!(door, Door::Unknown | Door::Missing | Door::Open);
    };
    if row.leaving_us.is_some() || agent.is_finishing() {
        return true;
    }
    match agent.state() {
        AgentState::Lost | AgentState::Draining | AgentState::Quarantined => matches!(door, Door::Unknown | Door::Open),
        AgentState::Ready => {
            let view = agent.view();
            door == Door::Ours || row.plan.labels != view.row.labels || row.plan.executors != view.claims.executors
        }
        _ => door == Door::Ours,
    }
}

/// Says what is to be done about a node. `node` is what the list shows of it, if it shows it and it is Muster's.
pub(super) fn act_for(kept: &Kept, row: &NodeRow, node: Option<&Node>, agent: Option<&Agent>, now: Instant) -> Option<Act> {
    kept.see_door(node.map_or(Door::Missing, door));
    let Some(agent) = agent.filter(|agent| agent.state() != AgentState::Gone) else { return without_agent(kept, row, node, now) };
    if row.leaving_us.is_some() {
        return leave(kept, row, node, "its agent works elsewhere", now);
    }
    let view = agent.view();
    match view.row.state {
        AgentState::Lost => return close(node, &format!("agent {} is lost: {}", row.agent, view.row.reason)),
        AgentState::Draining | AgentState::Quarantined => {
            return close(node, &view.row.reason).or_else(|| finish(node, &view).filter(|_| agent.is_finishing()));
        }
        _ => {}
    }
    let Some(node) = node else {
        // One that is being made, or is to be named, is its launch's.
        return row.made_us.map(|_| restore(&view));
    };
    if kept.is_closed() {
        return None;
    }
    let is_ready = matches!(view.row.state, AgentState::Ready | AgentState::Provisioning);
    if is_ready && !is_right(kept, node, &view) {
        return Some(restore(&view));
    }
    if door(node) == Door::Ours {
        return Some(Act::Unmark);
    }
    if !node.is_offline || node.is_marked {
        kept.is_well();
        return None;
    }
    let runs = !matches!(view.launched, None | Some(Launched::Exited { .. }));
    if view.row.state != AgentState::Ready || !view.session || !runs || agent.is_taken() {
        return None;
    }
    let lasted = kept.is_unwell(now)?;
    let why = if node.reason.is_empty() { String::new() } else { format!(" ({})", node.reason) };
    Some(Act::Relaunch(format!(
        "node `{}` has been offline for {} s at controller `{}`{why} although its program is to run; it is launched again",
        row.name,
        lasted.as_secs(),
        row.controller
    )))
}

fn door(node: &Node) -> Door {
    match node.is_marked {
        false => Door::Open,
        true if is_our_mark(&node.reason) => Door::Ours,
        true => Door::Theirs,
    }
}

/// What is done about the node of an agent that is gone.
fn without_agent(kept: &Kept, row: &NodeRow, node: Option<&Node>, now: Instant) -> Option<Act> {
    let why = format!("agent {} is gone", row.agent);
    // One that is kept, and that somebody removed, is forgotten.
    match row.plan.is_kept && row.leaving_us.is_none() && node.is_some() {
        true => close(node, &why),
        false => leave(kept, row, node, &why, now),
    }
}

/// Removes a node once nothing is built there any more; what is, is waited for, for as long as the policy says.
fn leave(kept: &Kept, row: &NodeRow, node: Option<&Node>, why: &str, now: Instant) -> Option<Act> {
    let is_busy = node.is_some_and(|node| !node.is_idle);
    if is_busy && kept.leaving_for(now).as_secs() < row.plan.drain_seconds.into() {
        return close(node, why);
    }
    Some(Act::Remove)
}

fn close(node: Option<&Node>, why: &str) -> Option<Act> {
    // What somebody else said of it stays.
    node.filter(|node| !node.is_marked).map(|_| Act::Mark(why.to_owned()))
}

/// Whether a drained agent may end its program, since nothing is built.
fn finish(node: Option<&Node>, view: &View) -> Option<Act> {
    let runs = matches!(view.launched, Some(Launched::Running { .. }) | None);
    let is_idle = node.is_none_or(|node| node.is_idle);
    (is_idle || !runs).then(|| Act::Finish(view.row.reason.clone()))
}

/// Whether the builds of a drained agent were waited for as long as the policy says.
pub(super) fn is_overdue(row: &NodeRow, drained: &AgentRow) -> bool {
    now_us().saturating_sub(drained.since_us) >= i64::from(row.plan.drain_seconds) * 1_000_000
}

fn restore(view: &View) -> Act {
    Act::Restore { labels: view.row.labels.clone(), executors: view.claims.executors }
}

fn is_right(kept: &Kept, node: &Node, view: &View) -> bool {
    let has_all = view.row.labels.iter().all(|label| node.labels.contains(label.as_str()));
    // Those beyond are the controller's own, or a person's: they are looked at once.
    let has_more = node.labels.len() > view.row.labels.len();
    has_all && node.executors == view.claims.executors && (!has_more || kept.has_seen_labels(&node.labels))
}
