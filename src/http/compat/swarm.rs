//! What the Jenkins Swarm client calls before it connects.
//!
//! The client creates its agent, and then connects with a protocol that Jenkins alone speaks. So it is registered here, under its name and
//! with its labels, and asks again each time its connection fails, which is its word. It can be provisioned if the server may dial its
//! machine by ssh; otherwise it waits, and says for what.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, header};
use serde::Deserialize;

use crate::api::{AgentState, LinkKind, Register};
use crate::http::App;
use crate::http::compat::{Door, asked, off};
use crate::http::problem::Fault;
use crate::names::{AgentName, LabelName, NameError};
use crate::roster::agent::Agent;
use crate::store::agents::AgentRow;

const SECTION: &str = "compat.swarm";

/// Why an agent waits that is not dialled.
const WAITS: &str = "it is a Swarm client, to which Jenkins alone can connect: stop it and start `muster-agent` there, \
    or have the machine dialled with `ssh = true` in `[compat.swarm]`";

/// What `[compat.swarm]` says.
pub(super) struct Rules {
    pub(super) door: Door,
    pub(super) ssh: bool,
}

/// What the client says of its machine: in a form, and in the query before release 1250. What it says beyond that is passed over.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Create {
    /// The agent's name.
    name: String,
    /// Becomes the attribute `description`.
    description: Option<String>,
    /// How many builds it takes at once.
    executors: u32,
    /// Its root: an absolute path.
    remote_fs_root: String,
    /// Its labels, separated by spaces.
    #[serde(default)]
    labels: String,
    /// Put after the name, with a `-`, if it is not empty.
    #[serde(default)]
    hash: String,
}

/// Which agent, and which labels.
#[derive(Deserialize, utoipa::ToSchema)]
pub(crate) struct Labels {
    /// The agent's name, as its creation answered it.
    name: String,
    /// Labels, separated by spaces.
    #[serde(default)]
    labels: String,
}

/// A document of labels, with its header.
type Xml = ([(HeaderName, &'static str); 1], String);

/// Registers a Swarm client. The answer is a properties document with the `name` that the agent got.
#[utoipa::path(
    post, path = "/plugin/swarm/createSlave", tag = "compatibility",
    request_body(content = Create, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = String, content_type = "text/plain"), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn create(State(app): State<App>, request: Request) -> Result<String, Fault> {
    let rules = app.compat.swarm.as_ref().ok_or_else(|| off(SECTION))?;
    let address = rules.door.enter(&request)?;
    let asked: Create = asked(request).await?;
    let name = if asked.hash.is_empty() { asked.name } else { format!("{}-{}", asked.name, asked.hash) };
    let name = named(&name)?;
    let claims = Register {
        name: name.clone(),
        labels: rules.door.labels(&asked.labels)?,
        executors: asked.executors,
        root: asked.remote_fs_root,
        address: Some(address.to_string()),
        os: "unknown".into(),
        arch: "unknown".into(),
        image: None,
        attributes: asked.description.filter(|text| !text.is_empty()).map(|text| ("description".into(), text)).into_iter().collect(),
        ssh_host_key: None,
        instance: None,
        link: if rules.ssh { LinkKind::Ssh } else { LinkKind::Session },
        baked: Vec::new(),
    };
    rules.door.visit(&app, claims).await?;
    if !rules.ssh {
        tell(&app, &name).await?;
    }
    Ok(format!("name={name}\n"))
}

/// Says what a Swarm client's agent carries.
#[utoipa::path(
    get, path = "/plugin/swarm/getSlaveLabels", tag = "compatibility",
    params(("name" = String, Query, description = "The agent's name, as its creation answered it")),
    responses((status = 200, body = String, content_type = "text/xml"), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn labels(State(app): State<App>, request: Request) -> Result<Xml, Fault> {
    let (_, agent, _) = caller(&app, request).await?;
    Ok(document(&agent.view().claims.labels))
}

/// Gives a Swarm client's agent more labels.
#[utoipa::path(
    post, path = "/plugin/swarm/addSlaveLabels", tag = "compatibility",
    request_body(content = Labels, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = String, content_type = "text/xml"), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn add_labels(State(app): State<App>, request: Request) -> Result<Xml, Fault> {
    relabel(&app, request, |labels, asked| format!("{labels} {asked}")).await
}

/// Takes labels from a Swarm client's agent.
#[utoipa::path(
    post, path = "/plugin/swarm/removeSlaveLabels", tag = "compatibility",
    request_body(content = Labels, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = String, content_type = "text/xml"), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn remove_labels(State(app): State<App>, request: Request) -> Result<Xml, Fault> {
    relabel(&app, request, |labels, asked| {
        let kept = labels.split(' ').filter(|label| !asked.split_ascii_whitespace().any(|other| other == *label));
        kept.collect::<Vec<_>>().join(" ")
    })
    .await
}

/// Changes the labels of the caller's own agent, and answers them. `change` makes those to have of those that are there and those that are
/// asked for.
async fn relabel(app: &App, request: Request, change: impl FnOnce(String, &str) -> String) -> Result<Xml, Fault> {
    let (rules, agent, asked) = caller(app, request).await?;
    let mut claims = agent.view().claims;
    let labels = rules.door.labels(&change(joined(&claims.labels), &asked.labels))?;
    claims.labels.clone_from(&labels);
    rules.door.visit(app, claims).await?;
    Ok(document(&labels))
}

/// The caller's own agent, and what is asked.
async fn caller(app: &App, request: Request) -> Result<(&Rules, Arc<Agent>, Labels), Fault> {
    let rules = app.compat.swarm.as_ref().ok_or_else(|| off(SECTION))?;
    let address = rules.door.enter(&request)?.to_string();
    let asked: Labels = asked(request).await?;
    let name = named(&asked.name)?;
    let agent = app.roster.visitor(&name, SECTION, &address);
    let agent = agent.ok_or_else(|| Fault::not_found("missing", format!("no agent `{name}` came as a Swarm client from {address}")))?;
    Ok((rules, agent, asked))
}

fn document(labels: &[LabelName]) -> Xml {
    // Names hold nothing that would have to be escaped.
    let text = format!("<labelResponse><labels>{}</labels></labelResponse>", joined(labels));
    ([(header::CONTENT_TYPE, "text/xml")], text)
}

fn joined(labels: &[LabelName]) -> String {
    labels.iter().map(LabelName::as_str).collect::<Vec<_>>().join(" ")
}

fn named(text: &str) -> Result<AgentName, Fault> {
    text.parse().map_err(|error: NameError| Fault::unprocessable("claim", format!("name: {error}")))
}

/// Says for what an agent waits, where a person looks.
async fn tell(app: &App, name: &AgentName) -> Result<(), Fault> {
    let Some(agent) = app.roster.by_name(name) else { return Ok(()) };
    let wait = |row: &mut AgentRow| (row.state == AgentState::Registered && row.reason != WAITS).then(|| WAITS.to_owned());
    app.roster.change(&agent, wait).await?;
    Ok(())
}
