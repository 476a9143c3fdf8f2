//! What `muster-poll` asks for: steps, their input, and where their output goes.

use std::str::FromStr;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

use crate::api::{AgentState, LinkKind};
use crate::http::App;
use crate::http::access::Caller;
use crate::http::problem::Fault;
use crate::http::receive::{Asked, Name, body};
use crate::limits::STEPS_MAX;
use crate::link::poll::NoStep;
use crate::link::shell::Input;
use crate::machine::Stream;
use crate::names::Digest;
use crate::reconcile::polled::polled;
use crate::roster::agent::Polled;

/// The steps that a machine has under way: numbers with commas between, or `none`.
const STEPS: &str = "muster-steps";
static STEP: HeaderName = HeaderName::from_static("muster-step");
static SHA256: HeaderName = HeaderName::from_static("muster-sha256");
static INPUT: HeaderName = HeaderName::from_static("muster-input");
static OUT_MAX: HeaderName = HeaderName::from_static("muster-out-max");

/// How a step ended.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Ended {
    /// Its exit status.
    status: i32,
}

/// The script for machines that have `sh` and `curl`.
#[utoipa::path(get, path = "/muster-poll", tag = "agents", responses((status = 200, body = String, content_type = "text/x-shellscript")))]
pub(crate) async fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/x-shellscript; charset=utf-8")], include_str!("../../scripts/muster-poll")).into_response()
}

/// What the agent that calls polls.
pub(crate) struct Own(Polled);

impl FromRequestParts<App> for Own {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Fault> {
        let Caller::Agent(agent) = Caller::from_request_parts(parts, app).await? else {
            return Err(Fault::forbidden("kind", "only an agent has steps, with its own credential"));
        };
        if agent.link_kind() != LinkKind::Poll {
            let fault = Fault::conflict("link", "the agent did not register with the link `poll`");
            return Err(fault.with_hint("register again with `\"link\": \"poll\"`"));
        }
        if agent.state() == AgentState::Lost {
            // What it says of itself brings it back, and what becomes of it then.
            return Err(Fault::conflict("lost", "the agent was lost; it is to register again"));
        }
        agent.heard();
        Ok(Self(polled(&app.roster, &agent)))
    }
}

/// A step's number in the path.
#[derive(Clone, Copy)]
pub(crate) struct Number(u64);

impl FromStr for Number {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| "a step is a number")
    }
}

fn over(_: NoStep) -> Fault {
    Fault::not_found("no-step", "nobody waits for this step")
}

/// The next step of an agent that polls for them: a script for its `sh`. Waits for one for some seconds.
#[utoipa::path(
    get, path = "/v1/poll", tag = "agents",
    params(("Muster-Steps" = Option<String>, Header, description = "The steps that are under way there: numbers with commas between, or `none`")),
    responses(
        (status = 200, content_type = "text/plain", description = "`Muster-Step` is its number, `Muster-Sha256` the digest of the text, `Muster-Input` 1 if there is an input, `Muster-Out-Max` what is kept of its output, in bytes"),
        (status = 204, description = "There is none now"), (status = "4XX", body = crate::api::Problem)
    )
)]
pub(crate) async fn next(State(app): State<App>, Own(polled): Own, headers: HeaderMap) -> Result<Response, Fault> {
    let here = here(&headers)?;
    let handed = tokio::select! {
        handed = polled.line.next(&here, app.roster.step_poll()) => handed,
        () = polled.shell.over() => None,
        () = app.ending.cancelled() => None,
    };
    let Some(handed) = handed else { return Ok(StatusCode::NO_CONTENT.into_response()) };
    let digest = Digest::of(&handed.text).to_string();
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
        (STEP.clone(), handed.id.to_string()),
        (SHA256.clone(), digest),
        (INPUT.clone(), u8::from(handed.has_input).to_string()),
        (OUT_MAX.clone(), handed.output_bytes_max.to_string()),
    ];
    Ok((headers, handed.text).into_response())
}

fn here(headers: &HeaderMap) -> Result<Vec<u64>, Fault> {
    let Some(text) = headers.get(STEPS) else { return Ok(Vec::new()) };
    let numbers = text.to_str().ok().filter(|text| *text != "none").map_or("", |text| text);
    let numbers = numbers.split(',').filter(|number| !number.is_empty()).map(|number| number.trim().parse::<u64>());
    match numbers.collect::<Result<Vec<_>, _>>() {
        Ok(numbers) if numbers.len() <= 4 * STEPS_MAX && text.to_str().is_ok() => Ok(numbers),
        _ => Err(Fault::bad_request("steps", format!("the header {STEPS} is `none`, or at most {} numbers with commas", 4 * STEPS_MAX))),
    }
}

/// The input of a step, as a stream.
#[utoipa::path(
    get, path = "/v1/poll/{step}/input", tag = "agents", params(("step" = u64, Path)),
    responses((status = 200, content_type = "application/octet-stream"), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn input(Own(polled): Own, Name(Number(step)): Name<Number>) -> Result<Response, Fault> {
    let body = match polled.line.input(step).map_err(over)? {
        Input::None => Body::empty(),
        Input::Whole(bytes) => Body::from(bytes),
        Input::Pieces(begin) => {
            let pieces = futures_util::stream::unfold(begin(), async |mut pieces| Some((pieces.recv().await?, pieces)));
            Body::from_stream(futures_util::StreamExt::map(pieces, Ok::<Bytes, std::convert::Infallible>))
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Takes what a step wrote to its standard output.
#[utoipa::path(
    put, path = "/v1/poll/{step}/out", tag = "agents", params(("step" = u64, Path)),
    request_body(content_type = "application/octet-stream"),
    responses((status = 204), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn out(own: Own, Name(step): Name<Number>, request: Request) -> Result<StatusCode, Fault> {
    wrote(own, step, Stream::Stdout, request).await
}

/// Takes what a step wrote to its standard error.
#[utoipa::path(
    put, path = "/v1/poll/{step}/err", tag = "agents", params(("step" = u64, Path)),
    request_body(content_type = "application/octet-stream"),
    responses((status = 204), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn err(own: Own, Name(step): Name<Number>, request: Request) -> Result<StatusCode, Fault> {
    wrote(own, step, Stream::Stderr, request).await
}

async fn wrote(Own(polled): Own, Number(step): Number, stream: Stream, request: Request) -> Result<StatusCode, Fault> {
    let writing = polled.line.writing(step, stream).map_err(over)?;
    let bytes = body(request.into_body(), writing.bytes_max).await?;
    writing.end(bytes).map_err(over)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a step's end. What it wrote came before.
#[utoipa::path(
    post, path = "/v1/poll/{step}/done", tag = "agents", params(("step" = u64, Path), Ended),
    responses((status = 204), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn done(Own(polled): Own, Name(Number(step)): Name<Number>, Asked(ended): Asked<Ended>) -> Result<StatusCode, Fault> {
    polled.line.done(step, ended.status).map_err(over)?;
    Ok(StatusCode::NO_CONTENT)
}
