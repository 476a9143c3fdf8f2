//! Secrets: a file each, `TEAM/NAME` below one directory, which admins write and Muster only reads.

use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt as _};

use crate::limits::SECRET_BYTES_MAX;
use crate::names::{SecretName, TeamName};

/// Why a secret was not read. Never says anything of its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The secrets' directory can not be used.
    #[error("the directory of secrets can not be used")]
    Directory(#[source] io::Error),
    /// The file can not be read.
    #[error("the secret {team}/{name} can not be read")]
    Read {
        /// Whose.
        team: TeamName,
        /// Which.
        name: SecretName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than the file's owner may read or write it.
    #[error("the secret {team}/{name} has mode {mode:03o}: only its owner may have access, as with mode 600")]
    Open {
        /// Whose.
        team: TeamName,
        /// Which.
        name: SecretName,
        /// The file's mode.
        mode: u32,
    },
    /// It is no file.
    #[error("the secret {team}/{name} is no regular file")]
    Kind {
        /// Whose.
        team: TeamName,
        /// Which.
        name: SecretName,
    },
    /// The file is too large.
    #[error("the secret {team}/{name} has more than {SECRET_BYTES_MAX} bytes")]
    TooLarge {
        /// Whose.
        team: TeamName,
        /// Which.
        name: SecretName,
    },
}

/// The secrets. Clones share the directory.
#[derive(Debug, Clone)]
pub struct Secrets {
    dir: Arc<Dir>,
}

impl Secrets {
    /// Opens the directory of secrets, and makes it, for its owner alone, if it is missing.
    ///
    /// # Errors
    /// The directory can not be made or opened.
    pub fn open(dir: &Path) -> Result<Self, SecretError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(SecretError::Directory)?;
        let dir = Dir::open_ambient_dir(dir, ambient_authority()).map_err(SecretError::Directory)?;
        Ok(Self { dir: Arc::new(dir) })
    }

    /// Reads a secret from its file, each time anew; none if there is no such file. One newline at its end is cut.
    ///
    /// # Errors
    /// The file is too large, is open to others than its owner, or can not be read.
    pub async fn get(&self, team: &TeamName, name: &SecretName) -> Result<Option<Vec<u8>>, SecretError> {
        let (dir, team, name) = (Arc::clone(&self.dir), team.clone(), name.clone());
        match tokio::task::spawn_blocking(move || read(&dir, team, name)).await {
            Ok(read) => read,
            Err(error) => Err(SecretError::Directory(io::Error::other(error))),
        }
    }
}

fn read(dir: &Dir, team: TeamName, name: SecretName) -> Result<Option<Vec<u8>>, SecretError> {
    let path = Path::new(team.as_str()).join(name.as_str());
    // What is no file is found out before it is opened: opening a pipe waits for its writer.
    let opened = dir.metadata(&path).and_then(|metadata| if metadata.is_file() { dir.open(&path).map(Some) } else { Ok(None) });
    let file = match opened {
        Ok(Some(file)) => file,
        Ok(None) => return Err(SecretError::Kind { team, name }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SecretError::Read { team, name, source }),
    };
    let mut content = Vec::new();
    let read = file.metadata().map(|metadata| metadata.mode() & 0o777);
    let mode = match read {
        Ok(mode) => mode,
        Err(source) => return Err(SecretError::Read { team, name, source }),
    };
    if mode & 0o077 != 0 {
        return Err(SecretError::Open { team, name, mode });
    }
    // A newline that is cut may come on top of the limit; more is not even read.
    if let Err(source) = file.take(SECRET_BYTES_MAX as u64 + 2).read_to_end(&mut content) {
        return Err(SecretError::Read { team, name, source });
    }
    if content.ends_with(b"\n") {
        content.pop();
        if content.ends_with(b"\r") {
            content.pop();
        }
    }
    if content.len() > SECRET_BYTES_MAX {
        return Err(SecretError::TooLarge { team, name });
    }
    Ok(Some(content))
}
