//! Where contents wait until all are there.
//!
//! The staging directory is in the agent's state if renames from there to the destination are sure to work: it is the same mount. If not,
//! it is in the destination itself, or, if that does not exist yet, where it is going to be made. What is in it stays when an apply is cut
//! off, and the next one goes on from there. A small file of a tree that is put together anew is written to its place in that at once.
//! Where others could have made it, one that is not the agent's alone is refused: what is in it would be put in place.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::path::Path;

use cap_std::fs::{
    Dir, DirBuilder, DirBuilderExt as _, File, FileExt as _, MetadataExt as _, OpenOptions, OpenOptionsExt as _, Permissions,
    PermissionsExt as _,
};
use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, futimens};

use super::{ApplyError, failed};
use crate::bits::manifest::{Entry, Kind, Manifest};
use crate::bits::path::TreePath;
use crate::bits::tree::{self, Seen, Walker};
use crate::names::Digest;

/// How the name of a staging directory beside or in a destination begins.
pub(super) const PREFIX: &str = ".muster-staging-";
/// Where staging directories are, below the state.
const PLACE: &str = "staging";
/// The tree that is being put together, in a staging directory.
pub(super) const TREE: &str = "tree";
/// The tree that was switched out. What others put into it is nowhere else, so it is never removed unseen.
pub(super) const OLD: &str = "old";

/// The name of a destination's staging directory: always the same, so that one that was left is found, and nobody else's is taken for it.
pub(super) fn name(key: &str) -> String {
    format!("{PREFIX}{}", Digest::of(key.as_bytes()).short())
}

/// Removes what is at a name, with all that is in it, though a directory be one that its owner may not write to.
pub(super) fn clear(place: &Dir, name: &str) -> io::Result<()> {
    match tree::look(place, name.as_bytes())? {
        None => Ok(()),
        Some(Seen::Directory(_)) => match place.remove_dir_all(name) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                loosen_all(place, Path::new(name));
                place.remove_dir_all(name)
            }
            removed => removed,
        },
        Some(_) => place.remove_file(name),
    }
}

/// Lets its owner do everything with a directory of this mode. What hinders that says so when something is done in it.
pub(super) fn loosen(place: &Dir, name: &Path, mode: u32) {
    if mode & 0o700 != 0o700 {
        let _ = place.set_permissions(name, Permissions::from_mode(mode | 0o700));
    }
}

/// As [`loosen`], with all directories below it too.
pub(super) fn loosen_all(place: &Dir, at: &Path) {
    let name = at.as_os_str().as_encoded_bytes();
    let Ok(Some(Seen::Directory(mode))) = tree::look(place, name) else { return };
    loosen(place, at, mode);
    let Ok(dir) = tree::enter(place, name) else { return };
    let Ok(entries) = dir.entries() else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        loosen_all(&dir, Path::new(&entry.file_name()));
    }
}

/// Whether files can be renamed from one directory to the other: they are of one mount. What can not be told counts as no.
pub(super) fn same_mount(one: &Dir, other: &Dir) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{AtFlags, StatxFlags, statx};
        let mount = |dir: &Dir| {
            let found = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
            (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some((found.stx_mnt_id, found.stx_dev_major, found.stx_dev_minor))
        };
        mount(one).is_some_and(|mounted| mount(other) == Some(mounted))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (one, other);
        false
    }
}

/// Opens a directory of a name, and makes it if it is not there, readable by nobody else.
pub(super) fn make(place: &Dir, name: &str) -> io::Result<Dir> {
    match place.create_dir_with(name, DirBuilder::new().mode(0o700)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    tree::enter(place, name.as_bytes())
}

/// The name of a received content.
pub(super) fn content_name(digest: &Digest) -> String {
    format!("c{digest}")
}

/// The name of a large file that is put together from its chunks.
pub(super) fn file_name(digest: &Digest) -> String {
    format!("b{digest}")
}

/// The name of what an entry's content is received as.
pub(super) fn received_name(entry: &Entry, digest: &Digest) -> String {
    if entry.chunks().is_empty() { content_name(digest) } else { file_name(digest) }
}

/// A staging directory, made when it is first needed.
#[derive(Debug)]
pub(super) struct Staging {
    place: Dir,
    name: String,
    /// Its path, for an error's text.
    shown: String,
    dir: Option<Dir>,
    /// Whether it is in the agent's state.
    pub(super) is_apart: bool,
}

impl Staging {
    /// The staging directory of a destination; `deepest` is the destination, or what is there of the way to it, by its path.
    pub(super) fn new(state: &Dir, deepest: Dir, path: Option<&TreePath>, name: String) -> Result<Self, ApplyError> {
        let is_apart = same_mount(state, &deepest);
        let place = if is_apart { make(state, PLACE).map_err(failed("make", &PLACE))? } else { deepest };
        let shown = match path.filter(|_| !is_apart) {
            Some(path) => format!("{path}/{name}"),
            None => name.clone(),
        };
        let mut staging = Self { place, name, shown, dir: None, is_apart };
        if let Some(Seen::Directory(_)) = tree::look(&staging.place, staging.name.as_bytes()).map_err(failed("look at", &staging.shown))? {
            staging.open()?;
        }
        Ok(staging)
    }

    /// Opens it, and makes it if need be.
    pub(super) fn open(&mut self) -> Result<&Dir, ApplyError> {
        let dir = match self.dir.take() {
            Some(dir) => dir,
            None => {
                let dir = make(&self.place, &self.name).map_err(failed("make", &self.shown))?;
                if !self.is_apart && !is_ours_alone(&dir).map_err(failed("look at", &self.shown))? {
                    return Err(ApplyError::Planted(self.shown.clone()));
                }
                dir
            }
        };
        Ok(self.dir.insert(dir))
    }

    /// What is in it from before, if anything.
    pub(super) fn existing(&self) -> Option<&Dir> {
        self.dir.as_ref()
    }

    /// Removes it, unless a tree that was switched out is in it still.
    pub(super) fn remove(&mut self) {
        if self.dir.take_if(|dir| matches!(tree::look(dir, OLD.as_bytes()), Ok(None))).is_some() {
            // What can not be removed now is removed by the next apply.
            let _ = clear(&self.place, &self.name);
        }
    }
}

/// Whether a directory can hold nothing but what this agent put there: it is its own, and nobody else may write to it.
fn is_ours_alone(dir: &Dir) -> io::Result<bool> {
    const PROBE: &str = "Owner";
    let found = dir.dir_metadata()?;
    if found.mode() & 0o022 != 0 {
        return Ok(false);
    }
    if found.uid() == rustix::process::geteuid().as_raw() {
        return Ok(true);
    }
    // A file system of another machine may know this user by another number: that which it gives to what is made now.
    let ours = dir.open_with(PROBE, OpenOptions::new().write(true).create_new(true).mode(0o600))?.metadata()?.uid();
    dir.remove_file(PROBE)?;
    Ok(found.uid() == ours)
}

/// A new file in a staging directory, readable by nobody else until its mode is set.
pub(super) fn create(dir: &Dir, name: &str) -> io::Result<File> {
    dir.open_with(name, OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600))
}

/// Gives a file the mode and the time of its last change that its entry says.
pub(super) fn dress(file: &File, mode: u32, mtime: i64) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))?;
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    futimens(file, &Timestamps { last_access: omit, last_modification: Timespec { tv_sec: mtime, tv_nsec: 0 } })?;
    Ok(())
}

/// Where a content goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// It is a small file. If just one entry has it, it is that one, of the manifest's.
    Whole(Option<usize>),
    /// It is a piece of a large file.
    Piece {
        /// The file.
        file: Digest,
        /// Its size.
        size: u64,
        /// Where in it.
        offset: u64,
    },
}

/// Where each content goes of the entries that are to be put.
pub(super) fn targets(manifest: &Manifest, put: &[usize]) -> HashMap<Digest, Vec<Target>> {
    let mut targets: HashMap<Digest, Vec<Target>> = HashMap::new();
    let mut seen = std::collections::HashSet::new();
    for (index, entry) in put.iter().filter_map(|index| Some((*index, manifest.entries().get(*index)?))) {
        let Kind::File { size, digest, chunks, .. } = &entry.kind else { continue };
        if chunks.is_empty() {
            match targets.entry(*digest).or_default().iter_mut().find(|target| matches!(target, Target::Whole(_))) {
                Some(whole) => *whole = Target::Whole(None),
                None => targets.entry(*digest).or_default().push(Target::Whole(Some(index))),
            }
        } else if seen.insert(*digest) {
            let mut offset = 0;
            for (chunk, bytes) in chunks {
                targets.entry(*chunk).or_default().push(Target::Piece { file: *digest, size: *size, offset });
                offset += u64::from(*bytes);
            }
        }
    }
    targets
}

/// Opens a large file in a staging directory, and makes it if it is not there: with its size, and nothing in it.
pub(super) fn open_large(dir: &Dir, digest: &Digest, size: u64) -> io::Result<File> {
    let options = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    };
    let name = file_name(digest);
    match dir.open_with(&name, options().create_new(true)) {
        Ok(file) => {
            file.set_len(size)?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let file = match dir.open_with(&name, &options()) {
                // One that was ready to be put has its mode already.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    dir.set_permissions(&name, Permissions::from_mode(0o600))?;
                    dir.open_with(&name, &options())?
                }
                opened => opened?,
            };
            if file.metadata()?.len() != size {
                file.set_len(0)?;
                file.set_len(size)?;
            }
            Ok(file)
        }
        Err(error) => Err(error),
    }
}

/// Writes a piece of a large file. Zeros are left out, as holes are zeros.
pub(super) fn write_piece(file: &File, content: &[u8], offset: u64) -> io::Result<()> {
    if content.iter().all(|byte| *byte == 0) {
        let mut there = vec![0; content.len()];
        file.read_exact_at(&mut there, offset)?;
        if there == content {
            return Ok(());
        }
    }
    file.write_all_at(content, offset)
}

/// Writes a file where there is none, with its mode and time.
pub(super) fn write_new(dir: &Dir, name: &Path, content: &[u8], (mode, mtime): (u32, i64)) -> io::Result<File> {
    let mut file = dir.open_with(name, OpenOptions::new().write(true).create_new(true).mode(0o600))?;
    file.write_all(content)?;
    dress(&file, mode, mtime)?;
    Ok(file)
}

/// Writes a small file.
pub(super) fn write_whole(dir: &Dir, digest: &Digest, content: &[u8], dressed: Option<(u32, i64)>) -> io::Result<()> {
    let name = content_name(digest);
    let mut file = match create(dir, &name) {
        // One from before has its mode already, and may not be writable.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            dir.remove_file(&name)?;
            create(dir, &name)?
        }
        created => created?,
    };
    file.write_all(content)?;
    match dressed {
        Some((mode, mtime)) => dress(&file, mode, mtime),
        None => Ok(()),
    }
}

/// Which of some contents are in a staging directory from before. What is damaged there is not.
pub(super) fn staged(dir: &Dir, manifest: &Manifest, missing: &[u32], targets: &HashMap<Digest, Vec<Target>>) -> Vec<u32> {
    let is_there = |index: &&u32| {
        let Some((digest, size)) = manifest.contents().get(**index as usize) else { return false };
        let mut wanted = targets.get(digest).into_iter().flatten().peekable();
        wanted.peek().is_some() && wanted.all(|target| is_staged(dir, digest, *size, *target).unwrap_or(false))
    };
    missing.iter().filter(is_there).copied().collect()
}

fn is_staged(dir: &Dir, digest: &Digest, size: u64, target: Target) -> io::Result<bool> {
    match target {
        Target::Whole(_) => {
            let mut file = tree::open_file(dir, content_name(digest).as_bytes())?;
            Ok(file.metadata()?.len() == size && tree::hash(&mut file)?.0 == *digest)
        }
        Target::Piece { file, offset, .. } => {
            let file = tree::open_file(dir, file_name(&file).as_bytes())?;
            let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
            file.read_exact_at(&mut content, offset)?;
            // A piece that has not come is a hole, and reading that is cheap; hashing it would not be.
            let empty = content.iter().all(|byte| *byte == 0);
            Ok((!empty || digest == &Digest::of(&vec![0; content.len()])) && Digest::of(&content) == *digest)
        }
    }
}

/// Takes what is in its place already out of a tree that was never finished: it waits as other contents do. What it really is, is looked at
/// afterwards; what can not be had so is sent again.
pub(super) fn bring_back(dir: &Dir, manifest: &Manifest, put: &[usize]) {
    loosen_all(dir, Path::new(TREE));
    let Ok(tree) = tree::enter(dir, TREE.as_bytes()) else { return };
    let mut walker = Walker::new(tree);
    for entry in put.iter().filter_map(|index| manifest.entries().get(*index)) {
        let Some((size, _, digest)) = file_of(entry).filter(|_| entry.chunks().is_empty()) else { continue };
        let Ok(Some(from)) = walker.directory(entry.path.parent().as_ref()) else { continue };
        let name = tree::name(entry.path.name());
        // One that has another name as well may be a file of the destination, which nobody else may write to.
        let is_ours = |found: cap_std::fs::Metadata| found.is_file() && found.len() == size && found.nlink() == 1;
        if from.symlink_metadata(name).is_ok_and(is_ours) {
            let _ = from.rename(name, dir, content_name(&digest));
        }
    }
}

/// Removes what a staging directory has from before and nobody wants any more, or that somebody else put there.
pub(super) fn prune(dir: &Dir, manifest: &Manifest, put: &[usize]) -> io::Result<()> {
    let mut wanted = std::collections::HashSet::new();
    for entry in put.iter().filter_map(|index| manifest.entries().get(*index)) {
        if let Kind::File { digest, .. } = &entry.kind {
            wanted.insert(received_name(entry, digest));
        }
    }
    let owner = dir.dir_metadata()?.uid();
    let is_ours = |name: &str| dir.symlink_metadata(name).is_ok_and(|found| found.is_file() && found.uid() == owner);
    for found in tree::reopen(dir)?.entries()? {
        let name = found?.file_name();
        match name.to_str() {
            Some(name) if wanted.contains(name) && is_ours(name) => {}
            Some(name) => clear(dir, name)?,
            None => {}
        }
    }
    Ok(())
}

/// What an entry needs of its kind, for a file.
pub(super) fn file_of(entry: &Entry) -> Option<(u64, i64, Digest)> {
    match entry.kind {
        Kind::File { size, mtime, digest, .. } => Some((size, mtime, digest)),
        _ => None,
    }
}
