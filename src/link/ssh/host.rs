//! Which machine: where its sshd is, and the key by which it is known.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use russh::keys::ssh_key::PublicKey;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg};

use crate::limits::{HOST_BYTES_MAX, HOST_KEY_BYTES_MAX, HOST_LABEL_BYTES_MAX, SSH_PORT, SSH_SHOWN_CHARS_MAX};

/// Where a host's sshd is reached: a DNS name or an IP address, and a port.
///
/// Parsed once, then trusted: it holds no character that a shell, an option parser or a file of known hosts would read as anything else.
/// Written and read as `name`, `name:port`, `address`, `[v6 address]` and `[v6 address]:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    name: Box<str>,
    port: u16,
}

/// Why a text is no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The text names nothing.
    #[error("a host's name can not be empty")]
    Empty,
    /// The text is too long.
    #[error("a host's name has at most {HOST_BYTES_MAX} bytes, this one has {bytes}")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// The text holds what is in no name.
    #[error("a host is a name of letters, digits, `-` and `.`, or an IP address: `{text}` holds {character:?}")]
    Character {
        /// The text, with what can not be printed escaped.
        text: String,
        /// The first character that does not belong.
        character: char,
    },
    /// A part between two dots is empty, too long, or begins or ends with `-`.
    #[error(
        "each part of a host's name has 1 to {HOST_LABEL_BYTES_MAX} characters and neither begins nor ends with `-`: \
         `{text}` has the part `{label}`"
    )]
    Label {
        /// The text.
        text: String,
        /// The part.
        label: String,
    },
    /// The text ends like an IPv4 address and is none. Resolvers read `2130706433` and `0x7f.1` as addresses.
    #[error("`{text}` ends in a number, as only an IPv4 address does, and is none")]
    Number {
        /// The text.
        text: String,
    },
    /// What stands in brackets is no IPv6 address.
    #[error("`{text}` is no IPv6 address in brackets")]
    Brackets {
        /// The text, with what can not be printed escaped.
        text: String,
    },
    /// What follows the name is no port.
    #[error("a port is a number from 1 to 65535, `{text}` is none")]
    Port {
        /// What follows the name, with what can not be printed escaped.
        text: String,
    },
}

impl Host {
    /// The name in lower case, or the address in its usual form, without brackets.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same port at an address.
    pub fn at(&self, address: IpAddr) -> Self {
        Self { name: address.to_string().into(), port: self.port }
    }

    /// How a file of known hosts names it.
    pub(super) fn known_as(&self) -> Cow<'_, str> {
        if self.port == SSH_PORT { Cow::Borrowed(self.name()) } else { Cow::Owned(format!("[{}]:{}", self.name, self.port)) }
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { name: address.to_string().into(), port: SSH_PORT });
        }
        if let Some(rest) = text.strip_prefix('[') {
            let brackets = || HostError::Brackets { text: shown(text) };
            let (inside, after) = rest.split_once(']').ok_or_else(brackets)?;
            let address: Ipv6Addr = inside.parse().map_err(|_| brackets())?;
            let port = match after.strip_prefix(':') {
                Some(digits) => port(digits)?,
                None if after.is_empty() => SSH_PORT,
                None => return Err(HostError::Port { text: shown(after) }),
            };
            return Ok(Self { name: address.to_string().into(), port });
        }
        let (name, digits) = match text.split_once(':') {
            Some((name, digits)) => (name, Some(digits)),
            None => (text, None),
        };
        let name = name.to_ascii_lowercase();
        check_name(&name)?;
        let port = digits.map_or(Ok(SSH_PORT), port)?;
        Ok(Self { name: name.into(), port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.contains(':'), self.port == SSH_PORT) {
            (_, true) => f.write_str(&self.name),
            (true, false) => write!(f, "[{}]:{}", self.name, self.port),
            (false, false) => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

fn check_name(name: &str) -> Result<(), HostError> {
    if name.is_empty() {
        return Err(HostError::Empty);
    }
    if name.len() > HOST_BYTES_MAX {
        return Err(HostError::TooLong { bytes: name.len() });
    }
    if let Some(character) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))) {
        return Err(HostError::Character { text: shown(name), character });
    }
    let fits = |label: &&str| (1..=HOST_LABEL_BYTES_MAX).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-');
    if let Some(label) = name.split('.').find(|label| !fits(label)) {
        return Err(HostError::Label { text: name.into(), label: label.into() });
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    let number = match last.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
    };
    if number && name.parse::<Ipv4Addr>().is_err() {
        return Err(HostError::Number { text: name.into() });
    }
    Ok(())
}

fn port(digits: &str) -> Result<u16, HostError> {
    let number = if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None };
    number.filter(|port| *port != 0).ok_or_else(|| HostError::Port { text: shown(digits) })
}

/// A text from elsewhere, fit for an error: cut, with what can not be printed escaped.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SSH_SHOWN_CHARS_MAX).collect::<String>().escape_default().to_string()
}

/// The public key of a host, or of an authority that signs hosts' certificates.
///
/// Read from the text that OpenSSH writes, `ssh-ed25519 AAAA… comment`; written without the comment.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey(pub(super) KeyData);

/// Why a text is no host key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostKeyTextError {
    /// It is not what OpenSSH writes.
    #[error("a host key is one line as OpenSSH writes it: {0}")]
    Malformed(&'static str),
    /// It is a key of a kind that hosts are not asked for.
    #[error("a host key is of the kind Ed25519, ECDSA or RSA")]
    Kind,
}

impl HostKey {
    /// The fingerprint as OpenSSH shows it: `SHA256:…`.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The names under which a host may offer this key, the best first. RSA with SHA-1 is none of them.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        match self.0.algorithm() {
            Algorithm::Rsa { .. } => RSA.to_vec(),
            other => vec![other],
        }
    }
}

impl FromStr for HostKey {
    type Err = HostKeyTextError;

    fn from_str(text: &str) -> Result<Self, HostKeyTextError> {
        let wrong = HostKeyTextError::Malformed;
        if text.len() > HOST_KEY_BYTES_MAX {
            return Err(wrong("it is too long"));
        }
        if text.trim().contains('\n') {
            return Err(wrong("it has more than one line"));
        }
        let mut fields = text.split_ascii_whitespace();
        let (Some(algorithm), Some(base64)) = (fields.next(), fields.next()) else {
            return Err(wrong("it has no two fields"));
        };
        let key = russh::keys::parse_public_key_base64(base64).map_err(|_| wrong("its second field is no public key"))?;
        if key.algorithm().as_str() != algorithm {
            return Err(wrong("its first field is not the kind of its key"));
        }
        match key.key_data() {
            KeyData::Ed25519(_) | KeyData::Ecdsa(_) | KeyData::Rsa(_) => Ok(Self(key.key_data().clone())),
            _ => Err(HostKeyTextError::Kind),
        }
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = PublicKey::new(self.0.clone(), "").to_openssh().map_err(|_| fmt::Error)?;
        f.write_str(text.trim_end())
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({})", self.fingerprint())
    }
}

const RSA: [Algorithm; 2] = [Algorithm::Rsa { hash: Some(HashAlg::Sha512) }, Algorithm::Rsa { hash: Some(HashAlg::Sha256) }];

/// What is offered to a host of which no key is known, the best first.
pub(super) const ALGORITHMS: [Algorithm; 6] = {
    let [sha512, sha256] = RSA;
    [
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        sha512,
        sha256,
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Result<(String, u16), HostError> {
        text.parse().map(|host: Host| (host.name().to_owned(), host.port()))
    }

    #[test]
    fn hosts_are_names_and_addresses_with_or_without_a_port() {
        for (text, name, port) in [
            ("build-7.Example.com", "build-7.example.com", 22),
            ("a", "a", 22),
            ("a:2222", "a", 2222),
            ("10.0.0.1", "10.0.0.1", 22),
            ("10.0.0.1:65535", "10.0.0.1", 65535),
            ("::1", "::1", 22),
            ("2001:DB8::0:1", "2001:db8::1", 22),
            ("[::1]", "::1", 22),
            ("[fe80::1]:23", "fe80::1", 23),
            ("7zip.example.7z", "7zip.example.7z", 22),
            (&"a".repeat(63), &"a".repeat(63), 22),
            (&format!("{}b", "a.".repeat(126)), &format!("{}b", "a.".repeat(126)), 22),
        ] {
            assert_eq!(host(text), Ok((name.to_owned(), port)), "{text}");
            let parsed: Host = text.parse().unwrap();
            assert_eq!(parsed.to_string().parse::<Host>().unwrap(), parsed);
        }
        let known_as = |text: &str| text.parse::<Host>().unwrap().known_as().into_owned();
        assert_eq!(["a", "a:23", "::1", "[::1]:23"].map(known_as), ["a", "[a]:23", "::1", "[::1]:23"]);
    }

    #[test]
    fn what_is_no_host_is_refused_with_the_cause() {
        for (text, cause) in [
            ("", "a host's name can not be empty"),
            (":22", "a host's name can not be empty"),
            ("-oProxyCommand=x", "`-oproxycommand=x` holds '='"),
            ("-v", "has the part `-v`"),
            ("a b", "holds ' '"),
            ("a;b", "holds ';'"),
            ("$(x)", "holds '$'"),
            ("a\n", "`a\\n` holds '\\n'"),
            ("a\0", "holds '\\0'"),
            ("user@host", "holds '@'"),
            ("a/b", "holds '/'"),
            ("a*", "holds '*'"),
            ("a_b", "holds '_'"),
            ("b\u{fc}cher.de", "holds '\u{fc}'"),
            ("a..b", "has the part ``"),
            (".a", "has the part ``"),
            ("a.", "has the part ``"),
            ("a-.b", "has the part `a-`"),
            ("2130706433", "ends in a number"),
            ("127.1", "ends in a number"),
            ("0x7f.1", "ends in a number"),
            ("a.0x7F", "ends in a number"),
            ("10.0.0.256", "ends in a number"),
            ("a:", "a port is a number from 1 to 65535, `` is none"),
            ("a:0", "`0` is none"),
            ("a:65536", "`65536` is none"),
            ("a:+22", "`+22` is none"),
            ("a:22 ", "`22 ` is none"),
            ("a:22:22", "`22:22` is none"),
            ("[::1", "is no IPv6 address in brackets"),
            ("[a]:22", "is no IPv6 address in brackets"),
            ("[::1]22", "`22` is none"),
            ("fe80::1%eth0", "is none"),
            (&"a".repeat(64), "has the part `aaaa"),
            (&"a.".repeat(127), "has at most 253 bytes, this one has 254"),
        ] {
            let error = host(text).unwrap_err().to_string();
            assert!(error.contains(cause), "{text:?}: {error}");
        }
    }

    #[test]
    fn host_keys_are_read_with_and_without_a_comment() {
        let text = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let key: HostKey = format!(" {text} somebody@somewhere \n").parse().unwrap();
        assert_eq!(key, text.parse().unwrap());
        assert_eq!(key.to_string(), text);
        assert!(key.fingerprint().starts_with("SHA256:"));
        let rsa = text.replace("ssh-ed25519", "ssh-rsa");
        let two = format!("{text}\n{text}");
        let cut = text.get(..60).unwrap();
        for wrong in ["", "ssh-ed25519", "ssh-ed25519 x", cut, &rsa, &two, &"x ".repeat(4096)] {
            assert!(wrong.parse::<HostKey>().is_err(), "{wrong}");
        }
    }
}
