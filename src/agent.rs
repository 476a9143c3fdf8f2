//! `muster-agent`: the program on an agent's machine.
//!
//! `register` asks the server again and again; `session` serves what it asks for when it wants something done; [`supervise`] keeps
//! running what it had launched; [`state`] is what survives a restart. Nothing here knows a module, a policy or a bundle's content.

mod backoff;
mod baked;
pub mod calls;
mod launched_log;
mod register;
mod resident;
pub mod server;
pub mod session;
pub mod state;
pub mod supervise;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::TaskTracker;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::calls::Machine;
use self::register::Member;
use self::server::{Server, ServerError};
use self::session::Ending;
use self::state::{Secret, State, StateError};
use self::supervise::{Pace, Supervisor};
use crate::api::{LinkKind, Register};
use crate::limits::{AGENT_ATTRIBUTES_MAX, AGENT_EXECUTORS_MAX, AGENT_LABELS_MAX, AGENT_TEXT_BYTES_MAX, SECRET_BYTES_MAX};
use crate::machine::exec::Environment;
use crate::machine::root::{Root, RootError};
use crate::machine::with_causes;
use crate::names::{AgentName, LabelName};

/// How long the session has to send what is queued when the agent ends.
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// How long tasks have to notice that the program ends.
const SHUTDOWN_MAX: Duration = Duration::from_secs(1);

/// What the program does beside registering.
const COMMANDS: [&str; 4] = ["bake", "rollback", "link", "keep"];

/// Registers this machine with a Muster server and does what the server's provisioning asks of it.
#[derive(Debug, Parser)]
#[command(
    name = "muster-agent",
    version,
    after_help = "Other commands, each with its own --help: `muster-agent bake` brings bundles into an image that is being made, \
        `muster-agent rollback` puts back what a destination held before, and `muster-agent link` is what a server that dials by ssh starts."
)]
struct Options {
    /// URL of the server.
    #[arg(long, env = "MUSTER_SERVER")]
    server: String,
    /// File that holds the join token.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Label that this agent carries; may be given several times.
    #[arg(long = "label", value_name = "L", required = true, num_args = 1..)]
    labels: Vec<LabelName>,
    /// Name of this agent [default: the host's name].
    #[arg(long)]
    name: Option<AgentName>,
    /// Directory that the agent works in [default: /var/lib/muster-agent for root, else ~/.muster-agent].
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// How many builds the machine takes at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(AGENT_EXECUTORS_MAX)))]
    executors: u32,
    /// How the server reaches this machine during a run: `session`, or `ssh` for a server that dials.
    #[arg(long, value_name = "LINK", default_value = "session", value_parser = link)]
    link: LinkKind,
    /// Where the server dials with `--link ssh`, as HOST or HOST:PORT [default: the host's name].
    #[arg(long, value_name = "HOST")]
    address: Option<String>,
    /// File of the host's public ssh key, which the server then expects.
    #[arg(long, value_name = "FILE")]
    ssh_host_key_file: Option<PathBuf>,
    /// What the machine was made from.
    #[arg(long, value_name = "ID")]
    image: Option<String>,
    /// Something else that provisioning may want to know; may be given several times.
    #[arg(long = "attribute", value_name = "K=V", value_parser = attribute)]
    attributes: Vec<(String, String)>,
    /// Directory beside the root that provisioning may write to; may be given several times.
    #[arg(long = "allow-write", value_name = "DIR")]
    allow_write: Vec<PathBuf>,
    /// PEM file of the only authority that the server's certificate may be from [default: the machine's authorities].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Read every file at each push, whatever is known of it from before.
    #[arg(long)]
    verify: bool,
    /// What is logged, as `info` or `muster=debug`.
    #[arg(long, env = "MUSTER_LOG", default_value = "info")]
    log: Targets,
}

/// Why the agent program can not run, or can not go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file that was named can not be read.
    #[error("file `{}`", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The token's file holds none.
    #[error("file `{}` does not hold a token", .0.display())]
    Token(PathBuf),
    /// The host's name is no agent's name.
    #[error("the host's name can not be this agent's; give one with `--name`")]
    HostName(#[source] crate::names::NameError),
    /// Too many or too long texts.
    #[error("{0}")]
    Claim(String),
    /// There is no root.
    #[error("there is no home directory to work in; give a directory with `--root`")]
    NoRoot,
    /// The root's path is not Unicode.
    #[error("the root's path `{}` is not Unicode", .0.display())]
    RootText(PathBuf),
    /// The root, or a directory beside it.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The agent's own files.
    #[error(transparent)]
    State(#[from] StateError),
    /// The root is not where it was.
    #[error("the root `{0}`, or its `.muster`, was removed or replaced while this agent ran; start the agent anew")]
    RootGone(String),
    /// The server's address.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The server admitted the agent and gave it no credential.
    #[error("the server admitted this agent and gave it no credential")]
    NoCredential,
    /// A bundle could not be baked.
    #[error("can not bake {what}: {why}")]
    Bake {
        /// Which bundle.
        what: String,
        /// Why.
        why: String,
    },
    /// A destination could not be rolled back.
    #[error("can not roll back {what}: {why}")]
    Rollback {
        /// Which destination.
        what: String,
        /// Why.
        why: String,
    },
    /// The way to the agent of a root.
    #[error("the agent's socket")]
    Link(#[source] io::Error),
    /// Signals can not be received.
    #[error("receiving signals")]
    Signals(#[source] io::Error),
}

/// The file that the join token is in. It is read each time the token is needed, so that the token can be turned over.
#[derive(Debug)]
struct JoinToken(PathBuf);

impl JoinToken {
    async fn read(&self) -> Result<Secret, AgentError> {
        let bytes = read_small(&self.0).await?;
        std::str::from_utf8(&bytes).ok().and_then(Secret::from_text).ok_or_else(|| AgentError::Token(self.0.clone()))
    }
}

/// The program's options, for its manual page.
pub fn command() -> clap::Command {
    <Options as clap::CommandFactory>::command()
}

/// Runs `muster-agent` with these arguments, the program's name first, until a signal ends it.
pub fn main_from(args: impl IntoIterator<Item = OsString>, environment: Environment) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // These have no options in common with the agent that registers.
    let is_command = args.get(1).is_some_and(|first| COMMANDS.iter().any(|command| first == command));
    let options = match is_command {
        true => None,
        false => match Options::try_parse_from(&args) {
            Ok(options) => Some(options),
            Err(error) => {
                let _ = error.print();
                return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
            }
        },
    };
    let level = options.as_ref().map_or_else(|| Targets::new().with_default(tracing::Level::INFO), |options| options.log.clone());
    let log = tracing_subscriber::fmt::layer().compact().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).with_target(false);
    // Whoever calls this from another program may log already, and the provider of TLS may be there as well.
    let _ = tracing_subscriber::registry().with(log).with(level).try_init();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("the agent can not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        match options {
            Some(options) => Box::pin(run(options, environment)).await,
            None => resident::run(&args, environment).await.unwrap_or(Ok(ExitCode::FAILURE)),
        }
    });
    // Tasks that are dropped here kill what they started.
    runtime.shutdown_timeout(SHUTDOWN_MAX);
    match ended {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options, environment: Environment) -> Result<ExitCode, AgentError> {
    let mut signals = Signals::new().map_err(AgentError::Signals)?;
    let ca = match &options.ca {
        Some(path) => Some(read_small(path).await?),
        None => None,
    };
    let server = Server::new(&options.server, ca.as_deref())?;
    if server.is_plain() {
        tracing::warn!("{} is not encrypted: whoever is on the way can read this agent's token and tell it what to do", server.base());
    }
    let join_token = JoinToken(options.token_file.clone());
    join_token.read().await?;
    let root = match (&options.root, environment.home()) {
        (Some(root), _) => root.clone(),
        (None, _) if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/muster-agent"),
        (None, Some(home)) => home.join(".muster-agent"),
        (None, None) => return Err(AgentError::NoRoot),
    };
    let root = Arc::new(Root::open(&root, &options.allow_write)?);
    let state = State::open(root.clone())?;
    let verify = options.verify;
    let host_key = match &options.ssh_host_key_file {
        Some(path) => Some(String::from_utf8_lossy(&read_small(path).await?).trim().to_owned()),
        None => None,
    };
    let claim = Register { baked: state.read_baked(), ..claim(options, host_key, &root)? };
    let supervisor = Supervisor::start(root.clone(), environment.clone(), Pace::default()).await;
    let machine = Arc::new(Machine { root, environment, supervisor, syncing: Arc::default(), verify });
    let (ending, sessions) = (Ending::default(), TaskTracker::new());
    let serving = serve_link(claim.link, &machine, claim.instance.clone(), &ending);
    let member = Member { server, state, join_token, claim, machine: machine.clone(), ending: ending.clone(), sessions };
    let ended = tokio::select! {
        error = member.poll() => Err(error),
        ended = serving => ended.map(|()| ExitCode::FAILURE),
        () = signals.next() => Ok(ExitCode::SUCCESS),
    };
    tokio::select! {
        () = end(&member) => ended,
        () = signals.next() => Ok(ExitCode::FAILURE),
    }
}

/// Serves the sessions that the server opens by ssh, if it is to dial; else there is nothing to serve.
async fn serve_link(link: LinkKind, machine: &Arc<Machine>, instance: Option<String>, ending: &Ending) -> Result<(), AgentError> {
    match link {
        LinkKind::Ssh => resident::listen(machine.clone(), instance.unwrap_or_default(), ending.clone(), false).await,
        _ => std::future::pending().await,
    }
}

async fn end(member: &Member) {
    tracing::info!("ending: no more work is taken, and what was launched is ended");
    member.ending.draining.cancel();
    member.machine.supervisor.end().await;
    member.ending.over.cancel();
    member.sessions.close();
    if tokio::time::timeout(FAREWELL_MAX, member.sessions.wait()).await.is_err() {
        tracing::warn!("the server does not take the farewell within {FAREWELL_MAX:?}");
    }
}

fn claim(options: Options, ssh_host_key: Option<String>, root: &Root) -> Result<Register, AgentError> {
    let host = rustix::system::uname();
    let name = match options.name {
        Some(name) => name,
        None => host.nodename().to_string_lossy().parse().map_err(AgentError::HostName)?,
    };
    if options.labels.len() > AGENT_LABELS_MAX {
        return Err(AgentError::Claim(format!("an agent carries at most {AGENT_LABELS_MAX} labels")));
    }
    if let Some(twice) = options.labels.iter().enumerate().find(|(at, label)| options.labels.iter().take(*at).any(|other| other == *label))
    {
        return Err(AgentError::Claim(format!("label `{}` is given twice", twice.1)));
    }
    if options.attributes.len() > AGENT_ATTRIBUTES_MAX {
        return Err(AgentError::Claim(format!("an agent has at most {AGENT_ATTRIBUTES_MAX} attributes")));
    }
    let texts = options.attributes.iter().flat_map(|(key, value)| [key, value]).chain(&options.image);
    if texts.into_iter().any(|text| text.len() > AGENT_TEXT_BYTES_MAX) {
        return Err(AgentError::Claim(format!("an attribute and an image have at most {AGENT_TEXT_BYTES_MAX} bytes")));
    }
    Ok(Register {
        name,
        labels: options.labels,
        executors: options.executors,
        root: root.path().to_str().ok_or_else(|| AgentError::RootText(root.path().to_owned()))?.to_owned(),
        address: match options.link {
            LinkKind::Ssh => options.address.or_else(|| Some(host.nodename().to_string_lossy().into_owned())),
            _ => options.address,
        },
        os: host.sysname().to_string_lossy().to_ascii_lowercase(),
        arch: host.machine().to_string_lossy().into_owned(),
        image: options.image,
        attributes: options.attributes.into_iter().collect::<BTreeMap<_, _>>(),
        ssh_host_key,
        instance: Some(uuid::Uuid::new_v4().to_string()),
        link: options.link,
        baked: Vec::new(),
    })
}

fn link(text: &str) -> Result<LinkKind, String> {
    match text {
        "session" => Ok(LinkKind::Session),
        "ssh" => Ok(LinkKind::Ssh),
        "poll" => Err("a machine with a muster-agent opens sessions; `scripts/muster-poll` is for one without".to_owned()),
        _ => Err("a link is `session` or `ssh`".to_owned()),
    }
}

fn attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("an attribute is written as KEY=VALUE".to_owned()),
    }
}

/// Reads a file that whoever runs the agent named.
async fn read_small(path: &PathBuf) -> Result<Vec<u8>, AgentError> {
    let failed = |source| AgentError::File { path: path.clone(), source };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut bytes = Vec::new();
    // A file of certificates is no larger than a secret may be, times the length of the chain.
    let limit = u64::try_from(SECRET_BYTES_MAX).unwrap_or(u64::MAX).saturating_mul(16);
    file.take(limit).read_to_end(&mut bytes).await.map_err(failed)?;
    Ok(bytes)
}

/// SIGTERM and SIGINT: what tells a program to end.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Begins to listen for them; from here on they do not end the process by themselves.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of them.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
