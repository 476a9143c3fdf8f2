//! Label → release in force: what is applied, swapped and rolled back, and the compiled modules that stand ready.
//!
//! A release is written to the store first; then one pointer moves. Readers take a whole [`Release`] and keep it to the end of their run.
//! A module that does not compile or link never becomes a release. The release before the one in force stays compiled.

pub mod asked;
pub mod differences;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{OnceCell, Semaphore};

use crate::bits::contents::{Bundle, pack_manifest};
use crate::bits::manifest::Manifest;
use crate::journal::now_us;
use crate::limits::{MANIFEST_BYTES_MAX, MANIFESTS_AT_ONCE, MODULE_BYTES_MAX};
use crate::names::{BundleName, ControllerName, Digest, LabelName, ModuleName, ScriptName, TeamName};
use crate::policy::{LabelPolicy, ModuleRef, PolicyError, differences};
use crate::sandbox::inspect::InspectError;
use crate::sandbox::script::{RUNNER, RUNNER_DIGEST, Script};
use crate::sandbox::{CompileError, Module, Sandbox};
use crate::store::blobs::{BlobError, Blobs};
use crate::store::labels::{NewRelease, ReleaseRow};
use crate::store::modules::ModuleRow;
use crate::store::segments::{SegmentError, Segments};
use crate::store::{Store, StoreError};

use differences::Differences;

/// The releases in force.
pub struct Shelf {
    store: Store,
    blobs: Blobs,
    segments: Segments,
    sandbox: Arc<Sandbox>,
    /// The controllers that a policy may name.
    controllers: BTreeSet<ControllerName>,
    in_force: ArcSwap<BTreeMap<LabelName, Arc<Release>>>,
    /// Modules that were compiled lately: uploaded and perhaps soon applied.
    lately: Mutex<Vec<Module>>,
    /// One change at a time; readers do not wait.
    changing: tokio::sync::Mutex<()>,
    /// Turns to read a manifest.
    reading: Semaphore,
    differences: Differences,
    /// Whether this program's script runner is among the contents.
    runner_kept: OnceCell<()>,
}

/// How many modules stay compiled beyond those in force.
const LATELY_MAX: usize = 16;

/// One release, with all that a run of it needs.
pub struct Release {
    /// The label.
    pub label: LabelName,
    /// Its number, from 1.
    pub number: i64,
    /// Its policy, with module and bundles pinned.
    pub policy: Arc<LabelPolicy>,
    /// What stands ready, or why it does not.
    pub ready: Result<Ready, String>,
    /// The module of the release before, so that a rollback need not compile it.
    _previous: Option<Module>,
}

/// What stands ready for the runs of a release.
#[derive(Clone)]
pub struct Ready {
    /// The module.
    pub module: Module,
    /// The bundles.
    pub bundles: BTreeMap<BundleName, Bundle>,
}

/// Who asks for a change.
#[derive(Debug, Clone)]
pub struct Author {
    /// The token's id.
    pub token: String,
    /// The team that the token acts for; none for an admin.
    pub team: Option<TeamName>,
}

/// What a change came to.
#[derive(Debug)]
pub struct Change {
    /// The release that was made; none if nothing differs or only a preview was asked for.
    pub release: Option<i64>,
    /// The release in force until then.
    pub previous: Option<i64>,
    /// What differs, a line each.
    pub differences: Vec<String>,
    /// What the module asks for and the policy does not grant, a line each.
    pub not_granted: Vec<String>,
}

/// Why a change is not made.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// The policy contradicts itself or a limit.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy names what is not there.
    #[error("{0}")]
    Unknown(String),
    /// The label has no release.
    #[error("label `{0}` has no release yet")]
    NoRelease(LabelName),
    /// The caller's team may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// Somebody else made a release in between.
    #[error("another release of this label was made at the same time")]
    Raced,
    /// The module is none.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] StoreError),
    /// The contents failed.
    #[error("the contents failed")]
    Blobs(#[from] BlobError),
    /// A bundle's contents failed.
    #[error("the contents failed")]
    Segments(#[from] SegmentError),
    /// A manifest that was checked when it came does not read any more.
    #[error("the manifest of bundle `{0}` is damaged")]
    Damaged(String),
}

impl From<StoreError> for ShelfError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Shelf {
    /// Loads the releases in force and compiles their modules, from the cache where they were compiled before.
    ///
    /// A release whose module or bundle can not be had is put on the shelf with the reason; its label's agents are told.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn load(
        store: Store,
        blobs: Blobs,
        segments: Segments,
        sandbox: Arc<Sandbox>,
        controllers: BTreeSet<ControllerName>,
    ) -> Result<Self, ShelfError> {
        let shelf = Self {
            store,
            blobs,
            segments,
            sandbox,
            controllers,
            in_force: ArcSwap::default(),
            lately: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            reading: Semaphore::new(MANIFESTS_AT_ONCE),
            differences: Differences::default(),
            runner_kept: OnceCell::new(),
        };
        let mut in_force = BTreeMap::new();
        for row in shelf.store.current_releases().await? {
            in_force.extend(shelf.recorded(&row).await.map(|release| (row.label.clone(), Arc::new(release))));
        }
        shelf.in_force.store(Arc::new(in_force));
        Ok(shelf)
    }

    /// A recorded release, made ready as far as it can be; none if its policy can not be read.
    async fn recorded(&self, row: &ReleaseRow) -> Option<Release> {
        let label = &row.label;
        let policy = match serde_json::from_str::<LabelPolicy>(&row.policy) {
            Ok(policy) => policy,
            Err(error) => {
                tracing::error!(label = %label, release = row.release, %error, "a release's policy can not be read; the label is passed over");
                return None;
            }
        };
        let ready = self.make_ready(&policy).await.map_err(|error| {
            tracing::error!(label = %label, release = row.release, error = chain(&error), "a release can not be made ready");
            format!("release {} can not be made ready: {}", row.release, chain(&error))
        });
        Some(Release { label: label.clone(), number: row.release, policy: Arc::new(policy), ready, _previous: None })
    }

    /// Takes over the release of a label that the store has in force and this memory has not: its transaction was done, and the answer lost.
    async fn catch_up(&self, label: &LabelName) -> Result<(), ShelfError> {
        for row in self.store.current_releases().await?.iter().filter(|row| row.label == *label) {
            if let Some(release) = self.recorded(row).await {
                self.put_in_force(release);
            }
        }
        Ok(())
    }

    fn put_in_force(&self, release: Release) {
        let mut in_force = BTreeMap::clone(&self.in_force.load());
        in_force.insert(release.label.clone(), Arc::new(release));
        self.in_force.store(Arc::new(in_force));
    }

    /// The release of a label that is in force now.
    pub fn release(&self, label: &LabelName) -> Option<Arc<Release>> {
        self.in_force.load().get(label).cloned()
    }

    /// The releases in force now, by label.
    pub fn releases(&self) -> Arc<BTreeMap<LabelName, Arc<Release>>> {
        self.in_force.load_full()
    }

    /// Compiles a component, and keeps it under a name. The same bytes under the same name are kept once.
    ///
    /// # Errors
    /// When it is no module, the name is another team's, or the store fails.
    pub async fn upload(&self, name: ModuleName, team: TeamName, bytes: Bytes) -> Result<(ModuleRow, bool), ShelfError> {
        // What a script's bytes say of their runner is this server's to say.
        if Script::is(&bytes) {
            return Err(CompileError::Inspect(InspectError::NotWasm).into());
        }
        self.keep_module(name, team, bytes).await
    }

    /// Reads a script, and keeps it as a module under a name. The same text from a file of the same name is kept once.
    ///
    /// # Errors
    /// When it is no script, with the place where it is wrong; when the name is another team's, or the store fails.
    pub async fn upload_script(
        &self,
        name: ModuleName,
        team: TeamName,
        file: ScriptName,
        text: Bytes,
    ) -> Result<(ModuleRow, bool), ShelfError> {
        let script = Script::new(file, &text).map_err(CompileError::from)?;
        // A later version of this program has another runner, and this script goes on with its own.
        let kept = async || self.blobs.put(&RUNNER_DIGEST, Bytes::from_static(RUNNER)).await.map(drop);
        self.runner_kept.get_or_try_init(kept).await?;
        self.keep_module(name, team, script.bytes()).await
    }

    async fn keep_module(&self, name: ModuleName, team: TeamName, bytes: Bytes) -> Result<(ModuleRow, bool), ShelfError> {
        let module = self.sandbox.compile(bytes.clone()).await?;
        let (digest, about) = (module.digest(), module.about().clone());
        let row = ModuleRow {
            digest,
            name,
            team,
            size_bytes: bytes.len() as u64,
            world: about.world.unwrap_or_default(),
            imports: about.imports,
            language: about.language,
            asks: about.asks,
            uploaded_us: now_us(),
        };
        self.blobs.put(&digest, bytes).await?;
        let new = self.store.insert_module(&row).await.map_err(taken)?;
        self.keep(module);
        let kept = self.store.module(&row.name, &digest).await?;
        Ok((kept.unwrap_or(row), new))
    }

    /// Applies a policy to a label, or says what that would change.
    ///
    /// # Errors
    /// When the policy is wrong, names what is not there, is beyond what the author may do, or its module does not compile.
    pub async fn apply(&self, author: &Author, label: &LabelName, policy: LabelPolicy, preview: bool) -> Result<Change, ShelfError> {
        self.change(author, label, policy, "applied", None, preview).await
    }

    /// Puts another module into the policy in force.
    ///
    /// # Errors
    /// As [`Shelf::apply`], and when the label has no release.
    pub async fn swap(&self, author: &Author, label: &LabelName, module: ModuleRef, preview: bool) -> Result<Change, ShelfError> {
        let in_force = self.in_force_of(author, label)?;
        let policy = LabelPolicy { module, ..(*in_force.policy).clone() };
        self.change(author, label, policy, "swapped", Some(in_force.number), preview).await
    }

    /// Makes an earlier release's policy a new release: `to`, or the one before the release in force.
    ///
    /// # Errors
    /// As [`Shelf::apply`], and when there is no such release.
    pub async fn rollback(&self, author: &Author, label: &LabelName, to: Option<i64>, preview: bool) -> Result<Change, ShelfError> {
        let in_force = self.in_force_of(author, label)?;
        let to = to.unwrap_or(in_force.number - 1);
        let row = self.store.release(label, to).await?;
        let row = row.ok_or_else(|| ShelfError::Unknown(format!("label `{label}` has no release {to} to roll back to")))?;
        let policy = read_policy(&row)?;
        self.change(author, label, policy, &format!("rolled back to {to}"), Some(in_force.number), preview).await
    }

    /// The release to begin from. To a team, a label of another one is as one that is not there.
    fn in_force_of(&self, author: &Author, label: &LabelName) -> Result<Arc<Release>, ShelfError> {
        let release = self.release(label);
        match &author.team {
            Some(team) => release.filter(|release| release.policy.team == *team).ok_or_else(|| not_the_teams(label, team)),
            None => release.ok_or_else(|| ShelfError::NoRelease(label.clone())),
        }
    }

    async fn change(
        &self,
        author: &Author,
        label: &LabelName,
        mut policy: LabelPolicy,
        how: &str,
        base: Option<i64>,
        preview: bool,
    ) -> Result<Change, ShelfError> {
        policy.check()?;
        let _one_at_a_time = self.changing.lock().await;
        let before = self.release(label);
        // What was made from a release that is not in force any more would undo the one that is.
        if base.is_some() && base != before.as_ref().map(|release| release.number) {
            return Err(ShelfError::Raced);
        }
        permit(author, label, before.as_deref(), &policy)?;
        self.pin(author, before.as_ref().map(|release| &*release.policy), &mut policy).await?;
        let previous = before.as_ref().map(|release| release.number);
        let mut lines = differences(before.as_ref().map(|release| &*release.policy), &policy);
        // The same policy again makes no release, unless the one in force is broken and may be mended by this.
        let same = before.as_ref().is_some_and(|release| release.ready.is_ok() && *release.policy == policy);
        if let Some(Err(reason)) = before.as_ref().map(|release| &release.ready) {
            lines.push(format!("! made anew: {reason}"));
        }
        let ready = self.make_ready(&policy).await?;
        let asks = ready.module.about().asks.as_ref();
        let not_granted = asks.map(|asks| asked::not_granted(asks, &policy.grants)).unwrap_or_default();
        if preview || same {
            return Ok(Change { release: None, previous, differences: lines, not_granted });
        }
        let text = serde_json::to_string(&policy).map_err(|_| ShelfError::Damaged(label.to_string()))?;
        let row = NewRelease {
            label: label.clone(),
            team: policy.team.clone(),
            policy: text,
            module: ready.module.digest(),
            how: how.to_owned(),
            made_by: author.token.clone(),
            made_us: now_us(),
        };
        let number = match self.store.add_release(&row, previous).await {
            Ok(number) => number,
            Err(StoreError::Conflict(_)) => {
                self.catch_up(label).await?;
                return Err(ShelfError::Raced);
            }
            Err(error) => return Err(error.into()),
        };
        let former = before.and_then(|release| release.ready.as_ref().ok().map(|ready| ready.module.clone()));
        let release = Release { label: label.clone(), number, policy: Arc::new(policy), ready: Ok(ready), _previous: former };
        self.put_in_force(release);
        tracing::info!(label = %label, release = number, by = author.token, how, "release {number} of label {label} is in force");
        Ok(Change { release: Some(number), previous, differences: lines, not_granted })
    }

    /// Names the versions that the policy leaves open, and checks that the ones it names are there and the author's to use.
    async fn pin(&self, author: &Author, before: Option<&LabelPolicy>, policy: &mut LabelPolicy) -> Result<(), ShelfError> {
        // What another team has is to this one as if it were not there, so that names can not be tried out; unless an admin gave it to
        // the label before.
        let own = |team: &TeamName| author.team.as_ref().is_none_or(|own| own == team);
        if let Some(controller) = policy.launch.controller.as_ref().filter(|controller| !self.controllers.contains(controller)) {
            return Err(ShelfError::Unknown(format!(
                "there is no controller `{controller}`; an admin adds `[controller.{controller}]` to muster.toml"
            )));
        }
        let name = &policy.module.name;
        let row = match &policy.module.digest {
            Some(digest) => self.store.module(name, digest).await?,
            None => self.store.module_newest(name).await?,
        };
        let given = before.is_some_and(|before| before.module.name == *name);
        let row = row.filter(|row| given || own(&row.team));
        let row =
            row.ok_or_else(|| ShelfError::Unknown(format!("there is no module `{}`; `muster module push` uploads one", policy.module)))?;
        policy.module.digest = Some(row.digest);
        for bundle in &mut policy.bundles {
            let row = match &bundle.version {
                Some(version) => self.store.bundle(&bundle.name, version).await?,
                None => self.store.bundle_newest(&bundle.name).await?,
            };
            let given = before.is_some_and(|before| before.bundles.iter().any(|other| other.name == bundle.name));
            let row = row.filter(|row| given || own(&row.team));
            let row = row.ok_or_else(|| ShelfError::Unknown(format!("there is no bundle `{bundle}`; `muster bundle push` makes one")))?;
            bundle.version = Some(row.version);
        }
        Ok(())
    }

    /// Compiles and loads what a pinned policy needs.
    async fn make_ready(&self, policy: &LabelPolicy) -> Result<Ready, ShelfError> {
        let digest = policy.module.digest.ok_or_else(|| ShelfError::Unknown("the policy's module is not pinned".into()))?;
        let module = self.module(digest).await?;
        let mut bundles: BTreeMap<BundleName, Bundle> = BTreeMap::new();
        for reference in &policy.bundles {
            let version = reference.version.ok_or_else(|| ShelfError::Unknown("the policy's bundle is not pinned".into()))?;
            bundles.insert(reference.name.clone(), self.bundle(&reference.name, version).await?);
        }
        Ok(Ready { module, bundles })
    }

    /// Loads a version of a bundle, unless a release in force has it.
    ///
    /// # Errors
    /// When it is not there whole, or the store fails.
    pub async fn bundle(&self, name: &BundleName, version: Digest) -> Result<Bundle, ShelfError> {
        let loaded = {
            let releases = self.in_force.load();
            let ready = releases.values().filter_map(|release| release.ready.as_ref().ok());
            ready.filter_map(|ready| ready.bundles.get(name)).find(|bundle| bundle.version == version).cloned()
        };
        if let Some(bundle) = loaded {
            return Ok(bundle);
        }
        // The semaphore is never closed.
        let _turn = self.reading.acquire().await.ok();
        let text = self.blobs.get(&version, MANIFEST_BYTES_MAX).await?;
        // A large one takes seconds.
        let prepare = move || Some((pack_manifest(&text).ok()?, Manifest::parse(&text).ok()?));
        let prepared = tokio::task::spawn_blocking(prepare).await.ok().flatten();
        let (packed, manifest) = prepared.ok_or_else(|| ShelfError::Damaged(name.to_string()))?;
        let contents = self.segments.of(&manifest).await?;
        Ok(Bundle::new(name.clone(), manifest, contents).with_packed_manifest(packed))
    }

    async fn module(&self, digest: Digest) -> Result<Module, ShelfError> {
        let kept = self.lately.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|module| module.digest() == digest).cloned();
        let in_force = || {
            let releases = self.in_force.load();
            releases
                .values()
                .filter_map(|release| release.ready.as_ref().ok())
                .map(|ready| &ready.module)
                .find(|module| module.digest() == digest)
                .cloned()
        };
        if let Some(module) = kept.or_else(in_force) {
            return Ok(module);
        }
        let bytes = self.blobs.get(&digest, MODULE_BYTES_MAX).await?;
        let module = match self.sandbox.compile_known(bytes.clone()).await {
            // It was pushed to another version of this program, which left its runner here.
            Err(CompileError::NoRunner(runner)) => {
                self.sandbox.take_runner(self.blobs.get(&runner, MODULE_BYTES_MAX).await?).await?;
                self.sandbox.compile_known(bytes).await?
            }
            other => other?,
        };
        self.keep(module.clone());
        Ok(module)
    }

    /// The script that a module is; none if it is a component.
    ///
    /// # Errors
    /// When its bytes can not be had.
    pub async fn script(&self, digest: Digest) -> Result<Option<Script>, ShelfError> {
        let bytes = self.blobs.get(&digest, MODULE_BYTES_MAX).await?;
        if !Script::is(&bytes) {
            return Ok(None);
        }
        Ok(Some(Script::read(&bytes).map_err(CompileError::from)?))
    }

    fn keep(&self, module: Module) {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.retain(|other| other.digest() != module.digest());
        lately.insert(0, module);
        lately.truncate(LATELY_MAX);
    }
}

fn taken(error: StoreError) -> ShelfError {
    match error {
        StoreError::Conflict(why) => ShelfError::Forbidden(why),
        other => ShelfError::Store(other),
    }
}

/// Reads a policy that was recorded.
fn read_policy(row: &ReleaseRow) -> Result<LabelPolicy, ShelfError> {
    serde_json::from_str(&row.policy).map_err(|_| ShelfError::Damaged(format!("{} release {}", row.label, row.release)))
}

fn not_the_teams(label: &LabelName, team: &TeamName) -> ShelfError {
    ShelfError::Forbidden(format!("label `{label}` is not one of team `{team}`; an admin makes it the team's by applying its first policy"))
}

/// What a team may change of its own label: everything that an admin's grants and limits cover already.
fn permit(author: &Author, label: &LabelName, before: Option<&Release>, after: &LabelPolicy) -> Result<(), ShelfError> {
    let Some(team) = &author.team else { return Ok(()) };
    let forbidden = |what: String| Err(ShelfError::Forbidden(what));
    let Some(before) = before.filter(|before| before.policy.team == *team) else {
        return Err(not_the_teams(label, team));
    };
    let before = &before.policy;
    if after.team != before.team {
        return forbidden(format!("label `{label}` can be given to another team by an admin alone"));
    }
    let wider = [
        ("run", wider(&before.grants.run, &after.grants.run, |glob| glob.as_str())),
        ("write", wider(&before.grants.write, &after.grants.write, |glob| glob.as_str())),
        ("read", wider(&before.grants.read, &after.grants.read, |glob| glob.as_str())),
        ("secrets", wider(&before.grants.secrets, &after.grants.secrets, |name| name.as_str())),
    ];
    if let Some((kind, grant)) = wider.into_iter().find_map(|(kind, grant)| Some((kind, grant?))) {
        return forbidden(format!("`grants.{kind}` gains `{grant}`; an admin has to apply what widens the grants"));
    }
    let (was, is) = (before.limits, after.limits);
    if is.memory_mib > was.memory_mib || is.cpu_ms > was.cpu_ms || is.run_seconds > was.run_seconds || is.calls > was.calls {
        return forbidden("a limit is raised; an admin has to apply what raises limits".into());
    }
    if after.max_delete > before.max_delete {
        return forbidden("`max_delete` is raised; an admin has to apply that".into());
    }
    if after.place_agent && !before.place_agent {
        return forbidden("`place_agent` is set; an admin has to apply that".into());
    }
    if after.mirror_foreign != before.mirror_foreign {
        return forbidden("`mirror_foreign` is changed; an admin has to apply that".into());
    }
    if after.launch.controller.is_some() && after.launch.controller != before.launch.controller {
        return forbidden("`launch.controller` is changed; an admin has to apply that".into());
    }
    if after.launch.node_name != before.launch.node_name {
        return forbidden("`launch.node_name` is changed; an admin has to apply that".into());
    }
    // What is launched runs on the machine like what a module runs, so a team's own choice needs the same grant.
    let command = after.launch.command.as_ref().and_then(|command| command.first());
    let started = [
        ("command", command, after.launch != before.launch),
        ("java", after.launch.java.as_ref(), after.launch.java != before.launch.java),
    ];
    for (field, program, is_changed) in started {
        let Some(program) = program.filter(|_| is_changed) else { continue };
        if !after.grants.run.iter().any(|glob| glob.grants("", program) || glob.as_str() == program) {
            return forbidden(format!("`grants.run` does not have `{program}`, which `launch.{field}` starts"));
        }
    }
    Ok(())
}

/// The first grant that the new list has and the old one lacks.
fn wider<T: PartialEq>(before: &[T], after: &[T], text: impl Fn(&T) -> &str) -> Option<String> {
    after.iter().find(|grant| !before.contains(grant)).map(|grant| text(grant).to_owned())
}

/// An error with its causes, for a log line or a recorded reason.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
