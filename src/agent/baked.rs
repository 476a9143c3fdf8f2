//! What is done on a machine without a server that asks for it: `bake` brings bundles into an image that is being made, and `rollback` puts
//! back what a destination held before.

use std::collections::HashSet;
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
use crate::limits::{BAKED_MAX, SESSION_PIECES_WAITING_MAX};
use crate::machine::root::Root;
use crate::machine::sync::{Generation, Source, generations, rollback, sync};
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
        // What another bake brought elsewhere is in the image still.
        let mut baked = state.read_baked();
        let at = |wanted: &Wanted| root.absolute(&wanted.destination).map(|path| path.display().to_string());
        let destinations: HashSet<_> = self.bundles.iter().filter_map(|wanted| at(wanted).ok()).collect();
        check_count(&baked, &destinations)?;
        for wanted in &self.bundles {
            let failed = |why: String| AgentError::Bake { what: wanted.name.to_string(), why };
            let destination = at(wanted).map_err(|error| failed(error.to_string()))?;
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
            baked.retain(|before| before.destination != destination);
            baked.push(Baked { bundle: wanted.name.clone(), version, destination });
            state.baked(&baked)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Refuses more than an image may say was baked into it: the rest could not be told.
fn check_count(baked: &[Baked], destinations: &HashSet<String>) -> Result<(), AgentError> {
    let count = baked.iter().filter(|before| !destinations.contains(&before.destination)).count() + destinations.len();
    if count > BAKED_MAX {
        let what = format!("{count} bundles");
        let why = format!(
            "an image has at most {BAKED_MAX}, earlier bakes included; bring some together, or begin with a root where nothing was baked"
        );
        return Err(AgentError::Bake { what, why });
    }
    Ok(())
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
            for Generation { number, version, files, lacking } in generations(&root, &self.destination).map_err(failed)? {
                let version = version.short();
                match lacking {
                    0 => tracing::info!("generation {number}: version {version} of {files} files"),
                    _ => tracing::warn!(
                        "generation {number} can not be put back: {lacking} of the {files} files of version {version} are lacking"
                    ),
                }
            }
            return Ok(ExitCode::SUCCESS);
        };
        let change = rollback(&root, &self.destination, generation).map_err(failed)?;
        tracing::info!("{} files were written, {} removed", change.files_changed, change.files_removed);
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_an_image_may_tell_is_refused_and_the_same_place_counts_once() {
        let at = |number: usize| format!("/agent/{number}");
        let baked: Vec<_> = (0..BAKED_MAX)
            .map(|number| Baked { bundle: "a".parse().unwrap(), version: Digest::of(b""), destination: at(number) })
            .collect();
        assert!(check_count(&baked, &HashSet::from([at(0), at(1)])).is_ok());
        let refused = check_count(&baked, &HashSet::from([at(0), at(BAKED_MAX)])).unwrap_err();
        assert!(matches!(refused, AgentError::Bake { why, .. } if why.contains("at most 32")));
    }
}
