//! Contents by their sha256, each in a file of its own: modules and manifests. What bundles hold is in [`segments`](super::segments).

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode};

use crate::limits::CONTENTS_FREE_BYTES_MIN;
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
        self.check_room(content.len() as u64)?;
        match self.place.put_opts(&path(digest), content.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(BlobError::Unavailable(error)),
        }
    }

    /// Whether the disk keeps [`CONTENTS_FREE_BYTES_MIN`] free when so many bytes more are on it.
    ///
    /// # Errors
    /// [`BlobError::Full`] if it does not.
    pub fn check_room(&self, bytes: u64) -> Result<(), BlobError> {
        let disk = rustix::fs::fstatvfs(&*self.dir).map_err(|error| BlobError::Directory(error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < bytes.saturating_add(CONTENTS_FREE_BYTES_MIN) { Err(BlobError::Full { bytes }) } else { Ok(()) }
    }

    async fn size(&self, digest: Digest) -> Result<Option<u64>, BlobError> {
        match self.place.head(&path(&digest)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(BlobError::Unavailable(error)),
        }
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

/// `aa/bb…`: so that no directory has millions of entries.
fn path(digest: &Digest) -> object_store::path::Path {
    let text = digest.to_string();
    let (directory, rest) = text.split_at(2);
    object_store::path::Path::from_iter([directory, rest])
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
