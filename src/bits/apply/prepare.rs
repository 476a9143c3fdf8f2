//! Making ready in the staging directory what is to be put: content, mode, time, durable.

use std::collections::HashSet;
use std::io;
use std::sync::Mutex;

use cap_std::fs::Dir;

use super::staging::{Target, create, dress, file_of, open_large, received_name, write_piece, write_whole};
use super::{ApplyError, Plan, failed};
use crate::bits::index;
use crate::bits::manifest::{Entry, Kind};
use crate::bits::scan::Spot;
use crate::bits::tree::{self, Stamp, Walker};
use crate::limits::SYNC_FILES_MAX;
use crate::names::Digest;

/// An entry that is ready to be put.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Which of the manifest's entries.
    pub(super) index: usize,
    /// Its name in the staging directory.
    pub(super) name: String,
    /// How it looks, if it is a file.
    pub(super) stamp: Option<(u64, Stamp)>,
}

/// Where on this machine contents are.
struct Places {
    destination: Option<Walker>,
    kept: Walker,
}

impl Plan {
    /// Makes every file and symlink ready that is to be put.
    pub(super) fn prepare(&mut self) -> Result<Vec<Prepared>, ApplyError> {
        self.large = Mutex::default();
        let put = self.steps.put.clone();
        // In a tree that is put together anew, a file that only needs another mode is another file: the old tree keeps its own.
        let copied = if self.whole.is_some() { self.steps.touch.clone() } else { Vec::new() };
        if put.is_empty() && copied.is_empty() {
            return Ok(Vec::new());
        }
        self.staging.open()?;
        let Some(staging) = self.staging.existing() else { return Ok(Vec::new()) };
        let mut places = Places {
            destination: self.existing()?,
            kept: Walker::new(self.kept.dir().try_clone().map_err(failed("open", &"what is kept"))?),
        };
        let placed: HashSet<usize> = self.taken().placed.keys().copied().collect();
        let (mut prepared, mut used) = (Vec::new(), HashSet::new());
        // Copies are made before modes are set: a first file may be one that even its owner can not read.
        for index in put.iter().chain(&copied) {
            let Some(entry) = self.manifest.entries().get(*index).filter(|_| !placed.contains(index)) else { continue };
            let staged = |error: io::Error| match error.kind() {
                io::ErrorKind::InvalidData => ApplyError::Changed(entry.path.to_string()),
                _ => failed("stage", &entry.path)(error),
            };
            let name = match &entry.kind {
                Kind::Directory => continue,
                Kind::Symlink { target } => {
                    let name = format!("f{index}");
                    // One from before may be another.
                    match staging.remove_file(&name) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(staged(error)),
                        _ => staging.symlink_contents(tree::name(target), &name).map_err(staged)?,
                    }
                    name
                }
                Kind::File { digest, .. } => {
                    let first = used.insert(*digest);
                    let name = self.stage(staging, &mut places, *index, entry, first).map_err(staged)?;
                    if first && !entry.chunks().is_empty() && !tree::holds(staging, name.as_bytes(), digest) {
                        // Each chunk was verified, and is again by the next try, so what is right of it need not be sent again.
                        return Err(ApplyError::Pieces(entry.path.to_string()));
                    }
                    name
                }
            };
            prepared.push(Prepared { index: *index, name, stamp: None });
        }
        self.finish(staging, &mut prepared, put.len() + copied.len() <= SYNC_FILES_MAX)?;
        Ok(prepared)
    }

    /// Stages one file, and answers under which name. The first file with a content takes what was received; others are copies.
    fn stage(&self, staging: &Dir, places: &mut Places, index: usize, entry: &Entry, first: bool) -> io::Result<String> {
        let Some((size, _, digest)) = file_of(entry) else { return Err(io::ErrorKind::InvalidInput.into()) };
        let own = format!("f{index}");
        let received = received_name(entry, &digest);
        if !first {
            let mut from = tree::open_file(staging, received.as_bytes())?;
            io::copy(&mut from, &mut create(staging, &own)?)?;
            return Ok(own);
        }
        let mut content = Vec::new();
        if entry.chunks().is_empty() {
            if self.read(places, &digest, &mut content)? {
                write_whole(staging, &digest, &content, None)?;
            }
            return Ok(received);
        }
        let (mut large, mut offset) = (None, 0);
        for (chunk, bytes) in entry.contents() {
            if self.read(places, &chunk, &mut content)? {
                let large = match &mut large {
                    Some(large) => large,
                    None => large.insert(open_large(staging, &digest, size)?),
                };
                write_piece(large, &content, offset)?;
            }
            offset += bytes;
        }
        Ok(received)
    }

    /// Gives what was staged its modes and times, and brings it to the disk: file by file, if each is to be.
    fn finish(&self, staging: &Dir, prepared: &mut [Prepared], each: bool) -> Result<(), ApplyError> {
        for one in &mut *prepared {
            let Some(entry) = self.manifest.entries().get(one.index) else { continue };
            let Some((_, mtime, digest)) = file_of(entry) else { continue };
            let mut targets = self.targets.get(&digest).into_iter().flatten();
            let dressed = targets.any(|target| matches!(target, Target::Whole(Some(_))));
            let received = self.manifest.content_index(&digest).is_none_or(|index| self.source(index).is_none());
            let finish = || {
                // What was received for one file alone was given its mode when it came; it may not be readable any more.
                if dressed && received && !each {
                    return tree::look(staging, one.name.as_bytes());
                }
                let file = match tree::open_file(staging, one.name.as_bytes()) {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied && dressed && received => {
                        return tree::look(staging, one.name.as_bytes());
                    }
                    opened => opened?,
                };
                dress(&file, entry.mode, mtime)?;
                if each {
                    file.sync_all()?;
                }
                tree::look_at(&file).map(Some)
            };
            one.stamp = match finish().map_err(failed("stage", &entry.path))? {
                Some(tree::Seen::File { size, stamp, .. }) => Some((size, stamp)),
                _ => return Err(ApplyError::Changed(entry.path.to_string())),
            };
        }
        if !each && self.whole.is_none() {
            let names = prepared.iter().map(|one| one.name.as_str());
            sync_all(staging, names).map_err(failed("stage", &"the bundle"))?;
        }
        Ok(())
    }

    /// The mode and the time that a file of the manifest is to have.
    pub(super) fn dress_of(&self, index: usize) -> Option<(u32, i64)> {
        let entry = self.manifest.entries().get(index)?;
        file_of(entry).map(|(_, mtime, _)| (entry.mode, mtime))
    }

    /// Where on this machine a content is, if it is: at the destination, or kept from before.
    fn source(&self, index: u32) -> Option<(&Spot, bool)> {
        let here = self.steps.sources.get(&index).map(|spot| (spot, true));
        here.or_else(|| self.found.get(&index).map(|spot| (spot, false)))
    }

    /// Reads a content that is on this machine, and answers whether it is. What is something else by now is [`io::ErrorKind::InvalidData`].
    fn read(&self, places: &mut Places, digest: &Digest, content: &mut Vec<u8>) -> io::Result<bool> {
        let Some((spot, is_here)) = self.manifest.content_index(digest).and_then(|index| self.source(index)) else { return Ok(false) };
        let walker = if is_here { places.destination.as_mut() } else { Some(&mut places.kept) };
        match read(walker, spot, digest, content) {
            Err(_) if !is_here => {
                // The next try asks for it.
                let _ = self.kept.dir().remove_file(spot.path.as_path());
                Err(io::ErrorKind::InvalidData.into())
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                // It was trusted, and would be the next time.
                index::forget(&self.trees, &self.key);
                Err(error)
            }
            read => read.map(|()| true),
        }
    }

    /// A walker of the destination, if it exists.
    pub(super) fn existing(&self) -> Result<Option<Walker>, ApplyError> {
        let mut walker = Walker::new(self.base.try_clone().map_err(failed("open", &"."))?);
        let top = walker.directory(self.destination.as_ref()).and_then(|dir| dir.map(Dir::try_clone).transpose());
        Ok(top.map_err(failed("open", &"the destination"))?.map(Walker::new))
    }
}

/// Reads a content that is at the destination; anything else by now is [`io::ErrorKind::InvalidData`].
fn read(walker: Option<&mut Walker>, spot: &Spot, digest: &Digest, content: &mut Vec<u8>) -> io::Result<()> {
    use io::{Read as _, Seek as _};
    let walker = walker.ok_or(io::ErrorKind::NotFound)?;
    let parent = walker.directory(spot.path.parent().as_ref())?.ok_or(io::ErrorKind::NotFound)?;
    let mut file = tree::open_file(parent, spot.path.name())?;
    file.seek(io::SeekFrom::Start(spot.offset))?;
    content.clear();
    file.take(spot.size).read_to_end(content)?;
    if Digest::of(content) == *digest { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Makes many files of a directory durable: one call for the whole file system is far cheaper than one for each.
#[cfg(target_os = "linux")]
pub(super) fn sync_all<'a>(dir: &Dir, _: impl Iterator<Item = &'a str>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(dir)?)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn sync_all<'a>(dir: &Dir, mut names: impl Iterator<Item = &'a str>) -> io::Result<()> {
    names.try_for_each(|name| match tree::look(dir, name.as_bytes())? {
        Some(tree::Seen::File { .. }) => tree::open_file(dir, name.as_bytes())?.sync_all(),
        _ => Ok(()),
    })
}
