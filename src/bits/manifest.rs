//! What a tree is: its paths, kinds, modes, and the digests of its contents. A text, and the sha256 of that text is the tree's version.
//!
//! ```text
//! muster-manifest 1
//! d 755 bin
//! f 755 31 2bb8…e3 bin/tool
//! l bin/latest tool
//! ```
//!
//! One line an entry, sorted by path. There is one text for one tree: a text that differs by a byte is refused.

use std::collections::HashMap;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::path::{PathError, TreePath, escape, unescape};
use crate::limits::{BUNDLE_ENTRIES_MAX, FILE_BYTES_MAX, MANIFEST_BYTES_MAX, PATH_BYTES_MAX};
use crate::names::Digest;

const HEAD: &str = "muster-manifest 1";

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The text is too long.
    #[error("a manifest of more than {MANIFEST_BYTES_MAX} bytes")]
    TooLarge,
    /// There are too many entries.
    #[error("a manifest of more than {BUNDLE_ENTRIES_MAX} entries")]
    TooMany,
    /// The first line is not that of a manifest of this version.
    #[error("not a manifest that this program knows: its first line is not `{HEAD}`")]
    Head,
    /// A line is none, or is not written in the one way that it can be.
    #[error("line {line} of the manifest is not understood")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// A line's path is none.
    #[error("line {line} of the manifest")]
    Path {
        /// Counted from 1.
        line: usize,
        /// Why.
        source: PathError,
    },
    /// Entries are not sorted by path, or a path comes twice.
    #[error("`{0}` comes twice, or not in its order")]
    Order(TreePath),
    /// An entry is below one that is no directory.
    #[error("`{0}` is below something that is not a directory")]
    Below(TreePath),
    /// The mode has other bits than permissions, or a symlink has one.
    #[error("`{0}` has a mode that can not be")]
    Mode(TreePath),
    /// A file is too large.
    #[error("`{0}` has more than {FILE_BYTES_MAX} bytes")]
    FileTooLarge(TreePath),
    /// The target is empty, too long, absolute, or leads outside, or it goes up after it went down.
    #[error("the symlink `{0}` leads outside of the tree or nowhere, or has `..` after a name")]
    Target(TreePath),
    /// One content is said to have two sizes.
    #[error("`{0}` has the digest of another file of another size")]
    TwoSizes(TreePath),
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its bytes.
        size: u64,
        /// The sha256 of its content.
        digest: Digest,
    },
    /// A symlink.
    Symlink {
        /// What it holds, as it is.
        target: Box<[u8]>,
    },
}

/// One path of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub path: TreePath,
    /// Permission bits (`0o777`); 0 for a symlink, which has none.
    pub mode: u32,
    /// What.
    pub kind: Kind,
}

/// A tree: sorted, consistent, within the limits.
///
/// Parents need not be listed; a directory that is not is made with the mode that the machine gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    entries: Vec<Entry>,
    contents: Vec<(Digest, u64)>,
    files: u64,
    bytes: u64,
    version: Digest,
}

impl Manifest {
    /// Makes a manifest of entries in any order.
    ///
    /// # Errors
    /// If they are not one consistent tree within the limits; see [`ManifestError`].
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, ManifestError> {
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        Self::of_sorted(entries)
    }

    /// Reads a manifest's text.
    ///
    /// # Errors
    /// If the text is not exactly what [`to_bytes`](Self::to_bytes) makes of one consistent tree within the limits.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge);
        }
        let mut lines = text.strip_suffix(b"\n").ok_or(ManifestError::Head)?.split(|byte| *byte == b'\n');
        if lines.next() != Some(HEAD.as_bytes()) {
            return Err(ManifestError::Head);
        }
        let (mut entries, mut again) = (Vec::new(), String::new());
        for (line, number) in lines.zip(2..) {
            if entries.len() >= BUNDLE_ENTRIES_MAX {
                return Err(ManifestError::TooMany);
            }
            let entry = Entry::parse(line, number)?;
            again.clear();
            entry.write(&mut again);
            if again.as_bytes().strip_suffix(b"\n") != Some(line) {
                return Err(ManifestError::Line { line: number });
            }
            entries.push(entry);
        }
        Self::of_sorted(entries)
    }

    fn of_sorted(entries: Vec<Entry>) -> Result<Self, ManifestError> {
        if entries.len() > BUNDLE_ENTRIES_MAX {
            return Err(ManifestError::TooMany);
        }
        let mut sizes = HashMap::new();
        let (mut contents, mut files, mut bytes) = (Vec::new(), 0, 0_u64);
        for entry in &entries {
            entry.check()?;
            match entry.kind {
                Kind::Directory => {}
                Kind::Symlink { .. } => files += 1,
                Kind::File { size, digest } => {
                    files += 1;
                    bytes = bytes.saturating_add(size);
                    match sizes.insert(digest, size) {
                        None => contents.push((digest, size)),
                        Some(before) if before != size => return Err(ManifestError::TwoSizes(entry.path.clone())),
                        Some(_) => {}
                    }
                }
            }
        }
        if let Some((_, later)) = entries.iter().zip(entries.iter().skip(1)).find(|(one, later)| one.path >= later.path) {
            return Err(ManifestError::Order(later.path.clone()));
        }
        let mut manifest = Self { entries, contents, files, bytes, version: Digest::from_bytes([0; 32]) };
        manifest.check_parents()?;
        let (mut hasher, mut text_bytes) = (Sha256::new(), 0_usize);
        manifest.write(|piece| {
            hasher.update(piece);
            text_bytes = text_bytes.saturating_add(piece.len());
        });
        if text_bytes > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge);
        }
        manifest.version = Digest::finish(hasher);
        Ok(manifest)
    }

    fn check_parents(&self) -> Result<(), ManifestError> {
        let mut good = None;
        for entry in &self.entries {
            let parent = entry.path.parent();
            if parent == good {
                continue;
            }
            let mut above = parent.clone();
            while let Some(path) = above {
                if self.get(&path).is_some_and(|entry| entry.kind != Kind::Directory) {
                    return Err(ManifestError::Below(entry.path.clone()));
                }
                above = path.parent();
            }
            good = parent;
        }
        Ok(())
    }

    fn write(&self, mut piece: impl FnMut(&[u8])) {
        piece(HEAD.as_bytes());
        piece(b"\n");
        let mut line = String::new();
        for entry in &self.entries {
            line.clear();
            entry.write(&mut line);
            piece(line.as_bytes());
        }
    }

    /// The text.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = Vec::new();
        self.write(|piece| text.extend_from_slice(piece));
        text
    }

    /// The sha256 of the text: the version of the bundle.
    pub fn version(&self) -> Digest {
        self.version
    }

    /// The entries, by path.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of a path.
    pub fn get(&self, path: &TreePath) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.path.cmp(path)).ok().and_then(|index| self.entries.get(index))
    }

    /// This tree laid over another: what of the other is not replaced by it, and all of it.
    pub(super) fn over(&self, under: &Self) -> Result<Self, ManifestError> {
        let replaced = |entry: &Entry| {
            if self.get(&entry.path).is_some() || (entry.kind != Kind::Directory && self.has_below(&entry.path)) {
                return true;
            }
            let above = std::iter::successors(entry.path.parent(), TreePath::parent);
            above.filter_map(|path| self.get(&path)).any(|above| above.kind != Kind::Directory)
        };
        Self::new(self.entries.iter().chain(under.entries.iter().filter(|entry| !replaced(entry))).cloned().collect())
    }

    fn has_below(&self, path: &TreePath) -> bool {
        let first = [path.as_bytes(), b"/"].concat();
        let index = self.entries.partition_point(|entry| entry.path.as_bytes() < first.as_slice());
        self.entries.get(index).is_some_and(|entry| entry.path.is_below(path))
    }

    /// How many entries are files or symlinks.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// The sizes of all files together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Each content once, with its size, in the order in which the entries first name them. Other places name a content by its index here.
    pub fn contents(&self) -> &[(Digest, u64)] {
        &self.contents
    }
}

impl Entry {
    fn parse(line: &[u8], number: usize) -> Result<Self, ManifestError> {
        let not_understood = ManifestError::Line { line: number };
        let text = |field: &'_ [u8]| std::str::from_utf8(field).ok().map(str::to_owned);
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').take(6).collect();
        let (mode, kind, path) = match *fields.as_slice() {
            [b"d", mode, path] => (mode, Some(Kind::Directory), path),
            [b"f", mode, size, digest, path] => {
                let size = text(size).and_then(|size| size.parse().ok());
                let digest = text(digest).and_then(|digest| digest.parse().ok());
                (mode, size.zip(digest).map(|(size, digest)| Kind::File { size, digest }), path)
            }
            [b"l", path, target] => (b"0".as_slice(), unescape(target).map(|target| Kind::Symlink { target: target.into() }), path),
            _ => return Err(not_understood),
        };
        let mode = text(mode).and_then(|mode| u32::from_str_radix(&mode, 8).ok());
        let (Some(mode), Some(kind)) = (mode, kind) else {
            return Err(not_understood);
        };
        let path = TreePath::from_text(path).map_err(|source| ManifestError::Path { line: number, source })?;
        Ok(Self { path, mode, kind })
    }

    fn write(&self, line: &mut String) {
        let Self { path, mode, kind } = self;
        // Writing to a string can not fail.
        let _ = match kind {
            Kind::Directory => writeln!(line, "d {mode:03o} {path}"),
            Kind::File { size, digest } => writeln!(line, "f {mode:03o} {size} {digest} {path}"),
            Kind::Symlink { target } => writeln!(line, "l {path} {}", escape(target)),
        };
    }

    fn check(&self) -> Result<(), ManifestError> {
        let modes = if matches!(self.kind, Kind::Symlink { .. }) { 0 } else { 0o777 };
        if self.mode & !modes != 0 {
            return Err(ManifestError::Mode(self.path.clone()));
        }
        match &self.kind {
            Kind::File { size, .. } if *size > FILE_BYTES_MAX => Err(ManifestError::FileTooLarge(self.path.clone())),
            Kind::Symlink { target } if !stays_inside(&self.path, target) => Err(ManifestError::Target(self.path.clone())),
            _ => Ok(()),
        }
    }
}

/// Whether a symlink's target stays in the tree: it goes up first, no further than the tree goes, and then only down.
///
/// What is above a symlink are directories, so that going up is what it says. What it goes down through may be symlinks of the tree, which
/// stay inside as well. Going up again after a name is not allowed: the name may be a symlink, and what is above that is elsewhere.
fn stays_inside(path: &TreePath, target: &[u8]) -> bool {
    if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) || target.first() == Some(&b'/') {
        return false;
    }
    let mut ups_left = path.components().count() - 1;
    let mut named = false;
    target.split(|byte| *byte == b'/').all(|component| match component {
        b"" | b"." => true,
        b".." => !named && ups_left.checked_sub(1).map(|left| ups_left = left).is_some(),
        _ => {
            named = true;
            true
        }
    })
}
