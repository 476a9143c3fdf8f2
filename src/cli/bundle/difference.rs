//! What differs between two manifests.

use serde::Serialize;

use crate::bits::difference::{bytes_new, differing};
use crate::bits::manifest::{Entry, Kind, Manifest};
use crate::cli::output::Output;

/// All that differs, by path.
#[derive(Debug, Serialize)]
pub(crate) struct Difference {
    /// How many paths are new.
    pub(crate) added: u64,
    /// How many are no longer there.
    pub(crate) removed: u64,
    /// How many are there still, and not as they were.
    pub(crate) changed: u64,
    /// Bytes of contents that are in the second alone.
    pub(crate) bytes_new: u64,
    /// Each of them.
    pub(crate) changes: Vec<Change>,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mark {
    Added,
    Removed,
    Changed,
}

/// One path that differs.
#[derive(Debug, Serialize)]
pub(crate) struct Change {
    pub(crate) mark: Mark,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Shape>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Shape>,
}

/// What is at a path, as far as a person cares.
#[derive(Debug, Clone, Serialize)]
struct Shape {
    kind: &'static str,
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

impl Change {
    fn new(before: Option<&Entry>, after: Option<&Entry>) -> Option<Self> {
        let mark = match (before, after) {
            (Some(_), Some(_)) => Mark::Changed,
            (Some(_), None) => Mark::Removed,
            (None, _) => Mark::Added,
        };
        let path = before.or(after)?.path.to_string();
        Some(Self { mark, path, before: before.map(shape), after: after.map(shape) })
    }

    /// The change on one line: `~ bin/tool  1.0 KiB → 1.2 KiB`.
    pub(crate) fn line(&self, output: &Output) -> String {
        let told = |shape: &Option<Shape>| match shape {
            Some(Shape { size: Some(size), .. }) => output.bytes(*size),
            Some(Shape { kind, .. }) => (*kind).into(),
            None => String::new(),
        };
        let (before, after) = (told(&self.before), told(&self.after));
        let modes = match (&self.before, &self.after) {
            (Some(one), Some(other)) if one.mode != other.mode => format!("  mode {} → {}", one.mode, other.mode),
            _ => String::new(),
        };
        match self.mark {
            Mark::Added => format!("+ {}  {after}", self.path),
            Mark::Removed => format!("- {}  {before}", self.path),
            Mark::Changed => format!("~ {}  {before} → {after}{modes}", self.path),
        }
    }
}

fn shape(entry: &Entry) -> Shape {
    let (kind, size) = match &entry.kind {
        Kind::Directory => ("directory", None),
        Kind::File { size, .. } => ("file", Some(*size)),
        Kind::Symlink { .. } => ("symlink", None),
    };
    Shape { kind, mode: format!("{:03o}", entry.mode), size }
}

/// What differs.
pub(crate) fn between(before: &Manifest, after: &Manifest) -> Difference {
    let changes: Vec<Change> = differing(before, after).filter_map(|(was, is)| Change::new(was, is)).collect();
    let count = |mark: Mark| changes.iter().filter(|change| change.mark == mark).fold(0, |count: u64, _| count + 1);
    Difference {
        added: count(Mark::Added),
        removed: count(Mark::Removed),
        changed: count(Mark::Changed),
        bytes_new: bytes_new(before, after),
        changes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::path::TreePath;
    use crate::cli::output::fixture::output;
    use crate::names::Digest;

    fn file(path: &str, mode: u32, content: &[u8]) -> Entry {
        let kind = Kind::File { size: content.len() as u64, mtime: 0, digest: Digest::of(content), chunks: Box::default() };
        Entry { path: TreePath::from_bytes(path.as_bytes()).unwrap(), mode, kind }
    }

    #[test]
    fn each_path_that_differs_is_told_once() {
        let link = Entry { path: TreePath::from_bytes(b"f").unwrap(), mode: 0, kind: Kind::Symlink { target: (*b"a").into() } };
        let before = Manifest::new(vec![
            file("a", 0o644, b"same"),
            file("b", 0o644, b"gone"),
            file("c", 0o644, b"old"),
            file("d", 0o644, b"x"),
            file("f", 0o644, b"same"),
        ]);
        let after = Manifest::new(vec![
            file("a", 0o644, b"same"),
            file("c", 0o644, b"newer"),
            file("d", 0o755, b"x"),
            file("e", 0o644, b"old"),
            link,
        ]);
        let found = between(&before.unwrap(), &after.unwrap());
        let (out, _) = output(false, true);
        let lines: Vec<String> = found.changes.iter().map(|change| change.line(&out)).collect();
        assert_eq!(
            lines,
            ["- b  4 B", "~ c  3 B → 5 B", "~ d  1 B → 1 B  mode 644 → 755", "+ e  3 B", "~ f  4 B → symlink  mode 644 → 000"]
        );
        assert_eq!((found.added, found.removed, found.changed, found.bytes_new), (1, 1, 3, 5));
    }
}
