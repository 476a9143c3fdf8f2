//! Looking at a destination and deciding what to do. Changes nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;

use super::staging::PREFIX;
use super::{ApplyError, Mode, failed};
use crate::bits::chunk::Content;
use crate::bits::ledger::{self, Ledger};
use crate::bits::manifest::{Entry, Kind, Manifest};
use crate::bits::path::TreePath;
use crate::bits::scan::Spot;
use crate::bits::tree::{Seen, Stamp, WalkError};
use crate::names::Digest;

/// What is to be done, in this order.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// What is in the way, the deepest first.
    pub(crate) clear: Vec<TreePath>,
    /// Directories to be made, the highest first.
    pub(crate) make: Vec<TreePath>,
    /// Files and symlinks to be put, as indices of the manifest's entries.
    pub(crate) put: Vec<usize>,
    /// Files that only need another mode or time, likewise.
    pub(crate) touch: Vec<usize>,
    /// What is to be removed afterwards, the deepest first.
    pub(crate) stale: Vec<TreePath>,
    /// The modes of directories, set last.
    pub(crate) directory_modes: Vec<(TreePath, u32)>,
    /// Where the destination has a content already.
    pub(crate) sources: HashMap<u32, Spot>,
    /// The contents that it has not, ascending.
    pub(crate) missing: Vec<u32>,
    /// How many files and symlinks are to be removed.
    pub(crate) files_removed: u64,
    /// The digests of files that are to be replaced or removed, where they are known.
    pub(crate) leaving: HashMap<TreePath, Digest>,
    /// How the files look that are as they should be.
    pub(crate) unchanged: HashMap<TreePath, (u64, Stamp)>,
}

impl Steps {
    pub(crate) fn is_empty(&self) -> bool {
        let Self { clear, make, put, touch, stale, directory_modes, .. } = self;
        clear.is_empty() && make.is_empty() && put.is_empty() && touch.is_empty() && stale.is_empty() && directory_modes.is_empty()
    }
}

/// A destination, as it can be looked at.
pub(crate) trait Place {
    /// What is at a path; nothing if something on its way is missing or no directory.
    fn look(&mut self, path: &TreePath) -> io::Result<Option<Seen>>;

    /// Whether a file is the one that an entry of the ledger says, without reading it.
    fn is_left(&mut self, path: &TreePath, size: u64, stamp: Stamp) -> bool;

    /// What a file holds; none if it can not be read.
    fn read(&mut self, path: &TreePath) -> io::Result<Option<Content>>;

    /// Everything below a directory, or below the destination, but what is hidden.
    fn list(&mut self, path: Option<&TreePath>, hidden: Option<&TreePath>) -> Result<Vec<(TreePath, Seen)>, WalkError>;
}

/// A survey of one destination for one manifest.
pub(crate) struct Survey<'a, P> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) mode: Mode,
    pub(crate) ledger: &'a Ledger,
    pub(crate) protect: Option<&'a TreePath>,
    /// How much of what is there may be removed, in percent of its files.
    pub(crate) max_delete_percent: u8,
    /// None if the destination does not exist.
    pub(crate) place: Option<P>,
    pub(crate) steps: Steps,
}

impl<P: Place> Survey<'_, P> {
    pub(crate) fn steps(mut self) -> Result<Steps, ApplyError> {
        let mut implied = BTreeSet::new();
        let mut last: Option<TreePath> = None;
        for entry in self.manifest.entries() {
            self.check_own(entry)?;
            let parent = entry.path.parent();
            if parent != last {
                let above = std::iter::successors(parent.clone(), TreePath::parent);
                implied.extend(above.take_while(|path| !implied.contains(path)).collect::<Vec<_>>());
                last = parent;
            }
        }
        implied.retain(|path| self.manifest.get(path).is_none());
        for path in &implied {
            self.directory(path, None)?;
        }
        for (index, entry) in self.manifest.entries().iter().enumerate() {
            match &entry.kind {
                Kind::Directory => self.directory(&entry.path, Some(entry.mode))?,
                Kind::File { mtime, digest, .. } => self.file(index, entry, *mtime, digest)?,
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
        self.find_sources()?;
        Ok(self.steps)
    }

    /// Says which contents are needed, and finds those that are there in a file of another name.
    fn find_sources(&mut self) -> Result<(), ApplyError> {
        let put = self.steps.put.iter().filter_map(|index| self.manifest.entries().get(*index));
        let mut lacking: BTreeSet<u32> =
            put.flat_map(Entry::contents).filter_map(|(digest, _)| self.manifest.content_index(&digest)).collect();
        lacking.retain(|index| !self.steps.sources.contains_key(index));
        if !lacking.is_empty() {
            let wanted = |entry: &&Entry| {
                let mut indices = entry.contents().filter_map(|(digest, _)| self.manifest.content_index(&digest));
                indices.any(|index| lacking.contains(&index))
            };
            let ledger = self.ledger;
            let elsewhere: Vec<&Entry> = ledger.entries().filter(wanted).collect();
            for entry in elsewhere {
                if let Some(Seen::File { size, stamp, .. }) = self.look(&entry.path)? {
                    self.digest(&entry.path, size, stamp)?;
                }
            }
            lacking.retain(|index| !self.steps.sources.contains_key(index));
        }
        self.steps.missing = lacking.into_iter().collect();
        Ok(())
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
        match &mut self.place {
            Some(place) => place.look(path).map_err(failed("look at", path)),
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

    fn clear(&mut self, path: TreePath, seen: &Seen) {
        self.steps.files_removed += u64::from(!matches!(seen, Seen::Directory(_)));
        self.steps.clear.push(path);
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
                self.clear(path.clone(), &seen);
            }
            None => {}
        }
        self.steps.make.push(path.clone());
        self.steps.directory_modes.extend(mode.map(|mode| (path.clone(), mode)));
        Ok(())
    }

    fn file(&mut self, index: usize, entry: &Entry, mtime: i64, digest: &Digest) -> Result<(), ApplyError> {
        let path = &entry.path;
        match self.look(path)? {
            Some(Seen::File { mode, size, stamp }) => {
                let wanted = entry.contents().map(|(_, size)| size).sum::<u64>();
                // A small file of another size is another file; of a large one it is worth knowing what is in it.
                let may_help = size == wanted || !entry.chunks().is_empty();
                let found = match self.left(path, size, stamp) {
                    // What the ledger says of it is looked through when something is lacking. What is touched may have to be copied.
                    Some(left) if left == *digest && mode == entry.mode && stamp.mtime() == mtime => Some(left),
                    _ if may_help => self.digest(path, size, stamp)?,
                    left => left,
                };
                if let Some(other) = found.filter(|found| found != digest) {
                    self.steps.leaving.insert(path.clone(), other);
                } else if found.is_some() {
                    if mode != entry.mode || stamp.mtime() != mtime {
                        self.steps.touch.push(index);
                    } else {
                        self.steps.unchanged.insert(path.clone(), (size, stamp));
                    }
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
            Some(Seen::File { .. }) | None => {}
            Some(seen) => self.make_way(&entry.path, &seen, "a symlink")?,
        }
        self.steps.put.push(index);
        Ok(())
    }

    /// The digest of a file that is as Muster left it.
    fn left(&mut self, path: &TreePath, size: u64, stamp: Stamp) -> Option<Digest> {
        let entry = self.ledger.left(path)?;
        let is_left = self.place.as_mut()?.is_left(path, size, stamp);
        match entry.kind {
            Kind::File { digest, .. } if is_left => Some(digest),
            _ => None,
        }
    }

    /// The digest of a file, whose contents are remembered as sources; none if it can not be read.
    fn digest(&mut self, path: &TreePath, size: u64, stamp: Stamp) -> Result<Option<Digest>, ApplyError> {
        let Some(place) = &mut self.place else { return Ok(None) };
        let left = self.ledger.left(path).filter(|_| place.is_left(path, size, stamp));
        let content = match left.map(|entry| &entry.kind) {
            Some(Kind::File { size, digest, chunks, .. }) => Content { size: *size, digest: *digest, chunks: chunks.clone() },
            _ => match place.read(path).map_err(failed("read", path))? {
                Some(read) => read,
                None => return Ok(None),
            },
        };
        let mut offset = 0;
        for (digest, size) in content.contents() {
            if let Some(index) = self.manifest.content_index(&digest) {
                self.steps.sources.entry(index).or_insert_with(|| Spot { path: path.clone(), offset, size });
            }
            offset += size;
        }
        Ok(Some(content.digest))
    }

    /// Sees that a file or symlink can be put where something else is. A symlink is replaced by the rename itself.
    fn make_way(&mut self, path: &TreePath, seen: &Seen, wanted: &'static str) -> Result<(), ApplyError> {
        match seen {
            Seen::File { .. } | Seen::Symlink(_) => return Ok(()),
            Seen::Other => return self.may_remove(path, seen, wanted),
            Seen::Directory(_) => {}
        }
        let found = self.list(Some(path))?;
        self.may_remove(path, seen, wanted)?;
        for (below, seen) in found {
            self.may_remove(&below, &seen, wanted)?;
            self.clear(below, &seen);
        }
        self.clear(path.clone(), seen);
        Ok(())
    }

    fn list(&mut self, path: Option<&TreePath>) -> Result<Vec<(TreePath, Seen)>, ApplyError> {
        match &mut self.place {
            Some(place) => Ok(place.list(path, self.protect)?),
            None => Ok(Vec::new()),
        }
    }

    fn stale(&mut self, implied: &BTreeSet<TreePath>) -> Result<(), ApplyError> {
        let manifest = self.manifest;
        let wanted = |path: &TreePath| manifest.get(path).is_some() || implied.contains(path);
        let is_file = |seen: &Seen| u64::from(!matches!(seen, Seen::Directory(_)));
        let (mut there, mut removed, mut looked) = (0, 0, HashSet::new());
        match self.mode {
            Mode::Push => {}
            Mode::Mirror => {
                let ledger = self.ledger;
                for entry in ledger.entries().filter(|entry| looked.insert(&entry.path)) {
                    there += u64::from(entry.kind != Kind::Directory);
                    if !wanted(&entry.path)
                        && let Some(seen) = self.look(&entry.path)?.filter(|seen| ledger::is(entry, seen))
                    {
                        removed += is_file(&seen);
                        if let Seen::File { size, stamp, .. } = seen
                            && let Some(digest) = self.left(&entry.path, size, stamp)
                        {
                            self.steps.leaving.insert(entry.path.clone(), digest);
                        }
                        self.steps.stale.push(entry.path.clone());
                    }
                }
            }
            Mode::MirrorDeletingForeign => {
                let protect = self.protect;
                let above = |path: &TreePath| protect.is_some_and(|protect| protect.is_below(path));
                for (path, seen) in self.list(None)? {
                    there += is_file(&seen);
                    if !wanted(&path) && !above(&path) {
                        removed += is_file(&seen);
                        self.steps.stale.push(path);
                    }
                }
            }
        }
        self.steps.files_removed += removed;
        if removed.saturating_mul(100) > there.saturating_mul(self.max_delete_percent.into()) {
            return Err(ApplyError::TooMany { removed, there, percent: self.max_delete_percent });
        }
        Ok(())
    }
}
