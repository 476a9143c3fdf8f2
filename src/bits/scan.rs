//! The manifest of a directory that is there.

use std::collections::BTreeMap;
use std::io;

use cap_std::fs::Dir;

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

/// Walks a directory and reads every file. The answer has the manifest, and for each content one path that has it.
///
/// `progress` is told each path before it is read. Symlinks are kept as they are and never followed; empty directories are kept; of modes
/// the permission bits are kept. A file that changes meanwhile is caught when its content is sent.
///
/// # Errors
/// If something can not be read, or can not be in a bundle: sockets, fifos and devices; symlinks that lead outside; more than the limits
/// allow.
pub fn scan(dir: &Dir, progress: &mut dyn FnMut(&TreePath)) -> Result<(Manifest, BTreeMap<Digest, TreePath>), ScanError> {
    let (mut entries, mut places) = (Vec::new(), BTreeMap::new());
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
            Seen::File(mode, _) => {
                let read = tree::open_file(dir, path.name()).and_then(|mut file| tree::hash(&mut file));
                let (digest, size) = read.map_err(|source| ScanError::Io { path: path.to_string(), source })?;
                places.entry(digest).or_insert_with(|| path.clone());
                (mode, Kind::File { size, digest })
            }
        };
        entries.push(Entry { path: path.clone(), mode: mode & 0o777, kind });
        Ok(true)
    })?;
    Ok((Manifest::new(entries)?, places))
}
