//! Hosts that do as they like: russh's own server, made to misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use muster::link::ssh::error::{Ending, SshError};
use muster::link::ssh::host::{Host, HostKey};
use muster::link::ssh::login::Identity;
use muster::link::ssh::remote::{self, RemoteError};
use muster::link::ssh::transport::{Connection, Event, connect};
use russh::keys::PrivateKey;
use russh::server::{self, Auth, Msg, Session};
use russh::{Channel, ChannelId};
use tokio::net::TcpListener;

use super::sshd::{keygen, keys, settings};

/// Lets everybody in; what a command is called tells what is done to its caller.
#[derive(Clone, Default)]
struct Wilful {
    received: Arc<AtomicUsize>,
}

impl server::Handler for Wilful {
    type Error = russh::Error;

    async fn authentication_banner(&mut self) -> Result<Option<String>, Self::Error> {
        Ok(Some("\u{1b}[2Jbanner".repeat(10_000)))
    }

    async fn auth_publickey(&mut self, _: &str, _: server::VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        // Whatever is asked of its agent, it says neither yes nor no.
        if command.ends_with(b"'link' '--root' '/srv'") {
            return Ok(());
        }
        session.channel_success(id)?;
        let handle = session.handle();
        let command = String::from_utf8_lossy(command).into_owned();
        tokio::spawn(async move {
            match command.as_str() {
                "open" => {
                    let mut refused = 0;
                    refused += usize::from(handle.channel_open_forwarded_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await.is_err());
                    refused += usize::from(handle.channel_open_forwarded_streamlocal("/tmp/x").await.is_err());
                    refused += usize::from(handle.channel_open_x11("127.0.0.1", 6000).await.is_err());
                    refused += usize::from(handle.channel_open_agent().await.is_err());
                    refused += usize::from(handle.channel_open_session().await.is_err());
                    refused += usize::from(handle.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await.is_err());
                    refused += usize::from(handle.channel_open_direct_streamlocal("/tmp/x").await.is_err());
                    let _ = handle.exit_status_request(id, refused as u32).await;
                    let _ = handle.close(id).await;
                }
                "vanish" => {
                    let _ = handle.close(id).await;
                }
                "goodbye" => {
                    let _ = handle.disconnect(russh::Disconnect::ByApplication, "\u{1b}[2J gone".into(), String::new()).await;
                }
                "status" => {
                    let _ = handle.exit_status_request(id, u32::MAX).await;
                    let _ = handle.close(id).await;
                }
                probe if probe.contains("uname -sm") => {
                    let found = format!("agent muster-agent_{} /bin/muster-agent\n", env!("CARGO_PKG_VERSION"));
                    let _ = handle.data(id, found.into_bytes()).await;
                    let _ = handle.exit_status_request(id, 0).await;
                    let _ = handle.close(id).await;
                }
                _ => {}
            }
        });
        Ok(())
    }

    async fn data(&mut self, _: ChannelId, bytes: &[u8], _: &mut Session) -> Result<(), Self::Error> {
        self.received.fetch_add(bytes.len(), Ordering::Relaxed);
        // Reads slowly what it gets.
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(())
    }
}

/// Starts such a host and connects to it; none where there is no OpenSSH to make keys. With it comes how much it has received.
async fn dial(window: u32) -> Option<(Connection, Arc<AtomicUsize>)> {
    let dir = keys("client")?;
    keygen(dir.path(), &["-t", "ed25519", "-f", "host"]);
    let key = PrivateKey::from_openssh(std::fs::read_to_string(dir.path().join("host")).unwrap()).unwrap();
    let public: HostKey = key.public_key().to_openssh().unwrap().parse().unwrap();
    let config = Arc::new(server::Config { keys: vec![key], window_size: window, ..server::Config::default() });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let host: Host = listener.local_addr().unwrap().to_string().parse().unwrap();
    let wilful = Wilful::default();
    let received = wilful.received.clone();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = server::run_stream(config, stream, wilful).await.unwrap().await;
    });
    let settings = settings("anybody", Identity { key: dir.path().join("client"), certificate: None });
    let (connection, _) = connect(&settings, &host, Some(&public), None).await.unwrap();
    Some((connection, received))
}

#[tokio::test]
async fn a_host_can_open_nothing() {
    let Some((connection, _)) = dial(2_000_000).await else { return };
    let mut exec = connection.exec("open").await.unwrap();
    assert_eq!(exec.next().await.unwrap(), Some(Event::Exit(7)));
    assert_eq!(exec.next().await.unwrap(), None);
}

#[tokio::test]
async fn strange_ends_are_told() {
    let Some((connection, _)) = dial(2_000_000).await else { return };
    let mut exec = connection.exec("vanish").await.unwrap();
    assert!(matches!(exec.next().await, Err(SshError::NoExit { .. })));
    let mut exec = connection.exec("status").await.unwrap();
    assert_eq!(exec.next().await.unwrap(), Some(Event::Exit(-1)));
    let mut exec = connection.exec("goodbye").await.unwrap();
    let error = exec.next().await.unwrap_err();
    let SshError::Lost { source: Ending::There { message }, .. } = error else { panic!("{error:?}") };
    assert_eq!(message, "\\u{1b}[2J gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_grants_a_huge_window_gets_no_more_than_the_network_takes() {
    let Some((connection, received)) = dial(u32::MAX).await else { return };
    let mut exec = connection.exec("slow").await.unwrap();
    let piece = Bytes::from(vec![0; 1024 * 1024]);
    let mut given = 0;
    let writing = async {
        loop {
            exec.write(piece.clone()).await.unwrap();
            given += piece.len();
        }
    };
    let ended: Result<(), _> = tokio::time::timeout(Duration::from_secs(2), writing).await;
    assert!(ended.is_err());
    let waiting = given - received.load(Ordering::Relaxed);
    assert!(waiting < 48 * 1024 * 1024, "{waiting} bytes of {given}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_answers_nothing_is_given_up() {
    let Some((connection, _)) = dial(2_000_000).await else { return };
    let given_up = remote::open(&connection, "/srv", None, Duration::from_secs(2)).await;
    assert!(matches!(given_up.err(), Some(RemoteError::Slow(_))));
}
