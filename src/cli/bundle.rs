//! `muster bundle`: file trees, pushed by what the server lacks of them.

use std::path::PathBuf;

use clap::builder::styling::AnsiColor;
use serde::Serialize;

use crate::api::Bundle;
use crate::bits::manifest::Manifest;
use crate::cli::bundle::difference::{Difference, Mark};
use crate::cli::client::{Client, ClientError};
use crate::cli::output::Output;
use crate::cli::pinned::Pinned;
use crate::cli::{CliError, doing};
use crate::limits::MANIFEST_BYTES_MAX;
use crate::names::{BundleName, TeamName};

mod difference;
pub(crate) mod push;

/// What `muster bundle` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Uploads a directory as a new version; only what the server lacks is sent
    Push {
        /// The directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// The bundle's name
        #[arg(long)]
        name: BundleName,
        /// The team that it belongs to; the token's own unless said
        #[arg(long)]
        team: Option<TeamName>,
    },
    /// Lists the bundles, each with its newest version
    Ls {
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Lists the versions of a bundle, or shows one
    Show {
        /// The bundle
        #[arg(value_name = "NAME[@VERSION]")]
        bundle: Pinned<BundleName>,
    },
    /// Says what differs between two versions
    Diff {
        /// The one; its newest version without a version
        #[arg(value_name = "NAME[@VERSION]")]
        before: Pinned<BundleName>,
        /// The other
        #[arg(value_name = "NAME[@VERSION]")]
        after: Pinned<BundleName>,
    },
}

/// Does it.
pub(crate) async fn run(command: Command, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        Command::Push { directory, name, team } => {
            let pushed = Box::pin(push::push(&directory, &name, team.as_ref(), client)).await?;
            if output.json() { output.value(&pushed) } else { tell(&pushed, output) }
        }
        Command::Ls { limit } => {
            let bundles: Vec<Bundle> = client.list(&["bundles"], &[], limit).await.map_err(doing("list the bundles"))?;
            list(&bundles, output)
        }
        Command::Show { bundle } => {
            let name = &bundle.name;
            let Some(version) = bundle.digest("bundles", "version", client).await? else {
                let what = format!("list the versions of {name}");
                let bundles: Vec<Bundle> = client.list(&["bundles", name.as_str()], &[], None).await.map_err(doing(what))?;
                return list(&bundles, output);
            };
            let path = ["bundles", name.as_str(), &version.to_string()];
            let bundle: Bundle = client.get(&path, &[]).await.map_err(doing(format!("show {name}@sha256:{version}")))?;
            if output.json() { output.value(&bundle) } else { show(&bundle, output) }
        }
        Command::Diff { before, after } => {
            let (before, after) = (manifest(&before, client).await?, manifest(&after, client).await?);
            let found = difference::between(&before, &after);
            if output.json() { output.value(&found) } else { tell_difference(&found, output) }
        }
    }
}

/// A bundle that was pushed, and what it took.
#[derive(Debug, Serialize)]
pub(crate) struct Pushed {
    #[serde(flatten)]
    pub(crate) bundle: Bundle,
    /// Contents that the server lacked.
    contents_sent: u64,
    /// Their bytes.
    bytes_sent: u64,
    /// Bytes that went over the wire for them.
    packed_bytes: u64,
}

fn tell(pushed: &Pushed, output: &mut Output) -> Result<(), CliError> {
    let Pushed { bundle, contents_sent, bytes_sent, packed_bytes } = pushed;
    output.line(&reference(bundle))?;
    output.fields(&[
        ("files", bundle.files.to_string()),
        ("size", output.bytes(bundle.bytes)),
        ("contents sent", contents_sent.to_string()),
        ("bytes sent", output.bytes(*bytes_sent)),
        ("bytes on the wire", output.bytes(*packed_bytes)),
    ])
}

fn reference(bundle: &Bundle) -> String {
    format!("{}@sha256:{}", bundle.name, bundle.version.strip_prefix("sha256:").unwrap_or(&bundle.version))
}

fn list(bundles: &[Bundle], output: &mut Output) -> Result<(), CliError> {
    output.listing(bundles, ["NAME", "VERSION", "TEAM", "FILES", "SIZE", "PUSHED"], |output, bundle| {
        [
            bundle.name.clone(),
            output.digest(&bundle.version),
            bundle.team.clone(),
            bundle.files.to_string(),
            output.bytes(bundle.bytes),
            output.age(bundle.pushed_us),
        ]
    })
}

fn show(bundle: &Bundle, output: &mut Output) -> Result<(), CliError> {
    output.fields(&[
        ("bundle", reference(bundle)),
        ("team", bundle.team.clone()),
        ("files", bundle.files.to_string()),
        ("size", output.bytes(bundle.bytes)),
        ("pushed", output.moment(bundle.pushed_us)),
    ])
}

async fn manifest(bundle: &Pinned<BundleName>, client: &Client) -> Result<Manifest, CliError> {
    let name = bundle.name.as_str();
    let what = format!("read the manifest of {name}");
    let version = match bundle.digest("bundles", "version", client).await? {
        Some(version) => version.to_string(),
        None => newest(name, client).await.map_err(doing(what.clone()))?,
    };
    let text = client.get_text(&["bundles", name, &version, "manifest"], MANIFEST_BYTES_MAX).await.map_err(doing(what.clone()))?;
    Manifest::parse(text.as_bytes()).map_err(|error| CliError::failed(what, error))
}

async fn newest_manifest(name: &BundleName, client: &Client) -> Result<Manifest, CliError> {
    let what = format!("read the manifest of {name}");
    let version = newest(name.as_str(), client).await.map_err(doing(what.clone()))?;
    let text = client.get_text(&["bundles", name.as_str(), &version, "manifest"], MANIFEST_BYTES_MAX).await.map_err(doing(what.clone()))?;
    Manifest::parse(text.as_bytes()).map_err(|error| CliError::failed(what, error))
}

async fn newest(name: &str, client: &Client) -> Result<String, ClientError> {
    let versions: Vec<Bundle> = client.list(&["bundles", name], &[], Some(1)).await?;
    let newest = versions.into_iter().next().map(|bundle| bundle.version);
    newest.ok_or_else(|| ClientError::Answer(format!("it lists no version of `{name}`")))
}

fn tell_difference(found: &Difference, output: &mut Output) -> Result<(), CliError> {
    for change in &found.changes {
        let style = match change.mark {
            Mark::Added => AnsiColor::Green.on_default(),
            Mark::Removed => AnsiColor::Red.on_default(),
            Mark::Changed => AnsiColor::Yellow.on_default(),
        };
        output.styled(style, &change.line(output))?;
    }
    let Difference { added, removed, changed, bytes_new, .. } = found;
    output.aside(&format!("{added} added, {removed} removed, {changed} changed; {} bytes of content are new", bytes_new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::fixture::output;

    #[test]
    fn a_push_tells_what_it_took() {
        let bundle = Bundle { name: "tools".into(), version: "ab".repeat(32), team: "media".into(), files: 3, bytes: 2048, pushed_us: 0 };
        let pushed = Pushed { bundle, contents_sent: 1, bytes_sent: 1024, packed_bytes: 100 };
        let (mut out, text) = output(false, true);
        tell(&pushed, &mut out).unwrap();
        let text = text.take();
        assert!(text.starts_with(&format!("tools@sha256:{}\n", "ab".repeat(32))), "{text}");
        assert!(text.contains("size               2.0 KiB\n") && text.ends_with("bytes on the wire  100 B\n"), "{text}");
        let json = serde_json::to_value(&pushed).unwrap();
        assert_eq!((&json["name"], &json["bytes_sent"]), (&"tools".into(), &1024.into()));
    }
}
