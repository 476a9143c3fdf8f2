//! What a destination held before: the manifests of the last few trees, and the files that left it with each.
//!
//! So the tree before can be had again without sending anything, whether a server asks for it or a person on the machine does. A tree costs
//! no more room than what was replaced in it.

use std::collections::HashMap;
use std::io::{self, Read as _};

use cap_std::fs::Dir;

use super::staging::{clear, make};
use crate::bits::ledger;
use crate::bits::manifest::Manifest;
use crate::bits::path::TreePath;
use crate::bits::scan::Spot;
use crate::bits::tree;
use crate::limits::{GENERATIONS_KEPT, MANIFEST_BYTES_MAX};
use crate::names::Digest;

/// Where it is, below the state.
const PLACE: &str = "kept";
const MANIFEST: &str = "manifest";

/// What is kept of one destination.
#[derive(Debug)]
pub struct Kept {
    place: Dir,
    /// The generations, the oldest first.
    numbers: Vec<u64>,
}

impl Kept {
    /// Opens what is kept of a destination; `key` is what the destination is called in the state.
    ///
    /// # Errors
    /// If it can not be read.
    pub fn open(state: &Dir, key: &str) -> io::Result<Self> {
        let place = make(&make(&tree::reopen(state)?, PLACE)?, &Digest::of(key.as_bytes()).short())?;
        let mut numbers: Vec<u64> = Vec::new();
        for entry in place.entries()? {
            numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(Self { place, numbers })
    }

    /// The generations that are kept, the newest last.
    pub fn generations(&self) -> &[u64] {
        &self.numbers
    }

    /// The tree that a generation was.
    ///
    /// # Errors
    /// If its manifest can not be read.
    pub fn manifest(&self, generation: u64) -> io::Result<Manifest> {
        let dir = tree::enter(&self.place, generation.to_string().as_bytes())?;
        let mut text = Vec::new();
        tree::open_file(&dir, MANIFEST.as_bytes())?.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
        Manifest::parse(&text).map_err(io::Error::other)
    }

    /// The directory that [`Spot`]s of what is kept are relative to.
    pub(super) fn dir(&self) -> &Dir {
        &self.place
    }

    /// Where contents are kept, of those that are missing.
    ///
    /// # Errors
    /// If it can not be read.
    pub(super) fn find(&self, manifest: &Manifest, missing: &[u32]) -> io::Result<HashMap<u32, Spot>> {
        let mut found = HashMap::new();
        if self.numbers.is_empty() || missing.is_empty() {
            return Ok(found);
        }
        let mut large: HashMap<Digest, TreePath> = HashMap::new();
        for number in &self.numbers {
            let dir = tree::enter(&self.place, number.to_string().as_bytes())?;
            for entry in tree::reopen(&dir)?.entries()? {
                let name = entry?.file_name();
                let Some(digest) = name.to_str().and_then(|name| name.parse::<Digest>().ok()) else { continue };
                let Ok(path) = TreePath::from_bytes(format!("{number}/{digest}").as_bytes()) else { continue };
                match manifest.content_index(&digest) {
                    Some(index) => {
                        let size = manifest.contents().get(index as usize).map_or(0, |(_, size)| *size);
                        found.insert(index, Spot { path, offset: 0, size });
                    }
                    None => drop(large.insert(digest, path)),
                }
            }
        }
        let wants_chunks = manifest.entries().iter().any(|entry| !entry.chunks().is_empty());
        if wants_chunks && !large.is_empty() {
            for number in &self.numbers {
                let Ok(before) = self.manifest(*number) else { continue };
                for entry in before.entries().iter().filter(|entry| !entry.chunks().is_empty()) {
                    let Some(path) = super::staging::file_of(entry).and_then(|(_, _, digest)| large.get(&digest)) else { continue };
                    let mut offset = 0;
                    for (chunk, size) in entry.contents() {
                        if let Some(index) = manifest.content_index(&chunk) {
                            found.entry(index).or_insert_with(|| Spot { path: path.clone(), offset, size });
                        }
                        offset += size;
                    }
                }
            }
        }
        found.retain(|index, _| missing.binary_search(index).is_ok());
        Ok(found)
    }

    /// Begins to keep the tree that the ledger says is at the destination now, which is about to change.
    ///
    /// # Errors
    /// If it can not be written.
    pub(super) fn begin(&mut self, trees: &Dir, key: &str) -> io::Result<Dir> {
        let number = self.numbers.last().map_or(1, |last| last + 1);
        let dir = make(&self.place, &number.to_string())?;
        if let Err(error) = ledger::keep(trees, key, &dir, MANIFEST) {
            // Nothing was settled there, so there is nothing to go back to.
            clear(&self.place, &number.to_string())?;
            return Err(error);
        }
        self.numbers.push(number);
        Ok(dir)
    }

    /// Removes the oldest, beyond [`GENERATIONS_KEPT`].
    pub(super) fn prune(&mut self) {
        let beyond = self.numbers.len().saturating_sub(GENERATIONS_KEPT);
        for number in self.numbers.drain(..beyond) {
            // What can not be removed now is removed the next time.
            let _ = clear(&self.place, &number.to_string());
        }
    }
}
