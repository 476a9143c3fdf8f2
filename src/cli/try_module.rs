//! `muster module try`: a module runs against a directory of this machine, through the same gate, with no server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use serde::Serialize;

use crate::agent::Signals;
use crate::api::LogLine;
use crate::bits::contents::{Bundle, DirectoryContents};
use crate::bits::scan::scan;
use crate::cli::output::Output;
use crate::cli::{CliError, module_file, program};
use crate::journal::{self, Asked, Entry, Recorder, Taken};
use crate::link::local::Local;
use crate::machine::exec::Environment;
use crate::machine::root::Root;
use crate::names::BundleName;
use crate::policy::{LabelPolicy, parse_file};
use crate::sandbox::compiler::Compiler;
use crate::sandbox::{Outcome, Registration, RunInputs, Sandbox, Verdict};

/// The policy of a trial: everything that this machine's user may do is granted, and writing stays below the root all the same.
const POLICY: &str = r#"
[label.try]
team = "try"
module = "try"

[label.try.grants]
run = ["/**"]
write = ["**"]
read = ["/**"]
"#;

/// What `muster module try` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The module
    file: PathBuf,
    /// The directory that stands for the agent's root; the module writes below it and nowhere else
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    #[command(flatten)]
    given: Given,
}

/// What a module is given besides its root, where no policy and no server says it.
#[derive(Debug, clap::Args)]
pub(super) struct Given {
    /// A bundle, from a directory
    #[arg(long, value_name = "NAME=DIR", value_parser = pair::<BundleName>)]
    bundle: Vec<(BundleName, String)>,
    /// A setting
    #[arg(long, value_name = "K=V", value_parser = pair::<String>)]
    set: Vec<(String, String)>,
}

fn pair<K: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<(K, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` has no `=`"))?;
    Ok((key.parse().map_err(|error: K::Err| error.to_string())?, value.to_owned()))
}

/// What came of a trial, as JSON.
#[derive(Debug, Serialize)]
struct Tried {
    verdict: &'static str,
    reason: Option<String>,
    milliseconds: u64,
    calls: u32,
    launch: Option<Vec<String>>,
    /// The grants that a policy needs for the calls that were made.
    grants: Used,
}

#[derive(Debug, Default, Serialize)]
struct Used {
    run: BTreeSet<String>,
    write: BTreeSet<String>,
    read: BTreeSet<String>,
    secrets: BTreeSet<String>,
    bundles: BTreeSet<String>,
}

/// Runs a module against a directory of this machine.
pub(crate) async fn run(args: Args, output: &mut Output) -> Result<(), CliError> {
    let trial = Trial::new(&args.root, &args.given)?;
    let bytes = module_file::read(&args.file)?;
    let sandbox = Sandbox::new(compiler(), 1).map_err(|error| CliError::failed("start the sandbox", error))?;
    let what = format!("use {}", args.file.display());
    let module = sandbox.compile(bytes).await.map_err(|error| CliError::failed(what, error))?;
    let shown_root = trial.registration.root.clone();
    let (recorder, records) = journal::channel();
    let inputs = trial.inputs(recorder);
    let began = std::time::Instant::now();
    let mut used = Used::default();
    let mut signals = Signals::new().map_err(|error| CliError::failed("listen for signals", error))?;
    let outcome = {
        let mut running = std::pin::pin!(sandbox.run(&module, inputs));
        loop {
            tokio::select! {
                outcome = &mut running => break Some(outcome),
                () = records.gathered() => tell(records.take(), &mut used, &shown_root, output)?,
                () = signals.next() => break None,
            }
        }
    };
    let Some(outcome) = outcome else {
        // With the run what it started on this machine is ended.
        sandbox.end().await;
        return Err(CliError::failed("try the module to its end", "it was told to end"));
    };
    tell(records.take(), &mut used, &shown_root, output)?;
    let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let lacking: Vec<&String> =
        used.bundles.iter().filter(|name| !args.given.bundle.iter().any(|(given, _)| given.as_str() == *name)).collect();
    for name in lacking {
        output.aside(&format!("the module opens the bundle `{name}`; `--bundle {name}=DIR` gives it one"))?;
    }
    finish(outcome, milliseconds, used, output)
}

/// The compiler of a trial: as the server has it, so that what takes too much is told here already, and a module that was tried before is
/// not compiled again. Without a directory for its cache there is none, and each trial compiles.
fn compiler() -> Option<Compiler> {
    #[expect(clippy::disallowed_methods, reason = "this is the room that reads the environment")]
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache")))?;
    let cache = caches.join("muster/compiled");
    std::fs::create_dir_all(&cache).ok()?;
    Some(Compiler { program: program().ok()?, cache })
}

/// What the runs of a module on this machine have in common.
pub(super) struct Trial {
    pub(super) registration: Registration,
    policy: Arc<LabelPolicy>,
    bundles: BTreeMap<BundleName, Bundle>,
    link: Arc<Local>,
}

impl Trial {
    /// Opens the root and the bundles.
    pub(super) fn new(root: &Path, given: &Given) -> Result<Self, CliError> {
        twice("--bundle", given.bundle.iter().map(|(name, _)| name.as_str()))?;
        twice("--set", given.set.iter().map(|(name, _)| name.as_str()))?;
        let opened = Root::open(root, &[]).map_err(|error| CliError::failed(format!("open {}", root.display()), error))?;
        Ok(Self {
            registration: registration(opened.path()),
            policy: Arc::new(policy(given)?),
            bundles: bundles(given)?,
            #[expect(clippy::disallowed_methods, reason = "this is the room that reads the environment")]
            link: Arc::new(Local::new(opened, Environment::read(|name| std::env::var_os(name)))),
        })
    }

    /// What one run is given.
    pub(super) fn inputs(&self, recorder: Recorder) -> RunInputs {
        RunInputs {
            registration: self.registration.clone(),
            policy: Arc::clone(&self.policy),
            bundles: self.bundles.clone(),
            secrets: None,
            link: self.link.clone(),
            recorder,
        }
    }
}

fn twice<'a>(option: &str, names: impl Iterator<Item = &'a str>) -> Result<(), CliError> {
    let mut seen = BTreeSet::new();
    match names.into_iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(CliError::usage(format!("`{option} {name}=…` is given twice"), "give it once")),
        None => Ok(()),
    }
}

fn registration(root: &Path) -> Registration {
    let system = rustix::system::uname();
    Registration {
        name: "try".into(),
        label: "try".into(),
        labels: vec!["try".into()],
        executors: 1,
        root: root.display().to_string(),
        os: system.sysname().to_string_lossy().to_lowercase(),
        arch: system.machine().to_string_lossy().into_owned(),
        attempt: 1,
        ..Registration::default()
    }
}

fn policy(given: &Given) -> Result<LabelPolicy, CliError> {
    let policy = parse_file(POLICY).ok().and_then(|policies| policies.into_values().next());
    let policy = policy.ok_or_else(|| CliError::failed("try the module", "its policy can not be read"))?;
    Ok(LabelPolicy { settings: given.set.iter().cloned().collect(), ..policy })
}

fn bundles(given: &Given) -> Result<BTreeMap<BundleName, Bundle>, CliError> {
    let mut bundles = BTreeMap::new();
    for (name, path) in &given.bundle {
        let what = format!("read {path}");
        let dir = Dir::open_ambient_dir(path, ambient_authority()).map_err(|error| CliError::failed(what.clone(), error))?;
        let (manifest, spots) = scan(&dir, &mut |_| {}).map_err(|error| CliError::failed(what, error))?;
        let contents = Arc::new(DirectoryContents::new(dir, &manifest, &spots));
        bundles.insert(name.clone(), Bundle::new(name.clone(), manifest, contents));
    }
    Ok(bundles)
}

fn tell(taken: Taken, used: &mut Used, root: &str, output: &mut Output) -> Result<(), CliError> {
    for line in taken.lines {
        let line = LogLine { seq: line.seq, at_us: line.at_us, level: line.level.as_str().into(), text: line.text };
        if output.json() {
            output.value_line(&line)?;
        } else {
            output.line(&format!("{} {:<6} {}", output.clock(line.at_us), line.level, line.text))?;
        }
    }
    for (_, entry) in taken.entries {
        if let Ok(Entry::Asked { asked, .. }) = serde_json::from_str(&entry) {
            used.add(asked, root);
        }
    }
    Ok(())
}

impl Used {
    fn add(&mut self, asked: Asked, root: &str) {
        // As a policy has it: below the root where it is, since another agent's root is elsewhere.
        let below = |path: String| match path.strip_prefix(root.trim_end_matches('/')).and_then(|rest| rest.strip_prefix('/')) {
            Some(rest) if !rest.is_empty() => rest.to_owned(),
            _ => path,
        };
        match asked {
            Asked::Probe { command } | Asked::Run { command } | Asked::Launch { command } => self.run.insert(below(command.program)),
            Asked::ReadFile { path } | Asked::Exists { path } => self.read.insert(below(path)),
            Asked::WriteFile { path, .. } | Asked::Remove { path } => self.write.insert(below(path)),
            Asked::Push { destination, .. } | Asked::Mirror { destination, .. } => self.write.insert(below(format!("{destination}/**"))),
            Asked::OpenSecret { name } => self.secrets.insert(name),
            Asked::OpenBundle { name } => self.bundles.insert(name),
            Asked::Stop {} | Asked::ReadBundle { .. } => false,
        };
    }
}

fn finish(outcome: Outcome, milliseconds: u64, used: Used, output: &mut Output) -> Result<(), CliError> {
    let launch = outcome.launch.map(|command| std::iter::once(command.program).chain(command.args).collect::<Vec<_>>());
    let reason = outcome.verdict.reason();
    let tried = Tried { verdict: outcome.verdict.word(), reason, milliseconds, calls: outcome.counts.calls, launch, grants: used };
    if output.json() {
        output.value_line(&tried)?;
    } else {
        output.line("")?;
        let mut fields = vec![("verdict", tried.verdict.to_owned())];
        fields.extend(tried.reason.clone().map(|reason| ("reason", reason)));
        fields.push(("took", format!("{milliseconds} ms, {} calls", tried.calls)));
        fields.extend(tried.launch.as_ref().map(|launch| ("would launch", launch.join(" "))));
        let mut needed = Vec::new();
        for (kind, grants) in [
            ("bundles", &tried.grants.bundles),
            ("grants.run", &tried.grants.run),
            ("grants.write", &tried.grants.write),
            ("grants.read", &tried.grants.read),
            ("grants.secrets", &tried.grants.secrets),
        ] {
            if !grants.is_empty() {
                needed.push(format!("{kind} = [{}]", grants.iter().map(|grant| format!("{grant:?}")).collect::<Vec<_>>().join(", ")));
            }
        }
        output.fields(&fields)?;
        if !needed.is_empty() {
            output.line("")?;
            output.line("what a policy grants for these calls:")?;
        }
        needed.iter().try_for_each(|line| output.line(line))?;
    }
    match outcome.verdict {
        Verdict::Provisioned => Ok(()),
        other => Err(CliError::failed("provision", other.reason().unwrap_or_else(|| other.word().to_owned()))),
    }
}
