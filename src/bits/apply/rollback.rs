//! The trees that a destination held before: kept beside it for a while, and put back by one rename.

use std::io;

use cap_std::fs::Dir;

use super::staging::{self, TREE};
use crate::bits::ledger;
use crate::limits::GENERATIONS_KEPT;
use crate::names::Digest;

/// Where they are, below the state.
const PLACE: &str = "generations";

fn place(state: &Dir, key: &str) -> io::Result<Dir> {
    staging::make(&staging::make(state, PLACE)?, &Digest::of(key.as_bytes()).short())
}

/// The numbers of what is kept, ascending.
fn kept(place: &Dir) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = Vec::new();
    for entry in place.entries()? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Keeps the tree that was switched away, with what the ledger says of it.
pub(super) fn keep(state: &Dir, trees: &Dir, key: &str, staging: &Dir) -> io::Result<()> {
    let place = place(state, key)?;
    let number = kept(&place)?.last().map_or(1, |last| last + 1);
    ledger::keep(trees, key, &place, &format!("{number}.manifest"))?;
    staging.rename(TREE, &place, number.to_string())
}

/// Removes the oldest of what is kept, beyond so many.
pub(super) fn prune(state: &Dir, key: &str) {
    let prune = || {
        let place = place(state, key)?;
        let numbers = kept(&place)?;
        for number in numbers.iter().rev().skip(GENERATIONS_KEPT) {
            staging::clear(&place, &number.to_string())?;
            staging::clear(&place, &format!("{number}.manifest"))?;
        }
        Ok::<(), io::Error>(())
    };
    // What can not be removed now is removed the next time.
    let _ = prune();
}
