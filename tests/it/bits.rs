//! Bundles, against a plain model of a directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use muster::bits::apply::kept::Kept;
use muster::bits::apply::{Applied, ApplyError, Destination, Mode, Plan, Rules};
use muster::bits::chunk::{self, Content};
use muster::bits::contents::{Bundle, Contents, DirectoryContents, Packing};
use muster::bits::manifest::{Entry, Kind, Manifest, ManifestError};
use muster::bits::pack::{Opener, PackError, Packed, Packer, Unpacker, write_end};
use muster::bits::path::TreePath;
use muster::bits::scan::{ScanError, scan};
use muster::limits::{CHUNK_BYTES_MAX, PIECE_BYTES};
use muster::names::Digest;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// What is at a path of the model. A directory of a bundle without a mode is one that the bundle does not list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Directory(Option<u32>),
    /// Mode, content, and seconds of the last change.
    File(u32, Vec<u8>, i64),
    Symlink(Vec<u8>),
}

impl Node {
    fn kind(&self) -> u8 {
        match self {
            Node::Directory(_) => b'd',
            Node::File(..) => b'f',
            Node::Symlink(_) => b'l',
        }
    }
}

pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;
pub(crate) type Kinds = BTreeMap<Vec<u8>, u8>;

const PROTECTED: &[u8] = b"state.d";

fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    (1..path.len()).filter(|index| path[*index] == b'/').map(|index| &path[..index])
}

pub(crate) fn below(path: &[u8], other: &[u8]) -> bool {
    other.len() > path.len() && other.starts_with(path) && other[path.len()] == b'/'
}

/// Nodes as a tree: what does not fit with what is there already is passed over.
pub(crate) fn grow(tree: &mut Tree, nodes: &[(Vec<u8>, Node)], parents: Option<u32>) {
    for (path, node) in nodes {
        let blocked = above(path).any(|path| tree.get(path).is_some_and(|node| node.kind() != b'd'));
        let full = tree.keys().any(|other| below(path, other));
        if blocked || (full && node.kind() != b'd') {
            continue;
        }
        for path in above(path) {
            tree.entry(path.to_vec()).or_insert(Node::Directory(parents));
        }
        tree.insert(path.clone(), node.clone());
    }
}

fn write_node(top: &Path, path: &[u8], node: &Node) {
    let place = top.join(OsStr::from_bytes(path));
    let mode = |mode| fs::set_permissions(&place, fs::Permissions::from_mode(mode)).unwrap();
    match node {
        Node::Directory(bits) => {
            fs::create_dir(&place).unwrap();
            mode(bits.unwrap());
        }
        Node::File(bits, bytes, mtime) => {
            fs::write(&place, bytes).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(mtime.unsigned_abs());
            fs::File::options().write(true).open(&place).unwrap().set_modified(time).unwrap();
            mode(*bits);
        }
        Node::Symlink(target) => symlink(OsStr::from_bytes(target), &place).unwrap(),
    }
}

pub(crate) fn write_tree(top: &Path, tree: &Tree) {
    fs::create_dir_all(top).unwrap();
    tree.iter().for_each(|(path, node)| write_node(top, path, node));
}

pub(crate) fn read_tree(top: &Path) -> Tree {
    fn read(top: &Path, at: &Path, tree: &mut Tree) {
        for entry in fs::read_dir(at).unwrap() {
            let place = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&place).unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            let path = place.strip_prefix(top).unwrap().as_os_str().as_bytes().to_vec();
            if metadata.is_dir() {
                tree.insert(path, Node::Directory(Some(mode)));
                read(top, &place, tree);
            } else if metadata.is_symlink() {
                tree.insert(path, Node::Symlink(fs::read_link(&place).unwrap().as_os_str().as_bytes().to_vec()));
            } else {
                tree.insert(path, Node::File(mode, fs::read(&place).unwrap(), metadata.mtime()));
            }
        }
    }
    let mut tree = Tree::new();
    read(top, top, &mut tree);
    tree
}

fn path(bytes: &[u8]) -> TreePath {
    TreePath::from_bytes(bytes).unwrap()
}

pub(crate) fn manifest(tree: &Tree) -> Manifest {
    let entries = tree.iter().filter_map(|(at, node)| {
        let (mode, kind) = match node {
            Node::Directory(mode) => ((*mode)?, Kind::Directory),
            Node::File(mode, bytes, mtime) => {
                let Content { size, digest, chunks } = chunk::read(&mut bytes.as_slice()).unwrap();
                (*mode, Kind::File { size, mtime: *mtime, digest, chunks })
            }
            Node::Symlink(target) => (0, Kind::Symlink { target: target.as_slice().into() }),
        };
        Some(Entry { path: path(at), mode, kind })
    });
    Manifest::new(entries.collect()).unwrap()
}

/// All contents of a tree, chunks of large files included.
pub(crate) fn contents(tree: &Tree) -> BTreeMap<Digest, Vec<u8>> {
    let made = manifest(tree);
    let mut contents = BTreeMap::new();
    for entry in made.entries() {
        let Some(Node::File(_, bytes, _)) = tree.get(entry.path.as_bytes()) else { continue };
        let mut at = 0;
        for (digest, size) in entry.contents() {
            let end = at + usize::try_from(size).unwrap();
            contents.insert(digest, bytes[at..end].to_vec());
            at = end;
        }
    }
    contents
}

pub(crate) fn packed(content: &[u8]) -> Packed {
    Packer::new().unwrap().pack(Digest::of(content), content).unwrap()
}

fn pack<'a>(contents: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    let mut stream = BytesMut::new();
    for content in contents {
        packed(content).write(&mut stream);
    }
    write_end(&mut stream);
    stream.to_vec()
}

/// What a bundle does to a tree, by the book; none if something is in the way.
pub(crate) fn predict(old: &Tree, ledger: &Kinds, bundle: &Tree, mode: Mode, (fresh, protects): (u32, bool)) -> Option<(Tree, Kinds)> {
    let may = |path: &Vec<u8>| mode == Mode::MirrorDeletingForeign || ledger.get(path) == Some(&old[path].kind());
    let mut new = old.clone();
    for (path, node) in bundle {
        match (node, old.get(path)) {
            (Node::Directory(_), Some(Node::File(..) | Node::Symlink(_))) if !may(path) => return None,
            (Node::File(..) | Node::Symlink(_), Some(Node::Directory(_))) => {
                if old.keys().any(|other| (other == path || below(path, other)) && !may(other)) {
                    return None;
                }
                new.retain(|other, _| !below(path, other));
            }
            _ => {}
        }
        let node = match (node, old.get(path)) {
            (Node::Directory(None), Some(there @ Node::Directory(_))) => there.clone(),
            (Node::Directory(None), _) => Node::Directory(Some(fresh)),
            (node, _) => node.clone(),
        };
        new.insert(path.clone(), node);
    }
    if mode == Mode::Mirror {
        for (path, kind) in ledger.iter().rev().filter(|(path, _)| !bundle.contains_key(*path)) {
            let full = new.keys().any(|other| below(path, other));
            if !full && new.get(path).is_some_and(|node| node.kind() == *kind) {
                new.remove(path);
            }
        }
    }
    if mode == Mode::MirrorDeletingForeign {
        new.retain(|path, _| bundle.contains_key(path) || (protects && (path == PROTECTED || below(PROTECTED, path))));
    }
    let listed = |node: &Node| *node != Node::Directory(None);
    let mut after: Kinds = bundle.iter().filter(|(_, node)| listed(node)).map(|(path, node)| (path.clone(), node.kind())).collect();
    if mode == Mode::Push {
        for (path, kind) in ledger {
            let blocked = above(path).any(|above| bundle.get(above).is_some_and(|node| node.kind() != b'd'));
            let replaced = bundle.get(path).is_some_and(|node| listed(node) || *kind != b'd');
            if !blocked && !replaced {
                after.insert(path.clone(), *kind);
            }
        }
    }
    Some((new, after))
}

fn take(plan: &mut Plan, packed: &Packed) -> Result<(), ApplyError> {
    plan.begin_taking()?;
    plan.taker()?.take(packed)
}

/// A directory with a destination and a state beside it.
struct House {
    top: tempfile::TempDir,
    /// Where the destination is, if it is not beside the state.
    away: Option<tempfile::TempDir>,
    base: Dir,
    state: Dir,
    fresh: u32,
    /// Whether something at the destination is Muster's own, so that it is never switched as a whole.
    protects: bool,
    verify: bool,
}

impl House {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap(), None)
    }

    fn at(top: tempfile::TempDir, away: Option<tempfile::TempDir>) -> Self {
        let make = |path: std::path::PathBuf| {
            fs::create_dir_all(&path).unwrap();
            let fresh = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            (Dir::open_ambient_dir(path, ambient_authority()).unwrap(), fresh)
        };
        let (state, _) = make(top.path().join("state"));
        let (base, fresh) = make(away.as_ref().unwrap_or(&top).path().join("base"));
        Self { base, state, fresh, protects: true, verify: false, away, top }
    }

    /// One whose state is on another file system than its destination; none where there are no two.
    fn across() -> Option<Self> {
        let (top, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").ok());
        let device = |path: &Path| fs::metadata(path).unwrap().dev();
        let away = away.filter(|away| device(away.path()) != device(top.path()));
        if away.is_none() {
            eprintln!("passed over: /dev/shm is no other file system here");
        }
        Some(Self { protects: false, ..Self::at(top, Some(away?)) })
    }

    fn destination(&self) -> std::path::PathBuf {
        self.away.as_ref().unwrap_or(&self.top).path().join("base/to")
    }

    fn kept(&self) -> Kept {
        Kept::open(&self.state, "to").unwrap()
    }

    /// How much is left of what was staged.
    fn staged(&self) -> usize {
        fs::read_dir(self.top.path().join("state/staging")).map_or(0, Iterator::count)
    }

    fn place(&self) -> Destination<'_> {
        let protect = Some(Path::new(OsStr::from_bytes(PROTECTED))).filter(|_| self.protects);
        Destination { base: &self.base, path: Path::new("to"), state: &self.state, key: "to", protect, verify: self.verify }
    }

    fn plan(&self, bundle: &Tree, mode: Mode) -> Result<Plan, ApplyError> {
        self.place().plan(manifest(bundle), Rules { mode, max_delete_percent: 100 })
    }

    fn apply(&self, bundle: &Tree, mode: Mode) -> Result<Applied, ApplyError> {
        self.apply_after(bundle, mode, || {})
    }

    /// Applies a bundle; something else happens at the destination just before the switch.
    fn apply_after(&self, bundle: &Tree, mode: Mode, meanwhile: impl FnOnce()) -> Result<Applied, ApplyError> {
        let mut plan = self.plan(bundle, mode)?;
        for content in self.missing(&plan, bundle) {
            take(&mut plan, &packed(&content))?;
        }
        meanwhile();
        plan.switch()
    }

    fn missing(&self, plan: &Plan, bundle: &Tree) -> Vec<Vec<u8>> {
        let (manifest, contents) = (manifest(bundle), contents(bundle));
        plan.missing().iter().map(|index| contents[&manifest.contents()[*index as usize].0].clone()).collect()
    }
}

/// If this is root, who may do everything, runs a test of this file as somebody else, and answers that it did.
fn ran_as_nobody(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    let ran = again.args(["--exact", &format!("bits::{test}")]).env("TMPDIR", "/tmp").uid(65534).gid(65534).output();
    let Ok(ran) = ran else {
        eprintln!("passed over: nobody else may start this program");
        return true;
    };
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
    assert!(String::from_utf8_lossy(&ran.stdout).contains("1 passed"), "no test was run");
    true
}

/// Files of these contents, with modes.
fn files(files: &[(&str, &[u8], u32)]) -> Tree {
    let mut tree = Tree::new();
    let nodes = files.iter().map(|(path, content, mode)| (path.as_bytes().to_vec(), Node::File(*mode, grown(content), 1)));
    grow(&mut tree, &nodes.collect::<Vec<_>>(), Some(0o755));
    tree
}

fn a_path() -> impl Strategy<Value = Vec<u8>> {
    let name = select(vec![b"a".as_slice(), b"b", b"a.b", b"c d\n%", b"\xff\xfe"]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.join(b"/".as_slice()))
}

/// A short content stands for itself, and some for long ones that are cut into chunks.
fn grown(content: &[u8]) -> Vec<u8> {
    let noise = |seed: u32, bytes: usize| {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        std::iter::repeat_with(next).take(bytes).collect::<Vec<u8>>()
    };
    match content {
        b"large" => noise(1, CHUNK_BYTES_MAX + 100_000),
        b"larger" => [noise(2, 300_000), noise(1, CHUNK_BYTES_MAX + 100_000)].concat(),
        b"zeros" => vec![0; 2 * CHUNK_BYTES_MAX],
        small => small.to_vec(),
    }
}

fn a_node(listed: bool) -> impl Strategy<Value = Node> {
    let content = select(vec![b"".as_slice(), b"x", b"y", b"xx", b"a longer content", b"large", b"larger", b"zeros"]).prop_map(grown);
    prop_oneof![
        2 => select(vec![0o755, 0o700, 0o555]).prop_map(|mode| Node::Directory(Some(mode))),
        4 => (select(vec![0o644, 0o755, 0o400]), content, 0..2_i64).prop_map(|(mode, content, mtime)| Node::File(mode, content, mtime)),
        1 => select(if listed { vec![b"a".as_slice(), b"./b//a", b"\xff"] } else { vec![b"a".as_slice(), b"/etc", b"../.."] })
            .prop_map(|target| Node::Symlink(target.to_vec())),
    ]
}

pub(crate) fn nodes(listed: bool, most: usize) -> impl Strategy<Value = Vec<(Vec<u8>, Node)>> {
    prop::collection::vec((a_path(), a_node(listed)), 0..most)
}

pub(crate) fn a_bundle() -> impl Strategy<Value = Tree> {
    (nodes(true, 10), any::<bool>()).prop_map(|(nodes, list_parents)| {
        let mut tree = Tree::new();
        grow(&mut tree, &nodes, list_parents.then_some(0o755));
        tree
    })
}

pub(crate) fn a_mode() -> impl Strategy<Value = Mode> {
    select(vec![Mode::Push, Mode::Mirror, Mode::MirrorDeletingForeign])
}

fn check_apply(house: &House, tree: &mut Tree, ledger: &mut Kinds, bundle: &Tree, mode: Mode) -> Result<(), TestCaseError> {
    let existed = house.destination().exists();
    let applied = house.apply(bundle, mode);
    match predict(tree, ledger, bundle, mode, (house.fresh, house.protects)) {
        None => {
            prop_assert!(matches!(applied, Err(ApplyError::Conflict { .. })), "{applied:?} where something is in the way");
            if house.destination().exists() {
                prop_assert_eq!(&read_tree(&house.destination()), &*tree);
            }
        }
        Some((new, after)) => {
            let applied = applied.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
            prop_assert_eq!(&read_tree(&house.destination()), &new);
            prop_assert_eq!(applied.changed, new != *tree || !existed);
            prop_assert_eq!(house.apply(bundle, mode).unwrap().changed, false, "a second time changed something");
            let unchanged = house.place().unchanged(&manifest(bundle).version(), mode).unwrap();
            prop_assert!(unchanged.is_none_or(|again| !again.changed && again.files == applied.files && again.bytes == applied.bytes));
            (*tree, *ledger) = (new, after);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applying_does_what_the_model_says(
        foreign in nodes(false, 8), earlier in prop::collection::vec((a_bundle(), a_mode()), 0..3),
        gone in prop::collection::vec(any::<Index>(), 0..3), edits in nodes(false, 4), bundle in a_bundle(), mode in a_mode(),
        protects in any::<bool>(), begins_empty in any::<bool>(),
    ) {
        let (house, mut tree, mut ledger) = (House { protects, ..House::new() }, Tree::new(), Kinds::new());
        if protects {
            grow(&mut tree, &[([PROTECTED, b"/kept"].concat(), Node::File(0o600, b"kept".to_vec(), 0))], Some(0o755));
        }
        if !begins_empty {
            grow(&mut tree, &foreign, Some(0o755));
        }
        if protects || !begins_empty {
            write_tree(&house.destination(), &tree);
        }
        for (bundle, mode) in &earlier {
            check_apply(&house, &mut tree, &mut ledger, bundle, *mode)?;
        }
        // Somebody else is at work there too.
        for index in gone {
            if tree.is_empty() {
                break;
            }
            let victim = index.get(&tree.keys().cloned().collect::<Vec<_>>()).clone();
            if !victim.starts_with(PROTECTED) {
                tree.retain(|path, _| *path != victim && !below(&victim, path));
            }
        }
        grow(&mut tree, &edits, Some(0o755));
        if house.destination().exists() {
            fs::remove_dir_all(house.destination()).unwrap();
        }
        write_tree(&house.destination(), &tree);
        check_apply(&house, &mut tree, &mut ledger, &bundle, mode)?;
    }

    #[test]
    fn a_plan_that_is_given_up_leaves_the_old_tree(
        (old, exists, protects) in (nodes(false, 8), any::<bool>(), any::<bool>()),
        bundle in a_bundle(), mode in a_mode(), cut in any::<Index>(),
    ) {
        let (house, mut tree) = (House { protects, ..House::new() }, Tree::new());
        if exists {
            grow(&mut tree, &old, Some(0o755));
            write_tree(&house.destination(), &tree);
        }
        if let Ok(mut plan) = house.plan(&bundle, mode) {
            let missing = house.missing(&plan, &bundle);
            let came = cut.index(missing.len() + 1);
            for content in &missing[..came] {
                take(&mut plan, &packed(content)).unwrap();
            }
            drop(plan);
            prop_assert_eq!(house.destination().exists(), exists);
            prop_assert!(!exists || read_tree(&house.destination()) == tree);
            // What came is not asked for again.
            let plan = house.plan(&bundle, mode).unwrap();
            prop_assert_eq!(house.missing(&plan, &bundle), missing[came..].to_vec());
        }
    }

    #[test]
    fn what_was_scanned_and_applied_is_the_same_again(bundle in nodes(true, 12)) {
        let (house, mut tree) = (House::new(), Tree::new());
        grow(&mut tree, &bundle, Some(0o755));
        let from = house.top.path().join("from");
        write_tree(&from, &tree);
        let (scanned, spots) = scan(&Dir::open_ambient_dir(&from, ambient_authority()).unwrap(), &mut |_| {}).unwrap();
        prop_assert_eq!(&scanned, &manifest(&tree));
        prop_assert_eq!(spots.len(), scanned.contents().len());
        house.apply(&tree, Mode::Push).unwrap();
        prop_assert_eq!(read_tree(&house.destination()), tree);
    }
}

fn unpack(packed: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, PackError> {
    let (mut unpacker, mut opener, mut contents) = (Unpacker::default(), Opener::new()?, Vec::new());
    for piece in packed.chunks(piece) {
        unpacker.feed(piece);
        while let Some(packed) = unpacker.record()? {
            let mut content = Vec::new();
            opener.open(&packed, &mut content)?;
            assert_eq!(packed.digest, Digest::of(&content), "a content that is not what it says was let through");
            contents.push(content);
        }
    }
    unpacker.finish()?;
    Ok(contents)
}

fn some_contents() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pack_gives_back_what_was_packed_however_it_is_cut(contents in some_contents(), piece in 1_usize..50) {
        prop_assert_eq!(unpack(&pack(&contents), piece).unwrap(), contents);
    }

    #[test]
    fn a_damaged_pack_is_never_taken_for_another(contents in some_contents(), at in any::<Index>(), bits in 1_u8.., cut in any::<Index>()) {
        let packed = pack(&contents);
        prop_assert!(unpack(&packed[..cut.index(packed.len())], 64).is_err());
        prop_assert!(unpack(&[&packed, [0].as_slice()].concat(), 64).is_err());
        let mut damaged = packed;
        let at = at.index(damaged.len());
        damaged[at] ^= bits;
        // What is let through is what its digest says; `unpack` sees to that.
        let _ = unpack(&damaged, 64);
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written(bundle in a_bundle()) {
        let made = manifest(&bundle);
        let read = Manifest::parse(&made.to_bytes()).unwrap();
        prop_assert_eq!(read.version(), Digest::of(&made.to_bytes()));
        prop_assert_eq!(read, made);
    }

    #[test]
    fn a_damaged_manifest_is_refused_or_another_manifest(bundle in a_bundle(), at in any::<Index>(), byte in any::<u8>(), cut in any::<Index>()) {
        let text = manifest(&bundle).to_bytes();
        let (mut changed, mut longer) = (text.clone(), text.clone());
        changed[at.index(text.len())] = byte;
        longer.insert(at.index(text.len()), byte);
        for text in [&changed, &longer, &text[..cut.index(text.len())].to_vec()] {
            if let Ok(read) = Manifest::parse(text) {
                prop_assert_eq!(&read.to_bytes(), text);
            }
        }
    }
}

#[test]
fn a_fresh_checkout_of_an_unchanged_tree_is_the_same_version() {
    let file = |content: &[u8], mtime| Node::File(0o644, content.to_vec(), mtime);
    let tree = |a: Node, b: Node| manifest(&Tree::from([(b"a".to_vec(), a), (b"b".to_vec(), b)]));
    let before = tree(file(b"one", 1), file(b"two", 2));
    assert_eq!(tree(file(b"one", 9), file(b"two", 9)).with_times_of(&before).unwrap(), before);
    assert_eq!(tree(file(b"one", 9), file(b"TWO", 9)).with_times_of(&before).unwrap(), tree(file(b"one", 1), file(b"TWO", 9)));
}

#[test]
fn a_manifest_that_is_no_tree_is_refused() {
    let empty = Digest::of(b"");
    let other = Digest::of(b"x");
    let refused = |lines: &str| Manifest::parse(format!("muster-manifest 2\n{lines}").as_bytes()).unwrap_err();
    assert!(matches!(refused("d 755 b\nd 755 a\n"), ManifestError::Order(_)));
    assert!(matches!(refused("d 755 a\nd 755 a\n"), ManifestError::Order(_)));
    assert!(matches!(refused(&format!("f 644 0 0 {empty} a\nd 755 a.b\nd 755 a/c\n")), ManifestError::Below(_)));
    assert!(matches!(refused("l a b\nd 755 a/b/c\n"), ManifestError::Below(_)));
    assert!(matches!(refused(&format!("f 644 0 1 {other} a\nf 644 0 2 {other} b\n")), ManifestError::TwoSizes(_)));
    assert!(matches!(refused("d 1755 a\n"), ManifestError::Line { line: 2 }));
    let large = 2 * CHUNK_BYTES_MAX;
    let chunk = format!("c {CHUNK_BYTES_MAX} {other}\n");
    let file = format!("f 644 0 {large} {empty} a\n");
    assert!(Manifest::parse(format!("muster-manifest 2\n{file}{chunk}{chunk}").as_bytes()).is_ok());
    for lines in [file.clone(), format!("{file}{chunk}"), format!("{file}{chunk}{chunk}{chunk}"), format!("{file}c {large} {other}\n")] {
        assert!(matches!(refused(&lines), ManifestError::Chunks(_)), "{lines}");
    }
    assert!(matches!(refused(&chunk), ManifestError::Line { .. }));
    assert!(matches!(refused(&format!("d 755 a\n{chunk}")), ManifestError::Line { .. }));
    assert!(matches!(refused(&format!("f 644 0 1 {other} a\nc 1 {empty}\n")), ManifestError::Chunks(_)));
    assert!(matches!(refused("d 755 ../a\n"), ManifestError::Path { line: 2, .. }));
    for target in ["/etc", "..", "../a", "a/../../b", "a/..", "b/../a", "%00", ""] {
        assert!(Manifest::parse(format!("muster-manifest 2\nl a {target}\n").as_bytes()).is_err(), "{target} was taken");
    }
    let text = format!("muster-manifest 2\nf 644 -5 0 {empty} a\n");
    for bad in [
        text.replace("644", "0644"),
        text.replace(" 0 ", " 00 "),
        text.replace(" -5 ", " -05 "),
        text.replace(" -5 ", " +5 "),
        text.replace(" -5 ", " "),
        text.replace(&empty.to_string(), &format!("sha256:{empty}")),
        text.trim_end().to_owned(),
        format!("{text}\n"),
        text.replace("manifest 2", "manifest 1"),
        text.replace(" a", " a "),
        text.replace(" a", " %61"),
    ] {
        assert!(Manifest::parse(bad.as_bytes()).is_err(), "{bad:?} was taken");
    }
    assert!(Manifest::parse(text.as_bytes()).is_ok());
}

#[test]
fn a_directory_with_what_a_bundle_can_not_have_is_refused_by_name() {
    let top = tempfile::tempdir().unwrap();
    let scanned = || scan(&Dir::open_ambient_dir(top.path(), ambient_authority()).unwrap(), &mut |_| {}).unwrap_err();
    symlink("../..", top.path().join("out")).unwrap();
    assert!(matches!(scanned(), ScanError::Manifest(ManifestError::Target(path)) if path.to_string() == "out"));
    fs::remove_file(top.path().join("out")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(top.path().join("a socket")).unwrap();
    assert!(matches!(scanned(), ScanError::Special(path) if path.to_string() == "a%20socket"));
}

#[test]
fn a_symlink_is_followed_neither_to_the_destination_nor_inside() {
    let house = House::new();
    let outside = house.top.path().join("base/outside");
    fs::create_dir(&outside).unwrap();
    let bundle = Tree::from([(b"a/b".to_vec(), Node::File(0o644, b"x".to_vec(), 1))]);
    symlink("outside", house.destination()).unwrap();
    assert!(matches!(house.apply(&bundle, Mode::MirrorDeletingForeign), Err(ApplyError::Conflict { .. })));
    fs::remove_file(house.destination()).unwrap();
    fs::create_dir(house.destination()).unwrap();
    symlink("../outside", house.destination().join("a")).unwrap();
    assert!(matches!(house.apply(&bundle, Mode::Push), Err(ApplyError::Conflict { path, .. }) if path == "a"));
    assert!(house.apply(&bundle, Mode::MirrorDeletingForeign).unwrap().changed);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::read(house.destination().join("a/b")).unwrap(), b"x");
}

#[test]
fn what_is_musters_own_is_not_written_by_a_bundle() {
    let house = House::new();
    for own in ["state.d", "state.d/trees/x", ".muster-staging-0"] {
        let bundle = Tree::from([(own.as_bytes().to_vec(), Node::File(0o644, Vec::new(), 1))]);
        assert!(matches!(house.apply(&bundle, Mode::MirrorDeletingForeign), Err(ApplyError::Own(path)) if path == own));
    }
}

#[test]
fn a_content_that_was_not_asked_for_or_has_another_size_is_refused() {
    let house = House::new();
    let bundle = Tree::from([(b"a".to_vec(), Node::File(0o644, b"x".to_vec(), 1))]);
    let mut plan = house.plan(&bundle, Mode::Push).unwrap();
    assert!(matches!(take(&mut plan, &packed(b"y")), Err(ApplyError::Unwanted(_))));
    let right = packed(b"x");
    assert!(matches!(take(&mut plan, &Packed { size: 2, ..right.clone() }), Err(ApplyError::Unwanted(_))));
    assert!(matches!(
        take(&mut plan, &Packed { frame: packed(b"y").frame, ..right.clone() }),
        Err(ApplyError::Pack(PackError::Damaged(_)))
    ));
    assert!(matches!(take(&mut plan, &Packed { frame: packed(b"xx").frame, ..right }), Err(ApplyError::Pack(_))));
    assert!(matches!(plan.switch(), Err(ApplyError::Missing(1))));
    assert!(!house.destination().exists());
}

#[test]
fn what_was_staged_and_is_damaged_is_asked_for_again_and_what_nobody_wants_is_removed() {
    let house = House::new();
    let large = grown(b"larger");
    let bundle = Tree::from([(b"a".to_vec(), Node::File(0o644, b"x".to_vec(), 1)), (b"b".to_vec(), Node::File(0o644, large, 1))]);
    let mut plan = house.plan(&bundle, Mode::Push).unwrap();
    let all = house.missing(&plan, &bundle);
    all.iter().for_each(|content| take(&mut plan, &packed(content)).unwrap());
    drop(plan);
    assert_eq!(house.plan(&bundle, Mode::Push).unwrap().missing(), Vec::<u32>::new());
    let staged: Vec<_> = fs::read_dir(house.top.path().join("state/staging")).unwrap().map(|entry| entry.unwrap().path()).collect();
    for entry in fs::read_dir(&staged[0]).unwrap() {
        let file = entry.unwrap().path();
        let mut content = fs::read(&file).unwrap();
        content[0] ^= 1;
        fs::write(file, content).unwrap();
    }
    assert_eq!(house.plan(&bundle, Mode::Push).unwrap().missing(), [0, 1]);
    let other = Tree::from([(b"a".to_vec(), Node::File(0o644, b"y".to_vec(), 1))]);
    house.apply(&other, Mode::Push).unwrap();
    assert_eq!(fs::read_dir(house.top.path().join("state/staging")).unwrap().count(), 0);
    assert_eq!(read_tree(&house.destination()), other);
}

#[test]
fn a_mirror_that_would_remove_too_much_changes_nothing() {
    let house = House::new();
    let files = |names: &str| -> Tree { names.bytes().map(|name| (vec![name], Node::File(0o644, vec![name], 1))).collect() };
    house.apply(&files("abcd"), Mode::Mirror).unwrap();
    let guarded = |percent| house.place().plan(manifest(&files("a")), Rules { mode: Mode::Mirror, max_delete_percent: percent });
    assert!(matches!(guarded(74), Err(ApplyError::TooMany { removed: 3, there: 4, percent: 74 })));
    assert_eq!(guarded(75).unwrap().switch().unwrap().files_removed, 3);
    assert_eq!(read_tree(&house.destination()), files("a"));
}

#[test]
fn what_is_unchanged_is_known_without_reading_and_what_was_changed_is_seen() {
    let house = House { protects: false, ..House::new() };
    let bundle =
        Tree::from([(b"d/a".to_vec(), Node::File(0o644, b"one".to_vec(), 1)), (b"d/b".to_vec(), Node::File(0o600, b"two".to_vec(), 1))]);
    let version = manifest(&bundle).version();
    let known_as = |mode| house.place().unchanged(&version, mode).unwrap().is_some();
    let known = || known_as(Mode::Mirror);
    house.apply(&bundle, Mode::Mirror).unwrap();
    // What was changed a moment ago might be changed once more without a trace; afterwards it is known.
    while !known() {
        assert!(!house.apply(&bundle, Mode::Mirror).unwrap().changed);
    }
    assert!(known_as(Mode::Push) && known_as(Mode::MirrorDeletingForeign));
    for theirs in ["theirs", "d/theirs"] {
        fs::write(house.destination().join(theirs), b"").unwrap();
        assert!(known() && !known_as(Mode::MirrorDeletingForeign));
        fs::remove_file(house.destination().join(theirs)).unwrap();
    }
    let a = house.destination().join("d/a");
    let index = || {
        let state = fs::read_dir(house.top.path().join("state/trees")).unwrap().map(|entry| entry.unwrap().path());
        state.into_iter().find(|path| path.extension().is_some_and(|end| end == "index")).unwrap()
    };
    // The same size and the same time: only the time of the change of its inode tells.
    let changes: [&dyn Fn(); 5] = [
        &|| {
            fs::write(&a, b"ONE").unwrap();
            fs::File::options().write(true).open(&a).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
        },
        &|| fs::remove_file(&a).unwrap(),
        &|| fs::set_permissions(&a, fs::Permissions::from_mode(0o666)).unwrap(),
        &|| {
            fs::remove_file(&a).unwrap();
            fs::create_dir(&a).unwrap();
        },
        &|| fs::write(index(), b"muster-index 1\n").unwrap(),
    ];
    for (number, change) in changes.iter().enumerate() {
        change();
        assert!(!known(), "change {number} was not seen");
        if a.is_dir() {
            fs::remove_dir(&a).unwrap();
        }
        house.apply(&bundle, Mode::Mirror).unwrap();
        let found: Tree = read_tree(&house.destination()).into_iter().filter(|(_, node)| node.kind() == b'f').collect();
        assert_eq!(found, bundle, "change {number}");
        while !known() {
            assert!(!house.apply(&bundle, Mode::Mirror).unwrap().changed);
        }
    }
}

#[test]
fn a_tree_that_is_new_or_changes_for_the_greater_part_is_switched_by_one_rename() {
    let house = House { protects: false, ..House::new() };
    let file = |content: &[u8]| Node::File(0o644, content.to_vec(), 1);
    let tree = |contents: [&[u8]; 3]| {
        Tree::from([(b"a".to_vec(), file(contents[0])), (b"b".to_vec(), file(contents[1])), (b"c".to_vec(), file(contents[2]))])
    };
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    house.apply(&tree([b"1", b"2", b"3"]), Mode::Mirror).unwrap();
    let (top, kept) = (inode(&house.destination()), inode(&house.destination().join("a")));
    house.apply(&tree([b"1", b"2", b"new"]), Mode::Mirror).unwrap();
    assert_eq!(inode(&house.destination()), top, "one file of three is put in place");
    house.apply(&tree([b"1", b"other", b"files"]), Mode::Mirror).unwrap();
    assert_ne!(inode(&house.destination()), top, "two files of three make another directory");
    assert_eq!(inode(&house.destination().join("a")), kept, "what is unchanged is the same file");
    // With something of somebody else's in it, it is not Muster's own any more.
    fs::write(house.destination().join("theirs"), b"").unwrap();
    let top = inode(&house.destination());
    house.apply(&tree([b"x", b"y", b"z"]), Mode::Mirror).unwrap();
    assert_eq!(inode(&house.destination()), top);
    assert!(house.destination().join("theirs").exists());
}

#[test]
fn a_file_that_only_needs_another_mode_or_time_is_copied_into_a_tree_that_is_switched_as_a_whole() {
    let house = House { protects: false, ..House::new() };
    let tree = |mode: u32, mtime: i64, rest: &[u8]| -> Tree {
        let rest = |name: u8| (vec![name], Node::File(0o644, [&[name], rest].concat(), 1));
        let touched =
            [(b"mode".to_vec(), Node::File(mode, b"same".to_vec(), 1)), (b"time".to_vec(), Node::File(0o600, b"other".to_vec(), mtime))];
        touched.into_iter().chain((b'a'..b'g').map(rest)).collect()
    };
    let mut top = 0;
    for tree in [tree(0o644, 1, b"1"), tree(0o755, 2, b"2"), tree(0o400, 3, b"3")] {
        house.apply(&tree, Mode::Mirror).unwrap();
        let inode = fs::metadata(house.destination()).unwrap().ino();
        assert_ne!(std::mem::replace(&mut top, inode), inode, "it was switched as a whole");
        assert_eq!(read_tree(&house.destination()), tree);
        // So that the next plan knows each file without reading it.
        while house.place().unchanged(&manifest(&tree).version(), Mode::Mirror).unwrap().is_none() {
            house.apply(&tree, Mode::Mirror).unwrap();
        }
    }
}

#[test]
fn the_trees_before_are_had_again_without_sending_anything() {
    let house = House { protects: false, ..House::new() };
    let file = |content: &[u8]| Node::File(0o644, grown(content), 1);
    let tree = |contents: [&[u8]; 4]| -> Tree {
        (b'a'..).zip(contents).filter(|(_, content)| *content != b"-").map(|(name, content)| (vec![name], file(content))).collect()
    };
    // The second is put in place, the third switched as a whole.
    let trees = [tree([b"1", b"2", b"3", b"large"]), tree([b"1", b"2", b"-", b"larger"]), tree([b"x", b"y", b"z", b"larger"])];
    let apply = |tree: &Tree| {
        assert!(!house.plan(tree, Mode::Mirror).unwrap().missing().is_empty());
        house.apply(tree, Mode::Mirror).unwrap();
        while house.place().unchanged(&manifest(tree).version(), Mode::Mirror).unwrap().is_none() {
            house.apply(tree, Mode::Mirror).unwrap();
        }
    };
    trees.iter().for_each(apply);
    for tree in [&trees[0], &trees[2], &trees[0]] {
        let plan = house.plan(tree, Mode::Mirror).unwrap();
        assert_eq!(plan.missing(), Vec::<u32>::new());
        plan.switch().unwrap();
        assert_eq!(read_tree(&house.destination()), *tree);
        while house.place().unchanged(&manifest(tree).version(), Mode::Mirror).unwrap().is_none() {
            house.apply(tree, Mode::Mirror).unwrap();
        }
    }
    // What is kept and damaged is not used, and is sent the next time.
    let kept = house.top.path().join("state/kept");
    for file in walk(&kept).into_iter().filter(|path| !path.ends_with("manifest")) {
        fs::write(file, b"damaged").unwrap();
    }
    while let Err(error) = house.apply(&trees[2], Mode::Mirror) {
        assert!(matches!(error, ApplyError::Changed(_)), "{error:?}");
    }
    assert_eq!(read_tree(&house.destination()), trees[2]);
}

fn walk(top: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(top).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn a_byte_in_a_large_file_costs_little_and_holes_stay_holes() {
    let house = House::new();
    let (mut bytes, zeros) = (grown(b"larger"), vec![0; 8 * CHUNK_BYTES_MAX]);
    let tree = |bytes: &Vec<u8>| {
        Tree::from([(b"large".to_vec(), Node::File(0o644, bytes.clone(), 1)), (b"zeros".to_vec(), Node::File(0o644, zeros.clone(), 1))])
    };
    house.apply(&tree(&bytes), Mode::Push).unwrap();
    assert!(fs::metadata(house.destination().join("zeros")).unwrap().blocks() < 100, "zeros take room");
    bytes.insert(700_000, 1);
    let plan = house.plan(&tree(&bytes), Mode::Push).unwrap();
    let missing = house.missing(&plan, &tree(&bytes));
    assert!(missing.len() <= 2 && missing.len() < manifest(&tree(&bytes)).contents().len() - 1, "{} contents are sent", missing.len());
    drop(plan);
    house.apply(&tree(&bytes), Mode::Push).unwrap();
    assert_eq!(read_tree(&house.destination()), tree(&bytes));
}

#[test]
fn what_was_put_by_applies_that_were_cut_off_one_after_the_other_is_removed_still() {
    let house = House::new();
    let tree =
        |paths: &[&str]| -> Tree { paths.iter().map(|path| (path.as_bytes().to_vec(), Node::File(0o644, b"x".to_vec(), 1))).collect() };
    house.apply(&tree(&["a"]), Mode::Mirror).unwrap();
    for (bundle, in_the_way) in [(tree(&["a", "b", "z1"]), "z1"), (tree(&["a", "c", "z2"]), "z2")] {
        let cut_off = house.apply_after(&bundle, Mode::Mirror, || fs::create_dir(house.destination().join(in_the_way)).unwrap());
        assert!(matches!(cut_off, Err(ApplyError::Io { path, .. }) if path == in_the_way));
    }
    assert!(house.destination().join("b").exists() && house.destination().join("c").exists());
    for _ in 0..2 {
        house.apply(&tree(&["a"]), Mode::Mirror).unwrap();
        let left: std::collections::BTreeSet<_> = read_tree(&house.destination()).into_keys().collect();
        assert_eq!(left, ["a", "z1", "z2"].map(|path| path.as_bytes().to_vec()).into());
    }
    assert_eq!(fs::read_dir(house.top.path().join("state/trees")).unwrap().count(), 2, "what was begun is over");
}

#[test]
fn contents_that_are_there_under_another_path_are_not_sent() {
    let house = House::new();
    let file = |content: &[u8]| Node::File(0o644, content.to_vec(), 1);
    house.apply(&Tree::from([(b"a".to_vec(), file(b"one")), (b"b".to_vec(), file(b"two"))]), Mode::Mirror).unwrap();
    let swapped = Tree::from([(b"a".to_vec(), file(b"two")), (b"b".to_vec(), file(b"one")), (b"c".to_vec(), file(b"one"))]);
    assert_eq!(house.plan(&swapped, Mode::Mirror).unwrap().missing(), Vec::<u32>::new());
    let applied = house.apply(&swapped, Mode::Mirror).unwrap();
    assert_eq!((applied.files, applied.files_changed, applied.files_removed, applied.bytes), (3, 3, 0, 9));
    assert_eq!(read_tree(&house.destination()), swapped);
}

#[tokio::test]
async fn a_large_file_goes_through_in_small_pieces() {
    const BYTES: usize = 20 * 1024 * 1024;
    let house = House::new();
    let from = house.top.path().join("from");
    fs::create_dir(&from).unwrap();
    let mut state = 1_u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    fs::write(from.join("large"), noise.take(BYTES).collect::<Vec<_>>()).unwrap();
    let dir = Dir::open_ambient_dir(&from, ambient_authority()).unwrap();
    let (scanned, spots) = scan(&dir, &mut |_| {}).unwrap();
    let contents: Arc<dyn Contents> = Arc::new(DirectoryContents::new(dir, &scanned, &spots));
    let bundle = Bundle::new("large".parse().unwrap(), scanned.clone(), contents);

    let mut plan = house.place().plan(scanned.clone(), Rules { mode: Mode::Push, max_delete_percent: 100 }).unwrap();
    assert_eq!(plan.missing().len(), scanned.contents().len());
    let mut packing = Packing::new(&bundle, plan.missing().to_vec()).await;
    let (mut unpacker, mut pieces) = (Unpacker::default(), 0);
    while let Some(piece) = packing.next(&[]).await.unwrap() {
        assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES);
        unpacker.feed(&piece);
        while let Some(packed) = unpacker.record().unwrap() {
            take(&mut plan, &packed).unwrap();
        }
        pieces += 1;
    }
    unpacker.finish().unwrap();
    assert!(pieces >= BYTES / PIECE_BYTES, "the pack came in {pieces} pieces");
    assert_eq!(plan.switch().unwrap().bytes, BYTES as u64);
    assert!(fs::read(from.join("large")).unwrap() == fs::read(house.destination().join("large")).unwrap());

    // The next time the file is shorter than its manifest says.
    fs::write(from.join("large"), b"short").unwrap();
    let all = 0..u32::try_from(scanned.contents().len()).unwrap();
    assert!(Packing::new(&bundle, all).await.next(&[]).await.is_err());
}

#[test]
fn what_others_put_at_a_destination_while_contents_come_stays_there() {
    let house = House { protects: false, ..House::new() };
    house.apply(&files(&[("d/a", b"1", 0o644), ("d/b", b"2", 0o644)]), Mode::Mirror).unwrap();
    let (new, theirs) = (files(&[("d/a", b"x", 0o644), ("d/b", b"y", 0o600)]), house.destination().join("d/users-work.txt"));
    let top = fs::metadata(house.destination()).unwrap().ino();
    house.apply_after(&new, Mode::Mirror, || fs::write(&theirs, b"work").unwrap()).unwrap();
    assert_eq!(fs::read(&theirs).unwrap(), b"work");
    assert_eq!(fs::metadata(house.destination()).unwrap().ino(), top, "it was put in place file by file");
    fs::remove_file(&theirs).unwrap();
    assert_eq!(read_tree(&house.destination()), new);
    assert_eq!(house.staged(), 0);
}

#[test]
fn what_others_put_into_the_old_tree_after_the_switch_goes_on_to_the_new_one_or_is_kept() {
    for is_cut_off in [false, true] {
        let house = House { protects: false, ..House::new() };
        house.apply(&files(&[("d/a", b"1", 0o644), ("gone/b", b"2", 0o644)]), Mode::Mirror).unwrap();
        let new = files(&[("d/a", b"x", 0o644), ("e", b"y", 0o644)]);
        let mut plan = house.plan(&new, Mode::Mirror).unwrap();
        house.missing(&plan, &new).iter().for_each(|content| take(&mut plan, &packed(content)).unwrap());
        let (_, rest) = plan.switch_first().unwrap();
        let staged = fs::read_dir(house.top.path().join("state/staging")).unwrap().next().unwrap().unwrap().path();
        let theirs =
            files(&[("d/theirs", b"1", 0o600), ("gone/theirs", b"2", 0o644), ("new/deep/theirs", b"3", 0o644), ("e/theirs", b"4", 0o644)]);
        for (path, node) in theirs.iter().filter(|(path, _)| !staged.join("old").join(OsStr::from_bytes(path)).exists()) {
            write_node(&staged.join("old"), path, node);
        }
        if is_cut_off {
            drop(rest);
            house.plan(&new, Mode::Mirror).unwrap();
        } else {
            rest.finish();
            assert_eq!(house.staged(), 0);
        }
        let mut expected = new.clone();
        expected.extend(theirs.clone().into_iter().filter(|(path, _)| !path.starts_with(b"e")));
        assert_eq!(read_tree(&house.destination()), expected);
        // A file is where the directory was.
        let aside: Vec<_> =
            walk(&house.top.path().join("state/kept")).into_iter().filter(|path| path.ends_with("theirs-1/e/theirs")).collect();
        assert_eq!(fs::read(&aside[0]).unwrap(), b"4");
        house.apply(&new, Mode::Mirror).unwrap();
        assert_eq!(house.staged(), 0);
    }
}

#[test]
fn directories_that_their_owner_may_not_write_to_are_put_together_replaced_and_removed() {
    if ran_as_nobody("directories_that_their_owner_may_not_write_to_are_put_together_replaced_and_removed") {
        return;
    }
    let tree = |name: &str| {
        let mut tree = Tree::new();
        let at = |end: &str| format!("{name}{end}").into_bytes();
        let directory = |end| (at(end), Node::Directory(Some(0o555)));
        grow(&mut tree, &[directory(""), directory("/sub"), (at("/sub/f"), Node::File(0o444, at(""), 1))], None);
        tree
    };
    let house = House { protects: false, ..House::new() };
    let base = house.top.path().join("base");
    // What was built and could not be switched is no hindrance, and is not sent again.
    fs::set_permissions(&base, fs::Permissions::from_mode(0o555)).unwrap();
    assert!(matches!(house.apply(&tree("one"), Mode::Mirror), Err(ApplyError::Io { .. })));
    fs::set_permissions(&base, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(house.plan(&tree("one"), Mode::Mirror).unwrap().missing(), Vec::<u32>::new());
    for (name, mode) in [("one", Mode::Mirror), ("two", Mode::Mirror), ("three", Mode::MirrorDeletingForeign)] {
        house.apply(&tree(name), mode).unwrap();
        assert_eq!(read_tree(&house.destination()), tree(name));
        assert_eq!(house.staged(), 0);
    }
    // A destination that may not be written to itself is put in place file by file.
    fs::set_permissions(house.destination(), fs::Permissions::from_mode(0o555)).unwrap();
    house.apply(&tree("four"), Mode::Mirror).unwrap();
    assert_eq!(read_tree(&house.destination()), tree("four"));
    let dirs = walk_directories(house.top.path());
    dirs.iter().for_each(|dir| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap());
}

fn walk_directories(top: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(top).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    std::iter::once(top.to_owned()).chain(entries.flat_map(|path| walk_directories(&path))).collect()
}

#[test]
fn a_large_file_that_its_owner_may_not_write_to_is_no_hindrance_after_a_failure() {
    if ran_as_nobody("a_large_file_that_its_owner_may_not_write_to_is_no_hindrance_after_a_failure") {
        return;
    }
    let house = House::new();
    house.apply(&files(&[("big", b"large", 0o555)]), Mode::Mirror).unwrap();
    let (new, in_the_way) = (files(&[("a", b"x", 0o644), ("big", b"larger", 0o555)]), house.destination().join("a"));
    let failed = house.apply_after(&new, Mode::Mirror, || fs::create_dir(&in_the_way).unwrap());
    assert!(matches!(failed, Err(ApplyError::Io { path, .. }) if path == "a"));
    fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(house.plan(&new, Mode::Mirror).unwrap().missing(), Vec::<u32>::new());
    house.apply(&new, Mode::Mirror).unwrap();
    assert_eq!(read_tree(&house.destination()), new);
}

/// A mount, until it is dropped.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_destination_of_a_lower_layer_is_brought_to_another_tree_file_by_file() {
    let below = House { protects: false, ..House::new() };
    below.apply(&files(&[("d/a", b"1", 0o644), ("d/b", b"2", 0o644)]), Mode::Mirror).unwrap();
    let (layers, merged) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let layer = |name| {
        fs::create_dir(layers.path().join(name)).unwrap();
        layers.path().join(name).display().to_string()
    };
    let options = format!("lowerdir={},upperdir={},workdir={},redirect_dir=off", below.top.path().display(), layer("upper"), layer("work"));
    let mounted = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(merged.path()).output();
    if !mounted.is_ok_and(|mounted| mounted.status.success()) {
        eprintln!("passed over: nothing can be mounted here");
        return;
    }
    let _mounted = Mounted(merged.path().to_owned());
    let house = House { protects: false, ..House::at(merged, None) };
    let refused = rustix::fs::rename(house.destination(), house.top.path().join("base/other"));
    assert_eq!(refused, Err(rustix::io::Errno::XDEV), "a directory of a lower layer can be renamed here");
    for new in [files(&[("d/a", b"x", 0o644), ("d/b", b"y", 0o644)]), files(&[("e", b"z", 0o644)])] {
        house.apply(&new, Mode::Mirror).unwrap();
        assert_eq!(read_tree(&house.destination()), new);
        assert_eq!(house.staged(), 0);
    }
}

#[test]
fn a_tree_is_put_in_place_file_by_file_where_its_files_can_not_be_shared() {
    let house = House { protects: false, ..House::new() };
    let old = files(&[("a", b"1", 0o644), ("b", b"2", 0o644), ("c", b"3", 0o644)]);
    house.apply(&old, Mode::Mirror).unwrap();
    // The kernel shares none that can not be changed, not even for root.
    let fixed = |how| Command::new("chattr").arg(how).arg(house.destination().join("b")).status().is_ok_and(|status| status.success());
    if !fixed("+i") {
        eprintln!("passed over: files can not be made immutable here");
        return;
    }
    let new = files(&[("a", b"x", 0o644), ("b", b"2", 0o644), ("c", b"y", 0o644)]);
    let (top, applied) = (fs::metadata(house.destination()).unwrap().ino(), house.apply(&new, Mode::Mirror));
    assert!(fixed("-i"));
    assert_eq!(applied.unwrap().files_changed, 2);
    assert_eq!(read_tree(&house.destination()), new);
    assert_eq!(fs::metadata(house.destination()).unwrap().ino(), top);
    assert_eq!(house.staged(), 0);
}

#[test]
fn a_staging_directory_that_somebody_else_could_have_filled_is_refused_by_name() {
    let Some(house) = House::across() else { return };
    let (bundle, name) = (files(&[("a", b"x", 0o644)]), format!(".muster-staging-{}", Digest::of(b"to").short()));
    let planted = house.destination().join(&name);
    let staged = planted.join(format!("c{}", Digest::of(b"x")));
    fs::create_dir_all(&planted).unwrap();
    fs::write(&staged, b"x").unwrap();
    let mode = |mode| fs::set_permissions(&planted, fs::Permissions::from_mode(mode)).unwrap();
    let refused = || matches!(house.plan(&bundle, Mode::Push), Err(ApplyError::Planted(path)) if path == format!("to/{name}"));
    for bits in [0o777, 0o720, 0o702] {
        mode(bits);
        assert!(refused(), "{bits:o} was trusted");
    }
    mode(0o700);
    if rustix::process::geteuid().is_root() {
        chown(&planted, Some(1234), None).unwrap();
        assert!(refused());
        chown(&planted, Some(0), None).unwrap();
        chown(&staged, Some(1234), None).unwrap();
        assert_eq!(house.plan(&bundle, Mode::Push).unwrap().missing(), [0], "another's file was taken for one that was staged");
        fs::write(&staged, b"x").unwrap();
    }
    assert_eq!(house.plan(&bundle, Mode::Push).unwrap().missing(), Vec::<u32>::new());
    house.apply(&bundle, Mode::Push).unwrap();
    assert_eq!(read_tree(&house.destination()), bundle);
    assert_eq!(fs::metadata(house.destination().join("a")).unwrap().uid(), rustix::process::geteuid().as_raw());
}

#[test]
fn what_was_just_put_is_known_at_once() {
    for house in [Some(House::new()), House::across()].into_iter().flatten() {
        let house = House { protects: false, ..house };
        let trees = [["1", "2", "3"], ["1", "2", "new"], ["1", "other", "files"], ["all", "other", "files"]];
        for (number, [a, b, c]) in trees.into_iter().enumerate() {
            let tree = files(&[("d/a", a.as_bytes(), 0o644), ("b", b.as_bytes(), 0o644), ("c", c.as_bytes(), 0o644)]);
            house.apply(&tree, Mode::Mirror).unwrap();
            let unchanged = house.place().unchanged(&manifest(&tree).version(), Mode::MirrorDeletingForeign).unwrap();
            assert!(unchanged.is_some(), "tree {number} is not known");
        }
    }
}

#[test]
fn the_tree_before_is_had_again_whether_it_was_known_or_not_and_from_another_file_system() {
    let trees = [
        files(&[("a", b"x", 0o644), ("b/c", b"a longer content", 0o600), ("large", b"large", 0o644)]),
        files(&[("a", b"xx", 0o644), ("large", b"larger", 0o644)]),
    ];
    for verify in [false, true] {
        for (house, protects) in [(Some(House::new()), false), (Some(House::new()), true), (House::across(), false)] {
            let Some(house) = house else { continue };
            let house = House { protects, verify, ..house };
            for tree in &trees {
                house.apply(tree, Mode::Mirror).unwrap();
                // As if it had been changed so shortly before that nothing is to be relied upon.
                let trees = walk(&house.top.path().join("state/trees"));
                trees
                    .iter()
                    .filter(|path| path.extension().is_some_and(|end| end == "index"))
                    .for_each(|path| fs::remove_file(path).unwrap());
            }
            let kept = house.kept();
            let before = kept.manifest(1).unwrap();
            assert_eq!((kept.generations(), &before), ([1].as_slice(), &manifest(&trees[0])));
            assert!(kept.lacking(&before, &house.place().ledger().unwrap()).unwrap().is_empty());
            let plan = house.plan(&trees[0], Mode::Mirror).unwrap();
            assert_eq!(plan.missing(), Vec::<u32>::new());
            plan.switch().unwrap();
            assert_eq!(read_tree(&house.destination()), trees[0]);
        }
    }
}

#[test]
fn what_is_lacking_of_a_tree_before_is_said() {
    let house = House::new();
    house.apply(&files(&[("a", b"one", 0o644), ("b", b"two", 0o644)]), Mode::Mirror).unwrap();
    fs::write(house.destination().join("a"), b"another's").unwrap();
    house.apply(&files(&[("a", b"new", 0o644), ("b", b"two", 0o644)]), Mode::Mirror).unwrap();
    let (kept, ledger) = (house.kept(), house.place().ledger().unwrap());
    assert_eq!(kept.lacking(&kept.manifest(1).unwrap(), &ledger).unwrap(), [&path(b"a")]);
}

#[test]
fn tries_that_fail_push_out_no_tree_that_is_kept() {
    let house = House::new();
    let tree = |content: &[u8]| files(&[("a", content, 0o644), ("b", content, 0o644)]);
    house.apply(&tree(b"x"), Mode::Mirror).unwrap();
    house.apply(&tree(b"y"), Mode::Mirror).unwrap();
    let mut new = tree(b"xx");
    grow(&mut new, &files(&[("z", b"z", 0o644)]).into_iter().collect::<Vec<_>>(), None);
    let in_the_way = house.destination().join("z");
    for _ in 0..3 {
        let failed = house.apply_after(&new, Mode::Mirror, || fs::create_dir(&in_the_way).unwrap());
        assert!(matches!(failed, Err(ApplyError::Io { .. })), "{failed:?}");
        fs::remove_dir(&in_the_way).unwrap();
    }
    house.apply(&new, Mode::Mirror).unwrap();
    let kept = house.kept();
    let versions: Vec<_> = kept.generations().iter().map(|number| kept.manifest(*number).unwrap().version()).collect();
    assert_eq!(versions, [tree(b"x"), tree(b"y")].map(|tree| manifest(&tree).version()));
    for before in [tree(b"y"), tree(b"x")] {
        let plan = house.plan(&before, Mode::Mirror).unwrap();
        assert_eq!(plan.missing(), Vec::<u32>::new());
    }
}

#[test]
fn what_is_staged_in_the_destination_is_not_counted_as_there() {
    let Some(house) = House::across() else { return };
    house.apply(&files(&[("a", b"x", 0o644)]), Mode::Mirror).unwrap();
    let bundle = files(&[("a", b"x", 0o644), ("b", b"1", 0o644), ("c", b"2", 0o644), ("d", b"3", 0o644)]);
    let mut plan = house.plan(&bundle, Mode::Mirror).unwrap();
    house.missing(&plan, &bundle).iter().for_each(|content| take(&mut plan, &packed(content)).unwrap());
    drop(plan);
    let plan = house.place().plan(manifest(&bundle), Rules { mode: Mode::MirrorDeletingForeign, max_delete_percent: 0 }).unwrap();
    assert_eq!(plan.missing(), Vec::<u32>::new());
    assert_eq!(plan.switch().unwrap().files_removed, 0);
    assert_eq!(read_tree(&house.destination()), bundle);
}

#[test]
fn a_file_that_is_not_what_it_was_taken_for_is_read_the_next_time() {
    let house = House::new();
    house.apply(&files(&[("a", b"one", 0o644)]), Mode::Mirror).unwrap();
    // As if the file had been changed without a trace.
    let ledger = house.top.path().join("state/trees").join(Digest::of(b"to").to_string());
    let text = fs::read_to_string(&ledger).unwrap();
    fs::write(&ledger, text.replace(&Digest::of(b"one").to_string(), &Digest::of(b"two").to_string())).unwrap();
    let new = files(&[("a", b"one", 0o644), ("b", b"two", 0o644)]);
    let failed = house.apply(&new, Mode::Mirror).unwrap_err();
    assert!(failed.to_string().contains("the next try reads every file"), "{failed}");
    house.apply(&new, Mode::Mirror).unwrap();
    assert_eq!(read_tree(&house.destination()), new);
}

#[test]
fn a_large_file_is_what_its_digest_says_or_is_not_put() {
    let bundle = files(&[("large", b"large", 0o644)]);
    let made = manifest(&bundle);
    let entries = |path: &[u8], chunks: Box<[(Digest, u32)]>, digest| {
        let Kind::File { size, mtime, .. } = made.entries()[0].kind else { unreachable!() };
        Entry { path: self::path(path), mode: 0o644, kind: Kind::File { size, mtime, digest, chunks } }
    };
    let Kind::File { digest, chunks, .. } = &made.entries()[0].kind else { unreachable!() };
    let turned: Box<[_]> = chunks.iter().rev().copied().collect();
    let two = Manifest::new(vec![entries(b"a", chunks.clone(), *digest), entries(b"b", turned.clone(), *digest)]);
    assert_eq!(two, Err(ManifestError::TwoCuts(path(b"b"))));
    let lying = Manifest::new(vec![entries(b"large", turned, *digest)]).unwrap();
    for house in [House::new(), House { protects: false, ..House::new() }] {
        for _ in 0..2 {
            let mut plan = house.place().plan(lying.clone(), Rules { mode: Mode::Push, max_delete_percent: 100 }).unwrap();
            let (all, contents) = (contents(&bundle), lying.contents());
            let missing: Vec<_> = plan.missing().iter().map(|index| all[&contents[*index as usize].0].clone()).collect();
            missing.iter().for_each(|content| take(&mut plan, &packed(content)).unwrap());
            assert!(matches!(plan.switch(), Err(ApplyError::Pieces(path)) if path == "large"));
            assert!(!house.destination().exists());
        }
        house.apply(&bundle, Mode::Push).unwrap();
        assert_eq!(read_tree(&house.destination()), bundle);
    }
}

#[test]
fn what_was_pushed_and_is_gone_is_forgotten() {
    let house = House::new();
    let one = |number: u32| files(&[(&format!("build-{number}/out"), b"x", 0o644), ("same", b"y", 0o644)]);
    for number in 0..4 {
        house.apply(&one(number), Mode::Push).unwrap();
        fs::remove_dir_all(house.destination().join(format!("build-{number}"))).unwrap();
    }
    house.apply(&one(4), Mode::Push).unwrap();
    let ledger = fs::read(house.top.path().join("state/trees").join(Digest::of(b"to").to_string())).unwrap();
    assert_eq!(Manifest::parse(&ledger).unwrap(), manifest(&one(4)));
    assert!(house.place().unchanged(&manifest(&one(4)).version(), Mode::Push).unwrap().is_some());
}

#[test]
fn what_others_put_beside_an_empty_bundle_is_seen() {
    let house = House { protects: false, ..House::new() };
    let known = || house.place().unchanged(&manifest(&Tree::new()).version(), Mode::MirrorDeletingForeign).unwrap().is_some();
    fs::create_dir(house.destination()).unwrap();
    house.apply(&Tree::new(), Mode::MirrorDeletingForeign).unwrap();
    assert!(known());
    fs::write(house.destination().join("theirs"), b"").unwrap();
    assert!(!known());
    assert_eq!(house.apply(&Tree::new(), Mode::MirrorDeletingForeign).unwrap().files_removed, 1);
}
