//! `muster module`: what teams write, build, upload and look at. `new`, `build`, `inspect`, `try` and `bench` need no server.

mod bench;
mod build;
mod new;
mod project;

use std::path::{Path, PathBuf};

use futures_util::TryStreamExt as _;
use reqwest::Method;
use serde::Serialize;
use tokio_util::io::ReaderStream;

use crate::api::{Asks, Module, ModuleKind};
use crate::cli::client::{Client, byte_bar};
use crate::cli::output::Output;
use crate::cli::pinned::Pinned;
use crate::cli::{CliError, doing, module_file, replay, try_module};
use crate::limits::PIECE_BYTES;
use crate::names::{Digest, ModuleName, TeamName};
use crate::sandbox::inspect::{About, InspectError, look};
use crate::sandbox::script::{RUNNER, Script, WORLD};

/// What `muster module` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Makes a small project that builds and has a test
    New(new::Args),
    /// Builds a project's component with the tool of its language
    Build(build::Args),
    /// Uploads a module: a component, or a plain script
    Push {
        /// The component, or a script: a file NAME.js
        file: PathBuf,
        /// The name to upload it under
        #[arg(long)]
        name: ModuleName,
        /// The team that it belongs to; the token's own unless said
        #[arg(long)]
        team: Option<TeamName>,
    },
    /// Lists the modules, each with its newest version
    Ls {
        /// Those of a team
        #[arg(long)]
        team: Option<TeamName>,
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Lists the versions of a module, or shows one
    Show {
        /// The module
        #[arg(value_name = "NAME[@DIGEST]")]
        module: Pinned<ModuleName>,
    },
    /// Says what a file of this machine is: its world, its imports, its exports
    Inspect(InspectArgs),
    /// Runs a module against a directory of this machine; no server is needed
    Try(try_module::Args),
    /// Measures what a module costs: to compile, to run for the first time, and each time after that
    Bench(bench::Args),
    /// Says which runs of a label the module would do otherwise, and what
    Check(replay::CheckArgs),
}

/// What `muster module inspect` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// The component, or the script
    file: PathBuf,
}

/// Does it. Most of it needs no server.
pub(crate) async fn run(command: Command, client: impl FnOnce() -> Result<Client, CliError>, output: &mut Output) -> Result<(), CliError> {
    match command {
        Command::New(args) => new::run(args, output),
        Command::Build(args) => Box::pin(build::run(args, output)).await,
        Command::Inspect(args) => inspect(&args, output),
        Command::Try(args) => Box::pin(try_module::run(args, output)).await,
        Command::Bench(args) => Box::pin(bench::run(args, output)).await,
        Command::Check(args) => Box::pin(replay::check(args, client, output)).await,
        Command::Push { file, name, team } => Box::pin(push(&file, &name, team, &client()?, output)).await,
        Command::Ls { team, limit } => {
            let query = [("team", team.map(|team| team.to_string()))];
            let modules: Vec<Module> = client()?.list(&["modules"], &query, limit).await.map_err(doing("list the modules"))?;
            list(&modules, output)
        }
        Command::Show { module } => {
            let (client, name) = (client()?, &module.name);
            let Some(digest) = module.digest("modules", "digest", &client).await? else {
                let what = format!("list the versions of {name}");
                let modules: Vec<Module> = client.list(&["modules", name.as_str()], &[], None).await.map_err(doing(what))?;
                return list(&modules, output);
            };
            let path = ["modules", name.as_str(), &digest.to_string()];
            let module: Module = client.get(&path, &[]).await.map_err(doing(format!("show {name}@sha256:{digest}")))?;
            if output.json() { output.value(&module) } else { show(&module, output) }
        }
    }
}

async fn push(path: &Path, name: &ModuleName, team: Option<TeamName>, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("read {}", path.display()), error);
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let bytes = file.metadata().await.map_err(failed)?.len();
    module_file::check_size(path, bytes)?;
    let script = module_file::script_name(path)?;
    let bar = byte_bar("uploading", bytes);
    let counting = bar.clone();
    let body = ReaderStream::with_capacity(file, PIECE_BYTES)
        .inspect_ok(move |piece| counting.inc(u64::try_from(piece.len()).unwrap_or_default()));
    let query = [
        ("name", Some(name.to_string())),
        ("team", team.map(|team| team.to_string())),
        ("script", script.map(|script| script.to_string())),
    ];
    let uploaded = client.upload(Method::POST, &["modules"], &query, Some(bytes), body).await;
    bar.finish_and_clear();
    let module: Module = uploaded.map_err(doing(format!("push {}", path.display())))?;
    output.done(&module, &format!("{}@sha256:{}", module.name, bare(&module.digest)))
}

fn bare(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn list(modules: &[Module], output: &mut Output) -> Result<(), CliError> {
    output.listing(modules, ["NAME", "DIGEST", "TEAM", "KIND", "SIZE", "LANGUAGE", "UPLOADED"], |output, module| {
        [
            module.name.clone(),
            output.digest(&module.digest),
            module.team.clone(),
            module.kind.as_str().into(),
            output.bytes(module.size_bytes),
            module.language.clone().unwrap_or_default(),
            output.age(module.uploaded_us),
        ]
    })
}

fn show(module: &Module, output: &mut Output) -> Result<(), CliError> {
    output.fields(&[
        ("name", module.name.clone()),
        ("digest", format!("sha256:{}", bare(&module.digest))),
        ("team", module.team.clone()),
        ("kind", module.kind.as_str().into()),
        ("size", output.bytes(module.size_bytes)),
        ("world", module.world.clone()),
        ("language", module.language.clone().unwrap_or_default()),
        ("uploaded", output.moment(module.uploaded_us)),
    ])?;
    module.imports.iter().try_for_each(|import| output.fields(&[("import", import.clone())]))?;
    show_asks(module.asks.as_ref(), output)
}

fn show_asks(asks: Option<&Asks>, output: &mut Output) -> Result<(), CliError> {
    for (kind, items) in asks.iter().flat_map(|asks| asks.kinds()) {
        items.iter().try_for_each(|item| output.fields(&[("asks", format!("grants.{kind} {item}"))]))?;
    }
    Ok(())
}

/// What a component's own bytes say of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Inspected {
    digest: String,
    kind: ModuleKind,
    size_bytes: u64,
    /// The world of the contract, if it exports what that world asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    world: Option<String>,
    /// The contract's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    contract: Option<String>,
    imports: Vec<String>,
    exports: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<String>,
    /// The grants that it asks for, if it carries them.
    #[serde(skip_serializing_if = "Option::is_none")]
    asks: Option<Asks>,
}

impl Inspected {
    fn of(bytes: &[u8]) -> Result<Self, InspectError> {
        // A script is as its runner is.
        let (kind, About { world, contract, imports, exports, language, asks }) = match Script::is(bytes) {
            true => (ModuleKind::Script, About { world: Some(WORLD.into()), language: Some("JavaScript".into()), ..look(RUNNER)? }),
            false => (ModuleKind::Component, look(bytes)?),
        };
        let size_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(Self { digest: Digest::of(bytes).to_string(), kind, size_bytes, world, contract, imports, exports, language, asks })
    }
}

/// Says what a file of this machine is.
fn inspect(args: &InspectArgs, output: &mut Output) -> Result<(), CliError> {
    let path = &args.file;
    let bytes = module_file::read(path)?;
    let found = Inspected::of(&bytes).map_err(|error| CliError::failed(format!("inspect {}", path.display()), error))?;
    if output.json() {
        return output.value(&found);
    }
    output.fields(&[
        ("digest", format!("sha256:{}", found.digest)),
        ("kind", found.kind.as_str().into()),
        ("size", output.bytes(found.size_bytes)),
        ("world", found.world.unwrap_or_else(|| "none of Muster's".into())),
        ("contract", found.contract.unwrap_or_default()),
        ("language", found.language.unwrap_or_default()),
    ])?;
    found.imports.into_iter().try_for_each(|name| output.fields(&[("import", name)]))?;
    found.exports.into_iter().try_for_each(|name| output.fields(&[("export", name)]))?;
    show_asks(found.asks.as_ref(), output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_file_has_its_digest_and_leaves_out_what_is_not_known() {
        let bytes = wat::parse_str(r#"(component (import "other:x/y@1.0.0" (instance)))"#).unwrap();
        let told = serde_json::to_value(Inspected::of(&bytes).unwrap()).unwrap();
        let known = serde_json::json!({
            "digest": Digest::of(&bytes).to_string(),
            "kind": "component",
            "size_bytes": bytes.len(),
            "imports": ["other:x/y@1.0.0"],
            "exports": [],
        });
        assert_eq!(told, known);
    }
}
