//! A destination on this machine, for the survey.

use std::collections::HashMap;
use std::io;

use cap_std::fs::Dir;

use super::survey::Place;
use crate::bits::chunk::{self, Content};
use crate::bits::path::TreePath;
use crate::bits::tree::{self, Seen, Stamp, WalkError, Walker};

/// A directory of this machine, and how its files looked when they were last known.
pub(super) struct Local {
    walker: Walker,
    known: HashMap<TreePath, (u64, Stamp)>,
    /// The name of the destination's staging directory, which may be in it, and is Muster's own.
    staged: TreePath,
    /// All that is there, if it was listed: then nothing is looked at twice.
    listed: Option<HashMap<TreePath, Seen>>,
}

impl Local {
    /// A directory, of which everything is `listed` at once, or each path looked at when it is asked for.
    pub(super) fn new(dir: Dir, known: HashMap<TreePath, (u64, Stamp)>, staged: &str, listed: bool) -> Result<Self, WalkError> {
        let staged = TreePath::from_bytes(staged.as_bytes()).map_err(|error| WalkError::Path(staged.to_owned(), error))?;
        let mut local = Self { walker: Walker::new(dir), known, staged, listed: None };
        if listed {
            local.listed = Some(local.list(None, None)?.into_iter().collect());
        }
        Ok(local)
    }
}

impl Place for Local {
    fn look(&mut self, path: &TreePath) -> io::Result<Option<Seen>> {
        match &self.listed {
            Some(listed) => Ok(listed.get(path).cloned()),
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
        if let (None, None, Some(listed)) = (path, hidden, &self.listed) {
            return Ok(listed.iter().map(|(path, seen)| (path.clone(), seen.clone())).collect());
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
