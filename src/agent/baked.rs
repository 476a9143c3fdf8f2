//! What is done on a machine without a server that asks for it: `bake` brings bundles into an image that is being made, and `rollback` puts
//! back what a destination held before.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use tokio::sync::mpsc;

use super::server::Server;
use super::state::{Secret, State, StateError};
use super::{AgentError, JoinToken, read_small};
use crate::api::Baked;
use crate::limits::SESSION_PIECES_WAITING_MAX;
use crate::machine::root::Root;
use crate::machine::sync::{Source, generations, rollback, sync};
use crate::machine::{CallError, SyncMode, SyncRules};
use crate::names::{BundleName, Digest};

/// Brings bundles to where modules will want them, and writes down what is there: run it when an image is made.
///
/// An agent that starts from the image tells the server what was baked, and is sent what changed since. Directories are mirrored: what an
/// earlier bake put there and the bundle no longer has is removed.
#[derive(Debug, Parser)]
#[command(name = "muster-agent bake", version)]
pub(super) struct Bake {
    /// URL of the server.
    #[arg(long, env = "MUSTER_SERVER")]
    server: String,
    /// File that holds a team's token.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// PEM file of the only authority that the server's certificate may be from [default: the machine's authorities].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Directory that the agent will work in.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Directory beside the root that provisioning may write to; may be given several times.
    #[arg(long = "allow-write", value_name = "DIR")]
    allow_write: Vec<PathBuf>,
    /// A bundle and where it goes, as its module says it: relative to the root, or absolute; its newest version unless one is named.
    #[arg(long = "bundle", value_name = "NAME[@VERSION]=DIR", required = true)]
    bundles: Vec<Wanted>,
}

#[derive(Debug, Clone)]
struct Wanted {
    name: BundleName,
    version: Option<Digest>,
    destination: String,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (bundle, destination) = text.split_once('=').filter(|(_, to)| !to.is_empty()).ok_or("it is written as NAME[@VERSION]=DIR")?;
        let (name, version) = match bundle.split_once('@') {
            Some((name, version)) => (name, Some(version.parse().map_err(|error: crate::names::NameError| error.to_string())?)),
            None => (bundle, None),
        };
        Ok(Self {
            name: name.parse().map_err(|error: crate::names::NameError| error.to_string())?,
            version,
            destination: destination.to_owned(),
        })
    }
}

impl Bake {
    pub(super) async fn run(self) -> Result<ExitCode, AgentError> {
        let ca = match &self.ca {
            Some(path) => Some(read_small(path).await?),
            None => None,
        };
        let server = Server::new(&self.server, ca.as_deref())?;
        let token = JoinToken(self.token_file.clone()).read().await?;
        let root = Arc::new(Root::open(&self.root, &self.allow_write)?);
        let state = State::open(root.clone())?;
        let mut baked = Vec::new();
        for wanted in &self.bundles {
            let failed = |why: String| AgentError::Bake { what: wanted.name.to_string(), why };
            let version = match wanted.version {
                Some(version) => version,
                None => server.newest(&wanted.name, &token).await.map_err(failed)?,
            };
            let change = bring(&server, &token, &root, wanted, version).await.map_err(|error| failed(error.to_string()))?;
            tracing::info!(
                "{}@sha256:{version} is at {}: {} of {} files were written, {} removed, {} bytes sent",
                wanted.name,
                wanted.destination,
                change.files_changed,
                change.files,
                change.files_removed,
                change.bytes_sent
            );
            let destination = root.absolute(&wanted.destination).map_err(|error| failed(error.to_string()))?.display().to_string();
            baked.push(Baked { bundle: wanted.name.clone(), version, destination });
        }
        state.baked(&baked)?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn bring(
    server: &Server,
    token: &Secret,
    root: &Arc<Root>,
    wanted: &Wanted,
    version: Digest,
) -> Result<crate::machine::Change, CallError> {
    let other = |why: String| CallError::Other(why);
    let manifest = server.manifest(&wanted.name, &version, token).await.map_err(other)?;
    let manifest = zstd::bulk::compress(&manifest, 1).map_err(|error| CallError::Other(error.to_string()))?;
    let (need, mut needed) = mpsc::channel::<Vec<u32>>(1);
    let (sender, pieces) = mpsc::channel(SESSION_PIECES_WAITING_MAX);
    let mut source = FromServer { manifest: manifest.into(), need, pieces };
    let (root, destination) = (root.clone(), wanted.destination.clone());
    let rules = SyncRules { mode: SyncMode::Mirror, max_delete_percent: 100 };
    let applying = tokio::task::spawn_blocking(move || sync(&root, &destination, rules, &version, false, &mut source));
    let sending = async move {
        let Some(contents) = needed.recv().await else { return Ok(()) };
        server.contents(&wanted.name, &version, &contents, token, &sender).await
    };
    let (change, sent) = tokio::join!(applying, sending);
    // What did not come is the cause of what this side says then.
    sent.map_err(other)?;
    change.unwrap_or_else(|_| Err(CallError::Other("bringing it there broke down".into())))
}

/// A bundle that is had by HTTP.
struct FromServer {
    manifest: Bytes,
    need: mpsc::Sender<Vec<u32>>,
    pieces: mpsc::Receiver<Bytes>,
}

impl Source for FromServer {
    fn manifest(&mut self) -> Result<Bytes, CallError> {
        Ok(self.manifest.clone())
    }

    fn need(&mut self, contents: &[u32]) -> Result<(), CallError> {
        self.need.blocking_send(contents.to_vec()).map_err(|_| CallError::Unreachable("nobody sends".into()))
    }

    fn piece(&mut self) -> Result<Option<Bytes>, CallError> {
        Ok(self.pieces.blocking_recv())
    }
}

/// Puts back a tree that a destination held before, from what is kept on this machine; without a generation, lists what is kept.
#[derive(Debug, Parser)]
#[command(name = "muster-agent rollback", version)]
pub(super) struct Rollback {
    /// Directory that the agent works in.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Directory beside the root that provisioning may write to; may be given several times.
    #[arg(long = "allow-write", value_name = "DIR")]
    allow_write: Vec<PathBuf>,
    /// Which of the trees that are kept.
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
    /// The destination, as its module says it.
    #[arg(value_name = "DESTINATION")]
    destination: String,
}

impl Rollback {
    pub(super) fn run(self) -> Result<ExitCode, AgentError> {
        let failed = |error: CallError| AgentError::Rollback { what: self.destination.clone(), why: error.to_string() };
        let root = Arc::new(Root::open(&self.root, &self.allow_write)?);
        let _state = State::open(root.clone()).map_err(|error| match error {
            StateError::Locked(_) => {
                failed(CallError::Denied("an agent runs with this root; stop it first, or roll the label back".into()))
            }
            other => other.into(),
        })?;
        let Some(generation) = self.generation else {
            for kept in generations(&root, &self.destination).map_err(failed)? {
                tracing::info!("generation {}: version {} of {} files", kept.number, kept.version.short(), kept.files);
            }
            return Ok(ExitCode::SUCCESS);
        };
        let change = rollback(&root, &self.destination, generation).map_err(failed)?;
        tracing::info!("{} files were written, {} removed", change.files_changed, change.files_removed);
        Ok(ExitCode::SUCCESS)
    }
}
