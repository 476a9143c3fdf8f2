//! Putting in place what was staged. All that can fail for want of room is done before the first change at the destination.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use cap_std::fs::{Dir, MetadataExt as _};
use rustix::fs::{RenameFlags, renameat_with};

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
        let prepared = self.prepare()?;
        if self.is_whole {
            return self.switch_whole(applied, &prepared);
        }
        if !self.is_recorded {
            ledger::begin(&self.trees, &self.key, self.begun_place, &self.after)?;
        }
        let top = self.make_destination(&mut applied)?;
        let walker = Walker::new(top.try_clone().map_err(failed("open", &"the destination"))?);
        let mut put = HashMap::new();
        if !self.steps.is_empty() {
            // Without it the tree before can not be had again, and that is all.
            let keeping = if self.is_recorded { None } else { self.kept.begin(&self.trees, &self.key).ok() };
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
        Ok((applied, Rest { plan: self, walker, put }))
    }

    /// Writes down how all that is Muster's looks now: `put` knows it of what was put, the survey of the rest.
    pub(super) fn write_index(&self, put: &dyn Fn(&TreePath) -> Option<(u64, Stamp)>) {
        let seen = |path: &TreePath| {
            let (size, stamp) = self.steps.unchanged.get(path)?;
            reliable(&Seen::File { mode: 0, size: *size, stamp: *stamp }, self.since)
        };
        let before = |path: &TreePath| self.known.get(path).filter(|_| self.manifest.get(path).is_none()).copied();
        let written = index::write(&self.trees, &self.key, &self.manifest, &self.after, |path| {
            put(path).or_else(|| seen(path)).or_else(|| before(path))
        });
        if written.is_err() {
            // Without it everything is read the next time, which is slow and right.
            index::forget(&self.trees, &self.key);
        }
    }

    /// Opens the destination; makes it, and what it is in.
    pub(super) fn make_destination(&self, applied: &mut Applied) -> Result<Dir, ApplyError> {
        let mut dir = self.base.try_clone().map_err(failed("open", &"."))?;
        let Some(destination) = &self.destination else { return Ok(dir) };
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
}

impl Rest {
    /// Removes what is not wanted any more, and writes down how all looks.
    pub fn finish(mut self) {
        self.plan.kept.prune();
        let put = index::look_again(self.put.iter().map(|(path, look)| (path, *look)), &mut self.walker);
        self.plan.write_index(&|path| put.get(path).copied());
        self.plan.staging.remove();
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

impl Switching {
    fn run(&mut self, plan: &Plan, prepared: &[Prepared]) -> Result<(), ApplyError> {
        for path in &plan.steps.clear {
            self.remove(path, false, None)?;
        }
        for path in &plan.steps.make {
            let made = self.parent(path)?.create_dir(tree::name(path.name()));
            made.map_err(failed("make", path))?;
            self.applied.changed = true;
        }
        for one in prepared {
            let (Some(entry), Some(staging)) = (plan.manifest.entries().get(one.index), plan.staging.existing()) else { continue };
            self.put(entry, staging, &one.name, plan.steps.leaving.get(&entry.path))?;
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
            self.remove(path, plan.rules.mode == Mode::Mirror, plan.steps.leaving.get(path))?;
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

    /// Puts what is staged, and keeps the file that it replaces, if it is known which one that is.
    fn put(&mut self, entry: &Entry, staging: &Dir, name: &str, leaving: Option<&Digest>) -> Result<(), ApplyError> {
        let at = tree::name(entry.path.name());
        let dir = self.parent(&entry.path)?;
        let exchanged = leaving.is_some() && renameat_with(staging, name, dir, at, RenameFlags::EXCHANGE).is_ok();
        if exchanged {
            if let (Some(keeping), Some(digest)) = (&self.keeping, leaving) {
                let _ = staging.rename(name, keeping, digest.to_string());
            }
        } else {
            staging.rename(name, dir, at).map_err(failed("write", &entry.path))?;
        }
        self.applied.changed = true;
        self.applied.files_changed += 1;
        Ok(())
    }

    /// Removes what is at a path; what is gone already is not missed.
    fn remove(&mut self, path: &TreePath, keep_full_directories: bool, leaving: Option<&Digest>) -> Result<(), ApplyError> {
        let Some(seen) = self.walker.look(path).map_err(failed("look at", path))? else { return Ok(()) };
        let (dir, name) = (self.parent(path)?, tree::name(path.name()));
        if let Seen::Directory(_) = seen {
            match dir.remove_dir(name) {
                Err(error) if keep_full_directories && error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
                removed => removed.map_err(failed("remove", path))?,
            }
        } else {
            let dir = dir.try_clone().map_err(failed("open the directory of", path))?;
            let kept = self.keeping.as_ref().zip(leaving).is_some_and(|(to, digest)| dir.rename(name, to, digest.to_string()).is_ok());
            if !kept {
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
