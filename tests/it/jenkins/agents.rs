//! Inbound agents over WebSocket: the controller's end, and an agent in this process.

use std::sync::Arc;

use axum::extract::FromRequestParts as _;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::controller::Refusal;
use super::routes::Asked;

/// What Remoting says that it can.
const CAPABILITY: &str = "rO0ABXNyABpodWRzb24ucmVtb3RpbmcuQ2FwYWJpbGl0eQAAAAAAAAABAgABSgAEbWFza3hwAAAAAAAAAf4=";

/// Lets an agent in, or refuses it.
pub(super) async fn handshake(asked: &Asked, mut parts: Parts) -> Response {
    let header = |name: &str| asked.headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(name), Some(secret), Some(_)) = (header("Node-Name"), header("Secret-Key"), header("X-Remoting-Capability")) else {
        return asked.jetty(400, "This endpoint is only for use from agent.jar in WebSocket mode");
    };
    let inner = asked.inner.clone();
    let (id, close) = match inner.change(|controller| controller.shake_hands(name, secret)) {
        Ok(made) => made,
        Err(Refusal::Unknown) => return asked.jetty(400, "no such agent"),
        Err(Refusal::Secret) => return asked.jetty(403, "Forbidden"),
        Err(Refusal::Connected) => return asked.oops(),
    };
    let name = name.to_owned();
    let place = Place { inner: inner.clone(), name: name.clone(), id, is_clean: false };
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade,
        Err(refused) => return refused.into_response(),
    };
    let mut response = upgrade.on_upgrade(async move |socket| {
        inner.change(|controller| controller.connected(&name, id));
        serve(socket, close, place).await;
    });
    for (name, value) in [("x-remoting-capability", CAPABILITY), ("x-remoting-minimum-version", "4.7"), ("connection-cookie", "00")] {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// The place of an agent at its node, which is free again when this is dropped.
struct Place {
    inner: Arc<Inner>,
    name: String,
    id: u64,
    is_clean: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.change(|controller| controller.disconnected(&self.name, self.id, self.is_clean));
    }
}

async fn serve(mut socket: WebSocket, close: CancellationToken, mut place: Place) {
    loop {
        let message = tokio::select! {
            message = socket.recv() => message,
            () = close.cancelled() => return,
        };
        match message {
            Some(Ok(Message::Close(_))) => {
                place.is_clean = true;
                return;
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return,
        }
    }
}

/// An agent without a process.
pub(crate) struct Inbound {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Inbound {
    /// Connects, or says with which status it was refused; 0 is no answer at all.
    pub(crate) async fn connect(url: &str, name: &str, secret: &str) -> Result<Self, u16> {
        let mut request = format!("{}/wsagents/", url.trim_end_matches('/').replacen("http", "ws", 1)).into_client_request().unwrap();
        for (key, value) in [("node-name", name), ("secret-key", secret), ("x-remoting-capability", CAPABILITY)] {
            request.headers_mut().insert(HeaderName::from_static(key), HeaderValue::from_str(value).unwrap());
        }
        match connect_async(request).await {
            Ok((stream, _)) => Ok(Self { stream }),
            Err(tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(_) => Err(0),
        }
    }

    /// Ends as on SIGTERM.
    pub(crate) async fn stop(mut self) {
        self.stream.close(None).await.ok();
        self.stream.flush().await.ok();
    }

    /// Ends as on SIGKILL.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// Waits until the controller ends it, or is gone.
    pub(crate) async fn ended(mut self) {
        while let Some(Ok(message)) = self.stream.next().await {
            if message.is_close() {
                return;
            }
        }
    }
}
