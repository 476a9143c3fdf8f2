//! Taking down a tree that was switched out: what is worth it is kept, and what others put there while it was at the destination goes on to
//! the new tree.
//!
//! Only what is known to be Muster's is removed, file by file and directory by directory. So what somebody writes there meanwhile is left
//! over, and never lost.

use std::io;

use cap_std::fs::{Dir, DirBuilder, DirBuilderExt as _};
use rustix::fs::{RenameFlags, renameat_with};

use super::kept::Kept;
use super::staging::{self, OLD, file_of};
use super::{ApplyError, Plan, failed};
use crate::bits::index::is_same;
use crate::bits::ledger::Ledger;
use crate::bits::path::TreePath;
use crate::bits::tree::{self, Seen, Walker};

impl Plan {
    /// Takes down the tree that was switched out, if one was; `keeping` is where it is kept.
    pub(super) fn take_down(&self, new: &mut Walker, keeping: Option<&Dir>) -> Result<(), ApplyError> {
        let Some(staging) = self.staging.existing() else { return Ok(()) };
        let before = self.ledger.last_settled();
        let keep = |dir: &Dir, path: &TreePath, seen: &Seen| {
            let (Some(keeping), Seen::File { size, stamp, .. }) = (keeping, seen) else { return false };
            let Some((was, _, digest)) = before.and_then(|before| before.get(path)).and_then(file_of) else { return false };
            let stays = self.manifest.get(path).and_then(file_of).is_some_and(|(_, _, now)| now == digest);
            if stays || was != *size {
                return false;
            }
            let known = self.known.get(path).is_some_and(|(was, before)| is_same(*was, *before, *size, *stamp));
            // What is not what it was is not kept: it would not be what its name says.
            let name = tree::name(path.name());
            (known || tree::holds(dir, path.name(), &digest)) && super::kept::take_in(keeping, dir, name, &digest).is_ok()
        };
        let known = |path: &TreePath, seen: &Seen| self.ledger.put(path, seen);
        take_down(staging, &self.key, &self.kept, Old { known: &known, keep: &keep, new: Some(new), modes: Vec::new() })
    }
}

/// Takes down a tree that an apply which was cut off had switched out; `new` is what is at the destination now.
pub(super) fn recover(staging: &Dir, key: &str, kept: &Kept, ledger: &Ledger, new: Option<&mut Walker>) -> Result<(), ApplyError> {
    // What it was is written down in what is kept, if it was settled already that it is something else now.
    let before: Vec<_> = kept.generations().iter().filter_map(|number| kept.manifest(*number).ok()).collect();
    let before = Ledger::new(None, before);
    let known = |path: &TreePath, seen: &Seen| ledger.put(path, seen) || before.put(path, seen);
    take_down(staging, key, kept, Old { known: &known, keep: &|_, _, _| false, new, modes: Vec::new() })
}

fn take_down(staging: &Dir, key: &str, kept: &Kept, mut old: Old<'_>) -> Result<(), ApplyError> {
    let Some(Seen::Directory(mode)) = tree::look(staging, OLD.as_bytes()).map_err(failed("look at", &"the old tree"))? else {
        return Ok(());
    };
    let is_gone = old.directory(staging, None, OLD.as_bytes(), mode);
    if !is_gone {
        let place = kept.set_aside(staging, OLD).map_err(failed("keep what others have in", &"the old tree"))?;
        tracing::warn!(
            sync.destination = key,
            "`{place}` of the agent's state has what is left of the tree that `{key}` was: it is others', and has no place in the new one"
        );
    }
    Ok(())
}

/// Whether something is Muster's own.
type Known<'a> = &'a dyn Fn(&TreePath, &Seen) -> bool;
/// Keeps a file of a directory, and answers whether it is there no more.
type Keep<'a> = &'a dyn Fn(&Dir, &TreePath, &Seen) -> bool;

/// A tree that is not at the destination any more.
struct Old<'a> {
    known: Known<'a>,
    keep: Keep<'a>,
    /// The tree that is there now.
    new: Option<&'a mut Walker>,
    /// The modes of the directories on the way to where it is taken down.
    modes: Vec<u32>,
}

impl Old<'_> {
    /// Takes down a directory, and answers whether it is gone.
    fn directory(&mut self, parent: &Dir, path: Option<&TreePath>, name: &[u8], mode: u32) -> bool {
        staging::loosen(parent, tree::name(name), mode);
        let Ok(dir) = tree::enter(parent, name) else { return false };
        let list = || dir.entries()?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
        let Ok(names) = list() else { return false };
        self.modes.extend(path.map(|_| mode));
        for name in names {
            let name = name.as_encoded_bytes();
            // What can be no path of a bundle is nobody's of Muster.
            let Ok(path) = path.map_or_else(|| TreePath::from_bytes(name), |path| path.join(name)) else { continue };
            let Ok(Some(seen)) = tree::look(&dir, name) else { continue };
            match (&seen, (self.known)(&path, &seen)) {
                (Seen::Directory(mode), true) => {
                    self.directory(&dir, Some(&path), name, *mode);
                }
                (_, true) => {
                    if !(self.keep)(&dir, &path, &seen) {
                        let _ = dir.remove_file(tree::name(name));
                    }
                }
                // One that is in both goes over piece by piece.
                (Seen::Directory(mode), false) if self.give(&dir, &path).is_err() && self.has_directory(&path) => {
                    self.directory(&dir, Some(&path), name, *mode);
                }
                (Seen::Directory(_), false) => {}
                (_, false) => {
                    let _ = self.give(&dir, &path);
                }
            }
        }
        if path.is_some() {
            self.modes.pop();
        }
        // One that is full has what could not be given on.
        parent.remove_dir(tree::name(name)).is_ok()
    }

    /// Moves what is not Muster's to the same path of the new tree, if nothing is in its way there.
    fn give(&mut self, dir: &Dir, path: &TreePath) -> io::Result<()> {
        let Some(new) = &mut self.new else { return Err(io::ErrorKind::NotFound.into()) };
        let above: Vec<_> = std::iter::successors(path.parent(), TreePath::parent).collect();
        for (above, mode) in above.iter().rev().zip(&self.modes) {
            if new.directory(Some(above))?.is_none()
                && let Some(parent) = new.directory(above.parent().as_ref())?
            {
                parent.create_dir_with(tree::name(above.name()), DirBuilder::new().mode(*mode))?;
            }
        }
        let to = new.directory(path.parent().as_ref())?.ok_or(io::ErrorKind::NotFound)?;
        let name = tree::name(path.name());
        match renameat_with(dir, name, to, name, RenameFlags::NOREPLACE) {
            // Not every file system can.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if tree::look(to, path.name())?.is_none() => {
                dir.rename(name, to, name)
            }
            renamed => Ok(renamed?),
        }
    }

    fn has_directory(&mut self, path: &TreePath) -> bool {
        self.new.as_mut().is_some_and(|new| matches!(new.look(path), Ok(Some(Seen::Directory(_)))))
    }
}
