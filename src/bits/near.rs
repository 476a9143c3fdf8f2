//! Finding paths in what is sorted by them, when they are mostly asked for in their order: then each is where the last one was, or next to it.

use std::cmp::Ordering;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::path::TreePath;

/// Where the last path was found. It is a hint: all that it changes is the time that a search takes.
#[derive(Debug, Default)]
pub(super) struct Near(AtomicUsize);

impl Near {
    /// The index of what `order` calls equal, in a list that is sorted by it.
    pub(super) fn find<T>(&self, list: &[T], order: impl Fn(&T) -> Ordering) -> Option<usize> {
        let last = self.0.load(Relaxed);
        let beside = [last, last.saturating_add(1)].into_iter().find(|at| list.get(*at).is_some_and(|one| order(one).is_eq()));
        let found = beside.or_else(|| list.binary_search_by(&order).ok())?;
        self.0.store(found, Relaxed);
        Some(found)
    }
}

impl Clone for Near {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What is known of paths.
#[derive(Debug)]
pub(super) struct ByPath<V> {
    list: Vec<(TreePath, V)>,
    near: Near,
}

impl<V> Default for ByPath<V> {
    fn default() -> Self {
        Self { list: Vec::new(), near: Near::default() }
    }
}

impl<V> ByPath<V> {
    /// What is known of a path.
    pub(super) fn get(&self, path: &TreePath) -> Option<&V> {
        let found = self.near.find(&self.list, |(one, _)| one.cmp(path))?;
        self.list.get(found).map(|(_, value)| value)
    }

    /// All of it, by path.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(TreePath, V)> {
        self.list.iter()
    }
}

impl<V> FromIterator<(TreePath, V)> for ByPath<V> {
    fn from_iter<I: IntoIterator<Item = (TreePath, V)>>(all: I) -> Self {
        let mut list: Vec<_> = all.into_iter().collect();
        // What comes sorted, or nearly so, is sorted at once.
        list.sort_by(|(one, _), (other, _)| one.cmp(other));
        Self { list, near: Near::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_in_whatever_order_paths_are_asked_for() {
        let path = |at: usize| format!("d{}/f{at}", at / 7).parse::<TreePath>().unwrap();
        let known: ByPath<usize> = (0..100).rev().filter(|at| at % 3 != 0).map(|at| (path(at), at)).collect();
        for step in [1, 37, 99] {
            for at in (0..100).map(|at| at * step % 100) {
                assert_eq!(known.get(&path(at)), Some(&at).filter(|at| *at % 3 != 0));
            }
        }
        assert!(known.iter().is_sorted_by_key(|(path, _)| path));
        assert_eq!(ByPath::<()>::default().get(&path(1)), None);
    }
}
