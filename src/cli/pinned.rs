//! A version as a person names it.

use crate::cli::client::Client;
use crate::cli::{CliError, doing};
use crate::names::{Digest, NameError};

/// A module or a bundle by name, and by the beginning of a version's digest: as many digits as tell it from the others.
#[derive(Debug, Clone)]
pub(crate) struct Pinned<N> {
    pub(crate) name: N,
    digits: Option<String>,
}

impl<N: std::str::FromStr<Err = NameError>> std::str::FromStr for Pinned<N> {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((name, digest)) = text.split_once('@') else { return Ok(Self { name: text.parse()?, digits: None }) };
        let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
        let fits = (DIGITS_MIN..=64).contains(&digits.len()) && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        // What is no beginning of a digest is told as what is no digest.
        if !fits {
            digest.parse::<Digest>()?;
        }
        Ok(Self { name: name.parse()?, digits: Some(digits.to_owned()) })
    }
}

/// Digits with which a digest may be begun: fewer would often be meant for another.
const DIGITS_MIN: usize = 6;

impl<N: std::fmt::Display> Pinned<N> {
    /// The whole digest; none if none was begun. `kind` is the listing of its versions, `modules` or `bundles`, and `field` its digests'.
    pub(crate) async fn digest(&self, kind: &str, field: &str, client: &Client) -> Result<Option<Digest>, CliError> {
        let (Some(digits), name) = (&self.digits, self.name.to_string()) else { return Ok(None) };
        if let Ok(digest) = digits.parse() {
            return Ok(Some(digest));
        }
        let what = format!("find the version of {name}");
        let versions: Vec<serde_json::Value> = client.list(&[kind, &name], &[], None).await.map_err(doing(what.clone()))?;
        let all = versions.iter().filter_map(|version| version.get(field)?.as_str()?.parse::<Digest>().ok());
        let found: Vec<Digest> = all.filter(|digest| digest.to_string().starts_with(digits.as_str())).collect();
        match found.as_slice() {
            [one] => Ok(Some(*one)),
            [] => Err(CliError::failed(what, format!("none begins with {digits}"))),
            several => Err(CliError::failed(what, format!("{} begin with {digits}; give more digits", several.len()))),
        }
    }
}
