//! The one URL of an agent: registering and polling.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use crate::api::{Register, Registered, TokenKind};
use crate::http::App;
use crate::http::access::Caller;
use crate::http::problem::Fault;
use crate::http::receive::Json;
use crate::limits::{AGENT_TEXT_BYTES_MAX, REQUEST_TIMEOUT};
use crate::store::tokens::TokenRow;
use crate::telemetry::RegistrationOutcome;

/// Registers an agent, or takes its poll.
///
/// With a join token: admits the agent (201) and answers with its credential. With the agent's own credential: a poll (200). To
/// `Accept: text/plain` it answers with lines of a word and a value: `credential`, `state`, `reason`, `poll_after_ms`.
#[utoipa::path(
    post, path = "/v1/register", tag = "agents",
    params(("Idempotency-Key" = Option<String>, Header, description = "A secret of the machine; with the same one, a lost answer is given again")),
    request_body = Register,
    responses((status = 201, body = Registered), (status = 200, body = Registered), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn register(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Json(claims): Json<Register>,
) -> Result<Response, Fault> {
    let as_text = headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/plain"));
    let (status, registered) = registered(app, caller, headers, claims).await?;
    if as_text { Ok((status, text(&registered)).into_response()) } else { Ok((status, axum::Json(registered)).into_response()) }
}

/// The answer for a shell.
fn text(registered: &Registered) -> String {
    let mut lines = vec![("state", registered.agent.state.as_str().to_owned()), ("poll_after_ms", registered.poll_after_ms.to_string())];
    lines.extend(registered.credential.clone().map(|credential| ("credential", credential)));
    lines.extend(registered.agent.reason.clone().map(|reason| ("reason", reason.replace(char::is_control, " "))));
    lines.iter().map(|(word, value)| format!("{word} {value}\n")).collect()
}

async fn registered(app: App, caller: Caller, headers: HeaderMap, claims: Register) -> Result<(StatusCode, Registered), Fault> {
    match caller {
        Caller::Agent(agent) => {
            app.metrics.polls.inc();
            if let Some(registered) = app.roster.poll_unchanged(&agent, &claims) {
                return Ok((StatusCode::OK, registered));
            }
            to_its_end(async move {
                let labels = async |token: String| {
                    Ok(app.store.token(&token).await?.filter(|row| row.revoked_us.is_none()).map(|row| row.labels).unwrap_or_default())
                };
                Ok((StatusCode::OK, app.roster.poll(&agent, claims, labels).await?))
            })
            .await
        }
        Caller::Token(token) => {
            to_its_end(async move {
                let admitted = admit(&app, &token, claims, &headers).await;
                app.metrics.registered(if admitted.is_ok() { RegistrationOutcome::Admitted } else { RegistrationOutcome::Refused });
                admitted.map(|registered| (StatusCode::CREATED, registered))
            })
            .await
        }
    }
}

/// Does what touches the store in a task of its own: an agent that hangs up would otherwise leave store and memory apart.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = Result<T, Fault>> + Send + 'static) -> Result<T, Fault> {
    match tokio::time::timeout(REQUEST_TIMEOUT, tokio::spawn(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => {
            tracing::error!(%error, "a registration broke down");
            Err(Fault::internal("the registration broke down"))
        }
        Err(_) => Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, "slow", "the server is slow; ask again")),
    }
}

async fn admit(app: &App, token: &TokenRow, claims: Register, headers: &HeaderMap) -> Result<Registered, Fault> {
    if token.kind != TokenKind::Join {
        return Err(
            Fault::forbidden("kind", "only a join token admits agents").with_hint("`muster token create --kind join --label …` makes one")
        );
    }
    let key = headers
        .get("idempotency-key")
        .map(|value| value.to_str().map_err(|_| Fault::bad_request("key", "the Idempotency-Key is not text")));
    let key = key.transpose()?.filter(|key| !key.is_empty());
    if key.is_some_and(|key| key.len() > AGENT_TEXT_BYTES_MAX) {
        return Err(Fault::bad_request("key", format!("the Idempotency-Key is longer than {AGENT_TEXT_BYTES_MAX} bytes")));
    }
    Ok(app.roster.admit(token, claims, key).await?)
}
