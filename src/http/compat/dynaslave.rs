//! The DynaSlave plugin's URLs, so that its register script works unchanged.
//!
//! The script asks whether the machine's agent is there, and makes it if not, both with GET. An agent that came this way is reached by ssh
//! at the host that it named; it has no credential, so these two calls are its word.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Deserialize;

use crate::api::{AgentState, LinkKind, Register};
use crate::http::App;
use crate::http::compat::{Door, asked, off};
use crate::http::problem::Fault;
use crate::http::receive::Name;
use crate::link::ssh::host::Host;
use crate::names::{AgentName, NameError};

const SECTION: &str = "compat.dynaslave";

/// What `[compat.dynaslave]` says.
pub(super) struct Rules {
    pub(super) door: Door,
    pub(super) prefix: String,
    pub(super) any_host: bool,
}

/// What the script says of its machine.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(crate) struct Create {
    /// The agent's name. The prefix is put before it, unless it is there already.
    name: String,
    /// Becomes the attribute `description`.
    description: Option<String>,
    /// How many builds it takes at once.
    executors: u32,
    /// Its root: an absolute path.
    remote_fs_root: String,
    /// Its labels, separated by spaces.
    #[serde(default)]
    #[param(required = false)]
    labels: String,
    /// The host to dial, and perhaps a port. If it is empty, the address from which the call comes; and another host only if
    /// `compat.dynaslave.any_host` is set.
    #[serde(default)]
    #[param(required = false)]
    hostname: String,
}

/// Registers an agent that is reached by ssh, as the DynaSlave plugin did. The answer has no body.
///
/// If `compat.dynaslave.token_file` is set, the token is sent as a bearer's, or as `token` in the query.
#[utoipa::path(
    method(get, post), path = "/plugin/dynaslave/createSlave", tag = "compatibility",
    params(Create, ("token" = Option<String>, Query, description = "The token, if it is in no header")),
    responses((status = 200), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn create(State(app): State<App>, request: Request) -> Result<StatusCode, Fault> {
    let rules = app.compat.dynaslave.as_ref().ok_or_else(|| off(SECTION))?;
    let address = rules.door.enter(&request)?;
    let claims = rules.claims(asked(request).await?, address).await?;
    rules.door.visit(&app, claims).await?;
    Ok(StatusCode::OK)
}

/// Says whether an agent of that name lives and is not lost, as a page of Jenkins did. A slash at the end of the path is taken too.
///
/// If the agent came through the DynaSlave plugin's URL, this counts as its word.
#[utoipa::path(
    get, path = "/computer/{name}", tag = "compatibility",
    params(
        ("name" = String, Path, description = "The agent's name, with the prefix"),
        ("token" = Option<String>, Query, description = "The token, if it is in no header")
    ),
    responses((status = 200, body = String, content_type = "text/plain"), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn computer(State(app): State<App>, Name(name): Name<AgentName>, request: Request) -> Result<String, Fault> {
    let rules = app.compat.dynaslave.as_ref().ok_or_else(|| off(SECTION))?;
    rules.door.enter(&request)?;
    let agent = app.roster.by_name(&name).filter(|agent| !matches!(agent.state(), AgentState::Lost | AgentState::Gone));
    let agent = agent.ok_or_else(|| Fault::not_found("missing", format!("no agent `{name}` lives, or it is lost")))?;
    if agent.is_of_dynaslave() {
        agent.heard();
        app.metrics.polls.inc();
    }
    Ok(format!("{name} is {}\n", agent.state().as_str()))
}

impl Rules {
    async fn claims(&self, asked: Create, caller: IpAddr) -> Result<Register, Fault> {
        let wrong = |field, problem: String| Fault::unprocessable("claim", format!("{field}: {problem}"));
        let host = match asked.hostname.as_str() {
            "" => caller.to_string(),
            named => {
                let host = named.parse::<Host>().map_err(|error| wrong("hostname", error.to_string()))?;
                if self.any_host { host } else { own(&host, caller).await? }.to_string()
            }
        };
        Ok(Register {
            name: self.named(&asked.name).map_err(|error| wrong("name", error.to_string()))?,
            labels: self.door.labels(&asked.labels)?,
            executors: asked.executors,
            root: asked.remote_fs_root,
            address: Some(host),
            // The plugin's own scripts knew no other system, and a script of its kind does not say; nobody can guess the processor.
            os: "linux".into(),
            arch: "unknown".into(),
            image: None,
            attributes: asked.description.filter(|text| !text.is_empty()).map(|text| ("description".into(), text)).into_iter().collect(),
            ssh_host_key: None,
            instance: None,
            link: LinkKind::Ssh,
            baked: Vec::new(),
        })
    }

    /// A name with the prefix. The plugin's sample script sends one that has it already.
    fn named(&self, text: &str) -> Result<AgentName, NameError> {
        let name: AgentName = text.parse()?;
        let has_it = text.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('-'));
        if self.prefix.is_empty() || has_it { Ok(name) } else { format!("{}-{name}", self.prefix).parse() }
    }
}

/// The caller's own address, with the port of a host that leads there. What is dialled is never what the name may lead to later.
async fn own(host: &Host, caller: IpAddr) -> Result<Host, Fault> {
    let found = tokio::net::lookup_host((host.name(), host.port())).await;
    let mut found = found.map_err(|error| Fault::unprocessable("claim", format!("hostname: `{host}` can not be resolved: {error}")))?;
    if !found.any(|address| address.ip().to_canonical() == caller) {
        let fault = Fault::forbidden("hostname", format!("`{host}` is not {caller}, from where the call comes"));
        return Err(fault.with_hint("leave `hostname` empty; or an admin sets `any_host = true` in `[compat.dynaslave]` of muster.toml"));
    }
    Ok(host.at(caller))
}
