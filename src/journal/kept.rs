//! What is kept of the bytes that a module was answered, so that they can be answered again.
//!
//! A short content stands in the entry itself, a longer one goes beside the journal under its digest, once a run. Both have a limit for each
//! run; beyond it the digest is all that is left, and the run can not be replayed.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits::{KEPT_INLINE_BYTES_MAX, RUN_KEPT_BYTES_MAX, RUN_KEPT_INLINE_BYTES_MAX};
use crate::names::Digest;

/// Contents by their digests.
pub type Contents = HashMap<Digest, Bytes>;

/// Bytes that a module was answered: by hash, and in full if they are few.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// How many.
    pub bytes: u64,
    /// Their sha256.
    pub sha256: Digest,
    /// Themselves, if they are few and UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Themselves, if they are few and no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

impl Kept {
    /// The bytes; none if they are not kept, or are not what the digest says.
    pub fn read<'a>(&'a self, contents: &'a Contents) -> Option<Cow<'a, [u8]>> {
        let found = match (&self.text, &self.base64) {
            (Some(text), _) => Cow::Borrowed(text.as_bytes()),
            (None, Some(text)) => Cow::Owned(STANDARD.decode(text).ok()?),
            (None, None) if self.bytes == 0 => Cow::Borrowed(&[][..]),
            (None, None) => Cow::Borrowed(&**contents.get(&self.sha256)?),
        };
        (found.len() as u64 == self.bytes).then_some(found)
    }
}

/// Decides what is kept of one run.
#[derive(Debug)]
pub struct Keeper {
    inline_left: usize,
    left: usize,
    known: HashSet<Digest>,
    gathered: Vec<(Digest, Vec<u8>)>,
}

impl Default for Keeper {
    fn default() -> Self {
        Self { inline_left: RUN_KEPT_INLINE_BYTES_MAX, left: RUN_KEPT_BYTES_MAX, known: HashSet::new(), gathered: Vec::new() }
    }
}

impl Keeper {
    /// Keeps some bytes, in what it answers or beside it, if there is room for them.
    pub fn keep(&mut self, bytes: &[u8]) -> Kept {
        let mut kept = Kept { bytes: bytes.len() as u64, sha256: Digest::of(bytes), text: None, base64: None };
        if bytes.is_empty() || self.known.contains(&kept.sha256) {
            return kept;
        }
        if bytes.len() <= KEPT_INLINE_BYTES_MAX && bytes.len() <= self.inline_left {
            self.inline_left -= bytes.len();
            match std::str::from_utf8(bytes) {
                Ok(text) => kept.text = Some(text.to_owned()),
                Err(_) => kept.base64 = Some(STANDARD.encode(bytes)),
            }
        } else if let Some(left) = self.left.checked_sub(bytes.len().max(KEPT_INLINE_BYTES_MAX)) {
            // A small one costs as much as one that had to come here, so that there are not many.
            self.left = left;
            self.known.insert(kept.sha256);
            self.gathered.push((kept.sha256, bytes.to_owned()));
        }
        kept
    }

    /// Hands over what goes beside the journal since the last time.
    pub fn take(&mut self) -> Vec<(Digest, Vec<u8>)> {
        std::mem::take(&mut self.gathered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_bytes_stand_in_the_entry_and_many_beside_it_once() {
        let mut keeper = Keeper::default();
        assert_eq!(keeper.keep(b"yes").text.as_deref(), Some("yes"));
        assert_eq!(keeper.keep(b"\xff").base64.as_deref(), Some("/w=="));
        assert!(keeper.take().is_empty());
        let long = vec![b'x'; KEPT_INLINE_BYTES_MAX + 1];
        let (one, again) = (keeper.keep(&long), keeper.keep(&long));
        assert_eq!(one, again);
        let gathered = keeper.take();
        assert_eq!(gathered.len(), 1);
        let contents: Contents = gathered.into_iter().map(|(digest, bytes)| (digest, bytes.into())).collect();
        assert_eq!(one.read(&contents).unwrap(), long);
        assert_eq!(one.read(&Contents::new()), None);
    }

    #[test]
    fn a_run_keeps_no_more_than_its_limits() {
        let mut keeper = Keeper::default();
        let mut kept = 0;
        let mut beside = 0;
        for at in 0..RUN_KEPT_BYTES_MAX / 1024 {
            let bytes = [vec![b'x'; 1024], at.to_string().into_bytes()].concat();
            kept += keeper.keep(&bytes).text.map_or(0, |text| text.len());
            beside += keeper.take().len();
        }
        let end = keeper.keep(&[b'y'; 3000]);
        assert_eq!((end.text.as_ref(), keeper.take().len()), (None, 0));
        assert!(kept <= RUN_KEPT_INLINE_BYTES_MAX && kept > RUN_KEPT_INLINE_BYTES_MAX - 2048, "{kept}");
        assert_eq!(beside, RUN_KEPT_BYTES_MAX / KEPT_INLINE_BYTES_MAX);
    }
}
