//! How contents travel: one zstd frame of records.
//!
//! A record is the mark 1, the content's digest (32 bytes), its size (8 bytes, little-endian) and its bytes; the mark 0 ends the stream.
//! Both sides are pushed and hold no more than the compressor's window, whatever the sizes.

use std::io::{self, Write as _};

use sha2::{Digest as _, Sha256};
use zstd::stream::raw::{DParameter, Decoder, Operation as _};
use zstd::stream::write::Encoder;

use crate::limits::{FILE_BYTES_MAX, PACK_WINDOW_LOG_MAX};
use crate::names::Digest;

const LEVEL: i32 = 3;
const END: u8 = 0;
const CONTENT: u8 = 1;
/// Bytes of a content's digest and size.
const HEAD_BYTES: usize = 40;
const OUTPUT_BYTES: usize = 128 * 1024;

/// Why contents can not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum PackError<E: std::error::Error + 'static = std::convert::Infallible> {
    /// Compression failed, or the stream is not compressed as it should be.
    #[error("a pack that can not be compressed or decompressed")]
    Zstd(#[source] io::Error),
    /// A record has a mark that is not known.
    #[error("a pack with a record of an unknown kind")]
    Mark,
    /// A content is too large.
    #[error("a pack with a content of more than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// A content has not the size that it was to have.
    #[error("content {0} has not the size that it was to have")]
    Size(Digest),
    /// A content is not what it was to be.
    #[error("content {0} was damaged on its way")]
    Damaged(Digest),
    /// The stream ended before its end.
    #[error("a pack that was cut off")]
    Truncated,
    /// The stream goes on after its end, or after it was refused.
    #[error("a pack that goes on after its end")]
    Trailing,
    /// What takes the contents failed.
    #[error(transparent)]
    Sink(E),
}

/// Packs contents.
pub struct Packer {
    encoder: Encoder<'static, Vec<u8>>,
    content: Option<(Digest, u64)>,
}

impl Packer {
    /// Begins a pack.
    ///
    /// # Errors
    /// If the compressor can not be made.
    pub fn new() -> Result<Self, PackError> {
        Ok(Self { encoder: Encoder::new(Vec::new(), LEVEL).map_err(PackError::Zstd)?, content: None })
    }

    /// Begins the next content.
    ///
    /// # Errors
    /// If the content before is not complete, or this one is too large.
    pub fn begin(&mut self, digest: &Digest, size: u64) -> Result<(), PackError> {
        self.complete()?;
        if size > FILE_BYTES_MAX {
            return Err(PackError::TooLarge);
        }
        self.content = Some((*digest, size));
        self.write(&[CONTENT])?;
        self.write(digest.as_bytes())?;
        self.write(&size.to_le_bytes())
    }

    /// Adds bytes to the content. What comes out is kept until [`take`](Self::take), so take after each piece.
    ///
    /// # Errors
    /// If they are more than the content was to have.
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        match &mut self.content {
            None => return Err(PackError::Trailing),
            Some((digest, left)) => *left = left.checked_sub(bytes.len() as u64).ok_or(PackError::Size(*digest))?,
        }
        self.write(bytes)
    }

    /// What came out since it was last taken; often nothing, as the compressor gathers small pieces.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.encoder.get_mut())
    }

    /// Ends the pack, and answers what came out since it was last taken.
    ///
    /// # Errors
    /// If the last content is not complete.
    pub fn finish(mut self) -> Result<Vec<u8>, PackError> {
        self.complete()?;
        self.write(&[END])?;
        self.encoder.finish().map_err(PackError::Zstd)
    }

    fn complete(&self) -> Result<(), PackError> {
        match self.content {
            Some((digest, left)) if left > 0 => Err(PackError::Size(digest)),
            _ => Ok(()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        self.encoder.write_all(bytes).map_err(PackError::Zstd)
    }
}

/// What takes contents as they are unpacked.
pub trait Sink {
    /// Why it may not be able to.
    type Error: std::error::Error + 'static;

    /// A content begins. The size is only what the stream says, and nothing should be reserved for it unless it was expected.
    ///
    /// # Errors
    /// If the content is not wanted, or there is no place.
    fn begin(&mut self, digest: &Digest, size: u64) -> Result<(), Self::Error>;

    /// Bytes of the content; not yet verified.
    ///
    /// # Errors
    /// If they can not be kept.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;

    /// The content is complete, and its size and digest are right.
    ///
    /// # Errors
    /// If it can not be kept.
    fn end(&mut self) -> Result<(), Self::Error>;
}

enum State {
    Mark,
    Head(Vec<u8>),
    Content { digest: Digest, left: u64, hasher: Sha256 },
    Ended,
    Refused,
}

/// Unpacks contents into a [`Sink`]. The stream may be hostile.
pub struct Unpacker<S> {
    decoder: Decoder<'static>,
    output: Vec<u8>,
    /// Whether the last output filled its buffer, so that there may be more without any more input.
    full: bool,
    frame_ended: bool,
    state: State,
    sink: S,
}

impl<S: Sink> Unpacker<S> {
    /// Begins to unpack.
    ///
    /// # Errors
    /// If the decompressor can not be made.
    pub fn new(sink: S) -> Result<Self, PackError<S::Error>> {
        let mut decoder = Decoder::new().map_err(PackError::Zstd)?;
        decoder.set_parameter(DParameter::WindowLogMax(PACK_WINDOW_LOG_MAX)).map_err(PackError::Zstd)?;
        Ok(Self { decoder, output: vec![0; OUTPUT_BYTES], full: false, frame_ended: false, state: State::Mark, sink })
    }

    /// Takes the next bytes of the stream, however it was cut.
    ///
    /// # Errors
    /// If the stream is not a pack, a content is not what it says to be, or the sink fails. After an error there is no going on.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), PackError<S::Error>> {
        while self.feed_some(&mut bytes)? {}
        Ok(())
    }

    /// Takes bytes off the front of a piece of the stream, as many as fill one buffer of what they unpack to: few bytes can stand for very
    /// many. Answers whether there is more to be had.
    ///
    /// # Errors
    /// As [`feed`](Self::feed).
    pub fn feed_some(&mut self, bytes: &mut &[u8]) -> Result<bool, PackError<S::Error>> {
        let fed = self.decompress(bytes);
        if fed.is_err() {
            self.state = State::Refused;
        }
        fed
    }

    /// The sink, to take out of it what has come.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Ends the stream, and gives the sink back.
    ///
    /// # Errors
    /// If the stream was cut off.
    pub fn finish(self) -> Result<S, PackError<S::Error>> {
        if self.frame_ended && matches!(self.state, State::Ended) { Ok(self.sink) } else { Err(PackError::Truncated) }
    }

    fn decompress(&mut self, bytes: &mut &[u8]) -> Result<bool, PackError<S::Error>> {
        if matches!(self.state, State::Refused) {
            return Err(PackError::Trailing);
        }
        if bytes.is_empty() && !self.full {
            return Ok(false);
        }
        if self.frame_ended {
            return if bytes.is_empty() { Ok(false) } else { Err(PackError::Trailing) };
        }
        let mut output = std::mem::take(&mut self.output);
        let status = self.decoder.run_on_buffers(bytes, &mut output).map_err(PackError::Zstd)?;
        self.frame_ended = status.remaining == 0;
        *bytes = bytes.get(status.bytes_read..).unwrap_or_default();
        self.full = status.bytes_written == output.len();
        self.records(output.get(..status.bytes_written).unwrap_or_default())?;
        self.output = output;
        Ok(!bytes.is_empty() || self.full)
    }

    fn records(&mut self, mut bytes: &[u8]) -> Result<(), PackError<S::Error>> {
        while let Some((first, after)) = bytes.split_first() {
            match &mut self.state {
                State::Mark => {
                    self.state = match *first {
                        CONTENT => State::Head(Vec::with_capacity(HEAD_BYTES)),
                        END => State::Ended,
                        _ => return Err(PackError::Mark),
                    };
                    bytes = after;
                }
                State::Head(head) => {
                    head.push(*first);
                    bytes = after;
                    if let Some((digest, size)) = head.split_first_chunk::<32>()
                        && let Ok(size) = size.try_into().map(u64::from_le_bytes)
                    {
                        let digest = Digest::from_bytes(*digest);
                        if size > FILE_BYTES_MAX {
                            return Err(PackError::TooLarge);
                        }
                        self.sink.begin(&digest, size).map_err(PackError::Sink)?;
                        self.state = State::Content { digest, left: size, hasher: Sha256::new() };
                        self.end_if_complete()?;
                    }
                }
                State::Content { left, hasher, .. } => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    let (piece, after) = bytes.split_at(count);
                    hasher.update(piece);
                    *left -= count as u64;
                    self.sink.data(piece).map_err(PackError::Sink)?;
                    bytes = after;
                    self.end_if_complete()?;
                }
                State::Ended | State::Refused => return Err(PackError::Trailing),
            }
        }
        Ok(())
    }

    fn end_if_complete(&mut self) -> Result<(), PackError<S::Error>> {
        let State::Content { digest, left: 0, hasher } = &self.state else {
            return Ok(());
        };
        if Digest::finish(hasher.clone()) != *digest {
            return Err(PackError::Damaged(*digest));
        }
        self.state = State::Mark;
        self.sink.end().map_err(PackError::Sink)
    }
}
