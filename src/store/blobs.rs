//! Contents by their sha256: modules, manifests and the files of bundles.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::{GetResultPayload, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use crate::limits::{BLOB_PART_BYTES, CONTENTS_ASKED_AT_ONCE, CONTENTS_FREE_BYTES_MIN, PIECE_BYTES};
use crate::names::Digest;

/// Why a content was not stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The bytes are not those that the digest names.
    #[error("the content is {found}, not {expected}")]
    Mismatch {
        /// The digest that was said.
        expected: Digest,
        /// The digest that the bytes have.
        found: Digest,
    },
    /// The bytes are more or fewer than was said.
    #[error("the content has not the {expected} bytes that were said")]
    Size {
        /// How many were said.
        expected: u64,
    },
    /// There is no such content.
    #[error("there is no content {0}")]
    Missing(Digest),
    /// The content is larger than the caller takes.
    #[error("the content {digest} has {bytes} bytes, more than {bytes_max}")]
    TooLarge {
        /// Which.
        digest: Digest,
        /// How large it is.
        bytes: u64,
        /// What the caller takes.
        bytes_max: usize,
    },
    /// The disk is nearly full.
    #[error("the disk of the contents has no room for {bytes} bytes more")]
    Full {
        /// How many were to be stored.
        bytes: u64,
    },
    /// The place where contents are did not do its work.
    #[error("contents are not available")]
    Unavailable(#[source] object_store::Error),
    /// The directory can not be prepared.
    #[error("the directory of contents can not be used")]
    Directory(#[source] io::Error),
}

/// The contents. Clones share the place.
#[derive(Debug, Clone)]
pub struct Blobs {
    place: Arc<LocalFileSystem>,
    dir: Arc<Dir>,
}

/// A large content that is being stored, piece by piece. Dropped before its end, it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    dir: Arc<Dir>,
    /// What is dropped before it is complete deletes its own file.
    upload: Box<dyn MultipartUpload>,
    expected: Digest,
    size: u64,
    left: u64,
    hasher: Sha256,
    part: BytesMut,
}

impl Blobs {
    /// Opens a directory of contents, makes it if it is missing, and deletes what interrupted uploads left there.
    ///
    /// A directory belongs to one server at a time.
    ///
    /// # Errors
    /// The directory can not be made, read or written.
    pub async fn open(dir: &Path) -> Result<Self, BlobError> {
        let dir = dir.to_path_buf();
        let prepared = tokio::task::spawn_blocking(move || {
            Dir::create_ambient_dir_all(&dir, ambient_authority())?;
            let opened = Dir::open_ambient_dir(&dir, ambient_authority())?;
            delete_leftovers(&opened)?;
            Ok((dir, opened))
        });
        let (path, dir) = prepared.await.map_err(io::Error::other).flatten().map_err(BlobError::Directory)?;
        let place = LocalFileSystem::new_with_prefix(path).map_err(BlobError::Unavailable)?;
        Ok(Self { place: Arc::new(place.with_fsync(true)), dir: Arc::new(dir) })
    }

    /// Stores a content; `false` if it was there already. On return it is on the disk.
    ///
    /// # Errors
    /// The bytes are not those that the digest names, or the disk is nearly full; then nothing is kept.
    pub async fn put(&self, digest: &Digest, content: Bytes) -> Result<bool, BlobError> {
        let (expected, bytes) = (*digest, content.clone());
        // Hashing a module takes a while, and this thread has others to serve.
        let found = tokio::task::spawn_blocking(move || Digest::of(&bytes)).await.map_err(io::Error::other);
        let found = found.map_err(BlobError::Directory)?;
        if found != expected {
            return Err(BlobError::Mismatch { expected, found });
        }
        if self.size(*digest).await?.is_some() {
            return Ok(false);
        }
        check_room(&self.dir, content.len() as u64)?;
        match self.place.put_opts(&path(digest), content.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(BlobError::Unavailable(error)),
        }
    }

    /// Begins to store a content of `size` bytes that does not fit into memory.
    ///
    /// # Errors
    /// The disk is nearly full, or the place can not be written.
    pub async fn writer(&self, digest: &Digest, size: u64) -> Result<BlobWriter, BlobError> {
        check_room(&self.dir, size)?;
        let upload = self.place.put_multipart(&path(digest)).await.map_err(BlobError::Unavailable)?;
        let dir = Arc::clone(&self.dir);
        Ok(BlobWriter { dir, upload, expected: *digest, size, left: size, hasher: Sha256::new(), part: BytesMut::new() })
    }

    /// Answers for each digest how many bytes its content has, in their order; none if it is not there.
    ///
    /// # Errors
    /// The place can not be read.
    pub async fn sizes(&self, digests: &[Digest]) -> Result<Vec<Option<u64>>, BlobError> {
        let asked = futures_util::stream::iter(digests.iter().copied().map(|digest| self.size(digest)));
        asked.buffered(CONTENTS_ASKED_AT_ONCE).try_collect().await
    }

    async fn size(&self, digest: Digest) -> Result<Option<u64>, BlobError> {
        match self.place.head(&path(&digest)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(BlobError::Unavailable(error)),
        }
    }

    /// Opens a content for reading. Its bytes are not checked again: who receives them does.
    ///
    /// # Errors
    /// `NotFound` if there is no such content.
    pub async fn read(&self, digest: &Digest) -> io::Result<Pin<Box<dyn AsyncRead + Send>>> {
        let found = self.place.get(&path(digest)).await?;
        Ok(match found.payload {
            GetResultPayload::File(file, _) => {
                let mut file = tokio::fs::File::from_std(file);
                file.set_max_buf_size(PIECE_BYTES);
                Box::pin(file)
            }
            GetResultPayload::Stream(pieces) => Box::pin(StreamReader::new(pieces.map_err(io::Error::from))),
        })
    }

    /// Reads a whole content of at most `bytes_max` bytes, and checks it.
    ///
    /// # Errors
    /// It is missing, too large, or no longer what its digest names.
    pub async fn get(&self, digest: &Digest, bytes_max: usize) -> Result<Bytes, BlobError> {
        let found = self.place.get(&path(digest)).await.map_err(|error| missing(error, *digest))?;
        let bytes = found.meta.size;
        if bytes > bytes_max as u64 {
            return Err(BlobError::TooLarge { digest: *digest, bytes, bytes_max });
        }
        let content = found.bytes().await.map_err(BlobError::Unavailable)?;
        let bytes = content.clone();
        let found = tokio::task::spawn_blocking(move || Digest::of(&bytes)).await.map_err(io::Error::other);
        match found.map_err(BlobError::Directory)? {
            found if found == *digest => Ok(content),
            found => Err(BlobError::Mismatch { expected: *digest, found }),
        }
    }
}

impl BlobWriter {
    /// Takes the next piece.
    ///
    /// # Errors
    /// More bytes than were said, a disk that is nearly full, or a place that can not be written.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), BlobError> {
        let size = self.size;
        self.left = self.left.checked_sub(piece.len() as u64).ok_or(BlobError::Size { expected: size })?;
        self.hasher.update(piece);
        self.part.extend_from_slice(piece);
        if self.part.len() >= BLOB_PART_BYTES { self.write_part().await } else { Ok(()) }
    }

    /// Checks the content and gives it its name. On return it is on the disk.
    ///
    /// # Errors
    /// Fewer bytes than were said, or others than the digest names; then nothing is kept.
    pub async fn finish(mut self) -> Result<(), BlobError> {
        if self.left > 0 {
            return Err(BlobError::Size { expected: self.size });
        }
        let found = Digest::finish(std::mem::take(&mut self.hasher));
        if found != self.expected {
            return Err(BlobError::Mismatch { expected: self.expected, found });
        }
        self.write_part().await?;
        self.upload.complete().await.map(drop).map_err(BlobError::Unavailable)
    }

    async fn write_part(&mut self) -> Result<(), BlobError> {
        let part = self.part.split().freeze();
        // Others write too, so that what was free at the beginning says little.
        check_room(&self.dir, part.len() as u64)?;
        self.upload.put_part(part.into()).await.map_err(BlobError::Unavailable)
    }
}

/// `aa/bb…`: so that no directory has millions of entries.
fn path(digest: &Digest) -> object_store::path::Path {
    let text = digest.to_string();
    let (directory, rest) = text.split_at(2);
    object_store::path::Path::from_iter([directory, rest])
}

/// Whether the disk keeps [`CONTENTS_FREE_BYTES_MIN`] free when so many bytes more are on it.
fn check_room(dir: &Dir, bytes: u64) -> Result<(), BlobError> {
    let disk = rustix::fs::fstatvfs(dir).map_err(|error| BlobError::Directory(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < bytes.saturating_add(CONTENTS_FREE_BYTES_MIN) { Err(BlobError::Full { bytes }) } else { Ok(()) }
}

fn missing(error: object_store::Error, digest: Digest) -> BlobError {
    match error {
        object_store::Error::NotFound { .. } => BlobError::Missing(digest),
        other => BlobError::Unavailable(other),
    }
}

/// Deletes the files that an upload had not given their name yet: `object_store` calls them `NAME#NUMBER`.
fn delete_leftovers(dir: &Dir) -> io::Result<()> {
    for entry in dir.entries()? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let inner = entry.open_dir()?;
        for file in inner.entries()? {
            let name = file?.file_name();
            if name.to_str().is_some_and(|name| name.contains('#')) {
                inner.remove_file(name)?;
            }
        }
    }
    Ok(())
}

#[async_trait::async_trait]
impl crate::bits::contents::Contents for Blobs {
    async fn read(&self, digest: &Digest) -> io::Result<Pin<Box<dyn AsyncRead + Send>>> {
        Self::read(self, digest).await
    }
}
