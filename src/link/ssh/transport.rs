//! A connection that the server dials, and the commands that it starts over it.
//!
//! All commands of a connection share its socket. Output that nobody reads holds up that whole connection, keepalives included, and with
//! it the remote side: that is how memory stays bounded. So whoever starts a command reads its output or drops it.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use russh::client::{self, Handle, Msg};
use russh::{AlgorithmKind, ChannelId, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, Disconnect, Sig, SshId};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::{Ending, HostKeyProblem, SshError};
use super::host::{Host, HostKey, shown};
use super::login::{Settings, credentials, log_in};
use super::trust::Trust;
use super::wire::{Events, Fault, Shared, Socket};
use crate::limits::{
    SSH_GOODBYE_MAX, SSH_INPUT_BYTES_WAITING_MAX, SSH_KEEPALIVES_UNANSWERED_MAX, SSH_PACKET_BYTES_MAX, SSH_PACKETS_WAITING_MAX,
    SSH_WINDOW_BYTES,
};

/// Connects to a host: finds it, makes sure that it is the one, and logs in.
///
/// A host's key is judged by the first of these that says something: `pinned`, the key that came with the agent's registration;
/// `remembered`, the key that an earlier call returned; the file of known hosts, and certificates of trusted authorities. If none does and
/// [`Settings::first_use`] allows it, the key is trusted and returned: the caller stores it and gives it as `remembered` from then on.
/// What is revoked is refused in any case.
///
/// # Errors
/// Why there is no connection; [`SshError::is_lasting`] tells whether trying again may help.
pub async fn connect(
    settings: &Settings,
    host: &Host,
    pinned: Option<&HostKey>,
    remembered: Option<&HostKey>,
) -> Result<(Connection, Option<HostKey>), SshError> {
    let within = Within { host, limit: settings.connect_timeout, deadline: Instant::now() + settings.connect_timeout };
    let credentials = credentials(&settings.identities).await?;
    if credentials.is_empty() && settings.agent.is_none() {
        return Err(SshError::NoCredential { host: host.clone() });
    }
    let trust = Trust::gather(settings, host, pinned, remembered).await?;
    let (stream, place) = dial(&within, settings.networks.as_deref()).await?;

    let shared = Arc::new(Shared::new(host.clone()));
    // Until there is a connection to own it, the session's task ends with this call.
    let cancelled = shared.gone.clone().drop_guard();
    let expected = trust.expected.first().map(|expected| (expected.key.fingerprint(), expected.place.clone()));
    let config = Arc::new(config(settings, &trust));
    let socket = Socket::new(stream, shared.clone(), settings.keepalive_interval * (SSH_KEEPALIVES_UNANSWERED_MAX + 1));
    let events = Events { trust, shared: shared.clone() };
    let handshake = within.step("shake hands", Box::pin(client::connect_stream(config, socket, events))).await?;
    let mut handle = handshake.map_err(|error| match (error, expected) {
        (Fault::Untrusted(problem), _) => SshError::HostKey { host: host.clone(), problem },
        (Fault::Protocol(russh::Error::NoCommonAlgo { kind: AlgorithmKind::Key, theirs, .. }), Some((expected, place))) => {
            let problem = HostKeyProblem::NotOffered { expected, place, offered: shown(&theirs.join(", ")) };
            SshError::HostKey { host: host.clone(), problem }
        }
        (Fault::Protocol(source), _) => shared.protocol(source),
    })?;

    let login = Box::pin(log_in(&mut handle, &shared, settings, credentials));
    within.step("let the user in", login).await??;
    let new = shared.new_key.get().cloned();
    cancelled.disarm();
    let runtime = tokio::runtime::Handle::current();
    Ok((Connection { inner: Arc::new(Inner { handle, shared, place, runtime }) }, new))
}

fn config(settings: &Settings, trust: &Trust) -> client::Config {
    client::Config {
        client_id: SshId::Standard(Cow::Borrowed("SSH-2.0-Muster")),
        preferred: trust.algorithms(),
        window_size: SSH_WINDOW_BYTES,
        maximum_packet_size: SSH_PACKET_BYTES_MAX,
        channel_buffer_size: SSH_PACKETS_WAITING_MAX,
        keepalive_interval: Some(settings.keepalive_interval),
        keepalive_max: usize::try_from(SSH_KEEPALIVES_UNANSWERED_MAX).unwrap_or(1),
        // russh's own timeout of inactivity takes a pause of whoever reads for one of the host's.
        inactivity_timeout: None,
        ..client::Config::default()
    }
}

/// The time in which a host must be connected to.
struct Within<'a> {
    host: &'a Host,
    limit: Duration,
    deadline: Instant,
}

impl Within<'_> {
    async fn step<T>(&self, step: &'static str, doing: impl Future<Output = T>) -> Result<T, SshError> {
        let done = tokio::time::timeout_at(self.deadline, doing).await;
        done.map_err(|_| SshError::Timeout { host: self.host.clone(), step, limit: self.limit })
    }
}

/// Whether an address may be dialled: one of these networks, or without any, one that can be another machine in the network. So neither this
/// machine nor what answers on link-local addresses, as the metadata services of clouds do, is dialled unless an admin says so.
fn may_dial(networks: Option<&[IpNet]>, address: IpAddr) -> bool {
    match (networks, address) {
        (Some(networks), _) => networks.iter().any(|network| network.contains(&address)),
        (None, IpAddr::V4(v4)) => {
            !(v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() || v4.octets().starts_with(&[0]))
        }
        (None, IpAddr::V6(v6)) => {
            let is_metadata = v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
            !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified() || is_metadata)
        }
    }
}

async fn dial(within: &Within<'_>, networks: Option<&[IpNet]>) -> Result<(TcpStream, SocketAddr), SshError> {
    let host = within.host;
    let elsewhere = |address: SocketAddr| SshError::Network { host: host.clone(), address: address.ip() };
    let found = within.step("get resolved", tokio::net::lookup_host((host.name(), host.port()))).await?;
    let found = found.map_err(|source| SshError::Resolve { host: host.clone(), source })?;
    // What an IPv4 address is as one of IPv6 is that address still.
    let found: Vec<SocketAddr> = found.map(|address| SocketAddr::new(address.ip().to_canonical(), address.port())).collect();
    let addresses: Vec<SocketAddr> = found.iter().copied().filter(|address| may_dial(networks, address.ip())).collect();
    if let (true, Some(address)) = (addresses.is_empty(), found.first()) {
        return Err(elsewhere(*address));
    }
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        // Each address has its share of the time, so that one which swallows everything does not keep the others from being tried.
        let share = within.deadline.saturating_duration_since(Instant::now()) / left.max(1);
        left = left.saturating_sub(1);
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let reach = |source| SshError::Reach { host: host.clone(), source };
                // Only from this machine to itself are both ends the same.
                if networks.is_none() && stream.local_addr().map_err(reach)?.ip().to_canonical() == address.ip() {
                    return Err(elsewhere(address));
                }
                stream.set_nodelay(true).map_err(reach)?;
                return Ok((stream, address));
            }
            Ok(Err(failed)) => error = failed,
            Err(_) if left == 0 => return Err(SshError::Timeout { host: host.clone(), step: "answer", limit: within.limit }),
            Err(_) => error = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(SshError::Reach { host: host.clone(), source: error })
}

/// A connection to a host, logged in. Clones are the same connection; it is closed with the last of them and of its commands.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    handle: Handle<Events>,
    shared: Arc<Shared>,
    place: SocketAddr,
    /// What is dropped outside of a runtime still has to close its channel.
    runtime: tokio::runtime::Handle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.end(Ending::Here);
    }
}

impl Connection {
    /// The host.
    pub fn host(&self) -> &Host {
        &self.inner.shared.host
    }

    /// Where the host's name led to.
    pub fn place(&self) -> SocketAddr {
        self.inner.place
    }

    /// Starts a command: the user's login shell on the host reads it, so its words are quoted with [`quote`](crate::link::quote::quote).
    ///
    /// A call that is dropped leaves no session behind. sshd counts a session until it has seen its command end, so one that is full may
    /// have room a moment after a command has ended. russh keeps some 3 KiB for each command that is dropped before it has ended, and some
    /// for each session that is refused, until the connection ends.
    ///
    /// # Errors
    /// [`SshError::Sessions`] if the host has too many open on this connection, [`SshError::Refused`] if it starts no commands,
    /// [`SshError::Lost`] if the connection has ended.
    pub async fn exec(&self, command: &str) -> Result<Exec, SshError> {
        // In a task of its own, as a session that the host opens after nobody waits for it any more has to be closed.
        let starting = start(self.clone(), command.as_bytes().to_vec());
        let started = self.inner.runtime.spawn(starting);
        tokio::select! {
            biased;
            started = started => started.unwrap_or_else(|_| Err(self.inner.shared.lost())),
            () = self.inner.shared.gone.cancelled() => Err(self.inner.shared.lost()),
        }
    }

    /// Waits until the connection has ended, and returns why.
    pub async fn closed(&self) -> Ending {
        self.inner.shared.gone.cancelled().await;
        self.inner.shared.ending.get().cloned().unwrap_or(Ending::Unknown)
    }

    /// Closes the connection and all that goes on over it, with a word to the host if it listens.
    pub async fn close(&self) {
        let shared = &self.inner.shared;
        let _ = shared.ending.set(Ending::Here);
        let goodbye = async {
            if self.inner.handle.disconnect(Disconnect::ByApplication, "", "").await.is_ok() {
                shared.gone.cancelled().await;
            }
        };
        let _ = tokio::time::timeout(SSH_GOODBYE_MAX, goodbye).await;
        shared.gone.cancel();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.host())
    }
}

async fn start(connection: Connection, command: Vec<u8>) -> Result<Exec, SshError> {
    let shared = &connection.inner.shared;
    let channel = connection.inner.handle.channel_open_session().await.map_err(|error| match error {
        russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed | ChannelOpenFailure::ResourceShortage) => {
            SshError::Sessions { host: shared.host.clone() }
        }
        russh::Error::ChannelOpenFailure(_) => SshError::Refused { host: shared.host.clone() },
        _ => shared.lost(),
    })?;
    let id = channel.id();
    let (mut messages, channel) = channel.split();
    let mut open = Open { connection: connection.clone(), closed: shared.gone.child_token(), id, channel: Some(channel) };
    let lost = |_| shared.lost();
    if let Some(channel) = &open.channel {
        channel.exec(true, command).await.map_err(lost)?;
    }
    loop {
        match messages.wait().await {
            Some(ChannelMsg::Success) => break,
            Some(ChannelMsg::Failure | ChannelMsg::Close) => return Err(SshError::Refused { host: shared.host.clone() }),
            Some(_) => {}
            None => return Err(shared.lost()),
        }
    }
    // The task has passed on the confirmation by now. If there is nothing, it has passed on the close as well.
    match shared.channels().get(&id) {
        Some(closed) => open.closed = closed.clone(),
        None => open.closed.cancel(),
    }
    let open = Arc::new(open);
    Ok(Exec { input: ExecInput { open: open.clone(), waiting: 0 }, output: ExecOutput { open, messages, exited: false } })
}

/// A command that runs on a host. When it is dropped its channel is closed: the command reads the end of its input and can not write any
/// more. sshd does not kill it for that.
#[derive(Debug)]
pub struct Exec {
    input: ExecInput,
    output: ExecOutput,
}

/// What a command writes, and how it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes from its standard output.
    Stdout(Bytes),
    /// Bytes from its standard error.
    Stderr(Bytes),
    /// It ended: its exit status, or 128 + N if signal N ended it, or 255 if that signal has no standard number. Output may still follow,
    /// for as long as something that the command started holds it open.
    Exit(i32),
}

impl Exec {
    /// See [`ExecInput::write`].
    ///
    /// # Errors
    /// As there.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), SshError> {
        self.input.write(bytes).await
    }

    /// See [`ExecInput::finish`].
    ///
    /// # Errors
    /// As there.
    pub async fn finish_input(&mut self) -> Result<(), SshError> {
        self.input.finish().await
    }

    /// See [`ExecOutput::next`].
    ///
    /// # Errors
    /// As there.
    pub async fn next(&mut self) -> Result<Option<Event>, SshError> {
        self.output.next().await
    }

    /// The two halves, to write and to read at the same time. The channel is closed when both are dropped.
    pub fn split(self) -> (ExecInput, ExecOutput) {
        (self.input, self.output)
    }
}

/// A command's standard input.
#[derive(Debug)]
pub struct ExecInput {
    open: Arc<Open>,
    /// Bytes given to the session's task since it was last known to have passed everything on.
    waiting: usize,
}

impl ExecInput {
    /// Writes to the command's standard input, as fast as the command reads.
    ///
    /// It is a stream: when it returns, the bytes are on their way, and the command may not have read them. A call that is dropped may have
    /// written a part. A command that writes while nobody reads its output may never read its input.
    ///
    /// # Errors
    /// [`SshError::Input`] if the command has ended, [`SshError::Lost`] if the connection has.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), SshError> {
        let Self { open, waiting } = self;
        let closed = open.closed.clone();
        let writing = async {
            let Some(channel) = &open.channel else { return Ok(()) };
            while !bytes.is_empty() {
                if *waiting >= SSH_INPUT_BYTES_WAITING_MAX {
                    open.drain().await?;
                    *waiting = 0;
                }
                let piece = bytes.split_to(bytes.len().min(SSH_INPUT_BYTES_WAITING_MAX - *waiting));
                *waiting += piece.len();
                channel.data_bytes(piece).await?;
            }
            Ok(())
        };
        // russh does not end a wait for the host's window with the channel.
        let written: Result<(), russh::Error> = tokio::select! {
            biased;
            () = closed.cancelled() => return Err(open.over()),
            written = writing => written,
        };
        written.map_err(|_| open.over())
    }

    /// Ends the command's standard input.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn finish(&mut self) -> Result<(), SshError> {
        let Some(channel) = &self.open.channel else { return Ok(()) };
        tokio::select! {
            biased;
            () = self.open.closed.cancelled() => Err(self.open.over()),
            finished = channel.eof() => finished.map_err(|_| self.open.over()),
        }
    }
}

/// A command's standard output, standard error and end.
#[derive(Debug)]
pub struct ExecOutput {
    open: Arc<Open>,
    messages: ChannelReadHalf,
    exited: bool,
}

impl ExecOutput {
    /// The next thing that comes from the command; nothing after its end and all of its output. A call that is dropped loses nothing.
    ///
    /// # Errors
    /// [`SshError::Lost`] if the connection has ended before the command, [`SshError::NoExit`] if the host closed the channel before.
    pub async fn next(&mut self) -> Result<Option<Event>, SshError> {
        loop {
            let Some(message) = self.messages.wait().await else {
                // The host closes a channel before it forgets it, unless the connection is at its end.
                return match (self.exited, self.open.shared().gone.is_cancelled()) {
                    (true, _) => Ok(None),
                    (false, true) => Err(self.open.shared().lost()),
                    (false, false) => Err(SshError::NoExit { host: self.open.shared().host.clone() }),
                };
            };
            match message {
                ChannelMsg::Data { data } => return Ok(Some(Event::Stdout(data))),
                ChannelMsg::ExtendedData { data, ext: 1 } => return Ok(Some(Event::Stderr(data))),
                ChannelMsg::ExitStatus { exit_status } => {
                    self.exited = true;
                    return Ok(Some(Event::Exit(exit_status.cast_signed())));
                }
                ChannelMsg::ExitSignal { signal_name, .. } => {
                    self.exited = true;
                    return Ok(Some(Event::Exit(signal_number(&signal_name).map_or(255, |number| 128 + number))));
                }
                _ => {}
            }
        }
    }
}

/// The number that every POSIX system gives a signal; none for those that differ or have no name in SSH.
fn signal_number(signal: &Sig) -> Option<i32> {
    Some(match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::Custom(name) if name == "USR2" => 12,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(_) => return None,
    })
}

/// A channel, closed when it is dropped.
struct Open {
    connection: Connection,
    closed: CancellationToken,
    id: ChannelId,
    /// There until it is dropped.
    channel: Option<ChannelWriteHalf<Msg>>,
}

impl Open {
    fn shared(&self) -> &Shared {
        &self.connection.inner.shared
    }

    /// Waits until the session's task has passed something on to the network that it got before now or after.
    ///
    /// It takes as much as it is given before it writes, and encrypts it, up to the window that the host gave: a hostile one gives 4 GiB.
    async fn drain(&self) -> Result<(), russh::Error> {
        let flushed = self.shared().flushed.notified();
        // Something for it to write, should it have written everything just before. The host does not answer.
        self.connection.inner.handle.send_keepalive(false).await?;
        flushed.await;
        Ok(())
    }

    fn over(&self) -> SshError {
        if self.shared().gone.is_cancelled() { self.shared().lost() } else { SshError::Input { host: self.shared().host.clone() } }
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Open({:?}, {:?})", self.connection, self.id)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.take()
            && !self.closed.is_cancelled()
        {
            self.shared().channels().remove(&self.id);
            let connection = self.connection.clone();
            self.connection.inner.runtime.spawn(async move {
                let _ = channel.close().await;
                drop(connection);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_networks_only_what_can_be_another_machine_is_dialled() {
        let may = |networks: Option<&[IpNet]>, text: &str| may_dial(networks, text.parse::<IpAddr>().unwrap().to_canonical());
        for other in ["10.0.0.1", "192.168.1.1", "100.64.0.1", "203.0.113.7", "::ffff:10.0.0.1", "fd00::1", "2001:db8::1"] {
            assert!(may(None, other), "{other}");
        }
        let here = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "::1", "::", "::ffff:127.0.0.1"];
        let near = ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254", "224.0.0.1", "ff02::1", "255.255.255.255"];
        for odd in here.into_iter().chain(near) {
            assert!(!may(None, odd), "{odd}");
        }
        let networks: Vec<IpNet> = ["10.0.0.0/8", "127.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap()).to_vec();
        for (address, is_there) in
            [("10.9.9.9", true), ("::ffff:10.9.9.9", true), ("127.0.0.1", true), ("fd12::1", true), ("11.0.0.1", false), ("::1", false)]
        {
            assert_eq!(may(Some(&networks), address), is_there, "{address}");
        }
        assert!(!may(Some(&[]), "10.0.0.1"));
    }
}
