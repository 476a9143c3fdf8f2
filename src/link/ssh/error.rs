//! Why there is no connection to a host, and why one ended: in sentences that say what to do.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::host::Host;

/// Why there is no connection, or why one or a command on it came to its end.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// A file of the server's own, named in its configuration, can not be used.
    #[error("{} {problem}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it. Its content is not repeated.
        problem: FileProblem,
    },
    /// The ssh-agent does not answer.
    #[error("the ssh-agent at {} does not answer", socket.display())]
    Agent {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: russh::keys::Error,
    },
    /// There is nothing to offer to the host.
    #[error("there is no key to offer to {host}: the configuration names none, and no ssh-agent holds one")]
    NoCredential {
        /// The host.
        host: Host,
    },
    /// The host's name can not be resolved.
    #[error("{host} can not be resolved")]
    Resolve {
        /// The host.
        host: Host,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host is where none is dialled.
    #[error("{host} is at {address}, and this server dials none there; an admin lists what it dials in `ssh.networks` of muster.toml")]
    Network {
        /// The host.
        host: Host,
        /// Its address.
        address: IpAddr,
    },
    /// There is no connection to the host.
    #[error("{host} can not be reached")]
    Reach {
        /// The host.
        host: Host,
        /// Why, for the last address that was tried.
        #[source]
        source: io::Error,
    },
    /// Connecting took too long.
    #[error("{host} did not {step} within {limit:?}")]
    Timeout {
        /// The host.
        host: Host,
        /// What it did not do.
        step: &'static str,
        /// How long connecting may take.
        limit: Duration,
    },
    /// The two sides did not agree on how to talk.
    #[error("{host} and this side do not understand each other")]
    Protocol {
        /// The host.
        host: Host,
        /// Why.
        #[source]
        source: russh::Error,
    },
    /// The host did not prove to be the one that is meant.
    #[error("{host} is not trusted: {problem}")]
    HostKey {
        /// The host.
        host: Host,
        /// Why, with what to do about it.
        problem: HostKeyProblem,
    },
    /// The host lets the user not in.
    #[error("{host} does not let {user} in: tried {}; it takes {}{}", tried.join(", "), listed(accepted), said(message))]
    Authentication {
        /// The host.
        host: Host,
        /// The user.
        user: String,
        /// What was tried, in order.
        tried: Vec<String>,
        /// The methods that the host would go on with.
        accepted: Vec<&'static str>,
        /// What the host said when it ended the connection, if it did.
        message: Option<String>,
    },
    /// The host opens no further session on this connection.
    #[error("{host} opens no further session on this connection; sshd's `MaxSessions` is 10 unless set")]
    Sessions {
        /// The host.
        host: Host,
    },
    /// The host opens sessions and starts no command, or not this one.
    #[error("{host} refuses to start the command")]
    Refused {
        /// The host.
        host: Host,
    },
    /// The command takes no more input: it has ended, or its channel is closed.
    #[error("the command on {host} takes no more input")]
    Input {
        /// The host.
        host: Host,
    },
    /// The host closed the command's channel and did not say how the command ended.
    #[error("{host} did not say how the command ended")]
    NoExit {
        /// The host.
        host: Host,
    },
    /// The connection has ended.
    #[error("the connection to {host} has ended")]
    Lost {
        /// The host.
        host: Host,
        /// Why.
        #[source]
        source: Ending,
    },
}

impl SshError {
    /// Whether trying again is of no use before an admin, a team or the host's owner has done something.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::File { .. } | Self::NoCredential { .. } | Self::Network { .. } | Self::HostKey { .. } | Self::Authentication { .. } => {
                true
            }
            Self::Agent { .. }
            | Self::Resolve { .. }
            | Self::Reach { .. }
            | Self::Timeout { .. }
            | Self::Protocol { .. }
            | Self::Sessions { .. }
            | Self::Refused { .. }
            | Self::Input { .. }
            | Self::NoExit { .. }
            | Self::Lost { .. } => false,
        }
    }
}

fn listed(methods: &[&str]) -> String {
    if methods.is_empty() { "no further method".into() } else { methods.join(", ") }
}

fn said(message: &Option<String>) -> String {
    message.as_ref().map(|text| format!("; it said: {text}")).unwrap_or_default()
}

/// What is wrong with a file that the configuration names. It reads after the file's path.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// It can not be read.
    #[error("can not be read")]
    Read(#[source] io::Error),
    /// It is too large to be what it should be.
    #[error("has more than {max} bytes")]
    TooLarge {
        /// How many it may have.
        max: u64,
    },
    /// It is no private key.
    #[error("is no private key that OpenSSH wrote")]
    NoKey,
    /// It is a private key that needs a passphrase.
    #[error("is encrypted: give the server a key without a passphrase, or load it into an ssh-agent and name its socket")]
    Encrypted,
    /// It is no certificate for users.
    #[error("is no OpenSSH user certificate")]
    NoCertificate,
    /// It is a certificate for another key.
    #[error("is a certificate for another key than {}", key.display())]
    OtherKey {
        /// The key's file.
        key: PathBuf,
    },
    /// It is a certificate that is not valid at this time.
    #[error("is a certificate that is not valid now")]
    NotNow,
    /// A line with a marker can not be understood. Passing over it might trust a revoked key.
    #[error("has a line with a marker that is no known host, line {line}")]
    Line {
        /// The line, from 1.
        line: usize,
    },
}

/// Why a host's key is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostKeyProblem {
    /// Nothing is known of the host.
    #[error(
        "its key {fingerprint} is not known; compare it with what `ssh-keygen -lf` shows on the host, and register the agent with its host \
         key, or add the key to the file of known hosts"
    )]
    Unknown {
        /// The fingerprint of the key that it showed.
        fingerprint: String,
    },
    /// Another key is known of the host.
    #[error(
        "its key is {fingerprint}, and {place} {expected}; somebody may be in between. If the host has a new key on purpose, {}",
        place.mend()
    )]
    Changed {
        /// The fingerprint of the key that it showed.
        fingerprint: String,
        /// The fingerprint of the key that is known.
        expected: String,
        /// Where that one is from.
        place: KeyPlace,
    },
    /// The host does not even have a key of the kind that is known.
    #[error(
        "it offers no key of the kind of the one expected, and {place} {expected}; it offers {offered}. If the host has a new key on \
         purpose, {}",
        place.mend()
    )]
    NotOffered {
        /// The fingerprint of the key that is known.
        expected: String,
        /// Where that one is from.
        place: KeyPlace,
        /// The kinds of key that the host offers.
        offered: String,
    },
    /// The key, or the authority that signed it, is revoked.
    #[error("its key {fingerprint} is revoked by line {line} of {}; give the host a new key", file.display())]
    Revoked {
        /// The fingerprint of the key that it showed.
        fingerprint: String,
        /// The file of known hosts.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The host showed a certificate that does not hold.
    #[error("its certificate for the key {fingerprint} does not hold: {problem}; give the host another certificate")]
    Certificate {
        /// The fingerprint of the key that is certified.
        fingerprint: String,
        /// Why.
        problem: CertificateProblem,
    },
}

/// Where an expected key is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// It was given when the agent was registered.
    Registration,
    /// The server remembered it from the first connection.
    FirstUse,
    /// A line of the file of known hosts.
    KnownHosts {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

impl KeyPlace {
    fn mend(&self) -> String {
        match self {
            Self::Registration => "register the agent again, with the new key".into(),
            Self::FirstUse => {
                "remove the agent with `muster agent remove`, which has the server forget the old one, and register it again".into()
            }
            Self::KnownHosts { file, line } => format!("replace line {line} of {}", file.display()),
        }
    }
}

impl fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registration => f.write_str("the agent was registered with"),
            Self::FirstUse => f.write_str("the first time it was"),
            Self::KnownHosts { file, line } => write!(f, "line {line} of {} says", file.display()),
        }
    }
}

/// Why a host's certificate does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateProblem {
    /// Nobody trusts who signed it.
    #[error("it is signed by {authority}, which is no trusted authority for this host")]
    Authority {
        /// The fingerprint of the authority's key.
        authority: String,
    },
    /// It is not what its authority signed, or is signed with SHA-1.
    #[error("its signature is wrong")]
    Signature,
    /// It is for users.
    #[error("it is no host certificate")]
    Kind,
    /// It is not valid yet, or no longer.
    #[error("it is not valid now")]
    NotNow,
    /// It is for other hosts.
    #[error("it is for {principals}")]
    Principal {
        /// The names that it is for.
        principals: String,
    },
    /// It asks for something that is not known here.
    #[error("it holds a critical option")]
    Option,
}

/// Why a connection has ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Ending {
    /// This side closed it.
    #[error("this side closed it")]
    Here,
    /// The host closed it, and said why.
    #[error("the host closed it: {message}")]
    There {
        /// What it said.
        message: String,
    },
    /// Nothing was heard of the host.
    #[error("the host does not answer any more")]
    Silent,
    /// The connection broke.
    #[error("it broke")]
    Broken(#[source] Arc<russh::Error>),
    /// The session came to an end that is no end: an error in the library.
    #[error("it ended without a reason")]
    Unknown,
}
