//! Taking what is missing: each content is verified, and then written to where it waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cap_std::fs::{Dir, File};

use super::prepare::sync_all;
use super::staging::{self, Target};
use super::{ApplyError, Plan, failed};
use crate::bits::ledger;
use crate::bits::pack::{Opener, Packed};
use crate::bits::tree::{Seen, Stamp, Walker, look_at};
use crate::limits::SYNC_FILES_MAX;
use crate::names::Digest;

/// What has come so far, for all takers of a plan.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The contents that are missing and have not come yet.
    pub(super) awaited: HashMap<Digest, u64>,
    /// How the files look that are in their place in the new tree, by the manifest's entries.
    pub(super) placed: HashMap<usize, (u64, Stamp)>,
}

/// Takes missing contents of a plan. Several can at once, each on a thread of its own.
pub struct Taker<'a> {
    plan: &'a Plan,
    staging: &'a Dir,
    /// The tree that is put together anew, if one is.
    tree: Option<Walker>,
    opener: Opener,
    content: Vec<u8>,
}

impl Plan {
    /// Makes ready to take what is missing.
    ///
    /// # Errors
    /// If there can be no staging directory.
    pub fn begin_taking(&mut self) -> Result<(), ApplyError> {
        self.staging.open()?;
        if self.whole.is_some() && self.build.is_none() {
            self.build = Some(self.begin_build()?);
        }
        // Now, as there is time while contents are on their way.
        self.write_down()
    }

    /// Writes down what the destination is about to become, beside the ledger.
    pub(super) fn write_down(&mut self) -> Result<(), ApplyError> {
        if !self.is_recorded && self.begun.is_none() {
            self.begun = Some(ledger::write(&self.trees, &self.key, self.after())?);
        }
        Ok(())
    }

    /// One who takes what is missing.
    ///
    /// # Errors
    /// If [`begin_taking`](Self::begin_taking) was not called, or memory is lacking.
    pub fn taker(&self) -> Result<Taker<'_>, ApplyError> {
        let staging = self.staging.existing().ok_or(ApplyError::Missing(self.missing().len()))?;
        let tree = self.build.as_ref().map(|build| build.walker()).transpose()?;
        Ok(Taker { plan: self, staging, tree, opener: Opener::new()?, content: Vec::new() })
    }

    /// Brings to the disk what was taken so far, so that less is left to be waited for in the end.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync_taken(&self) -> Result<(), ApplyError> {
        let Some(staging) = self.staging.existing() else { return Ok(()) };
        sync_all(staging, std::iter::empty()).map_err(failed("sync", &"what was staged"))
    }

    pub(super) fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taker<'_> {
    /// Takes a missing content, verifies it, and stages it.
    ///
    /// # Errors
    /// If it was not asked for, or is not what it says; if it can not be written.
    pub fn take(&mut self, packed: &Packed) -> Result<(), ApplyError> {
        let plan = self.plan;
        if plan.taken().awaited.get(&packed.digest) != Some(&u64::from(packed.size)) {
            return Err(ApplyError::Unwanted(packed.digest));
        }
        self.opener.open(packed, &mut self.content)?;
        for target in plan.targets.get(&packed.digest).into_iter().flatten() {
            match (target, &mut self.tree) {
                (Target::Whole(Some(index)), Some(tree)) => place(plan, tree, *index, &self.content)?,
                (Target::Whole(alone), _) => {
                    let dressed = alone.and_then(|index| plan.dress_of(index));
                    let written = staging::write_whole(self.staging, &packed.digest, &self.content, dressed);
                    written.map_err(failed("stage content", &packed.digest))?;
                }
                (Target::Piece { file, size, offset }, _) => {
                    let written =
                        large(&plan.large, self.staging, file, *size).and_then(|file| staging::write_piece(&file, &self.content, *offset));
                    written.map_err(failed("stage content", &packed.digest))?;
                }
            }
        }
        plan.taken().awaited.remove(&packed.digest);
        Ok(())
    }
}

/// Writes a small file to its place in the new tree.
fn place(plan: &Plan, tree: &mut Walker, index: usize, content: &[u8]) -> Result<(), ApplyError> {
    let (Some(entry), Some(dressed)) = (plan.manifest.entries().get(index), plan.dress_of(index)) else { return Ok(()) };
    let mut write = || {
        let dir = tree.directory(entry.path.parent().as_ref())?.ok_or(std::io::ErrorKind::NotFound)?;
        let file = staging::write_new(dir, crate::bits::tree::name(entry.path.name()), content, dressed)?;
        // For many, the file system is asked once.
        if plan.steps.put.len() <= SYNC_FILES_MAX {
            file.sync_all()?;
        }
        look_at(&file)
    };
    if let Seen::File { size, stamp, .. } = write().map_err(failed("stage", &entry.path))? {
        plan.taken().placed.insert(index, (size, stamp));
    }
    Ok(())
}

/// The large file of a digest, opened if it is not the one that was written to last.
fn large(last: &Mutex<Option<(Digest, Arc<File>)>>, staging: &Dir, digest: &Digest, size: u64) -> std::io::Result<Arc<File>> {
    // Held meanwhile: two who make the same file would both give it its size.
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    let file = match last.take() {
        Some((open, file)) if open == *digest => file,
        _ => Arc::new(staging::open_large(staging, digest, size)?),
    };
    Ok(Arc::clone(&last.insert((*digest, file)).1))
}
