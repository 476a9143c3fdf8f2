//! What the files of a destination looked like when they were last known to be what the ledger says, so that what is unchanged is known
//! from looking, not from reading.
//!
//! The index is a hint and no more: an entry counts only while the file has the same size, inode and times as then, and was not changed so
//! shortly before it was looked at that a further change might have left no trace. An index that is damaged, or that came from elsewhere
//! with the tree, is as good as none.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt as _};
use rustix::time::{ClockId, clock_gettime};

use super::manifest::{Kind, Manifest};
use super::near::ByPath;
use super::path::TreePath;
use super::tree::{self, Seen, Stamp, Walker};
use crate::limits::MANIFEST_BYTES_MAX;
use crate::names::Digest;

const HEAD: &[u8] = b"muster-index 1\n";
/// A clock that stamps files goes at least so often: a hundred times a second, on the slowest of kernels.
const GRAIN_NS: i64 = 20_000_000;
/// How long it is waited for a moment at which what was just put can be relied upon.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// As [`GRAIN_NS`], on file systems that keep no fractions of seconds.
const COARSE_GRAIN_NS: i64 = 2_000_000_000;
const DIRECTORY: u8 = 0;
const FILE: u8 = 1;
const SYMLINK: u8 = 2;

/// The moment before files are looked at, by the clock that stamps them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(i64);

impl Moment {
    pub(super) fn now() -> Self {
        #[cfg(target_os = "linux")]
        let now = clock_gettime(ClockId::RealtimeCoarse);
        #[cfg(not(target_os = "linux"))]
        let now = clock_gettime(ClockId::Realtime);
        Self(now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec))
    }

    /// Whether a file that looks like this was changed long enough before this moment for any later change to show.
    fn is_past(self, stamp: Stamp) -> bool {
        reliable_from(stamp) < self.0
    }
}

/// When any later change of a file shows that looks like this, by the clock that stamps it. That clock may be ahead of the coarse one.
fn reliable_from(stamp: Stamp) -> i64 {
    let grain = if stamp.ctime_ns % 1_000_000_000 == 0 { COARSE_GRAIN_NS } else { GRAIN_NS };
    stamp.ctime_ns.max(stamp.mtime_ns).saturating_add(grain)
}

/// How a file that is as it should be looks; none if that must not be relied upon.
pub(super) fn reliable(seen: &Seen, since: Moment) -> Option<(u64, Stamp)> {
    match seen {
        Seen::File { size, stamp, .. } if since.is_past(*stamp) => Some((*size, *stamp)),
        _ => None,
    }
}

/// Looks at files that were put a moment ago, and answers how those look that are still what was staged. Waits until what was just changed
/// can be relied upon: otherwise the next apply would have to read it all.
pub(super) fn look_again<'a>(
    staged: impl Iterator<Item = (&'a TreePath, (u64, Stamp))>,
    walker: &mut Walker,
) -> HashMap<TreePath, (u64, Stamp)> {
    let mut staged: Vec<_> = staged.collect();
    staged.sort_unstable_by_key(|(path, _)| *path);
    let mut look = || {
        let since = Moment::now();
        let mut later = Vec::new();
        let mut looks = HashMap::with_capacity(staged.len());
        for (path, (size_before, before)) in &staged {
            match walker.look(path) {
                Ok(Some(Seen::File { size, stamp, .. })) if is_same(*size_before, *before, size, stamp) => match since.is_past(stamp) {
                    true => drop(looks.insert((*path).clone(), (size, stamp))),
                    false => later.push(reliable_from(stamp)),
                },
                _ => {}
            }
        }
        (looks, later)
    };
    let (looks, later) = look();
    let begun = Instant::now();
    let latest = Moment::now().0.saturating_add(i64::try_from(WAIT_MAX.as_nanos()).unwrap_or(i64::MAX));
    // One whose time is in the future is not waited for.
    let Some(until) = later.into_iter().filter(|until| *until < latest).max() else { return looks };
    while Moment::now().0 <= until && begun.elapsed() < 2 * WAIT_MAX {
        std::thread::sleep(Duration::from_millis(2));
    }
    look().0
}

/// Whether a file is one that was seen before, with the same content: only its name was changed meanwhile.
pub(super) fn is_same(size_before: u64, before: Stamp, size: u64, stamp: Stamp) -> bool {
    size == size_before && stamp.inode == before.inode && stamp.mtime_ns == before.mtime_ns
}

/// What an index says of a destination.
#[derive(Debug)]
pub(super) struct Index {
    /// The bundle that was brought there last.
    pub(super) bundle: Digest,
    /// Whether there is nothing else of Muster's there.
    pub(super) is_all: bool,
    files: u64,
    bytes: u64,
    records: Vec<u8>,
    count: usize,
}

/// One entry, as it lies in the index.
struct Record<'a> {
    kind: u8,
    mode: u32,
    size: u64,
    stamp: Option<Stamp>,
    path: &'a [u8],
    target: &'a [u8],
}

fn file(key: &str) -> String {
    format!("{}.index", Digest::of(key.as_bytes()))
}

impl Index {
    /// Reads the index of a destination; none if there is none, or it can not be used.
    pub(super) fn read(trees: &Dir, key: &str) -> Option<Self> {
        let mut bytes = Vec::new();
        let open = tree::open_file(trees, file(key).as_bytes()).ok()?;
        open.take(2 * MANIFEST_BYTES_MAX as u64).read_to_end(&mut bytes).ok()?;
        let body = bytes.len().checked_sub(32)?;
        let sum = bytes.split_off(body);
        if Digest::of(&bytes).as_bytes() != sum.as_slice() {
            return None;
        }
        let mut rest = bytes.strip_prefix(HEAD)?;
        let bundle = Digest::from_bytes(*take(&mut rest)?);
        let [is_all] = *take(&mut rest)?;
        let [files, bytes_, count] = [number(&mut rest)?, number(&mut rest)?, number(&mut rest)?];
        let records = rest.to_vec();
        Some(Self { bundle, is_all: is_all == 1, files, bytes: bytes_, records, count: usize::try_from(count).ok()? })
    }

    /// Files and symlinks, and bytes, of the bundle that was brought there last.
    pub(super) fn sizes(&self) -> (u64, u64) {
        (self.files, self.bytes)
    }

    fn records(&self) -> impl Iterator<Item = Option<Record<'_>>> {
        let mut rest = self.records.as_slice();
        (0..self.count).map(move |_| Record::read(&mut rest))
    }

    /// Whether all of it still looks as it did, and, if it is to be `alone`, nothing else is there.
    ///
    /// # Errors
    /// If something can not be looked at.
    pub(super) fn still_holds(&self, walker: &mut Walker, alone: bool) -> io::Result<bool> {
        // How many names are known in each directory.
        let mut known: HashMap<&[u8], HashSet<&[u8]>> = HashMap::new();
        if alone {
            known.entry(&[]).or_default();
        }
        for record in self.records() {
            let Some(record) = record else { return Ok(false) };
            let same = match walker.look_bytes(record.path)? {
                Some(Seen::Directory(mode)) => record.kind == DIRECTORY && record.mode == mode & 0o777,
                Some(Seen::File { mode, size, stamp }) => {
                    record.kind == FILE && record.mode == mode && record.size == size && record.stamp == Some(stamp)
                }
                Some(Seen::Symlink(target)) => record.kind == SYMLINK && *record.target == *target,
                Some(Seen::Other) | None => false,
            };
            if !same {
                return Ok(false);
            }
            let mut path = record.path;
            while alone
                && let (above, name) = split(path)
                && known.entry(above).or_default().insert(name)
                && !above.is_empty()
            {
                path = above;
            }
            if alone && record.kind == DIRECTORY {
                known.entry(record.path).or_default();
            }
        }
        for (directory, names) in known {
            let Some(dir) = walker.directory_of(directory)? else { return Ok(false) };
            if tree::reopen(dir)?.entries()?.count() != names.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The paths that it knows.
    pub(super) fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.records().flatten().map(|record| record.path)
    }

    /// How the files looked of which it may be relied upon.
    pub(super) fn stamps(&self) -> ByPath<(u64, Stamp)> {
        let known = self.records().flatten().filter_map(|record| {
            let path = TreePath::from_bytes(record.path).ok()?;
            Some((path, (record.size, record.stamp?)))
        });
        known.collect()
    }
}

impl<'a> Record<'a> {
    fn read(rest: &mut &'a [u8]) -> Option<Self> {
        let [kind, known] = *take(rest)?;
        let mode = u32::from_le_bytes(*take(rest)?);
        let size = number(rest)?;
        let stamp = Stamp { inode: number(rest)?, mtime_ns: i64::from_le_bytes(*take(rest)?), ctime_ns: i64::from_le_bytes(*take(rest)?) };
        let path = text(rest)?;
        let target = if kind == SYMLINK { text(rest)? } else { &[] };
        Some(Self { kind, mode, size, stamp: (known == 1).then_some(stamp), path, target })
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend([self.kind, u8::from(self.stamp.is_some())]);
        bytes.extend(self.mode.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        let stamp = self.stamp.unwrap_or(Stamp { inode: 0, mtime_ns: 0, ctime_ns: 0 });
        bytes.extend(stamp.inode.to_le_bytes());
        bytes.extend(stamp.mtime_ns.to_le_bytes());
        bytes.extend(stamp.ctime_ns.to_le_bytes());
        let texts = [Some(self.path), Some(self.target).filter(|_| self.kind == SYMLINK)];
        for text in texts.into_iter().flatten() {
            // A path is far shorter than that.
            bytes.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend(text);
        }
    }
}

/// Writes the index of a destination: all that is Muster's there, and how its files look.
///
/// It need not be durable: one that was cut off is damaged, and known as such.
///
/// # Errors
/// If it can not be written.
pub(super) fn write(
    trees: &Dir,
    key: &str,
    bundle: &Manifest,
    ledger: &Manifest,
    stamp: impl Fn(&TreePath) -> Option<(u64, Stamp)>,
) -> io::Result<()> {
    let mut bytes = HEAD.to_vec();
    bytes.extend(bundle.version().as_bytes());
    bytes.push(u8::from(bundle.version() == ledger.version()));
    for number in [bundle.files(), bundle.bytes(), ledger.entries().len() as u64] {
        bytes.extend(number.to_le_bytes());
    }
    for entry in ledger.entries() {
        let record = match &entry.kind {
            Kind::Directory => Record { kind: DIRECTORY, mode: entry.mode, size: 0, stamp: None, path: entry.path.as_bytes(), target: &[] },
            Kind::Symlink { target } => Record { kind: SYMLINK, mode: 0, size: 0, stamp: None, path: entry.path.as_bytes(), target },
            Kind::File { size, .. } => {
                // What does not look as it should is not known.
                let stamp = stamp(&entry.path).filter(|(seen, _)| seen == size).map(|(_, stamp)| stamp);
                Record { kind: FILE, mode: entry.mode, size: *size, stamp, path: entry.path.as_bytes(), target: &[] }
            }
        };
        record.write(&mut bytes);
    }
    bytes.extend(Digest::of(&bytes).as_bytes());
    let (file, beside) = (file(key), format!("{}.new", file(key)));
    trees.open_with(&beside, OpenOptions::new().write(true).create(true).truncate(true).mode(0o600))?.write_all(&bytes)?;
    trees.rename(&beside, trees, &file)
}

/// Removes the index of a destination, whose files are about to be changed.
pub(super) fn forget(trees: &Dir, key: &str) {
    // One that stays would still be found not to hold.
    let _ = trees.remove_file(file(key));
}

/// The directory that a path is in, and its name there.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(taken)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*take(rest)?))
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u16::from_le_bytes(*take(rest)?);
    let (text, left) = rest.split_at_checked(length.into())?;
    *rest = left;
    Some(text)
}
