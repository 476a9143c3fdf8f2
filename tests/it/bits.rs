//! Bundles, against a plain model of a directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use muster::bits::apply::{Applied, ApplyError, Mode, Plan};
use muster::bits::contents::{Bundle, Contents, DirectoryContents, Packing};
use muster::bits::manifest::{Entry, Kind, Manifest, ManifestError};
use muster::bits::pack::{PackError, Packer, Sink, Unpacker};
use muster::bits::path::TreePath;
use muster::bits::scan::{ScanError, scan};
use muster::limits::PIECE_BYTES;
use muster::names::Digest;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// What is at a path of the model. A directory of a bundle without a mode is one that the bundle does not list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory(Option<u32>),
    File(u32, Vec<u8>),
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

type Tree = BTreeMap<Vec<u8>, Node>;
type Kinds = BTreeMap<Vec<u8>, u8>;

const PROTECTED: &[u8] = b"state.d";

fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    (1..path.len()).filter(|index| path[*index] == b'/').map(|index| &path[..index])
}

fn below(path: &[u8], other: &[u8]) -> bool {
    other.len() > path.len() && other.starts_with(path) && other[path.len()] == b'/'
}

/// Nodes as a tree: what does not fit with what is there already is passed over.
fn grow(tree: &mut Tree, nodes: &[(Vec<u8>, Node)], parents: Option<u32>) {
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
        Node::File(bits, bytes) => {
            fs::write(&place, bytes).unwrap();
            mode(*bits);
        }
        Node::Symlink(target) => symlink(OsStr::from_bytes(target), &place).unwrap(),
    }
}

fn write_tree(top: &Path, tree: &Tree) {
    fs::create_dir_all(top).unwrap();
    tree.iter().for_each(|(path, node)| write_node(top, path, node));
}

fn read_tree(top: &Path) -> Tree {
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
                tree.insert(path, Node::File(mode, fs::read(&place).unwrap()));
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

fn manifest(tree: &Tree) -> Manifest {
    let entries = tree.iter().filter_map(|(at, node)| {
        let (mode, kind) = match node {
            Node::Directory(mode) => ((*mode)?, Kind::Directory),
            Node::File(mode, bytes) => (*mode, Kind::File { size: bytes.len() as u64, digest: Digest::of(bytes) }),
            Node::Symlink(target) => (0, Kind::Symlink { target: target.as_slice().into() }),
        };
        Some(Entry { path: path(at), mode, kind })
    });
    Manifest::new(entries.collect()).unwrap()
}

fn contents(tree: &Tree) -> BTreeMap<Digest, Vec<u8>> {
    let files = tree.values().filter_map(|node| match node {
        Node::File(_, bytes) => Some((Digest::of(bytes), bytes.clone())),
        _ => None,
    });
    files.collect()
}

fn pack<'a>(contents: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    let (mut packer, mut packed) = (Packer::new().unwrap(), Vec::new());
    for content in contents {
        packer.begin(&Digest::of(content), content.len() as u64).unwrap();
        for piece in content.chunks(7) {
            packer.data(piece).unwrap();
        }
        packed.extend(packer.take());
    }
    packed.extend(packer.finish().unwrap());
    packed
}

/// What a bundle does to a tree, by the book; none if something is in the way.
fn predict(old: &Tree, ledger: &Kinds, bundle: &Tree, mode: Mode, fresh: u32) -> Option<(Tree, Kinds)> {
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
        new.retain(|path, _| bundle.contains_key(path) || path == PROTECTED || below(PROTECTED, path));
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

/// A directory with a destination and a state beside it.
struct House {
    top: tempfile::TempDir,
    base: Dir,
    state: Dir,
    fresh: u32,
}

impl House {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("state")).unwrap();
        fs::create_dir(top.path().join("base")).unwrap();
        let open = |name| Dir::open_ambient_dir(top.path().join(name), ambient_authority()).unwrap();
        let (base, state) = (open("base"), open("state"));
        let fresh = fs::metadata(top.path().join("base")).unwrap().permissions().mode() & 0o7777;
        Self { base, state, fresh, top }
    }

    fn destination(&self) -> std::path::PathBuf {
        self.top.path().join("base/to")
    }

    fn plan(&self, bundle: &Tree, mode: Mode) -> Result<Plan, ApplyError> {
        let protect = Some(Path::new(OsStr::from_bytes(PROTECTED)));
        Plan::make(&self.base, Path::new("to"), &self.state, "to", manifest(bundle), mode, protect)
    }

    fn apply(&self, bundle: &Tree, mode: Mode) -> Result<Applied, ApplyError> {
        self.apply_after(bundle, mode, || {})
    }

    /// Applies a bundle; something else happens at the destination just before the switch.
    fn apply_after(&self, bundle: &Tree, mode: Mode, meanwhile: impl FnOnce()) -> Result<Applied, ApplyError> {
        let mut plan = self.plan(bundle, mode)?;
        let (manifest, contents) = (manifest(bundle), contents(bundle));
        let missing: Vec<_> = plan.missing().iter().map(|index| &contents[&manifest.contents()[*index as usize].0]).collect();
        if !missing.is_empty() {
            let mut unpacker = Unpacker::new(plan.receive()).unwrap();
            unpacker.feed(&pack(missing)).unwrap();
            unpacker.finish().unwrap();
        }
        meanwhile();
        plan.switch()
    }
}

fn a_path() -> impl Strategy<Value = Vec<u8>> {
    let name = select(vec![b"a".as_slice(), b"b", b"a.b", b"c d\n%", b"\xff\xfe"]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.join(b"/".as_slice()))
}

fn a_node(listed: bool) -> impl Strategy<Value = Node> {
    let content = select(vec![b"".as_slice(), b"x", b"y", b"xx", b"a longer content"]).prop_map(<[u8]>::to_vec);
    prop_oneof![
        2 => select(vec![0o755, 0o700, 0o555]).prop_map(|mode| Node::Directory(Some(mode))),
        4 => (select(vec![0o644, 0o755, 0o400]), content).prop_map(|(mode, content)| Node::File(mode, content)),
        1 => select(if listed { vec![b"a".as_slice(), b"./b//a", b"\xff"] } else { vec![b"a".as_slice(), b"/etc", b"../.."] })
            .prop_map(|target| Node::Symlink(target.to_vec())),
    ]
}

fn nodes(listed: bool, most: usize) -> impl Strategy<Value = Vec<(Vec<u8>, Node)>> {
    prop::collection::vec((a_path(), a_node(listed)), 0..most)
}

fn a_bundle() -> impl Strategy<Value = Tree> {
    (nodes(true, 10), any::<bool>()).prop_map(|(nodes, list_parents)| {
        let mut tree = Tree::new();
        grow(&mut tree, &nodes, list_parents.then_some(0o755));
        tree
    })
}

fn a_mode() -> impl Strategy<Value = Mode> {
    select(vec![Mode::Push, Mode::Mirror, Mode::MirrorDeletingForeign])
}

fn check_apply(house: &House, tree: &mut Tree, ledger: &mut Kinds, bundle: &Tree, mode: Mode) -> Result<(), TestCaseError> {
    let applied = house.apply(bundle, mode);
    match predict(tree, ledger, bundle, mode, house.fresh) {
        None => {
            prop_assert!(matches!(applied, Err(ApplyError::Conflict { .. })), "{applied:?} where something is in the way");
            prop_assert_eq!(&read_tree(&house.destination()), &*tree);
        }
        Some((new, after)) => {
            let applied = applied.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
            prop_assert_eq!(&read_tree(&house.destination()), &new);
            prop_assert_eq!(applied.changed, new != *tree);
            prop_assert_eq!(house.apply(bundle, mode).unwrap().changed, false, "a second time changed something");
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
    ) {
        let (house, mut tree, mut ledger) = (House::new(), Tree::new(), Kinds::new());
        grow(&mut tree, &foreign, Some(0o755));
        grow(&mut tree, &[([PROTECTED, b"/kept"].concat(), Node::File(0o600, b"kept".to_vec()))], Some(0o755));
        write_tree(&house.destination(), &tree);
        for (bundle, mode) in &earlier {
            check_apply(&house, &mut tree, &mut ledger, bundle, *mode)?;
        }
        // Somebody else is at work there too.
        for index in gone {
            let victim = index.get(&tree.keys().cloned().collect::<Vec<_>>()).clone();
            if !victim.starts_with(PROTECTED) {
                tree.retain(|path, _| *path != victim && !below(&victim, path));
            }
        }
        grow(&mut tree, &edits, Some(0o755));
        fs::remove_dir_all(house.destination()).unwrap();
        write_tree(&house.destination(), &tree);
        check_apply(&house, &mut tree, &mut ledger, &bundle, mode)?;
    }

    #[test]
    fn a_plan_that_is_given_up_leaves_the_old_tree(old in nodes(false, 8), bundle in a_bundle(), mode in a_mode(), cut in any::<Index>()) {
        let (house, mut tree) = (House::new(), Tree::new());
        grow(&mut tree, &old, Some(0o755));
        write_tree(&house.destination(), &tree);
        if let Ok(mut plan) = house.plan(&bundle, mode) {
            let all = contents(&bundle);
            let made = manifest(&bundle);
            let missing: Vec<_> = plan.missing().iter().map(|index| &all[&made.contents()[*index as usize].0]).collect();
            let packed = pack(missing.iter().copied());
            let mut unpacker = Unpacker::new(plan.receive()).unwrap();
            unpacker.feed(&packed[..cut.index(packed.len())]).unwrap();
            prop_assert!(unpacker.finish().is_err());
            drop(plan);
            prop_assert_eq!(read_tree(&house.destination()), tree);
        }
    }

    #[test]
    fn what_was_scanned_and_applied_is_the_same_again(bundle in nodes(true, 12)) {
        let (house, mut tree) = (House::new(), Tree::new());
        grow(&mut tree, &bundle, Some(0o755));
        let from = house.top.path().join("from");
        write_tree(&from, &tree);
        let (scanned, places) = scan(&Dir::open_ambient_dir(&from, ambient_authority()).unwrap(), &mut |_| {}).unwrap();
        prop_assert_eq!(&scanned, &manifest(&tree));
        prop_assert_eq!(places.len(), scanned.contents().len());
        house.apply(&tree, Mode::Push).unwrap();
        prop_assert_eq!(read_tree(&house.destination()), tree);
    }
}

/// Keeps what is unpacked.
#[derive(Default)]
struct Kept(Vec<(Digest, Vec<u8>)>, usize);

impl Sink for Kept {
    type Error = std::convert::Infallible;

    fn begin(&mut self, digest: &Digest, _: u64) -> Result<(), Self::Error> {
        self.0.push((*digest, Vec::new()));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0.last_mut().unwrap().1.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self) -> Result<(), Self::Error> {
        self.1 += 1;
        let (digest, bytes) = self.0.last().unwrap();
        assert_eq!(*digest, Digest::of(bytes), "a content that is not what it says was let through");
        Ok(())
    }
}

fn unpack(packed: &[u8], piece: usize) -> Result<Kept, PackError> {
    let mut unpacker = Unpacker::new(Kept::default())?;
    packed.chunks(piece).try_for_each(|piece| unpacker.feed(piece))?;
    unpacker.finish()
}

fn some_contents() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pack_gives_back_what_was_packed_however_it_is_cut(contents in some_contents(), piece in 1_usize..50) {
        let kept = unpack(&pack(&contents), piece).unwrap();
        prop_assert_eq!(kept.0.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(), contents);
    }

    #[test]
    fn a_damaged_pack_is_never_taken_for_another(contents in some_contents(), at in any::<Index>(), bits in 1_u8.., cut in any::<Index>()) {
        let packed = pack(&contents);
        prop_assert!(unpack(&packed[..cut.index(packed.len())], 64).is_err());
        prop_assert!(unpack(&[&packed, [0].as_slice()].concat(), 64).is_err());
        let mut damaged = packed;
        let at = at.index(damaged.len());
        damaged[at] ^= bits;
        if let Ok(kept) = unpack(&damaged, 64) {
            prop_assert_eq!(kept.1, kept.0.len());
        }
    }

    #[test]
    fn a_damaged_record_is_refused(contents in some_contents(), at in any::<Index>(), bits in 1_u8..) {
        prop_assume!(!contents.is_empty());
        let mut plain = zstd::decode_all(pack(&contents).as_slice()).unwrap();
        let at = at.index(plain.len());
        plain[at] ^= bits;
        prop_assert!(unpack(&zstd::encode_all(plain.as_slice(), 1).unwrap(), 64).is_err());
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
fn a_manifest_that_is_no_tree_is_refused() {
    let empty = Digest::of(b"");
    let other = Digest::of(b"x");
    let refused = |lines: &str| Manifest::parse(format!("muster-manifest 1\n{lines}").as_bytes()).unwrap_err();
    assert!(matches!(refused("d 755 b\nd 755 a\n"), ManifestError::Order(_)));
    assert!(matches!(refused("d 755 a\nd 755 a\n"), ManifestError::Order(_)));
    assert!(matches!(refused(&format!("f 644 0 {empty} a\nd 755 a.b\nd 755 a/c\n")), ManifestError::Below(_)));
    assert!(matches!(refused("l a b\nd 755 a/b/c\n"), ManifestError::Below(_)));
    assert!(matches!(refused(&format!("f 644 1 {other} a\nf 644 2 {other} b\n")), ManifestError::TwoSizes(_)));
    assert!(matches!(refused("d 1755 a\n"), ManifestError::Mode(_)));
    assert!(matches!(refused("d 755 ../a\n"), ManifestError::Path { line: 2, .. }));
    for target in ["/etc", "..", "../a", "a/../../b", "a/..", "b/../a", "%00", ""] {
        assert!(Manifest::parse(format!("muster-manifest 1\nl a {target}\n").as_bytes()).is_err(), "{target} was taken");
    }
    let text = format!("muster-manifest 1\nf 644 0 {empty} a\n");
    for bad in [
        text.replace("644", "0644"),
        text.replace(" 0 ", " 00 "),
        text.replace(&empty.to_string(), &format!("sha256:{empty}")),
        text.trim_end().to_owned(),
        format!("{text}\n"),
        text.replace("manifest 1", "manifest 2"),
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
    let bundle = Tree::from([(b"a/b".to_vec(), Node::File(0o644, b"x".to_vec()))]);
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
        let bundle = Tree::from([(own.as_bytes().to_vec(), Node::File(0o644, Vec::new()))]);
        assert!(matches!(house.apply(&bundle, Mode::MirrorDeletingForeign), Err(ApplyError::Own(path)) if path == own));
    }
}

#[test]
fn a_content_that_was_not_asked_for_or_has_another_size_is_refused() {
    let house = House::new();
    let bundle = Tree::from([(b"a".to_vec(), Node::File(0o644, b"x".to_vec()))]);
    let mut plan = house.plan(&bundle, Mode::Push).unwrap();
    let mut unpacker = Unpacker::new(plan.receive()).unwrap();
    assert!(matches!(unpacker.feed(&pack([&b"y".to_vec()])), Err(PackError::Sink(ApplyError::Unwanted(_)))));
    assert!(unpacker.feed(&[]).is_err());
    drop(unpacker);
    assert!(plan.receive().begin(&Digest::of(b"x"), 2).is_err());
    assert!(matches!(plan.switch(), Err(ApplyError::Missing(1))));
    assert!(!house.destination().exists());
}

#[test]
fn what_a_crash_left_is_removed_by_the_next_plan() {
    let house = House::new();
    let bundle = Tree::from([(b"a".to_vec(), Node::File(0o644, b"x".to_vec()))]);
    for exists in [false, true] {
        assert_eq!(house.destination().exists(), exists);
        let mut plan = house.plan(&bundle, Mode::Push).unwrap();
        plan.receive().begin(&Digest::of(b"x"), 1).unwrap();
        std::mem::forget(plan);
        house.apply(&bundle, Mode::Push).unwrap();
        assert_eq!(read_tree(&house.destination()), bundle);
        assert_eq!(fs::read_dir(house.top.path().join("base")).unwrap().count(), 1);
        fs::remove_file(house.destination().join("a")).unwrap();
    }
}

#[test]
fn what_was_put_by_applies_that_were_cut_off_one_after_the_other_is_removed_still() {
    let house = House::new();
    let tree = |paths: &[&str]| -> Tree { paths.iter().map(|path| (path.as_bytes().to_vec(), Node::File(0o644, b"x".to_vec()))).collect() };
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
    assert_eq!(fs::read_dir(house.top.path().join("state/trees")).unwrap().count(), 1, "what was begun is over");
}

#[test]
fn contents_that_are_there_under_another_path_are_not_sent() {
    let house = House::new();
    let file = |content: &[u8]| Node::File(0o644, content.to_vec());
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
    let (scanned, places) = scan(&dir, &mut |_| {}).unwrap();
    let contents: Arc<dyn Contents> = Arc::new(DirectoryContents::new(dir, places));
    let version = scanned.version();
    let bundle = Bundle { name: "large".parse().unwrap(), version, manifest: Arc::new(scanned.clone()), contents };

    let mut plan = Plan::make(&house.base, Path::new("to"), &house.state, "to", scanned.clone(), Mode::Push, None).unwrap();
    assert_eq!(plan.missing(), [0]);
    let mut packing = Packing::new(Arc::clone(&bundle.contents), scanned.contents().to_vec()).unwrap();
    let mut unpacker = Unpacker::new(plan.receive()).unwrap();
    let mut pieces = 0;
    while let Some(piece) = packing.next().await.unwrap() {
        assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES);
        unpacker.feed(&piece).unwrap();
        pieces += 1;
    }
    unpacker.finish().unwrap();
    assert!(pieces >= BYTES / PIECE_BYTES, "the pack came in {pieces} pieces");
    assert_eq!(plan.switch().unwrap().bytes, BYTES as u64);
    assert!(fs::read(from.join("large")).unwrap() == fs::read(house.destination().join("large")).unwrap());

    // The next time the file is shorter than its manifest says.
    fs::write(from.join("large"), b"short").unwrap();
    let mut packing = Packing::new(bundle.contents, scanned.contents().to_vec()).unwrap();
    let ended = loop {
        match packing.next().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(ended.is_err());
}
