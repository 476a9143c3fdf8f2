//! What Muster put at a destination: the manifest that was applied there, kept beside the agent's other state.
//!
//! An apply that was cut off has left some of its tree there. So what it is about to put is written down before, and all that was begun
//! and what was there before count as Muster's until an apply ends.

use std::io::{self, Read as _, Write as _};

use cap_std::fs::{Dir, DirBuilder, DirBuilderExt as _, File, OpenOptions, OpenOptionsExt as _};

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
    /// What was begun and cut off, one after the other.
    begun: Vec<Manifest>,
}

/// Opens where the ledgers are, and makes the place if it is not there.
pub(super) fn place(state: &Dir) -> Result<Dir, LedgerError> {
    let open = || {
        match state.create_dir_with(PLACE, DirBuilder::new().mode(0o700)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Err(_) => {}
            // The handle may be one that can not be made durable.
            Ok(()) => rustix::fs::fsync(tree::reopen(state)?)?,
        }
        tree::enter(state, PLACE.as_bytes())
    };
    open().map_err(|source| LedgerError::Write { file: PLACE.to_owned(), source })
}

/// Whether an apply at a destination was cut off.
pub(super) fn is_begun(trees: &Dir, key: &str) -> bool {
    !matches!(tree::look(trees, begun_file(&file(key), 0).as_bytes()), Ok(None))
}

/// Keeps what a destination holds now under another name, before the next thing is settled.
///
/// # Errors
/// If there is nothing, or it can not be kept.
pub(super) fn keep(trees: &Dir, key: &str, to: &Dir, name: &str) -> io::Result<()> {
    trees.hard_link(file(key), to, name)
}

fn file(key: &str) -> String {
    Digest::of(key.as_bytes()).to_string()
}

fn beside(key: &str) -> String {
    format!("{}.new", file(key))
}

fn begun_file(file: &str, place: usize) -> String {
    format!("{file}.begun.{place}")
}

impl Ledger {
    /// What was put there, and what was begun after that and cut off, one after the other.
    pub(crate) fn new(settled: Option<Manifest>, begun: Vec<Manifest>) -> Self {
        Self { settled, begun }
    }

    /// Reads what was put at a destination; `key` is the destination's text. Nothing is there, if nothing was ever.
    ///
    /// # Errors
    /// If the files can not be read, or are damaged.
    pub fn read(trees: &Dir, key: &str) -> Result<Self, LedgerError> {
        let file = file(key);
        let mut begun = Vec::new();
        while let Some(manifest) = read(trees, &begun_file(&file, begun.len()))? {
            begun.push(manifest);
        }
        Ok(Self::new(read(trees, &file)?, begun))
    }

    /// The manifest as it was left; `None` if nothing was ever put there, or something was cut off.
    pub fn settled(&self) -> Option<&Manifest> {
        self.settled.as_ref().filter(|_| self.begun.is_empty())
    }

    /// The manifest that was left there last, whatever was begun and cut off after that.
    pub(super) fn last_settled(&self) -> Option<&Manifest> {
        self.settled.as_ref()
    }

    /// All that was put there, what was begun last first.
    fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.begun.iter().rev().chain(&self.settled)
    }

    /// Everything that was put there, what was begun and cut off first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.manifests().flat_map(Manifest::entries)
    }

    /// The place for what is begun next: that of the last one if it is the same once more.
    pub(super) fn next_place(&self, manifest: &Manifest) -> usize {
        self.begun.len() - usize::from(self.begun.last() == Some(manifest))
    }

    /// What was put there and this puts beside it or over it, without what is not there any more: that would be carried along for ever.
    pub(crate) fn with(&self, manifest: &Manifest, mut is_there: impl FnMut(&Entry) -> bool) -> Result<Manifest, ManifestError> {
        let mut all = manifest.clone();
        for under in self.manifests() {
            all = all.over(under, &mut is_there)?;
        }
        Ok(all)
    }

    /// The entry of a file as it was left, if nothing was cut off.
    pub(super) fn left(&self, path: &TreePath) -> Option<&Entry> {
        self.settled()?.get(path)
    }

    /// Whether what is seen at a path is what was put there, by its kind.
    pub(super) fn put(&self, path: &TreePath, seen: &Seen) -> bool {
        self.manifests().filter_map(|manifest| manifest.get(path)).any(|entry| is(entry, seen))
    }
}

/// Whether what is seen has the kind of an entry.
pub(crate) fn is(entry: &Entry, seen: &Seen) -> bool {
    matches!(
        (&entry.kind, seen),
        (Kind::Directory, Seen::Directory(_)) | (Kind::File { .. }, Seen::File { .. }) | (Kind::Symlink { .. }, Seen::Symlink(_))
    )
}

/// Writes what a destination is about to become beside its ledger, where it says nothing yet.
///
/// # Errors
/// If it can not be written.
pub(super) fn write(trees: &Dir, key: &str, manifest: &Manifest) -> Result<File, LedgerError> {
    let beside = beside(key);
    let write = || {
        let mut new = trees.open_with(&beside, OpenOptions::new().write(true).create(true).truncate(true).mode(0o600))?;
        new.write_all(&manifest.to_bytes())?;
        Ok(new)
    };
    write().map_err(|source| LedgerError::Write { file: format!("{PLACE}/{beside}"), source })
}

/// Writes down, durably, that a destination is about to become what was [written](write). `place` is [`Ledger::next_place`].
///
/// # Errors
/// If it can not be written.
pub(super) fn begin(trees: &Dir, key: &str, place: usize, written: &File) -> Result<(), LedgerError> {
    let begun = begun_file(&file(key), place);
    let write = || {
        written.sync_all()?;
        trees.rename(beside(key), trees, &begun)?;
        Ok(rustix::fs::fsync(trees)?)
    };
    write().map_err(|source| LedgerError::Write { file: format!("{PLACE}/{begun}"), source })
}

/// Writes down, durably, that a destination has become what was begun last, at `place`. What was begun before is over with it.
///
/// # Errors
/// If it can not be written.
pub(super) fn settle(trees: &Dir, key: &str, place: usize) -> Result<(), LedgerError> {
    let file = file(key);
    let write = || {
        trees.rename(begun_file(&file, place), trees, &file)?;
        // The last first: cut off in between, those that are left count as Muster's still, and none is passed over.
        (0..place).rev().try_for_each(|place| trees.remove_file(begun_file(&file, place)))?;
        Ok(rustix::fs::fsync(trees)?)
    };
    write().map_err(|source| LedgerError::Write { file: format!("{PLACE}/{file}"), source })
}

/// What was settled at a destination, if it is this version. Another one is only hashed, and not taken apart.
///
/// # Errors
/// If it can not be read, or is damaged.
pub(super) fn settled_as(trees: &Dir, key: &str, version: &Digest) -> Result<Option<Manifest>, LedgerError> {
    let file = file(key);
    match read_text(trees, &file)?.filter(|text| Digest::of(text) == *version) {
        Some(text) => parse(&text, &file).map(Some),
        None => Ok(None),
    }
}

fn read(trees: &Dir, file: &str) -> Result<Option<Manifest>, LedgerError> {
    read_text(trees, file)?.map(|text| parse(&text, file)).transpose()
}

fn parse(text: &[u8], file: &str) -> Result<Manifest, LedgerError> {
    Manifest::parse(text).map_err(|source| LedgerError::Damaged { file: format!("{PLACE}/{file}"), source })
}

fn read_text(trees: &Dir, file: &str) -> Result<Option<Vec<u8>>, LedgerError> {
    let mut text = Vec::new();
    let read = tree::open_file(trees, file.as_bytes()).and_then(|open| open.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut text));
    let file = format!("{PLACE}/{file}");
    match read {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LedgerError::Read { file, source }),
    }
}
