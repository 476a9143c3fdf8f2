//! Where contents wait until all are there.
//!
//! The staging directory is in the destination itself, or, if that does not exist yet, where it is going to be made: the one place from
//! which renames are sure to work, since what is above a destination may be another mount, or not the agent's to write in.

use std::io::{self, Write as _};

use cap_std::fs::{Dir, DirBuilder, DirBuilderExt as _, File, OpenOptions, OpenOptionsExt as _};

use super::{ApplyError, Plan, failed};
use crate::bits::pack::Sink;
use crate::bits::tree;
use crate::names::Digest;

/// How the name of every staging directory begins.
pub(super) const PREFIX: &str = ".muster-staging-";

/// The name of a destination's staging directory: always the same, so that one that was left is found, and nobody else's is taken for it.
pub(super) fn name(key: &str) -> String {
    format!("{PREFIX}{}", Digest::of(key.as_bytes()).short())
}

/// Removes what a plan that was cut off left.
pub(super) fn clear(place: &Dir, name: &str) -> io::Result<()> {
    match tree::look(place, name.as_bytes())? {
        None => Ok(()),
        Some(tree::Seen::Directory(_)) => place.remove_dir_all(name),
        Some(_) => place.remove_file(name),
    }
}

/// The name of a received content.
pub(super) fn content_name(index: u32) -> String {
    format!("c{index}")
}

/// A staging directory, made when it is first needed and removed with this.
#[derive(Debug)]
pub(super) struct Staging {
    place: Dir,
    name: String,
    dir: Option<Dir>,
}

impl Staging {
    pub(super) fn new(place: Dir, name: String) -> Self {
        Self { place, name, dir: None }
    }

    pub(super) fn open(&mut self) -> Result<Dir, ApplyError> {
        let failed = |doing| failed(doing, &self.name);
        if self.dir.is_none() {
            self.place.create_dir_with(&self.name, DirBuilder::new().mode(0o700)).map_err(failed("make"))?;
            self.dir = Some(tree::enter(&self.place, self.name.as_bytes()).map_err(failed("open"))?);
        }
        let dir = self.dir.as_ref().unwrap_or(&self.place);
        dir.try_clone().map_err(failed("open"))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.dir.take().is_some() {
            // What can not be removed now is removed by the next plan.
            let _ = self.place.remove_dir_all(&self.name);
        }
    }
}

/// A new file in a staging directory, readable by nobody else until its mode is set.
pub(super) fn create(dir: &Dir, name: &str) -> io::Result<File> {
    dir.open_with(name, OpenOptions::new().write(true).create(true).truncate(true).mode(0o600))
}

/// Takes the missing contents of a plan. Dropped early, it leaves the plan waiting for the rest.
#[derive(Debug)]
pub struct Receive<'a> {
    plan: &'a mut Plan,
    current: Option<(Digest, File)>,
}

impl<'a> Receive<'a> {
    pub(super) fn new(plan: &'a mut Plan) -> Self {
        Self { plan, current: None }
    }
}

impl Sink for Receive<'_> {
    type Error = ApplyError;

    fn begin(&mut self, digest: &Digest, size: u64) -> Result<(), ApplyError> {
        match self.plan.awaited.get(digest) {
            Some((index, expected)) if *expected == size => {
                // Made for the first content: a destination that lacks nothing need not be writable.
                let dir = self.plan.staging.open()?;
                let file = create(&dir, &content_name(*index)).map_err(failed("stage content", digest))?;
                self.current = Some((*digest, file));
                Ok(())
            }
            _ => Err(ApplyError::Unwanted(*digest)),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
        match &mut self.current {
            Some((digest, file)) => file.write_all(bytes).map_err(failed("stage content", digest)),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), ApplyError> {
        if let Some((digest, _)) = self.current.take() {
            self.plan.awaited.remove(&digest);
        }
        Ok(())
    }
}
