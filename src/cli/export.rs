//! `muster run export`: recordings as a file, to be replayed where no server is.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::api::Run;
use crate::cli::client::Client;
use crate::cli::output::Output;
use crate::cli::replay::export_lines;
use crate::cli::{CliError, doing, id};
use crate::journal::recording::{Content, Part, VERSION};
use crate::limits::MODULE_BYTES_MAX;
use crate::names::{Digest, LabelName};

/// How much is done to make an export small.
const LEVEL: i32 = 3;

/// What `muster run export` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A run's id
    #[arg(value_parser = id, required_unless_present = "label", conflicts_with = "label")]
    id: Option<String>,
    /// A label, for its newest runs
    #[arg(long)]
    label: Option<LabelName>,
    /// So many of them
    #[arg(long, value_name = "N", default_value_t = 500, requires = "label", value_parser = clap::value_parser!(u32).range(1..))]
    last: u32,
    /// Adds the modules that the runs had
    #[arg(long)]
    with_module: bool,
    /// The file to write; ID.export or LABEL.export unless said
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes the recordings of one run, or of the newest of a label that have ended.
pub(crate) async fn run(args: Args, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let runs: Vec<Run> = match (&args.id, &args.label) {
        (Some(id), _) => vec![client.get(&["runs", id], &[]).await.map_err(doing(format!("show the run {id}")))?],
        (None, label) => {
            let query = [("label", label.as_ref().map(ToString::to_string))];
            let runs: Vec<Run> = client.list(&["runs"], &query, Some(args.last)).await.map_err(doing("list the runs"))?;
            runs.into_iter().filter(|run| run.ended_us.is_some()).collect()
        }
    };
    if let (Some(id), Some(Run { ended_us: None, .. })) = (&args.id, runs.first()) {
        return Err(CliError::failed(format!("export the run {id}"), "it has not ended"));
    }
    let name = args.id.as_deref().or(args.label.as_ref().map(LabelName::as_str)).unwrap_or_default();
    let path = args.output.unwrap_or_else(|| format!("{name}.export").into());
    // What was there stays until the new one is whole.
    let beside = path.with_added_extension("part");
    let written = write(&beside, &runs, args.with_module, client).await;
    let failed = |error: std::io::Error| CliError::failed(format!("write {}", path.display()), error);
    match written.and_then(|()| std::fs::rename(&beside, &path).map_err(failed)) {
        Ok(()) => {
            output.done(&serde_json::json!({ "file": path, "runs": runs.len() }), &format!("{}: {} runs", path.display(), runs.len()))
        }
        Err(error) => {
            // It may not even be there.
            std::fs::remove_file(&beside).ok();
            Err(error)
        }
    }
}

async fn write(path: &Path, runs: &[Run], with_module: bool, client: &Client) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("write {}", path.display()), error);
    let file = File::create(path).map_err(failed)?;
    let mut lines = zstd::Encoder::new(file, LEVEL).map_err(failed)?;
    lines.write_all(Part::Export { version: VERSION }.to_line().as_bytes()).map_err(failed)?;
    if with_module {
        let mut known = BTreeSet::new();
        for run in runs.iter().filter(|run| known.insert(&run.module)) {
            let bytes = client.get_raw(&["runs", &run.id, "module"], "application/wasm", MODULE_BYTES_MAX).await;
            let bytes = bytes.map_err(doing(format!("fetch the module of the run {}", run.id)))?;
            lines.write_all(Part::Module(Content::of(&Digest::of(&bytes), &bytes)).to_line().as_bytes()).map_err(failed)?;
        }
    }
    for run in runs {
        lines.write_all(export_lines(client, &run.id).await?.as_bytes()).map_err(failed)?;
    }
    lines.finish().and_then(|file| file.sync_all()).map_err(failed)
}
