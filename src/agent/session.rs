//! The session: the WebSocket, or another stream, over which the server asks for things to be done.
//!
//! One task reads, one writes; everything to be sent goes through the writer's bounded queue. When the session ends, for whatever reason,
//! its calls are ended with it. What was launched stays.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::client::{ClientRequestBuilder, IntoClientRequest as _};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message as Wire};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_tls_with_config};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::calls::{Calls, Machine, Misspoken};
use super::server::Server;
use super::state::Secret;
use crate::limits::{REQUEST_TIMEOUT, SESSION_MESSAGE_BYTES_MAX, SESSION_PIECES_WAITING_MAX, SESSION_PING_INTERVAL, SESSION_SILENCE_MAX};
use crate::link::frames::{Data, FrameError, FromAgent, Launched, Message, PROTOCOL, ToAgent, decode, encode};

/// Why a session ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The server named no path on itself.
    #[error("the server named no path for it")]
    Path,
    /// It was not opened in time.
    #[error("it was not opened within {REQUEST_TIMEOUT:?}")]
    Slow,
    /// The connection failed.
    #[error("the connection")]
    Wire(#[from] Box<tungstenite::Error>),
    /// The stream failed.
    #[error("the stream")]
    Stream(#[from] std::io::Error),
    /// Nothing was heard of the server.
    #[error("the server has been silent for {SESSION_SILENCE_MAX:?}")]
    Silence,
    /// The server closed it.
    #[error("the server closed it")]
    Closed,
    /// The server sent something that is no frame.
    #[error("the server sent what is not understood")]
    Frame(#[from] FrameError),
    /// The server sent a frame at the wrong time.
    #[error("the server broke the protocol")]
    Misspoken(#[from] Misspoken),
    /// The writing side ended.
    #[error("nothing can be sent any more")]
    Writer,
}

/// When the agent ends: first it says so, later it hangs up.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    /// No more work is taken.
    pub draining: CancellationToken,
    /// Everything has ended; the session is closed.
    pub over: CancellationToken,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Opens a session and serves it to its end. Returns without an error when the agent itself ends.
///
/// # Errors
/// When it can not be opened, or is lost.
pub async fn serve(
    server: &Server,
    path: &str,
    credential: &Secret,
    machine: Arc<Machine>,
    instance: &str,
    ending: &Ending,
) -> Result<(), SessionError> {
    let socket = tokio::select! {
        socket = open(server, path, credential) => socket?,
        () = ending.over.cancelled() => return Ok(()),
    };
    tracing::info!("the session with {} is open", server.base());
    let (sink, stream) = socket.split();
    let stream = stream.filter_map(async |message| match message {
        Ok(Wire::Text(text)) => Some(Ok(Message::Text(text.to_string()))),
        Ok(Wire::Binary(bytes)) => Some(Ok(Message::Binary(bytes))),
        Ok(Wire::Ping(_) | Wire::Pong(_)) => Some(Ok(Message::Ping)),
        Ok(Wire::Close(_)) => Some(Err(SessionError::Closed)),
        Ok(Wire::Frame(_)) => None,
        Err(error) => Some(Err(SessionError::Wire(Box::new(error)))),
    });
    let sink =
        sink.with(async |message| Ok::<_, tungstenite::Error>(wire(message))).sink_map_err(|error| SessionError::Wire(Box::new(error)));
    serve_on(Box::pin(stream), Box::pin(sink), machine, instance, ending).await
}

/// Serves a session that is open to its end. Returns without an error when the agent itself ends.
///
/// # Errors
/// When it is lost.
pub(super) async fn serve_on(
    stream: impl Stream<Item = Result<Message, SessionError>> + Unpin,
    sink: impl Sink<Message, Error = SessionError> + Unpin + Send + 'static,
    machine: Arc<Machine>,
    instance: &str,
    ending: &Ending,
) -> Result<(), SessionError> {
    let (outbox, outgoing) = mpsc::channel(SESSION_PIECES_WAITING_MAX);
    let mut launched = machine.supervisor.state();
    let hello = FromAgent::Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: instance.to_owned(),
        launched: launched.borrow_and_update().clone(),
    };
    let hello = encode(&hello)?;
    let mut writer = AbortOnDropHandle::new(tokio::spawn(write(sink, hello, outgoing, launched, ending.clone())));
    let mut written = None;
    let ended = tokio::select! {
        biased;
        ended = read(stream, Calls::new(machine.clone(), outbox), &machine) => ended,
        ended = &mut writer => {
            written = Some(ended.unwrap_or(Err(SessionError::Writer)));
            Ok(())
        }
        () = ending.over.cancelled() => Ok(()),
    };
    // A run that held what was launched has ended with the session. What a module stopped stays stopped.
    machine.supervisor.resume().await;
    match (ended, written) {
        (Err(error), _) => Err(error),
        (Ok(()), Some(written)) => written,
        // What is queued, and the farewell, are still to be sent.
        (Ok(()), None) => writer.await.unwrap_or(Err(SessionError::Writer)),
    }
}

async fn open(server: &Server, path: &str, credential: &Secret) -> Result<Socket, SessionError> {
    let url = server.session_url(path).ok_or(SessionError::Path)?;
    let uri = url.parse().map_err(|_| SessionError::Path)?;
    let mut request = ClientRequestBuilder::new(uri).into_client_request().map_err(Box::new)?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", credential.reveal())).map_err(|_| SessionError::Path)?;
    bearer.set_sensitive(true);
    request.headers_mut().insert("authorization", bearer);
    let limits =
        WebSocketConfig::default().max_message_size(Some(SESSION_MESSAGE_BYTES_MAX)).max_frame_size(Some(SESSION_MESSAGE_BYTES_MAX));
    // Boxed, as the future of a TLS handshake is large.
    let connecting = Box::pin(connect_async_tls_with_config(request, Some(limits), true, server.connector()));
    match tokio::time::timeout(REQUEST_TIMEOUT, connecting).await {
        Ok(connected) => Ok(connected.map_err(Box::new)?.0),
        Err(_) => Err(SessionError::Slow),
    }
}

async fn read(
    mut stream: impl Stream<Item = Result<Message, SessionError>> + Unpin,
    mut calls: Calls,
    machine: &Machine,
) -> Result<(), SessionError> {
    let mut silent_at = Instant::now() + SESSION_SILENCE_MAX;
    loop {
        let message = tokio::select! {
            () = calls.ended() => continue,
            message = tokio::time::timeout_at(silent_at, stream.next()) => message,
        };
        match message {
            Err(_) => return Err(SessionError::Silence),
            Ok(None) => return Err(SessionError::Closed),
            Ok(Some(Err(error))) => return Err(error),
            Ok(Some(Ok(Message::Text(text)))) => hear(decode(&text)?, &mut calls, machine).await?,
            Ok(Some(Ok(Message::Binary(bytes)))) => calls.data(Data::decode(bytes)?).await?,
            Ok(Some(Ok(Message::Ping))) => {}
        }
        // Counted from here: while a call takes its input, it is this side that does not listen.
        silent_at = Instant::now() + SESSION_SILENCE_MAX;
    }
}

async fn hear(frame: ToAgent, calls: &mut Calls, machine: &Machine) -> Result<(), SessionError> {
    match frame {
        ToAgent::Call { id, call } => calls.begin(id, call)?,
        ToAgent::Cancel { id } => calls.cancel(id),
        ToAgent::Hold {} => machine.supervisor.hold().await,
        ToAgent::Resume {} => machine.supervisor.resume().await,
        ToAgent::Drain { reason } => {
            tracing::info!("the server drains this agent: {}", reason.escape_default());
            machine.supervisor.drain().await;
        }
    }
    Ok(())
}

async fn write(
    mut sink: impl Sink<Message, Error = SessionError> + Unpin,
    hello: Message,
    mut outgoing: mpsc::Receiver<Message>,
    mut launched: watch::Receiver<Launched>,
    ending: Ending,
) -> Result<(), SessionError> {
    let mut pings = tokio::time::interval(SESSION_PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    sink.send(hello).await?;
    let mut said = false;
    loop {
        let message = tokio::select! {
            biased;
            () = ending.draining.cancelled(), if !said => {
                said = true;
                encode(&FromAgent::Draining { reason: "the agent program was told to end".to_owned() })?
            }
            Ok(()) = launched.changed() => {
                let launched = launched.borrow_and_update().clone();
                encode(&FromAgent::Launched { launched })?
            }
            _ = pings.tick() => Message::Ping,
            message = outgoing.recv() => match message {
                Some(message) => message,
                None => break,
            },
            () = ending.over.cancelled() => break,
        };
        sink.send(message).await?;
    }
    sink.close().await
}

fn wire(message: Message) -> Wire {
    match message {
        Message::Text(text) => Wire::text(text),
        Message::Binary(bytes) => Wire::Binary(bytes),
        Message::Ping => Wire::Ping(Bytes::new()),
    }
}
