//! A controller's `agent.jar` as a bundle: fetched by the server, kept by its content, and brought to machines as all bits are.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::bits::chunk::{self, Content};
use crate::bits::contents::Bundle;
use crate::bits::manifest::{Entry, Kind, Manifest};
use crate::bits::pack::Packer;
use crate::bits::path::TreePath;
use crate::controller::Controller;
use crate::controller::jenkins::jar::AgentJar;
use crate::controller::nodes::NodeError;
use crate::machine::with_causes;
use crate::names::BundleName;
use crate::store::segments::Segments;

/// The jar's name at its destination.
const JAR_NAME: &str = "agent.jar";

/// What a controller has its agents run.
pub struct AgentBundle {
    /// What is known of it.
    pub jar: AgentJar,
    /// It, as it is brought to machines: one file, [`AgentBundle::FILE`].
    pub bundle: Bundle,
}

impl AgentBundle {
    /// The name of its file.
    pub const FILE: &'static str = JAR_NAME;
}

/// Keeps the last one of a controller.
#[derive(Default)]
pub(super) struct JarShelf(Mutex<Option<OnShelf>>);

struct OnShelf {
    modified: Option<String>,
    /// Which start of the controller it is from.
    session: Option<String>,
    made: Arc<AgentBundle>,
}

impl JarShelf {
    /// The controller's `agent.jar`: asked for once a start of the controller, whoever wants it, and fetched if it is another.
    pub(super) async fn get(&self, controller: &Controller, segments: &Segments) -> Result<Arc<AgentBundle>, NodeError> {
        let mut shelf = self.0.lock().await;
        let session = controller.jenkins.last_about().map(|about| about.session);
        if let Some(known) = shelf.as_ref().filter(|known| known.session == session) {
            return Ok(Arc::clone(&known.made));
        }
        let modified = shelf.as_ref().and_then(|known| known.modified.clone());
        let fetched = controller.jenkins.jar(modified.as_deref()).await?;
        match (fetched, shelf.as_mut()) {
            (None, Some(known)) => {
                known.session = session;
                Ok(Arc::clone(&known.made))
            }
            (None, None) => Err(NodeError::Jar("is said not to have changed, and was never fetched".into())),
            (Some(fetched), before) => {
                // A restart of the controller changes its time, and not its content.
                let jar = AgentJar::read(&fetched.bytes).map_err(|error| NodeError::Jar(error.to_string()))?;
                let made = match before.filter(|known| known.made.jar.digest == jar.digest) {
                    Some(known) => Arc::clone(&known.made),
                    None => Arc::new(AgentBundle { bundle: bundle(fetched.bytes, segments).await.map_err(NodeError::Jar)?, jar }),
                };
                tracing::info!(controller = %controller.name, remoting = %made.jar.remoting, digest = %made.jar.digest, "controller {} has agent.jar with Remoting {}", controller.name, made.jar.remoting);
                *shelf = Some(OnShelf { modified: fetched.modified, session, made: Arc::clone(&made) });
                Ok(made)
            }
        }
    }
}

async fn bundle(bytes: Vec<u8>, segments: &Segments) -> Result<Bundle, String> {
    let failed = |error: &dyn std::error::Error| format!("can not be kept: {}", with_causes(error));
    let packed = tokio::task::spawn_blocking(move || {
        let content = chunk::read(&mut bytes.as_slice())?;
        let (mut packer, mut packed, mut rest) = (Packer::new().map_err(std::io::Error::other)?, Vec::new(), bytes.as_slice());
        for (digest, size) in content.contents() {
            let piece = rest.split_off(..usize::try_from(size).unwrap_or(usize::MAX)).ok_or(std::io::ErrorKind::UnexpectedEof)?;
            packed.push(packer.pack(digest, piece).map_err(std::io::Error::other)?);
        }
        Ok::<_, std::io::Error>((content, packed))
    });
    let (Content { size, digest, chunks }, packed) = packed.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    let path = TreePath::from_bytes(JAR_NAME.as_bytes()).map_err(|error| failed(&error))?;
    let entry = Entry { path, mode: 0o644, kind: Kind::File { size, mtime: 0, digest, chunks } };
    let manifest = Manifest::new(vec![entry]).map_err(|error| failed(&error))?;
    if segments.of(&manifest).await.is_err() {
        let mut writer = segments.writer();
        for piece in &packed {
            writer.add(piece).await.map_err(|error| failed(&error))?;
        }
        writer.finish().await.map_err(|error| failed(&error))?;
    }
    let contents = segments.of(&manifest).await.map_err(|error| failed(&error))?;
    let name = "agent-jar".parse::<BundleName>().map_err(|error| failed(&error))?;
    Ok(Bundle::new(name, manifest, contents))
}
