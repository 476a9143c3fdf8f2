//! How contents travel and are kept: each compressed by itself, so that what was compressed once is sent to any number of agents.
//!
//! A pack is a stream of records: the mark 1, the content's digest (32 bytes), its size and that of the compressed frame (4 bytes each,
//! little-endian), and the zstd frame; the mark 0 ends it. A content has at most [`CHUNK_BYTES_MAX`] bytes, so neither side holds more
//! than one record, whatever is sent.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use zstd::bulk::{Compressor, Decompressor};

use crate::limits::CHUNK_BYTES_MAX;
use crate::names::Digest;

const LEVEL: i32 = 3;
const END: u8 = 0;
const CONTENT: u8 = 1;
/// Bytes of a record before its frame.
pub const HEAD_BYTES: usize = 41;
/// Bytes of a frame: what does not get smaller gets a little larger.
pub const FRAME_BYTES_MAX: usize = CHUNK_BYTES_MAX + CHUNK_BYTES_MAX / 128 + 1024;

/// Why contents can not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Compression failed, or a frame is not compressed as it should be.
    #[error("a content that can not be compressed or decompressed")]
    Zstd(#[source] io::Error),
    /// A record has a mark that is not known.
    #[error("a pack with a record of an unknown kind")]
    Mark,
    /// A content or its frame is too large.
    #[error("a pack with a content of more than {CHUNK_BYTES_MAX} bytes")]
    TooLarge,
    /// A content is not what it was to be.
    #[error("content {0} was damaged on its way")]
    Damaged(Digest),
    /// The stream ended before its end.
    #[error("a pack that was cut off")]
    Truncated,
    /// The stream goes on after its end.
    #[error("a pack that goes on after its end")]
    Trailing,
}

/// One content, compressed. What its frame holds is not known before it is [opened](Opener::open).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The sha256 of the content.
    pub digest: Digest,
    /// The bytes of the content.
    pub size: u32,
    /// The content as one zstd frame.
    pub frame: Bytes,
}

impl Packed {
    /// How many bytes its record takes.
    pub fn record_bytes(&self) -> usize {
        HEAD_BYTES + self.frame.len()
    }

    /// Appends its record to a stream.
    pub fn write(&self, stream: &mut BytesMut) {
        stream.reserve(self.record_bytes());
        self.write_head(stream);
        stream.put_slice(&self.frame);
    }

    /// Appends what comes before the frame in its record: [`HEAD_BYTES`].
    pub fn write_head(&self, stream: &mut BytesMut) {
        stream.put_u8(CONTENT);
        stream.put_slice(self.digest.as_bytes());
        stream.put_u32_le(self.size);
        stream.put_u32_le(u32::try_from(self.frame.len()).unwrap_or(u32::MAX));
    }
}

/// Appends the end of a stream.
pub fn write_end(stream: &mut BytesMut) {
    stream.put_u8(END);
}

/// Compresses contents.
pub struct Packer(Compressor<'static>);

impl Packer {
    /// Makes a compressor.
    ///
    /// # Errors
    /// If it can not be made.
    pub fn new() -> Result<Self, PackError> {
        Compressor::new(LEVEL).map(Self).map_err(PackError::Zstd)
    }

    /// Compresses one content.
    ///
    /// # Errors
    /// If it is too large.
    pub fn pack(&mut self, digest: Digest, content: &[u8]) -> Result<Packed, PackError> {
        let size = u32::try_from(content.len()).ok().filter(|_| content.len() <= CHUNK_BYTES_MAX).ok_or(PackError::TooLarge)?;
        Ok(Packed { digest, size, frame: self.0.compress(content).map_err(PackError::Zstd)?.into() })
    }
}

/// Decompresses contents, and verifies them.
pub struct Opener(Decompressor<'static>);

impl Opener {
    /// Makes a decompressor.
    ///
    /// # Errors
    /// If it can not be made.
    pub fn new() -> Result<Self, PackError> {
        Decompressor::new().map(Self).map_err(PackError::Zstd)
    }

    /// Decompresses one content into `content`, which is overwritten. The frame may be hostile.
    ///
    /// # Errors
    /// If the frame is none, or holds something else than the record says.
    pub fn open(&mut self, packed: &Packed, content: &mut Vec<u8>) -> Result<(), PackError> {
        let size = packed.size as usize;
        if size > CHUNK_BYTES_MAX || packed.frame.len() > FRAME_BYTES_MAX {
            return Err(PackError::TooLarge);
        }
        content.clear();
        // No more is decompressed than there is room for.
        content.reserve_exact(size);
        let mut room = std::io::Cursor::new(&mut *content);
        self.0.decompress_to_buffer(&packed.frame, &mut room).map_err(PackError::Zstd)?;
        if content.len() != size || Digest::of(content) != packed.digest {
            return Err(PackError::Damaged(packed.digest));
        }
        Ok(())
    }
}

/// Takes a pack apart into its records. The stream may be hostile.
#[derive(Debug, Default)]
pub struct Unpacker {
    waiting: BytesMut,
    ended: bool,
}

impl Unpacker {
    /// Takes the next bytes of the stream, however it was cut. All that [`record`](Self::record) answers is to be taken before more is given.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// The next record that is there whole.
    ///
    /// # Errors
    /// If the stream is not a pack. After an error there is no going on.
    pub fn record(&mut self) -> Result<Option<Packed>, PackError> {
        let Some(mark) = self.waiting.first().copied() else { return Ok(None) };
        if self.ended {
            return Err(PackError::Trailing);
        }
        match mark {
            END => {
                self.waiting.advance(1);
                self.ended = true;
                return self.record();
            }
            CONTENT => {}
            _ => return Err(PackError::Mark),
        }
        let Some(mut head) = self.waiting.get(1..HEAD_BYTES) else { return Ok(None) };
        let mut digest = [0; 32];
        head.copy_to_slice(&mut digest);
        let (size, frame_bytes) = (head.get_u32_le(), head.get_u32_le() as usize);
        if size as usize > CHUNK_BYTES_MAX || frame_bytes > FRAME_BYTES_MAX {
            return Err(PackError::TooLarge);
        }
        if self.waiting.len() < HEAD_BYTES + frame_bytes {
            self.waiting.reserve(HEAD_BYTES + frame_bytes - self.waiting.len());
            return Ok(None);
        }
        self.waiting.advance(HEAD_BYTES);
        let frame = self.waiting.split_to(frame_bytes).freeze();
        Ok(Some(Packed { digest: Digest::from_bytes(digest), size, frame }))
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// If it was cut off.
    pub fn finish(&self) -> Result<(), PackError> {
        if self.ended && self.waiting.is_empty() { Ok(()) } else { Err(PackError::Truncated) }
    }
}
