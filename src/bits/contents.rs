//! Where contents come from, and how they are sent.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use cap_std::fs::Dir;
use tokio::sync::OnceCell;

use super::manifest::{Kind, Manifest};
use super::pack::{HEAD_BYTES, Opener, Packed, Packer, write_end};
use super::scan::Spot;
use super::tree::{self, Walker};
use crate::limits::PIECE_BYTES;
use crate::names::{BundleName, Digest};

/// How much is done to make a manifest small.
const MANIFEST_LEVEL: i32 = 3;

/// One version of a bundle, and where its contents are.
#[derive(Clone)]
pub struct Bundle {
    /// Its name.
    pub name: BundleName,
    /// Its version: the manifest's.
    pub version: Digest,
    /// What it is.
    pub manifest: Arc<Manifest>,
    /// Where its contents are.
    pub contents: Arc<dyn Contents>,
    packed: Arc<OnceCell<Bytes>>,
}

impl Bundle {
    /// Puts it together.
    pub fn new(name: BundleName, manifest: Manifest, contents: Arc<dyn Contents>) -> Self {
        Self { name, version: manifest.version(), manifest: Arc::new(manifest), contents, packed: Arc::default() }
    }

    /// With what [`pack_manifest`] made of its manifest's text, so that no agent waits for that.
    pub fn with_packed_manifest(self, packed: Bytes) -> Self {
        Self { packed: Arc::new(OnceCell::from(packed)), ..self }
    }

    /// The manifest as it is sent: its text as one zstd frame. It is made once for all agents.
    ///
    /// # Errors
    /// If it can not be compressed.
    pub async fn packed_manifest(&self) -> io::Result<Bytes> {
        let made = self.packed.get_or_try_init(async || {
            let manifest = Arc::clone(&self.manifest);
            tokio::task::spawn_blocking(move || pack_manifest(&manifest.to_bytes())).await.map_err(io::Error::other)?
        });
        made.await.cloned()
    }

    /// The content of one file of at most `bytes_max` bytes; none if there is no such file, or it is larger.
    ///
    /// # Errors
    /// If the content can not be read, or is not what the manifest says.
    pub async fn read_file(&self, path: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let entries = self.manifest.entries();
        let found = entries.binary_search_by(|entry| entry.path.as_bytes().cmp(path.as_bytes())).ok().and_then(|at| entries.get(at));
        let Some((entry, Kind::File { size, .. })) = found.map(|entry| (entry, &entry.kind)) else { return Ok(None) };
        if *size > bytes_max {
            return Ok(None);
        }
        let (mut whole, mut content) = (Vec::new(), Vec::new());
        let mut opener = Opener::new().map_err(io::Error::other)?;
        for (digest, _) in entry.contents() {
            let index = self.manifest.content_index(&digest).ok_or(io::ErrorKind::NotFound)?;
            opener.open(&self.contents.read(index).await?, &mut content).map_err(io::Error::other)?;
            whole.extend_from_slice(&content);
        }
        Ok(Some(whole))
    }
}

/// A manifest's text as it is sent: one zstd frame.
///
/// # Errors
/// If it can not be compressed.
pub fn pack_manifest(text: &[u8]) -> io::Result<Bytes> {
    // Made in room for the worst case, of which little is needed.
    zstd::bulk::compress(text, MANIFEST_LEVEL).map(|packed| packed.into_boxed_slice().into())
}

/// The contents of one version of a bundle; they are named by their index in [`Manifest::contents`].
#[async_trait::async_trait]
pub trait Contents: Send + Sync {
    /// Which contents lie together, and are best read one after the other: those with the same answer.
    fn group(&self, index: u32) -> u64;

    /// One of some groups that costs less to read just now, because others read it.
    fn at_hand(&self, groups: &BTreeMap<u64, Vec<u32>>) -> Option<u64>;

    /// Keeps a group at hand while it is read, for as long as what is answered is held.
    fn hold(&self, _group: u64) -> Box<dyn Send + Sync> {
        Box::new(())
    }

    /// Reads a content, compressed. Whether it has its digest is for the one who opens it to verify.
    ///
    /// # Errors
    /// If it is not there ([`io::ErrorKind::NotFound`]), can not be read, or is not what it was when the bundle was made.
    async fn read(&self, index: u32) -> io::Result<Packed>;

    /// Waits for a turn to send contents, which lasts as long as what is answered is held.
    async fn turn(&self) -> Box<dyn Send + Sync>;

    /// Waits until so many bytes may be sent.
    async fn pace(&self, bytes: usize);
}

/// The contents of a directory that was scanned. A file that has changed since is found when it is read.
pub struct DirectoryContents {
    dir: Arc<Dir>,
    spots: Arc<[(Digest, Spot)]>,
}

impl DirectoryContents {
    /// The directory that was scanned, and what [`scan`](super::scan::scan) said of it.
    pub fn new(dir: Dir, manifest: &Manifest, spots: &HashMap<Digest, Spot>) -> Self {
        let known = manifest.contents().iter().filter_map(|(digest, _)| Some((*digest, spots.get(digest)?.clone())));
        Self { dir: Arc::new(dir), spots: known.collect() }
    }
}

#[async_trait::async_trait]
impl Contents for DirectoryContents {
    fn group(&self, _: u32) -> u64 {
        0
    }

    fn at_hand(&self, _: &BTreeMap<u64, Vec<u32>>) -> Option<u64> {
        None
    }

    async fn read(&self, index: u32) -> io::Result<Packed> {
        let (digest, spot) = self.spots.get(index as usize).cloned().ok_or(io::ErrorKind::NotFound)?;
        let dir = Arc::clone(&self.dir);
        let read = move || {
            let mut content = Vec::new();
            read_spot(&dir, &spot, &mut content)?;
            if Digest::of(&content) != digest {
                return Err(io::Error::other(format!("`{}` was changed meanwhile", spot.path)));
            }
            Packer::new().and_then(|mut packer| packer.pack(digest, &content)).map_err(io::Error::other)
        };
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }

    async fn turn(&self) -> Box<dyn Send + Sync> {
        Box::new(())
    }

    async fn pace(&self, _: usize) {}
}

/// Reads what was at a spot of a directory into `content`, which is overwritten.
///
/// # Errors
/// If it can not be read. It may be something else by now, or shorter.
pub fn read_spot(dir: &Dir, spot: &Spot, content: &mut Vec<u8>) -> io::Result<()> {
    let mut walker = Walker::new(tree::reopen(dir)?);
    let parent = walker.directory(spot.path.parent().as_ref())?.ok_or(io::ErrorKind::NotFound)?;
    let mut file = tree::open_file(parent, spot.path.name())?;
    file.seek(SeekFrom::Start(spot.offset))?;
    content.clear();
    file.take(spot.size).read_to_end(content)?;
    Ok(())
}

/// Why contents can not be sent.
#[derive(Debug, thiserror::Error)]
#[error("can not read content {digest}")]
pub struct ContentsError {
    digest: Digest,
    source: io::Error,
}

/// Reads contents one after the other, in whatever order is best.
pub struct Reading {
    bundle: Bundle,
    groups: BTreeMap<u64, Vec<u32>>,
    group: std::vec::IntoIter<u32>,
    /// The group that is being read.
    held: Box<dyn Send + Sync>,
    _turn: Box<dyn Send + Sync>,
}

impl Reading {
    /// Reads these contents of a bundle, by their indices. Waits for its turn, which lasts as long as this.
    pub async fn new(bundle: &Bundle, wanted: impl IntoIterator<Item = u32>) -> Self {
        let turn = bundle.contents.turn().await;
        let mut groups: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for index in wanted {
            groups.entry(bundle.contents.group(index)).or_default().push(index);
        }
        Self { bundle: bundle.clone(), groups, group: Vec::new().into_iter(), held: Box::new(()), _turn: turn }
    }

    /// The next content; none after the last.
    ///
    /// # Errors
    /// If a content can not be read. After an error there is no going on.
    pub async fn next(&mut self) -> Result<Option<Packed>, ContentsError> {
        let Some(index) = self.index() else { return Ok(None) };
        let read = self.bundle.contents.read(index).await;
        let digest = self.bundle.manifest.contents().get(index as usize).map(|(digest, _)| *digest);
        let digest = digest.unwrap_or_else(|| Digest::from_bytes([0; 32]));
        read.map(Some).map_err(|source| ContentsError { digest, source })
    }

    fn index(&mut self) -> Option<u32> {
        loop {
            if let Some(index) = self.group.next() {
                return Some(index);
            }
            let at_hand = self.bundle.contents.at_hand(&self.groups);
            let group = at_hand.or_else(|| self.groups.first_key_value().map(|(group, _)| *group))?;
            self.group = self.groups.remove(&group)?.into_iter();
            self.held = self.bundle.contents.hold(group);
        }
    }
}

/// Makes a pack of contents, piece by piece, as fast as the pieces are asked for. Holds little more than one content.
pub struct Packing {
    reading: Reading,
    /// What is left of the frame that was begun.
    frame: Bytes,
    ended: bool,
}

impl Packing {
    /// Packs these contents of a bundle, by their indices, in whatever order is best. Waits for its turn.
    pub async fn new(bundle: &Bundle, wanted: impl IntoIterator<Item = u32>) -> Self {
        Self { reading: Reading::new(bundle, wanted).await, frame: Bytes::new(), ended: false }
    }

    /// The next piece of the pack, of at most [`PIECE_BYTES`] and never empty; none after its end. It comes behind `head`, which is whatever
    /// the piece travels with: so what was read is copied once and no more.
    ///
    /// # Errors
    /// If a content can not be read. After an error there is no going on.
    pub async fn next(&mut self, head: &[u8]) -> Result<Option<Bytes>, ContentsError> {
        let end = head.len() + PIECE_BYTES;
        let mut piece = BytesMut::with_capacity(end);
        piece.put_slice(head);
        while piece.len() < end {
            if !self.frame.is_empty() {
                piece.put_slice(&self.frame.split_to((end - piece.len()).min(self.frame.len())));
                continue;
            }
            if self.ended || end - piece.len() < HEAD_BYTES {
                break;
            }
            match self.reading.next().await? {
                Some(packed) => {
                    packed.write_head(&mut piece);
                    self.frame = packed.frame;
                }
                None => {
                    write_end(&mut piece);
                    self.ended = true;
                }
            }
        }
        let count = piece.len() - head.len();
        self.reading.bundle.contents.pace(count).await;
        Ok(Some(piece.freeze()).filter(|_| count > 0))
    }
}
