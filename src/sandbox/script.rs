//! Plain scripts: a JavaScript text as a module.
//!
//! One component, the runner, is every script's module: a JavaScript engine that is given the script's text. It is compiled once, and a
//! script is ready when it was read. A script's bytes are a few lines that say what they are, for which runner and from which file, and then
//! its text; so the digest of a script covers all that its runs depend on, and a script runs with the runner that it was made for when the
//! program's own has changed.

pub(super) mod bindings;
pub(super) mod check;

use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use crate::limits::SCRIPT_BYTES_MAX;
use crate::names::{Digest, NameError, ScriptName};

/// The runner of this program. `scripts/script-runner` builds it.
pub static RUNNER: &[u8] = include_bytes!("../../runner/runner.wasm");

/// The digest of [`RUNNER`].
pub static RUNNER_DIGEST: LazyLock<Digest> = LazyLock::new(|| Digest::of(RUNNER));

/// The world of the runner.
pub const WORLD: &str = "muster:script/runner@0.1.0";

/// What a script's bytes begin with.
const BEGINS: &str = "muster-script 1\n";

/// A script, as a module's bytes hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    runner: Digest,
    name: ScriptName,
    text: Arc<str>,
}

/// Why a text can not be a script, or bytes are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// It is longer than scripts are.
    #[error("a script has at most {SCRIPT_BYTES_MAX} bytes, this one has {0}; what is long belongs into a bundle")]
    TooLong(usize),
    /// It is no text.
    #[error("a script is text in UTF-8, and this is none")]
    NoText,
    /// It is a component.
    #[error("this is WebAssembly, and no script")]
    Component,
    /// The lines before the text are not what they are to be.
    #[error("what stands before the script's text is damaged")]
    Damaged,
    /// The name of its file is none.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Script {
    /// A script for this program's own runner.
    ///
    /// # Errors
    /// When the text is too long, or none.
    pub fn new(name: ScriptName, text: &[u8]) -> Result<Self, ScriptError> {
        if text.starts_with(b"\0asm") {
            return Err(ScriptError::Component);
        }
        Ok(Self { runner: *RUNNER_DIGEST, name, text: checked(text)? })
    }

    /// Whether bytes are a script's, by how they begin.
    pub fn is(bytes: &[u8]) -> bool {
        bytes.starts_with(BEGINS.as_bytes())
    }

    /// Reads a script's bytes.
    ///
    /// # Errors
    /// When they are not those of a script.
    pub fn read(bytes: &[u8]) -> Result<Self, ScriptError> {
        let rest = bytes.strip_prefix(BEGINS.as_bytes()).ok_or(ScriptError::Damaged)?;
        let (runner, rest) = field(rest, "runner ")?;
        let (name, rest) = field(rest, "file ")?;
        let text = rest.strip_prefix(b"\n").ok_or(ScriptError::Damaged)?;
        Ok(Self { runner: runner.parse().map_err(|_| ScriptError::Damaged)?, name: name.parse()?, text: checked(text)? })
    }

    /// A script's bytes, which [`Script::read`] reads.
    pub fn bytes(&self) -> Bytes {
        format!("{BEGINS}runner {}\nfile {}\n\n{}", self.runner, self.name, self.text).into()
    }

    /// The runner that it was made for.
    pub fn runner(&self) -> Digest {
        self.runner
    }

    /// The name of its file.
    pub fn name(&self) -> &ScriptName {
        &self.name
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

fn checked(text: &[u8]) -> Result<Arc<str>, ScriptError> {
    if text.len() > SCRIPT_BYTES_MAX {
        return Err(ScriptError::TooLong(text.len()));
    }
    Ok(std::str::from_utf8(text).map_err(|_| ScriptError::NoText)?.into())
}

/// A line's value, and what comes after the line.
fn field<'a>(bytes: &'a [u8], key: &str) -> Result<(&'a str, &'a [u8]), ScriptError> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(ScriptError::Damaged)?;
    let (line, rest) = bytes.split_at_checked(end).ok_or(ScriptError::Damaged)?;
    let line = std::str::from_utf8(line).map_err(|_| ScriptError::Damaged)?;
    let value = line.strip_prefix(key).ok_or(ScriptError::Damaged)?;
    Ok((value, rest.get(1..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Script {
        Script::new("hook.js".parse().unwrap(), text.as_bytes()).unwrap()
    }

    #[test]
    fn a_scripts_bytes_are_read_again_and_their_digest_covers_all_of_it() {
        let one = script("log.step('x')\n");
        assert!(Script::is(&one.bytes()));
        assert_eq!(Script::read(&one.bytes()).unwrap(), one);
        let other = Script { runner: Digest::of(b"another"), ..one.clone() };
        let named = Script { name: "other.js".parse().unwrap(), ..one.clone() };
        let digests = [&one, &other, &named, &script("log.step('y')\n")].map(|script| Digest::of(&script.bytes()));
        assert!((1..4).all(|at| digests[at] != digests[0]));
        assert_eq!(Script::read(&other.bytes()).unwrap().runner(), Digest::of(b"another"));
        assert_eq!(script("").text(), "");
    }

    #[test]
    fn what_is_no_script_is_said_to_be_none() {
        let name = || "hook.js".parse().unwrap();
        assert_eq!(Script::new(name(), b"\0asm\x0d\0\x01\0"), Err(ScriptError::Component));
        assert_eq!(Script::new(name(), b"\xff"), Err(ScriptError::NoText));
        assert_eq!(Script::new(name(), &vec![b' '; SCRIPT_BYTES_MAX + 1]), Err(ScriptError::TooLong(SCRIPT_BYTES_MAX + 1)));
        let bytes = script("x").bytes();
        for end in 0..bytes.len() - 1 {
            assert!(Script::read(&bytes[..end]).is_err(), "{end}");
        }
        assert!(!Script::is(b"hello"));
        let odd = format!("{BEGINS}runner {}\nfile ../x\n\n", *RUNNER_DIGEST);
        assert!(matches!(Script::read(odd.as_bytes()), Err(ScriptError::Name(_))));
    }
}
