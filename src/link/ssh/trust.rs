//! Whom to trust: what is known of a host, and what its key and its certificate are worth.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use russh::keys::ssh_key::Certificate;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::known_hosts::HostPatterns;
use russh::keys::{Algorithm, HashAlg};
use russh::{Preferred, cipher};

use super::error::{CertificateProblem, FileProblem, HostKeyProblem, KeyPlace, SshError};
use super::host::{ALGORITHMS, Host, HostKey, HostKeyTextError, shown};
use super::login::{Settings, read};
use crate::limits::KNOWN_HOSTS_BYTES_MAX;

/// What is offered to encrypt with. AES-GCM comes first: where the processor knows AES it takes half the time of the next.
const CIPHERS: [cipher::Name; 5] =
    [cipher::AES_256_GCM, cipher::CHACHA20_POLY1305, cipher::AES_256_CTR, cipher::AES_192_CTR, cipher::AES_128_CTR];

/// What is trusted of one host, for one connection.
pub(super) struct Trust {
    host: Host,
    /// If there are any, the host must have one of these.
    pub(super) expected: Vec<Expected>,
    authorities: Vec<HostKey>,
    revoked: Vec<Expected>,
    first_use: bool,
}

pub(super) struct Expected {
    pub(super) key: HostKey,
    pub(super) place: KeyPlace,
}

/// What a file of known hosts says of one host.
#[derive(Default)]
struct Known {
    keys: Vec<(usize, HostKey)>,
    authorities: Vec<HostKey>,
    revoked: Vec<(usize, HostKey)>,
}

impl Trust {
    pub(super) async fn gather(
        settings: &Settings,
        host: &Host,
        pinned: Option<&HostKey>,
        remembered: Option<&HostKey>,
    ) -> Result<Self, SshError> {
        let mut known = Known::default();
        let mut file = PathBuf::new();
        if let Some(path) = &settings.known_hosts {
            let wrong = |problem| SshError::File { file: path.clone(), problem };
            let text = read(path, KNOWN_HOSTS_BYTES_MAX).await.map_err(wrong)?;
            known = known_hosts(&text, host).map_err(|line| wrong(FileProblem::Line { line }))?;
            file.clone_from(path);
        }
        let place = |(line, key)| Expected { key, place: KeyPlace::KnownHosts { file: file.clone(), line } };
        let revoked = known.revoked.into_iter().map(place).collect();
        let one = |key: &HostKey, place| vec![Expected { key: key.clone(), place }];
        let (expected, authorities, first_use) = match (pinned, remembered) {
            (Some(key), _) => (one(key, KeyPlace::Registration), Vec::new(), false),
            (None, Some(key)) => (one(key, KeyPlace::FirstUse), Vec::new(), false),
            (None, None) => {
                let expected = known.keys.into_iter().map(place).collect();
                known.authorities.extend(settings.authorities.iter().cloned());
                (expected, known.authorities, settings.first_use)
            }
        };
        Ok(Self { host: host.clone(), expected, authorities, revoked, first_use })
    }

    /// What to ask the host for: certificates only if one could be trusted, and only keys of a kind that is expected, as a host shows one
    /// key of several.
    pub(super) fn algorithms(&self) -> Preferred {
        let mut keys: Vec<Algorithm> = Vec::new();
        for algorithm in self.expected.iter().flat_map(|expected| expected.key.algorithms()) {
            if !keys.contains(&algorithm) {
                keys.push(algorithm);
            }
        }
        let certificates = if self.authorities.is_empty() { Vec::new() } else { ALGORITHMS.to_vec() };
        Preferred {
            key: Cow::Owned(if keys.is_empty() { ALGORITHMS.to_vec() } else { keys }),
            host_key_certificates: Cow::Owned(certificates),
            cipher: Cow::Borrowed(&CIPHERS),
            ..Preferred::DEFAULT
        }
    }

    /// Whether to go on with a host that has proved to hold this key; the key, if it is one to remember.
    pub(super) fn judge(&self, key: &HostKey, certificate: Option<&Certificate>) -> Result<Option<HostKey>, HostKeyProblem> {
        let fingerprint = key.fingerprint();
        let signer = certificate.map(Certificate::signature_key);
        let is_revoked = |revoked: &&Expected| revoked.key == *key || signer == Some(&revoked.key.0);
        if let Some(Expected { place: KeyPlace::KnownHosts { file, line }, .. }) = self.revoked.iter().find(is_revoked) {
            return Err(HostKeyProblem::Revoked { fingerprint, file: file.clone(), line: *line });
        }
        if self.expected.iter().any(|expected| expected.key == *key) {
            return Ok(None);
        }
        if let Some(certificate) = certificate {
            return match self.check_certificate(certificate) {
                Ok(()) => Ok(None),
                Err(problem) => Err(HostKeyProblem::Certificate { fingerprint, problem }),
            };
        }
        if let Some(Expected { key, place }) = self.expected.first() {
            return Err(HostKeyProblem::Changed { fingerprint, expected: key.fingerprint(), place: place.clone() });
        }
        if self.first_use { Ok(Some(key.clone())) } else { Err(HostKeyProblem::Unknown { fingerprint }) }
    }

    fn check_certificate(&self, certificate: &Certificate) -> Result<(), CertificateProblem> {
        let authority = certificate.signature_key();
        if !self.authorities.iter().any(|trusted| trusted.0 == *authority) {
            let authority = authority.fingerprint(HashAlg::Sha256).to_string();
            return Err(CertificateProblem::Authority { authority });
        }
        let sha1 = matches!(certificate.signature().algorithm(), Algorithm::Rsa { hash: None });
        if sha1 || certificate.verify_signature().is_err() {
            return Err(CertificateProblem::Signature);
        }
        if certificate.cert_type() != CertType::Host {
            return Err(CertificateProblem::Kind);
        }
        if !is_valid_now(certificate) {
            return Err(CertificateProblem::NotNow);
        }
        if !certificate.critical_options().is_empty() {
            return Err(CertificateProblem::Option);
        }
        // As with OpenSSH, a principal may be a pattern. Unlike with OpenSSH, a certificate without one is not for every host.
        let principals = certificate.valid_principals();
        if !principals.iter().any(|principal| glob(principal.to_ascii_lowercase().as_bytes(), self.host.name().as_bytes())) {
            return Err(CertificateProblem::Principal { principals: shown(&principals.join(", ")) });
        }
        Ok(())
    }
}

pub(super) fn is_valid_now(certificate: &Certificate) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    (certificate.valid_after()..certificate.valid_before()).contains(&now)
}

/// What the lines of a file of known hosts say of a host; the number of the line that can not be passed over, if there is one.
///
/// A key counts for the host with exactly this port. Authorities and revoked keys count for all ports of a name, as with OpenSSH.
fn known_hosts(text: &str, host: &Host) -> Result<Known, usize> {
    let known_as = host.known_as();
    let mut known = Known::default();
    for (line, number) in text.lines().zip(1..) {
        let mut fields = line.split_ascii_whitespace().peekable();
        let marker = fields.next_if(|field| field.starts_with('@'));
        let Some(patterns) = fields.next().filter(|field| !field.starts_with('#')) else {
            if marker.is_some() { return Err(number) } else { continue }
        };
        let key = fields.collect::<Vec<_>>().join(" ").parse::<HostKey>();
        let here = matches(patterns, &known_as);
        let anywhere = here || matches(patterns, host.name());
        match (marker, key) {
            (None, Ok(key)) if here => known.keys.push((number, key)),
            (Some("@cert-authority"), Ok(key)) if anywhere => known.authorities.push(key),
            (Some("@revoked"), Ok(key)) if anywhere => known.revoked.push((number, key)),
            (Some("@cert-authority" | "@revoked") | None, Ok(_)) => {}
            // The host is not asked for such a key, so that it can not matter.
            (Some("@cert-authority" | "@revoked"), Err(HostKeyTextError::Kind)) => {}
            (None, Err(_)) => tracing::debug!(line = number, "a line of the file of known hosts is passed over"),
            (Some(_), _) => return Err(number),
        }
    }
    Ok(known)
}

/// Whether the first field of a line of known hosts is for this name.
fn matches(patterns: &str, name: &str) -> bool {
    if patterns.starts_with("|1|") {
        let Ok(HostPatterns::HashedName { salt, hash }) = patterns.parse() else {
            return false;
        };
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
        return hmac::verify(&key, name.as_bytes(), &hash).is_ok();
    }
    let mut found = false;
    for pattern in patterns.to_ascii_lowercase().split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if glob(pattern.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => found |= glob(pattern.as_bytes(), name.as_bytes()),
        }
    }
    found
}

/// Whether a pattern with `*` and `?` is for a text. It takes time of at most the product of the two lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // What follows the last `*`, and where in the text it was tried last.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern, text) {
            ([], []) => return true,
            ([b'*', after @ ..], _) => {
                star = Some((after, text));
                pattern = after;
            }
            ([one, after @ ..], [byte, rest @ ..]) if *one == b'?' || one == byte => (pattern, text) = (after, rest),
            _ => {
                let Some((after, [_, rest @ ..])) = star else {
                    return false;
                };
                star = Some((after, rest));
                (pattern, text) = (after, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_for_what_they_say() {
        for (pattern, text, is_for) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*.b", "a.b", true),
            ("*.b", ".c", false),
            ("a*b*c", "axxbxbyc", true),
            ("a*b*c", "axxbxby", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*?", "a", true),
            ("**a", "a", true),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), is_for, "{pattern} {text}");
        }
        assert!(!glob("*a".repeat(5_000).as_bytes(), "a".repeat(4_000).as_bytes()), "takes no time to speak of");
        assert!(matches("A.example,*.b", "a.example"));
        assert!(!matches("*,!a", "a"));
        // `ssh-keygen -H` made this of `example.com`.
        let hashed = "|1|O33ESRMWPVkMYIwJ1Uw+n877jTo=|nuuC5vEqXlEZ/8BXQR7m619W6Ak=";
        assert!(matches(hashed, "example.com") && !matches(hashed, "example.org") && !matches("|1|x|y", "example.com"));
    }
}
