//! A destination on a machine with a shell, as it was seen from here.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::io;

use crate::bits::apply::survey::Place;
use crate::bits::chunk::Content;
use crate::bits::path::TreePath;
use crate::bits::tree::{Seen, Stamp, WalkError};
use crate::names::Digest;

/// What is known of a destination. Nothing of it is asked for while a survey looks: what the survey lacks is noted, and the survey is made
/// anew when it is there.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// Whether the destination is a directory; else it does not exist.
    pub(super) exists: bool,
    /// What is at each path that was looked at.
    pub(super) seen: HashMap<TreePath, Option<Seen>>,
    /// What the machine says that files hold; none if it can not read them.
    pub(super) digests: HashMap<TreePath, Option<Digest>>,
    /// Everything there is, by path, if it was asked for: kinds alone.
    pub(super) all: Option<Vec<(TreePath, Seen)>>,
    /// How the files looked that were known from before.
    pub(super) known: HashMap<TreePath, (u64, Stamp)>,
    /// The contents of manifests that are known, by the digest of the whole.
    pub(super) contents: HashMap<Digest, Content>,
}

/// What a survey lacked.
#[derive(Debug, Default)]
pub(super) struct Lacking {
    /// Files whose digest is to be asked for.
    pub(super) digests: BTreeSet<TreePath>,
    /// Whether everything is to be listed.
    pub(super) all: bool,
}

impl Lacking {
    pub(super) fn is_empty(&self) -> bool {
        self.digests.is_empty() && !self.all
    }
}

/// A snapshot while a survey looks at it.
pub(super) struct View<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) lacking: &'a RefCell<Lacking>,
}

impl Place for View<'_> {
    fn look(&mut self, path: &TreePath) -> io::Result<Option<Seen>> {
        Ok(self.snapshot.seen.get(path).cloned().flatten())
    }

    fn is_left(&mut self, path: &TreePath, size: u64, stamp: Stamp) -> bool {
        self.snapshot.known.get(path) == Some(&(size, stamp))
    }

    fn read(&mut self, path: &TreePath) -> io::Result<Option<Content>> {
        let Some(digest) = self.snapshot.digests.get(path) else {
            self.lacking.borrow_mut().digests.insert(path.clone());
            return Ok(None);
        };
        let size = match self.snapshot.seen.get(path) {
            Some(Some(Seen::File { size, .. })) => *size,
            _ => 0,
        };
        let whole = |digest| Content { size, digest, chunks: Box::default() };
        // Cutting takes reading, so what a file that nobody knows holds in part is not known.
        Ok(digest.map(|digest| self.snapshot.contents.get(&digest).cloned().unwrap_or_else(|| whole(digest))))
    }

    fn list(&mut self, path: Option<&TreePath>, hidden: Option<&TreePath>) -> Result<Vec<(TreePath, Seen)>, WalkError> {
        let Some(all) = &self.snapshot.all else {
            self.lacking.borrow_mut().all = true;
            return Ok(Vec::new());
        };
        // What is below a path lies together.
        let below = match path {
            Some(path) => {
                let first = [path.as_bytes(), b"/"].concat();
                let from = all.partition_point(|(found, _)| found.as_bytes() < first.as_slice());
                let rest = all.get(from..).unwrap_or_default();
                rest.get(..rest.partition_point(|(found, _)| found.is_below(path))).unwrap_or_default()
            }
            None => all,
        };
        let is_visible = |found: &TreePath| hidden.is_none_or(|hidden| found != hidden && !found.is_below(hidden));
        Ok(below.iter().filter(|(found, _)| is_visible(found)).cloned().collect())
    }
}
