//! Bringing a directory to what a manifest says.
//!
//! A [`Destination`] knows at a glance whether anything is to be done. A [`Plan`] looks and decides, and finds every conflict before anything
//! is sent; what is missing is verified and [taken](Taker) into a staging directory; [`Plan::switch`] then puts it in place. A destination
//! that is new, or that holds nothing but what Muster put there and changes for the greater part, is put together beside and switched by one
//! rename; in any other files are put one by one. Until then nothing at the destination is different. What leaves it is kept for a while: see
//! [`kept`]. What has been taken stays when a plan is given up, and the next one goes on from there. Everything is done through handles, and
//! no symlink is followed. One destination takes one plan at a time.

pub mod kept;
mod local;
mod old;
mod prepare;
mod staging;
pub(crate) mod survey;
mod switch;
mod taking;
mod whole;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex};

use cap_std::fs::{Dir, File};

use self::kept::Kept;
use self::local::{Local, Looks};
use self::staging::{Staging, Target};
use self::survey::{Steps, Survey};
pub use self::switch::Rest;
use self::taking::Taken;
pub use self::taking::Taker;
use self::whole::Build;
use super::index::{Index, Moment};
use super::ledger::{self, Ledger, LedgerError};
use super::manifest::{Entry, Manifest, ManifestError};
use super::near::ByPath;
use super::pack::PackError;
use super::path::{PathError, TreePath};
use super::scan::Spot;
use super::tree::{self, Seen, WalkError, Walker};
use crate::names::Digest;

/// How a manifest is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Other files are left alone.
    Push,
    /// What was applied there earlier and the manifest lacks is removed.
    Mirror,
    /// Everything that the manifest lacks is removed.
    MirrorDeletingForeign,
}

/// What an apply did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Whether anything is different now: content, kind, mode, or presence.
    pub changed: bool,
    /// Files and symlinks of the manifest.
    pub files: u64,
    /// Files and symlinks that were written, or whose mode was set.
    pub files_changed: u64,
    /// Files and symlinks that were removed, those in the way included.
    pub files_removed: u64,
    /// The sizes of all files of the manifest together.
    pub bytes: u64,
}

/// Why a manifest can not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The destination, or a path that was found below it, can not be.
    #[error("`{path}` can not be a path below the agent's root")]
    Path {
        /// Where.
        path: String,
        /// Why.
        source: PathError,
    },
    /// Something is in the way that Muster did not put there.
    #[error("`{path}` is {found}, which Muster did not put there, where {wanted} is to be")]
    Conflict {
        /// Where.
        path: String,
        /// What is there.
        found: &'static str,
        /// What the manifest wants.
        wanted: &'static str,
    },
    /// The manifest names what is Muster's own.
    #[error("`{0}` is Muster's own and can not be part of a bundle here")]
    Own(String),
    /// The file system refused: the disk is full, a permission is lacking.
    #[error("can not {doing} `{path}`")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file was changed by somebody else between planning and switching, or so that its times did not show it.
    #[error("`{0}` is not what it was taken for, as somebody else changed it; the next try reads every file of the destination")]
    Changed(String),
    /// The chunks of a large file are not that file.
    #[error(
        "the chunks of `{0}` do not make the file that its manifest says: push the bundle to the server again, from the files themselves"
    )]
    Pieces(String),
    /// What is staged is put in place, and somebody else could have staged it.
    #[error(
        "`{0}` was made by somebody else, or others may write to it, so what is in it is not used: find out who made it, and remove it"
    )]
    Planted(String),
    /// More would be removed than the policy allows.
    #[error("{removed} of {there} files would be removed, and `max_delete` is {percent}%")]
    TooMany {
        /// How many.
        removed: u64,
        /// Of how many.
        there: u64,
        /// How many of a hundred may be.
        percent: u8,
    },
    /// The file system does not tell two names apart.
    #[error("`{0}` and `{1}` are one name on this file system, which does not tell upper and lower case apart")]
    CaseClash(String, String),
    /// A content came that was not asked for.
    #[error("content {0} was not asked for")]
    Unwanted(Digest),
    /// A content is not what it was to be.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Contents did not come.
    #[error("{0} contents are still missing")]
    Missing(usize),
    /// The ledger could not be read or written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// With what was put there before it is too much.
    #[error("the destination's ledger")]
    Manifest(#[from] ManifestError),
}

impl From<WalkError> for ApplyError {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Path(path, source) => Self::Path { path, source },
            WalkError::Io(path, source) => Self::Io { doing: "look at", path, source },
        }
    }
}

fn failed(doing: &'static str, path: &impl ToString) -> impl FnOnce(io::Error) -> ApplyError {
    let path = path.to_string();
    move |source| ApplyError::Io { doing, path, source }
}

/// Where a manifest is to be applied, and what is known of it.
pub struct Destination<'a> {
    /// An open directory that the destination lies in.
    pub base: &'a Dir,
    /// The destination, relative to `base`; empty, it is `base` itself.
    pub path: &'a Path,
    /// The agent's state, where ledgers, indices and what is staged are kept.
    pub state: &'a Dir,
    /// What the destination is called there.
    pub key: &'a str,
    /// A path below the destination that is never looked at, touched or removed.
    pub protect: Option<&'a Path>,
    /// Whether every file is read, whatever is known of it.
    pub verify: bool,
}

/// What a plan is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How the manifest is applied.
    pub mode: Mode,
    /// How much of what is there may be removed, in percent of its files.
    pub max_delete_percent: u8,
}

impl Destination<'_> {
    /// What an apply of this version would answer, if it is known that nothing would be changed by it; this takes one look at each entry.
    ///
    /// # Errors
    /// If the destination can not be looked at.
    pub fn unchanged(&self, version: &Digest, mode: Mode) -> Result<Option<Applied>, ApplyError> {
        let trees = ledger::place(self.state)?;
        // What is protected is there and not known to the index, so the directories would always seem to hold more.
        let alone = mode == Mode::MirrorDeletingForeign;
        if self.verify || (alone && self.protect.is_some()) || ledger::is_begun(&trees, self.key) {
            return Ok(None);
        }
        let Some(index) = Index::read(&trees, self.key).filter(|index| index.bundle == *version) else { return Ok(None) };
        if mode != Mode::Push && !index.is_all {
            return Ok(None);
        }
        let mut walker = Walker::new(tree::reopen(self.base).map_err(failed("open", &"."))?);
        let destination = tree_path(self.path)?;
        let Some(top) = walker.directory(destination.as_ref()).map_err(failed("open", &"the destination"))? else { return Ok(None) };
        let mut walker = Walker::new(top.try_clone().map_err(failed("open", &"the destination"))?);
        // What can not be looked at is looked at again, and told.
        let holds = index.still_holds(&mut walker, alone).unwrap_or(false);
        let (files, bytes) = index.sizes();
        Ok(holds.then_some(Applied { files, bytes, ..Applied::default() }))
    }

    /// What was put there.
    ///
    /// # Errors
    /// If the ledger can not be read.
    pub fn ledger(&self) -> Result<Ledger, ApplyError> {
        Ok(Ledger::read(&ledger::place(self.state)?, self.key)?)
    }

    /// The manifest of this version, if the destination was brought to it or to one that is put over it.
    ///
    /// # Errors
    /// If the ledger can not be read.
    pub fn manifest(&self, version: &Digest) -> Result<Option<Manifest>, ApplyError> {
        let trees = ledger::place(self.state)?;
        if ledger::is_begun(&trees, self.key) {
            return Ok(None);
        }
        Ok(ledger::settled_as(&trees, self.key, version)?)
    }

    /// Looks at all of the destination, or at what the index knows of it. What can not be looked at is left for the plan, which says why.
    pub fn ahead(&self, mode: Mode) -> Ahead {
        let mut ahead = Ahead { since: Moment::now(), known: ByPath::default(), looks: Looks::default() };
        let top = || {
            let base = tree::reopen(self.base).ok()?;
            Walker::new(base).directory(tree_path(self.path).ok()?.as_ref()).ok()??.try_clone().ok()
        };
        let Some(top) = top() else { return ahead };
        let trees = ledger::place(self.state).ok().filter(|_| !self.verify);
        let index = trees.and_then(|trees| Index::read(&trees, self.key));
        if self.is_listed(mode) {
            ahead.looks = Looks::all(&top, &staging::name(self.key)).unwrap_or_default();
        } else if let Some(index) = &index {
            ahead.looks = Looks::of(index.paths(), top);
        }
        ahead.known = index.map(|index| index.stamps()).unwrap_or_default();
        ahead
    }

    /// Whether all that is there is listed: what is deleted is found so. What is protected is not to be listed.
    fn is_listed(&self, mode: Mode) -> bool {
        mode == Mode::MirrorDeletingForeign && self.protect.is_none()
    }

    /// Looks at the destination and decides what to do.
    ///
    /// # Errors
    /// As [`plan_with`](Self::plan_with).
    pub fn plan(&self, manifest: Manifest, rules: Rules) -> Result<Plan, ApplyError> {
        self.plan_with(manifest, rules, self.ahead(rules.mode), self.ledger()?)
    }

    /// As [`plan`](Self::plan), with what [`ahead`](Self::ahead) and [`ledger`](Self::ledger) found just before: both can be asked while the
    /// manifest is still on its way.
    ///
    /// # Errors
    /// If something is in the way that may not be replaced: what the ledger knows may be, with [`Mode::MirrorDeletingForeign`] anything
    /// below the destination may; what the destination itself goes through may never. If the manifest names what is protected. If more
    /// would be removed than `rules` allow. If something can not be read.
    pub fn plan_with(&self, manifest: Manifest, rules: Rules, ahead: Ahead, ledger: Ledger) -> Result<Plan, ApplyError> {
        let Ahead { since, known, mut looks } = ahead;
        let destination = tree_path(self.path)?;
        let protect = self.protect.map(tree_path).transpose()?.flatten();
        let base = tree::reopen(self.base).map_err(failed("open", &"."))?;
        let state = tree::reopen(self.state).map_err(failed("open", &"the agent's state"))?;
        let trees = ledger::place(&state)?;
        let staged = staging::name(self.key);
        let (deepest, way) = find(&base, destination.as_ref())?;
        let exists = way == destination;
        let open = |dir: &Dir| dir.try_clone().map_err(failed("open", &"the destination"));
        let staging = Staging::new(&state, open(&deepest)?, way.as_ref(), staged.clone())?;
        let kept = Kept::open(&state, self.key).map_err(failed("open", &"what is kept"))?;
        if let Some(dir) = staging.existing() {
            let mut now = exists.then(|| open(&deepest).map(Walker::new)).transpose()?;
            old::recover(dir, self.key, &kept, &ledger, now.as_mut())?;
            // What that brought back was not there before.
            looks = Looks::default();
        }
        let known = Arc::new(known);
        if exists && self.is_listed(rules.mode) && !looks.is_all {
            looks = Looks::all(&deepest, &staged)?;
        }
        let place = match exists {
            true => Some(Local::new(open(&deepest)?, Arc::clone(&known), looks, &staged)?),
            false => None,
        };
        let steps = Survey {
            manifest: &manifest,
            mode: rules.mode,
            ledger: &ledger,
            protect: protect.as_ref(),
            max_delete_percent: rules.max_delete_percent,
            place,
            steps: Steps::default(),
        };
        let mut steps = steps.steps()?;
        let mut now = Walker::new(deepest);
        // What can not be looked at counts as there.
        let is_there =
            |entry: &Entry| exists && now.look(&entry.path).map_or(true, |seen| seen.is_some_and(|seen| ledger::is(entry, &seen)));
        let after = if rules.mode == Mode::Push { Some(ledger.with(&manifest, is_there)?) } else { None };
        let recorded = after.as_ref().unwrap_or(&manifest);
        let targets = staging::targets(&manifest, &steps.put);
        if let Some(dir) = staging.existing() {
            staging::bring_back(dir, &manifest, &steps.put);
            staging::prune(dir, &manifest, &steps.put).map_err(failed("clear", &"what was staged"))?;
            let there: HashSet<u32> = staging::staged(dir, &manifest, &steps.missing, &targets).into_iter().collect();
            steps.missing.retain(|index| !there.contains(index));
        }
        let found = kept.find(&manifest, &steps.missing).map_err(failed("read", &"what is kept"))?;
        steps.missing.retain(|index| !found.contains_key(index));
        let mut plan = Plan {
            taken: Mutex::new(Taken {
                awaited: steps.missing.iter().filter_map(|index| manifest.contents().get(*index as usize).copied()).collect(),
                placed: HashMap::new(),
            }),
            begun_place: ledger.next_place(recorded),
            is_recorded: ledger.settled() == Some(recorded),
            whole: None,
            ledger,
            kept,
            found,
            exists,
            key: self.key.to_owned(),
            rules,
            base,
            destination,
            trees,
            manifest,
            after,
            steps,
            staging,
            targets,
            known,
            since,
            large: Mutex::default(),
            build: None,
            begun: None,
        };
        plan.whole = plan.can_be_whole(protect.as_ref())?;
        plan.check_case()?;
        Ok(plan)
    }
}

/// What was found of a destination before it was known what is to be there.
pub struct Ahead {
    /// The moment before anything was looked at.
    since: Moment,
    /// How the files looked that were known from before.
    known: ByPath<(u64, tree::Stamp)>,
    /// What was seen.
    looks: Looks,
}

/// What is to be done to bring a destination to what a manifest says.
pub struct Plan {
    base: Dir,
    destination: Option<TreePath>,
    trees: Dir,
    key: String,
    rules: Rules,
    manifest: Manifest,
    /// What the ledger will say, if that is more than the manifest.
    after: Option<Manifest>,
    /// Whether it says that already.
    is_recorded: bool,
    begun_place: usize,
    exists: bool,
    /// The destination, if it is put together anew and switched by one rename.
    whole: Option<TreePath>,
    /// What was put there before.
    ledger: Ledger,
    steps: Steps,
    kept: Kept,
    /// Where missing contents are kept from before.
    found: HashMap<u32, Spot>,
    staging: Staging,
    targets: HashMap<Digest, Vec<Target>>,
    taken: Mutex<Taken>,
    /// How the files looked that were known from before.
    known: Arc<ByPath<(u64, tree::Stamp)>>,
    /// The moment before anything was looked at.
    since: Moment,
    /// The large file that was written to last.
    large: Mutex<Option<(Digest, Arc<File>)>>,
    /// The tree that is being put together, once that was begun.
    build: Option<Build>,
    /// What the ledger is to say, once it was written beside it.
    begun: Option<File>,
}

impl Plan {
    /// The contents that are neither at the destination nor staged, as indices into [`Manifest::contents`], ascending.
    pub fn missing(&self) -> &[u32] {
        &self.steps.missing
    }

    /// What the ledger will say.
    fn after(&self) -> &Manifest {
        self.after.as_ref().unwrap_or(&self.manifest)
    }

    /// What the destination is to become.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Refuses two names that the file system takes for one.
    fn check_case(&mut self) -> Result<(), ApplyError> {
        if self.steps.put.is_empty() {
            return Ok(());
        }
        let mut folded: HashMap<Vec<u8>, &TreePath> = HashMap::new();
        let lower = |path: &TreePath| String::from_utf8_lossy(path.as_bytes()).to_lowercase().into_bytes();
        let clash = self.manifest.entries().iter().find_map(|entry| Some((folded.insert(lower(&entry.path), &entry.path)?, &entry.path)));
        let Some((one, other)) = clash.map(|(one, other)| (one.to_string(), other.to_string())) else { return Ok(()) };
        let staging = self.staging.open()?;
        let is_folding = || {
            staging::create(staging, "Case")?;
            let folded = tree::look(staging, b"cASE")?.is_some();
            staging.remove_file("Case")?;
            Ok(folded)
        };
        match is_folding().map_err(failed("stage", &"a file"))? {
            true => Err(ApplyError::CaseClash(one, other)),
            false => Ok(()),
        }
    }
}

/// A path below a directory; none for the directory itself.
fn tree_path(path: &Path) -> Result<Option<TreePath>, ApplyError> {
    let mut bytes = Vec::new();
    for component in path.components() {
        let name: &OsStr = match component {
            Component::CurDir => continue,
            other => other.as_os_str(),
        };
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name.as_bytes());
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    let shown = super::path::escape(path.as_os_str().as_bytes());
    TreePath::from_bytes(&bytes).map(Some).map_err(|source| ApplyError::Path { path: shown.into_owned(), source })
}

/// The destination, or the deepest directory on its way that exists, with its path.
fn find(base: &Dir, destination: Option<&TreePath>) -> Result<(Dir, Option<TreePath>), ApplyError> {
    let mut dir = base.try_clone().map_err(failed("open", &"."))?;
    let mut path: Option<TreePath> = None;
    for component in destination.iter().flat_map(|destination| destination.components()) {
        let step = path.as_ref().map_or_else(|| TreePath::from_bytes(component), |path| path.join(component));
        let here = step.map_err(|source| ApplyError::Path { path: super::path::escape(component).into_owned(), source })?;
        match tree::look(&dir, component).map_err(failed("look at", &here))? {
            None => return Ok((dir, path)),
            Some(Seen::Directory(_)) => dir = tree::enter(&dir, component).map_err(failed("open", &here))?,
            Some(seen) => {
                return Err(ApplyError::Conflict { path: here.to_string(), found: seen.name(), wanted: "a directory" });
            }
        }
        path = Some(here);
    }
    Ok((dir, path))
}
