//! Below the commands: what a host tells and asks, and the socket under it.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use russh::client::{ChannelOpenHandle, DisconnectReason, Handler, Msg, Session};
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, ChannelId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::error::{Ending, HostKeyProblem, SshError};
use super::host::{Host, HostKey, shown};
use super::trust::Trust;

/// What the session's task, its socket and everyone who uses them have in common.
pub(super) struct Shared {
    pub(super) host: Host,
    /// Cancelled when the connection is to end, or has ended.
    pub(super) gone: CancellationToken,
    pub(super) ending: OnceLock<Ending>,
    pub(super) new_key: OnceLock<HostKey>,
    /// The open channels; each token is cancelled when the host closes its channel.
    channels: Mutex<HashMap<ChannelId, CancellationToken>>,
    /// Notified when all that was written has been passed on to the network.
    pub(super) flushed: Notify,
}

impl Shared {
    pub(super) fn new(host: Host) -> Self {
        Self {
            host,
            gone: CancellationToken::new(),
            ending: OnceLock::new(),
            new_key: OnceLock::new(),
            channels: Mutex::default(),
            flushed: Notify::new(),
        }
    }

    /// Ends the connection, for this reason unless there is an earlier one.
    pub(super) fn end(&self, reason: Ending) {
        let _ = self.ending.set(reason);
        self.gone.cancel();
    }

    pub(super) fn lost(&self) -> SshError {
        SshError::Lost { host: self.host.clone(), source: self.ending.get().cloned().unwrap_or(Ending::Unknown) }
    }

    pub(super) fn protocol(&self, source: russh::Error) -> SshError {
        match self.ending.get() {
            Some(_) => self.lost(),
            None => SshError::Protocol { host: self.host.clone(), source },
        }
    }

    pub(super) fn channels(&self) -> MutexGuard<'_, HashMap<ChannelId, CancellationToken>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the session's task tells, and what it asks. Whatever the host opens by itself is refused, by dropping what would accept it.
pub(super) struct Events {
    pub(super) trust: Trust,
    pub(super) shared: Arc<Shared>,
}

impl Drop for Events {
    // The task ends with this, whatever ended it.
    fn drop(&mut self) {
        self.shared.gone.cancel();
    }
}

/// Why the session's task gave up.
#[derive(Debug)]
pub(super) enum Fault {
    Untrusted(HostKeyProblem),
    Protocol(russh::Error),
}

impl From<russh::Error> for Fault {
    fn from(error: russh::Error) -> Self {
        Self::Protocol(error)
    }
}

impl Handler for Events {
    type Error = Fault;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Fault> {
        let key = HostKey(shown.public_key().key_data().clone());
        if let Some(new) = self.trust.judge(&key, shown.certificate()).map_err(Fault::Untrusted)? {
            let _ = self.shared.new_key.set(new);
        }
        Ok(true)
    }

    async fn channel_open_confirmation(&mut self, id: ChannelId, _: u32, _: u32, _: &mut Session) -> Result<(), Fault> {
        self.shared.channels().insert(id, self.shared.gone.child_token());
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Fault> {
        if let Some(closed) = self.shared.channels().remove(&id) {
            closed.cancel();
        }
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Fault>) -> Result<(), Fault> {
        let ending = match reason {
            DisconnectReason::ReceivedDisconnect(info) => Ending::There { message: shown(&info.message) },
            DisconnectReason::Error(Fault::Protocol(russh::Error::KeepaliveTimeout)) => Ending::Silent,
            DisconnectReason::Error(Fault::Protocol(russh::Error::IO(error))) if error.kind() == io::ErrorKind::TimedOut => Ending::Silent,
            DisconnectReason::Error(Fault::Protocol(error)) => Ending::Broken(Arc::new(error)),
            DisconnectReason::Error(Fault::Untrusted(_)) => Ending::Unknown,
        };
        self.shared.end(ending);
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(&mut self, _: Channel<Msg>, _: ChannelOpenHandle, _: &mut Session) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_session(&mut self, _: Channel<Msg>, _: ChannelOpenHandle, _: &mut Session) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Fault> {
        Ok(())
    }
}

/// The connection's socket: what russh lacks.
///
/// It breaks when the connection is to end, or when the network takes nothing for too long, as keepalives are neither sent nor missed then.
/// It tells when all that was written has left.
pub(super) struct Socket {
    stream: TcpStream,
    shared: Arc<Shared>,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
    silence_max: Duration,
    /// Runs while the network takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, shared: Arc<Shared>, silence_max: Duration) -> Self {
        let gone = Box::pin(shared.gone.clone().cancelled_owned());
        Self { stream, shared, gone, silence_max, stalled: None }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.gone.as_mut().poll(cx).is_ready() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let silence_max = self.silence_max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence_max)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.shared.flushed.notify_waiters();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
