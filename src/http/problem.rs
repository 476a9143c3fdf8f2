//! Where errors meet HTTP: the status, the stable code, what is told and what is only logged.

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::Problem;
use crate::controller::demand::NoDemand;
use crate::http::id_of;
use crate::roster::admission::AdmissionError;
use crate::sandbox::CompileError;
use crate::shelf::ShelfError;
use crate::store::StoreError;
use crate::store::blobs::BlobError;
use crate::store::segments::SegmentError;

/// An error on its way to the client.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    status: StatusCode,
    code: &'static str,
    detail: String,
    hint: Option<String>,
    retry_after_s: Option<u32>,
}

impl Fault {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), hint: None, retry_after_s: None }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn later(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    pub(crate) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(crate) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    pub(crate) fn forbidden(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    pub(crate) fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    pub(crate) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    pub(crate) fn unprocessable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail)
    }

    pub(crate) fn internal(what: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("{what}; the server's log has more under the request's id"))
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // The body is written where the request's id is known.
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the body of an answer that is an error, with the request's id in it. Also those that no handler made.
pub(crate) async fn name_request(request: Request, next: Next) -> Response {
    let id = id_of(&request).to_owned();
    let response = next.run(request).await;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let fault = response.extensions().get::<Fault>().cloned();
    let fault = fault.unwrap_or_else(|| match status {
        StatusCode::PAYLOAD_TOO_LARGE => Fault::too_large("the body is larger than this route takes"),
        _ => Fault::new(status, "http", status.canonical_reason().unwrap_or("the request can not be served")),
    });
    let problem = Problem {
        title: status.canonical_reason().unwrap_or("Error").to_owned(),
        status: status.as_u16(),
        code: fault.code.to_owned(),
        detail: Some(fault.detail),
        hint: fault.hint,
        request: Some(id),
    };
    let (mut parts, _) = response.into_parts();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, serde_json::to_vec(&problem).unwrap_or_default().into())
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(why) => Self::conflict("conflict", why),
            StoreError::Missing(what) => Self::not_found("missing", what),
            StoreError::Cursor => Self::bad_request("cursor", error.to_string()).with_hint("begin again without a cursor"),
            other => {
                tracing::error!(error = %Chain(&other), "the store failed");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store", "the store failed; nothing was changed").later(1)
            }
        }
    }
}

impl From<BlobError> for Fault {
    fn from(error: BlobError) -> Self {
        tracing::error!(error = %Chain(&error), "the contents could not be read or written");
        if matches!(error, BlobError::Full { .. }) {
            return Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", error.to_string())
                .with_hint("an admin makes room on the server's disk, or moves its data directory to a larger one");
        }
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "contents", "the contents could not be read or written").later(1)
    }
}

impl From<SegmentError> for Fault {
    fn from(error: SegmentError) -> Self {
        match error {
            SegmentError::Blob(error) => error.into(),
            SegmentError::Store(error) => error.into(),
        }
    }
}

impl From<ShelfError> for Fault {
    fn from(error: ShelfError) -> Self {
        let text = error.to_string();
        match error {
            ShelfError::Policy(_) => Self::unprocessable("policy", text),
            ShelfError::Unknown(_) => Self::unprocessable("unknown", text),
            ShelfError::NoRelease(_) => Self::not_found("no-label", text).with_hint("`muster label apply -f FILE` makes a first release"),
            ShelfError::Forbidden(_) => Self::forbidden("not-yours", text),
            ShelfError::Raced => Self::conflict("raced", text).with_hint("look at the label and apply again"),
            ShelfError::Compile(error) => error.into(),
            ShelfError::Store(error) => error.into(),
            ShelfError::Blobs(error) => error.into(),
            ShelfError::Segments(error) => error.into(),
            ShelfError::Damaged(_) => {
                tracing::error!(error = text, "what was stored can not be read");
                Self::internal("what was stored can not be read")
            }
        }
    }
}

impl From<CompileError> for Fault {
    fn from(error: CompileError) -> Self {
        match &error {
            CompileError::Inspect(_) | CompileError::Component(_) => Self::unprocessable("not-a-module", error.to_string())
                .with_hint("a module is a component that implements the world `muster:provision/provisioner`, or a script, which is pushed as a file NAME.js"),
            CompileError::Script(_) => Self::unprocessable("not-a-script", error.to_string()),
            CompileError::Syntax(_) => Self::unprocessable("syntax", error.to_string()),
            CompileError::NoRunner(_) => {
                tracing::error!(%error, "a script can not be made ready");
                Self::internal("the runner of the script is lost")
            }
            CompileError::TooCostly => Self::unprocessable("too-costly", error.to_string()).with_hint("smaller functions compile faster"),
            CompileError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string()).later(5),
            CompileError::BrokeDown => Self::internal("the compilation broke down"),
        }
    }
}

impl From<NoDemand> for Fault {
    fn from(error: NoDemand) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "controller-away", error.to_string())
            .later(15)
            .with_hint("whoever scales by this changes nothing now; an admin sees with `muster controller check` what is wrong")
    }
}

impl From<AdmissionError> for Fault {
    fn from(error: AdmissionError) -> Self {
        let text = error.to_string();
        match error {
            AdmissionError::Claim { .. } => Self::unprocessable("claim", text),
            AdmissionError::Labels(_) => {
                Self::forbidden("labels", text).with_hint("`muster token create --kind join --label …` makes a token for other labels")
            }
            AdmissionError::Taken(name) => Self::conflict("name-taken", text)
                .with_hint(format!("another name, or wait until it is lost; `muster agent remove {name}` frees it at once")),
            AdmissionError::OtherName(_) => Self::conflict("other-name", text),
            AdmissionError::NotDialled => Self::unprocessable("not-dialled", text).with_hint("an admin adds `[ssh]` to muster.toml"),
            AdmissionError::AddressTaken(_) => Self::conflict("address-taken", text).with_hint(
                "an admin finds it with `muster agent ls`; `muster agent remove` frees its address at once, and one that is lost makes way for its own team's",
            ),
            AdmissionError::Full => Self::new(StatusCode::SERVICE_UNAVAILABLE, "full", text).later(60),
            AdmissionError::Store(error) => error.into(),
        }
    }
}

/// An error with its causes, for the log.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
