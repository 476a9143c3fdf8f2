//! The agent's side of a session, with the frames as its only witness.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use muster::agent::calls::Machine;
use muster::agent::server::Server;
use muster::agent::session::{Ending, SessionError, serve};
use muster::agent::state::Secret;
use muster::agent::supervise::{Pace, Supervisor};
use muster::link::frames::{Answer, Call, Channel, Data, FromAgent, Launched, Message, ToAgent, decode, encode};
use muster::machine::exec::Environment;
use muster::machine::root::Root;
use muster::machine::{CallError, Command};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Wire;

struct House {
    _dir: TempDir,
    machine: Arc<Machine>,
    socket: WebSocketStream<TcpStream>,
    ending: Ending,
    agent: JoinHandle<Result<(), SessionError>>,
}

#[derive(Debug)]
enum Heard {
    Frame(FromAgent),
    Data(Data),
}

impl House {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let root = Arc::new(Root::open(dir.path(), &[]).unwrap());
        let environment = Environment::read(|name| (name == "PATH").then(|| "/usr/bin:/bin".into()));
        let supervisor = Supervisor::start(root.clone(), environment.clone(), Pace::default()).await;
        let machine = Arc::new(Machine { root, environment, supervisor, syncing: Arc::default(), verify: false });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::new(&format!("http://{}", listener.local_addr().unwrap()), None).unwrap();
        let ending = Ending::default();
        let (asked, with) = (machine.clone(), ending.clone());
        let agent = tokio::spawn(async move {
            let credential = Secret::from_text("credential").unwrap();
            serve(&server, "/v1/session", &credential, asked, "instance", &with).await
        });
        let (stream, _) = listener.accept().await.unwrap();
        let socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let mut house = Self { _dir: dir, machine, socket, ending, agent };
        let Heard::Frame(FromAgent::Hello { instance, launched: Launched::Nothing, .. }) = house.hear().await else { panic!("no hello") };
        assert_eq!(instance, "instance");
        house
    }

    async fn say(&mut self, frame: &ToAgent) {
        let Message::Text(text) = encode(frame).unwrap() else { panic!("no text") };
        self.socket.send(Wire::text(text)).await.unwrap();
    }

    async fn data(&mut self, id: u32, bytes: &'static [u8]) {
        let Message::Binary(bytes) = (Data { id, channel: Channel::In, bytes: Bytes::from_static(bytes) }).encode() else {
            panic!("no data")
        };
        self.socket.send(Wire::Binary(bytes)).await.unwrap();
    }

    async fn hear(&mut self) -> Heard {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), self.socket.next()).await.unwrap().unwrap().unwrap();
            match message {
                Wire::Text(text) => return Heard::Frame(decode(text.as_str()).unwrap()),
                Wire::Binary(bytes) => return Heard::Data(Data::decode(bytes).unwrap()),
                _ => {}
            }
        }
    }
}

fn exec(script: &str, stdin_bytes: u64) -> Call {
    let command = Command { program: "/bin/sh".to_owned(), args: vec!["-c".to_owned(), script.to_owned()], ..Command::default() };
    Call::Exec { command, stdin_bytes, output_bytes_max: 1000 }
}

#[tokio::test]
async fn a_command_is_run_with_its_input_and_answered_after_its_output() {
    let mut house = House::new().await;
    house.say(&ToAgent::Call { id: 1, call: exec("cat; exit 3", 10) }).await;
    house.data(1, b"01234").await;
    house.data(1, b"56789").await;
    let mut output = Vec::new();
    let answer = loop {
        match house.hear().await {
            Heard::Data(data) => output.extend_from_slice(&data.bytes),
            Heard::Frame(FromAgent::Done { id: 1, answer }) => break answer,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(output, b"0123456789");
    assert_eq!(answer, Ok(Answer::Exited { status: 3, truncated: false }));
}

#[tokio::test]
async fn a_call_that_is_cancelled_is_not_answered_and_the_next_one_is() {
    let mut house = House::new().await;
    house.say(&ToAgent::Call { id: 1, call: exec("echo started; exec sleep 1000", 0) }).await;
    assert!(matches!(house.hear().await, Heard::Data(_)));
    house.say(&ToAgent::Cancel { id: 1 }).await;
    house.say(&ToAgent::Call { id: 2, call: Call::ReadFile { path: "missing".to_owned(), bytes_max: 1 } }).await;
    let Heard::Frame(FromAgent::Done { id: 2, answer: Err(CallError::NotFound(_)) }) = house.hear().await else { panic!("another answer") };
}

#[tokio::test]
async fn a_message_that_is_no_frame_ends_the_session() {
    let mut house = House::new().await;
    house.socket.send(Wire::text("{\"frame\":\"no\"}")).await.unwrap();
    assert!(matches!(house.agent.await.unwrap(), Err(SessionError::Frame(_))));
}

#[tokio::test]
async fn a_lost_session_leaves_running_what_was_launched() {
    let mut house = House::new().await;
    let command = Command { program: "/bin/sleep".to_owned(), args: vec!["1000".to_owned()], ..Command::default() };
    house.say(&ToAgent::Call { id: 1, call: Call::Launch { command, stdin_bytes: 0 } }).await;
    let (mut told, mut answered) = (false, false);
    while !(told && answered) {
        match house.hear().await {
            Heard::Frame(FromAgent::Launched { launched: Launched::Running { .. } }) => told = true,
            Heard::Frame(FromAgent::Done { id: 1, answer: Ok(Answer::Nothing {}) }) => answered = true,
            other => panic!("{other:?}"),
        }
    }
    drop(house.socket);
    assert!(house.agent.await.unwrap().is_err());
    assert!(house.machine.supervisor.stop().await);
}

#[tokio::test]
async fn an_agent_that_ends_says_so_and_hangs_up() {
    let mut house = House::new().await;
    house.ending.draining.cancel();
    assert!(matches!(house.hear().await, Heard::Frame(FromAgent::Draining { .. })));
    house.ending.over.cancel();
    while let Some(Ok(message)) = house.socket.next().await {
        assert!(matches!(message, Wire::Close(_) | Wire::Ping(_)));
    }
    assert!(house.agent.await.unwrap().is_ok());
}
