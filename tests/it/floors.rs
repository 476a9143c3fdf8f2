//! The house's floors: a room uses its own children and lower floors, and some libraries are in one room alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The rooms of each floor, from the ground up.
const FLOORS: &[&[&str]] = &[
    &["names", "limits"],
    &["api", "policy", "credential", "store", "bits", "machine", "config", "telemetry"],
    &["link", "journal"],
    &["sandbox"],
    &["shelf", "roster", "controller"],
    &["provision", "reconcile"],
    &["http", "agent"],
    &["server", "cli", "bin"],
];

/// Rooms that use one of their own floor, and why that is no knot.
const NEIGHBOURS: &[(&str, &str, &str)] = &[
    ("names", "limits", "a name has a limit; limits know nothing"),
    ("machine", "bits", "a machine brings trees to what a manifest says; bits know no machine"),
    ("store", "bits", "blobs are contents that a pack is made of; bits know no store"),
    ("store", "api", "rows hold the words that people see; the words know nothing"),
    ("telemetry", "api", "figures are counted by the states that people see; the words know nothing"),
    ("cli", "server", "`muster serve` starts one; all other commands talk to it over HTTP"),
    ("bin", "cli", "the program is a line around it"),
];

/// What is in some places alone: text that tells it, and the rooms, or folders of one, where it may be.
const ALONE: &[(&str, &[&str])] = &[
    ("wasmtime::", &["sandbox"]),
    ("wasmtime_wasi::", &["sandbox"]),
    ("axum::", &["http"]),
    ("sqlx::", &["store"]),
    ("russh::", &["link/ssh"]),
    ("wit_component::", &["cli/module/build"]),
    ("std::env", &["config", "cli", "bin"]),
];

/// Where no file is reached by its path alone: agents, modules and bundles name paths there.
const NO_PATHS: &[&str] = &["machine", "bits", "link", "agent", "sandbox", "store/secrets"];

/// Uses of `std::fs` in those places that follow no path of theirs, and why.
const PATHS_ALLOWED: &[(&str, &str, &str)] = &[
    ("bits/tree.rs", "std::fs::File::from(", "wraps what was opened below a directory"),
    ("store/secrets.rs", "std::fs::DirBuilder::new()", "makes the server's own directory, which the configuration names"),
];

/// One source file: its path below `src`, its room, and its lines of code without comments and tests.
struct Source {
    path: String,
    room: String,
    lines: Vec<String>,
}

impl Source {
    /// Whether it is this room or folder, or in it.
    fn is_in(&self, place: &str) -> bool {
        let named = self.path.trim_end_matches(".rs");
        named == place || named.starts_with(&format!("{place}/"))
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut waiting: Vec<PathBuf> = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
                continue;
            }
            let below = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            if !below.ends_with(".rs") || below == "lib.rs" {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap();
            let lines = code.lines().map(|line| line.split("//").next().unwrap().to_owned()).collect();
            let room = below.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
            sources.push(Source { path: below, room, lines });
        }
    }
    assert!(sources.len() > 50, "{} files", sources.len());
    sources
}

fn floor(room: &str) -> usize {
    let floor = FLOORS.iter().position(|rooms| rooms.contains(&room));
    floor.unwrap_or_else(|| panic!("the room `{room}` is on no floor; put it on one"))
}

/// The rooms that a line names: `crate::room`, or `muster::room` in a program.
fn named(line: &str, program: bool) -> Vec<&str> {
    let mut rooms = Vec::new();
    for start in if program { &["muster::"][..] } else { &["crate::"] } {
        for (at, _) in line.match_indices(start) {
            let before = line[..at].chars().next_back();
            if before.is_some_and(|before| before.is_alphanumeric() || matches!(before, '_' | ':' | '$' | '"')) {
                continue;
            }
            let rest = &line[at + start.len()..];
            assert!(!rest.starts_with('{'), "name each room in a line of its own: {line}");
            let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(rest.len());
            rooms.push(&rest[..end]);
        }
    }
    rooms.retain(|room| !room.is_empty());
    rooms
}

#[test]
fn a_room_uses_its_own_children_and_lower_floors() {
    let mut neighbours = BTreeSet::new();
    for source in sources() {
        for (number, line) in source.lines.iter().enumerate() {
            for used in named(line, source.room == "bin").into_iter().filter(|used| *used != source.room) {
                let (own, other) = (floor(&source.room), floor(used));
                if own == other {
                    neighbours.insert((source.room.clone(), used.to_owned()));
                }
                let known = NEIGHBOURS.iter().any(|(room, neighbour, _)| *room == source.room && *neighbour == used);
                assert!(other < own || known, "src/{}:{}: `{}` uses `{used}`", source.path, number + 1, source.room);
            }
        }
    }
    for (room, neighbour, reason) in NEIGHBOURS {
        assert!(neighbours.contains(&((*room).to_owned(), (*neighbour).to_owned())), "{room} no longer uses {neighbour} ({reason})");
    }
}

#[test]
fn a_library_is_used_in_its_place_alone() {
    for source in sources() {
        for (number, line) in source.lines.iter().enumerate() {
            for (text, places) in ALONE {
                let here = line.match_indices(text).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|before| before.is_alphanumeric() || matches!(before, '_' | ':'))
                });
                assert!(
                    !here || places.iter().any(|place| source.is_in(place)),
                    "src/{}:{}: `{text}` belongs into {places:?}",
                    source.path,
                    number + 1
                );
            }
        }
    }
}

#[test]
fn where_others_name_paths_no_file_is_reached_by_its_path() {
    let mut used = BTreeSet::new();
    for source in sources() {
        if source.path.ends_with("/tests.rs") {
            continue;
        }
        if !NO_PATHS.iter().any(|place| source.is_in(place)) {
            continue;
        }
        for (number, line) in source.lines.iter().enumerate().filter(|(_, line)| line.contains("std::fs") && !line.contains("cap_std::fs"))
        {
            let allowed = PATHS_ALLOWED.iter().position(|(path, text, _)| *path == source.path && line.contains(text));
            assert!(allowed.is_some(), "src/{}:{}: {line}", source.path, number + 1);
            used.extend(allowed);
        }
    }
    assert_eq!(used.len(), PATHS_ALLOWED.len(), "an exception is not needed any more");
}
