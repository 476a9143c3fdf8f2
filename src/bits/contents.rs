//! Where contents come from, and how they are sent.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cap_std::fs::Dir;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::manifest::{Kind, Manifest};
use super::pack::{PackError, Packer};
use super::path::TreePath;
use super::tree::{self, Walker};
use crate::limits::PIECE_BYTES;
use crate::names::{BundleName, Digest};

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
}

impl Bundle {
    /// The content of one file of at most `bytes_max` bytes; none if there is no such file, or it is larger.
    ///
    /// # Errors
    /// If the content can not be read, or is not what the manifest says.
    pub async fn read_file(&self, path: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let entries = self.manifest.entries();
        let found = entries.binary_search_by(|entry| entry.path.as_bytes().cmp(path.as_bytes())).ok().and_then(|at| entries.get(at));
        let Some(Kind::File { size, digest }) = found.map(|entry| &entry.kind) else { return Ok(None) };
        if *size > bytes_max {
            return Ok(None);
        }
        let mut content = Vec::new();
        self.contents.read(digest).await?.take(bytes_max + 1).read_to_end(&mut content).await?;
        if Digest::of(&content) == *digest { Ok(Some(content)) } else { Err(io::Error::other(format!("`{path}` is damaged"))) }
    }
}

/// A place that has contents.
#[async_trait::async_trait]
pub trait Contents: Send + Sync {
    /// Opens a content.
    ///
    /// # Errors
    /// If it is not there ([`io::ErrorKind::NotFound`]), or can not be read.
    async fn read(&self, digest: &Digest) -> io::Result<Pin<Box<dyn AsyncRead + Send>>>;
}

/// The contents of a directory that was scanned. A file that has changed since is found when it is read to its end.
pub struct DirectoryContents {
    dir: Arc<Dir>,
    places: BTreeMap<Digest, TreePath>,
}

impl DirectoryContents {
    /// The directory that was scanned, and what [`scan`](super::scan::scan) said of it.
    pub fn new(dir: Dir, places: BTreeMap<Digest, TreePath>) -> Self {
        Self { dir: Arc::new(dir), places }
    }
}

#[async_trait::async_trait]
impl Contents for DirectoryContents {
    async fn read(&self, digest: &Digest) -> io::Result<Pin<Box<dyn AsyncRead + Send>>> {
        let path = self.places.get(digest).cloned().ok_or(io::ErrorKind::NotFound)?;
        let dir = Arc::clone(&self.dir);
        let open = move || {
            let mut walker = Walker::new(tree::reopen(&dir)?);
            let parent = walker.directory(path.parent().as_ref())?.ok_or(io::ErrorKind::NotFound)?;
            tree::open_file(parent, path.name())
        };
        let file = tokio::task::spawn_blocking(open).await.map_err(io::Error::other)??;
        Ok(Box::pin(tokio::fs::File::from_std(file.into_std())))
    }
}

/// Why contents can not be sent.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// A content could not be read.
    #[error("can not read content {digest}")]
    Read {
        /// Which.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// A content could not be packed; its size is not what it was, say.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// A content of which so much is still to be read.
type Open = (Digest, u64, Pin<Box<dyn AsyncRead + Send>>);

/// Reads contents and packs them, piece by piece, as fast as the pieces are asked for.
///
/// Holds one piece of a content and what the compressor gathers. Whether a content has its digest is the other side's to verify.
pub struct Packing {
    contents: Arc<dyn Contents>,
    wanted: std::vec::IntoIter<(Digest, u64)>,
    packer: Option<Packer>,
    open: Option<Open>,
    packed: BytesMut,
}

impl Packing {
    /// Packs these contents, in this order.
    ///
    /// # Errors
    /// If the compressor can not be made.
    pub fn new(contents: Arc<dyn Contents>, wanted: Vec<(Digest, u64)>) -> Result<Self, ContentsError> {
        Ok(Self { contents, wanted: wanted.into_iter(), packer: Some(Packer::new()?), open: None, packed: BytesMut::new() })
    }

    /// The next piece of the pack, of at most [`PIECE_BYTES`] and never empty; none after its end.
    ///
    /// # Errors
    /// If a content can not be read, or has not the size that it was to have. After an error there is no going on.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ContentsError> {
        while self.packed.len() < PIECE_BYTES {
            let Some(mut packer) = self.packer.take() else { break };
            if self.step(&mut packer).await? {
                self.packed.extend_from_slice(&packer.take());
                self.packer = Some(packer);
            } else {
                self.packed.extend_from_slice(&packer.finish()?);
            }
        }
        let count = self.packed.len().min(PIECE_BYTES);
        Ok(Some(self.packed.split_to(count).freeze()).filter(|piece| !piece.is_empty()))
    }

    /// Packs one piece of a content, or opens the next; whether there was any.
    async fn step(&mut self, packer: &mut Packer) -> Result<bool, ContentsError> {
        let Some((digest, left, mut reader)) = self.open.take() else {
            let Some((digest, size)) = self.wanted.next() else { return Ok(false) };
            let reader = self.contents.read(&digest).await.map_err(|source| ContentsError::Read { digest, source })?;
            packer.begin(&digest, size)?;
            self.open = Some((digest, size, reader));
            return Ok(true);
        };
        // One byte more than is left would show that the content has grown.
        let mut piece = Vec::with_capacity(usize::try_from(left).unwrap_or(PIECE_BYTES).saturating_add(1).min(PIECE_BYTES));
        let count = reader.read_buf(&mut piece).await.map_err(|source| ContentsError::Read { digest, source })? as u64;
        if count == 0 {
            return if left == 0 { Ok(true) } else { Err(PackError::Size(digest).into()) };
        }
        packer.data(&piece)?;
        self.open = Some((digest, left.saturating_sub(count), reader));
        Ok(true)
    }
}
