//! Random numbers of a run: all of them follow from one seed, which the journal keeps.
//!
//! The n-th 32 bytes are the sha256 of seed, stream and n, which is the same on every machine and in every version.

use std::convert::Infallible;

use rand::TryRng;

use crate::names::Digest;

/// Which of a run's streams of random numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stream {
    /// `wasi:random/random`.
    Secure = 0,
    /// `wasi:random/insecure`.
    Insecure = 1,
    /// `wasi:random/insecure-seed`.
    Seed = 2,
    /// A script's `Math.random`.
    Script = 3,
}

/// One stream of random numbers.
pub(crate) struct Chance {
    /// The seed and the stream, and room for the number of a block.
    text: Vec<u8>,
    begins: usize,
    number: u64,
    block: [u8; 32],
    used: usize,
}

impl Chance {
    /// One stream of a seed.
    pub(crate) fn new(seed: &str, stream: Stream) -> Self {
        let mut text = Vec::with_capacity(seed.len() + 9);
        text.extend_from_slice(seed.as_bytes());
        text.push(stream as u8);
        Self { begins: text.len(), text, number: 0, block: [0; 32], used: 32 }
    }

    /// A number of 128 bits.
    pub(crate) fn number(mut self) -> u128 {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        u128::from_le_bytes(bytes)
    }

    /// The next number from 0 up to 1.
    pub(crate) fn share(&mut self) -> f64 {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.used == self.block.len() {
                self.text.truncate(self.begins);
                self.text.extend_from_slice(&self.number.to_le_bytes());
                self.block = *Digest::of(&self.text).as_bytes();
                self.number = self.number.wrapping_add(1);
                self.used = 0;
            }
            *byte = self.block.get(self.used).copied().unwrap_or_default();
            self.used += 1;
        }
    }
}

impl TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.fill(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_for_ever_and_each_stream_its_own() {
        let number = |seed, stream| Chance::new(seed, stream).number();
        assert_eq!(number("seed", Stream::Secure), number("seed", Stream::Secure));
        assert_ne!(number("seed", Stream::Secure), number("seed", Stream::Insecure));
        assert_ne!(number("seed", Stream::Secure), number("seeds", Stream::Secure));
        let mut script = Chance::new("seed", Stream::Script);
        let shares = [script.share(), script.share(), script.share()];
        assert!(shares.iter().all(|share| (0.0..1.0).contains(share)) && shares[0] != shares[1], "{shares:?}");
        let mut bytes = [0; 40];
        Chance::new("seed", Stream::Secure).fill(&mut bytes);
        let expected = Digest::of(b"seed\0\0\0\0\0\0\0\0\0");
        assert_eq!(&bytes[..32], expected.as_bytes());
    }
}
