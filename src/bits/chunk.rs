//! Where large files are cut: at places that depend on what is around them alone, so that a change moves no other cut.
//!
//! The cuts are those of `FastCDC` in its version of 2020 (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication
//! Based Storage Systems"). Who scans a tree decides them; whoever reads a manifest takes its chunks as they are.

use std::io::{self, Read};

use fastcdc::v2020::StreamCDC;
use sha2::{Digest as _, Sha256};

use crate::limits::{CHUNK_BYTES, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};
use crate::names::Digest;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// How many bytes.
    pub size: u64,
    /// Their sha256.
    pub digest: Digest,
    /// The sha256 and the size of each chunk, in their order; none if all of it is at most [`CHUNK_BYTES_MAX`].
    pub chunks: Box<[(Digest, u32)]>,
}

impl Content {
    /// What is kept and sent of it, with sizes, in its order.
    pub fn contents(&self) -> impl Iterator<Item = (Digest, u64)> {
        let whole = self.chunks.is_empty().then_some((self.digest, self.size));
        whole.into_iter().chain(self.chunks.iter().map(|(digest, size)| (*digest, u64::from(*size))))
    }
}

/// Reads to the end, and cuts what is large.
///
/// # Errors
/// When reading fails.
pub fn read(source: &mut impl Read) -> io::Result<Content> {
    let mut head = Vec::new();
    source.by_ref().take(CHUNK_BYTES_MAX as u64 + 1).read_to_end(&mut head)?;
    if head.len() <= CHUNK_BYTES_MAX {
        return Ok(Content { size: head.len() as u64, digest: Digest::of(&head), chunks: Box::default() });
    }
    let (mut hasher, mut size, mut chunks) = (Sha256::new(), 0, Vec::new());
    let cut = StreamCDC::new(head.as_slice().chain(source), CHUNK_BYTES_MIN, CHUNK_BYTES, CHUNK_BYTES_MAX);
    for chunk in cut {
        let data = chunk.map_err(io::Error::from)?.data;
        size += data.len() as u64;
        hasher.update(&data);
        chunks.push((Digest::of(&data), u32::try_from(data.len()).map_err(io::Error::other)?));
    }
    Ok(Content { size, digest: Digest::finish(hasher), chunks: chunks.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes without a pattern, always the same.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_le_bytes()[7]
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    #[test]
    fn a_small_file_is_not_cut() {
        for length in [0, 1, CHUNK_BYTES_MAX] {
            let bytes = noise(length);
            let content = read(&mut bytes.as_slice()).unwrap();
            assert_eq!(content, Content { size: length as u64, digest: Digest::of(&bytes), chunks: Box::default() });
        }
    }

    #[test]
    fn a_byte_in_the_middle_moves_few_chunks() {
        let before = noise(20 * CHUNK_BYTES_MAX);
        let mut after = before.clone();
        after.insert(before.len() / 2, 7);
        let [before, after] = [before, after].map(|bytes| {
            let content = read(&mut bytes.as_slice()).unwrap();
            assert_eq!((content.size, content.digest), (bytes.len() as u64, Digest::of(&bytes)));
            assert_eq!(content.chunks.iter().map(|(_, size)| u64::from(*size)).sum::<u64>(), content.size);
            let mut at = 0;
            for (digest, size) in &content.chunks {
                let size = *size as usize;
                assert_eq!(*digest, Digest::of(&bytes[at..at + size]));
                at += size;
                assert!(size <= CHUNK_BYTES_MAX && (size >= CHUNK_BYTES_MIN || at == bytes.len()));
            }
            content.chunks
        });
        let new = after.iter().filter(|chunk| !before.contains(chunk)).count();
        assert!(new <= 2, "{new} of {} chunks are new", after.len());
        assert!((40..=160).contains(&before.len()), "{} chunks of 20 MiB", before.len());
    }
}
