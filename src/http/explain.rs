//! Why is this machine not ready? Answered from what was recorded.

use axum::extract::State;

use crate::api::{AgentNode, AgentState, Because, Explanation, LinkKind};
use crate::http::App;
use crate::http::access::Person;
use crate::http::agents::{find, node};
use crate::http::problem::Fault;
use crate::http::receive::{Name, page};
use crate::journal::now_us;
use crate::limits::PAGE_ROWS_MAX;
use crate::names::{AgentName, LabelName};
use crate::roster::agent::View;
use crate::store::runs::{RunFilter, RunRow};

/// Changes of state that an explanation goes back.
const EVENTS_TOLD: u32 = 5;
/// Lines of a run's log that an explanation tells.
const LINES_TOLD: usize = 8;

/// Answers why an agent is not ready, or that it is.
#[utoipa::path(
    get, path = "/v1/agents/{name}/explain", tag = "agents", params(("name" = String, Path)),
    responses((status = 200, body = Explanation), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn explain(State(app): State<App>, person: Person, Name(name): Name<AgentName>) -> Result<axum::Json<Explanation>, Fault> {
    let agent = find(&app, &person, &name)?;
    let view = agent.view();
    let filter = RunFilter { agent: Some(name.clone()), label: None, labels: person.labels(&app) };
    let run = app.store.runs(&filter, &page(None, Some(1))).await?.items.into_iter().find(|run| run.agent_id == view.row.id);
    let mut because = Vec::new();
    for label in &view.row.labels {
        because.push(label_told(&app, &view, label));
    }
    for kept in app.nodes.of(agent.id()) {
        let AgentNode { controller, name, state } = node(&app, &kept);
        let goes = if kept.row().leaving_us.is_some() { ", and is to go" } else { "" };
        because.push(told(None, format!("it is node `{name}` at controller `{controller}`, which is {state}{goes}")));
    }
    if !view.session && view.row.state != AgentState::Lost {
        because.push(told(
            None,
            match view.claims.link {
                LinkKind::Session => "its session is not open; a run needs one, and it opens one at its next poll",
                LinkKind::Ssh => "its ssh session is not open; a run needs one, and the server goes on dialling",
                LinkKind::Poll => "it does not ask for steps; a run needs that",
            },
        ));
    }
    if let Some(run) = &run {
        run_told(&app, run, &mut because).await?;
    }
    for event in app.store.agent_events(agent.id(), EVENTS_TOLD).await? {
        let state = event.state.as_str();
        because.push(told(Some(event.at_us), format!("{state}: {}", event.cause)));
    }
    let summary = summary(&view);
    let next = next(&name, &view, run.as_ref());
    Ok(axum::Json(Explanation { name: name.to_string(), state: view.row.state, summary, because, next }))
}

fn told(at_us: Option<i64>, text: impl Into<String>) -> Because {
    Because { at_us, text: text.into() }
}

fn label_told(app: &App, view: &View, label: &LabelName) -> Because {
    let text = match (app.shelf.release(label), view.row.releases.get(label)) {
        (None, _) => format!("label `{label}` has no release, so nothing is done for it"),
        (Some(release), _) if release.ready.is_err() => {
            format!("label `{label}`: {}", release.ready.as_ref().err().cloned().unwrap_or_default())
        }
        (Some(release), Some(has)) if release.number == *has => format!("label `{label}`: it holds release {has}, the one in force"),
        (Some(release), Some(has)) => format!("label `{label}`: it holds release {has}; release {} is in force", release.number),
        (Some(release), None) if matches!(view.row.state, AgentState::Draining | AgentState::Quarantined) => {
            format!("label `{label}`: release {} is in force, and will be brought to the agent when it takes work again", release.number)
        }
        (Some(release), None) => format!("label `{label}`: release {} is in force, and the agent does not hold it", release.number),
    };
    told(None, text)
}

async fn run_told(app: &App, run: &RunRow, because: &mut Vec<Because>) -> Result<(), Fault> {
    let reason = run.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let text =
        format!("run {} of release {} of label `{}`, attempt {}: {}{reason}", run.id, run.release, run.label, run.attempt, run.verdict);
    because.push(told(Some(run.ended_us.unwrap_or(run.began_us)), text));
    let lines = app.store.run_log(&run.id, 0, PAGE_ROWS_MAX).await?;
    if let Some(step) = lines.iter().rev().find(|line| line.level == "step") {
        because.push(told(Some(step.at_us), format!("its last step: {}", step.text)));
    }
    let skip = lines.len().saturating_sub(LINES_TOLD);
    for line in lines.into_iter().skip(skip).filter(|line| !matches!(line.level.as_str(), "step" | "debug")) {
        because.push(told(Some(line.at_us), format!("its log: {}: {}", line.level, line.text)));
    }
    Ok(())
}

fn summary(view: &View) -> String {
    let name = &view.row.name;
    let reason = &view.row.reason;
    match view.row.state {
        AgentState::Ready => format!("{name} is ready: {reason}"),
        AgentState::Registered => format!("{name} is registered and waits to be provisioned: {reason}"),
        AgentState::Provisioning => format!("{name} is being provisioned now: {reason}"),
        AgentState::Failed => match view.row.retry_at_us {
            Some(at) => format!("{name} failed and is tried again in {} s: {reason}", ((at - now_us()) / 1_000_000).max(0)),
            None => format!("{name} failed and is not tried again until a release changes: {reason}"),
        },
        AgentState::Draining => format!("{name} takes no work: {reason}"),
        AgentState::Lost => format!("{name} is lost: {reason}"),
        AgentState::Gone => format!("{name} is gone: {reason}"),
        AgentState::Quarantined => format!("{name} is quarantined: {reason}"),
    }
}

fn next(name: &AgentName, view: &View, run: Option<&RunRow>) -> Vec<String> {
    let mut next = Vec::new();
    match view.row.state {
        AgentState::Ready => {}
        AgentState::Registered if !view.session && view.claims.link == LinkKind::Ssh => {
            next.push("see whether the machine's sshd answers, lets the server's user in and has the host key that is expected".to_owned());
        }
        AgentState::Registered if !view.session && view.claims.link == LinkKind::Poll => {
            next.push("see whether muster-poll runs there, and what it says".to_owned());
        }
        AgentState::Registered if !view.session => next.push("see whether muster-agent runs there, and what it logs".to_owned()),
        AgentState::Registered => next.push("`muster label apply -f FILE` gives one of its labels a release".to_owned()),
        AgentState::Provisioning => {}
        AgentState::Failed => next.push(format!(
            "mend what it says, then: another release of its labels tries it again, and so does `muster agent provision {name}`"
        )),
        AgentState::Draining if view.row.drained.is_none() => next.push("start muster-agent there again".to_owned()),
        AgentState::Draining | AgentState::Quarantined => next.push(format!("`muster agent provision {name}` brings it back")),
        AgentState::Lost | AgentState::Gone => next.push("see whether the machine lives and reaches this server".to_owned()),
    }
    if let Some(run) = run.filter(|_| view.row.state != AgentState::Ready) {
        let follow = if run.ended_us.is_none() { " --follow" } else { "" };
        next.push(format!("`muster run logs {}{follow}` shows the run's whole log", run.id));
    }
    next
}
