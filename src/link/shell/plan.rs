//! What a survey decided, as the list that a machine's shell carries out, and what has to be sent for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::snapshot::Snapshot;
use super::{CallError, invalid};
use crate::bits::apply::survey::Steps;
use crate::bits::manifest::{Entry, Kind, Manifest};
use crate::bits::path::TreePath;
use crate::bits::scan::Spot;
use crate::bits::tree::Seen;
use crate::link::quote::quote;
use crate::names::Digest;

/// Names on one line of a list, which become arguments of one program.
const LINE_NAMES_MAX: usize = 500;
/// Bytes of names on one line.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Text for a shell: calls, each word as it is.
#[derive(Debug, Default)]
pub(super) struct List {
    text: Vec<u8>,
    /// What the line that is being written begins with, and how many names and bytes of names it has.
    line: Option<(Vec<u8>, usize, usize)>,
}

impl List {
    /// A line of its own.
    pub(super) fn line(&mut self, words: &[&[u8]]) -> Result<(), CallError> {
        self.close();
        self.text.extend(written(words)?);
        self.text.push(b'\n');
        Ok(())
    }

    /// A name, on a line with others that begins with these words.
    pub(super) fn name(&mut self, words: &[&[u8]], name: &[u8]) -> Result<(), CallError> {
        let head = written(words)?;
        let name = quote(name).map_err(invalid)?;
        let fits = |line: &(Vec<u8>, usize, usize)| line.0 == head && line.1 < LINE_NAMES_MAX && line.2 + name.len() <= LINE_BYTES_MAX;
        if !self.line.as_ref().is_some_and(fits) {
            self.close();
            self.text.extend_from_slice(&head);
            self.line = Some((head, 0, 0));
        }
        self.text.push(b' ');
        self.text.extend_from_slice(&name);
        if let Some((_, names, bytes)) = &mut self.line {
            *names += 1;
            *bytes += name.len();
        }
        Ok(())
    }

    /// A path, as a directory and a name in it.
    fn path(&mut self, words: &[&[u8]], path: &TreePath) -> Result<(), CallError> {
        let parent = path.parent();
        let directory = parent.as_ref().map_or(b".".as_slice(), TreePath::as_bytes);
        self.name(&[words, &[directory]].concat(), path.name())
    }

    fn close(&mut self) {
        if self.line.take().is_some() {
            self.text.push(b'\n');
        }
    }

    /// The text, whole.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.close();
        self.text.extend_from_slice(b"end\n");
        self.text
    }
}

fn written(words: &[&[u8]]) -> Result<Vec<u8>, CallError> {
    let mut text = Vec::new();
    for word in words {
        if !text.is_empty() {
            text.push(b' ');
        }
        text.extend(quote(word).map_err(invalid)?);
    }
    Ok(text)
}

/// A file that is sent: a whole one of the bundle, or a piece that some are put together of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    /// Where it is gathered.
    pub(super) name: Vec<u8>,
    /// The index of its content.
    pub(super) content: u32,
    /// Its permission bits.
    pub(super) mode: u32,
    /// When it was last changed, in seconds since 1970.
    pub(super) mtime: u64,
}

/// What is to be sent, and what is done with it.
#[derive(Debug)]
pub(super) struct Plan {
    /// What is sent, unless it is there already. Each content once.
    pub(super) sent: Vec<Sent>,
    /// The list for `muster_switch`.
    pub(super) list: Vec<u8>,
}

/// Writes a survey's steps down.
pub(super) fn plan(manifest: &Manifest, steps: &Steps, snapshot: &Snapshot) -> Result<Plan, CallError> {
    let put: Vec<&Entry> = entries(manifest, &steps.put).collect();
    let mut making = Making { manifest, sources: &steps.sources, uses: uses(manifest, &put), sent: BTreeMap::new(), list: List::default() };
    if !snapshot.exists {
        making.list.line(&[b"whole"])?;
    }
    for entry in &put {
        making.make(entry)?;
    }
    let Making { sent, mut list, .. } = making;
    let loose = loosened(steps, &put, snapshot);
    for (path, mode) in &loose {
        list.path(&[b"mode", octal(mode | 0o700).as_bytes()], path)?;
    }
    for path in &steps.clear {
        list.path(&[b"clear"], path)?;
    }
    for path in &steps.make {
        list.path(&[b"mkd"], path)?;
    }
    for entry in &put {
        list.path(&[b"move"], &entry.path)?;
    }
    let dressed = put.iter().copied().filter(|entry| sent_mode(entry) != entry.mode || sent_mtime(entry).1);
    let dressed = dressed.chain(entries(manifest, &steps.touch));
    let mut times: Vec<(i64, &Entry)> = dressed
        .filter_map(|entry| match entry.kind {
            Kind::File { mtime, .. } => Some((mtime, entry)),
            _ => None,
        })
        .collect();
    // What is alike shares a line.
    times.sort_by_key(|(_, entry)| entry.mode);
    for (_, entry) in &times {
        list.path(&[b"mode", octal(entry.mode).as_bytes()], &entry.path)?;
    }
    times.sort_by_key(|(mtime, _)| *mtime);
    for (mtime, entry) in &times {
        list.path(&[b"mtime", mtime.to_string().as_bytes()], &entry.path)?;
    }
    let directories: BTreeSet<&TreePath> =
        snapshot.all.iter().flatten().filter(|(_, seen)| matches!(seen, Seen::Directory(_))).map(|(path, _)| path).collect();
    let cleared: BTreeSet<&TreePath> = steps.clear.iter().collect();
    for path in steps.stale.iter().filter(|path| !cleared.contains(path)) {
        let is_directory = matches!(snapshot.seen.get(path), Some(Some(Seen::Directory(_)))) || directories.contains(path);
        list.path(&[if is_directory { b"staledir".as_slice() } else { b"stale" }], path)?;
    }
    let listed: BTreeSet<&TreePath> = steps.directory_modes.iter().map(|(path, _)| path).collect();
    for (path, mode) in loose.iter().rev().filter(|(path, _)| !listed.contains(path) && !cleared.contains(path)) {
        list.path(&[b"restore", octal(*mode).as_bytes()], path)?;
    }
    for (path, mode) in &steps.directory_modes {
        list.path(&[b"mode", octal(*mode).as_bytes()], path)?;
    }
    Ok(Plan { sent: sent.into_values().collect(), list: list.end() })
}

fn entries<'a>(manifest: &'a Manifest, indices: &'a [usize]) -> impl Iterator<Item = &'a Entry> {
    indices.iter().filter_map(|index| manifest.entries().get(*index))
}

fn octal(mode: u32) -> String {
    format!("{mode:03o}")
}

/// How many of these files are one content.
fn uses(manifest: &Manifest, put: &[&Entry]) -> HashMap<u32, u32> {
    let mut uses = HashMap::new();
    for (digest, _) in put.iter().flat_map(|entry| entry.contents()) {
        if let Some(index) = manifest.content_index(&digest) {
            *uses.entry(index).or_default() += 1;
        }
    }
    uses
}

/// The mode in which a file is gathered: what is gathered is read again.
fn sent_mode(entry: &Entry) -> u32 {
    match entry.kind {
        Kind::File { .. } => entry.mode | 0o400,
        _ => entry.mode,
    }
}

/// The time with which a file is gathered, and whether it is another than it is to have: `tar` knows none before 1970.
fn sent_mtime(entry: &Entry) -> (u64, bool) {
    match entry.kind {
        Kind::File { mtime, .. } => (u64::try_from(mtime).unwrap_or(0), mtime < 0),
        _ => (0, false),
    }
}

/// The first reading of the list, while it is written.
struct Making<'a> {
    manifest: &'a Manifest,
    sources: &'a HashMap<u32, Spot>,
    uses: HashMap<u32, u32>,
    sent: BTreeMap<u32, Sent>,
    list: List,
}

impl Making<'_> {
    /// Writes down how a file or symlink comes to be.
    fn make(&mut self, entry: &Entry) -> Result<(), CallError> {
        let path = entry.path.as_bytes();
        let (digest, chunks) = match &entry.kind {
            Kind::Directory => return Ok(()),
            Kind::Symlink { target } => return self.list.line(&[b"link", path, target]),
            Kind::File { digest, chunks, .. } => (digest.to_string(), chunks),
        };
        let (mode, mtime) = (sent_mode(entry), sent_mtime(entry).0);
        let only = entry.contents().next().and_then(|(digest, _)| self.manifest.content_index(&digest));
        if let Some(content) = only
            && chunks.is_empty()
            && !self.sources.contains_key(&content)
            && self.uses.get(&content) == Some(&1)
        {
            self.sent.insert(content, Sent { name: [b"t/", path].concat(), content, mode, mtime });
            return self.list.line(&[b"file", digest.as_bytes(), path]);
        }
        let (mode, mtime) = (octal(mode), mtime.to_string());
        let parts = self.parts(entry)?;
        let mut words: Vec<&[u8]> = vec![b"build", digest.as_bytes(), mode.as_bytes(), mtime.as_bytes(), path];
        words.extend(parts.iter().map(Vec::as_slice));
        self.list.line(&words)
    }

    /// What a file is put together of, in its order; what lies together at the destination is one part.
    fn parts(&mut self, entry: &Entry) -> Result<Vec<Vec<u8>>, CallError> {
        let mut parts = Vec::new();
        let mut old: Option<Spot> = None;
        let written = |spot: Spot| [format!("{}:{}:", spot.offset, spot.size).as_bytes(), spot.path.as_bytes()].concat();
        for (digest, _) in entry.contents() {
            let index = self.manifest.content_index(&digest).ok_or_else(|| unknown(&digest))?;
            if let Some(spot) = self.sources.get(&index) {
                match &mut old {
                    Some(before) if before.path == spot.path && before.offset + before.size == spot.offset => before.size += spot.size,
                    _ => parts.extend(old.replace(spot.clone()).map(written)),
                }
                continue;
            }
            parts.extend(old.take().map(written));
            let name = format!("c/{index}").into_bytes();
            self.sent.insert(index, Sent { name, content: index, mode: 0o600, mtime: 0 });
            parts.push(index.to_string().into_bytes());
        }
        parts.extend(old.map(written));
        Ok(parts)
    }
}

fn unknown(digest: &Digest) -> CallError {
    CallError::Other(format!("content {digest} is not in its manifest"))
}

/// Directories that have to be made writable, the highest first, with the modes that they have.
fn loosened<'a>(steps: &'a Steps, put: &[&'a Entry], snapshot: &Snapshot) -> Vec<(TreePath, u32)> {
    let changed = steps.clear.iter().chain(&steps.make).chain(&steps.stale).chain(put.iter().map(|entry| &entry.path));
    let parents: BTreeSet<TreePath> = changed.filter_map(TreePath::parent).collect();
    let tight = |path: TreePath| match snapshot.seen.get(&path) {
        Some(Some(Seen::Directory(mode))) if mode & 0o300 != 0o300 => Some((path, mode & 0o777)),
        _ => None,
    };
    parents.into_iter().filter_map(tight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_directory_share_a_line_and_words_are_as_they_are() {
        let mut list = List::default();
        for path in ["a/x", "a/it's", "b/y"] {
            list.path(&[b"move"], &TreePath::from_bytes(path.as_bytes()).unwrap()).unwrap();
        }
        list.line(&[b"whole"]).unwrap();
        list.path(&[b"move"], &TreePath::from_bytes(b"top").unwrap()).unwrap();
        let text = String::from_utf8(list.end()).unwrap();
        assert_eq!(text, "'move' 'a' 'x' 'it'\\''s'\n'move' 'b' 'y'\n'whole'\n'move' '.' 'top'\nend\n");
    }

    #[test]
    fn a_line_has_no_more_names_than_a_program_takes() {
        let mut list = List::default();
        for number in 0..1200 {
            list.name(&[b"p"], number.to_string().as_bytes()).unwrap();
        }
        assert_eq!(list.end().iter().filter(|byte| **byte == b'\n').count(), 4);
    }
}
