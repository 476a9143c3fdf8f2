//! What a launched program writes: `.muster/launched.log`, and before it was full `launched.log.1`.

use std::io;

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt as _};
use tokio::io::AsyncWriteExt as _;

use crate::limits::LAUNCHED_LOG_BYTES_MAX;
use crate::machine::root::Root;

const NAME: &str = "launched.log";
const OLD_NAME: &str = "launched.log.1";

/// The log, open for writing at its end.
#[derive(Debug)]
pub(super) struct LaunchedLog {
    dir: Dir,
    file: tokio::fs::File,
    bytes: u64,
}

impl LaunchedLog {
    /// Opens the log, and makes it if there is none.
    ///
    /// # Errors
    /// When the machine fails.
    pub(super) fn open(root: &Root) -> io::Result<Self> {
        let dir = root.state().try_clone()?;
        let (file, bytes) = open(&dir)?;
        Ok(Self { dir, file, bytes })
    }

    /// Writes the buffer's bytes and empties it. A full disk loses lines, and does not end the program that wrote them.
    pub(super) async fn write(&mut self, buffer: &mut Vec<u8>) {
        if let Err(error) = self.try_write(buffer).await {
            tracing::debug!("`.muster/{NAME}`: {error}");
        }
        buffer.clear();
    }

    async fn try_write(&mut self, buffer: &[u8]) -> io::Result<()> {
        if self.bytes >= LAUNCHED_LOG_BYTES_MAX {
            self.dir.rename(NAME, &self.dir, OLD_NAME)?;
            (self.file, self.bytes) = open(&self.dir)?;
        }
        self.file.write_all(buffer).await?;
        self.file.flush().await?;
        self.bytes = self.bytes.saturating_add(u64::try_from(buffer.len()).unwrap_or(u64::MAX));
        Ok(())
    }
}

fn open(dir: &Dir) -> io::Result<(tokio::fs::File, u64)> {
    let file = dir.open_with(NAME, OpenOptions::new().append(true).create(true).mode(0o600))?;
    let bytes = file.metadata()?.len();
    Ok((tokio::fs::File::from_std(file.into_std()), bytes))
}
