//! Looking at directories through handles, one component at a time, never following a symlink.
//!
//! `cap_std` keeps to its directory, but inside of it follows symlinks; so what is opened here is opened by single names with
//! `O_NOFOLLOW`. Everything that changes a tree is done by `cap_std` with a single name in a directory opened here.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cap_std::fs::{Dir, File};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, statat};
use sha2::{Digest as _, Sha256};

use super::path::{PathError, TreePath};
use crate::names::Digest;

/// What tells a file from the same file after a change, as long as clocks go forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Its inode.
    pub(crate) inode: u64,
    /// When its content was last changed, in nanoseconds since 1970.
    pub(crate) mtime_ns: i64,
    /// When anything of it was last changed.
    pub(crate) ctime_ns: i64,
}

impl Stamp {
    /// When its content was last changed, in whole seconds since 1970.
    pub(crate) fn mtime(self) -> i64 {
        self.mtime_ns.div_euclid(1_000_000_000)
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A directory and its mode.
    Directory(u32),
    /// A regular file.
    File {
        /// Its mode.
        mode: u32,
        /// Its bytes.
        size: u64,
        /// What tells whether it was changed.
        stamp: Stamp,
    },
    /// A symlink and what it holds.
    Symlink(Box<[u8]>),
    /// A socket, a fifo or a device.
    Other,
}

impl Seen {
    /// For an error's text.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Directory(_) => "a directory",
            Self::File { .. } => "a file",
            Self::Symlink(_) => "a symlink",
            Self::Other => "a socket, a fifo or a device",
        }
    }
}

/// A name as the file system's calls take it.
pub(super) fn name(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// The directory of a name in another. A symlink is an error.
pub(super) fn enter(dir: &Dir, component: &[u8]) -> io::Result<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(dir, name(component), flags, Mode::empty());
    // A directory on the way may be one that may be passed through and not listed.
    #[cfg(target_os = "linux")]
    let opened = match opened {
        Err(rustix::io::Errno::ACCESS) => openat(dir, name(component), flags | OFlags::PATH, Mode::empty()),
        opened => opened,
    };
    Ok(Dir::from_std_file(opened?.into()))
}

/// The same directory, by a handle that can be listed and made durable; one of `cap_std`'s own can not always.
pub(super) fn reopen(dir: &Dir) -> io::Result<Dir> {
    enter(dir, b".")
}

/// The regular file of a name. Anything else is an error, and is not waited for.
pub(super) fn open_file(dir: &Dir, component: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from_std(std::fs::File::from(openat(dir, name(component), flags, Mode::empty())?));
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file any more")) }
}

/// What is at a name.
pub(super) fn look(dir: &Dir, component: &[u8]) -> io::Result<Option<Seen>> {
    let stat = match statat(dir, name(component), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Seen::Directory(stat.st_mode & 0o7777),
        FileType::RegularFile => file(&stat),
        FileType::Symlink => Seen::Symlink(dir.read_link_contents(name(component))?.as_os_str().as_bytes().into()),
        _ => Seen::Other,
    }))
}

/// What a file looks like that is open.
pub(super) fn look_at(file: &File) -> io::Result<Seen> {
    Ok(self::file(&rustix::fs::fstat(file)?))
}

fn file(stat: &Stat) -> Seen {
    let nanoseconds = |seconds: i64, part: u64| seconds.saturating_mul(1_000_000_000).saturating_add(i64::try_from(part).unwrap_or(0));
    let stamp = Stamp {
        inode: stat.st_ino,
        mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
    };
    Seen::File { mode: stat.st_mode & 0o7777, size: u64::try_from(stat.st_size).unwrap_or(0), stamp }
}

/// The digest of a file's content, and how much there was.
pub(super) fn hash(file: &mut File) -> io::Result<(Digest, u64)> {
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0_u64, vec![0; 128 * 1024]);
    loop {
        let count = file.read(&mut buffer)?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else {
            return Ok((Digest::finish(hasher), size));
        };
        hasher.update(piece);
        size = size.saturating_add(piece.len() as u64);
    }
}

/// Whether the regular file of a name holds this content. What can not be read does not.
pub(super) fn holds(dir: &Dir, component: &[u8], digest: &Digest) -> bool {
    open_file(dir, component).and_then(|mut file| hash(&mut file)).is_ok_and(|(found, _)| found == *digest)
}

/// Finds the directories of many paths of one tree; fastest when they come in order.
pub(super) struct Walker {
    top: Dir,
    open: Vec<(Box<[u8]>, Dir)>,
}

impl Walker {
    /// Walks below a directory that was opened here.
    pub(super) fn new(top: Dir) -> Self {
        Self { top, open: Vec::new() }
    }

    /// Another one of the same tree.
    pub(super) fn again(&self) -> io::Result<Self> {
        Ok(Self::new(self.top.try_clone()?))
    }

    /// The directory of a path of the tree, or its top; none if it, or what is on its way, is missing or no directory.
    pub(super) fn directory(&mut self, path: Option<&TreePath>) -> io::Result<Option<&Dir>> {
        self.directory_of(path.map(TreePath::as_bytes).unwrap_or_default())
    }

    /// As [`directory`](Self::directory), of the bytes of a path; of none, the top.
    pub(super) fn directory_of(&mut self, path: &[u8]) -> io::Result<Option<&Dir>> {
        let components = || path.split(|byte| *byte == b'/').filter(|component| !component.is_empty());
        let same = self.open.iter().zip(components()).take_while(|((one, _), other)| **one == **other).count();
        self.open.truncate(same);
        for component in components().skip(same) {
            match enter(self.last(), component) {
                Ok(dir) => self.open.push((component.into(), dir)),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(self.last()))
    }

    /// What is at a path; nothing if something on its way is missing or no directory.
    pub(super) fn look(&mut self, path: &TreePath) -> io::Result<Option<Seen>> {
        self.look_bytes(path.as_bytes())
    }

    /// As [`look`](Self::look), of the bytes of a path.
    pub(super) fn look_bytes(&mut self, path: &[u8]) -> io::Result<Option<Seen>> {
        let end = path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = path.split_at(end.unwrap_or_default());
        let name = if end.is_some() { name.get(1..).unwrap_or_default() } else { name };
        match self.directory_of(parent)? {
            Some(dir) => look(dir, name),
            None => Ok(None),
        }
    }

    fn last(&self) -> &Dir {
        self.open.last().map_or(&self.top, |(_, dir)| dir)
    }
}

/// Why a tree could not be walked.
#[derive(Debug)]
pub(crate) enum WalkError {
    /// A name makes a path that can not be.
    Path(String, PathError),
    /// Something could not be looked at.
    Io(String, io::Error),
}

/// Visits all that is below a directory, what is in a directory after the directory itself, in the order of names. `at` is the path of
/// the directory. What `visit` answers says whether to go into a directory.
pub(super) fn walk<E: From<WalkError>>(
    dir: &Dir,
    at: Option<&TreePath>,
    visit: &mut dyn FnMut(&Dir, &TreePath, Seen) -> Result<bool, E>,
) -> Result<(), E> {
    let shown = || at.map_or_else(|| ".".to_owned(), TreePath::to_string);
    let list = || dir.entries()?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
    let mut names = list().map_err(|error| WalkError::Io(shown(), error))?;
    names.sort();
    for component in names {
        let component = component.as_bytes();
        let path = match at {
            Some(at) => at.join(component),
            None => TreePath::from_bytes(component),
        };
        let path = path.map_err(|error| WalkError::Path(format!("{}/{}", shown(), super::path::escape(component)), error))?;
        let failed = |error| WalkError::Io(path.to_string(), error);
        let Some(seen) = look(dir, component).map_err(failed)? else { continue };
        let is_directory = matches!(seen, Seen::Directory(_));
        if visit(dir, &path, seen)? && is_directory {
            walk(&enter(dir, component).map_err(failed)?, Some(&path), visit)?;
        }
    }
    Ok(())
}
