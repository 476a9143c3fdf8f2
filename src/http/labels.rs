//! Labels: their policies, releases, swaps and rollbacks.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;

use crate::api::{AgentState, Applied, ImageCost, Label, LabelDetail, Page, Release, Rollback, Swap};
use crate::http::App;
use crate::http::access::Person;
use crate::http::problem::Fault;
use crate::http::receive::{Asked, Json, Name, OptionalJson, Paging, page};
use crate::journal::now_us;
use crate::limits::BOOTS_KEPT;
use crate::names::LabelName;
use crate::policy::{LabelPolicy, ModuleRef};
use crate::roster::Why;
use crate::shelf::{self, Change, ShelfError, asked};
use crate::store::boots::ImageRow;
use crate::store::labels::ReleaseRow;

impl From<ImageRow> for ImageCost {
    fn from(row: ImageRow) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an average of counts, and a cast ends at the range's end"
        )]
        let bytes_per_boot = row.bytes_per_boot.round() as u64;
        Self { image: row.image, boots: row.boots, bytes_per_boot, seconds_per_boot: row.sync_us_per_boot / 1e6, last_boot_us: row.last_us }
    }
}

/// Whether to do it, or only to say what it would change.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Preview {
    /// Only says what it would change.
    #[serde(default)]
    preview: bool,
}

/// Applies a policy: a new release, if anything differs.
#[utoipa::path(
    put, path = "/v1/labels/{label}", tag = "labels", params(("label" = String, Path), Preview),
    request_body(content = Object, description = "a policy, as in a policy file"),
    responses((status = 200, body = Applied), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn apply(
    State(app): State<App>,
    person: Person,
    Name(label): Name<LabelName>,
    Asked(asked): Asked<Preview>,
    Json(policy): Json<LabelPolicy>,
) -> Result<axum::Json<Applied>, Fault> {
    let change = app.shelf.apply(&person.0, &label, policy, asked.preview).await;
    applied(&app, &label, change)
}

/// Swaps the module of the policy in force: a new release.
#[utoipa::path(
    post, path = "/v1/labels/{label}/swap", tag = "labels", params(("label" = String, Path), Preview), request_body = Swap,
    responses((status = 200, body = Applied), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn swap(
    State(app): State<App>,
    person: Person,
    Name(label): Name<LabelName>,
    Asked(asked): Asked<Preview>,
    Json(swap): Json<Swap>,
) -> Result<axum::Json<Applied>, Fault> {
    let module: ModuleRef =
        swap.module.parse().map_err(|error: crate::names::NameError| Fault::unprocessable("module", error.to_string()))?;
    let change = app.shelf.swap(&person.0, &label, module, asked.preview).await;
    applied(&app, &label, change)
}

/// Makes an earlier release's policy a new release.
#[utoipa::path(
    post, path = "/v1/labels/{label}/rollback", tag = "labels", params(("label" = String, Path), Preview), request_body = Rollback,
    responses((status = 200, body = Applied), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn rollback(
    State(app): State<App>,
    person: Person,
    Name(label): Name<LabelName>,
    Asked(asked): Asked<Preview>,
    OptionalJson(rollback): OptionalJson<Rollback>,
) -> Result<axum::Json<Applied>, Fault> {
    let change = app.shelf.rollback(&person.0, &label, rollback.to, asked.preview).await;
    applied(&app, &label, change)
}

fn applied(app: &App, label: &LabelName, change: Result<Change, ShelfError>) -> Result<axum::Json<Applied>, Fault> {
    // One that was raced may have found a release that nobody has been told of: those that hold it already pass it over.
    let told = match &change {
        Ok(change) => change.release.map(|release| format!("release {release} of label `{label}` is in force")),
        Err(ShelfError::Raced) => Some(format!("another release of label `{label}` is in force")),
        Err(_) => None,
    };
    if let Some(told) = told {
        app.roster.wake_label(label, &Why::Release(told));
    }
    let change = change?;
    let agents = app.roster.count(|agent| agent.carries(label)).values().sum();
    Ok(axum::Json(Applied {
        label: label.to_string(),
        release: change.release,
        previous: change.previous,
        changes: change.differences,
        not_granted: change.not_granted,
        agents,
    }))
}

/// Lists the labels with their releases in force.
#[utoipa::path(get, path = "/v1/labels", tag = "labels", params(Paging), responses((status = 200, body = Page<Label>)))]
pub(crate) async fn list(State(app): State<App>, person: Person, Asked(asked): Asked<Paging>) -> Result<axum::Json<Page<Label>>, Fault> {
    let page = page(asked.cursor, asked.limit);
    let after: Option<LabelName> = page
        .cursor
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(|_| Fault::bad_request("cursor", "the cursor is not one of this listing"))?;
    let releases = app.shelf.releases();
    let limit = page.limit as usize;
    let seen = releases.values().filter(|release| person.sees(&release.policy.team));
    let mut rows: Vec<_> =
        seen.filter(|release| after.as_ref().is_none_or(|after| release.label > *after)).take(limit + 1).map(Arc::clone).collect();
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|release| release.label.to_string());
    let mut counts = app.roster.count_by_label();
    let mut items = Vec::new();
    for release in rows {
        let counts = counts.remove(&release.label).unwrap_or_default();
        items.push(shown(&app, &release.label, counts).await?);
    }
    Ok(axum::Json(Page { items, next }))
}

/// Shows a label with its release in force, and what the images of its agents cost.
#[utoipa::path(
    get, path = "/v1/labels/{label}", tag = "labels", params(("label" = String, Path)), responses((status = 200, body = LabelDetail))
)]
pub(crate) async fn show(State(app): State<App>, person: Person, Name(name): Name<LabelName>) -> Result<axum::Json<LabelDetail>, Fault> {
    find(&app, &person, &name)?;
    let counts = app.roster.count(|agent| agent.carries(&name));
    let Label { label, team, release, agents } = shown(&app, &name, counts).await?;
    let images_since_us = now_us().saturating_sub(i64::try_from(BOOTS_KEPT.as_micros()).unwrap_or(i64::MAX));
    let images = app.store.boots_by_image(&name, images_since_us).await?.into_iter().map(ImageCost::from).collect();
    Ok(axum::Json(LabelDetail { label, team, release, agents, images, images_since_us }))
}

/// Lists the releases of a label, newest first.
#[utoipa::path(
    get, path = "/v1/labels/{label}/releases", tag = "labels", params(("label" = String, Path), Paging),
    responses((status = 200, body = Page<Release>))
)]
pub(crate) async fn releases(
    State(app): State<App>,
    person: Person,
    Name(label): Name<LabelName>,
    Asked(asked): Asked<Paging>,
) -> Result<axum::Json<Page<Release>>, Fault> {
    find(&app, &person, &label)?;
    let rows = app.store.releases(&label, &page(asked.cursor, asked.limit)).await?;
    let mut items = Vec::new();
    for row in rows.items {
        items.push(told(&app, row).await?);
    }
    Ok(axum::Json(Page { items, next: rows.next }))
}

/// A recorded release, with what its module asks for.
async fn told(app: &App, row: ReleaseRow) -> Result<Release, Fault> {
    let policy = serde_json::from_str::<LabelPolicy>(&row.policy).ok();
    let pinned = policy.as_ref().and_then(|policy| Some((&policy.module.name, policy.module.digest?)));
    let asks = match pinned {
        Some((name, digest)) => app.store.module(name, &digest).await?.and_then(|module| module.asks),
        None => None,
    };
    let not_granted = asks.as_ref().zip(policy.as_ref()).map(|(asks, policy)| asked::not_granted(asks, &policy.grants)).unwrap_or_default();
    Ok(Release {
        label: row.label.to_string(),
        release: row.release,
        made_us: row.made_us,
        made_by: row.made_by,
        how: row.how,
        policy: serde_json::from_str(&row.policy).unwrap_or_default(),
        asks,
        not_granted,
    })
}

/// The release in force of a label, if it is the caller's to see.
pub(crate) fn find(app: &App, person: &Person, label: &LabelName) -> Result<Arc<shelf::Release>, Fault> {
    let release = app.shelf.release(label).filter(|release| person.sees(&release.policy.team));
    release.ok_or_else(|| unknown(label))
}

fn unknown(label: &LabelName) -> Fault {
    Fault::not_found("no-label", format!("label `{label}` has no release, or belongs to another team"))
        .with_hint("`muster label ls` lists them; `muster label apply -f FILE` makes a first release")
}

async fn shown(app: &App, label: &LabelName, counts: BTreeMap<AgentState, u64>) -> Result<Label, Fault> {
    let release = app.shelf.release(label).ok_or_else(|| unknown(label))?;
    let row = app.store.release(label, release.number).await?.ok_or_else(|| unknown(label))?;
    let agents = counts.into_iter().map(|(state, count)| (state.as_str().to_owned(), count)).collect();
    Ok(Label { label: label.to_string(), team: release.policy.team.to_string(), release: told(app, row).await?, agents })
}
