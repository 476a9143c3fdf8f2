//! Secrets that are handed out: made, written, read, checked.
//!
//! A credential is written `mst_ID_SECRET` for a token and `msa_ID_SECRET` for an agent's own: the id finds the row, and the sha256 of
//! the secret is compared with the row's in constant time. A secret is 32 random bytes, so a fast hash is enough; the server keeps the
//! hash alone.

use std::fmt;

use subtle::ConstantTimeEq;

use crate::names::Digest;

/// Whose credential it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Whoever holds a token.
    Token,
    /// One agent.
    Agent,
}

impl Holder {
    fn prefix(self) -> &'static str {
        match self {
            Self::Token => "mst",
            Self::Agent => "msa",
        }
    }
}

/// A credential as it was presented. It is not shown by `Debug`.
pub struct Credential {
    /// Whose it claims to be.
    pub holder: Holder,
    /// The id of the row to compare with.
    pub id: String,
    hash: Digest,
}

/// A credential just made: the one moment in which its text is there.
pub struct Made {
    /// The id.
    pub id: String,
    /// What to hand out.
    pub text: String,
    /// What to keep.
    pub hash: String,
}

impl Credential {
    /// Reads a credential; none if the text is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('_');
        let (prefix, id, secret) = (parts.next()?, parts.next()?, parts.next()?);
        let holder = [Holder::Token, Holder::Agent].into_iter().find(|holder| holder.prefix() == prefix)?;
        let hexadecimal = |text: &str, digits| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let fits = parts.next().is_none() && hexadecimal(id, 32) && hexadecimal(secret, 64);
        fits.then(|| Self { holder, id: id.to_owned(), hash: Digest::of(secret.as_bytes()) })
    }

    /// Whether it is the credential whose hash was kept.
    pub fn fits(&self, hash: &str) -> bool {
        hash.parse::<Digest>().is_ok_and(|hash| hash.as_bytes().ct_eq(self.hash.as_bytes()).into())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({:?} {})", self.holder, self.id)
    }
}

/// Makes a credential for an id of 32 hexadecimal digits.
pub fn make(holder: Holder, id: String) -> Made {
    let secret = hex::encode(rand::random::<[u8; 32]>());
    let hash = Digest::of(secret.as_bytes()).to_string();
    Made { text: format!("{}_{id}_{secret}", holder.prefix()), id, hash }
}

/// Makes an id of 32 hexadecimal digits that sorts by time and is never used twice.
pub fn new_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_fits_its_own_hash_alone() {
        let (one, other) = (make(Holder::Agent, new_id()), make(Holder::Agent, new_id()));
        let read = Credential::parse(&one.text).unwrap();
        assert_eq!((read.holder, &read.id), (Holder::Agent, &one.id));
        assert!(read.fits(&one.hash));
        assert!(!read.fits(&other.hash));
        assert!(!read.fits("nonsense"));
    }

    #[test]
    fn what_is_no_credential_is_not_read() {
        let good = make(Holder::Token, new_id()).text;
        for bad in ["", "mst", "mst__", &good[1..], &format!("{good}_"), &format!("{good}0"), &good.replace("mst", "msx")] {
            assert!(Credential::parse(bad).is_none(), "{bad} was read");
        }
    }
}
