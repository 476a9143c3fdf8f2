//! `muster module`: what teams wrote, uploaded and looked at. `inspect` needs no server.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt as _;
use reqwest::Method;
use serde::Serialize;
use tokio_util::io::ReaderStream;

use crate::api::Module;
use crate::cli::client::{Client, byte_bar};
use crate::cli::output::Output;
use crate::cli::pinned::Pinned;
use crate::cli::{CliError, doing, try_module};
use crate::limits::{MODULE_BYTES_MAX, PIECE_BYTES};
use crate::names::{Digest, ModuleName, TeamName};
use crate::sandbox::inspect::{About, InspectError, look};

/// What `muster module` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Uploads a module
    Push {
        /// The component
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
}

/// What `muster module inspect` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// The component
    file: PathBuf,
}

/// Does it. `inspect` and `try` need no client and do not come here.
pub(crate) async fn run(command: Command, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        Command::Push { file, name, team } => Box::pin(push(&file, &name, team, client, output)).await,
        Command::Ls { team, limit } => {
            let query = [("team", team.map(|team| team.to_string()))];
            let modules: Vec<Module> = client.list(&["modules"], &query, limit).await.map_err(doing("list the modules"))?;
            list(&modules, output)
        }
        Command::Show { module } => {
            let name = &module.name;
            let Some(digest) = module.digest("modules", "digest", client).await? else {
                let what = format!("list the versions of {name}");
                let modules: Vec<Module> = client.list(&["modules", name.as_str()], &[], None).await.map_err(doing(what))?;
                return list(&modules, output);
            };
            let path = ["modules", name.as_str(), &digest.to_string()];
            let module: Module = client.get(&path, &[]).await.map_err(doing(format!("show {name}@sha256:{digest}")))?;
            if output.json() { output.value(&module) } else { show(&module, output) }
        }
        Command::Inspect(args) => inspect(&args, output),
        Command::Try(args) => try_module::run(args, output).await,
    }
}

async fn push(path: &Path, name: &ModuleName, team: Option<TeamName>, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("read {}", path.display()), error);
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let bytes = file.metadata().await.map_err(failed)?.len();
    check_size(path, bytes)?;
    let bar = byte_bar("uploading", bytes);
    let counting = bar.clone();
    let body = ReaderStream::with_capacity(file, PIECE_BYTES)
        .inspect_ok(move |piece| counting.inc(u64::try_from(piece.len()).unwrap_or_default()));
    let query = [("name", Some(name.to_string())), ("team", team.map(|team| team.to_string()))];
    let uploaded = client.upload(Method::POST, &["modules"], &query, Some(bytes), body).await;
    bar.finish_and_clear();
    let module: Module = uploaded.map_err(doing(format!("push {}", path.display())))?;
    output.done(&module, &format!("{}@sha256:{}", module.name, bare(&module.digest)))
}

fn check_size(path: &Path, bytes: u64) -> Result<(), CliError> {
    if usize::try_from(bytes).is_ok_and(|bytes| bytes <= MODULE_BYTES_MAX) {
        return Ok(());
    }
    Err(CliError::failed(format!("take {}", path.display()), format!("it has {bytes} bytes; a module has at most {MODULE_BYTES_MAX}")))
}

fn bare(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn list(modules: &[Module], output: &mut Output) -> Result<(), CliError> {
    output.listing(modules, ["NAME", "DIGEST", "TEAM", "SIZE", "LANGUAGE", "UPLOADED"], |output, module| {
        [
            module.name.clone(),
            output.digest(&module.digest),
            module.team.clone(),
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
        ("size", output.bytes(module.size_bytes)),
        ("world", module.world.clone()),
        ("language", module.language.clone().unwrap_or_default()),
        ("uploaded", output.moment(module.uploaded_us)),
    ])?;
    module.imports.iter().try_for_each(|import| output.fields(&[("import", import.clone())]))
}

/// What a component's own bytes say of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Inspected {
    digest: String,
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
}

impl Inspected {
    fn of(bytes: &[u8]) -> Result<Self, InspectError> {
        let About { world, contract, imports, exports, language } = look(bytes)?;
        let size_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(Self { digest: Digest::of(bytes).to_string(), size_bytes, world, contract, imports, exports, language })
    }
}

/// Says what a file of this machine is.
pub(crate) fn inspect(args: &InspectArgs, output: &mut Output) -> Result<(), CliError> {
    let path = &args.file;
    let failed = |error: std::io::Error| CliError::failed(format!("read {}", path.display()), error);
    let mut bytes = Vec::new();
    let limit = u64::try_from(MODULE_BYTES_MAX).unwrap_or(u64::MAX);
    let file = std::fs::File::open(path).map_err(failed)?;
    check_size(path, file.metadata().map_err(failed)?.len())?;
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    let found = Inspected::of(&bytes).map_err(|error| CliError::failed(format!("inspect {}", path.display()), error))?;
    if output.json() {
        return output.value(&found);
    }
    output.fields(&[
        ("digest", format!("sha256:{}", found.digest)),
        ("size", output.bytes(found.size_bytes)),
        ("world", found.world.unwrap_or_else(|| "none of Muster's".into())),
        ("contract", found.contract.unwrap_or_default()),
        ("language", found.language.unwrap_or_default()),
    ])?;
    found.imports.into_iter().try_for_each(|name| output.fields(&[("import", name)]))?;
    found.exports.into_iter().try_for_each(|name| output.fields(&[("export", name)]))
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
            "size_bytes": bytes.len(),
            "imports": ["other:x/y@1.0.0"],
            "exports": [],
        });
        assert_eq!(told, known);
    }
}
