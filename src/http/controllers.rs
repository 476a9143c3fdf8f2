//! Controllers: what is known of them, what they let their users do, and what waits there.

use axum::extract::State;

use crate::api::{Controller as Shown, ControllerCheck, Demand, Page};
use crate::controller::Controller;
use crate::controller::check::Checked;
use crate::controller::jenkins::Permission;
use crate::http::App;
use crate::http::access::{Admin, Person};
use crate::http::labels;
use crate::http::problem::Fault;
use crate::http::receive::{Asked, Name, Paging, page};
use crate::names::{ControllerName, LabelName};

/// Lists the controllers.
#[utoipa::path(get, path = "/v1/controllers", tag = "controllers", params(Paging), responses((status = 200, body = Page<Shown>)))]
pub(crate) async fn list(State(app): State<App>, _admin: Admin, Asked(asked): Asked<Paging>) -> Result<axum::Json<Page<Shown>>, Fault> {
    let page = page(asked.cursor, asked.limit);
    let after = page.cursor.as_deref().map(str::parse::<ControllerName>).transpose();
    let after = after.map_err(|_| Fault::bad_request("cursor", "the cursor is not one of this listing"))?;
    let limit = page.limit as usize;
    let seen = app.controllers.iter().filter(|controller| after.as_ref().is_none_or(|after| controller.name > *after));
    let mut items: Vec<Shown> = seen.take(limit + 1).map(|controller| shown(&app, controller)).collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|controller| controller.name.clone());
    Ok(axum::Json(Page { items, next }))
}

/// Looks whether a controller answers, and what it lets its user do, with a node of its own that is removed again.
#[utoipa::path(
    post, path = "/v1/controllers/{name}/check", tag = "controllers", params(("name" = String, Path)),
    responses((status = 200, body = ControllerCheck), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn check(
    State(app): State<App>,
    Admin(author): Admin,
    Name(name): Name<ControllerName>,
) -> Result<axum::Json<ControllerCheck>, Fault> {
    let unknown = || Fault::not_found("no-controller", format!("there is no controller `{name}`"));
    let controller = app
        .controllers
        .get(&name)
        .ok_or_else(|| unknown().with_hint("`muster controller ls` lists them; an admin adds one to muster.toml"))?;
    let checked = controller.check().await.ok_or_else(|| Fault::conflict("busy", format!("controller `{name}` is looked at just now")))?;
    tracing::info!(controller = %name, by = author.token, "controller {name} was looked at");
    let Checked { about, user, missing, unseen, left, problem } = checked;
    let texts = |permissions: Vec<Permission>| permissions.iter().map(ToString::to_string).collect();
    Ok(axum::Json(ControllerCheck {
        name: name.to_string(),
        url: controller.jenkins.url().to_string(),
        answers: about.is_some(),
        version: about.map(|about| about.version),
        user,
        missing: texts(missing),
        unseen: texts(unseen),
        left,
        problem,
    }))
}

/// Tells what waits for a label at its controller, and how many executors more would be used at once.
#[utoipa::path(
    get, path = "/v1/labels/{label}/demand", tag = "labels", params(("label" = String, Path)),
    responses((status = 200, body = Demand), (status = "4XX", body = crate::api::Problem), (status = 503, body = crate::api::Problem))
)]
pub(crate) async fn demand(State(app): State<App>, person: Person, Name(label): Name<LabelName>) -> Result<axum::Json<Demand>, Fault> {
    let release = labels::find(&app, &person, &label)?;
    let Some(name) = &release.policy.launch.controller else {
        let fault = Fault::not_found("no-controller", format!("the policy of label `{label}` names no controller"));
        return Err(fault.with_hint("`launch.controller = \"NAME\"` in its policy does"));
    };
    let gone = || Fault::not_found("no-controller", format!("controller `{name}` of label `{label}` is not in muster.toml any more"));
    let told = app.controllers.get(name).ok_or_else(gone)?.demand(&label).await?;
    let demand = told.demand;
    Ok(axum::Json(Demand {
        label: label.to_string(),
        controller: name.to_string(),
        seen_us: told.seen_us,
        queued: demand.queued(),
        reasons: demand.waiting.iter().map(|(wait, count)| (wait.as_str().to_owned(), *count)).collect(),
        busy: demand.busy,
        idle: demand.idle,
        oldest_waiting_seconds: demand.oldest.as_secs(),
        should_grow: demand.should_grow(),
        problem: told.problem,
    }))
}

fn shown(app: &App, controller: &Controller) -> Shown {
    let (seen_us, problem) = controller.demand_state();
    let releases = app.shelf.releases();
    let named = releases.values().filter(|release| release.policy.launch.controller.as_ref() == Some(&controller.name));
    Shown {
        name: controller.name.to_string(),
        kind: "jenkins".into(),
        url: controller.jenkins.url().to_string(),
        user: controller.jenkins.user().to_owned(),
        labels: named.map(|release| release.label.to_string()).collect(),
        version: controller.jenkins.last_about().map(|about| about.version),
        seen_us,
        problem,
    }
}
