//! Paths inside of a tree, as raw bytes: what Unix allows as a name need not be UTF-8.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

use crate::limits::{PATH_BYTES_MAX, TREE_DEPTH_MAX};

/// Why bytes or a text are no path inside of a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// There is nothing.
    #[error("a path can not be empty")]
    Empty,
    /// It begins with `/`.
    #[error("a path inside of a tree can not be absolute")]
    Absolute,
    /// It is too long.
    #[error("a path has at most {PATH_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// It is too deep.
    #[error("a path has at most {TREE_DEPTH_MAX} components")]
    TooDeep,
    /// It holds `//`, `.` or `..`, or ends with `/`.
    #[error("a path can not have an empty component, `.` or `..`")]
    Component,
    /// It holds a zero byte.
    #[error("a path can not hold a zero byte")]
    Zero,
    /// Its text is not escaped as it should be.
    #[error("a path's text has each byte that is not printable, each `%` and each space as `%` and two digits, and no other")]
    Escape,
}

/// A path inside of a tree, relative to its top.
///
/// It has no empty component, no `.` and no `..`, so joined to a directory it is below that directory, symlinks aside. Its text form is
/// printable ASCII without a space. Paths are ordered by their bytes, so a directory comes before what is in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Box<[u8]>);

impl TreePath {
    /// Reads a path from raw bytes.
    ///
    /// # Errors
    /// If they are no path inside of a tree; see [`PathError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PathError> {
        match bytes.first() {
            None => return Err(PathError::Empty),
            Some(b'/') => return Err(PathError::Absolute),
            Some(_) => {}
        }
        if bytes.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong(bytes.len()));
        }
        if bytes.contains(&0) {
            return Err(PathError::Zero);
        }
        for (depth, component) in bytes.split(|byte| *byte == b'/').enumerate() {
            if depth >= TREE_DEPTH_MAX {
                return Err(PathError::TooDeep);
            }
            if matches!(component, b"" | b"." | b"..") {
                return Err(PathError::Component);
            }
        }
        Ok(Self(bytes.into()))
    }

    /// Reads a path from its text form.
    ///
    /// # Errors
    /// If the text is not escaped exactly as [`Display`](fmt::Display) does it, or is no path inside of a tree.
    pub fn from_text(text: &[u8]) -> Result<Self, PathError> {
        Self::from_bytes(&unescape(text).ok_or(PathError::Escape)?)
    }

    /// The path of a name in this directory.
    ///
    /// # Errors
    /// If the name is none, or the path becomes too long or too deep.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        Self::from_bytes(&[&self.0, b"/".as_slice(), name].concat())
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same as a path of the standard library.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The components, from the top.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// The last component.
    pub fn name(&self) -> &[u8] {
        self.components().next_back().unwrap_or_default()
    }

    /// The directory that the path is in; none if that is the top.
    pub fn parent(&self) -> Option<Self> {
        let end = self.0.iter().rposition(|byte| *byte == b'/')?;
        self.0.get(..end).map(|parent| Self(parent.into()))
    }

    /// Whether the path is below another: in it, or in something in it.
    pub fn is_below(&self, above: &Self) -> bool {
        self.0.strip_prefix(&*above.0).is_some_and(|rest| rest.first() == Some(&b'/'))
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&escape(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreePath({self})")
    }
}

impl FromStr for TreePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::from_text(text.as_bytes())
    }
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'%'
}

/// Bytes as printable ASCII without a space.
pub(crate) fn escape(bytes: &[u8]) -> Cow<'_, str> {
    // Most need nothing, and there are many.
    if let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| text.bytes().all(plain)) {
        return text.into();
    }
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if plain(byte) {
            text.push(char::from(byte));
        } else {
            text.push('%');
            for half in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(u32::from(half), 16).map(|digit| digit.to_ascii_uppercase()));
            }
        }
    }
    text.into()
}

/// The bytes that [`escape`] made this text of; none if it did not.
pub(crate) fn unescape(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    if text.iter().copied().all(plain) {
        return Some(text.into());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        if plain(byte) {
            bytes.push(byte);
            continue;
        }
        if byte != b'%' {
            return None;
        }
        let mut half = || {
            let digit = rest.next().filter(|digit| !digit.is_ascii_lowercase())?;
            u8::try_from(char::from(digit).to_digit(16)?).ok()
        };
        let escaped = half()? << 4 | half()?;
        if plain(escaped) {
            return None;
        }
        bytes.push(escaped);
    }
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_inside_of_its_tree() {
        for good in ["a", "a/b", "...", ".a", "a b", "ä"] {
            assert!(TreePath::from_bytes(good.as_bytes()).is_ok(), "{good} was refused");
        }
        let (long, deep) = ("x".repeat(PATH_BYTES_MAX + 1), vec!["x"; TREE_DEPTH_MAX + 1].join("/"));
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "./a", "a/../b", "a\0", &long, &deep] {
            assert!(TreePath::from_bytes(bad.as_bytes()).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_path_has_one_text() {
        let path = TreePath::from_bytes(b"a b/%\xff\n").unwrap();
        assert_eq!(path.to_string(), "a%20b/%25%FF%0A");
        assert_eq!(path.to_string().parse(), Ok(path));
        for bad in ["a b", "%", "%2", "%ff", "%41", "%GG", "\u{e4}", "a%2F"] {
            assert!(bad.parse::<TreePath>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_path_knows_what_is_above_it() {
        let path = |text: &str| text.parse::<TreePath>().unwrap();
        assert_eq!(path("a/b/c").parent(), Some(path("a/b")));
        assert_eq!(path("a").parent(), None);
        assert_eq!(path("a/b").name(), b"b");
        assert!(path("a/b/c").is_below(&path("a")));
        assert!(!path("ab").is_below(&path("a")) && !path("a").is_below(&path("a")));
    }
}
