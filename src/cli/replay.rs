//! `muster run replay` and `muster module check`: modules run against what was recorded, here, with no agent. With an export no server is needed.

mod source;
mod told;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, FuturesOrdered};

use crate::api::Run;
use crate::cli::client::Client;
use crate::cli::output::Output;
use crate::cli::{CliError, doing, id, module_file};
use crate::journal::recording::{Recording, Whole};
use crate::limits::{MODULE_BYTES_MAX, REPLAYS_AT_ONCE_MAX};
use crate::names::{Digest, LabelName};
use crate::sandbox::{Module, Sandbox};

pub(crate) use source::export_lines;
use told::{Found, Row};

/// What `muster run replay` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A run's id, or a file that `muster run export` wrote
    #[arg(value_name = "RUN|EXPORT")]
    run: String,
    /// A module to run instead of the one that the run had
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
}

/// What `muster module check` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The module
    file: PathBuf,
    /// The label whose runs it is checked against
    #[arg(long, required_unless_present = "from", conflicts_with = "from")]
    label: Option<LabelName>,
    /// The newest so many of them
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    last: u32,
    /// A file that `muster run export` wrote, instead of a server
    #[arg(long, value_name = "EXPORT", conflicts_with = "last")]
    from: Option<PathBuf>,
}

type Items<'a> = BoxStream<'a, Result<Whole, CliError>>;

/// Replays one run, or what an export holds.
pub(crate) async fn run(args: Args, client: impl FnOnce() -> Result<Client, CliError>, output: &mut Output) -> Result<(), CliError> {
    let sandbox = sandbox()?;
    let mut modules = Modules::new(&sandbox);
    if let Some(file) = &args.module {
        modules.put_for_all(file).await?;
    }
    let file = Path::new(&args.run);
    if file.is_file() {
        let rows = replay(source::of_export(file)?, &mut modules, &sandbox).await?;
        return match rows.as_slice() {
            [row] => told::one(row, output),
            rows => told::all(rows, output),
        };
    }
    let id = id(&args.run)
        .map_err(|_| CliError::usage(format!("`{}` is neither a run's id nor a file", args.run), "`muster run ls` lists the runs"))?;
    let client = client()?;
    if args.module.is_none() {
        let fetched = client.get_raw(&["runs", &id, "module"], "application/wasm", MODULE_BYTES_MAX).await;
        modules.put(fetched.map_err(doing(format!("fetch the module of the run {id}")))?.into()).await?;
    }
    let rows = replay(source::of_server(&client, vec![id]), &mut modules, &sandbox).await?;
    rows.iter().try_for_each(|row| told::one(row, output))
}

/// Replays the newest runs of a label, or what an export holds, with a module that is not in force.
pub(crate) async fn check(args: CheckArgs, client: impl FnOnce() -> Result<Client, CliError>, output: &mut Output) -> Result<(), CliError> {
    let sandbox = sandbox()?;
    let mut modules = Modules::new(&sandbox);
    modules.put_for_all(&args.file).await?;
    let rows = match (&args.from, &args.label) {
        (None, Some(label)) => {
            let client = client()?;
            let query = [("label", Some(label.to_string()))];
            let runs: Vec<Run> = client.list(&["runs"], &query, Some(args.last)).await.map_err(doing("list the runs"))?;
            let ids = runs.into_iter().map(|run| run.id).collect();
            replay(source::of_server(&client, ids), &mut modules, &sandbox).await?
        }
        (Some(file), _) => replay(source::of_export(file)?, &mut modules, &sandbox).await?,
        (None, None) => return Err(CliError::usage("there is nothing to check against", "pass --label LABEL or --from EXPORT")),
    };
    told::all(&rows, output)
}

fn at_once() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(REPLAYS_AT_ONCE_MAX)
}

fn sandbox() -> Result<Sandbox, CliError> {
    let at_once = u32::try_from(at_once()).unwrap_or(1);
    Sandbox::new(None, at_once).map_err(|error| CliError::failed("start the sandbox", error))
}

/// Replays everything that comes, some at a time; in the order in which it came.
async fn replay(mut items: Items<'_>, modules: &mut Modules<'_>, sandbox: &Sandbox) -> Result<Vec<Row>, CliError> {
    let mut rows = Vec::new();
    let mut under_way = FuturesOrdered::new();
    let mut more = true;
    loop {
        while more && under_way.len() < at_once() {
            match items.next().await.transpose()? {
                Some(Whole::Module(digest, bytes)) => modules.offer(digest, bytes),
                Some(Whole::Recording(recording)) => {
                    let module = modules.of(&recording).await?;
                    under_way.push_back(one(sandbox, module, recording));
                }
                None => more = false,
            }
        }
        match under_way.next().await {
            Some(row) => rows.push(row),
            None => return Ok(rows),
        }
    }
}

async fn one(sandbox: &Sandbox, module: Arc<Module>, recording: Box<Recording>) -> Row {
    let found = match sandbox.replay(&module, &recording).await {
        Ok(replayed) => Found::of(replayed),
        Err(error) => Found::CanNotBeReplayed { reason: error.to_string() },
    };
    Row::of(recording.run, found)
}

/// The modules that runs are replayed with.
struct Modules<'a> {
    sandbox: &'a Sandbox,
    /// The one for all runs, whatever they had.
    for_all: Option<Arc<Module>>,
    compiled: HashMap<String, Arc<Module>>,
    /// Those of an export that were not needed yet.
    offered: HashMap<String, Bytes>,
}

impl<'a> Modules<'a> {
    fn new(sandbox: &'a Sandbox) -> Self {
        Self { sandbox, for_all: None, compiled: HashMap::new(), offered: HashMap::new() }
    }

    async fn put_for_all(&mut self, file: &Path) -> Result<(), CliError> {
        let module = self.sandbox.compile(module_file::read(file)?).await;
        self.for_all = Some(Arc::new(module.map_err(|error| CliError::failed(format!("use {}", file.display()), error))?));
        Ok(())
    }

    async fn put(&mut self, bytes: Bytes) -> Result<Arc<Module>, CliError> {
        let module = self.sandbox.compile(bytes).await.map_err(|error| CliError::failed("use the run's module", error))?;
        let module = Arc::new(module);
        self.compiled.insert(module.digest().to_string(), Arc::clone(&module));
        Ok(module)
    }

    fn offer(&mut self, digest: Digest, bytes: Bytes) {
        if self.for_all.is_none() {
            self.offered.insert(digest.to_string(), bytes);
        }
    }

    async fn of(&mut self, recording: &Recording) -> Result<Arc<Module>, CliError> {
        let wanted = &recording.run.module;
        if let Some(module) = self.for_all.as_ref().or_else(|| self.compiled.get(wanted)) {
            return Ok(Arc::clone(module));
        }
        match self.offered.remove(wanted) {
            Some(bytes) => self.put(bytes).await,
            None => Err(CliError::usage(
                format!("the module of the run {} is not in the export", recording.run.id),
                "pass --module FILE, or export with --with-module",
            )),
        }
    }
}
