//! Taking what a request holds: names, queries and bodies, each with its limit and an error of its own.

use std::str::FromStr;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::http::problem::Fault;
use crate::limits::{BODY_BYTES_MAX, ID_BYTES, PAGE_ROWS, PAGE_ROWS_MAX, UPLOAD_STALL_TIMEOUT};
use crate::store::PageAsked;

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Fault> {
        json(request, BODY_BYTES_MAX).await.map(Self)
    }
}

/// A JSON body, or none at all.
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Fault> {
        let said = says_json(&request);
        let bytes = body(request.into_body(), BODY_BYTES_MAX).await?;
        match (bytes.is_empty(), said) {
            (true, _) => Ok(Self(T::default())),
            (false, Ok(())) => parse(&bytes).map(Self),
            (false, Err(fault)) => Err(fault),
        }
    }
}

/// A JSON body of at most so many bytes.
pub(crate) async fn json<T: DeserializeOwned>(request: Request, bytes_max: usize) -> Result<T, Fault> {
    says_json(&request)?;
    parse(&body(request.into_body(), bytes_max).await?)
}

fn says_json(request: &Request) -> Result<(), Fault> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|text| text.split(';').next()).unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let status = axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Err(Fault::new(status, "not-json", "the body is to be `Content-Type: application/json`"))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Fault::unprocessable("body", format!("the body is not what this route takes: {error}")),
        _ => Fault::bad_request("json", format!("the body is not JSON: {error}")),
    })
}

/// A whole body of at most so many bytes.
pub(crate) async fn body(body: Body, bytes_max: usize) -> Result<Bytes, Fault> {
    let mut pieces = Pieces::new(body);
    let fits = |bytes: usize| {
        if bytes > bytes_max { Err(Fault::too_large(format!("the body is larger than {bytes_max} bytes"))) } else { Ok(()) }
    };
    // Most bodies come in one piece, which need not be copied.
    let first = pieces.next().await?.unwrap_or_default();
    fits(first.len())?;
    let Some(mut piece) = pieces.next().await? else { return Ok(first) };
    let mut whole = first.to_vec();
    loop {
        fits(whole.len() + piece.len())?;
        whole.extend_from_slice(&piece);
        match pieces.next().await? {
            Some(next) => piece = next,
            None => return Ok(whole.into()),
        }
    }
}

/// A body piece by piece. One that pauses for too long is given up.
pub(crate) struct Pieces {
    stream: axum::body::BodyDataStream,
}

impl Pieces {
    pub(crate) fn new(body: Body) -> Self {
        Self { stream: body.into_data_stream() }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        match tokio::time::timeout(UPLOAD_STALL_TIMEOUT, self.stream.next()).await {
            Err(_) => Err(Fault::new(axum::http::StatusCode::REQUEST_TIMEOUT, "stalled", "the body stopped coming")),
            Ok(None) => Ok(None),
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
            Ok(Some(Err(error))) => Err(Fault::bad_request("cut-off", format!("the body was cut off: {error}"))),
        }
    }
}

/// One name in the path.
pub(crate) struct Name<T>(pub(crate) T);

impl<T, S> FromRequestParts<S> for Name<T>
where
    T: FromStr<Err: std::fmt::Display> + Send,
    S: Send + Sync,
{
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|error| Fault::bad_request("path", error.body_text()))?;
        text.parse().map(Self).map_err(|error: T::Err| Fault::bad_request("name", error.to_string()))
    }
}

/// Two names in the path.
pub(crate) struct Names<A, B>(pub(crate) A, pub(crate) B);

impl<A, B, S> FromRequestParts<S> for Names<A, B>
where
    A: FromStr<Err: std::fmt::Display> + Send,
    B: FromStr<Err: std::fmt::Display> + Send,
    S: Send + Sync,
{
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((a, b)) = path.map_err(|error| Fault::bad_request("path", error.body_text()))?;
        let a = a.parse().map_err(|error: A::Err| Fault::bad_request("name", error.to_string()))?;
        let b = b.parse().map_err(|error: B::Err| Fault::bad_request("name", error.to_string()))?;
        Ok(Self(a, b))
    }
}

/// The query of the URL.
pub(crate) struct Asked<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(asked)| Self(asked)).map_err(|error| Fault::bad_request("query", error.body_text()))
    }
}

/// Which page of a listing.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Paging {
    /// What the page before gave as `next`.
    pub(crate) cursor: Option<String>,
    /// Rows at most.
    pub(crate) limit: Option<u32>,
}

/// A page as the store takes it.
pub(crate) fn page(cursor: Option<String>, limit: Option<u32>) -> PageAsked {
    PageAsked { cursor, limit: limit.unwrap_or(PAGE_ROWS).clamp(1, PAGE_ROWS_MAX) }
}

/// An id in the path: hexadecimal digits.
pub(crate) struct Id(pub(crate) String);

impl FromStr for Id {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = text.len() == ID_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if fits { Ok(Self(text.to_owned())) } else { Err("an id is 32 hexadecimal digits") }
    }
}
