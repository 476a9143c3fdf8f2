//! Putting in place what was staged. All that can fail for want of room is done before the first change at the destination.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::Path;

use cap_std::fs::{Dir, MetadataExt as _};
use rustix::fs::{RenameFlags, renameat_with};

use super::kept::take_in;
use super::prepare::Prepared;
use super::staging::{dress, file_of};
use super::{Applied, ApplyError, Mode, Plan, failed};
use crate::bits::index::{self, reliable};
use crate::bits::ledger;
use crate::bits::manifest::Entry;
use crate::bits::path::TreePath;
use crate::bits::tree::{self, Seen, Stamp, Walker};
use crate::limits::SYNC_FILES_MAX;
use crate::names::Digest;

impl Plan {
    /// Brings the destination to what the manifest says, and writes that into the ledger.
    ///
    /// # Errors
    /// If contents are missing: then nothing is changed. If the file system refuses: before the first change nothing is changed, and after
    /// it the same call with a new plan goes on where this one ended.
    pub fn switch(self) -> Result<Applied, ApplyError> {
        let (applied, rest) = self.switch_first()?;
        rest.finish();
        Ok(applied)
    }

    /// As [`switch`](Self::switch), but what makes nothing right or wrong is left for afterwards: it is for who waits no longer.
    ///
    /// # Errors
    /// As [`switch`](Self::switch).
    pub fn switch_first(mut self) -> Result<(Applied, Rest), ApplyError> {
        let missing = self.taken().awaited.len();
        if missing > 0 {
            return Err(ApplyError::Missing(missing));
        }
        let mut applied = Applied { files: self.manifest.files(), bytes: self.manifest.bytes(), ..Applied::default() };
        let mut prepared = self.prepare()?;
        let whole = self.whole.clone();
        let built = if whole.is_some() { self.build(&prepared)? } else { None };
        if !self.is_recorded {
            self.write_down()?;
            if let Some(written) = self.begun.take() {
                ledger::begin(&self.trees, &self.key, self.begun_place, &written)?;
            }
        }
        if let Some(destination) = whole {
            if let Some(put) = built
                && let Some(walker) = self.switch_whole(&destination, &mut applied)?
            {
                let keeping = self.begin_keeping();
                if !self.is_recorded {
                    ledger::settle(&self.trees, &self.key, self.begun_place)?;
                }
                return Ok((applied, Rest { plan: self, walker, put, keeping }));
            }
            prepared = self.take_apart(prepared)?;
        }
        let top = self.make(self.destination.as_ref(), &mut applied)?;
        let walker = Walker::new(top.try_clone().map_err(failed("open", &"the destination"))?);
        let mut put = HashMap::new();
        if !self.steps.is_empty() {
            let keeping = self.begin_keeping();
            index::forget(&self.trees, &self.key);
            let mut switching =
                Switching { walker: Walker::new(top), loosened: BTreeMap::new(), touched: BTreeSet::new(), keeping, applied };
            let switched = switching.run(&self, &prepared);
            let synced = switching.sync();
            switching.restore();
            switched.and(synced)?;
            switching.directory_modes(&self)?;
            applied = switching.applied;
            let staged = prepared.iter().filter_map(|one| Some((self.manifest.entries().get(one.index)?.path.clone(), one.stamp?)));
            put = staged.collect();
        }
        if !self.is_recorded {
            ledger::settle(&self.trees, &self.key, self.begun_place)?;
        }
        Ok((applied, Rest { plan: self, walker, put, keeping: None }))
    }

    /// Begins to keep what is at the destination, if it is about to be another tree. Without that the one before can not be had again, and
    /// that is all.
    fn begin_keeping(&mut self) -> Option<Dir> {
        if self.is_recorded { None } else { self.kept.begin(&self.trees, &self.key, self.ledger.last_settled()).ok() }
    }

    /// Writes down how all that is Muster's looks now: `put` knows it of what was put, the survey of the rest.
    pub(super) fn write_index(&self, put: &dyn Fn(&TreePath) -> Option<(u64, Stamp)>) {
        let seen = |path: &TreePath| {
            let (size, stamp) = self.steps.unchanged.get(path)?;
            reliable(&Seen::File { mode: 0, size: *size, stamp: *stamp }, self.since)
        };
        let before = |path: &TreePath| self.known.get(path).filter(|_| self.manifest.get(path).is_none()).copied();
        let written = index::write(&self.trees, &self.key, &self.manifest, self.after(), |path| {
            put(path).or_else(|| seen(path)).or_else(|| before(path))
        });
        if written.is_err() {
            // Without it everything is read the next time, which is slow and right.
            index::forget(&self.trees, &self.key);
        }
    }

    /// Opens the destination, or what it is in; makes it, and what that is in.
    pub(super) fn make(&self, destination: Option<&TreePath>, applied: &mut Applied) -> Result<Dir, ApplyError> {
        let mut dir = self.base.try_clone().map_err(failed("open", &"."))?;
        let Some(destination) = destination else { return Ok(dir) };
        for component in destination.components() {
            match dir.create_dir(tree::name(component)) {
                Ok(()) => {
                    applied.changed = true;
                    rustix::fs::fsync(&dir).map_err(|error| failed("make", destination)(error.into()))?;
                }
                // It may be one that could not be made in a directory that is not the agent's, and is there.
                Err(_) if matches!(tree::look(&dir, component), Ok(Some(Seen::Directory(_)))) => {}
                Err(error) => return Err(failed("make", destination)(error)),
            }
            dir = tree::enter(&dir, component).map_err(failed("open", destination))?;
        }
        Ok(dir)
    }
}

/// What is left to do when a destination has become what it was to be. Not done, the next apply is slower, and does it.
pub struct Rest {
    pub(super) plan: Plan,
    /// Of the destination.
    pub(super) walker: Walker,
    /// How the files looked that were put.
    pub(super) put: HashMap<TreePath, (u64, Stamp)>,
    /// Where the tree is kept that was switched out.
    pub(super) keeping: Option<Dir>,
}

impl Rest {
    /// Removes what is not wanted any more, and writes down how all looks.
    pub fn finish(mut self) {
        if let Err(error) = self.plan.take_down(&mut self.walker, self.keeping.as_ref()) {
            let key = &self.plan.key;
            tracing::warn!(sync.destination = key, ?error, "the old tree of `{key}` can not be taken down; the next sync tries again");
        }
        self.plan.kept.prune();
        // Before it is looked at again: a file that was in both trees is changed by losing a name.
        self.plan.staging.remove();
        let put = index::look_again(self.put.iter().map(|(path, look)| (path, *look)), &mut self.walker);
        self.plan.write_index(&|path| put.get(path).copied());
    }
}

/// The destination while it is being changed.
struct Switching {
    walker: Walker,
    /// Directories that had to be made writable, with the modes that they had.
    loosened: BTreeMap<Option<TreePath>, u32>,
    /// Directories in which something changed.
    touched: BTreeSet<Option<TreePath>>,
    /// Where what leaves is kept.
    keeping: Option<Dir>,
    applied: Applied,
}

/// What is known of a file that leaves.
enum Leaving {
    /// It holds this.
    Known(Digest),
    /// If nobody changed it, it has this size and holds this.
    Perhaps(u64, Digest),
    /// It is not of the tree that leaves.
    Other,
}

impl Plan {
    fn leaving(&self, path: &TreePath) -> Leaving {
        let before = || self.ledger.last_settled()?.get(path).and_then(file_of);
        match (self.steps.leaving.get(path), before()) {
            (Some(digest), _) => Leaving::Known(*digest),
            (None, Some((size, _, digest))) => Leaving::Perhaps(size, digest),
            (None, None) => Leaving::Other,
        }
    }
}

impl Switching {
    fn run(&mut self, plan: &Plan, prepared: &[Prepared]) -> Result<(), ApplyError> {
        for path in &plan.steps.clear {
            self.remove(path, false, &plan.leaving(path))?;
        }
        for path in &plan.steps.make {
            let made = self.parent(path)?.create_dir(tree::name(path.name()));
            made.map_err(failed("make", path))?;
            self.applied.changed = true;
        }
        for one in prepared {
            let (Some(entry), Some(staging)) = (plan.manifest.entries().get(one.index), plan.staging.existing()) else { continue };
            self.put(entry, staging, &one.name, &plan.leaving(&entry.path))?;
        }
        for entry in plan.steps.touch.iter().filter_map(|index| plan.manifest.entries().get(*index)) {
            let path = &entry.path;
            let Some((_, mtime, _)) = file_of(entry) else { continue };
            let dir = self.parent(path)?;
            let file = tree::open_file(dir, path.name()).map_err(failed("open", path))?;
            dress(&file, entry.mode, mtime).map_err(failed("set mode and time of", path))?;
            self.applied.changed = true;
            self.applied.files_changed += 1;
        }
        for path in &plan.steps.stale {
            self.remove(path, plan.rules.mode == Mode::Mirror, &plan.leaving(path))?;
        }
        Ok(())
    }

    /// The directory that a path is in, writable.
    fn parent(&mut self, path: &TreePath) -> Result<&Dir, ApplyError> {
        let parent = path.parent();
        let is_new = self.touched.insert(parent.clone());
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let failed = failed("open the directory of", path);
        let open = self.walker.directory(parent.as_ref()).and_then(|dir| dir.ok_or_else(missing));
        let dir = match open {
            Ok(dir) => dir,
            Err(error) => return Err(failed(error)),
        };
        if is_new && let Ok(mode) = dir.dir_metadata().map(|metadata| metadata.mode() & 0o7777)
            && mode & 0o300 != 0o300
            // If it can not be, then what is to be done in it says why not.
            && set_mode(dir, mode | 0o700).is_ok()
        {
            self.loosened.insert(parent, mode);
        }
        Ok(dir)
    }

    /// Puts what is staged, and keeps the file that it replaces.
    fn put(&mut self, entry: &Entry, staging: &Dir, name: &str, leaving: &Leaving) -> Result<(), ApplyError> {
        let at = tree::name(entry.path.name());
        let dir = self.parent(&entry.path)?;
        let is_file = || matches!(tree::look(dir, entry.path.name()), Ok(Some(Seen::File { .. })));
        let exchanged =
            !matches!(leaving, Leaving::Other) && is_file() && renameat_with(staging, name, dir, at, RenameFlags::EXCHANGE).is_ok();
        if exchanged {
            self.keep(staging, tree::name(name.as_bytes()), leaving);
        } else {
            staging.rename(name, dir, at).map_err(failed("write", &entry.path))?;
        }
        self.applied.changed = true;
        self.applied.files_changed += 1;
        Ok(())
    }

    /// Keeps a file that leaves, and answers whether it is there no more.
    fn keep(&self, dir: &Dir, name: &Path, leaving: &Leaving) -> bool {
        let Some(keeping) = &self.keeping else { return false };
        let (digest, is_it) = match leaving {
            Leaving::Known(digest) => (digest, true),
            // It is about to be lost: so it is read now.
            Leaving::Perhaps(size, digest) => {
                let bytes = name.as_os_str().as_encoded_bytes();
                let has_size = matches!(tree::look(dir, bytes), Ok(Some(Seen::File { size: there, .. })) if there == *size);
                (digest, has_size && tree::holds(dir, bytes, digest))
            }
            Leaving::Other => return false,
        };
        is_it && take_in(keeping, dir, name, digest).is_ok()
    }

    /// Removes what is at a path; what is gone already is not missed.
    fn remove(&mut self, path: &TreePath, keep_full_directories: bool, leaving: &Leaving) -> Result<(), ApplyError> {
        let Some(seen) = self.walker.look(path).map_err(failed("look at", path))? else { return Ok(()) };
        let (dir, name) = (self.parent(path)?, tree::name(path.name()));
        if let Seen::Directory(_) = seen {
            match dir.remove_dir(name) {
                Err(error) if keep_full_directories && error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
                removed => removed.map_err(failed("remove", path))?,
            }
        } else {
            let dir = dir.try_clone().map_err(failed("open the directory of", path))?;
            if !matches!(seen, Seen::File { .. }) || !self.keep(&dir, name, leaving) {
                dir.remove_file(name).map_err(failed("remove", path))?;
            }
            self.applied.files_removed += 1;
        }
        self.applied.changed = true;
        Ok(())
    }

    /// Gives directories that were made writable their modes back, as far as it can.
    fn restore(&mut self) {
        for (path, mode) in std::mem::take(&mut self.loosened).into_iter().rev() {
            if let Ok(Some(dir)) = self.walker.directory(path.as_ref()) {
                let _ = set_mode(dir, mode);
            }
        }
    }

    fn directory_modes(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        for (path, mode) in &plan.steps.directory_modes {
            let failed = failed("set the mode of", path);
            let set = self.walker.directory(Some(path)).and_then(|dir| {
                let dir = dir.ok_or(io::ErrorKind::NotFound)?;
                // A manifest knows no sticky or group-inheriting directories, so those bits stay as somebody set them.
                let before = dir.dir_metadata()?.mode();
                set_mode(dir, before & 0o7000 | mode)?;
                Ok(before & 0o777 != *mode)
            });
            self.applied.changed |= set.map_err(failed)?;
        }
        Ok(())
    }

    /// Makes the renames durable.
    fn sync(&mut self) -> Result<(), ApplyError> {
        #[cfg(target_os = "linux")]
        if self.touched.len() > SYNC_FILES_MAX {
            let top = self.walker.directory(None).and_then(|dir| dir.map_or(Ok(()), |dir| Ok(rustix::fs::syncfs(dir)?)));
            return top.map_err(failed("sync", &"the destination"));
        }
        for path in std::mem::take(&mut self.touched) {
            let synced = self.walker.directory(path.as_ref()).and_then(|dir| dir.map_or(Ok(()), |dir| Ok(rustix::fs::fsync(dir)?)));
            synced.map_err(failed("sync", &path.map_or_else(|| ".".to_owned(), |path| path.to_string())))?;
        }
        Ok(())
    }
}

pub(super) fn set_mode(dir: &Dir, mode: u32) -> io::Result<()> {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    dir.try_clone()?.into_std_file().set_permissions(permissions)
}
