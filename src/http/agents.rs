//! Agents: listed, shown, and told what to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;

use crate::api::{Act, Agent as Shown, AgentDetail, AgentNode, AgentState, Baked, BakedState, LinkKind, Page, Run};
use crate::controller::nodes::Kept;
use crate::http::App;
use crate::http::access::Person;
use crate::http::problem::{Chain, Fault};
use crate::http::receive::{Asked, Name, OptionalJson, page};
use crate::limits::{AGENT_TEXT_BYTES_MAX, DIFFERENCES_WAIT_MAX, EVENTS_KEPT_PER_AGENT};
use crate::link::frames::Launched;
use crate::link::ssh::host::Host;
use crate::names::{AgentName, Digest, LabelName};
use crate::roster::agent::{Agent, View};
use crate::shelf::Release;
use crate::store::agents::AgentRow;
use crate::store::runs::RunFilter;

/// Runs in an agent's detail.
const RUNS_SHOWN: u32 = 10;

pub(crate) fn shown(app: &App, view: View) -> Shown {
    let View { row, claims, session, launched, seen_us } = view;
    Shown {
        node: app.nodes.current(&row.id).map(|kept| node(app, &kept)),
        id: row.id,
        name: row.name.to_string(),
        labels: row.labels.iter().map(ToString::to_string).collect(),
        state: row.state,
        reason: row.reason,
        since_us: row.since_us,
        retry_at_us: row.retry_at_us,
        last_seen_us: seen_us,
        registered_us: row.registered_us,
        session,
        releases: row.releases.iter().map(|(label, release)| (label.to_string(), *release)).collect(),
        executors: claims.executors,
        root: claims.root,
        address: claims.address,
        os: claims.os,
        arch: claims.arch,
        image: claims.image,
        attributes: claims.attributes,
        launched: launched.map(|launched| match launched {
            Launched::Nothing => "nothing is launched".into(),
            Launched::Running { pid, restarts: 0 } => format!("running (pid {pid})"),
            Launched::Running { pid, restarts } => format!("running (pid {pid}, started again {restarts} times)"),
            Launched::Exited { status, restarts, again_in_ms } => {
                format!("ended with status {status}, started again {restarts} times, again in {again_in_ms} ms")
            }
        }),
    }
}

/// What a controller said last of a node.
pub(crate) fn node(app: &App, kept: &Kept) -> AgentNode {
    let controller = &kept.controller.name;
    let state = match (app.nodes.problem(controller), app.nodes.look_at(controller)) {
        (Some(problem), _) => format!("unknown: {problem}"),
        (None, None) => "unknown: its controller was not asked yet".into(),
        (None, Some(look)) => match look.nodes.get(kept.name.as_str()) {
            None => "missing".into(),
            Some(node) if node.is_offline && node.reason.is_empty() => "offline".into(),
            Some(node) if node.is_offline => format!("offline: {}", node.reason),
            Some(node) if node.is_idle => "online".into(),
            Some(_) => "online, a build runs".into(),
        },
    };
    AgentNode { controller: controller.to_string(), name: kept.name.to_string(), state }
}

/// An agent that is gone, from its row alone.
fn view_gone(row: AgentRow) -> Result<View, Fault> {
    let claims = serde_json::from_str(&row.claims).map_err(|_| Fault::internal("an agent's record is damaged"))?;
    let seen_us = row.last_seen_us;
    Ok(View { row, claims, session: false, launched: None, seen_us })
}

/// Which agents.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Those that carry this label.
    #[param(value_type = Option<String>)]
    label: Option<LabelName>,
    /// Those in this state. Those that are gone are listed only when asked for.
    state: Option<AgentState>,
    /// What the page before gave as `next`.
    cursor: Option<String>,
    /// Rows at most.
    limit: Option<u32>,
}

/// Lists agents by name.
#[utoipa::path(get, path = "/v1/agents", tag = "agents", params(Which), responses((status = 200, body = Page<Shown>)))]
pub(crate) async fn list(State(app): State<App>, person: Person, Asked(which): Asked<Which>) -> Result<axum::Json<Page<Shown>>, Fault> {
    let page = page(which.cursor, which.limit);
    let labels = person.labels(&app);
    if which.state == Some(AgentState::Gone) {
        let rows = app.store.agents_gone(&page).await?;
        let mine = |row: &AgentRow| {
            let own =
                labels.as_ref().is_none_or(|labels| row.team == person.0.team || row.labels.iter().any(|label| labels.contains(label)));
            own && which.label.as_ref().is_none_or(|label| row.labels.contains(label))
        };
        let items =
            rows.items.into_iter().filter(mine).map(|row| view_gone(row).map(|view| shown(&app, view))).collect::<Result<_, _>>()?;
        return Ok(axum::Json(Page { items, next: rows.next }));
    }
    let after: Option<AgentName> = page
        .cursor
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(|_| Fault::bad_request("cursor", "the cursor is not one of this listing"))?;
    let limit = page.limit as usize;
    let mut agents = app.roster.page(after.as_ref(), limit + 1, |agent| {
        which.state.is_none_or(|state| agent.state() == state)
            && which.label.as_ref().is_none_or(|label| agent.carries(label))
            && person.reaches(labels.as_deref(), agent)
    });
    let more = agents.len() > limit;
    agents.truncate(limit);
    let next = agents.last().filter(|_| more).map(|agent| agent.name().to_string());
    Ok(axum::Json(Page { items: agents.iter().map(|agent| shown(&app, agent.view())).collect(), next }))
}

/// The living agent of a name, if it is the caller's.
pub(crate) fn find(app: &App, person: &Person, name: &AgentName) -> Result<Arc<Agent>, Fault> {
    let labels = person.labels(app);
    let agent = app.roster.by_name(name).filter(|agent| person.reaches(labels.as_deref(), agent));
    agent.ok_or_else(|| unknown(name))
}

fn unknown(name: &AgentName) -> Fault {
    Fault::not_found("no-agent", format!("there is no agent `{name}`, or it carries none of your labels"))
        .with_hint("`muster agent ls` lists them")
}

/// Shows an agent with its changes of state, its latest runs and what was baked into its image. One that is gone too.
#[utoipa::path(get, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path)), responses((status = 200, body = AgentDetail)))]
pub(crate) async fn show(State(app): State<App>, person: Person, Name(name): Name<AgentName>) -> Result<axum::Json<AgentDetail>, Fault> {
    let view = match find(&app, &person, &name) {
        Ok(agent) => agent.view(),
        Err(unknown) => {
            let gone = app.store.agent_by_name(&name).await?.filter(|row| row.state == AgentState::Gone);
            let labels = person.labels(&app);
            let mine = |row: &AgentRow| {
                labels.as_ref().is_none_or(|labels| row.team == person.0.team || row.labels.iter().any(|label| labels.contains(label)))
            };
            view_gone(gone.filter(mine).ok_or(unknown)?)?
        }
    };
    let events = app.store.agent_events(&view.row.id, EVENTS_KEPT_PER_AGENT).await?;
    let filter = RunFilter { agent: Some(name), label: None, labels: person.labels(&app) };
    let runs = app.store.runs(&filter, &page(None, Some(RUNS_SHOWN))).await?;
    let runs = runs.items.into_iter().map(Run::from).collect();
    let baked = baked(&app, &person, &view).await;
    Ok(axum::Json(AgentDetail { agent: shown(&app, view), events, runs, baked }))
}

/// What was in an agent's image, beside what is wanted there.
async fn baked(app: &App, person: &Person, view: &View) -> Vec<BakedState> {
    let releases = view.row.labels.iter().filter_map(|label| app.shelf.release(label));
    let releases: Vec<_> = releases.filter(|release| person.sees(&release.policy.team)).collect();
    let until = tokio::time::Instant::now() + DIFFERENCES_WAIT_MAX;
    let mut states = Vec::new();
    for baked in &view.claims.baked {
        let state = BakedState {
            bundle: baked.bundle.to_string(),
            version: baked.version.to_string(),
            destination: baked.destination.clone(),
            wanted: None,
            labels: Vec::new(),
            files: None,
            bytes: None,
            unknown: None,
        };
        let mut wanted: BTreeMap<Digest, Vec<&Release>> = BTreeMap::new();
        for release in &releases {
            let pinned = release.policy.bundles.iter().find(|reference| reference.name == baked.bundle);
            if let Some(version) = pinned.and_then(|reference| reference.version) {
                wanted.entry(version).or_default().push(release);
            }
        }
        if wanted.is_empty() {
            states.push(state);
            continue;
        }
        for (version, releases) in wanted {
            let mut state = state.clone();
            state.wanted = Some(version.to_string());
            state.labels = releases.iter().map(|release| release.label.to_string()).collect();
            match tokio::time::timeout_at(until, difference(app, baked, &releases)).await {
                Ok(Ok((files, bytes))) => (state.files, state.bytes) = (Some(files), Some(bytes)),
                Ok(Err(why)) => state.unknown = Some(why.into()),
                Err(_) => state.unknown = Some("it takes a while to compare them; ask again".into()),
            }
            states.push(state);
        }
    }
    states
}

/// The files that differ between what was baked and what some releases pin, and the bytes to be sent; or why that is not known.
async fn difference(app: &App, baked: &Baked, releases: &[&Release]) -> Result<(u64, u64), &'static str> {
    let ready = releases.iter().filter_map(|release| release.ready.as_ref().ok());
    let Some(wanted) = ready.filter_map(|ready| ready.bundles.get(&baked.bundle)).next() else {
        return Err("the release that wants it can not be made ready");
    };
    match app.shelf.difference(baked.version, wanted).await {
        Ok(Some(found)) => Ok((found.files, found.bytes)),
        Ok(None) => Err("the server does not have the version that was baked"),
        Err(error) => {
            tracing::error!(bundle = %baked.bundle, version = %baked.version, error = %Chain(&error), "two versions can not be compared");
            Err("the version that was baked can not be read")
        }
    }
}

fn cause(person: &Person, what: &str, act: Act) -> Result<String, Fault> {
    let by = match &person.0.team {
        Some(team) => format!("team {team}"),
        None => "an admin".to_owned(),
    };
    match act.reason {
        Some(reason) if reason.len() > AGENT_TEXT_BYTES_MAX || reason.contains(char::is_control) => {
            Err(Fault::unprocessable("reason", format!("a reason has at most {AGENT_TEXT_BYTES_MAX} bytes and no control characters")))
        }
        Some(reason) => Ok(format!("{what} by {by}: {reason}")),
        None => Ok(format!("{what} by {by}")),
    }
}

/// Provisions an agent again from the beginning. One that was drained or quarantined comes back by this.
#[utoipa::path(
    post, path = "/v1/agents/{name}/provision", tag = "agents", params(("name" = String, Path)), request_body = Act,
    responses((status = 200, body = Shown), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn provision(
    State(app): State<App>,
    person: Person,
    Name(name): Name<AgentName>,
    OptionalJson(act): OptionalJson<Act>,
) -> Result<axum::Json<Shown>, Fault> {
    let agent = find(&app, &person, &name)?;
    app.provision.ask(&agent, cause(&person, "to be provisioned again, asked", act)?).await?;
    Ok(axum::Json(shown(&app, agent.view())))
}

/// Drains an agent: what was launched is ended, and nothing is started until it is provisioned again. At a controller its node takes no more
/// builds from then on, and those that run come to their end first.
#[utoipa::path(
    post, path = "/v1/agents/{name}/drain", tag = "agents", params(("name" = String, Path)), request_body = Act,
    responses((status = 200, body = Shown), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn drain(
    State(app): State<App>,
    person: Person,
    Name(name): Name<AgentName>,
    OptionalJson(act): OptionalJson<Act>,
) -> Result<axum::Json<Shown>, Fault> {
    let agent = find(&app, &person, &name)?;
    halt(&app, &agent, AgentState::Draining, cause(&person, "drained", act)?).await
}

/// Quarantines an agent: as draining, but at once, builds or not, and it stays so when its program is started anew.
#[utoipa::path(
    post, path = "/v1/agents/{name}/quarantine", tag = "agents", params(("name" = String, Path)), request_body = Act,
    responses((status = 200, body = Shown), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn quarantine(
    State(app): State<App>,
    person: Person,
    Name(name): Name<AgentName>,
    OptionalJson(act): OptionalJson<Act>,
) -> Result<axum::Json<Shown>, Fault> {
    let agent = find(&app, &person, &name)?;
    halt(&app, &agent, AgentState::Quarantined, cause(&person, "quarantined", act)?).await
}

async fn halt(app: &App, agent: &Arc<Agent>, state: AgentState, cause: String) -> Result<axum::Json<Shown>, Fault> {
    let told = cause.clone();
    let node = app.nodes.current(agent.id()).filter(|kept| kept.row().made_us.is_some());
    // Of one whose link is not open it is not known whether its program runs.
    let runs = matches!(agent.view().launched, Some(Launched::Running { .. }) | None);
    agent.finishes(node.is_some() && runs);
    let halted = app.roster.change(agent, |row| {
        let drains_quarantined = row.state == AgentState::Quarantined && state == AgentState::Draining;
        if drains_quarantined || row.state == AgentState::Gone {
            return None;
        }
        agent.halted();
        row.state = state;
        row.reason.clone_from(&cause);
        row.drained = (state == AgentState::Draining).then(|| cause.clone());
        row.retry_at_us = None;
        row.releases.clear();
        Some(cause)
    });
    let name = agent.name();
    if !halted.await? {
        return Err(match agent.state() {
            AgentState::Gone => unknown(name),
            _ => Fault::conflict("quarantined", format!("agent `{name}` is quarantined, which is more: nothing runs there"))
                .with_hint(format!("`muster agent provision {name}` ends the quarantine")),
        });
    }
    agent.end();
    match agent.link() {
        // What is built there comes to its end first, and the clockwork sees to that.
        _ if agent.is_finishing() => {}
        // One that is cut off just now is told when it is back, with its link's first word.
        Some(link) => drop(link.drain(&told).await),
        None => agent.want_session(),
    }
    Ok(axum::Json(shown(app, agent.view())))
}

/// Removes an agent: its credential is revoked and its name is free. Its nodes are removed at their controllers. If it is dialled, the host key that was trusted at its first use is
/// forgotten.
#[utoipa::path(
    delete, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path)), request_body = Act,
    responses((status = 204), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn remove(
    State(app): State<App>,
    person: Person,
    Name(name): Name<AgentName>,
    OptionalJson(act): OptionalJson<Act>,
) -> Result<StatusCode, Fault> {
    let agent = find(&app, &person, &name)?;
    let cause = cause(&person, "removed", act)?;
    // Also those that its policy keeps: whoever removes an agent wants nothing left of it.
    app.nodes.leave(agent.id(), None).await?;
    app.roster.give_up(&agent, &cause, |row| row.state != AgentState::Gone).await?;
    let claims = agent.view().claims;
    if let (LinkKind::Ssh, Some(Ok(host))) = (claims.link, claims.address.as_deref().map(str::parse::<Host>)) {
        app.store.forget_host_key(&host.to_string()).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}
