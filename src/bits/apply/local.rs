//! A destination on this machine, for the survey.

use std::io;
use std::sync::Arc;

use cap_std::fs::Dir;

use super::survey::Place;
use crate::bits::chunk::{self, Content};
use crate::bits::near::ByPath;
use crate::bits::path::TreePath;
use crate::bits::tree::{self, Seen, Stamp, WalkError, Walker};

/// A directory of this machine, and how its files looked when they were last known.
pub(super) struct Local {
    walker: Walker,
    known: Arc<ByPath<(u64, Stamp)>>,
    looks: Looks,
    /// The name of the destination's staging directory, which may be in it, and is Muster's own.
    staged: TreePath,
}

/// What was seen at a destination just before: nothing of that is looked at twice.
#[derive(Default)]
pub(super) struct Looks {
    /// What is at these paths; nothing is at some.
    at: ByPath<Option<Seen>>,
    /// Whether there is nothing else.
    pub(super) is_all: bool,
}

impl Looks {
    /// Everything that is in a directory, but what has the name of its staging directory.
    pub(super) fn all(dir: &Dir, staged: &str) -> Result<Self, WalkError> {
        let mut at = Vec::new();
        tree::walk(dir, None, &mut |_, below, seen| -> Result<bool, WalkError> {
            let visible = below.as_bytes() != staged.as_bytes();
            if visible {
                at.push((below.clone(), Some(seen)));
            }
            Ok(visible)
        })?;
        Ok(Self { at: at.into_iter().collect(), is_all: true })
    }

    /// What is at some paths. One that can not be looked at is left out.
    pub(super) fn of<'a>(paths: impl Iterator<Item = &'a [u8]>, dir: Dir) -> Self {
        let mut walker = Walker::new(dir);
        let at = paths.filter_map(|path| Some((TreePath::from_bytes(path).ok()?, walker.look_bytes(path).ok()?)));
        Self { at: at.collect(), is_all: false }
    }
}

impl Local {
    /// A directory, and what was seen of it already.
    pub(super) fn new(dir: Dir, known: Arc<ByPath<(u64, Stamp)>>, looks: Looks, staged: &str) -> Result<Self, WalkError> {
        let staged = TreePath::from_bytes(staged.as_bytes()).map_err(|error| WalkError::Path(staged.to_owned(), error))?;
        Ok(Self { walker: Walker::new(dir), known, looks, staged })
    }
}

impl Place for Local {
    fn look(&mut self, path: &TreePath) -> io::Result<Option<Seen>> {
        match self.looks.at.get(path) {
            Some(seen) => Ok(seen.clone()),
            None if self.looks.is_all => Ok(None),
            None => self.walker.look(path),
        }
    }

    fn is_left(&mut self, path: &TreePath, size: u64, stamp: Stamp) -> bool {
        self.known.get(path) == Some(&(size, stamp))
    }

    fn read(&mut self, path: &TreePath) -> io::Result<Option<Content>> {
        let mut read = || {
            let parent = self.walker.directory(path.parent().as_ref())?.ok_or(io::ErrorKind::NotFound)?;
            chunk::read(&mut tree::open_file(parent, path.name())?)
        };
        match read() {
            Ok(content) => Ok(Some(content)),
            // It can still be replaced, if its directory can be written.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&mut self, path: Option<&TreePath>, hidden: Option<&TreePath>) -> Result<Vec<(TreePath, Seen)>, WalkError> {
        if (path, hidden, self.looks.is_all) == (None, None, true) {
            return Ok(self.looks.at.iter().filter_map(|(path, seen)| Some((path.clone(), seen.clone()?))).collect());
        }
        let mut found = Vec::new();
        let shown = path.map_or_else(|| ".".to_owned(), TreePath::to_string);
        if let Some(dir) = self.walker.directory(path).map_err(|error| WalkError::Io(shown, error))? {
            tree::walk(dir, path, &mut |_, below, seen| -> Result<bool, WalkError> {
                let visible = hidden != Some(below) && *below != self.staged;
                if visible {
                    found.push((below.clone(), seen));
                }
                Ok(visible)
            })?;
        }
        Ok(found)
    }
}
