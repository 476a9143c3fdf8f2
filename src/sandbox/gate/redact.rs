//! Cutting secrets from what comes back.

use crate::limits::{LOG_LINE_BYTES_MAX, SECRET_BYTES_MAX};
use crate::names::SecretName;

/// Shorter values, and shorter lines of values, are not looked for: cutting them would cut half of every text.
const NEEDLE_BYTES_MIN: usize = 4;

/// Knows the values of the secrets that a run has opened.
///
/// A value is cut where it stands whole, and each of its lines where it stands alone, since output is logged by lines. A command that
/// encodes a secret before it writes it is not seen through.
#[derive(Clone, Default)]
pub(super) struct Redactor {
    needles: Vec<(String, String)>,
}

impl Redactor {
    pub(super) fn add(&mut self, name: &SecretName, value: &str) {
        let marks = format!("[secret {name}]");
        let parts = std::iter::once(value).chain(value.lines().map(str::trim));
        for part in parts.filter(|part| part.len() >= NEEDLE_BYTES_MIN) {
            if !self.needles.iter().any(|(needle, _)| needle == part) {
                self.needles.push((part.to_owned(), marks.clone()));
            }
        }
        // Longest first, so that a secret within another does not leave the other's rest behind.
        self.needles.sort_by_key(|(needle, _)| std::cmp::Reverse(needle.len()));
    }

    pub(super) fn text(&self, mut text: String) -> String {
        for (needle, mark) in &self.needles {
            if text.contains(needle.as_str()) {
                text = text.replace(needle.as_str(), mark);
            }
        }
        text
    }

    /// A line of the log. It is cut after the secrets are, so that none is cut in half.
    pub(super) fn line(&self, line: &str) -> String {
        let kept = line.get(..line.floor_char_boundary(LOG_LINE_BYTES_MAX + SECRET_BYTES_MAX)).unwrap_or_default();
        let mut text = self.text(kept.to_owned());
        if line.len() > LOG_LINE_BYTES_MAX {
            text.truncate(text.len() - self.begun(text.as_bytes()));
        }
        cut_line(&text).to_owned()
    }

    /// What came back of a file or a command. What is `truncated` loses the secret that it ends in the middle of.
    pub(super) fn bytes(&self, bytes: Vec<u8>, truncated: bool) -> Vec<u8> {
        let mut bytes = self.needles.iter().fold(bytes, |bytes, (needle, mark)| replace(bytes, needle.as_bytes(), mark.as_bytes()));
        if truncated {
            bytes.truncate(bytes.len() - self.begun(&bytes));
        }
        bytes
    }

    /// How many bytes at the end of a text are the beginning of a secret.
    fn begun(&self, text: &[u8]) -> usize {
        let begun = |(needle, _): &(String, String)| {
            let longest = needle.len().saturating_sub(1).min(text.len());
            (1..=longest).rev().find(|bytes| needle.as_bytes().get(..*bytes).is_some_and(|start| text.ends_with(start)))
        };
        self.needles.iter().filter_map(begun).max().unwrap_or_default()
    }
}

/// The beginning of a line, as long as a line of the log may be.
pub(super) fn cut_line(line: &str) -> &str {
    line.get(..line.floor_char_boundary(LOG_LINE_BYTES_MAX)).unwrap_or_default()
}

fn replace(bytes: Vec<u8>, needle: &[u8], mark: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes.as_slice();
    let mut found = false;
    while let Some(at) = rest.windows(needle.len()).position(|window| window == needle) {
        let (before, after) = rest.split_at(at);
        out.extend_from_slice(before);
        out.extend_from_slice(mark);
        rest = after.get(needle.len()..).unwrap_or_default();
        found = true;
    }
    if !found {
        return bytes;
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_cut_whole_by_lines_and_in_bytes() {
        let mut redactor = Redactor::default();
        redactor.add(&"key".parse().unwrap(), "line-one\nline-two");
        redactor.add(&"short".parse().unwrap(), "abc");
        assert_eq!(redactor.text("x line-one\nline-two y".into()), "x [secret key] y");
        assert_eq!(redactor.text("x line-two abc".into()), "x [secret key] abc");
        assert_eq!(redactor.bytes(b"\xffline-oneline-one\xff".to_vec(), false), b"\xff[secret key][secret key]\xff");
        assert_eq!(redactor.bytes(b"nothing".to_vec(), false), b"nothing");
    }
    #[test]
    fn a_secret_in_the_middle_of_which_a_text_ends_is_cut_too() {
        let mut redactor = Redactor::default();
        redactor.add(&"key".parse().unwrap(), "hunter2-hunter2");
        assert_eq!(redactor.bytes(b"x hunter2-hun".to_vec(), true), b"x ");
        assert_eq!(redactor.bytes(b"x hunter2-hun".to_vec(), false), b"x hunter2-hun");
        let padding = "x".repeat(LOG_LINE_BYTES_MAX - 4);
        let line = redactor.line(&format!("{padding}hunter2-hunter2 and more"));
        assert!(line.len() <= LOG_LINE_BYTES_MAX && !line.contains("hunt"), "{}", &line[padding.len()..]);
    }
}
