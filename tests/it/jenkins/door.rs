//! The port: who listens on it, connections that end badly, and what a restart does to it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt as _;

use super::Inner;

/// Where a controller is between one life and the next, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// 503 "Please wait while Jenkins is restarting".
    Restarting,
    /// 401, with valid credentials too.
    Unauthorized,
    /// Every connection is reset, and new ones are refused.
    Refused,
    /// Connections are accepted, and nothing answers.
    Unanswered,
    /// 503 "Please wait while Jenkins is getting ready to work".
    GettingReady,
    /// The same, but a POST is 403 without a valid crumb, with a token too.
    NoCrumb,
    /// As before `NoCrumb`.
    AlmostReady,
    Ready,
}

/// When the phases of a restart begin, in seconds from its request.
pub(super) const RESTART: [(f64, Phase); 8] = [
    (0.0, Phase::Restarting),
    (5.0, Phase::Unauthorized),
    (5.3, Phase::Refused),
    (9.3, Phase::Unanswered),
    (12.3, Phase::GettingReady),
    (14.0, Phase::NoCrumb),
    (15.0, Phase::AlmostReady),
    (17.0, Phase::Ready),
];

/// By how much longer a safe restart says that it is restarting.
pub(super) const SAFE_RESTART_SECONDS: f64 = 10.0;

/// The port. It stays ours while nobody listens on it.
pub(super) struct Port {
    pub(super) address: SocketAddr,
    _keeper: TcpSocket,
}

/// A life of the process: the listener, and the end of all its connections.
pub(super) struct Life {
    listening: AbortOnDropHandle<()>,
    end: CancellationToken,
}

/// Ends the connection of a request with a reset.
#[derive(Clone)]
pub(super) struct Cut(CancellationToken);

impl Cut {
    /// Resets the connection. Whoever waits for this is ended with it.
    pub(super) async fn cut<T>(&self) -> T {
        self.0.cancel();
        std::future::pending().await
    }
}

impl Port {
    /// This port, or any that is free if it is 0.
    pub(super) fn new(port: u16) -> io::Result<Self> {
        let keeper = socket((Ipv4Addr::LOCALHOST, port).into())?;
        Ok(Self { address: keeper.local_addr()?, _keeper: keeper })
    }

    fn listen(&self) -> io::Result<TcpListener> {
        socket(self.address)?.listen(1024)
    }
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // So that one socket can listen where another one keeps the port.
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

impl Life {
    /// Begins to listen.
    pub(super) fn begin(inner: &Arc<Inner>, router: Router) -> Self {
        let listener = inner.port.listen().unwrap();
        let end = CancellationToken::new();
        let all = end.clone();
        let listening = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(serve(stream, router.clone(), all.child_token()));
            }
        });
        Self { listening: AbortOnDropHandle::new(listening), end }
    }

    /// Ends all connections, and listens no more when this is done.
    pub(super) async fn end(mut self) {
        self.end.cancel();
        self.listening.abort();
        // The listener is dropped with its task.
        (&mut self.listening).await.ok();
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

async fn serve(stream: TcpStream, router: Router, cut: CancellationToken) {
    stream.set_nodelay(true).ok();
    let Ok(handle) = stream.as_fd().try_clone_to_owned() else { return };
    let token = Cut(cut.clone());
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(token.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new().max_buf_size(1 << 20).serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::select! {
        _ = connection => {}
        () = cut.cancelled() => {
            // Without waiting for what is under way, the kernel sends a reset.
            rustix::net::sockopt::set_socket_linger(&handle, Some(Duration::ZERO)).ok();
        }
    }
}
