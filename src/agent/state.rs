//! What the agent keeps between its starts, in `ROOT/.muster`, and that only one agent uses a root.

use std::fmt;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use cap_std::fs::{File, OpenOptions, OpenOptionsExt as _};
use rustix::fs::{FlockOperation, flock};

use crate::api::Baked;
use crate::limits::{BAKED_MAX, SECRET_BYTES_MAX};
use crate::machine::root::{Root, replace, sync_dir};

const LOCK_NAME: &str = "lock";
const CREDENTIAL_NAME: &str = "credential";
const KEY_NAME: &str = "registration-key";
const BAKED_NAME: &str = "baked.json";

/// Why the agent's own files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another agent runs with this root.
    #[error("another muster-agent runs with the root `{0}`")]
    Locked(String),
    /// A file can not be read or written.
    #[error("`.muster/{name}`")]
    File {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("`.muster/{0}` does not hold one line of printable text")]
    Text(&'static str),
}

/// A token or a credential. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Takes a secret from a text, without the white space around it; none if it is not one line of printable ASCII.
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.trim();
        let fits = !text.is_empty() && text.len() <= SECRET_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(text.into()))
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The agent's own directory, locked.
#[derive(Debug)]
pub struct State {
    root: Arc<Root>,
    _lock: File,
}

impl State {
    /// Locks the root's own directory until this is dropped.
    ///
    /// # Errors
    /// When another agent has it, or the machine fails.
    pub fn open(root: Arc<Root>) -> Result<Self, StateError> {
        let failed = |source| StateError::File { name: LOCK_NAME, source };
        let options = OpenOptions::new().write(true).create(true).mode(0o600).clone();
        let lock = root.state().open_with(LOCK_NAME, &options).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { root, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked(root.path().display().to_string())),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// The agent's own credential, if it was admitted.
    ///
    /// # Errors
    /// When the file is there and of no use.
    pub fn credential(&self) -> Result<Option<Secret>, StateError> {
        self.read(CREDENTIAL_NAME)
    }

    /// Keeps a credential. It is on the disk when this returns.
    ///
    /// # Errors
    /// When the machine fails.
    pub fn admitted(&self, credential: &Secret) -> Result<(), StateError> {
        self.write(CREDENTIAL_NAME, credential)?;
        // The key would let whoever has the join token as well ask for a credential of this agent's.
        self.remove(KEY_NAME)
    }

    /// The key under which the agent asks to be admitted; the same until it is. So an answer that was lost is given again.
    ///
    /// # Errors
    /// When the machine fails.
    pub fn registration_key(&self) -> Result<Secret, StateError> {
        if let Some(key) = self.read(KEY_NAME)? {
            return Ok(key);
        }
        let key = Secret(hex::encode(rand::random::<[u8; 32]>()).into());
        self.write(KEY_NAME, &key)?;
        Ok(key)
    }

    /// Forgets the credential, which the server does not know any more.
    ///
    /// # Errors
    /// When the machine fails.
    pub fn forget(&self) -> Result<(), StateError> {
        self.remove(KEY_NAME)?;
        self.remove(CREDENTIAL_NAME)
    }

    /// Keeps what was baked into the image, for the registration of agents that start from it.
    ///
    /// # Errors
    /// When the machine fails.
    pub fn baked(&self, baked: &[Baked]) -> Result<(), StateError> {
        let failed = |source| StateError::File { name: BAKED_NAME, source };
        let text = serde_json::to_vec(baked).map_err(|error| failed(error.into()))?;
        replace(self.root.state(), Path::new(BAKED_NAME), &text, 0o600).map_err(failed)
    }

    /// What was baked into the image; nothing, if that can not be read.
    pub fn read_baked(&self) -> Vec<Baked> {
        let read = self.root.state().read(BAKED_NAME).ok().and_then(|text| serde_json::from_slice::<Vec<Baked>>(&text).ok());
        read.unwrap_or_default().into_iter().take(BAKED_MAX).collect()
    }

    fn read(&self, name: &'static str) -> Result<Option<Secret>, StateError> {
        let failed = |source| StateError::File { name, source };
        let file = match self.root.state().open(name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut text = String::new();
        let limit = u64::try_from(SECRET_BYTES_MAX).unwrap_or(u64::MAX);
        file.take(limit).read_to_string(&mut text).map_err(failed)?;
        Secret::from_text(&text).map(Some).ok_or(StateError::Text(name))
    }

    fn write(&self, name: &'static str, secret: &Secret) -> Result<(), StateError> {
        let text = format!("{}\n", secret.reveal());
        replace(self.root.state(), Path::new(name), text.as_bytes(), 0o600).map_err(|source| StateError::File { name, source })
    }

    fn remove(&self, name: &'static str) -> Result<(), StateError> {
        let failed = |source| StateError::File { name, source };
        match self.root.state().remove_file(name) {
            Ok(()) => sync_dir(self.root.state()).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}
