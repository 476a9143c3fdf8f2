//! As whom to come: keys and certificates of files and of an ssh-agent, and how they are offered.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::Certificate;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use russh::{AgentAuthError, MethodKind};
use tokio::io::AsyncReadExt as _;

use super::error::{Ending, FileProblem, SshError};
use super::host::HostKey;
use super::trust::is_valid_now;
use super::wire::{Events, Shared};
use crate::limits::{KEY_FILE_BYTES_MAX, SSH_CREDENTIALS_TRIED_MAX};

/// How the server connects: as whom, and which hosts it trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The user on the host.
    pub user: String,
    /// Private keys, tried in order. Their files are read for each connection, so that they can be replaced at any time.
    pub identities: Vec<Identity>,
    /// The socket of an ssh-agent whose keys are tried after those of `identities`.
    pub agent: Option<PathBuf>,
    /// A file in the form of `~/.ssh/known_hosts`; its `@revoked` and `@cert-authority` lines count too.
    pub known_hosts: Option<PathBuf>,
    /// Authorities whose host certificates are trusted for every host, beside those that `known_hosts` names.
    pub authorities: Vec<HostKey>,
    /// Whether a host of which no key is known is trusted the first time.
    pub first_use: bool,
    /// Where hosts are dialled, whatever their names lead to; without any, wherever another machine can be.
    pub networks: Option<Vec<IpNet>>,
    /// How long connecting may take, from the look-up of the name until the host has let the user in.
    pub connect_timeout: Duration,
    /// How often a silent host is asked whether it is there. It is lost after three times as long.
    pub keepalive_interval: Duration,
}

/// A private key's file, and perhaps the certificate for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The private key, not encrypted.
    pub key: PathBuf,
    /// An OpenSSH user certificate for this key. It is tried before the bare key.
    pub certificate: Option<PathBuf>,
}

/// Something to offer to a host.
pub(super) enum Credential {
    Key { file: PathBuf, key: Arc<PrivateKey> },
    Certificate { file: PathBuf, key: Arc<PrivateKey>, certificate: Box<Certificate> },
}

pub(super) async fn credentials(identities: &[Identity]) -> Result<Vec<Credential>, SshError> {
    let mut credentials = Vec::new();
    for identity in identities {
        let file = &identity.key;
        let key = read_key(file).await.map_err(|problem| SshError::File { file: file.clone(), problem })?;
        if let Some(file) = &identity.certificate {
            let certificate = read_certificate(file, &key, &identity.key).await;
            let certificate = certificate.map_err(|problem| SshError::File { file: file.clone(), problem })?;
            credentials.push(Credential::Certificate { file: file.clone(), key: key.clone(), certificate });
        }
        credentials.push(Credential::Key { file: file.clone(), key });
    }
    Ok(credentials)
}

async fn read_key(file: &Path) -> Result<Arc<PrivateKey>, FileProblem> {
    let text = read(file, KEY_FILE_BYTES_MAX).await?;
    match russh::keys::decode_secret_key(&text, None) {
        Ok(key) if key.is_encrypted() => Err(FileProblem::Encrypted),
        Ok(key) => Ok(Arc::new(key)),
        Err(russh::keys::Error::KeyIsEncrypted) => Err(FileProblem::Encrypted),
        // Older kinds of file: one that has this header is encrypted.
        Err(_) if text.contains("ENCRYPTED") => Err(FileProblem::Encrypted),
        Err(_) => Err(FileProblem::NoKey),
    }
}

async fn read_certificate(file: &Path, key: &PrivateKey, key_file: &Path) -> Result<Box<Certificate>, FileProblem> {
    let text = read(file, KEY_FILE_BYTES_MAX).await?;
    let certificate = Certificate::from_openssh(&text).map_err(|_| FileProblem::NoCertificate)?;
    if certificate.cert_type() != CertType::User {
        return Err(FileProblem::NoCertificate);
    }
    if certificate.public_key() != key.public_key().key_data() {
        return Err(FileProblem::OtherKey { key: key_file.into() });
    }
    if !is_valid_now(&certificate) {
        return Err(FileProblem::NotNow);
    }
    Ok(Box::new(certificate))
}

/// Signs with a key of a file in the name of a certificate. russh's own way names SHA-1 for one of an RSA key, which sshd refuses.
struct FileSigner(PrivateKeyWithHashAlg);

impl russh::Signer for FileSigner {
    type Error = AgentAuthError;

    async fn auth_sign(&mut self, _: &AgentIdentity, _: Option<HashAlg>, mut to_sign: Vec<u8>) -> Result<Vec<u8>, Self::Error> {
        use russh::keys::signature::Signer as _;
        use russh::keys::ssh_encoding::Encode as _;
        // For RSA, this signs with SHA-512.
        let signature = self.0.try_sign(&to_sign).map_err(|_| russh::keys::Error::InvalidSignature)?;
        let signature = signature.encode_vec().map_err(russh::keys::Error::SshEncoding)?;
        signature.encode(&mut to_sign).map_err(russh::keys::Error::SshEncoding)?;
        Ok(to_sign)
    }
}

/// Logs in: offers one credential after the other, those of the agent last.
struct Login<'a> {
    handle: &'a mut Handle<Events>,
    shared: &'a Shared,
    user: &'a str,
    tried: Vec<String>,
    accepted: Vec<&'static str>,
}

impl Login<'_> {
    async fn with_files(&mut self, credentials: Vec<Credential>) -> Result<bool, SshError> {
        for credential in credentials {
            if !self.may_try() {
                break;
            }
            let hash = match &credential {
                Credential::Key { key, .. } | Credential::Certificate { key, .. } => self.hash(key.algorithm()).await?,
            };
            let answer = match credential {
                Credential::Key { file, key } => {
                    self.tried.push(format!("the key {}", file.display()));
                    let key = PrivateKeyWithHashAlg::new(key, hash);
                    self.handle.authenticate_publickey(self.user, key).await.map_err(|source| self.shared.protocol(source))?
                }
                Credential::Certificate { file, key, certificate } => {
                    self.tried.push(format!("the certificate {}", file.display()));
                    let mut signer = FileSigner(PrivateKeyWithHashAlg::new(key, hash));
                    let answer = self.handle.authenticate_certificate_with(self.user, *certificate, hash, &mut signer).await;
                    answer.map_err(|error| match error {
                        AgentAuthError::Send(_) => self.shared.lost(),
                        AgentAuthError::Key(source) => self.shared.protocol(source.into()),
                    })?
                }
            };
            if self.is_in(answer)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn with_agent(&mut self, socket: &Path) -> Result<bool, SshError> {
        let agent = |source| SshError::Agent { socket: socket.into(), source };
        let mut client = AgentClient::connect_uds(socket).await.map_err(agent)?;
        if let Some(binding) = self.handle.agent_session_binding() {
            // Agents other than OpenSSH's do not know it, and need it not.
            let _ = client.bind_session(binding, false).await;
        }
        for identity in client.request_identities().await.map_err(agent)? {
            if !self.may_try() {
                break;
            }
            let key = identity.public_key().into_owned();
            let hash = self.hash(key.algorithm()).await?;
            self.tried.push(format!("the ssh-agent's key {}", key.fingerprint(HashAlg::Sha256)));
            let answer = match identity {
                AgentIdentity::PublicKey { key, .. } => self.handle.authenticate_publickey_with(self.user, key, hash, &mut client).await,
                AgentIdentity::Certificate { certificate, .. } => {
                    self.handle.authenticate_certificate_with(self.user, certificate, hash, &mut client).await
                }
            };
            let refused = match answer {
                Ok(answer) => !self.is_in(answer)?,
                Err(AgentAuthError::Send(_)) => return Err(self.shared.lost()),
                // The agent may hold keys that it does not use unasked.
                Err(AgentAuthError::Key(source)) => {
                    tracing::debug!(%source, "the ssh-agent does not sign with a key that it holds");
                    true
                }
            };
            if !refused {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn may_try(&self) -> bool {
        let wanted = self.tried.is_empty() || self.accepted.contains(&<&str>::from(&MethodKind::PublicKey));
        wanted && self.tried.len() < SSH_CREDENTIALS_TRIED_MAX
    }

    /// The hash to sign with: none to choose but for RSA, for which SHA-1 is never chosen.
    async fn hash(&self, algorithm: Algorithm) -> Result<Option<HashAlg>, SshError> {
        if !matches!(algorithm, Algorithm::Rsa { .. }) {
            return Ok(None);
        }
        let supported = self.handle.best_supported_rsa_hash().await.map_err(|source| self.shared.protocol(source))?;
        Ok(Some(supported.flatten().unwrap_or(HashAlg::Sha512)))
    }

    fn is_in(&mut self, answer: AuthResult) -> Result<bool, SshError> {
        let AuthResult::Failure { remaining_methods, .. } = answer else {
            return Ok(true);
        };
        // russh answers the end of the connection as a failure, too.
        match self.shared.ending.get() {
            None => {
                self.accepted = remaining_methods.iter().map(<&str>::from).collect();
                Ok(false)
            }
            Some(Ending::There { message }) => Err(self.refused(Some(message.clone()))),
            Some(Ending::Broken(error)) if matches!(**error, russh::Error::NoAuthMethod) => Err(self.refused(None)),
            Some(_) => Err(self.shared.lost()),
        }
    }

    fn refused(&mut self, message: Option<String>) -> SshError {
        SshError::Authentication {
            host: self.shared.host.clone(),
            user: self.user.into(),
            tried: std::mem::take(&mut self.tried),
            accepted: std::mem::take(&mut self.accepted),
            message,
        }
    }
}

pub(super) async fn log_in(
    handle: &mut Handle<Events>,
    shared: &Shared,
    settings: &Settings,
    credentials: Vec<Credential>,
) -> Result<(), SshError> {
    let mut login = Login { handle, shared, user: &settings.user, tried: Vec::new(), accepted: Vec::new() };
    if login.with_files(credentials).await? {
        return Ok(());
    }
    if let Some(socket) = &settings.agent
        && login.may_try()
        && login.with_agent(socket).await?
    {
        return Ok(());
    }
    if login.tried.is_empty() { Err(SshError::NoCredential { host: shared.host.clone() }) } else { Err(login.refused(None)) }
}

pub(super) async fn read(file: &Path, max: u64) -> Result<String, FileProblem> {
    let mut text = String::new();
    let opened = tokio::fs::File::open(file).await.map_err(FileProblem::Read)?;
    opened.take(max + 1).read_to_string(&mut text).await.map_err(FileProblem::Read)?;
    if u64::try_from(text.len()).is_ok_and(|bytes| bytes <= max) { Ok(text) } else { Err(FileProblem::TooLarge { max }) }
}
