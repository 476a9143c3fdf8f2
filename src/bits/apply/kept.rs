//! What a destination held before: the manifests of the last few trees, and the files that left it with each.
//!
//! So the tree before can be had again without sending anything, whether a server asks for it or a person on the machine does. A tree costs
//! no more room than what was replaced in it. What others had where a new tree has something else is here as well, and stays until somebody
//! takes it away.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read as _};
use std::path::Path;

use cap_std::fs::Dir;

use super::staging::{self, clear, create, make};
use crate::bits::ledger::{self, Ledger};
use crate::bits::manifest::{Entry, Manifest};
use crate::bits::path::TreePath;
use crate::bits::scan::Spot;
use crate::bits::tree;
use crate::limits::{GENERATIONS_KEPT, MANIFEST_BYTES_MAX};
use crate::names::Digest;

/// Where it is, below the state.
const PLACE: &str = "kept";
const MANIFEST: &str = "manifest";
/// How the names begin of what others had.
const THEIRS: &str = "theirs-";

/// What is kept of one destination.
#[derive(Debug)]
pub struct Kept {
    place: Dir,
    name: String,
    /// The generations, the oldest first.
    numbers: Vec<u64>,
}

impl Kept {
    /// Opens what is kept of a destination; `key` is what the destination is called in the state.
    ///
    /// # Errors
    /// If it can not be read.
    pub fn open(state: &Dir, key: &str) -> io::Result<Self> {
        let name = Digest::of(key.as_bytes()).short().to_string();
        let place = make(&make(&tree::reopen(state)?, PLACE)?, &name)?;
        let mut numbers: Vec<u64> = Vec::new();
        for entry in place.entries()? {
            numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(Self { place, name, numbers })
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
        Manifest::parse(&self.text(generation)?).map_err(io::Error::other)
    }

    fn text(&self, generation: u64) -> io::Result<Vec<u8>> {
        let dir = tree::enter(&self.place, generation.to_string().as_bytes())?;
        let mut text = Vec::new();
        tree::open_file(&dir, MANIFEST.as_bytes())?.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
        Ok(text)
    }

    /// The files that are lacking of a tree: neither kept, nor at the destination as its ledger says.
    ///
    /// # Errors
    /// If what is kept can not be read.
    pub fn lacking<'a>(&self, wanted: &'a Manifest, ledger: &Ledger) -> io::Result<Vec<&'a TreePath>> {
        let mut there: HashSet<Digest> = ledger.entries().flat_map(Entry::contents).map(|(digest, _)| digest).collect();
        let mut files = HashSet::new();
        for number in &self.numbers {
            for entry in tree::enter(&self.place, number.to_string().as_bytes())?.entries()? {
                files.extend(entry?.file_name().to_str().and_then(|name| name.parse::<Digest>().ok()));
            }
        }
        for before in self.numbers.iter().filter_map(|number| self.manifest(*number).ok()) {
            let kept =
                before.entries().iter().filter(|entry| staging::file_of(entry).is_some_and(|(_, _, digest)| files.contains(&digest)));
            there.extend(kept.flat_map(Entry::contents).map(|(digest, _)| digest));
        }
        let lacks = |entry: &&Entry| entry.contents().any(|(digest, _)| !there.contains(&digest));
        Ok(wanted.entries().iter().filter(lacks).map(|entry| &entry.path).collect())
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
                    let Some(path) = staging::file_of(entry).and_then(|(_, _, digest)| large.get(&digest)) else { continue };
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

    /// Begins to keep the tree that the ledger says is at the destination now, which is about to change; or goes on with what one that
    /// was cut off had begun: a generation for each try would push out those that are worth more.
    ///
    /// # Errors
    /// If it can not be written.
    pub(super) fn begin(&mut self, trees: &Dir, key: &str, settled: Option<&Manifest>) -> io::Result<Dir> {
        if let (Some(last), Some(settled)) = (self.numbers.last(), settled)
            && self.text(*last).is_ok_and(|text| Digest::of(&text) == settled.version())
        {
            return tree::enter(&self.place, last.to_string().as_bytes());
        }
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

    /// Puts away what is others', and answers where it is below the agent's state.
    pub(super) fn set_aside(&self, from: &Dir, name: &str) -> io::Result<String> {
        let mut number = 1_u64;
        while tree::look(&self.place, format!("{THEIRS}{number}").as_bytes())?.is_some() {
            number += 1;
        }
        let aside = format!("{THEIRS}{number}");
        from.rename(name, &self.place, &aside)?;
        Ok(format!("{PLACE}/{}/{aside}", self.name))
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

/// Keeps a file that leaves a destination. It is there no more then.
pub(super) fn take_in(keeping: &Dir, from: &Dir, name: &Path, digest: &Digest) -> io::Result<()> {
    match from.rename(name, keeping, digest.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let beside = format!("{digest}.new");
            let mut file = tree::open_file(from, name.as_os_str().as_encoded_bytes())?;
            let copied =
                io::copy(&mut file, &mut create(keeping, &beside)?).and_then(|_| keeping.rename(&beside, keeping, digest.to_string()));
            if copied.is_err() {
                // There is no room for it: what is there of it takes none.
                let _ = keeping.remove_file(&beside);
            }
            copied?;
            from.remove_file(name)
        }
        renamed => renamed,
    }
}
