//! The manifest of a directory that is there.

use std::collections::HashMap;
use std::io;

use cap_std::fs::Dir;

use super::chunk::{self, Content};
use super::manifest::{Entry, Kind, Manifest, ManifestError};
use super::path::{PathError, TreePath};
use super::tree::{self, Seen, WalkError};
use crate::limits::BUNDLE_ENTRIES_MAX;
use crate::names::Digest;

/// Why a directory can not be a bundle.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Something could not be read.
    #[error("can not read `{path}`")]
    Io {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A path is too long or too deep.
    #[error("`{path}` can not be in a bundle")]
    Path {
        /// Where.
        path: String,
        /// Why.
        source: PathError,
    },
    /// There is a socket, a fifo or a device.
    #[error("`{0}` is a socket, a fifo or a device; a bundle has files, directories and symlinks")]
    Special(TreePath),
    /// What was found is no manifest: a symlink leads outside, say.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl From<WalkError> for ScanError {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Path(path, source) => Self::Path { path, source },
            WalkError::Io(path, source) => Self::Io { path, source },
        }
    }
}

/// A place in a directory where a content was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// The file.
    pub path: TreePath,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// How many bytes it has.
    pub size: u64,
}

/// Walks a directory and reads every file. The answer has the manifest, and for each content one place that has it.
///
/// `progress` is told each path before it is read. Symlinks are kept as they are and never followed; empty directories are kept; of modes
/// the permission bits are kept, of times whole seconds. A file that changes meanwhile is caught when its content is sent.
///
/// # Errors
/// If something can not be read, or can not be in a bundle: sockets, fifos and devices; symlinks that lead outside; more than the limits
/// allow.
pub fn scan(dir: &Dir, progress: &mut dyn FnMut(&TreePath)) -> Result<(Manifest, HashMap<Digest, Spot>), ScanError> {
    let (mut entries, mut spots) = (Vec::new(), HashMap::new());
    let top = tree::reopen(dir).map_err(|source| ScanError::Io { path: ".".to_owned(), source })?;
    tree::walk(&top, None, &mut |dir, path, seen| {
        progress(path);
        if entries.len() >= BUNDLE_ENTRIES_MAX {
            return Err(ManifestError::TooMany.into());
        }
        let (mode, kind) = match seen {
            Seen::Directory(mode) => (mode, Kind::Directory),
            Seen::Symlink(target) => (0, Kind::Symlink { target }),
            Seen::Other => return Err(ScanError::Special(path.clone())),
            Seen::File { mode, stamp, .. } => {
                let read = tree::open_file(dir, path.name()).and_then(|mut file| chunk::read(&mut file));
                let Content { size, digest, chunks } = read.map_err(|source| ScanError::Io { path: path.to_string(), source })?;
                (mode, Kind::File { size, mtime: stamp.mtime(), digest, chunks })
            }
        };
        let entry = Entry { path: path.clone(), mode: mode & 0o777, kind };
        let mut offset = 0;
        for (digest, size) in entry.contents() {
            spots.entry(digest).or_insert_with(|| Spot { path: path.clone(), offset, size });
            offset += size;
        }
        entries.push(entry);
        Ok(true)
    })?;
    Ok((Manifest::new(entries)?, spots))
}
