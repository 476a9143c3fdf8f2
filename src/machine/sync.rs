//! Brings bundles to directories of this machine: what the bits do, done below the agent's root.

use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use bytes::Bytes;

use super::root::{Root, STATE_NAME};
use super::{CallError, Change, SyncMode, SyncRules, with_causes};
use crate::bits::apply::kept::Kept;
use crate::bits::apply::{Applied, ApplyError, Destination, Mode, Plan, Rest, Rules};
use crate::bits::manifest::{Entry, Manifest};
use crate::bits::pack::{PackError, Packed, Unpacker};
use crate::limits::{MANIFEST_BYTES_MAX, TAKEN_BYTES_UNWRITTEN, TAKERS_MAX};
use crate::names::Digest;

/// The other side of a sync: who has the bundle.
pub trait Source {
    /// The compressed manifest. Asked for once, if it is not known here.
    ///
    /// # Errors
    /// When the other side is lost.
    fn manifest(&mut self) -> Result<Bytes, CallError>;

    /// Says which contents are lacking, as indices into the manifest's distinct contents. Said once, and not if none are.
    ///
    /// # Errors
    /// When the other side is lost.
    fn need(&mut self, contents: &[u32]) -> Result<(), CallError>;

    /// The next piece of the pack of what is needed; none after the last.
    ///
    /// # Errors
    /// When the other side is lost.
    fn piece(&mut self) -> Result<Option<Bytes>, CallError>;
}

impl From<SyncMode> for Mode {
    fn from(mode: SyncMode) -> Self {
        match mode {
            SyncMode::Push => Self::Push,
            SyncMode::Mirror => Self::Mirror,
            SyncMode::MirrorDeletingForeign => Self::MirrorDeletingForeign,
        }
    }
}

/// Brings the tree of a version to a destination. Blocks its thread.
///
/// Nothing at the destination is changed before all that is needed is there. The caller takes care that one sync at a time works on a root.
/// With `verify` every file is read, whatever is known of it.
///
/// # Errors
/// When the manifest is none, the destination may not be written to, something is in the way, the pack is not what was asked for, the
/// machine fails, or the source does.
pub fn sync(
    root: &Root,
    destination: &str,
    rules: SyncRules,
    version: &Digest,
    verify: bool,
    source: &mut (impl Source + Send),
) -> Result<Change, CallError> {
    let (change, rest) = sync_first(root, destination, rules, version, verify, source)?;
    if let Some(rest) = rest {
        rest.finish();
    }
    Ok(change)
}

/// As [`sync`], but answers when the tree is there: the rest is to be finished before the next one, and nobody need wait for it.
///
/// # Errors
/// As [`sync`].
pub fn sync_first(
    root: &Root,
    destination: &str,
    rules: SyncRules,
    version: &Digest,
    verify: bool,
    source: &mut (impl Source + Send),
) -> Result<(Change, Option<Rest>), CallError> {
    let rules = Rules { mode: rules.mode.into(), max_delete_percent: rules.max_delete_percent };
    with_place(root, destination, verify, |place| bring(place, rules, version, source))
}

fn bring(
    place: &Destination<'_>,
    rules: Rules,
    version: &Digest,
    source: &mut (impl Source + Send),
) -> Result<(Change, Option<Rest>), CallError> {
    if let Some(applied) = place.unchanged(version, rules.mode).map_err(not_applied)? {
        return Ok((change(applied, 0), None));
    }
    let mut plan = thread::scope(|scope| {
        // To look at everything takes as long as to have the manifest and to read what was put there.
        let looking = scope.spawn(|| place.ahead(rules.mode));
        let manifest = match place.manifest(version).map_err(not_applied)? {
            Some(manifest) => manifest,
            None => read_manifest(&source.manifest()?, version)?,
        };
        let ledger = place.ledger().map_err(not_applied)?;
        let ahead = looking.join().map_err(|_| broken("looked at the destination"))?;
        place.plan_with(manifest, rules, ahead, ledger).map_err(not_applied)
    })?;
    let mut bytes_sent = 0;
    if !plan.missing().is_empty() {
        let contents = plan.manifest().contents();
        bytes_sent = plan.missing().iter().filter_map(|index| contents.get(*index as usize)).map(|(_, size)| size).sum();
        source.need(plan.missing())?;
        plan.begin_taking().map_err(not_applied)?;
        take(&plan, source)?;
    }
    let (applied, rest) = plan.switch_first().map_err(not_applied)?;
    Ok((change(applied, bytes_sent), Some(rest)))
}

/// Takes the pack of what is missing, on several threads: to decompress, to hash and to write takes longer than to receive.
fn take(plan: &Plan, source: &mut (impl Source + Send)) -> Result<(), CallError> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(TAKERS_MAX);
    let incoming = Mutex::new(Incoming { source, unpacker: Unpacker::default(), is_over: false });
    let lock = || incoming.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = AtomicU64::new(0);
    let work = |full: &SyncSender<()>| {
        let mut taker = plan.taker().map_err(not_applied)?;
        while let Some(records) = { lock().next()? } {
            records.iter().try_for_each(|packed| taker.take(packed)).map_err(not_applied)?;
            let more = records.iter().map(|packed| u64::from(packed.size)).sum();
            let before = bytes.fetch_add(more, Ordering::Relaxed);
            if before / TAKEN_BYTES_UNWRITTEN < (before + more) / TAKEN_BYTES_UNWRITTEN {
                // If it writes still, it goes on with this.
                let _ = full.try_send(());
            }
        }
        Ok(())
    };
    let work = |full: SyncSender<()>| {
        let worked = work(&full);
        lock().is_over |= worked.is_err();
        worked
    };
    thread::scope(|scope| {
        let (full, filled) = mpsc::sync_channel(1);
        let mut others: Vec<_> = (1..threads).map(|_| full.clone()).map(|full| scope.spawn(|| work(full))).collect();
        others.push(scope.spawn(move || filled.iter().try_for_each(|()| plan.sync_taken()).map_err(not_applied)));
        let mine = work(full);
        let took = |other: thread::ScopedJoinHandle<'_, _>| other.join().unwrap_or_else(|_| Err(broken("took contents")));
        others.into_iter().map(took).fold(mine, Result::and)
    })
}

fn broken(doing: &str) -> CallError {
    CallError::Other(format!("the agent failed while it {doing}"))
}

/// A pack that is coming in.
struct Incoming<'a, S> {
    source: &'a mut S,
    unpacker: Unpacker,
    /// Whether nothing more is to be read: the pack has ended, or somebody failed.
    is_over: bool,
}

impl<S: Source> Incoming<'_, S> {
    /// The next records, perhaps none yet; nothing after the last.
    fn next(&mut self) -> Result<Option<Vec<Packed>>, CallError> {
        if self.is_over {
            return Ok(None);
        }
        let Some(piece) = self.source.piece()? else {
            self.is_over = true;
            return self.unpacker.finish().map(|()| None).map_err(not_unpacked);
        };
        self.unpacker.feed(&piece);
        std::iter::from_fn(|| self.unpacker.record().transpose()).collect::<Result<_, _>>().map(Some).map_err(not_unpacked)
    }
}

/// A tree that a destination held before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its number; later ones are larger.
    pub number: u64,
    /// The version of the bundle that it was.
    pub version: Digest,
    /// Its files and symlinks.
    pub files: u64,
    /// How many of its files are lacking: neither kept nor at the destination. Only one that lacks none can be had again.
    pub lacking: u64,
}

/// The trees that a destination held before, the newest last.
///
/// # Errors
/// When the destination can not be, or the machine fails.
pub fn generations(root: &Root, destination: &str) -> Result<Vec<Generation>, CallError> {
    with_place(root, destination, false, |place| {
        let kept = Kept::open(place.state, place.key).map_err(not_read)?;
        let ledger = place.ledger().map_err(not_applied)?;
        let known = kept.generations().iter().map(|number| {
            let manifest = kept.manifest(*number).map_err(not_read)?;
            let lacking = kept.lacking(&manifest, &ledger).map_err(not_read)?.len() as u64;
            Ok(Generation { number: *number, version: manifest.version(), files: manifest.files(), lacking })
        });
        known.collect()
    })
}

/// Puts back a tree that a destination held before.
///
/// # Errors
/// When it is not kept, or something of it is not any more; when it can not be put there.
pub fn rollback(root: &Root, destination: &str, generation: u64) -> Result<Change, CallError> {
    with_place(root, destination, false, |place| {
        let kept = Kept::open(place.state, place.key).map_err(not_read)?;
        let manifest = kept.manifest(generation).map_err(|_| CallError::NotFound(format!("generation {generation} of `{}`", place.key)))?;
        let plan = place.plan(manifest, Rules { mode: Mode::Mirror, max_delete_percent: 100 }).map_err(not_applied)?;
        let lacks = |entry: &&Entry| {
            let mut contents = entry.contents().filter_map(|(digest, _)| plan.manifest().content_index(&digest));
            contents.any(|index| plan.missing().binary_search(&index).is_ok())
        };
        let mut lacking = plan.manifest().entries().iter().filter(lacks);
        match lacking.next() {
            None => Ok(change(plan.switch().map_err(not_applied)?, 0)),
            Some(Entry { path, .. }) => Err(CallError::NotFound(format!(
                "`{path}` and {} other files of generation {generation}: they were changed at the destination before they were replaced, or \
                 are kept no longer; have the server bring that version again, {}",
                lacking.count(),
                plan.manifest().version()
            ))),
        }
    })
}

fn not_read(error: std::io::Error) -> CallError {
    CallError::Other(format!("what is kept can not be read: {error}"))
}

/// Does something with a destination.
fn with_place<T>(
    root: &Root,
    destination: &str,
    verify: bool,
    work: impl FnOnce(&Destination<'_>) -> Result<T, CallError>,
) -> Result<T, CallError> {
    let destination = root.destination(destination)?;
    let key = destination.absolute.to_str();
    let key = key.ok_or_else(|| CallError::Invalid(format!("`{}` leads to a path that is not Unicode", destination.absolute.display())))?;
    let protect = destination.holds_own.then_some(Path::new(STATE_NAME));
    work(&Destination { base: &destination.base, path: &destination.path, state: root.state(), key, protect, verify })
}

/// Reads a manifest as it is sent.
fn read_manifest(packed: &[u8], version: &Digest) -> Result<Manifest, CallError> {
    let invalid = |why: String| CallError::Invalid(format!("the manifest that was sent: {why}"));
    let mut text = Vec::new();
    let unpacked =
        zstd::Decoder::with_buffer(packed).and_then(|decoder| decoder.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut text));
    unpacked.map_err(|error| invalid(error.to_string()))?;
    let manifest = Manifest::parse(&text).map_err(|error| invalid(with_causes(&error)))?;
    if manifest.version() == *version { Ok(manifest) } else { Err(invalid("it is that of another version".into())) }
}

fn change(applied: Applied, bytes_sent: u64) -> Change {
    Change {
        changed: applied.changed,
        files: applied.files,
        files_changed: applied.files_changed,
        files_removed: applied.files_removed,
        bytes: applied.bytes,
        bytes_sent,
    }
}

/// What a call answers when a manifest can not be applied.
pub(crate) fn not_applied(error: ApplyError) -> CallError {
    let text = with_causes(&error);
    match error {
        ApplyError::Own(_) | ApplyError::Planted(_) | ApplyError::TooMany { .. } => CallError::Denied(text),
        ApplyError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => CallError::Denied(text),
        ApplyError::Path { .. } | ApplyError::Conflict { .. } | ApplyError::CaseClash(..) | ApplyError::Manifest(_) => {
            CallError::Invalid(text)
        }
        _ => CallError::Other(text),
    }
}

fn not_unpacked(error: PackError) -> CallError {
    CallError::Other(with_causes(&error))
}
