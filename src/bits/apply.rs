//! Bringing a directory to what a manifest says.
//!
//! A [`Plan`] looks and decides, and finds every conflict before anything is sent; what is missing is received into a staging directory
//! and verified; [`Plan::switch`] then puts it in place by renames. Until then nothing at the destination is different, and a plan that is
//! dropped leaves nothing. Everything is done through handles, and no symlink is followed. One destination takes one plan at a time.

mod staging;
mod survey;
mod switch;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use cap_std::fs::Dir;

use self::staging::Staging;
use self::survey::{Steps, Survey};
use super::ledger::{Ledger, LedgerError};
use super::manifest::{Manifest, ManifestError};
use super::path::{PathError, TreePath};
use super::tree::{self, Seen, WalkError, Walker};
use crate::names::Digest;

pub use self::staging::Receive;

/// How a manifest is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Other files are left alone.
    Push,
    /// What was applied there earlier and the manifest lacks is removed.
    Mirror,
    /// Everything that the manifest lacks is removed.
    MirrorDeletingForeign,
}

/// What an apply did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Whether anything is different now: content, kind, mode, or presence.
    pub changed: bool,
    /// Files and symlinks of the manifest.
    pub files: u64,
    /// Files and symlinks that were written, or whose mode was set.
    pub files_changed: u64,
    /// Files and symlinks that were removed, those in the way included.
    pub files_removed: u64,
    /// The sizes of all files of the manifest together.
    pub bytes: u64,
}

/// Why a manifest can not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The destination, or a path that was found below it, can not be.
    #[error("`{path}` can not be a path below the agent's root")]
    Path {
        /// Where.
        path: String,
        /// Why.
        source: PathError,
    },
    /// Something is in the way that Muster did not put there.
    #[error("`{path}` is {found}, which Muster did not put there, where {wanted} is to be")]
    Conflict {
        /// Where.
        path: String,
        /// What is there.
        found: &'static str,
        /// What the manifest wants.
        wanted: &'static str,
    },
    /// The manifest names what is Muster's own.
    #[error("`{0}` is Muster's own and can not be part of a bundle here")]
    Own(String),
    /// The file system refused: the disk is full, a permission is lacking.
    #[error("can not {doing} `{path}`")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file was changed by somebody else between planning and switching.
    #[error("`{0}` was changed by somebody else meanwhile")]
    Changed(String),
    /// A content came that was not asked for.
    #[error("content {0} was not asked for")]
    Unwanted(Digest),
    /// Contents did not come.
    #[error("{0} contents are still missing")]
    Missing(usize),
    /// The ledger could not be read or written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// With what was put there before it is too much.
    #[error("the destination's ledger")]
    Manifest(#[from] ManifestError),
}

impl From<WalkError> for ApplyError {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Path(path, source) => Self::Path { path, source },
            WalkError::Io(path, source) => Self::Io { doing: "look at", path, source },
        }
    }
}

fn failed(doing: &'static str, path: &impl ToString) -> impl FnOnce(io::Error) -> ApplyError {
    let path = path.to_string();
    move |source| ApplyError::Io { doing, path, source }
}

/// What is to be done to bring a destination to what a manifest says.
#[derive(Debug)]
pub struct Plan {
    base: Dir,
    destination: Option<TreePath>,
    state: Dir,
    key: String,
    manifest: Manifest,
    mode: Mode,
    /// What the ledger will say, if that is something else than it says.
    record: Option<Manifest>,
    begun_place: usize,
    steps: Steps,
    staging: Staging,
    /// The contents that are missing and have not come yet.
    awaited: HashMap<Digest, (u32, u64)>,
}

impl Plan {
    /// Looks at a destination and decides what to do.
    ///
    /// `destination` is relative to `base`; empty, it is `base` itself. `state` is where the ledger is kept, under `ledger_key`. `protect`
    /// is a path below the destination that is never looked at, touched or removed. What a plan that was cut off left is removed.
    ///
    /// # Errors
    /// If something is in the way that may not be replaced: what the ledger knows may be, with [`Mode::MirrorDeletingForeign`] anything
    /// below the destination may; what the destination itself goes through may never. If the manifest names what is protected. If
    /// something can not be read.
    pub fn make(
        base: &Dir,
        destination: &Path,
        state: &Dir,
        ledger_key: &str,
        manifest: Manifest,
        mode: Mode,
        protect: Option<&Path>,
    ) -> Result<Self, ApplyError> {
        let destination = tree_path(destination)?;
        let protect = protect.map(tree_path).transpose()?.flatten();
        let base = tree::reopen(base).map_err(failed("open", &"."))?;
        let state = tree::reopen(state).map_err(failed("open", &"the agent's state"))?;
        let ledger = Ledger::read(&state, ledger_key)?;
        let staged = staging::name(ledger_key);
        let (deepest, exists) = find(&base, destination.as_ref(), &staged)?;
        let walker = if exists { Some(Walker::new(deepest.try_clone().map_err(failed("open", &"."))?)) } else { None };
        let steps = Survey::new(&manifest, mode, &ledger, protect.as_ref(), walker).steps()?;
        let after = if mode == Mode::Push { ledger.with(&manifest)? } else { manifest.clone() };
        let awaited = steps.missing.iter().filter_map(|index| {
            let (digest, size) = manifest.contents().get(*index as usize)?;
            Some((*digest, (*index, *size)))
        });
        Ok(Self {
            awaited: awaited.collect(),
            begun_place: ledger.next_place(&after),
            record: Some(after).filter(|after| ledger.settled() != Some(after)),
            staging: Staging::new(deepest, staged),
            key: ledger_key.to_owned(),
            base,
            destination,
            state,
            manifest,
            mode,
            steps,
        })
    }

    /// The contents that the destination does not have, as indices into [`Manifest::contents`], ascending.
    pub fn missing(&self) -> Vec<u32> {
        self.steps.missing.clone()
    }

    /// Takes missing contents, in any order, into the staging directory.
    pub fn receive(&mut self) -> Receive<'_> {
        Receive::new(self)
    }
}

/// A path below a directory; none for the directory itself.
fn tree_path(path: &Path) -> Result<Option<TreePath>, ApplyError> {
    let mut bytes = Vec::new();
    for component in path.components() {
        let name: &OsStr = match component {
            Component::CurDir => continue,
            other => other.as_os_str(),
        };
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name.as_bytes());
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    let shown = super::path::escape(path.as_os_str().as_bytes());
    TreePath::from_bytes(&bytes).map(Some).map_err(|source| ApplyError::Path { path: shown, source })
}

/// The destination and `true`, or the deepest directory on its way that exists. Clears what a plan that was cut off left on the way: its
/// staging directory is where the deepest directory was at the time.
fn find(base: &Dir, destination: Option<&TreePath>, staged: &str) -> Result<(Dir, bool), ApplyError> {
    let mut dir = base.try_clone().map_err(failed("open", &"."))?;
    staging::clear(&dir, staged).map_err(failed("remove", &staged))?;
    let mut path: Option<TreePath> = None;
    for component in destination.iter().flat_map(|destination| destination.components()) {
        let step = path.as_ref().map_or_else(|| TreePath::from_bytes(component), |path| path.join(component));
        let here = step.map_err(|source| ApplyError::Path { path: super::path::escape(component), source })?;
        match tree::look(&dir, component).map_err(failed("look at", &here))? {
            None => return Ok((dir, false)),
            Some(Seen::Directory(_)) => dir = tree::enter(&dir, component).map_err(failed("open", &here))?,
            Some(seen) => {
                return Err(ApplyError::Conflict { path: here.to_string(), found: seen.name(), wanted: "a directory" });
            }
        }
        staging::clear(&dir, staged).map_err(failed("remove", &staged))?;
        path = Some(here);
    }
    Ok((dir, true))
}
