//! Looking at a destination and deciding what to do. Changes nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;

use super::staging::PREFIX;
use super::{ApplyError, Mode, failed};
use crate::bits::ledger::{self, Ledger};
use crate::bits::manifest::{Entry, Kind, Manifest};
use crate::bits::path::TreePath;
use crate::bits::tree::{self, Seen, Walker};
use crate::names::Digest;

/// What is to be done, in this order.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// What is in the way, the deepest first.
    pub(super) clear: Vec<TreePath>,
    /// Directories to be made, the highest first.
    pub(super) make: Vec<TreePath>,
    /// Files and symlinks to be put, as indices of the manifest's entries.
    pub(super) put: Vec<usize>,
    /// Files that only need another mode.
    pub(super) modes: Vec<(TreePath, u32)>,
    /// What is to be removed afterwards, the deepest first.
    pub(super) stale: Vec<TreePath>,
    /// The modes of directories, set last.
    pub(super) directory_modes: Vec<(TreePath, u32)>,
    /// Where the destination has a content already.
    pub(super) sources: HashMap<u32, TreePath>,
    /// The contents that it has not, ascending.
    pub(super) missing: Vec<u32>,
}

impl Steps {
    pub(super) fn is_empty(&self) -> bool {
        let Self { clear, make, put, modes, stale, directory_modes, sources: _, missing: _ } = self;
        clear.is_empty() && make.is_empty() && put.is_empty() && modes.is_empty() && stale.is_empty() && directory_modes.is_empty()
    }
}

pub(super) struct Survey<'a> {
    manifest: &'a Manifest,
    mode: Mode,
    ledger: &'a Ledger,
    protect: Option<&'a TreePath>,
    /// None if the destination does not exist.
    walker: Option<Walker>,
    indices: HashMap<Digest, u32>,
    sizes: HashSet<u64>,
    steps: Steps,
}

impl<'a> Survey<'a> {
    pub(super) fn new(
        manifest: &'a Manifest,
        mode: Mode,
        ledger: &'a Ledger,
        protect: Option<&'a TreePath>,
        walker: Option<Walker>,
    ) -> Self {
        let indices = manifest.contents().iter().map(|(digest, _)| *digest).zip(0..).collect();
        let sizes = manifest.contents().iter().map(|(_, size)| *size).collect();
        Self { manifest, mode, ledger, protect, walker, indices, sizes, steps: Steps::default() }
    }

    pub(super) fn steps(mut self) -> Result<Steps, ApplyError> {
        let mut implied = BTreeSet::new();
        for entry in self.manifest.entries() {
            self.check_own(entry)?;
            let above = std::iter::successors(entry.path.parent(), TreePath::parent);
            implied.extend(above.take_while(|path| !implied.contains(path)).collect::<Vec<_>>());
        }
        implied.retain(|path| self.manifest.get(path).is_none());
        for path in &implied {
            self.directory(path, None)?;
        }
        for (index, entry) in self.manifest.entries().iter().enumerate() {
            match &entry.kind {
                Kind::Directory => self.directory(&entry.path, Some(entry.mode))?,
                Kind::File { digest, .. } => self.file(index, entry, digest)?,
                Kind::Symlink { target } => self.symlink(index, entry, target)?,
            }
        }
        self.stale(&implied)?;
        self.steps.make.sort();
        for paths in [&mut self.steps.clear, &mut self.steps.stale] {
            paths.sort_by(|one, other| other.cmp(one));
            paths.dedup();
        }
        self.steps.directory_modes.sort_by(|one, other| other.cmp(one));
        let needed: BTreeSet<u32> = self.steps.put.iter().filter_map(|index| self.content(*index)).collect();
        self.steps.missing = needed.into_iter().filter(|content| !self.steps.sources.contains_key(content)).collect();
        Ok(self.steps)
    }

    fn content(&self, entry: usize) -> Option<u32> {
        match self.manifest.entries().get(entry)?.kind {
            Kind::File { digest, .. } => self.indices.get(&digest).copied(),
            _ => None,
        }
    }

    fn check_own(&self, entry: &Entry) -> Result<(), ApplyError> {
        let path = &entry.path;
        let staging = path.as_bytes().starts_with(PREFIX.as_bytes());
        let protected = self
            .protect
            .is_some_and(|protect| path == protect || path.is_below(protect) || (entry.kind != Kind::Directory && protect.is_below(path)));
        if staging || protected { Err(ApplyError::Own(path.to_string())) } else { Ok(()) }
    }

    fn look(&mut self, path: &TreePath) -> Result<Option<Seen>, ApplyError> {
        match &mut self.walker {
            Some(walker) => walker.look(path).map_err(failed("look at", path)),
            None => Ok(None),
        }
    }

    /// Whether what is at a path may be taken away, with what the bundle wants in its place.
    fn may_remove(&self, path: &TreePath, seen: &Seen, wanted: &'static str) -> Result<(), ApplyError> {
        if self.mode == Mode::MirrorDeletingForeign || self.ledger.put(path, seen) {
            return Ok(());
        }
        Err(ApplyError::Conflict { path: path.to_string(), found: seen.name(), wanted })
    }

    fn directory(&mut self, path: &TreePath, mode: Option<u32>) -> Result<(), ApplyError> {
        match self.look(path)? {
            Some(Seen::Directory(before)) => {
                if let Some(mode) = mode.filter(|mode| *mode != before & 0o777) {
                    self.steps.directory_modes.push((path.clone(), mode));
                }
                return Ok(());
            }
            Some(seen) => {
                self.may_remove(path, &seen, "a directory")?;
                self.steps.clear.push(path.clone());
            }
            None => {}
        }
        self.steps.make.push(path.clone());
        self.steps.directory_modes.extend(mode.map(|mode| (path.clone(), mode)));
        Ok(())
    }

    fn file(&mut self, index: usize, entry: &Entry, digest: &Digest) -> Result<(), ApplyError> {
        let path = &entry.path;
        match self.look(path)? {
            Some(Seen::File(mode, size)) => {
                // What has no wanted size has no wanted content, and is not read.
                let same = self.sizes.contains(&size) && self.hash(path)? == Some(*digest);
                if same && mode != entry.mode {
                    self.steps.modes.push((path.clone(), entry.mode));
                }
                if same {
                    return Ok(());
                }
            }
            Some(seen) => self.make_way(path, &seen, "a file")?,
            None => {}
        }
        self.steps.put.push(index);
        Ok(())
    }

    fn symlink(&mut self, index: usize, entry: &Entry, target: &[u8]) -> Result<(), ApplyError> {
        match self.look(&entry.path)? {
            Some(Seen::Symlink(before)) if *before == *target => return Ok(()),
            Some(Seen::File(_, size)) if self.sizes.contains(&size) => {
                self.hash(&entry.path)?;
            }
            Some(Seen::File(..)) | None => {}
            Some(seen) => self.make_way(&entry.path, &seen, "a symlink")?,
        }
        self.steps.put.push(index);
        Ok(())
    }

    /// The digest of a file, which is remembered as a place of its content; none if it can not be read.
    fn hash(&mut self, path: &TreePath) -> Result<Option<Digest>, ApplyError> {
        let Some(walker) = &mut self.walker else { return Ok(None) };
        let mut read = || {
            let parent = walker.directory(path.parent().as_ref())?.ok_or(io::ErrorKind::NotFound)?;
            tree::hash(&mut tree::open_file(parent, path.name())?)
        };
        match read() {
            Ok((digest, _)) => {
                if let Some(content) = self.indices.get(&digest) {
                    self.steps.sources.entry(*content).or_insert_with(|| path.clone());
                }
                Ok(Some(digest))
            }
            // It can still be replaced, if its directory can be written.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(failed("read", path)(error)),
        }
    }

    /// Sees that a file or symlink can be put where something else is. A symlink is replaced by the rename itself.
    fn make_way(&mut self, path: &TreePath, seen: &Seen, wanted: &'static str) -> Result<(), ApplyError> {
        match seen {
            Seen::File(..) | Seen::Symlink(_) => return Ok(()),
            Seen::Other => return self.may_remove(path, seen, wanted),
            Seen::Directory(_) => {}
        }
        let found = self.list(Some(path))?;
        self.may_remove(path, seen, wanted)?;
        for (below, seen) in found {
            self.may_remove(&below, &seen, wanted)?;
            self.steps.clear.push(below);
        }
        self.steps.clear.push(path.clone());
        Ok(())
    }

    /// Everything below a directory, or below the destination, but what is protected.
    fn list(&mut self, path: Option<&TreePath>) -> Result<Vec<(TreePath, Seen)>, ApplyError> {
        let mut found = Vec::new();
        let shown = path.map_or_else(|| ".".to_owned(), TreePath::to_string);
        let Some(walker) = &mut self.walker else { return Ok(found) };
        if let Some(dir) = walker.directory(path).map_err(failed("open", &shown))? {
            tree::walk(dir, path, &mut |_, below, seen| -> Result<bool, ApplyError> {
                let visible = self.protect != Some(below);
                if visible {
                    found.push((below.clone(), seen));
                }
                Ok(visible)
            })?;
        }
        Ok(found)
    }

    fn stale(&mut self, implied: &BTreeSet<TreePath>) -> Result<(), ApplyError> {
        let manifest = self.manifest;
        let wanted = |path: &TreePath| manifest.get(path).is_some() || implied.contains(path);
        match self.mode {
            Mode::Push => {}
            Mode::Mirror => {
                let ledger = self.ledger;
                for entry in ledger.entries().filter(|entry| !wanted(&entry.path)) {
                    if self.look(&entry.path)?.is_some_and(|seen| ledger::is(entry, &seen)) {
                        self.steps.stale.push(entry.path.clone());
                    }
                }
            }
            Mode::MirrorDeletingForeign => {
                let protect = self.protect;
                let above = |path: &TreePath| protect.is_some_and(|protect| protect.is_below(path));
                let found = self.list(None)?;
                self.steps.stale.extend(found.into_iter().map(|(path, _)| path).filter(|path| !wanted(path) && !above(path)));
            }
        }
        Ok(())
    }
}
