//! Bringing a bundle to a machine with a shell.
//!
//! The machine keeps a text of ours: the manifest that a destination was brought to, and how its files looked then. With that and one look
//! at each of its paths the survey is made here. What is missing goes there as one tar stream, is gathered beside, verified, and moved to
//! its place. A stream that was cut off leaves what came, which is not sent again.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bytes::Bytes;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot};

use super::plan::{List, Sent, plan};
use super::snapshot::{Lacking, Snapshot, View};
use super::{CallError, Change, Input, Shell, odd};
use crate::bits::apply::survey::{Steps, Survey};
use crate::bits::apply::{ApplyError, Mode};
use crate::bits::chunk::Content;
use crate::bits::contents::{Bundle, Reading};
use crate::bits::ledger::{Ledger, is};
use crate::bits::manifest::{Entry, Kind, Manifest};
use crate::bits::pack::Opener;
use crate::bits::path::TreePath;
use crate::bits::tree::{Seen, Stamp};
use crate::limits::{
    PIECE_BYTES, READER_STALL_TIMEOUT, SHELL_ANSWER_BYTES_MAX, SHELL_BEGUN_MAX, SHELL_MANIFEST_BYTES_MAX, SHELL_TREE_BYTES_MAX,
};
use crate::machine::sync::not_applied;
use crate::machine::{SyncRules, with_causes};
use crate::names::Digest;

/// What the text begins with that a machine keeps of a destination; the bytes of the manifest follow on the line.
const HEAD: &str = "muster-shell 1 ";
/// Pieces of a tar stream that wait to be sent.
const PIECES_WAITING: usize = 4;

/// How files looked, by size and stamp.
type Stamps = HashMap<TreePath, (u64, Stamp)>;

pub(super) async fn sync(shell: &Shell, destination: &str, bundle: &Bundle, rules: SyncRules) -> Result<Change, CallError> {
    let mode = rules.mode.into();
    let manifest = &*bundle.manifest;
    let far = Far::new(shell, destination);
    let (ledger, known) = far.ledger().await?;
    let paths = paths(manifest, &ledger);
    let contents = contents(manifest.entries().iter().chain(ledger.entries()));
    let mut snapshot = Snapshot { known, contents, ..Snapshot::default() };
    let now = far.look(&mut snapshot, &paths, mode == Mode::MirrorDeletingForeign).await?;
    let steps = far.survey(&mut snapshot, &ledger, manifest, mode, rules.max_delete_percent).await?;

    let is_there = |entry: &Entry| snapshot.seen.get(&entry.path).is_some_and(|seen| seen.as_ref().is_some_and(|seen| is(entry, seen)));
    let after = if mode == Mode::Push { ledger.with(manifest, is_there) } else { Ok(manifest.clone()) };
    let after = after.map_err(|error| not_applied(error.into()))?;
    let is_recorded = ledger.settled() == Some(&after);
    let mut stamps: Stamps = steps.unchanged.iter().filter(|(_, (_, stamp))| is_past(*stamp, now)).map(owned).collect();
    stamps.extend(snapshot.known.iter().filter(|(path, _)| manifest.get(path).is_none()).map(owned));
    let mut change = Change { files: manifest.files(), bytes: manifest.bytes(), ..Change::default() };
    let is_unchanged = steps.is_empty() && snapshot.exists;
    if is_unchanged && is_recorded && stamps == snapshot.known {
        return Ok(change);
    }
    far.begin(&text(&after, &stamps)?).await?;
    if !is_unchanged {
        change.bytes_sent = far.bring(bundle, &steps, &snapshot).await?;
        change.changed = true;
        change.files_changed = (steps.put.len() + steps.touch.len()) as u64;
        change.files_removed = steps.files_removed;
        let put = steps.put.iter().filter_map(|index| manifest.entries().get(*index));
        let put: BTreeSet<TreePath> = put.map(|entry| entry.path.clone()).collect();
        let mut seen = Snapshot::default();
        let now = far.look(&mut seen, &put, false).await?;
        stamps.extend(seen.seen.into_iter().filter_map(|(path, seen)| match (seen, manifest.get(&path).map(|entry| &entry.kind)) {
            // The time of a change of anything is now. Who changes it again in this second, and not its size, shows by the other time,
            // which was set to what the bundle says.
            (Some(Seen::File { size, stamp, .. }), Some(Kind::File { size: wanted, mtime, .. }))
                if size == *wanted && stamp.mtime() == *mtime && is_past(stamp, now) =>
            {
                Some((path, (size, stamp)))
            }
            // What somebody changed meanwhile is read the next time, and so is what only was given another time.
            _ => None,
        }));
        far.begin(&text(&after, &stamps)?).await?;
    }
    far.settle().await?;
    Ok(change)
}

fn owned<'a>((path, seen): (&'a TreePath, &'a (u64, Stamp))) -> (TreePath, (u64, Stamp)) {
    (path.clone(), *seen)
}

/// Does what takes the processor for long and leaves the runtime's other work to other threads.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Whether a file was changed long enough before it was looked at for any later change to show: the machine tells whole seconds.
fn is_past(stamp: Stamp, now: i64) -> bool {
    stamp.mtime() < now - 1
}

/// Everything that the survey looks at.
fn paths(manifest: &Manifest, ledger: &Ledger) -> BTreeSet<TreePath> {
    let mut paths: BTreeSet<TreePath> = manifest.entries().iter().chain(ledger.entries()).map(|entry| entry.path.clone()).collect();
    let mut above = BTreeSet::new();
    for entry in manifest.entries() {
        let parents = std::iter::successors(entry.path.parent(), TreePath::parent);
        above.extend(parents.take_while(|path| !above.contains(path)).collect::<Vec<_>>());
    }
    paths.extend(above);
    paths
}

/// What the files of some manifests hold, by the digest of the whole.
fn contents<'a>(entries: impl Iterator<Item = &'a Entry>) -> HashMap<Digest, Content> {
    let large = entries.filter_map(|entry| match &entry.kind {
        Kind::File { size, digest, chunks, .. } if !chunks.is_empty() => {
            Some((*digest, Content { size: *size, digest: *digest, chunks: chunks.clone() }))
        }
        _ => None,
    });
    large.collect()
}

/// What a machine keeps of a destination.
fn text(manifest: &Manifest, stamps: &Stamps) -> Result<Bytes, CallError> {
    let manifest_text = manifest.to_bytes();
    if manifest_text.len() > SHELL_MANIFEST_BYTES_MAX {
        return Err(CallError::Invalid(format!(
            "a manifest of more than {SHELL_MANIFEST_BYTES_MAX} bytes is too much for a machine without muster-agent; install that"
        )));
    }
    let mut lines = format!("{HEAD}{}\n", manifest_text.len());
    lines.reserve(manifest_text.len() + stamps.len() * 60);
    let mut text = std::mem::take(&mut lines).into_bytes();
    text.extend_from_slice(&manifest_text);
    for (index, entry) in manifest.entries().iter().enumerate() {
        if let Some((size, stamp)) = stamps.get(&entry.path) {
            let _ = writeln!(lines, "{index} {size} {} {} {}", stamp.inode, stamp.mtime(), stamp.ctime_ns / 1_000_000_000);
        }
    }
    text.extend_from_slice(lines.as_bytes());
    Ok(text.into())
}

fn parse(text: &[u8]) -> Option<(Manifest, Stamps)> {
    let rest = text.strip_prefix(HEAD.as_bytes())?;
    let (bytes, rest) = line(rest)?;
    let (manifest, stamps) = rest.split_at_checked(number(bytes)?)?;
    let manifest = Manifest::parse(manifest).ok()?;
    let read = |line: &str| {
        let mut words = line.split(' ');
        let entry = manifest.entries().get(words.next()?.parse::<usize>().ok()?)?;
        let size = words.next()?.parse().ok()?;
        Some((entry.path.clone(), (size, stamp(words.next()?, words.next()?, words.next()?)?)))
    };
    let stamps = std::str::from_utf8(stamps).ok()?.lines().map(read).collect::<Option<Stamps>>()?;
    Some((manifest, stamps))
}

fn stamp(inode: &str, mtime: &str, ctime: &str) -> Option<Stamp> {
    let nanoseconds = |seconds: &str| Some(seconds.parse::<i64>().ok()?.saturating_mul(1_000_000_000));
    Some(Stamp { inode: inode.parse().ok()?, mtime_ns: nanoseconds(mtime)?, ctime_ns: nanoseconds(ctime)? })
}

fn line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    Some((text.get(..end)?, text.get(end + 1..)?))
}

fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Bytes as the machine prints them on a line: `=` and themselves, or hexadecimal.
fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    match text.strip_prefix(b"=") {
        Some(plain) => Some(plain.to_vec()),
        None => hex::decode(text).ok(),
    }
}

/// What a line says of a path.
fn seen(text: &[u8]) -> Option<Option<Seen>> {
    if matches!(text, b"-" | b"x") {
        return Some(None);
    }
    if let Some(target) = text.strip_prefix(b"l ") {
        return Some(Some(Seen::Symlink(decoded(target)?.into())));
    }
    let mut words = std::str::from_utf8(text).ok()?.split(' ');
    let mode = u32::from_str_radix(words.next()?, 16).ok()?;
    let size = words.next()?.parse().ok()?;
    let (mtime, ctime, inode) = (words.next()?, words.next()?, words.next()?);
    Some(Some(match mode & 0o170_000 {
        0o040_000 => Seen::Directory(mode & 0o7777),
        0o100_000 => Seen::File { mode: mode & 0o7777, size, stamp: stamp(inode, mtime, ctime)? },
        _ => Seen::Other,
    }))
}

/// What a line of the list of everything says. What can not be a path of a bundle is in nobody's way, but can not be removed either.
fn found(text: &[u8]) -> Option<(TreePath, Seen)> {
    let (kind, path) = text.split_at_checked(2)?;
    let seen = match kind {
        b"d " => Seen::Directory(0),
        b"f " => Seen::File { mode: 0, size: 0, stamp: Stamp { inode: 0, mtime_ns: 0, ctime_ns: 0 } },
        b"l " => Seen::Symlink(Box::default()),
        b"o " => Seen::Other,
        _ => return None,
    };
    Some((TreePath::from_bytes(&decoded(path)?).ok()?, seen))
}

/// A destination on the machine.
struct Far<'a> {
    shell: &'a Shell,
    destination: &'a str,
    /// What it is called where its text is kept.
    key: String,
    protect: Option<TreePath>,
}

impl<'a> Far<'a> {
    fn new(shell: &'a Shell, destination: &'a str) -> Self {
        // Collecting the components drops `.` and doubled slashes. What leads elsewhere is refused by the machine.
        let root: std::path::PathBuf = Path::new(shell.root()).components().collect();
        let path: std::path::PathBuf = root.join(destination).components().collect();
        let protect = if path == root { TreePath::from_bytes(b".muster").ok() } else { None };
        Self { shell, destination, key: Digest::of(path.as_os_str().as_bytes()).to_string(), protect }
    }

    async fn ask(&self, words: &[&str], input: Input, bytes_max: usize) -> Result<Vec<u8>, CallError> {
        self.shell.ask_bytes(&self.shell.call(words)?, input, bytes_max).await
    }

    /// What was put there, and how it looked then.
    async fn ledger(&self) -> Result<(Ledger, Stamps), CallError> {
        let answer = self.ask(&["muster_ledger_read", self.shell.root(), &self.key], Input::None, SHELL_TREE_BYTES_MAX).await?;
        let damaged = || {
            let file = format!("{}/.muster/shell/{}", self.shell.root(), self.key);
            CallError::Other(format!("what `{file}` says is damaged; without it the next push begins anew and removes nothing"))
        };
        let (mut settled, mut begun, mut stamps) = (None, Vec::new(), Stamps::new());
        let mut rest = answer.as_slice();
        loop {
            let (head, after) = line(rest).ok_or_else(odd)?;
            let Some(at) = head.iter().position(|byte| *byte == b' ') else {
                return if head == b"end" { Ok((Ledger::new(settled, begun), stamps)) } else { Err(odd()) };
            };
            let (word, bytes) = head.split_at(at);
            let bytes = bytes.get(1..).and_then(number).ok_or_else(odd)?;
            let (text, after) = after.split_at_checked(bytes).ok_or_else(odd)?;
            rest = after;
            let (manifest, known) = aside(|| parse(text)).ok_or_else(damaged)?;
            if begun.len() >= SHELL_BEGUN_MAX {
                return Err(damaged());
            }
            if word == b"settled" {
                (settled, stamps) = (Some(manifest), known);
            } else {
                begun.push(manifest);
            }
        }
    }

    /// Looks at paths, and at everything if it is asked for. Answers what time it is there, in seconds since 1970.
    async fn look(&self, snapshot: &mut Snapshot, paths: &BTreeSet<TreePath>, all: bool) -> Result<i64, CallError> {
        let mut list = List::default();
        for path in paths {
            list.name(&[b"p"], path.as_bytes())?;
        }
        let words = ["muster_look", self.shell.root(), self.destination, if all { "1" } else { "0" }];
        let answer = self.ask(&words, Input::Whole(list.end().into()), SHELL_TREE_BYTES_MAX).await?;
        let mut lines = answer.split(|byte| *byte == b'\n');
        let head = std::str::from_utf8(lines.next().ok_or_else(odd)?).map_err(|_| odd())?;
        let (there, now) = head.split_once(' ').ok_or_else(odd)?;
        snapshot.exists = there == "there";
        for path in paths {
            snapshot.seen.insert(path.clone(), lines.next().and_then(seen).ok_or_else(odd)?);
        }
        if all {
            lines.next().filter(|line| *line == b"all").ok_or_else(odd)?;
            let mut whole = false;
            let listed = lines.by_ref().take_while(|line| {
                whole = *line == b"end";
                !whole
            });
            let mut all: Vec<_> = aside(|| listed.filter_map(found).collect());
            all.sort_by(|(one, _), (other, _)| one.cmp(other));
            // A list that was cut off would be taken for less than is there.
            if !whole {
                return Err(odd());
            }
            snapshot.all = Some(all);
        } else {
            lines.next().filter(|line| *line == b"end").ok_or_else(odd)?;
        }
        now.parse().map_err(|_| odd())
    }

    /// Asks for digests with a function that takes a list and answers with a line for each name.
    async fn digests(&self, words: &[&str], names: &[&[u8]]) -> Result<Vec<Option<Digest>>, CallError> {
        let mut list = List::default();
        for name in names {
            list.name(&[b"p"], name)?;
        }
        let answer = self.ask(words, Input::Whole(list.end().into()), SHELL_TREE_BYTES_MAX).await?;
        let text = String::from_utf8(answer).map_err(|_| odd())?;
        let mut lines = text.lines();
        let mut read = || match lines.next().ok_or_else(odd)? {
            "-" => Ok(None),
            digest => digest.parse().map(Some).map_err(|_| odd()),
        };
        let digests = names.iter().map(|_| read()).collect::<Result<Vec<_>, _>>()?;
        if lines.next() == Some("end") { Ok(digests) } else { Err(odd()) }
    }

    async fn survey(
        &self,
        snapshot: &mut Snapshot,
        ledger: &Ledger,
        manifest: &Manifest,
        mode: Mode,
        max_delete_percent: u8,
    ) -> Result<Steps, CallError> {
        loop {
            let (steps, lacking) = aside(|| self.survey_once(snapshot, ledger, manifest, mode, max_delete_percent));
            // What was decided without knowing everything is worth nothing, and neither are its errors.
            if lacking.is_empty() {
                return steps.map_err(not_applied);
            }
            if lacking.all {
                let mut seen = Snapshot::default();
                self.look(&mut seen, &BTreeSet::new(), true).await?;
                snapshot.all = seen.all;
            }
            let names: Vec<&[u8]> = lacking.digests.iter().map(TreePath::as_bytes).collect();
            if !names.is_empty() {
                let digests = self.digests(&["muster_hash", self.shell.root(), self.destination], &names).await?;
                snapshot.digests.extend(lacking.digests.into_iter().zip(digests));
            }
        }
    }

    fn survey_once(
        &self,
        snapshot: &Snapshot,
        ledger: &Ledger,
        manifest: &Manifest,
        mode: Mode,
        max_delete_percent: u8,
    ) -> (Result<Steps, ApplyError>, Lacking) {
        let lacking = RefCell::default();
        let place = snapshot.exists.then_some(View { snapshot, lacking: &lacking });
        let survey = Survey { manifest, mode, ledger, protect: self.protect.as_ref(), max_delete_percent, place, steps: Steps::default() };
        (survey.steps(), lacking.into_inner())
    }

    /// Writes down that the destination is about to become what a text says.
    async fn begin(&self, text: &Bytes) -> Result<(), CallError> {
        let digest = Digest::of(text).to_string();
        let words = ["muster_ledger_begin", self.shell.root(), &self.key, &digest];
        self.ask(&words, Input::Whole(text.clone()), SHELL_ANSWER_BYTES_MAX).await.map(drop)
    }

    /// Writes down that it has become that.
    async fn settle(&self) -> Result<(), CallError> {
        let words = ["muster_ledger_settle", self.shell.root(), &self.key];
        self.ask(&words, Input::None, SHELL_ANSWER_BYTES_MAX).await.map(drop)
    }

    /// Sends what is missing and switches to it. Answers how many bytes of contents were sent.
    async fn bring(&self, bundle: &Bundle, steps: &Steps, snapshot: &Snapshot) -> Result<u64, CallError> {
        let version = bundle.version.to_string();
        let mut plan = aside(|| plan(&bundle.manifest, steps, snapshot))?;
        let content = |sent: &Sent| bundle.manifest.contents().get(sent.content as usize).copied();
        if !plan.sent.is_empty() {
            let names: Vec<&[u8]> = plan.sent.iter().map(|sent| sent.name.as_slice()).collect();
            let words = ["muster_staged", self.shell.root(), &self.key, &version];
            let mut there = self.digests(&words, &names).await?.into_iter();
            plan.sent.retain(|sent| there.next().flatten() != content(sent).map(|(digest, _)| digest));
        }
        let bytes = plan.sent.iter().filter_map(content).map(|(_, size)| size).sum();
        if !plan.sent.is_empty() {
            let (told, mut sent) = oneshot::channel();
            let (bundle, plan_sent) = (bundle.clone(), plan.sent);
            // Begun when the machine takes it, so that none who does not keeps others from their turn.
            let begin = move || {
                let (to, pieces) = mpsc::channel(PIECES_WAITING);
                tokio::spawn(async move { told.send(send(bundle, plan_sent, to).await) });
                pieces
            };
            let words = ["muster_stage", self.shell.root(), &self.key, &version];
            let staged = self.ask(&words, Input::Pieces(Box::new(begin)), SHELL_ANSWER_BYTES_MAX).await;
            // What could not be read is the cause of what the machine says then.
            staged.map_err(|error| match sent.try_recv() {
                Ok(Err(cause)) => cause,
                _ => error,
            })?;
        }
        let words = ["muster_switch", self.shell.root(), self.destination, &self.key, &version];
        self.ask(&words, Input::Whole(plan.list.into()), SHELL_ANSWER_BYTES_MAX).await?;
        Ok(bytes)
    }
}

/// Sends files as a tar stream, as fast as it is taken.
async fn send(bundle: Bundle, sent: Vec<Sent>, to: mpsc::Sender<Bytes>) -> Result<(), CallError> {
    let failed = |error: &dyn std::error::Error| CallError::Other(with_causes(error));
    let mut reading = Reading::new(&bundle, sent.iter().map(|sent| sent.content)).await;
    let sent: HashMap<u32, Sent> = sent.into_iter().map(|sent| (sent.content, sent)).collect();
    let mut opener = Opener::new().map_err(|error| failed(&error))?;
    let (mut stream, mut content, mut named) = (tar::Builder::new(Vec::new()), Vec::new(), HashSet::new());
    while let Some(packed) = reading.next().await.map_err(|error| failed(&error))? {
        opener.open(&packed, &mut content).map_err(|error| failed(&error))?;
        let index = bundle.manifest.content_index(&packed.digest).filter(|index| named.insert(*index));
        let Some(sent) = index.and_then(|index| sent.get(&index)) else { continue };
        let mut header = tar::Header::new_gnu();
        header.set_mode(sent.mode);
        header.set_mtime(sent.mtime);
        header.set_size(content.len() as u64);
        let name = Path::new(std::ffi::OsStr::from_bytes(&sent.name));
        stream.append_data(&mut header, name, content.as_slice()).map_err(|error| failed(&error))?;
        if !pass(&bundle, &mut stream, &to).await {
            return Ok(());
        }
    }
    stream.finish().map_err(|error| failed(&error))?;
    pass(&bundle, &mut stream, &to).await;
    Ok(())
}

/// Passes on what is written; false if nobody takes it any more: what the machine says is why.
async fn pass(bundle: &Bundle, stream: &mut tar::Builder<Vec<u8>>, to: &mpsc::Sender<Bytes>) -> bool {
    let mut written = Bytes::from(std::mem::take(stream.get_mut()));
    while !written.is_empty() {
        let piece = written.split_to(written.len().min(PIECE_BYTES));
        bundle.contents.pace(piece.len()).await;
        if to.send_timeout(piece, READER_STALL_TIMEOUT).await.is_err() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_keeps_is_read_as_it_was_written() {
        let manifest =
            Manifest::parse(format!("muster-manifest 2\nd 755 d\nf 644 -5 3 {} d/a\nl link d\n", Digest::of(b"abc")).as_bytes()).unwrap();
        let stamp = Stamp { inode: 7, mtime_ns: -5_000_000_000, ctime_ns: 9_000_000_000 };
        let stamps = Stamps::from([(TreePath::from_bytes(b"d/a").unwrap(), (3, stamp))]);
        let text = text(&manifest, &stamps).unwrap();
        assert_eq!(parse(&text), Some((manifest, stamps)));
        for cut in [0, 10, 40, text.len() - 1, text.len() - 3] {
            assert!(cut == text.len() - 1 || parse(&text[..cut]).is_none(), "{cut}");
        }
    }

    #[test]
    fn what_a_machine_says_of_a_path_is_taken_as_what_it_is_or_not_at_all() {
        let stamp = Stamp { inode: 5, mtime_ns: 3_000_000_000, ctime_ns: 4_000_000_000 };
        assert_eq!(seen(b"81a4 2 3 4 5"), Some(Some(Seen::File { mode: 0o644, size: 2, stamp })));
        assert_eq!(seen(b"41ed 2 3 4 5"), Some(Some(Seen::Directory(0o755))));
        assert_eq!(seen(b"l =a/b"), Some(Some(Seen::Symlink(b"a/b".as_slice().into()))));
        assert_eq!(seen(b"l 610a"), Some(Some(Seen::Symlink(b"a\n".as_slice().into()))));
        assert_eq!((seen(b"-"), seen(b"x")), (Some(None), Some(None)));
        for odd in [b"".as_slice(), b"l 6", b"81a4", b"81a4 2 3 4", b"zz 2 3 4 5", b"81a4 -2 3 4 5"] {
            assert_eq!(seen(odd), None);
        }
        assert_eq!(found(b"d =../x"), None);
        assert!(found(b"f =x").is_some() && found(b"q =x").is_none() && found(b"").is_none());
    }
}
