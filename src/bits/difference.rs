//! What differs between two manifests.

use std::cmp::Ordering;

use super::manifest::{Entry, Manifest};

/// Each path that is not the same in both, with what is there in the one and in the other, by path.
pub fn differing<'a>(before: &'a Manifest, after: &'a Manifest) -> impl Iterator<Item = (Option<&'a Entry>, Option<&'a Entry>)> {
    // The entries of a manifest are in order, so that one walk over both is enough.
    let (mut one, mut other) = (before.entries().iter().peekable(), after.entries().iter().peekable());
    let pairs = std::iter::from_fn(move || {
        let order = match (one.peek(), other.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.path.cmp(&other.path),
        };
        let was = if order.is_le() { one.next() } else { None };
        let is = if order.is_ge() { other.next() } else { None };
        Some((was, is))
    });
    pairs.filter(|(was, is)| was != is)
}

/// The bytes of the contents that are in the second alone.
pub fn bytes_new(before: &Manifest, after: &Manifest) -> u64 {
    after.contents().iter().filter(|(digest, _)| before.content_index(digest).is_none()).map(|(_, size)| size).sum()
}
