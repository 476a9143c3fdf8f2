//! For whoever watches over the server.

use axum::extract::{FromRequestParts as _, Request, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};

use crate::api::AgentState;
use crate::http::App;
use crate::http::access::Admin;
use crate::http::problem::Fault;

/// Says that the process answers.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Says that the server does its work: its database answers, and it is not stopping.
#[utoipa::path(
    get, path = "/readyz", tag = "operations",
    responses((status = 200, body = String, content_type = "text/plain"), (status = 503, body = crate::api::Problem))
)]
pub(crate) async fn readyz(State(app): State<App>) -> Result<&'static str, Fault> {
    if app.ending.is_cancelled() {
        return Err(Fault::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, "stopping", "the server is stopping"));
    }
    app.store.ping().await?;
    Ok("ready\n")
}

/// Figures, in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn metrics(State(app): State<App>, request: Request) -> Result<Response, Fault> {
    if !app.metrics_public {
        let (mut parts, _) = request.into_parts();
        Admin::from_request_parts(&mut parts, &app).await?;
    }
    let counts = app.roster.count(|_| true);
    for state in [
        AgentState::Registered,
        AgentState::Provisioning,
        AgentState::Ready,
        AgentState::Failed,
        AgentState::Draining,
        AgentState::Lost,
        AgentState::Quarantined,
    ] {
        app.metrics.set_agents(state, counts.get(&state).copied().unwrap_or_default());
    }
    app.metrics.sessions.set(i64::try_from(app.roster.sessions()).unwrap_or(i64::MAX));
    let text = app.metrics.encode();
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}
