//! Cutting secrets from what comes back.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::journal::mark;
use crate::limits::{LOG_LINE_BYTES_MAX, REDACTED_BYTES_MIN, SECRET_BYTES_MAX};
use crate::names::SecretName;

/// Knows the values of the secrets that a run has opened.
///
/// A value is cut where it stands whole, and each of its lines where it stands alone, since output is logged by lines. A command that
/// encodes a secret before it writes it is not seen through.
#[derive(Clone, Default)]
pub(super) struct Redactor {
    /// What is looked for, and what stands in its place.
    needles: Vec<(String, String)>,
    /// Finds all of them in one pass, the longest first, so that a secret within another does not leave the other's rest behind.
    finder: Option<AhoCorasick>,
}

impl Redactor {
    /// Looks for these secrets too.
    pub(super) fn add<'a>(&mut self, secrets: impl IntoIterator<Item = (&'a SecretName, &'a str)>) {
        let known = self.needles.len();
        for (name, value) in secrets {
            for part in std::iter::once(value).chain(value.lines().map(str::trim)).filter(|part| part.len() >= REDACTED_BYTES_MIN) {
                if !self.needles.iter().any(|(needle, _)| needle == part) {
                    self.needles.push((part.to_owned(), mark(name.as_str())));
                }
            }
        }
        if self.needles.len() > known {
            let needles = self.needles.iter().map(|(needle, _)| needle);
            // It fails for more bytes of needles than the secrets of a policy can have.
            // Each run has its own, so that it is to be small: a dense automaton of one key would take megabytes.
            let kind = Some(AhoCorasickKind::ContiguousNFA);
            self.finder = AhoCorasick::builder().kind(kind).match_kind(MatchKind::LeftmostLongest).build(needles).ok();
        }
    }

    /// Whether there is nothing to be cut.
    pub(super) fn is_empty(&self) -> bool {
        self.needles.is_empty()
    }

    fn marks(&self) -> Vec<&str> {
        self.needles.iter().map(|(_, mark)| mark.as_str()).collect()
    }

    pub(super) fn text(&self, text: String) -> String {
        match &self.finder {
            Some(finder) if finder.is_match(&text) => finder.replace_all(&text, &self.marks()),
            _ => text,
        }
    }

    /// The beginning of a line that ended before its end, for the log: without the secret that it ends in the middle of.
    pub(super) fn cut_off_line(&self, line: &str) -> String {
        let mut text = self.line(line);
        text.truncate(text.len() - self.begun(text.as_bytes()));
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
        let mut bytes = match &self.finder {
            Some(finder) if finder.is_match(&bytes) => finder.replace_all_bytes(&bytes, &self.marks()),
            _ => bytes,
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_cut_whole_by_lines_and_in_bytes() {
        let mut redactor = Redactor::default();
        redactor.add([(&"key".parse().unwrap(), "line-one\nline-two"), (&"short".parse().unwrap(), "abc")]);
        assert_eq!(redactor.text("x line-one\nline-two y".into()), "x [secret key] y");
        assert_eq!(redactor.text("x line-two abc".into()), "x [secret key] abc");
        assert_eq!(redactor.bytes(b"\xffline-oneline-one\xff".to_vec(), false), b"\xff[secret key][secret key]\xff");
        assert_eq!(redactor.bytes(b"nothing".to_vec(), false), b"nothing");
    }
    #[test]
    fn a_secret_in_the_middle_of_which_a_text_ends_is_cut_too() {
        let mut redactor = Redactor::default();
        redactor.add([(&"key".parse().unwrap(), "hunter2-hunter2")]);
        assert_eq!(redactor.bytes(b"x hunter2-hun".to_vec(), true), b"x ");
        assert_eq!(redactor.bytes(b"x hunter2-hun".to_vec(), false), b"x hunter2-hun");
        assert_eq!(redactor.cut_off_line("x hunter2-hun"), "x ");
        let padding = "x".repeat(LOG_LINE_BYTES_MAX - 4);
        let line = redactor.line(&format!("{padding}hunter2-hunter2 and more"));
        assert!(line.len() <= LOG_LINE_BYTES_MAX && !line.contains("hunt"), "{}", &line[padding.len()..]);
    }
}
