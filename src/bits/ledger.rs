//! What Muster put at a destination: the manifest that was applied there, kept beside the agent's other state.
//!
//! An apply that was cut off has left some of its tree there. So what it is about to put is written down before, and both that and what
//! was there before count as Muster's until an apply ends.

use std::io::{self, Read as _, Write as _};

use cap_std::fs::{Dir, DirBuilder, DirBuilderExt as _, OpenOptions, OpenOptionsExt as _};

use super::manifest::{Entry, Kind, Manifest, ManifestError};
use super::path::TreePath;
use super::tree::{self, Seen};
use crate::limits::MANIFEST_BYTES_MAX;
use crate::names::Digest;

/// Where the ledgers are, below the state.
const PLACE: &str = "trees";

/// Why a ledger can not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file could not be read.
    #[error("can not read `{file}` of the agent's state")]
    Read {
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("can not write `{file}` of the agent's state")]
    Write {
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A file is no manifest.
    #[error("`{file}` of the agent's state is damaged; without it the next push begins anew and removes nothing")]
    Damaged {
        /// Which.
        file: String,
        /// Why.
        source: ManifestError,
    },
}

/// What was put at one destination.
#[derive(Debug, Default)]
pub struct Ledger {
    settled: Option<Manifest>,
    begun: Option<Manifest>,
}

fn file(key: &str) -> String {
    Digest::of(key.as_bytes()).to_string()
}

impl Ledger {
    /// Reads what was put at a destination; `key` is the destination's text. Nothing is there, if nothing was ever.
    ///
    /// # Errors
    /// If the files can not be read, or are damaged.
    pub fn read(state: &Dir, key: &str) -> Result<Self, LedgerError> {
        let file = file(key);
        Ok(Self { settled: read(state, &file)?, begun: read(state, &format!("{file}.begun"))? })
    }

    /// The manifest as it was left; `None` if nothing was ever put there, or something was cut off.
    pub fn settled(&self) -> Option<&Manifest> {
        self.settled.as_ref().filter(|_| self.begun.is_none())
    }

    /// Everything that was put there, what was begun and cut off first.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.begun.iter().chain(&self.settled).flat_map(Manifest::entries)
    }

    /// What was put there and this puts beside it or over it.
    pub(super) fn with(&self, manifest: &Manifest) -> Result<Manifest, ManifestError> {
        let mut all = manifest.clone();
        for under in self.begun.iter().chain(&self.settled) {
            all = all.over(under)?;
        }
        Ok(all)
    }

    /// Whether what is seen at a path is what was put there, by its kind.
    pub(super) fn put(&self, path: &TreePath, seen: &Seen) -> bool {
        self.begun.iter().chain(&self.settled).filter_map(|manifest| manifest.get(path)).any(|entry| is(entry, seen))
    }
}

/// Whether what is seen has the kind of an entry.
pub(super) fn is(entry: &Entry, seen: &Seen) -> bool {
    matches!(
        (&entry.kind, seen),
        (Kind::Directory, Seen::Directory(_)) | (Kind::File { .. }, Seen::File(..)) | (Kind::Symlink { .. }, Seen::Symlink(_))
    )
}

/// Writes down, durably, that a destination is about to become this.
///
/// # Errors
/// If it can not be written.
pub fn begin(state: &Dir, key: &str, manifest: &Manifest) -> Result<(), LedgerError> {
    let file = file(key);
    let write = || {
        match state.create_dir_with(PLACE, DirBuilder::new().mode(0o700)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let place = tree::enter(state, PLACE.as_bytes())?;
        let beside = format!("{file}.new");
        let mut new = place.open_with(&beside, OpenOptions::new().write(true).create(true).truncate(true).mode(0o600))?;
        new.write_all(&manifest.to_bytes())?;
        new.sync_all()?;
        place.rename(&beside, &place, format!("{file}.begun"))?;
        Ok(rustix::fs::fsync(&place)?)
    };
    write().map_err(|source| LedgerError::Write { file: format!("{PLACE}/{file}.begun"), source })
}

/// Writes down, durably, that a destination has become what was begun.
///
/// # Errors
/// If it can not be written.
pub fn settle(state: &Dir, key: &str) -> Result<(), LedgerError> {
    let file = file(key);
    let write = || {
        let place = tree::enter(state, PLACE.as_bytes())?;
        place.rename(format!("{file}.begun"), &place, &file)?;
        Ok(rustix::fs::fsync(&place)?)
    };
    write().map_err(|source| LedgerError::Write { file: format!("{PLACE}/{file}"), source })
}

fn read(state: &Dir, file: &str) -> Result<Option<Manifest>, LedgerError> {
    let mut text = Vec::new();
    let read = tree::enter(state, PLACE.as_bytes())
        .and_then(|place| tree::open_file(&place, file.as_bytes()))
        .and_then(|open| open.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut text));
    let file = format!("{PLACE}/{file}");
    match read {
        Ok(_) => Manifest::parse(&text).map(Some).map_err(|source| LedgerError::Damaged { file, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LedgerError::Read { file, source }),
    }
}
