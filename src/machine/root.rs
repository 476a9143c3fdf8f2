//! The files of this machine, as far as calls reach.
//!
//! What is written lies below the agent's root, or below a directory that whoever runs the agent allowed beside it, and is reached through
//! cap-std: a symlink that leads out of there is not followed. What is read may lie anywhere, but is a regular file.
//!
//! `ROOT/.muster` is the agent's own: no call reads, writes or removes anything in it.

use std::io::{self, Read as _, Write as _};
use std::path::{Component, Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{
    Dir, DirBuilder, DirBuilderExt as _, File, MetadataExt as _, OpenOptions, OpenOptionsExt as _, Permissions, PermissionsExt as _,
};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{CallError, Change};
use crate::limits::{PATH_BYTES_MAX, REMOVE_DEPTH_MAX};

/// The name of the agent's own directory in its root.
pub const STATE_NAME: &str = ".muster";

/// Why a directory can not be used as a root, or beside one.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It can not be made or opened.
    #[error("directory `{}`", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory to be written to lies in the agent's own.
    #[error("`{}` is the agent's own and can not be written to", .0.display())]
    Own(PathBuf),
}

/// The agent's root, and the directories beside it that calls may write to.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    state: Dir,
    /// The root first.
    bases: Vec<Base>,
}

#[derive(Debug)]
struct Base {
    path: PathBuf,
    real: PathBuf,
    dir: Dir,
    /// Where the agent's own directory lies, if it is below this base.
    own: Option<PathBuf>,
}

/// A directory below the root or beside it, as something that bits can be brought to.
#[derive(Debug)]
pub struct Destination {
    /// The directory below which it lies.
    pub base: Dir,
    /// Its path below `base`, without symlinks; empty for `base` itself.
    pub path: PathBuf,
    /// The same place as an absolute path, for people and as a key: it is one for each directory, however it was reached.
    pub absolute: PathBuf,
    /// Whether the agent's own directory lies right in it.
    pub holds_own: bool,
}

impl Root {
    /// Opens a root, and makes it and its `.muster` if they are not there. `extra` are directories that must be there.
    ///
    /// # Errors
    /// When one of them can not be opened, or an extra one lies in `.muster`.
    pub fn open(path: &Path, extra: &[PathBuf]) -> Result<Self, RootError> {
        let path = lexical(path).map_err(|source| RootError::Open { path: path.to_owned(), source })?;
        let failed = |source| RootError::Open { path: path.clone(), source };
        Dir::create_ambient_dir_all(&path, ambient_authority()).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => failed(io::ErrorKind::NotADirectory.into()),
            _ => failed(error),
        })?;
        let dir = Dir::open_ambient_dir(&path, ambient_authority()).map_err(failed)?;
        match dir.create_dir_with(STATE_NAME, DirBuilder::new().mode(0o700)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        let state = dir.open_dir(STATE_NAME).map_err(failed)?;
        // It may have been made by something with a wider umask, or by hand.
        state.set_permissions(".", Permissions::from_mode(0o700)).map_err(failed)?;
        let real = path.canonicalize().map_err(failed)?;
        let own = real.join(STATE_NAME);
        let mut bases = vec![Base { path: path.clone(), real, dir, own: Some(PathBuf::from(STATE_NAME)) }];
        for path in extra {
            let failed = |source| RootError::Open { path: path.clone(), source };
            let absolute = lexical(path).map_err(failed)?;
            let real = absolute.canonicalize().map_err(failed)?;
            if real.starts_with(&own) {
                return Err(RootError::Own(path.clone()));
            }
            let dir = Dir::open_ambient_dir(&absolute, ambient_authority()).map_err(failed)?;
            let own = own.strip_prefix(&real).ok().map(Path::to_owned);
            bases.push(Base { path: absolute, real, dir, own });
        }
        Ok(Self { path, state, bases })
    }

    /// The root's absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the root's path still leads to the directory that was opened: it may have been removed, or another may be in its place.
    pub fn is_in_place(&self) -> bool {
        let opened = self.bases.first().and_then(|root| root.dir.dir_metadata().ok());
        let there = match rustix::fs::stat(&self.path) {
            Ok(there) => Some((there.st_dev, there.st_ino)),
            Err(Errno::NOENT | Errno::NOTDIR) => return false,
            // What can not be found out now, as on a file system that is away for a moment, says nothing.
            Err(_) => None,
        };
        let same = opened.zip(there).is_none_or(|(opened, there)| (opened.dev(), opened.ino()) == there);
        same && self.state.dir_metadata().map_or(true, |state| state.nlink() > 0)
    }

    /// The agent's own directory.
    pub fn state(&self) -> &Dir {
        &self.state
    }

    /// A path of a call as an absolute one.
    ///
    /// # Errors
    /// When it is empty or too long, or holds `..` or a NUL.
    pub fn absolute(&self, path: &str) -> Result<PathBuf, CallError> {
        let invalid =
            |why: &str| Err(CallError::Invalid(format!("path `{}`: {why}", path.chars().take(200).collect::<String>().escape_default())));
        if path.is_empty() {
            return invalid("it is empty");
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(CallError::Invalid(format!("a path has at most {PATH_BYTES_MAX} bytes, this one has {}", path.len())));
        }
        if path.contains('\0') {
            return invalid("it holds a NUL");
        }
        if Path::new(path).components().any(|part| part == Component::ParentDir) {
            return invalid("it holds `..`");
        }
        // Collecting the components drops `.` and doubled slashes.
        Ok(self.path.join(path).components().collect())
    }

    /// Reads a regular file of at most `bytes_max` bytes, anywhere on the machine.
    ///
    /// # Errors
    /// When it is not there, not a regular file, larger, or not readable for this user.
    pub fn read_file(&self, path: &str, bytes_max: usize) -> Result<Vec<u8>, CallError> {
        let absolute = self.absolute(path)?;
        let failed = |error: io::Error| io(&absolute, &error);
        let (dir, name) = match self.base_of(&absolute) {
            Some((base, below)) => {
                // All of it, as the file itself may be a symlink to what is the agent's own.
                let real = base.real(below).map_err(failed)?;
                base.parent(&real, false).map_err(failed)?
            }
            None => outside(&absolute, self)?,
        };
        let no_file = || CallError::Invalid(format!("`{}` is no regular file", absolute.display()));
        if !dir.metadata(&name).map_err(failed)?.is_file() {
            return Err(no_file());
        }
        // What took the file's place meanwhile is not followed, and if it is a pipe, it does not block the one that opens it.
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits()).unwrap_or(0);
        let file = dir.open_with(&name, OpenOptions::new().read(true).custom_flags(flags)).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(no_file());
        }
        let mut contents = Vec::new();
        let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
        file.take(limit).read_to_end(&mut contents).map_err(failed)?;
        if contents.len() > bytes_max {
            return Err(CallError::Invalid(format!("`{}` has more than {bytes_max} bytes", absolute.display())));
        }
        Ok(contents)
    }

    /// Whether anything is at a path, anywhere on the machine. A symlink is something, wherever it leads.
    ///
    /// # Errors
    /// When that can not be found out.
    pub fn exists(&self, path: &str) -> Result<bool, CallError> {
        let absolute = self.absolute(path)?;
        let found = match self.base_of(&absolute) {
            Some((base, below)) if below.as_os_str().is_empty() => base.dir.dir_metadata(),
            Some((base, below)) => base.parent(below, false).and_then(|(dir, name)| dir.symlink_metadata(name)),
            None => match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Dir::open_ambient_dir(parent, ambient_authority()).and_then(|dir| dir.symlink_metadata(name)),
                _ => return Ok(true),
            },
        };
        match found {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(io(&absolute, &error)),
        }
    }

    /// Makes a path a regular file with this content and mode, and its parents directories. It is there whole or not at all, and nothing
    /// is written if it is as it should be.
    ///
    /// # Errors
    /// When the path may not be written to, is a directory, or the machine fails.
    pub fn write_file(&self, path: &str, contents: &[u8], mode: u32) -> Result<Change, CallError> {
        let absolute = self.absolute(path)?;
        let failed = |error: io::Error| io(&absolute, &error);
        if mode > 0o777 {
            return Err(CallError::Invalid(format!("mode {mode:o} has more than permission bits")));
        }
        let (base, below) = self.writable(&absolute)?;
        if below.as_os_str().is_empty() {
            return Err(CallError::Invalid(format!("`{}` is a directory", absolute.display())));
        }
        let (dir, name) = base.parent(below, true).map_err(failed)?;
        let bytes = u64::try_from(contents.len()).unwrap_or(u64::MAX);
        let same = Change { files: 1, bytes, ..Change::default() };
        if is_already(&dir, &name, contents, mode).map_err(failed)? {
            return Ok(same);
        }
        replace(&dir, &name, contents, mode).map_err(failed)?;
        Ok(Change { changed: true, files_changed: 1, bytes_sent: bytes, ..same })
    }

    /// Removes what is at a path; with `with_below`, also all that is below it. Nothing there is nothing to do. A symlink is removed, not what
    /// it leads to.
    ///
    /// # Errors
    /// When the path may not be written to, is a directory that is not empty and `with_below` is not set, holds the agent's own directory, is
    /// nested deeper than [`REMOVE_DEPTH_MAX`], or the machine fails. Some of it may be removed by then.
    pub fn remove(&self, path: &str, with_below: bool) -> Result<Change, CallError> {
        let absolute = self.absolute(path)?;
        let failed = |error: io::Error| io(&absolute, &error);
        let (base, below) = self.writable(&absolute)?;
        if below.as_os_str().is_empty() {
            return Err(CallError::Denied(format!("`{}` itself can not be removed, only what is below it", absolute.display())));
        }
        let mut change = Change::default();
        let gone = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
        let (dir, name) = match base.parent(below, false) {
            Ok(found) => found,
            Err(error) if gone(&error) => return Ok(change),
            Err(error) => return Err(failed(error)),
        };
        match dir.symlink_metadata(&name) {
            Ok(metadata) if metadata.is_dir() => {
                let real = base.real(below).map_err(failed)?;
                if base.own.as_ref().is_some_and(|own| own.starts_with(&real)) {
                    return Err(CallError::Denied(format!("`{}` holds the agent's own directory", absolute.display())));
                }
                if with_below {
                    remove_tree(&dir, &name, REMOVE_DEPTH_MAX, &mut change).map_err(failed)?;
                } else {
                    dir.remove_dir(&name).map_err(|error| match error.kind() {
                        io::ErrorKind::DirectoryNotEmpty => CallError::Denied(format!(
                            "`{0}` is a directory that is not empty; `grants.write` has to cover `{0}/**` for all of it to be removed",
                            absolute.display()
                        )),
                        _ => failed(error),
                    })?;
                }
                change.changed = true;
            }
            Ok(_) => {
                dir.remove_file(&name).map_err(failed)?;
                change = Change { changed: true, files: 1, files_removed: 1, ..change };
            }
            Err(error) if gone(&error) => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(change)
    }

    /// Finds where a directory that bits are brought to lies. The directory itself need not be there.
    ///
    /// # Errors
    /// When it may not be written to, or holds the agent's own directory anywhere but right in it.
    pub fn destination(&self, path: &str) -> Result<Destination, CallError> {
        let absolute = self.absolute(path)?;
        let (base, below) = self.writable(&absolute)?;
        let failed = |error: io::Error| io(&absolute, &error);
        let path = base.real_so_far(below).map_err(failed)?;
        base.refuse_own(&path).map_err(failed)?;
        let holds_own = match base.own.as_ref().and_then(|own| own.strip_prefix(&path).ok()) {
            Some(below) if below == Path::new(STATE_NAME) => true,
            Some(_) => return Err(CallError::Denied(format!("`{}` holds the agent's own directory", absolute.display()))),
            None => false,
        };
        let absolute = if path.as_os_str().is_empty() { base.path.clone() } else { base.path.join(&path) };
        Ok(Destination { base: base.dir.try_clone().map_err(|error| io(&absolute, &error))?, path, absolute, holds_own })
    }

    fn base_of<'a>(&self, absolute: &'a Path) -> Option<(&Base, &'a Path)> {
        let below = self.bases.iter().filter_map(|base| Some((base, absolute.strip_prefix(&base.path).ok()?)));
        // The innermost: what lies in the root is the root's, even if the directory around it may be written to as well.
        below.min_by_key(|(_, below)| below.as_os_str().len())
    }

    fn writable<'a>(&self, absolute: &'a Path) -> Result<(&Base, &'a Path), CallError> {
        self.base_of(absolute).ok_or_else(|| {
            CallError::Denied(format!(
                "`{}` lies outside of the agent's root `{}`; start muster-agent with `--allow-write DIR` to allow a directory beside it",
                absolute.display(),
                self.path.display()
            ))
        })
    }
}

impl Base {
    /// The directory that a path lies in, and the path's last name, with symlinks resolved as far as they stay below this base.
    fn parent(&self, below: &Path, make: bool) -> io::Result<(Dir, PathBuf)> {
        let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else {
            return Ok((self.dir.try_clone()?, PathBuf::from(".")));
        };
        let real = match self.real(parent) {
            Err(error) if make && error.kind() == io::ErrorKind::NotFound => self.make(parent)?,
            other => other?,
        };
        self.refuse_own(&real.join(name))?;
        let dir = if real.as_os_str().is_empty() { self.dir.try_clone()? } else { self.dir.open_dir(&real)? };
        Ok((dir, PathBuf::from(name)))
    }

    /// The path below this base without symlinks; an error if they lead out.
    fn real(&self, below: &Path) -> io::Result<PathBuf> {
        if below.as_os_str().is_empty() {
            return Ok(PathBuf::new());
        }
        let real = self.dir.canonicalize(below)?;
        Ok(if real == Path::new(".") { PathBuf::new() } else { real })
    }

    /// As [`Base::real`], and what is not there yet is taken as it is written.
    fn real_so_far(&self, below: &Path) -> io::Result<PathBuf> {
        for there in below.ancestors() {
            match self.real(there) {
                Ok(real) => {
                    return Ok(below.strip_prefix(there).map_or_else(|_| real.clone(), |rest| real.join(rest).components().collect()));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(below.to_owned())
    }

    /// Makes directories one after the other, so that none is made in the agent's own by way of a symlink.
    fn make(&self, below: &Path) -> io::Result<PathBuf> {
        let mut at = PathBuf::new();
        for name in below {
            let next = at.join(name);
            at = match self.real(&next) {
                Ok(real) => real,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.refuse_own(&next)?;
                    self.dir.create_dir(&next)?;
                    next
                }
                Err(error) => return Err(error),
            };
        }
        Ok(at)
    }

    fn refuse_own(&self, real: &Path) -> io::Result<()> {
        if self.own.as_ref().is_some_and(|own| real.starts_with(own)) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is the agent's own"));
        }
        Ok(())
    }
}

fn lexical(path: &Path) -> io::Result<PathBuf> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it holds `..`"));
    }
    Ok(std::path::absolute(path)?.components().collect())
}

/// The directory of a file outside of all bases. Symlinks there are the machine's own and are followed, but not back into the bases.
fn outside(absolute: &Path, root: &Root) -> Result<(Dir, PathBuf), CallError> {
    let failed = |error: io::Error| io(absolute, &error);
    let real = absolute.canonicalize().map_err(failed)?;
    if root.bases.iter().any(|base| real.starts_with(&base.real)) {
        return Err(CallError::Denied(format!("`{}` leads back into the agent's root", absolute.display())));
    }
    match (real.parent(), real.file_name()) {
        (Some(parent), Some(name)) => Ok((Dir::open_ambient_dir(parent, ambient_authority()).map_err(failed)?, PathBuf::from(name))),
        _ => Err(CallError::Invalid(format!("`{}` is no regular file", absolute.display()))),
    }
}

fn is_already(dir: &Dir, name: &Path, contents: &[u8], mode: u32) -> io::Result<bool> {
    let metadata = match dir.symlink_metadata(name) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let length = u64::try_from(contents.len()).unwrap_or(u64::MAX);
    if !metadata.is_file() || metadata.len() != length || metadata.mode() & 0o7777 != mode {
        return Ok(false);
    }
    let mut present = Vec::with_capacity(contents.len());
    // A file that is not readable is written anew.
    let Ok(file) = dir.open(name) else { return Ok(false) };
    file.take(length).read_to_end(&mut present)?;
    Ok(present == contents)
}

/// Writes a file beside its place, brings it to the disk and renames it there.
///
/// # Errors
/// When the machine fails. What was at the place is there still, then.
pub fn replace(dir: &Dir, name: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let beside = PathBuf::from(format!(".muster-{}.new", uuid::Uuid::new_v4().simple()));
    let written = write_beside(dir, &beside, contents, mode).and_then(|()| dir.rename(&beside, dir, name));
    if let Err(error) = written {
        let _ = dir.remove_file(&beside);
        return Err(error);
    }
    sync_dir(dir)
}

fn write_beside(dir: &Dir, beside: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut file: File = dir.open_with(beside, OpenOptions::new().write(true).create_new(true).mode(0o600))?;
    file.write_all(contents)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Brings a directory's entries to the disk.
///
/// # Errors
/// When the machine fails.
pub fn sync_dir(dir: &Dir) -> io::Result<()> {
    // cap-std may hold directories open for paths only, which can not be synced.
    dir.open(".")?.sync_all()
}

fn remove_tree(parent: &Dir, name: &Path, depth_left: usize, change: &mut Change) -> io::Result<()> {
    if depth_left == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is nested deeper than {REMOVE_DEPTH_MAX} directories")));
    }
    let dir = parent.open_dir(name)?;
    for entry in dir.entries()? {
        let entry = entry?;
        let entry_name = entry.file_name();
        if entry.file_type()?.is_dir() {
            remove_tree(&dir, Path::new(&entry_name), depth_left - 1, change)?;
        } else {
            dir.remove_file(&entry_name)?;
            change.files += 1;
            change.files_removed += 1;
        }
    }
    drop(dir);
    parent.remove_dir(name)
}

/// What an error of the file system is as a call's answer.
pub(super) fn io(path: &Path, error: &io::Error) -> CallError {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => CallError::NotFound(format!("`{path}`")),
        io::ErrorKind::PermissionDenied => CallError::Denied(format!("`{path}`: {error}")),
        io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::DirectoryNotEmpty
        | io::ErrorKind::InvalidFilename
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::AlreadyExists => CallError::Invalid(format!("`{path}`: {error}")),
        _ if Errno::from_io_error(error) == Some(Errno::LOOP) => CallError::Invalid(format!("`{path}`: {error}")),
        _ => CallError::Other(format!("`{path}`: {error}")),
    }
}
