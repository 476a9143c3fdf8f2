//! Names and digests: parsed once at the border, then trusted.
//!
//! Every name here is made of ASCII letters, digits, `.`, `_` and `-`, and begins with a letter or a digit. So a name is safe as a path
//! component, in a URL and in a log line, and can not be mistaken for an option.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::limits::NAME_BYTES_MAX;

/// Why a text is not a name or a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("{kind} can not be empty")]
    Empty {
        /// What the text was to name.
        kind: &'static str,
    },
    /// The text is too long.
    #[error("{kind} has at most {NAME_BYTES_MAX} bytes, this one has {bytes}")]
    TooLong {
        /// What the text was to name.
        kind: &'static str,
        /// How long it is.
        bytes: usize,
    },
    /// The text holds a character that names do not have.
    #[error("{kind} is made of letters, digits, `.`, `_` and `-`, and begins with a letter or a digit: `{text}` is not one")]
    Character {
        /// What the text was to name.
        kind: &'static str,
        /// The text, with what can not be printed escaped.
        text: String,
    },
    /// The text is no sha256 in hexadecimal.
    #[error("a digest is `sha256:` and 64 hexadecimal digits in lower case (the prefix may be left out): `{text}` is not one")]
    Digest {
        /// The text, with what can not be printed escaped, and cut.
        text: String,
    },
}

fn check(kind: &'static str, text: &str) -> Result<(), NameError> {
    let mut bytes = text.bytes();
    let Some(first) = bytes.next() else {
        return Err(NameError::Empty { kind });
    };
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { kind, bytes: text.len() });
    }
    let fits = first.is_ascii_alphanumeric() && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if fits { Ok(()) } else { Err(NameError::Character { kind, text: text.escape_default().to_string() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check($kind, text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// The name of an agent.
    AgentName,
    "an agent's name"
);
name!(
    /// A label: what ties agents to jobs and to provisioning.
    LabelName,
    "a label"
);
name!(
    /// The name under which a module is uploaded.
    ModuleName,
    "a module's name"
);
name!(
    /// The name of a script's file.
    ScriptName,
    "a script's file name"
);
name!(
    /// The name of a bundle.
    BundleName,
    "a bundle's name"
);
name!(
    /// The name of a team.
    TeamName,
    "a team's name"
);
name!(
    /// The name of a controller.
    ControllerName,
    "a controller's name"
);
name!(
    /// The name of a secret.
    SecretName,
    "a secret's name"
);

/// A sha256, written as 64 hexadecimal digits in lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest that a finished hasher holds.
    pub fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// A digest from its 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 digits, for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 64];
        // Two digits a byte: they fit, and are ASCII.
        let _ = hex::encode_to_slice(self.0, &mut digits);
        f.pad(std::str::from_utf8(&digits).unwrap_or_default())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let mut bytes = [0; 32];
        let lower = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !lower || hex::decode_to_slice(digits, &mut bytes).is_err() {
            return Err(NameError::Digest { text: text.chars().take(80).collect::<String>().escape_default().to_string() });
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_letters_digits_and_three_marks() {
        for good in ["a", "linux-large", "jdk-17.0_2", "0"] {
            assert_eq!(good.parse::<LabelName>().unwrap().as_str(), good);
        }
        for bad in ["", "-o", ".", "..", "a/b", "a b", "ä", "a\0", "a%2f", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(bad.parse::<LabelName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_digest_is_read_with_and_without_its_prefix() {
        let digest = Digest::of(b"abc");
        assert_eq!(format!("sha256:{digest}").parse(), Ok(digest));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in ["", "sha256:", "sha256:00", &digest.to_string().to_uppercase(), &format!("{digest}0")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?} was taken");
        }
    }
}
