//! What a tree is: its paths, kinds, modes, and the digests of its contents. A text, and the sha256 of that text is the tree's version.
//!
//! ```text
//! muster-manifest 2
//! d 755 bin
//! f 755 1767225600 31 2bb8…e3 bin/tool
//! l bin/latest tool
//! f 644 1767225600 1200000 90aa…11 data
//! c 700000 1f0c…22
//! c 500000 ab31…07
//! ```
//!
//! One line an entry, sorted by path; of a file mode, time of its last change (seconds since 1970), size and digest. A file over
//! [`CHUNK_BYTES_MAX`] is followed by its chunks, by size and digest; they are what is kept and sent of it. There is one text for one
//! tree: a text that differs by a byte is refused.

use std::collections::HashMap;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::near::Near;
use super::path::{PathError, TreePath, escape, unescape};
use crate::limits::{BUNDLE_ENTRIES_MAX, CHUNK_BYTES_MAX, FILE_BYTES_MAX, MANIFEST_BYTES_MAX, PATH_BYTES_MAX};
use crate::names::Digest;

const HEAD: &str = "muster-manifest 2";

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
    /// One large file is said to be made of these chunks and of others.
    #[error("`{0}` has the digest of another file, and other chunks")]
    TwoCuts(TreePath),
    /// A file's chunks are not what its size asks for.
    #[error("`{0}` has chunks that are not the whole of it, or too large, or that it should not have")]
    Chunks(TreePath),
}

/// The size of a large file, and its chunks.
type Cut<'a> = (u64, &'a [(Digest, u32)]);

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its bytes.
        size: u64,
        /// When it was last changed, in seconds since 1970.
        mtime: i64,
        /// The sha256 of its content.
        digest: Digest,
        /// The sha256 and the size of each of its chunks, in their order; none of a file of at most [`CHUNK_BYTES_MAX`].
        chunks: Box<[(Digest, u32)]>,
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
#[derive(Debug, Clone)]
pub struct Manifest {
    entries: Vec<Entry>,
    contents: Vec<(Digest, u64)>,
    indices: HashMap<Digest, u32>,
    files: u64,
    bytes: u64,
    version: Digest,
    near: Near,
}

/// One text, one tree.
impl PartialEq for Manifest {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version
    }
}

impl Eq for Manifest {}

impl Manifest {
    /// Makes a manifest of entries in any order.
    ///
    /// # Errors
    /// If they are not one consistent tree within the limits; see [`ManifestError`].
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, ManifestError> {
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        Self::of_sorted(entries, None)
    }

    /// The same tree, but files that have the content that they had before have the time that they had before as well. A fresh checkout of an
    /// unchanged tree is then no other version.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_times_of(self, before: &Self) -> Result<Self, ManifestError> {
        let mut entries = self.entries;
        for entry in &mut entries {
            let Some(Kind::File { mtime: then, digest: was, .. }) = before.get(&entry.path).map(|entry| &entry.kind) else { continue };
            if let Kind::File { mtime, digest, .. } = &mut entry.kind
                && digest == was
            {
                *mtime = *then;
            }
        }
        Self::new(entries)
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
        // No more than there are lines, so that nothing is moved while it grows.
        let lines_max = text.iter().filter(|byte| **byte == b'\n').count();
        let (mut entries, mut cut, mut last) = (Vec::with_capacity(lines_max.min(BUNDLE_ENTRIES_MAX)), Vec::new(), 1);
        for (line, number) in lines.zip(2..) {
            last = number;
            if let Some(chunk) = line.strip_prefix(b"c ") {
                cut.push(parse_chunk(chunk).ok_or(ManifestError::Line { line: number })?);
                continue;
            }
            if entries.len() >= BUNDLE_ENTRIES_MAX {
                return Err(ManifestError::TooMany);
            }
            give_chunks(&mut entries, &mut cut, number)?;
            entries.push(Entry::parse(line, number)?);
        }
        give_chunks(&mut entries, &mut cut, last + 1)?;
        Self::of_sorted(entries, Some(Digest::of(text)))
    }

    /// `version` is the digest of the text, if it is known.
    fn of_sorted(entries: Vec<Entry>, version: Option<Digest>) -> Result<Self, ManifestError> {
        if entries.len() > BUNDLE_ENTRIES_MAX {
            return Err(ManifestError::TooMany);
        }
        let (mut indices, mut cuts) = (HashMap::with_capacity(entries.len()), HashMap::new());
        let (mut contents, mut files, mut bytes): (Vec<(Digest, u64)>, _, _) = (Vec::with_capacity(entries.len()), 0, 0_u64);
        for entry in &entries {
            entry.check()?;
            match &entry.kind {
                Kind::Directory => continue,
                Kind::Symlink { .. } => {}
                Kind::File { size, .. } => bytes = bytes.saturating_add(*size),
            }
            files += 1;
            if let Some((digest, cut)) = entry.cut()
                && *cuts.entry(digest).or_insert(cut) != cut
            {
                return Err(ManifestError::TwoCuts(entry.path.clone()));
            }
            for (digest, size) in entry.contents() {
                let index = *indices.entry(digest).or_insert_with(|| {
                    contents.push((digest, size));
                    u32::try_from(contents.len() - 1).unwrap_or(u32::MAX)
                });
                if contents.get(index as usize).is_some_and(|(_, before)| *before != size) {
                    return Err(ManifestError::TwoSizes(entry.path.clone()));
                }
            }
        }
        // A large file is no content by itself, so it is none that has its digest and another size.
        if let Some(entry) = entries.iter().find(|entry| entry.cut().is_some_and(|(digest, _)| indices.contains_key(&digest))) {
            return Err(ManifestError::TwoSizes(entry.path.clone()));
        }
        if let Some((_, later)) = entries.iter().zip(entries.iter().skip(1)).find(|(one, later)| one.path >= later.path) {
            return Err(ManifestError::Order(later.path.clone()));
        }
        let mut manifest = Self { entries, contents, indices, files, bytes, version: Digest::from_bytes([0; 32]), near: Near::default() };
        manifest.check_parents()?;
        if let Some(version) = version {
            manifest.version = version;
            return Ok(manifest);
        }
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
        self.near.find(&self.entries, |entry| entry.path.cmp(path)).and_then(|index| self.entries.get(index))
    }

    /// This tree laid over another: what of the other is not replaced by it and `stays`, and all of it.
    pub(super) fn over(&self, under: &Self, stays: &mut dyn FnMut(&Entry) -> bool) -> Result<Self, ManifestError> {
        let replaced = |entry: &Entry| {
            if self.get(&entry.path).is_some() || (entry.kind != Kind::Directory && self.has_below(&entry.path)) {
                return true;
            }
            let above = std::iter::successors(entry.path.parent(), TreePath::parent);
            above.filter_map(|path| self.get(&path)).any(|above| above.kind != Kind::Directory)
        };
        let mut entries = self.entries.clone();
        entries.extend(under.entries.iter().filter(|entry| !replaced(entry) && stays(entry)).cloned());
        // The same file may have been cut at other places by an older program.
        let cuts: HashMap<_, _> = self.entries.iter().filter_map(Entry::cut).collect();
        for entry in entries.iter_mut().skip(self.entries.len()) {
            if let Kind::File { size, digest, chunks, .. } = &mut entry.kind
                && let Some((same_size, cut)) = cuts.get(digest)
                && same_size == size
            {
                *chunks = (*cut).into();
            }
        }
        Self::new(entries)
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

    /// The index of a content in [`contents`](Self::contents).
    pub fn content_index(&self, digest: &Digest) -> Option<u32> {
        self.indices.get(digest).copied()
    }
}

impl Entry {
    /// What is kept and sent of it, with sizes, in the order of the file; nothing of what is no file.
    pub fn contents(&self) -> impl Iterator<Item = (Digest, u64)> {
        let (whole, chunks) = match &self.kind {
            Kind::File { size, digest, chunks, .. } if chunks.is_empty() => (Some((*digest, *size)), None),
            Kind::File { chunks, .. } => (None, Some(chunks)),
            _ => (None, None),
        };
        whole.into_iter().chain(chunks.into_iter().flatten().map(|(digest, size)| (*digest, u64::from(*size))))
    }

    /// The digest of a large file, with its size and its chunks.
    fn cut(&self) -> Option<(Digest, Cut<'_>)> {
        match &self.kind {
            Kind::File { size, digest, chunks, .. } if !chunks.is_empty() => Some((*digest, (*size, chunks))),
            _ => None,
        }
    }

    /// The chunks of a large file.
    pub fn chunks(&self) -> &[(Digest, u32)] {
        match &self.kind {
            Kind::File { chunks, .. } => chunks,
            _ => &[],
        }
    }

    fn parse(line: &[u8], number: usize) -> Result<Self, ManifestError> {
        let not_understood = || ManifestError::Line { line: number };
        let mut fields = line.split(|byte| *byte == b' ');
        let mut field = || fields.next().ok_or_else(not_understood);
        let (kind, mode, path) = match field()? {
            b"d" => (Kind::Directory, octal(field()?).ok_or_else(not_understood)?, field()?),
            b"f" => {
                let mode = octal(field()?).ok_or_else(not_understood)?;
                let mtime = decimal(field()?).ok_or_else(not_understood)?;
                let size = decimal(field()?).ok_or_else(not_understood)?;
                let digest = digest(field()?).ok_or_else(not_understood)?;
                (Kind::File { size, mtime, digest, chunks: Box::default() }, mode, field()?)
            }
            b"l" => {
                let path = field()?;
                let target = unescape(field()?).ok_or_else(not_understood)?;
                (Kind::Symlink { target: (*target).into() }, 0, path)
            }
            _ => return Err(not_understood()),
        };
        if fields.next().is_some() {
            return Err(not_understood());
        }
        let path = TreePath::from_text(path).map_err(|source| ManifestError::Path { line: number, source })?;
        Ok(Self { path, mode, kind })
    }

    fn write(&self, line: &mut String) {
        let Self { path, mode, kind } = self;
        // Writing to a string can not fail.
        let _ = match kind {
            Kind::Directory => writeln!(line, "d {mode:03o} {path}"),
            Kind::File { size, mtime, digest, .. } => writeln!(line, "f {mode:03o} {mtime} {size} {digest} {path}"),
            Kind::Symlink { target } => writeln!(line, "l {path} {}", escape(target)),
        };
        if let Kind::File { chunks, .. } = kind {
            for (digest, size) in chunks {
                let _ = writeln!(line, "c {size} {digest}");
            }
        }
    }

    fn check(&self) -> Result<(), ManifestError> {
        let modes = if matches!(self.kind, Kind::Symlink { .. }) { 0 } else { 0o777 };
        if self.mode & !modes != 0 {
            return Err(ManifestError::Mode(self.path.clone()));
        }
        match &self.kind {
            Kind::File { size, .. } if *size > FILE_BYTES_MAX => Err(ManifestError::FileTooLarge(self.path.clone())),
            Kind::File { size, chunks, .. } if !are_whole(*size, chunks) => Err(ManifestError::Chunks(self.path.clone())),
            Kind::Symlink { target } if !stays_inside(&self.path, target) => Err(ManifestError::Target(self.path.clone())),
            _ => Ok(()),
        }
    }
}

/// Whether chunks are those of a file of this size: none, if it is small.
fn are_whole(size: u64, chunks: &[(Digest, u32)]) -> bool {
    if size <= CHUNK_BYTES_MAX as u64 {
        return chunks.is_empty();
    }
    let all = chunks.iter().all(|(_, size)| (1..=CHUNK_BYTES_MAX as u64).contains(&u64::from(*size)));
    all && chunks.iter().map(|(_, size)| u64::from(*size)).sum::<u64>() == size
}

/// Gives the chunks that were read to the file that they follow. There are none behind what is no large file.
fn give_chunks(entries: &mut [Entry], cut: &mut Vec<(Digest, u32)>, number: usize) -> Result<(), ManifestError> {
    if cut.is_empty() {
        return Ok(());
    }
    match entries.last_mut().map(|entry| &mut entry.kind) {
        Some(Kind::File { chunks, .. }) => {
            *chunks = std::mem::take(cut).into();
            Ok(())
        }
        _ => Err(ManifestError::Line { line: number - 1 }),
    }
}

fn parse_chunk(line: &[u8]) -> Option<(Digest, u32)> {
    let at = line.iter().position(|byte| *byte == b' ')?;
    let (size, rest) = line.split_at_checked(at)?;
    Some((digest(rest.get(1..)?)?, decimal(size)?))
}

/// A number as it is written: without a sign that says nothing, and without zeros in front.
fn decimal<N: std::str::FromStr>(field: &[u8]) -> Option<N> {
    let digits = field.strip_prefix(b"-").unwrap_or(field);
    let plain = digits.iter().all(u8::is_ascii_digit) && (digits.first() != Some(&b'0') || field == b"0");
    std::str::from_utf8(field).ok().filter(|_| plain)?.parse().ok()
}

/// Permission bits as they are written: three digits.
fn octal(field: &[u8]) -> Option<u32> {
    let digits = field.len() == 3 && field.iter().all(|byte| (b'0'..=b'7').contains(byte));
    std::str::from_utf8(field).ok().filter(|_| digits).and_then(|text| u32::from_str_radix(text, 8).ok())
}

/// A digest as it is written: in lower case, without a prefix.
fn digest(field: &[u8]) -> Option<Digest> {
    let mut bytes = [0; 32];
    let is_digest = !field.iter().any(u8::is_ascii_uppercase) && hex::decode_to_slice(field, &mut bytes).is_ok();
    is_digest.then(|| Digest::from_bytes(bytes))
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
