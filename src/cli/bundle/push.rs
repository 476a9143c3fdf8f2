//! The push of a directory: scan it, ask what the server lacks, send that in one pack, and name the whole.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use indicatif::ProgressBar;
use reqwest::Method;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::api::{Bundle, ContentsAsked, ContentsMissing, ContentsStored};
use crate::bits::contents::read_spot;
use crate::bits::manifest::Manifest;
use crate::bits::pack::{PackError, Packer, write_end};
use crate::bits::path::TreePath;
use crate::bits::scan::{Spot, scan};
use crate::cli::bundle::Pushed;
use crate::cli::client::{Client, byte_bar};
use crate::cli::{CliError, doing};
use crate::limits::{DIGESTS_ASKED_MAX, PIECE_BYTES};
use crate::names::{BundleName, Digest, TeamName};

/// Pieces of a pack that wait for the network.
const PIECES_WAITING: usize = 4;
/// How often the server may say that contents lack: once because they were cleared away meanwhile.
const ROUNDS: u32 = 2;

/// Why a pack can not be made of a directory.
#[derive(Debug, thiserror::Error)]
enum PackingError {
    #[error("`{0}` changed while it was pushed; push again when nothing writes there")]
    Changed(TreePath),
    #[error("can not read `{path}`")]
    Read { path: TreePath, source: io::Error },
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error("the server asks for content {0}, which is not in the directory")]
    Unknown(Digest),
    #[error("packing was cut off")]
    Task(#[from] tokio::task::JoinError),
}

/// A directory and what is in it.
struct Tree {
    directory: Dir,
    manifest: Manifest,
    spots: HashMap<Digest, Spot>,
}

/// Pushes a directory.
pub(crate) async fn push(directory: &Path, name: &BundleName, team: Option<&TeamName>, client: &Client) -> Result<Pushed, CliError> {
    let what = format!("push {}", directory.display());
    let mut tree = read(directory).await?;
    // That there is none yet, or that it can not be had, changes nothing but times.
    if let Ok(before) = super::newest_manifest(name, client).await {
        tree.manifest = tree.manifest.with_times_of(&before).map_err(|error| CliError::failed(what.clone(), error))?;
    }
    let tree = Arc::new(tree);
    let (mut contents_sent, mut bytes_sent, mut packed_bytes) = (0, 0, 0);
    for round in 1.. {
        let missing = ask(&tree, client).await.map_err(doing(what.clone()))?;
        if !missing.is_empty() {
            let sent = send(&tree, &missing, client, &what).await?;
            contents_sent += u64::try_from(missing.len()).unwrap_or_default();
            bytes_sent += missing.iter().map(|(_, size)| size).sum::<u64>();
            packed_bytes += sent;
        }
        match name_it(&tree, name, team, client).await {
            Ok(bundle) => return Ok(Pushed { bundle, contents_sent, bytes_sent, packed_bytes }),
            Err(error) if error.code() == Some("contents-missing") && round < ROUNDS => {}
            Err(error) => return Err(doing(what)(error)),
        }
    }
    Err(CliError::failed(what, "the server goes on losing contents"))
}

async fn read(path: &Path) -> Result<Tree, CliError> {
    let what = format!("read {}", path.display());
    let directory = Dir::open_ambient_dir(path, ambient_authority()).map_err(|error| CliError::failed(what.clone(), error))?;
    let spinner = ProgressBar::new_spinner();
    let shown = spinner.clone();
    let scanned = tokio::task::spawn_blocking(move || {
        let scanned = scan(&directory, &mut |path| {
            shown.inc(1);
            shown.set_message(path.to_string());
        });
        scanned.map(|(manifest, spots)| Tree { directory, manifest, spots })
    });
    let tree = scanned.await.map_err(|error| CliError::failed(what.clone(), error))?;
    spinner.finish_and_clear();
    tree.map_err(|error| CliError::failed(what, error))
}

/// The contents that the server lacks, with their sizes.
async fn ask(tree: &Tree, client: &Client) -> Result<Vec<(Digest, u64)>, crate::cli::client::ClientError> {
    let mut missing = Vec::new();
    for batch in tree.manifest.contents().chunks(DIGESTS_ASKED_MAX) {
        let digests = batch.iter().map(|(digest, _)| digest.to_string()).collect();
        let answer: ContentsMissing = client.send(Method::POST, &["contents", "missing"], &[], &ContentsAsked { digests }).await?;
        let lacking: std::collections::HashSet<&str> =
            answer.missing.iter().map(|digest| digest.strip_prefix("sha256:").unwrap_or(digest)).collect();
        missing.extend(batch.iter().filter(|(digest, _)| lacking.contains(digest.to_string().as_str())));
    }
    Ok(missing)
}

/// Sends contents as one pack; how many bytes that were.
async fn send(tree: &Arc<Tree>, missing: &[(Digest, u64)], client: &Client, what: &str) -> Result<u64, CliError> {
    let bar = byte_bar("sending", missing.iter().map(|(_, size)| size).sum());
    let (pieces, body) = mpsc::channel(PIECES_WAITING);
    let (packed, shown, missing) = (tree.clone(), bar.clone(), missing.to_vec());
    let packing = tokio::task::spawn_blocking(move || {
        let made = pack(&packed, &missing, &shown, &pieces);
        if made.is_err() {
            // The body breaks off, so that the server does not take what came for the whole.
            pieces.blocking_send(Err(io::Error::other("the pack was broken off"))).ok();
        }
        made
    });
    let stored: Result<ContentsStored, _> = client.upload(Method::POST, &["contents"], &[], None, ReceiverStream::new(body)).await;
    bar.finish_and_clear();
    // What went wrong on this side is the cause of what the other side says.
    let sent = packing.await.map_err(PackingError::from).flatten().map_err(|error| CliError::failed(what, error))?;
    stored.map_err(doing(what))?;
    Ok(sent)
}

/// Makes a pack of contents. Ends early, and without an error, when nobody takes it any more.
fn pack(tree: &Tree, missing: &[(Digest, u64)], bar: &ProgressBar, pieces: &mpsc::Sender<io::Result<Bytes>>) -> Result<u64, PackingError> {
    let (mut packer, mut stream, mut content) = (Packer::new()?, BytesMut::new(), Vec::new());
    let mut sent = 0;
    let mut give = |stream: &mut BytesMut| {
        sent += u64::try_from(stream.len()).unwrap_or_default();
        pieces.blocking_send(Ok(stream.split().freeze())).is_ok()
    };
    for (digest, size) in missing {
        let spot = tree.spots.get(digest).ok_or(PackingError::Unknown(*digest))?;
        match read_spot(&tree.directory, spot, &mut content) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(PackingError::Changed(spot.path.clone())),
            read => read.map_err(|source| PackingError::Read { path: spot.path.clone(), source })?,
        }
        if Digest::of(&content) != *digest {
            return Err(PackingError::Changed(spot.path.clone()));
        }
        packer.pack(*digest, &content)?.write(&mut stream);
        bar.inc(*size);
        if stream.len() >= PIECE_BYTES && !give(&mut stream) {
            return Ok(0);
        }
    }
    write_end(&mut stream);
    give(&mut stream);
    Ok(sent)
}

async fn name_it(
    tree: &Tree,
    name: &BundleName,
    team: Option<&TeamName>,
    client: &Client,
) -> Result<Bundle, crate::cli::client::ClientError> {
    let text = Bytes::from(tree.manifest.to_bytes());
    let length = u64::try_from(text.len()).ok();
    let query = [("team", team.map(ToString::to_string))];
    let body = futures_util::stream::iter([Ok::<_, io::Error>(text)]);
    client.upload(Method::PUT, &["bundles", name.as_str()], &query, length, body).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::pack::{Opener, Unpacker};

    fn tree(directory: &Path) -> Tree {
        let directory = Dir::open_ambient_dir(directory, ambient_authority()).unwrap();
        let (manifest, spots) = scan(&directory, &mut |_| {}).unwrap();
        Tree { directory, manifest, spots }
    }

    fn packed(tree: &Tree) -> (Result<u64, PackingError>, Vec<u8>) {
        let (pieces, mut body) = mpsc::channel(1000);
        let made = pack(tree, tree.manifest.contents(), &ProgressBar::hidden(), &pieces);
        drop(pieces);
        let bytes = std::iter::from_fn(|| body.blocking_recv()).flat_map(|piece| piece.unwrap().to_vec()).collect();
        (made, bytes)
    }

    #[test]
    fn a_pack_holds_each_content_once() {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in [("a", "one"), ("b", "two"), ("c", "one"), ("d", "")] {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        let tree = tree(directory.path());
        let (made, bytes) = packed(&tree);
        assert_eq!(made.unwrap(), bytes.len() as u64);
        let (mut unpacker, mut opener) = (Unpacker::default(), Opener::new().unwrap());
        unpacker.feed(&bytes);
        let mut contents = Vec::new();
        while let Some(packed) = unpacker.record().unwrap() {
            contents.push(Vec::new());
            opener.open(&packed, contents.last_mut().unwrap()).unwrap();
        }
        unpacker.finish().unwrap();
        assert_eq!(contents, [&b"one"[..], b"two", b""]);
    }

    #[test]
    fn a_file_that_changes_under_the_push_is_named() {
        for later in ["oNe", "o", "longer", ""] {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("a");
            std::fs::write(&file, "one").unwrap();
            let tree = tree(directory.path());
            std::fs::write(&file, later).unwrap();
            let error = packed(&tree).0.unwrap_err();
            assert!(matches!(&error, PackingError::Changed(path) if path.to_string() == "a"), "{later}: {error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        std::fs::write(&file, "one").unwrap();
        let tree = tree(directory.path());
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(packed(&tree).0, Err(PackingError::Changed(_))));
    }
}
