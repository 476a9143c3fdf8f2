//! This machine as an agent, for trying a module out: calls are done here, below one directory, as `muster-agent` does them.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::bits::contents::{Bundle, Packing};
use crate::limits::OUTPUT_BYTES_MAX;
use crate::link::Link;
use crate::machine::exec::{Environment, exec};
use crate::machine::root::Root;
use crate::machine::sync::{Source, sync};
use crate::machine::{CallError, Change, Command, Output, Stream, SyncRules, with_causes};

/// Pieces that wait between one side and the other.
const PIECES_WAITING: usize = 16;

/// This machine, below one root. Nothing is launched on it, and so nothing is stopped.
pub struct Local {
    root: Arc<Root>,
    environment: Environment,
}

impl Local {
    /// The machine below a root, with what its commands find in their environment.
    pub fn new(root: Root, environment: Environment) -> Self {
        Self { root: Arc::new(root), environment }
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Root) -> Result<T, CallError> + Send + 'static) -> Result<T, CallError> {
        let root = Arc::clone(&self.root);
        let done = tokio::task::spawn_blocking(move || work(&root)).await;
        done.unwrap_or_else(|_| Err(CallError::Other("the call broke down".into())))
    }
}

#[async_trait::async_trait]
impl Link for Local {
    async fn exec(&self, command: &Command, progress: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<Output, CallError> {
        let (sender, mut pieces) = mpsc::channel(PIECES_WAITING);
        let mut running = std::pin::pin!(exec(&self.root, &self.environment, command, OUTPUT_BYTES_MAX, sender));
        let mut output = Output::default();
        let mut keep = |(stream, bytes): (Stream, bytes::Bytes)| {
            progress(stream, &bytes);
            match stream {
                Stream::Stdout => output.stdout.extend_from_slice(&bytes),
                Stream::Stderr => output.stderr.extend_from_slice(&bytes),
            }
        };
        let exited = loop {
            tokio::select! {
                biased;
                Some(piece) = pieces.recv() => keep(piece),
                exited = &mut running => break exited?,
            }
        };
        while let Ok(piece) = pieces.try_recv() {
            keep(piece);
        }
        Ok(Output { status: exited.status, truncated: exited.truncated, ..output })
    }

    async fn read_file(&self, path: &str, bytes_max: usize) -> Result<Vec<u8>, CallError> {
        let path = path.to_owned();
        self.blocking(move |root| root.read_file(&path, bytes_max)).await
    }

    async fn exists(&self, path: &str) -> Result<bool, CallError> {
        let path = path.to_owned();
        self.blocking(move |root| root.exists(&path)).await
    }

    async fn write_file(&self, path: &str, contents: &[u8], mode: u32) -> Result<Change, CallError> {
        let (path, contents) = (path.to_owned(), contents.to_owned());
        self.blocking(move |root| root.write_file(&path, &contents, mode)).await
    }

    async fn remove(&self, path: &str, with_below: bool) -> Result<Change, CallError> {
        let path = path.to_owned();
        self.blocking(move |root| root.remove(&path, with_below)).await
    }

    async fn sync(&self, destination: &str, bundle: &Bundle, rules: SyncRules) -> Result<Change, CallError> {
        let (needed, need) = oneshot::channel();
        let (sender, pieces) = mpsc::channel(PIECES_WAITING);
        let manifest = bundle.packed_manifest().await.map_err(|error| CallError::Other(error.to_string()))?;
        let (destination, version) = (destination.to_owned(), bundle.version);
        let mut source = Here { manifest, needed: Some(needed), pieces };
        let applying = self.blocking(move |root| sync(root, &destination, rules, &version, false, &mut source));
        let sending = async {
            // No answer: nothing is needed, or what is wrong with the destination is told by the other side.
            let Ok(wanted) = need.await else { return Ok(()) };
            let mut packing = Packing::new(bundle, wanted).await;
            while let Some(piece) = packing.next(&[]).await.map_err(|error| CallError::Other(with_causes(&error)))? {
                if sender.send(piece).await.is_err() {
                    break;
                }
            }
            drop(sender);
            Ok(())
        };
        let (change, sent) = tokio::join!(applying, sending);
        // What could not be read is the cause of what the other side says then.
        sent?;
        change
    }

    async fn stop(&self) -> Result<bool, CallError> {
        Ok(false)
    }

    async fn launch(&self, _command: &Command) -> Result<(), CallError> {
        Err(CallError::Other("nothing is launched on this machine".into()))
    }
}

/// The bundle's side of a sync.
struct Here {
    manifest: Bytes,
    needed: Option<oneshot::Sender<Vec<u32>>>,
    pieces: mpsc::Receiver<Bytes>,
}

impl Source for Here {
    fn manifest(&mut self) -> Result<Bytes, CallError> {
        Ok(self.manifest.clone())
    }

    fn need(&mut self, contents: &[u32]) -> Result<(), CallError> {
        if let Some(needed) = self.needed.take() {
            // Whoever asked may have given up; the pieces that do not come then end the work.
            let _ = needed.send(contents.to_vec());
        }
        Ok(())
    }

    fn piece(&mut self) -> Result<Option<Bytes>, CallError> {
        Ok(self.pieces.blocking_recv())
    }
}
