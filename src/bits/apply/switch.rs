//! Putting in place what was staged. All that can fail for want of room is done before the first change at the destination.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, Read as _, Write as _};

use cap_std::fs::{Dir, File, MetadataExt as _, Permissions, PermissionsExt as _};
use sha2::{Digest as _, Sha256};

use super::staging::{content_name, create};
use super::{Applied, ApplyError, Mode, Plan, failed};
use crate::bits::ledger;
use crate::bits::manifest::{Entry, Kind};
use crate::bits::path::TreePath;
use crate::bits::tree::{self, Seen, Walker};
use crate::limits::SYNC_FILES_MAX;
use crate::names::Digest;

impl Plan {
    /// Brings the destination to what the manifest says, and writes that into the ledger.
    ///
    /// # Errors
    /// If contents are missing: then nothing is changed. If the file system refuses: before the first change nothing is changed, and after
    /// it the same call with a new plan goes on where this one ended.
    pub fn switch(mut self) -> Result<Applied, ApplyError> {
        if !self.awaited.is_empty() {
            return Err(ApplyError::Missing(self.awaited.len()));
        }
        let mut applied = Applied { files: self.manifest.files(), bytes: self.manifest.bytes(), ..Applied::default() };
        let prepared = self.prepare()?;
        if let Some(manifest) = &self.record {
            ledger::begin(&self.state, &self.key, self.begun_place, manifest)?;
        }
        let top = self.make_destination(&mut applied)?;
        if !self.steps.is_empty() {
            let staging = if prepared.is_empty() { None } else { Some(self.staging.open()?) };
            let mut switching = Switching { walker: Walker::new(top), loosened: BTreeMap::new(), touched: BTreeSet::new(), applied };
            let switched = switching.run(&self, staging.as_ref(), &prepared);
            let synced = switching.sync();
            switching.restore();
            switched.and(synced)?;
            switching.directory_modes(&self)?;
            applied = switching.applied;
        }
        if self.record.is_some() {
            ledger::settle(&self.state, &self.key, self.begun_place)?;
        }
        Ok(applied)
    }

    /// Makes every file and symlink that is to be put ready in the staging directory: content, mode, durable. Answers their names there.
    fn prepare(&mut self) -> Result<Vec<(usize, String)>, ApplyError> {
        if self.steps.put.is_empty() {
            return Ok(Vec::new());
        }
        let staging = self.staging.open()?;
        let mut walker = self.existing()?;
        let (mut prepared, mut used) = (Vec::new(), HashSet::new());
        let contents: BTreeMap<Digest, u32> = self.manifest.contents().iter().map(|(digest, _)| *digest).zip(0..).collect();
        let each = self.steps.put.len() <= SYNC_FILES_MAX;
        // Copies are made before modes are set: a first file may be one that even its owner can not read.
        for index in &self.steps.put {
            let Some(entry) = self.manifest.entries().get(*index) else { continue };
            let failed = |doing| failed(doing, &entry.path);
            let mut name = format!("f{index}");
            match &entry.kind {
                Kind::Directory => continue,
                Kind::Symlink { target } => staging.symlink_contents(tree::name(target), &name).map_err(failed("stage"))?,
                Kind::File { digest, size } => {
                    let Some(content) = contents.get(digest) else { continue };
                    match self.steps.sources.get(content) {
                        None if used.insert(*content) => name = content_name(*content),
                        None => {
                            let from = tree::open_file(&staging, content_name(*content).as_bytes());
                            copy(from, create(&staging, &name), (*digest, *size)).map_err(failed("stage"))?;
                        }
                        Some(source) => {
                            let from = open(&mut walker, source);
                            match copy(from, create(&staging, &name), (*digest, *size)) {
                                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                                    return Err(ApplyError::Changed(source.to_string()));
                                }
                                copied => copied.map_err(failed("stage"))?,
                            }
                        }
                    }
                }
            }
            prepared.push((*index, name));
        }
        for (index, name) in &prepared {
            let Some(entry) = self.manifest.entries().get(*index).filter(|entry| matches!(entry.kind, Kind::File { .. })) else { continue };
            let finish = || {
                let file = tree::open_file(&staging, name.as_bytes())?;
                file.set_permissions(Permissions::from_mode(entry.mode))?;
                if each { file.sync_all() } else { Ok(()) }
            };
            finish().map_err(failed("stage", &entry.path))?;
        }
        if !each {
            sync_all(&staging, prepared.iter().map(|(_, name)| name.as_str())).map_err(failed("stage", &"the bundle"))?;
        }
        Ok(prepared)
    }

    /// A walker of the destination, if it exists.
    fn existing(&self) -> Result<Option<Walker>, ApplyError> {
        let mut walker = Walker::new(self.base.try_clone().map_err(failed("open", &"."))?);
        let top = walker.directory(self.destination.as_ref()).and_then(|dir| dir.map(Dir::try_clone).transpose());
        Ok(top.map_err(failed("open", &"the destination"))?.map(Walker::new))
    }

    /// Opens the destination; makes it, and what it is in.
    fn make_destination(&self, applied: &mut Applied) -> Result<Dir, ApplyError> {
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

fn open(walker: &mut Option<Walker>, path: &TreePath) -> io::Result<File> {
    let walker = walker.as_mut().ok_or(io::ErrorKind::NotFound)?;
    let parent = walker.directory(path.parent().as_ref())?.ok_or(io::ErrorKind::NotFound)?;
    tree::open_file(parent, path.name())
}

/// Copies a file whose content is known; anything else is [`io::ErrorKind::InvalidData`].
fn copy(from: io::Result<File>, to: io::Result<File>, (digest, size): (Digest, u64)) -> io::Result<()> {
    let (from, mut to, mut hasher) = (from?, to?, Sha256::new());
    let (mut from, mut buffer) = (from.take(size.saturating_add(1)), vec![0; 128 * 1024]);
    loop {
        let count = from.read(&mut buffer)?;
        match buffer.get(..count) {
            None | Some([]) => break,
            Some(piece) => {
                hasher.update(piece);
                to.write_all(piece)?;
            }
        }
    }
    if Digest::finish(hasher) == digest { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Makes many files of a directory durable: one call for the whole file system is far cheaper than one for each.
#[cfg(target_os = "linux")]
fn sync_all<'a>(dir: &Dir, _: impl Iterator<Item = &'a str>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(dir)?)
}

#[cfg(not(target_os = "linux"))]
fn sync_all<'a>(dir: &Dir, mut names: impl Iterator<Item = &'a str>) -> io::Result<()> {
    names.try_for_each(|name| match tree::look(dir, name.as_bytes())? {
        Some(Seen::File(..)) => tree::open_file(dir, name.as_bytes())?.sync_all(),
        _ => Ok(()),
    })
}

/// The destination while it is being changed.
struct Switching {
    walker: Walker,
    /// Directories that had to be made writable, with the modes that they had.
    loosened: BTreeMap<Option<TreePath>, u32>,
    /// Directories in which something changed.
    touched: BTreeSet<Option<TreePath>>,
    applied: Applied,
}

impl Switching {
    fn run(&mut self, plan: &Plan, staging: Option<&Dir>, prepared: &[(usize, String)]) -> Result<(), ApplyError> {
        for path in &plan.steps.clear {
            self.remove(path, false)?;
        }
        for path in &plan.steps.make {
            let made = self.parent(path)?.create_dir(tree::name(path.name()));
            made.map_err(failed("make", path))?;
            self.applied.changed = true;
        }
        for (index, name) in prepared {
            let (Some(entry), Some(staging)) = (plan.manifest.entries().get(*index), staging) else { continue };
            self.put(entry, staging, name)?;
        }
        for (path, mode) in &plan.steps.modes {
            let file = self.parent(path).and_then(|dir| tree::open_file(dir, path.name()).map_err(failed("open", path)))?;
            file.set_permissions(Permissions::from_mode(*mode)).map_err(failed("set the mode of", path))?;
            self.applied.changed = true;
            self.applied.files_changed += 1;
        }
        for path in &plan.steps.stale {
            self.remove(path, plan.mode == Mode::Mirror)?;
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

    fn put(&mut self, entry: &Entry, staging: &Dir, name: &str) -> Result<(), ApplyError> {
        let put = staging.rename(name, self.parent(&entry.path)?, tree::name(entry.path.name()));
        put.map_err(failed("write", &entry.path))?;
        self.applied.changed = true;
        self.applied.files_changed += 1;
        Ok(())
    }

    /// Removes what is at a path; what is gone already is not missed.
    fn remove(&mut self, path: &TreePath, keep_full_directories: bool) -> Result<(), ApplyError> {
        let Some(seen) = self.walker.look(path).map_err(failed("look at", path))? else { return Ok(()) };
        let (dir, name) = (self.parent(path)?, tree::name(path.name()));
        if let Seen::Directory(_) = seen {
            match dir.remove_dir(name) {
                Err(error) if keep_full_directories && error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
                removed => removed.map_err(failed("remove", path))?,
            }
        } else {
            dir.remove_file(name).map_err(failed("remove", path))?;
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

fn set_mode(dir: &Dir, mode: u32) -> io::Result<()> {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    dir.try_clone()?.into_std_file().set_permissions(permissions)
}
