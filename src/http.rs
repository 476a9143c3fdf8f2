//! HTTP, version 1: the routes, and what all of them share.
//!
//! A handler authenticates, parses, calls one room below and answers. Errors meet HTTP in `problem`; who may do what is in `access`.

pub mod access;
mod agents;
mod bundles;
pub mod compat;
mod controllers;
mod explain;
mod labels;
mod modules;
mod ops;
mod poll;
mod problem;
mod receive;
mod register;
mod runs;
mod session;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::IntoResponse as _;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tower::ServiceBuilder;
use tower_http::request_id::PropagateRequestIdLayer;
use tower_http::trace::TraceLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::controller::Controllers;
use crate::controller::nodes::Nodes;
use crate::http::problem::Fault;
use crate::limits::{ACCEPT_PAUSE, CONNECTION_IDLE_MAX, REQUEST_TIMEOUT, TCP_KEEPALIVE};
use crate::provision::Provision;
use crate::roster::Roster;
use crate::shelf::Shelf;
use crate::store::Store;
use crate::store::blobs::Blobs;
use crate::store::segments::Segments;
use crate::telemetry::Metrics;

/// What handlers reach. Cloned for each request, so it is one pointer.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// What a server is made of, as far as handlers reach it.
pub struct Parts {
    /// The store.
    pub store: Store,
    /// Contents.
    pub blobs: Blobs,
    /// Contents of bundles.
    pub segments: Segments,
    /// Releases in force.
    pub shelf: Arc<Shelf>,
    /// Controllers.
    pub controllers: Arc<Controllers>,
    /// The nodes that agents have there.
    pub nodes: Arc<Nodes>,
    /// Turns to send a manifest.
    pub manifests: Semaphore,
    /// Agents.
    pub roster: Arc<Roster>,
    /// Provisioning.
    pub provision: Arc<Provision>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Whether anybody may read the figures, or admins alone.
    pub metrics_public: bool,
    /// The URLs of other servers.
    pub compat: compat::Compat,
    /// Cancelled when the server is to end, so that streams and sessions do.
    pub ending: tokio_util::sync::CancellationToken,
}

impl App {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl std::ops::Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Muster", description = "Registers build agents and provisions them before they are launched."),
    components(schemas(crate::api::Problem))
)]
struct Document;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes, and the document that describes them.
fn routes() -> OpenApiRouter<App> {
    // Those that ten thousand agents ask for: they have no layer of their own, and do what takes long in a task of its own.
    let often = OpenApiRouter::new().routes(routes!(register::register)).routes(routes!(poll::next));
    let quick = OpenApiRouter::new()
        .routes(routes!(modules::list))
        .routes(routes!(modules::versions))
        .routes(routes!(modules::show))
        .routes(routes!(modules::script))
        .routes(routes!(bundles::list))
        .routes(routes!(bundles::versions))
        .routes(routes!(bundles::show))
        .routes(routes!(labels::list))
        .routes(routes!(labels::show, labels::apply))
        .routes(routes!(labels::releases))
        .routes(routes!(labels::swap))
        .routes(routes!(labels::rollback))
        .routes(routes!(controllers::demand))
        .routes(routes!(controllers::list))
        .routes(routes!(controllers::check))
        .routes(routes!(agents::list))
        .routes(routes!(agents::show, agents::remove))
        .routes(routes!(explain::explain))
        .routes(routes!(agents::provision))
        .routes(routes!(agents::drain))
        .routes(routes!(agents::quarantine))
        .routes(routes!(runs::list))
        .routes(routes!(runs::show))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(poll::script))
        .routes(routes!(ops::healthz))
        .routes(routes!(ops::readyz))
        .routes(routes!(ops::metrics))
        .routes(routes!(compat::dynaslave::create))
        .routes(routes!(compat::dynaslave::computer))
        // Not described by itself: it is the same, as a browser or a script may write it.
        .route("/computer/{name}/", axum::routing::get(compat::dynaslave::computer))
        .routes(routes!(compat::swarm::create))
        .routes(routes!(compat::swarm::labels))
        .routes(routes!(compat::swarm::add_labels))
        .routes(routes!(compat::swarm::remove_labels))
        .layer(axum::middleware::from_fn(in_time));
    // Uploads and streams last as long as they make progress; each has its own limits.
    let long = OpenApiRouter::new()
        .routes(routes!(session::open))
        .routes(routes!(poll::input))
        .routes(routes!(poll::out))
        .routes(routes!(poll::err))
        .routes(routes!(poll::done))
        .routes(routes!(modules::upload))
        .routes(routes!(bundles::missing))
        .routes(routes!(bundles::contents))
        .routes(routes!(bundles::push))
        .routes(routes!(bundles::manifest))
        .routes(routes!(bundles::send))
        .routes(routes!(runs::log))
        .routes(routes!(runs::journal))
        .routes(routes!(runs::recording::recording))
        .routes(routes!(runs::recording::module))
        .layer(axum::middleware::from_fn(to_its_end));
    OpenApiRouter::with_openapi(Document::openapi()).merge(often).merge(quick).merge(long)
}

/// The document at `/openapi.json`.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().split_for_parts().1
}

/// The whole service.
pub fn router(app: App) -> Router {
    let (router, document) = routes().split_for_parts();
    // Every connection has a copy of the routes: this one is shared.
    let document = bytes::Bytes::from(document.to_json().unwrap_or_default());
    router
        .route("/openapi.json", axum::routing::get(|| async move { ([(header::CONTENT_TYPE, "application/json")], document) }))
        .fallback(async || Fault::not_found("no-route", "there is no such route").with_hint("GET /openapi.json describes all of them"))
        .method_not_allowed_fallback(async || Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this route does not know this method"))
        .with_state(app)
        // One layer made of all: the router boxes and clones each of its layers for each request.
        .layer(
            ServiceBuilder::new()
                .map_request(name_requests())
                .layer(PropagateRequestIdLayer::new(REQUEST_ID.clone()))
                .layer(TraceLayer::new_for_http().make_span_with(|request: &axum::http::Request<_>| {
                    // The path alone: a query, or a header, could hold what does not belong into a log.
                    tracing::debug_span!("request", method = %request.method(), path = request.uri().path(), id = id_of(request))
                }))
                .layer(axum::middleware::from_fn(problem::name_request)),
        )
}

/// Names requests: a random text of this server's start, and a number. A name that the client sent is overwritten, so that nobody
/// writes a text of theirs into the log.
fn name_requests<B>() -> impl Fn(axum::http::Request<B>) -> axum::http::Request<B> + Clone {
    let (start, next) = (rand::random::<u32>(), Arc::new(AtomicU64::new(1)));
    move |mut request| {
        let text = format!("{start:08x}-{}", next.fetch_add(1, Ordering::Relaxed));
        if let Ok(id) = HeaderValue::from_str(&text) {
            request.headers_mut().insert(REQUEST_ID.clone(), id);
        }
        request
    }
}

fn id_of<B>(request: &axum::http::Request<B>) -> &str {
    request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Lets a handler come to its end in a task of its own, whatever becomes of the connection: one that was dropped between the store and
/// memory would leave the two apart.
async fn to_its_end(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%error, "a handler broke down");
            Fault::internal("a handler broke down").into_response()
        }
    }
}

async fn in_time(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, to_its_end(request, next)).await {
        Ok(response) => response,
        Err(_) => {
            Fault::new(StatusCode::SERVICE_UNAVAILABLE, "slow", format!("the request took longer than {} s", REQUEST_TIMEOUT.as_secs()))
                .with_hint("it goes on; ask for the state before you repeat it")
                .into_response()
        }
    }
}

/// Serves until the token is cancelled, then lets what is under way end, for a while.
///
/// A connection that brings no request for [`CONNECTION_IDLE_MAX`] is closed: agents keep theirs between polls, and one of a machine that was
/// switched off says no farewell.
pub async fn serve(listener: TcpListener, app: App, grace: Duration) {
    let ending = app.ending.clone();
    let router = router(app);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(CONNECTION_IDLE_MAX);
    let connections = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = ending.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Too many open files, say: those that are open go on, and some of them will be closed.
                    tracing::error!(%error, "a connection can not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        attend_to(&stream);
        let service = TowerToHyperService::new(router.clone());
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            service.call(request)
        });
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let ending = ending.clone();
        connections.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = ending.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!("connections are cut off: what they asked for did not end within {grace:?}");
    }
}

/// What the machine is to do for a connection.
fn attend_to(stream: &TcpStream) {
    // A call's small frames would otherwise wait for the other side's acknowledgements; and a session of a machine that was switched off
    // would be noticed by its silence alone.
    let set = stream.set_nodelay(true).and_then(|()| {
        set_socket_keepalive(stream, true)?;
        Ok(set_tcp_keepidle(stream, TCP_KEEPALIVE)?)
    });
    if let Err(error) = set {
        tracing::debug!(%error, "a connection is not set up as it should be");
    }
}
