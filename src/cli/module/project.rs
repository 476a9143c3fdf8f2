//! `muster-module.toml`: what a module's project says of itself.

use std::path::Path;

use serde::Deserialize;

use crate::api::Asks;
use crate::cli::{CliError, read_text};
use crate::names::ModuleName;
use crate::sandbox::inspect::asks::check;

/// The project's own file.
pub(super) const FILE: &str = "muster-module.toml";

/// A language that modules can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Lang {
    Rust,
    Js,
    Python,
    C,
    Go,
}

impl Lang {
    /// The language's own name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::Js => "JavaScript",
            Self::Python => "Python",
            Self::C => "C",
            Self::Go => "Go",
        }
    }
}

/// A module's project.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Project {
    /// The module's name; the component is `NAME.wasm`.
    pub(super) name: ModuleName,
    /// What it is written in.
    pub(super) lang: Lang,
    /// The grants that it asks for.
    #[serde(default)]
    pub(super) asks: Asks,
}

impl Project {
    /// Reads the project's file.
    pub(super) fn read(directory: &Path) -> Result<Self, CliError> {
        let path = directory.join(FILE);
        if !path.exists() {
            let problem = format!("there is no {FILE} in {}", directory.display());
            return Err(CliError::usage(problem, "`muster module new NAME --lang LANG` makes a project; pass its directory"));
        }
        let what = format!("read {}", path.display());
        let project: Self = toml::from_str(&read_text(&path)?).map_err(|error| CliError::failed(what.clone(), error))?;
        check(&project.asks).map_err(|error| CliError::failed(what, error))?;
        Ok(project)
    }
}
