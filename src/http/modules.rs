//! Modules: uploaded, listed, shown.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;

use crate::api::{Module, ModuleKind, Page, ScriptText};
use crate::http::App;
use crate::http::access::Person;
use crate::http::problem::Fault;
use crate::http::receive::{Asked, Name, Names, Paging, body, page};
use crate::limits::{MODULE_BYTES_MAX, SCRIPT_BYTES_MAX};
use crate::names::{Digest, ModuleName, ScriptName, TeamName};
use crate::sandbox::script;
use crate::store::modules::ModuleRow;
use crate::telemetry::CompileOutcome;

impl From<ModuleRow> for Module {
    fn from(row: ModuleRow) -> Self {
        Self {
            digest: row.digest.to_string(),
            name: row.name.to_string(),
            team: row.team.to_string(),
            kind: if row.world == script::WORLD { ModuleKind::Script } else { ModuleKind::Component },
            size_bytes: row.size_bytes,
            world: row.world,
            imports: row.imports,
            language: row.language,
            asks: row.asks,
            uploaded_us: row.uploaded_us,
        }
    }
}

/// Under which name a module is kept.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Upload {
    /// The module's name.
    #[param(value_type = String)]
    name: ModuleName,
    /// The team; an admin has to say, a team's token says it.
    #[param(value_type = Option<String>)]
    team: Option<TeamName>,
    /// The name of a script's file, which errors in it are told with. With it the body is the script's text.
    #[param(value_type = Option<String>)]
    script: Option<ScriptName>,
}

/// Uploads a module. A component is inspected, compiled and linked before it is kept; a script is read.
#[utoipa::path(
    post, path = "/v1/modules", tag = "modules", params(Upload),
    request_body(content = Vec<u8>, content_type = "application/wasm"),
    responses((status = 201, body = Module), (status = 200, body = Module), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn upload(
    State(app): State<App>,
    person: Person,
    Asked(asked): Asked<Upload>,
    content: Body,
) -> Result<(StatusCode, axum::Json<Module>), Fault> {
    let team = person.team_for(asked.team)?;
    let uploaded = match asked.script {
        None => app.shelf.upload(asked.name, team, body(content, MODULE_BYTES_MAX).await?).await,
        Some(file) => app.shelf.upload_script(asked.name, team, file, body(content, SCRIPT_BYTES_MAX).await?).await,
    };
    app.metrics.compiled(if uploaded.is_ok() { CompileOutcome::Compiled } else { CompileOutcome::Refused });
    let (row, new) = uploaded?;
    tracing::info!(module = %row.name, digest = %row.digest, by = person.0.token, "module {} was uploaded", row.name);
    Ok((if new { StatusCode::CREATED } else { StatusCode::OK }, axum::Json(row.into())))
}

/// Lists the modules, each with its newest version.
#[utoipa::path(get, path = "/v1/modules", tag = "modules", params(Paging), responses((status = 200, body = Page<Module>)))]
pub(crate) async fn list(State(app): State<App>, person: Person, Asked(asked): Asked<Paging>) -> Result<axum::Json<Page<Module>>, Fault> {
    let rows = app.store.modules(person.0.team.as_ref(), &page(asked.cursor, asked.limit)).await?;
    Ok(axum::Json(Page { items: rows.items.into_iter().map(Module::from).collect(), next: rows.next }))
}

/// Lists the versions of a module, newest first.
#[utoipa::path(get, path = "/v1/modules/{name}", tag = "modules", params(("name" = String, Path), Paging), responses((status = 200, body = Page<Module>)))]
pub(crate) async fn versions(
    State(app): State<App>,
    person: Person,
    Name(name): Name<ModuleName>,
    Asked(asked): Asked<Paging>,
) -> Result<axum::Json<Page<Module>>, Fault> {
    let newest = app.store.module_newest(&name).await?.filter(|row| person.sees(&row.team));
    newest.ok_or_else(|| unknown(&name))?;
    let rows = app.store.module_versions(&name, &page(asked.cursor, asked.limit)).await?;
    Ok(axum::Json(Page { items: rows.items.into_iter().map(Module::from).collect(), next: rows.next }))
}

/// Shows one version of a module.
#[utoipa::path(
    get, path = "/v1/modules/{name}/{digest}", tag = "modules",
    params(("name" = String, Path), ("digest" = String, Path)), responses((status = 200, body = Module))
)]
pub(crate) async fn show(
    State(app): State<App>,
    person: Person,
    Names(name, digest): Names<ModuleName, Digest>,
) -> Result<axum::Json<Module>, Fault> {
    let row = app.store.module(&name, &digest).await?.filter(|row| person.sees(&row.team));
    Ok(axum::Json(row.ok_or_else(|| unknown(&name))?.into()))
}

/// Gives the text of a version that is a script.
#[utoipa::path(
    get, path = "/v1/modules/{name}/{digest}/script", tag = "modules",
    params(("name" = String, Path), ("digest" = String, Path)),
    responses((status = 200, body = ScriptText), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn script(
    State(app): State<App>,
    person: Person,
    Names(name, digest): Names<ModuleName, Digest>,
) -> Result<axum::Json<ScriptText>, Fault> {
    let row = app.store.module(&name, &digest).await?.filter(|row| person.sees(&row.team));
    row.ok_or_else(|| unknown(&name))?;
    let script = app.shelf.script(digest).await?;
    let script = script.ok_or_else(|| Fault::not_found("no-script", format!("the module `{name}` is a component, and has no text")))?;
    Ok(axum::Json(ScriptText { file: script.name().to_string(), text: script.text().to_owned() }))
}

fn unknown(name: &ModuleName) -> Fault {
    Fault::not_found("no-module", format!("there is no such module `{name}`, or it belongs to another team"))
        .with_hint("`muster module ls` lists them")
}
