//! The guests of `tests/guests`: components of a few lines of WebAssembly text, built when a test asks for one.
//!
//! A guest's file holds the fields of a core module; `shared.wat` is appended to it, and `VERSION` stands for the contract's version.

use std::path::{Path, PathBuf};

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Builds the component of `tests/guests/NAME.wat` for the contract in `wit/`.
pub(crate) fn component(name: &str) -> Vec<u8> {
    build(name, &contract(), &contract_version())
}

/// Builds the guest `ok` for a contract that is like the one in `wit/` but for its version.
pub(crate) fn component_of_contract(version: &str) -> Vec<u8> {
    let present = format!("package muster:provision@{};", contract_version());
    let other = format!("package muster:provision@{version};");
    build("ok", &contract().replacen(&present, &other, 1), version)
}

fn build(name: &str, contract: &str, version: &str) -> Vec<u8> {
    let text = format!("{}\n{}", read(&guests().join(format!("{name}.wat"))), read(&guests().join("shared.wat")));
    let mut bytes = wat::parse_str(text.replace("VERSION", version)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut resolve = Resolve::default();
    let package = resolve.push_str("provision.wit", contract).unwrap();
    let world = resolve.select_world(&[package], Some("provisioner")).unwrap();
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
