//! The guests of `tests/guests`: components of a few lines of WebAssembly text, built when a test asks for one.
//!
//! A guest's file holds the fields of a core module; `shared.wat` is appended to it, and `VERSION` stands for the contract's version.

use std::path::{Path, PathBuf};

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The interfaces of the standard world that guests use, as far as they do.
const WASI: [&str; 3] = [
    "package wasi:io@0.2.0;
     interface poll {
       resource pollable { block: func(); }
       poll: func(in: list<borrow<pollable>>) -> list<u32>;
     }",
    "package wasi:clocks@0.2.0;
     interface wall-clock {
       record datetime { seconds: u64, nanoseconds: u32 }
       now: func() -> datetime;
     }
     interface monotonic-clock {
       use wasi:io/poll@0.2.0.{pollable};
       now: func() -> u64;
       subscribe-duration: func(when: u64) -> pollable;
     }",
    "package wasi:random@0.2.0;
     interface random { get-random-u64: func() -> u64; }
     interface insecure { get-insecure-random-u64: func() -> u64; }
     interface insecure-seed { insecure-seed: func() -> tuple<u64, u64>; }",
];

/// Builds the component of `tests/guests/NAME.wat` for the contract in `wit/`.
pub(crate) fn component(name: &str) -> Vec<u8> {
    build(name, &contract(), &contract_version(), |text| text)
}

/// Builds a guest with some of its text changed.
pub(crate) fn component_with(name: &str, from: &str, to: &str) -> Vec<u8> {
    build(name, &contract(), &contract_version(), |text| {
        assert!(text.contains(from), "{name} has no {from}");
        text.replace(from, to)
    })
}

/// Builds the guest `ok` for a contract that is like the one in `wit/` but for its version.
pub(crate) fn component_of_contract(version: &str) -> Vec<u8> {
    let present = format!("package muster:provision@{};", contract_version());
    let other = format!("package muster:provision@{version};");
    build("ok", &contract().replacen(&present, &other, 1), version, |text| text)
}

fn build(name: &str, contract: &str, version: &str, change: impl FnOnce(String) -> String) -> Vec<u8> {
    let text = format!("{}\n{}", change(read(&guests().join(format!("{name}.wat")))), read(&guests().join("shared.wat")));
    let mut bytes = wat::parse_str(text.replace("VERSION", version)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut resolve = Resolve::default();
    resolve.push_str("provision.wit", contract).unwrap();
    for package in WASI {
        resolve.push_str("wasi.wit", package).unwrap();
    }
    let guest = format!(
        "package muster:guest; world guest {{ include muster:provision/provisioner@{version}; import wasi:clocks/wall-clock@0.2.0; \
         import wasi:clocks/monotonic-clock@0.2.0; import wasi:io/poll@0.2.0; import wasi:random/random@0.2.0; \
         import wasi:random/insecure@0.2.0; import wasi:random/insecure-seed@0.2.0; }}"
    );
    let package = resolve.push_str("guest.wit", &guest).unwrap();
    let world = resolve.select_world(&[package], Some("guest")).unwrap();
    embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&bytes).and_then(|mut encoder| encoder.encode()).unwrap_or_else(|error| panic!("{name}: {error:?}"))
}

fn contract() -> String {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("wit/provision.wit"))
}

fn contract_version() -> String {
    let contract = contract();
    let package = contract.lines().find_map(|line| line.strip_prefix("package muster:provision@")).unwrap();
    package.trim_end_matches(';').to_owned()
}

fn guests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Lists what a component imports and exports, in its order.
fn names(component: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0_u32;
    for payload in wasmparser::Parser::new(0).parse_all(component) {
        match payload.unwrap() {
            wasmparser::Payload::ModuleSection { .. } | wasmparser::Payload::ComponentSection { .. } => depth += 1,
            wasmparser::Payload::End(_) => depth = depth.saturating_sub(1),
            wasmparser::Payload::ComponentImportSection(imports) if depth == 0 => {
                names.extend(imports.into_iter().map(|import| import.unwrap().name.name.to_owned()));
            }
            wasmparser::Payload::ComponentExportSection(exports) if depth == 0 => {
                names.extend(exports.into_iter().map(|export| export.unwrap().name.name.to_owned()));
            }
            _ => {}
        }
    }
    names
}

#[test]
fn every_guest_is_a_valid_component() {
    let mut built = 0;
    for file in std::fs::read_dir(guests()).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if name == "shared" {
            continue;
        }
        let component = component(name);
        wasmparser::Validator::new().validate_all(&component).unwrap_or_else(|error| panic!("{name}: {error}"));
        built += 1;
    }
    assert!(built >= 16, "{built} guests");
}

#[test]
fn a_guest_imports_only_the_interfaces_that_it_calls() {
    let version = contract_version();
    assert_eq!(names(&component("ok")), [format!("muster:provision/provisioning@{version}")]);
    let calls = names(&component("calls"));
    assert!(calls.contains(&format!("muster:provision/agent@{version}")), "{calls:?}");
    assert!(!calls.contains(&format!("muster:provision/log@{version}")), "{calls:?}");
}

#[test]
fn a_guest_of_another_contract_names_that_contract() {
    assert_eq!(names(&component_of_contract("2.0.0")), ["muster:provision/provisioning@2.0.0"]);
}

#[test]
fn the_example_modules_that_are_checked_in_are_small_components_of_this_contract() {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tools");
    for name in ["tools.wasm", "tools-verify.wasm"] {
        let component = std::fs::read(tools.join(name)).unwrap();
        wasmparser::Validator::new().validate_all(&component).unwrap();
        assert!(component.len() < 60 * 1024, "{name} has {} bytes", component.len());
        assert_eq!(names(&component).last(), Some(&format!("muster:provision/provisioning@{}", contract_version())));
    }
}
