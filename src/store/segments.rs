//! The contents of bundles: many together in one file, a segment, each compressed by itself and sent as it lies there.
//!
//! A content counts as soon as a row says where it lies, and that is written when its segment is on the disk. What a server that was cut
//! off had not written whole is deleted at the next start. A whole segment without a row stays: the database may be another than before,
//! by mistake. A content that can not be read any more loses its row, so that the next push of a bundle that holds it brings it again.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use object_store::ObjectStoreExt as _;
use object_store::local::LocalFileSystem;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bits::contents::Contents;
use crate::bits::manifest::Manifest;
use crate::bits::pack::{Opener, PackError, Packed};
use crate::limits::{CONTENTS_READERS_MAX, SEGMENT_BYTES, SEGMENTS_AT_HAND, SEGMENTS_STORED_AT_ONCE};
use crate::names::Digest;
use crate::store::blobs::{BlobError, Blobs};
use crate::store::contents::{Gone, Place};
use crate::store::{Store, StoreError};

/// What to do about contents that are lost.
const PUSH_AGAIN: &str = "push the bundles that hold them again, and they are uploaded";

/// Why contents were not stored.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The segment could not be written.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The rows could not be.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What sending contents to agents may take of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sending {
    /// To how many agents contents are sent at once; the others wait for their turn.
    pub streams_max: usize,
    /// Bytes a second, to all of them together; no bound if none.
    pub bytes_per_second: Option<u64>,
}

/// The segments. Clones are the same.
#[derive(Clone)]
pub struct Segments {
    shared: Arc<Shared>,
}

struct Shared {
    place: LocalFileSystem,
    blobs: Blobs,
    store: Store,
    at_hand: Mutex<AtHand>,
    read_bytes: AtomicU64,
    turns: Arc<Semaphore>,
    reader_turns: Arc<Semaphore>,
    bytes_per_second: Option<u64>,
    /// Until when what was given out of the bandwidth lasts.
    given_until: Mutex<Instant>,
}

/// A segment that is read once for all who ask for it.
type Read = Arc<OnceCell<Bytes>>;

/// Segments that need not be read: agents that are sent the same bundle read them once.
#[derive(Default)]
struct AtHand {
    /// Those that were asked for last, the latest first.
    last: Vec<(i64, Read)>,
    /// All that somebody holds.
    held: HashMap<i64, Weak<OnceCell<Bytes>>>,
}

impl AtHand {
    fn take(&mut self, segment: i64) -> Read {
        let read = self.held.get(&segment).and_then(Weak::upgrade).unwrap_or_else(|| {
            let read = Read::default();
            self.held.retain(|_, read| read.strong_count() > 0);
            self.held.insert(segment, Arc::downgrade(&read));
            read
        });
        if self.last.first().is_none_or(|(last, _)| *last != segment) {
            self.last.retain(|(other, _)| *other != segment);
            self.last.insert(0, (segment, Arc::clone(&read)));
            self.last.truncate(SEGMENTS_AT_HAND);
        }
        read
    }
}

impl Segments {
    /// Opens the directory of segments, makes it if it is missing, and deletes what was not written whole. `blobs` says whether its disk has
    /// room.
    ///
    /// # Errors
    /// The directory can not be made, read or written.
    pub async fn open(dir: &Path, blobs: Blobs, store: Store, sending: Sending) -> Result<Self, SegmentError> {
        let path = dir.to_path_buf();
        let prepared = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&path)?;
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?;
                // `object_store` calls a file `NAME#NUMBER` until it has its name.
                if entry.file_name().to_str().is_some_and(|name| name.contains('#')) {
                    std::fs::remove_file(entry.path())?;
                }
            }
            Ok(path)
        });
        let path = prepared.await.map_err(io::Error::other).flatten().map_err(BlobError::Directory)?;
        let place = LocalFileSystem::new_with_prefix(path).map_err(BlobError::Unavailable)?.with_fsync(true);
        let shared = Shared {
            place,
            blobs,
            store,
            at_hand: Mutex::default(),
            read_bytes: AtomicU64::new(0),
            turns: Arc::new(Semaphore::new(sending.streams_max)),
            reader_turns: Arc::new(Semaphore::new(CONTENTS_READERS_MAX)),
            bytes_per_second: sending.bytes_per_second,
            given_until: Mutex::new(Instant::now()),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Begins to store contents.
    pub fn writer(&self) -> SegmentWriter {
        SegmentWriter { segments: self.clone(), frames: BytesMut::new(), rows: Vec::new(), writing: JoinSet::new() }
    }

    /// The contents of a bundle, all of which are there.
    ///
    /// # Errors
    /// [`BlobError::Missing`] if one is not, or has another size; or the database is not available.
    pub async fn of(&self, manifest: &Manifest) -> Result<Arc<dyn Contents>, SegmentError> {
        let digests: Vec<Digest> = manifest.contents().iter().map(|(digest, _)| *digest).collect();
        let found = self.shared.store.places(&digests).await?;
        let mut places = Vec::with_capacity(digests.len());
        for ((digest, size), place) in manifest.contents().iter().zip(found) {
            let place = place.filter(|place| u64::from(place.size) == *size).ok_or(BlobError::Missing(*digest))?;
            places.push((*digest, place));
        }
        let verified = places.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Arc::new(Placed { segments: self.clone(), places, verified, moved: Mutex::default() }))
    }

    /// The same contents for somebody who is no agent, with turns of their own: a caller that is slow to read keeps no agent waiting.
    pub fn for_readers(&self, contents: Arc<dyn Contents>) -> Arc<dyn Contents> {
        Arc::new(ForReaders { contents, turns: Arc::clone(&self.shared.reader_turns) })
    }

    /// How many bytes were read from segments since the start.
    pub fn read_bytes(&self) -> u64 {
        self.shared.read_bytes.load(Ordering::Relaxed)
    }

    async fn write(&self, frames: Bytes, rows: Vec<(Digest, Place)>) -> Result<(), SegmentError> {
        let Some((_, Place { segment, .. })) = rows.first() else { return Ok(()) };
        self.shared.blobs.check_room(frames.len() as u64)?;
        self.shared.place.put(&path(*segment), frames.into()).await.map_err(BlobError::Unavailable)?;
        Ok(self.shared.store.insert_contents(&rows).await?)
    }

    fn at_hand(&self) -> MutexGuard<'_, AtHand> {
        self.shared.at_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A whole segment, read once for all who ask while it is at hand.
    async fn segment(&self, segment: i64) -> io::Result<Bytes> {
        let read = self.at_hand().take(segment);
        let read = read.get_or_try_init(async || {
            let bytes = self.shared.place.get(&path(segment)).await?.bytes().await?;
            self.shared.read_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Ok::<_, object_store::Error>(bytes)
        });
        Ok(read.await?.clone())
    }

    /// One content from its place, compressed; or what of the segment is lost.
    async fn packed(&self, digest: Digest, place: Place) -> io::Result<Result<Packed, Lost>> {
        let segment = match self.segment(place.segment).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err(Lost { gone: Gone::Beyond(0), how: "is missing" })),
            read => read?,
        };
        let end = (place.offset as usize).saturating_add(place.frame_bytes as usize);
        let Some(frame) = segment.get(place.offset as usize..end) else {
            return Ok(Err(Lost { gone: Gone::Beyond(segment.len() as u64), how: "was cut off" }));
        };
        // Who reads a group of contents holds its segment anyway, and copies this one into what is sent.
        Ok(Ok(Packed { digest, size: place.size, frame: segment.slice_ref(frame) }))
    }

    /// Forgets what is lost of a segment.
    async fn forget(&self, segment: i64, Lost { gone, how }: Lost) {
        match self.shared.store.forget_contents(segment, gone).await {
            // Others found it at the same time.
            Ok(0) => {}
            Ok(contents) => tracing::error!(contents, "the segment {} {how}: {contents} contents are lost; {PUSH_AGAIN}", path(segment)),
            Err(error) => tracing::error!(%error, "the segment {} {how}, and that could not be stored", path(segment)),
        }
    }
}

/// What of a segment is lost.
#[derive(Debug, Clone, Copy)]
struct Lost {
    gone: Gone,
    how: &'static str,
}

fn path(segment: i64) -> object_store::path::Path {
    object_store::path::Path::from(format!("{segment:016x}"))
}

/// Contents on their way into segments. What was not yet written when it is dropped is lost.
pub struct SegmentWriter {
    segments: Segments,
    frames: BytesMut,
    rows: Vec<(Digest, Place)>,
    writing: JoinSet<Result<(), SegmentError>>,
}

impl SegmentWriter {
    /// Adds a content, which has been verified.
    ///
    /// # Errors
    /// What was added before could not be written: the disk is nearly full, say.
    pub async fn add(&mut self, packed: &Packed) -> Result<(), SegmentError> {
        let segment = self.rows.first().map_or_else(|| rand::random_range(0..i64::MAX), |(_, first)| first.segment);
        let narrow = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let crc = Some(crc32fast::hash(&packed.frame));
        let place = Place { segment, offset: narrow(self.frames.len()), frame_bytes: narrow(packed.frame.len()), size: packed.size, crc };
        self.frames.extend_from_slice(&packed.frame);
        self.rows.push((packed.digest, place));
        if self.frames.len() < SEGMENT_BYTES {
            return Ok(());
        }
        self.write();
        while self.writing.len() >= SEGMENTS_STORED_AT_ONCE {
            self.written().await?;
        }
        Ok(())
    }

    /// Writes what is left. On return all that was added is on the disk.
    ///
    /// # Errors
    /// Something could not be written; some of it may have been.
    pub async fn finish(mut self) -> Result<(), SegmentError> {
        self.write();
        while !self.writing.is_empty() {
            self.written().await?;
        }
        Ok(())
    }

    fn write(&mut self) {
        let (segments, frames, rows) = (self.segments.clone(), self.frames.split().freeze(), std::mem::take(&mut self.rows));
        self.writing.spawn(async move { segments.write(frames, rows).await });
    }

    async fn written(&mut self) -> Result<(), SegmentError> {
        match self.writing.join_next().await {
            None => Ok(()),
            Some(Ok(written)) => written,
            Some(Err(error)) => Err(BlobError::Directory(io::Error::other(error)).into()),
        }
    }
}

/// The contents of one version of a bundle.
struct Placed {
    segments: Segments,
    places: Vec<(Digest, Place)>,
    /// Which were found to be what they should be.
    verified: Vec<AtomicBool>,
    /// Those that were lost, and have come again.
    moved: Mutex<HashMap<u32, Place>>,
}

impl Placed {
    /// A content from a place, which is verified the first time; or what of the segment is lost.
    async fn read_at(&self, index: u32, digest: Digest, place: Place) -> io::Result<Result<Packed, Lost>> {
        let packed = match self.segments.packed(digest, place).await? {
            Ok(packed) => packed,
            lost => return Ok(lost),
        };
        let verified = self.verified.get(index as usize).ok_or(io::ErrorKind::NotFound)?;
        if verified.load(Ordering::Relaxed) {
            return Ok(Ok(packed));
        }
        // Whoever opens it verifies its digest; what is to be known here is whether the disk has kept it.
        let is_whole = match place.crc {
            Some(crc) => crc32fast::hash(&packed.frame) == crc,
            None => {
                let opened = packed.clone();
                let open = move || Ok::<_, PackError>(Opener::new()?.open(&opened, &mut Vec::new()).is_ok());
                tokio::task::spawn_blocking(open).await.map_err(io::Error::other)?.map_err(io::Error::other)?
            }
        };
        if !is_whole {
            return Ok(Err(Lost { gone: Gone::One(digest), how: "is damaged" }));
        }
        verified.store(true, Ordering::Relaxed);
        Ok(Ok(packed))
    }

    fn moved(&self) -> MutexGuard<'_, HashMap<u32, Place>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What others read of a version of a bundle, in turns of their own.
struct ForReaders {
    contents: Arc<dyn Contents>,
    turns: Arc<Semaphore>,
}

#[async_trait::async_trait]
impl Contents for ForReaders {
    fn group(&self, index: u32) -> u64 {
        self.contents.group(index)
    }

    fn at_hand(&self, groups: &BTreeMap<u64, Vec<u32>>) -> Option<u64> {
        self.contents.at_hand(groups)
    }

    fn hold(&self, group: u64) -> Box<dyn Send + Sync> {
        self.contents.hold(group)
    }

    async fn read(&self, index: u32) -> io::Result<Packed> {
        self.contents.read(index).await
    }

    async fn turn(&self) -> Box<dyn Send + Sync> {
        // The semaphore is never closed.
        Box::new(Arc::clone(&self.turns).acquire_owned().await.ok())
    }

    async fn pace(&self, bytes: usize) {
        self.contents.pace(bytes).await;
    }
}

#[async_trait::async_trait]
impl Contents for Placed {
    fn group(&self, index: u32) -> u64 {
        self.places.get(index as usize).map_or(0, |(_, place)| place.segment.cast_unsigned())
    }

    fn at_hand(&self, groups: &BTreeMap<u64, Vec<u32>>) -> Option<u64> {
        let at_hand = self.segments.at_hand();
        let last = at_hand.last.iter().map(|(segment, _)| *segment);
        let held = at_hand.held.iter().filter(|(_, read)| read.strong_count() > 0).map(|(segment, _)| *segment);
        last.chain(held).map(i64::cast_unsigned).find(|segment| groups.contains_key(segment))
    }

    fn hold(&self, group: u64) -> Box<dyn Send + Sync> {
        Box::new(self.segments.at_hand().take(group.cast_signed()))
    }

    async fn read(&self, index: u32) -> io::Result<Packed> {
        let (digest, place) = *self.places.get(index as usize).ok_or(io::ErrorKind::NotFound)?;
        let mut place = self.moved().get(&index).copied().unwrap_or(place);
        loop {
            let lost = match self.read_at(index, digest, place).await? {
                Ok(packed) => return Ok(packed),
                Err(lost) => lost,
            };
            // It may have come again since this version was loaded.
            let now = self.segments.shared.store.places(&[digest]).await.map_err(io::Error::other)?.into_iter().flatten().next();
            if let Some(now) = now.filter(|now| *now != place && now.size == place.size) {
                self.moved().insert(index, now);
                place = now;
                continue;
            }
            if now == Some(place) {
                self.segments.forget(place.segment, lost).await;
            }
            return Err(io::Error::other(format!("the server's segment {} {}; {PUSH_AGAIN}", path(place.segment), lost.how)));
        }
    }

    async fn turn(&self) -> Box<dyn Send + Sync> {
        // The semaphore is never closed.
        Box::new(Arc::clone(&self.segments.shared.turns).acquire_owned().await.ok())
    }

    async fn pace(&self, bytes: usize) {
        let Some(rate) = self.segments.shared.bytes_per_second else { return };
        let takes = Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / rate.max(1));
        // Each piece of each agent waits behind those that were asked for before it, so all get the same.
        let begin = {
            let mut given_until = self.segments.shared.given_until.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = (*given_until).max(Instant::now());
            *given_until = begin + takes;
            begin
        };
        tokio::time::sleep_until(begin).await;
    }
}
