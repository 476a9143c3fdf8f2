//! Brings bundles to directories of this machine: what the bits do, done below the agent's root.

use std::path::Path;

use bytes::Bytes;

use super::root::{Root, STATE_NAME};
use super::{CallError, Change, SyncMode, with_causes};
use crate::bits::apply::{ApplyError, Mode, Plan};
use crate::bits::manifest::Manifest;
use crate::bits::pack::{PackError, Unpacker};

/// Brings the tree of a manifest to a destination. Blocks its thread.
///
/// `need` is told once which contents are lacking, as indices into the manifest's distinct contents. Then `piece` is asked for the pack,
/// piece by piece, until it answers that there is no more. Nothing at the destination is changed before the pack is there whole. The
/// caller takes care that one sync at a time works on a root.
///
/// # Errors
/// When the manifest is none, the destination may not be written to, something is in the way, the pack is not what was asked for, the
/// machine fails, or `need` or `piece` does.
pub fn sync(
    root: &Root,
    destination: &str,
    mode: SyncMode,
    manifest: &[u8],
    need: impl FnOnce(&[u32]) -> Result<(), CallError>,
    mut piece: impl FnMut() -> Result<Option<Bytes>, CallError>,
) -> Result<Change, CallError> {
    let destination = root.destination(destination)?;
    let key = destination.absolute.to_str();
    let key = key.ok_or_else(|| CallError::Invalid(format!("`{}` leads to a path that is not Unicode", destination.absolute.display())))?;
    let manifest = Manifest::parse(manifest).map_err(|error| CallError::Invalid(with_causes(&error)))?;
    let sizes = manifest.contents().iter().map(|(_, size)| *size).collect::<Vec<_>>();
    let mode = match mode {
        SyncMode::Push => Mode::Push,
        SyncMode::Mirror => Mode::Mirror,
        SyncMode::MirrorDeletingForeign => Mode::MirrorDeletingForeign,
    };
    let protect = destination.holds_own.then_some(Path::new(STATE_NAME));
    let mut plan = Plan::make(&destination.base, &destination.path, root.state(), key, manifest, mode, protect).map_err(not_applied)?;
    let missing = plan.missing();
    let bytes_sent = missing.iter().filter_map(|index| sizes.get(usize::try_from(*index).ok()?)).sum();
    need(&missing)?;
    let mut unpacker = Unpacker::new(plan.receive()).map_err(not_unpacked)?;
    while let Some(bytes) = piece()? {
        unpacker.feed(&bytes).map_err(not_unpacked)?;
    }
    unpacker.finish().map_err(not_unpacked)?;
    let applied = plan.switch().map_err(not_applied)?;
    Ok(Change {
        changed: applied.changed,
        files: applied.files,
        files_changed: applied.files_changed,
        files_removed: applied.files_removed,
        bytes: applied.bytes,
        bytes_sent,
    })
}

fn not_applied(error: ApplyError) -> CallError {
    let text = with_causes(&error);
    match error {
        ApplyError::Own(_) => CallError::Denied(text),
        ApplyError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => CallError::Denied(text),
        ApplyError::Path { .. } | ApplyError::Conflict { .. } | ApplyError::Manifest(_) => CallError::Invalid(text),
        _ => CallError::Other(text),
    }
}

fn not_unpacked(error: PackError<ApplyError>) -> CallError {
    match error {
        PackError::Sink(error) => not_applied(error),
        other => CallError::Other(with_causes(&other)),
    }
}
