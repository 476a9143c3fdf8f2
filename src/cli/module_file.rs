//! A module's file on this machine: a component, or, by its name, a script.

use std::io::Read as _;
use std::path::Path;

use bytes::Bytes;

use crate::cli::CliError;
use crate::limits::MODULE_BYTES_MAX;
use crate::names::ScriptName;
use crate::sandbox::script::Script;

/// The name of a script's file, if it is one.
pub(crate) fn script_name(path: &Path) -> Result<Option<ScriptName>, CliError> {
    if !path.extension().is_some_and(|extension| extension == "js" || extension == "mjs") {
        return Ok(None);
    }
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    name.parse().map(Some).map_err(|error| CliError::failed(format!("take {}", path.display()), error))
}

/// A module's bytes: a component's are the file's own, a script's say for which runner it is as well.
pub(crate) fn read(path: &Path) -> Result<Bytes, CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("read {}", path.display()), error);
    let file = std::fs::File::open(path).map_err(failed)?;
    check_size(path, file.metadata().map_err(failed)?.len())?;
    let mut bytes = Vec::new();
    file.take(u64::try_from(MODULE_BYTES_MAX).unwrap_or(u64::MAX)).read_to_end(&mut bytes).map_err(failed)?;
    match script_name(path)? {
        None => Ok(bytes.into()),
        Some(name) => {
            let script = Script::new(name, &bytes).map_err(|error| CliError::failed(format!("take {}", path.display()), error))?;
            Ok(script.bytes())
        }
    }
}

/// Refuses a file that is larger than modules are.
pub(crate) fn check_size(path: &Path, bytes: u64) -> Result<(), CliError> {
    if usize::try_from(bytes).is_ok_and(|bytes| bytes <= MODULE_BYTES_MAX) {
        return Ok(());
    }
    Err(CliError::failed(format!("take {}", path.display()), format!("it has {bytes} bytes; a module has at most {MODULE_BYTES_MAX}")))
}
