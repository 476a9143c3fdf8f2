//! `muster module build`: a project becomes a component, by the tool of its language.
//!
//! The tool is started by its path with a list of arguments, below the project's directory. What it makes is a component, or a core module
//! that is made one here; what the project asks for is put into it.

mod component;
mod tool;

use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use serde::Serialize;

use crate::agent::Signals;
use crate::api::Asks;
use crate::cli::CliError;
use crate::cli::module::project::{Lang, Project};
use crate::cli::module_file::check_size;
use crate::cli::output::Output;
use crate::names::Digest;
use crate::sandbox::inspect::asks::carried;
use crate::sandbox::inspect::inspect;
use tool::{Made, Programs};

/// What `muster module build` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The project's directory
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where the component goes; `NAME.wasm` in the project's directory unless said
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Arguments for the language's tool
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// What was built.
#[derive(Debug, Serialize)]
struct Built {
    name: String,
    file: String,
    digest: String,
    size_bytes: u64,
    asks: Asks,
}

/// Builds a project.
pub(crate) async fn run(args: Args, output: &mut Output) -> Result<(), CliError> {
    let project = Project::read(&args.dir)?;
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    let mut signals = Signals::new().map_err(|error| CliError::failed("listen for signals", error))?;
    // What is dropped with the building ends its tool and takes its directory along.
    let built = tokio::select! {
        built = build(&project, &args, &spinner, output) => built,
        () = signals.next() => Err(CliError::failed(format!("build {}", project.name), "it was told to end")),
    };
    spinner.finish_and_clear();
    let (file, component) = built?;
    let size_bytes = u64::try_from(component.len()).unwrap_or(u64::MAX);
    let text = format!("{} ({})", file.display(), crate::cli::output::human_bytes(size_bytes));
    let digest = format!("sha256:{}", Digest::of(&component));
    let built = Built { name: project.name.to_string(), file: file.display().to_string(), digest, size_bytes, asks: project.asks };
    output.done(&built, &text)
}

async fn build(project: &Project, args: &Args, spinner: &ProgressBar, output: &mut Output) -> Result<(PathBuf, Vec<u8>), CliError> {
    // The tools are started below it, and a path that begins with its name would lead elsewhere there.
    let directory = std::fs::canonicalize(&args.dir).map_err(|error| CliError::failed(format!("open {}", args.dir.display()), error))?;
    let file = args.output.clone().unwrap_or_else(|| args.dir.join(format!("{}.wasm", project.name)));
    let what = format!("build {}", project.name);
    let failed = |error: std::io::Error| CliError::failed(what.clone(), error);
    let scratch = Scratch::make().map_err(failed)?;
    let made = Box::pin(make(project.lang, &directory, &scratch.0, args, spinner, output)).await?;
    check_size(&made, std::fs::metadata(&made).map_err(failed)?.len())?;
    let bytes = std::fs::read(made).map_err(failed)?;
    let component = component::component(bytes, &directory.join("wit")).map_err(|error| CliError::failed(what.clone(), error))?;
    let component = carried(component, project.lang.name(), project.asks.clone()).map_err(|error| CliError::failed(what.clone(), error))?;
    inspect(&component).map_err(|error| CliError::failed(what.clone(), error))?;
    std::fs::write(&file, &component).map_err(|error| CliError::failed(format!("write {}", file.display()), error))?;
    Ok((file, component))
}

/// Has the language's tool make what it makes; where that is.
async fn make(
    lang: Lang,
    directory: &Path,
    scratch: &Path,
    args: &Args,
    spinner: &ProgressBar,
    output: &mut Output,
) -> Result<PathBuf, CliError> {
    let programs = Programs::new(directory);
    let made = scratch.join("made.wasm");
    for step in tool::steps(lang, &programs, &made, &args.arguments)? {
        let done = Box::pin(tool::run(&step, directory, spinner, output)).await?;
        if let Made::Told = step.made {
            return tool::told_by_cargo(&done)
                .ok_or_else(|| CliError::failed("build", "cargo made no `.wasm`; is the library a `cdylib`?"));
        }
    }
    Ok(made)
}

/// A directory of this build alone, which goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("muster-build-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody is left to be told; it holds nothing that is needed.
        std::fs::remove_dir_all(&self.0).ok();
    }
}
