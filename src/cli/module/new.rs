//! `muster module new`: a small project that builds and has a test of its own.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::CliError;
use crate::cli::module::project::Lang;
use crate::cli::output::Output;
use crate::names::ModuleName;

/// What `muster module new` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The module's name: lower-case letters, digits, `-` and `_`, with a letter first
    #[arg(value_parser = name)]
    name: ModuleName,
    /// The language that it will be written in
    #[arg(long)]
    lang: Lang,
    /// Where to make the project; a directory of the module's name unless said
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// A name that is one for the packages of every language too.
fn name(text: &str) -> Result<ModuleName, String> {
    let fits = text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'));
    if !fits {
        return Err("a project's name is made of lower-case letters, digits, `-` and `_`, and begins with a letter".into());
    }
    text.parse().map_err(|error: crate::names::NameError| error.to_string())
}

/// The contract, which every project has a copy of.
const CONTRACT: &str = include_str!("../../../wit/provision.wit");

/// What stands for the module's name in a template.
const PLACE: &str = "module-name";

macro_rules! template {
    ($language:literal: $($path:literal),+ $(,)?) => {
        &[$(($path, include_str!(concat!("templates/", $language, "/", $path)))),+]
    };
}

/// The files of a project in a language, besides the contract.
fn template(lang: Lang) -> &'static [(&'static str, &'static str)] {
    match lang {
        Lang::Rust => template!("rust": "muster-module.toml", "README.md", ".gitignore", "Cargo.toml", "src/lib.rs"),
        Lang::Js => template!("js": "muster-module.toml", "README.md", ".gitignore", "package.json", "module.js", "test/module.test.js"),
        Lang::Python => {
            template!("python": "muster-module.toml", "README.md", ".gitignore", "requirements.txt", "module.py", "tests/test_module.py")
        }
        Lang::C => template!(
            "c": "muster-module.toml", "README.md", ".gitignore", "module.c", "tests/module", "gen/provisioner.c", "gen/provisioner.h",
        ),
        Lang::Go => template!(
            "go":
            "muster-module.toml",
            "README.md",
            ".gitignore",
            "go.mod",
            "main.go",
            "provision/provision.go",
            "lines/lines.go",
            "lines/lines_test.go",
            "gen/exports/wit_exports/wit_exports.go",
            "gen/imports/muster_provision_agent/empty.s",
            "gen/imports/muster_provision_agent/wit_bindings.go",
            "gen/imports/muster_provision_bits/empty.s",
            "gen/imports/muster_provision_bits/wit_bindings.go",
            "gen/imports/muster_provision_log/empty.s",
            "gen/imports/muster_provision_log/wit_bindings.go",
            "gen/imports/muster_provision_provisioning/empty.s",
            "gen/imports/muster_provision_provisioning/wit_bindings.go",
            "gen/imports/muster_provision_registration/empty.s",
            "gen/imports/muster_provision_registration/wit_bindings.go",
            "gen/imports/muster_provision_secrets/empty.s",
            "gen/imports/muster_provision_secrets/wit_bindings.go",
            "gen/imports/muster_provision_settings/empty.s",
            "gen/imports/muster_provision_settings/wit_bindings.go",
            "gen/wit/LICENSE",
            "gen/wit/runtime/empty.s",
            "gen/wit/runtime/runtime.go",
            "gen/wit/types/option.go",
            "gen/wit/types/result.go",
            "gen/wit/types/tuple.go",
            "gen/wit/types/unit.go",
        ),
    }
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    name: String,
    directory: String,
    files: Vec<String>,
}

/// Makes a project.
pub(crate) fn run(args: Args, output: &mut Output) -> Result<(), CliError> {
    let directory = args.dir.unwrap_or_else(|| PathBuf::from(args.name.as_str()));
    let what = format!("make a project in {}", directory.display());
    let failed = |error: std::io::Error| CliError::failed(what.clone(), error);
    if std::fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(CliError::failed(what, "the directory holds something already; `--dir DIR` names another one"));
    }
    let files = template(args.lang).iter().copied().chain([("wit/provision.wit", CONTRACT)]);
    let mut made = Vec::new();
    for (path, text) in files {
        let file = directory.join(path);
        std::fs::create_dir_all(file.parent().unwrap_or(&directory)).map_err(failed)?;
        std::fs::write(&file, text.replace(PLACE, args.name.as_str())).map_err(failed)?;
        if text.starts_with("#!") {
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).map_err(failed)?;
        }
        made.push(path.to_owned());
    }
    if output.json() {
        return output.value(&Made { name: args.name.to_string(), directory: directory.display().to_string(), files: made });
    }
    for path in made {
        output.line(&directory.join(path).display().to_string())?;
    }
    let component = directory.join(format!("{}.wasm", args.name));
    output.line("")?;
    output.line(&format!("muster module build {}", shown(&directory)))?;
    output.line(&format!("muster module try {} --root $(mktemp -d) --set jdk=17", shown(&component)))
}

/// A path that can be pasted: of one with other characters than usual the shell would make something else.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@:,".contains(&byte));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;
    use crate::cli::module::project::Project;
    use crate::cli::output::fixture::output;

    #[test]
    fn a_project_of_each_language_says_what_it_is_and_bears_its_name() {
        for lang in Lang::value_variants() {
            let directory = tempfile::tempdir().unwrap();
            let at = directory.path().join("base-7");
            let args = || Args { name: name("base-7").unwrap(), lang: *lang, dir: Some(at.clone()) };
            let (mut out, text) = output(false, false);
            run(args(), &mut out).unwrap();
            let told = text.take();
            let commands: Vec<_> = told.lines().rev().take(2).collect();
            assert!(commands[1].starts_with("muster module build ") && commands[0].starts_with("muster module try "), "{told}");
            let project = Project::read(&at).unwrap();
            assert_eq!((project.name.as_str(), project.lang, project.asks.write.len()), ("base-7", *lang, 1));
            assert_eq!(std::fs::read_to_string(at.join("wit/provision.wit")).unwrap(), CONTRACT);
            for (path, text) in template(*lang) {
                let made = std::fs::read_to_string(at.join(path)).unwrap();
                assert!(!made.contains(PLACE), "{path} of {lang:?}");
                assert!(!text.contains("base-7"));
            }
            // What is there is not written over.
            let told = run(args(), &mut out).unwrap_err();
            assert_eq!(told.status(), 1);
        }
    }

    #[test]
    fn the_bindings_that_are_handed_out_have_what_the_contract_has() {
        let text = |lang: Lang, end: &str| {
            template(lang).iter().filter(|(path, _)| path.ends_with(end)).map(|(_, text)| *text).collect::<String>()
        };
        let (c, go) = (text(Lang::C, "provisioner.h"), text(Lang::Go, "wit_bindings.go"));
        let version = crate::sandbox::inspect::CONTRACT_VERSION;
        assert!(c.contains(&format!("muster:provision/agent@{version}")) && go.contains(&format!("muster:provision/agent@{version}")));
        let functions: Vec<&str> = CONTRACT.lines().filter_map(|line| line.trim().split_once(": func")).map(|(name, _)| name).collect();
        assert!(functions.len() > 30, "{functions:?}");
        for function in functions.iter().filter(|name| **name != "provision") {
            // run `scripts/bindings`
            assert!(c.contains(&format!("_{}(", function.replace('-', "_"))), "{function}");
            let camel: String = function.split('-').map(|word| format!("{}{}", word[..1].to_uppercase(), &word[1..])).collect();
            assert!(go.contains(&format!(" {camel}(")), "{function}");
        }
    }

    #[test]
    fn a_name_is_one_in_every_language() {
        assert!(name("base-7").is_ok());
        for odd in ["Base", "7base", "a.b", "", "a b", "-a", "a/b"] {
            assert!(name(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_path_is_shown_as_a_shell_takes_it() {
        assert_eq!(shown(Path::new("./a-b/c.wasm")), "./a-b/c.wasm");
        assert_eq!(shown(Path::new("it's here")), r"'it'\''s here'");
    }
}
