//! How far what was baked into images is from what is wanted, worked out for one pair of versions at a time.
//!
//! Manifests may have a million entries, and an agent names whatever versions it likes: none is read on an agent's path, one is read at a
//! time, and what came of a pair is remembered, as versions never change.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::bits::contents::Bundle;
use crate::bits::difference::{bytes_new, differing};
use crate::bits::manifest::{Entry, Kind, Manifest};
use crate::limits::{DIFFERENCES_KEPT, MANIFEST_BYTES_MAX};
use crate::names::Digest;
use crate::shelf::{Shelf, ShelfError};

/// What it takes to make one version of a bundle another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Files and symlinks that are not the same in both, or in one alone.
    pub files: u64,
    /// Bytes of contents that the first lacks: what is sent at most.
    pub bytes: u64,
}

/// Differences that are known, latest first, and the turn to work one out.
pub(super) struct Differences {
    known: Arc<Mutex<VecDeque<(Digest, Digest, Difference)>>>,
    turn: Arc<Semaphore>,
}

impl Default for Differences {
    fn default() -> Self {
        Self { known: Arc::default(), turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Differences {
    fn get(&self, before: Digest, after: Digest) -> Option<Difference> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(one, other, _)| (*one, *other) == (before, after)).map(|(_, _, difference)| *difference)
    }
}

impl Shelf {
    /// Says what it takes to make a version of a bundle the one that is wanted; none if there is no such version.
    ///
    /// It may take seconds. Whoever stops waiting finds it done later.
    ///
    /// # Errors
    /// When the store fails, or the manifest is damaged.
    pub async fn difference(&self, before: Digest, wanted: &Bundle) -> Result<Option<Difference>, ShelfError> {
        if before == wanted.version {
            return Ok(Some(Difference { files: 0, bytes: 0 }));
        }
        if let Some(known) = self.differences.get(before, wanted.version) {
            return Ok(Some(known));
        }
        if self.store.bundle(&wanted.name, &before).await?.is_none() {
            return Ok(None);
        }
        let damaged = || ShelfError::Damaged(wanted.name.to_string());
        let turn = Arc::clone(&self.differences.turn).acquire_owned().await.map_err(|_| damaged())?;
        // Somebody else may have waited for the same.
        if let Some(known) = self.differences.get(before, wanted.version) {
            return Ok(Some(known));
        }
        let text = self.blobs.get(&before, MANIFEST_BYTES_MAX).await?;
        let (known, after) = (Arc::clone(&self.differences.known), Arc::clone(&wanted.manifest));
        let working = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let found = between(&Manifest::parse(&text).ok()?, &after);
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.truncate(DIFFERENCES_KEPT - 1);
            known.push_front((before, after.version(), found));
            Some(found)
        });
        working.await.ok().flatten().map(Some).ok_or_else(damaged)
    }
}

fn between(before: &Manifest, after: &Manifest) -> Difference {
    let is_file = |entry: &Entry| entry.kind != Kind::Directory;
    let files = differing(before, after).filter(|(was, is)| was.is_some_and(is_file) || is.is_some_and(is_file));
    Difference { files: files.fold(0, |count, _| count + 1), bytes: bytes_new(before, after) }
}
