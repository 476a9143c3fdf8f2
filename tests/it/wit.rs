//! The contract with modules: what was released stays true, and everything in it is explained.

use std::path::{Path, PathBuf};

use wit_parser::{Docs, PackageId, Resolve, Type, TypeDefKind, WorldId};

/// Major, minor, patch.
type Version = (u64, u64, u64);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("wit")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn push(resolve: &mut Resolve, contract: &str) -> (PackageId, WorldId) {
    let package = resolve.push_str("provision.wit", contract).unwrap();
    (package, resolve.select_world(&[package], Some("provisioner")).unwrap())
}

fn parse(version: &str) -> Version {
    let parts: Vec<u64> = version.split('.').map(|part| part.parse().unwrap_or_else(|_| panic!("{version} is not a release"))).collect();
    let [major, minor, patch] = parts[..] else { panic!("{version} is not a release") };
    (major, minor, patch)
}

fn version(contract: &str) -> Version {
    let package = contract.lines().find_map(|line| line.strip_prefix("package muster:provision@")).unwrap();
    parse(package.trim_end_matches(';'))
}

/// Whether a host of one version runs guests of the other, as the component model has it: `1.x` with each other, `0.1.x` with each other.
fn compatible(one: Version, other: Version) -> bool {
    match one {
        (0, 0, _) => one == other,
        (0, minor, _) => other.0 == 0 && other.1 == minor,
        (major, ..) => other.0 == major,
    }
}

/// The releases of the contract, each with its text.
fn releases() -> Vec<(Version, String)> {
    let releases: Vec<_> = std::fs::read_dir(folder().join("released"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (parse(path.file_name().unwrap().to_str().unwrap()), read(&path.join("provision.wit"))))
        .collect();
    assert!(!releases.is_empty(), "no release in wit/released");
    releases
}

/// Answers why modules that were built for `released` would not run where `present` is spoken.
fn check(released: &str, present: &str) -> Result<(), String> {
    let mut resolve = Resolve::default();
    let (_, present_world) = push(&mut resolve, present);
    // Two packages of one version can not be in one resolve, and the check looks past versions.
    let mut released = released.to_owned();
    let end = released.find(';').unwrap();
    released.replace_range(..end, "package muster:provision@0.0.0");
    let (_, released_world) = push(&mut resolve, &released);
    wit_component::semver_check(resolve, released_world, present_world).map_err(|error| format!("{error:#}"))
}

#[test]
fn a_release_lies_in_the_folder_of_its_version() {
    for (folder, contract) in releases() {
        assert_eq!(folder, version(&contract));
    }
}

#[test]
fn modules_of_every_compatible_release_run_under_the_present_contract() {
    let present = read(&folder().join("provision.wit"));
    for (released, contract) in releases() {
        if !compatible(released, version(&present)) {
            continue;
        }
        assert!(released <= version(&present), "{released:?} was released, but wit/provision.wit has an older version");
        check(&contract, &present).unwrap_or_else(|why| panic!("wit/provision.wit breaks modules of {released:?}: {why}"));
        if released == version(&present) {
            check(&present, &contract).unwrap_or_else(|why| {
                panic!("wit/provision.wit is more than {released:?}, which is released; give it a new version: {why}")
            });
        }
    }
}

#[test]
fn a_new_variant_case_breaks_modules_and_is_found() {
    let present = read(&folder().join("provision.wit"));
    let broken = present.replacen("never(string),", "never(string),\n    /// New.\n    soon,", 1);
    assert_ne!(present, broken);
    check(&present, &broken).unwrap_err();
    check(&present, &present).unwrap();
}

#[test]
fn versions_are_compatible_as_the_component_model_has_it() {
    assert!(compatible((1, 0, 0), (1, 4, 2)));
    assert!(compatible((0, 1, 0), (0, 1, 7)));
    assert!(!compatible((0, 1, 0), (0, 2, 0)));
    assert!(!compatible((0, 1, 0), (1, 1, 0)));
    assert!(!compatible((0, 0, 1), (0, 0, 2)));
}

#[test]
fn every_item_of_the_contract_is_explained() {
    let mut resolve = Resolve::default();
    let (package, world) = push(&mut resolve, &read(&folder().join("provision.wit")));
    let mut bare = Vec::new();
    let mut look = |docs: &Docs, name: String| {
        if docs.contents.as_deref().is_none_or(|text| text.trim().is_empty()) {
            bare.push(name);
        }
    };

    look(&resolve.worlds[world].docs, "provisioner".to_owned());
    for (name, interface) in &resolve.packages[package].interfaces {
        let interface = &resolve.interfaces[*interface];
        look(&interface.docs, name.clone());
        for (function, item) in &interface.functions {
            look(&item.docs, format!("{name}.{function}"));
        }
        for (kind, id) in &interface.types {
            let item = &resolve.types[*id];
            match &item.kind {
                // What `use` brings in is explained where it comes from.
                TypeDefKind::Type(Type::Id(_)) => continue,
                TypeDefKind::Record(record) => {
                    record.fields.iter().for_each(|field| look(&field.docs, format!("{name}.{kind}.{}", field.name)))
                }
                TypeDefKind::Variant(variant) => {
                    variant.cases.iter().for_each(|case| look(&case.docs, format!("{name}.{kind}.{}", case.name)))
                }
                _ => {}
            }
            look(&item.docs, format!("{name}.{kind}"));
        }
    }
    assert!(bare.is_empty(), "without a doc comment: {bare:?}");
}
