//! An agent's session: the WebSocket and the session of `link` behind it.

use std::sync::Arc;

use axum::extract::ws::{Message as Ws, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts as _, Request, State};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::api::AgentState;
use crate::http::App;
use crate::http::access::Caller;
use crate::http::problem::Fault;
use crate::limits::{SESSION_MESSAGE_BYTES_MAX, SESSION_PING_INTERVAL, SESSION_SILENCE_MAX};
use crate::link::Link;
use crate::link::frames::{Launched, Message};
use crate::link::session::{Session, greeting};
use crate::roster::Why;
use crate::roster::agent::Agent;

/// Messages that wait to be sent.
const OUTGOING_WAITING: usize = 4;

/// Opens the two-way link of an agent: a WebSocket.
#[utoipa::path(get, path = "/v1/session", tag = "agents", responses((status = 101), (status = "4XX", body = crate::api::Problem)))]
pub(crate) async fn open(State(app): State<App>, caller: Caller, request: Request) -> Result<Response, Fault> {
    let Caller::Agent(agent) = caller else {
        return Err(Fault::forbidden("kind", "only an agent opens a session, with its own credential"));
    };
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &app).await;
    let upgrade = upgrade.map_err(|error| Fault::bad_request("not-a-websocket", error.body_text()))?;
    let upgrade = upgrade.max_message_size(SESSION_MESSAGE_BYTES_MAX).max_frame_size(SESSION_MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |socket| hold(app, agent, socket)))
}

/// Holds a session open until one side ends it.
async fn hold(app: App, agent: Arc<Agent>, socket: WebSocket) {
    let (sink, mut stream) = socket.split();
    let launched = match greet(&mut stream).await {
        Ok(launched) => launched,
        Err(reason) => {
            tracing::warn!(agent = %agent.name(), reason, "the session of agent {} is refused: {reason}", agent.name());
            return;
        }
    };
    let (outgoing, queue) = mpsc::channel(OUTGOING_WAITING);
    let session = Session::new(outgoing);
    let link: Arc<dyn Link> = Arc::new(session.clone());
    app.roster.open_link(&agent, Arc::clone(&link), Some(launched));
    // It may have been given up just now: it can not stay, and registers anew when it is told so.
    if agent.state() == AgentState::Gone {
        app.roster.close_link(&agent, &link, "the agent is gone");
        return;
    }
    app.roster.wake(&agent, Why::Heard);
    tracing::debug!(agent = %agent.name(), "the session of agent {} is open", agent.name());
    // One that was halted while it was cut off hears of it now.
    if agent.is_to_end() {
        let _ = link.drain(&agent.view().row.reason).await;
    }
    let reason = tokio::select! {
        reason = receive(&app, &agent, &session, stream) => reason,
        reason = send(sink, queue, &session) => reason,
        () = app.ending.cancelled() => "the server is stopping".into(),
    };
    app.roster.close_link(&agent, &link, &reason);
    tracing::debug!(agent = %agent.name(), reason, "the session of agent {} is closed: {reason}", agent.name());
}

/// Waits for the agent's greeting.
async fn greet(stream: &mut SplitStream<WebSocket>) -> Result<Launched, String> {
    let first = tokio::time::timeout(SESSION_SILENCE_MAX, stream.next()).await.map_err(|_| "no greeting came".to_owned())?;
    let Some(Ok(Ws::Text(text))) = first else { return Err("it did not begin with a greeting".into()) };
    // Which start of the program it is, its registration says.
    greeting(&text).map(|greeting| greeting.launched)
}

async fn receive(app: &App, agent: &Arc<Agent>, session: &Session, mut stream: SplitStream<WebSocket>) -> String {
    loop {
        let message = match tokio::time::timeout(SESSION_SILENCE_MAX, stream.next()).await {
            Err(_) => return format!("nothing was heard for {} s", SESSION_SILENCE_MAX.as_secs()),
            Ok(None) => return "the agent closed it".into(),
            Ok(Some(Err(error))) => return format!("the connection broke: {error}"),
            Ok(Some(Ok(message))) => message,
        };
        agent.heard();
        let message = match message {
            Ws::Text(text) => Message::Text(text.to_string()),
            Ws::Binary(bytes) => Message::Binary(bytes),
            Ws::Ping(_) | Ws::Pong(_) => continue,
            Ws::Close(_) => return "the agent closed it".into(),
        };
        match session.receive(message).await {
            Ok(None) => {}
            Ok(Some(event)) => {
                // In a task of its own: what is between the store and memory is brought to its end, whatever becomes of the session.
                let (roster, agent) = (Arc::clone(&app.roster), Arc::clone(agent));
                if let Err(error) = tokio::spawn(async move { roster.said(&agent, event).await }).await {
                    tracing::error!(%error, "what an agent said broke down");
                }
            }
            Err(error) => return format!("the agent sent what is no frame: {error}"),
        }
    }
}

async fn send(mut sink: SplitSink<WebSocket, Ws>, mut queue: mpsc::Receiver<Message>, session: &Session) -> String {
    let mut ping = tokio::time::interval_at(Instant::now() + SESSION_PING_INTERVAL, SESSION_PING_INTERVAL);
    loop {
        let message = tokio::select! {
            // What was said before the session was closed is sent still.
            biased;
            message = queue.recv() => match message {
                Some(Message::Text(text)) => Ws::Text(text.into()),
                Some(Message::Binary(bytes)) => Ws::Binary(bytes),
                Some(Message::Ping) => Ws::Ping(bytes::Bytes::new()),
                None => return "the server closed it".into(),
            },
            () = session.over() => return "the server closed it".into(),
            _ = ping.tick() => Ws::Ping(bytes::Bytes::new()),
        };
        match tokio::time::timeout(SESSION_SILENCE_MAX, sink.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return format!("the connection broke: {error}"),
            Err(_) => return format!("the agent took nothing for {} s", SESSION_SILENCE_MAX.as_secs()),
        }
    }
}
