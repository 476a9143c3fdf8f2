//! What a component says of itself, read from its bytes before anything is compiled.

use asks::{AsksError, Section};
use wasmparser::{BinaryReaderError, Encoding, KnownCustom, Parser, Payload, ProducersSectionReader};

use crate::api::Asks;

pub mod asks;

/// The package of the contract, and the version that this server speaks. Held equal to `wit/` by a test.
pub const CONTRACT: &str = "muster:provision";
/// The contract's version.
pub const CONTRACT_VERSION: &str = "0.1.0";

/// What a component says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The world of the contract, with the version that it was built for, if it exports what that world asks for.
    pub world: Option<String>,
    /// The contract's version that it was built for, if it exports what the contract's world asks for.
    pub contract: Option<String>,
    /// The interfaces that it imports, with versions.
    pub imports: Vec<String>,
    /// The interfaces that it exports, with versions.
    pub exports: Vec<String>,
    /// The language that it was written in, if its project said so, or what the tools noted.
    pub language: Option<String>,
    /// The grants that it asks for, if it carries them.
    pub asks: Option<Asks>,
}

/// Why some bytes are no module.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// They are not WebAssembly at all.
    #[error("this is not a WebAssembly component: it does not begin as one")]
    NotWasm,
    /// They are WebAssembly, and damaged.
    #[error("this is not a WebAssembly component: {}", .0.message())]
    Damaged(BinaryReaderError),
    /// They are a core module.
    #[error("this is a core WebAssembly module, not a component; `wasm-tools component new` makes one of it")]
    CoreModule,
    /// The component imports something that no module may.
    #[error("the component imports `{0}`, which this server does not offer")]
    Import(String),
    /// The component was built for another contract.
    #[error("the component was built for contract {wants}, this server speaks {CONTRACT_VERSION}")]
    Contract {
        /// The version that it was built for.
        wants: String,
    },
    /// The component does not offer what a module must.
    #[error("the component does not export `{CONTRACT}/provisioning@{CONTRACT_VERSION}`, so it is not a provisioning module")]
    NoExport,
    /// What it asks for can not be read.
    #[error("the component's section `muster-module` is not what a module asks for: {0}")]
    Asks(#[from] AsksError),
}

impl From<BinaryReaderError> for InspectError {
    fn from(error: BinaryReaderError) -> Self {
        Self::Damaged(error)
    }
}

/// Reads what a component says of itself and checks that it speaks this server's contract.
///
/// Types are not checked here: linking does that.
///
/// # Errors
/// When the bytes are no component, or one that this server can not run.
pub fn inspect(bytes: &[u8]) -> Result<About, InspectError> {
    let about = look(bytes)?;
    for name in about.imports.iter().chain(&about.exports) {
        let (package, of) = name.split_once('/').unwrap_or((name, ""));
        let wants = of.split_once('@').map_or("an unversioned draft", |(_, version)| version);
        if package == CONTRACT && !speaks(wants) {
            return Err(InspectError::Contract { wants: wants.into() });
        }
    }
    let offered =
        |name: &String| name.strip_prefix("wasi:").is_some_and(|rest| rest.contains("@0.2.")) || name.starts_with(&format!("{CONTRACT}/"));
    if let Some(foreign) = about.imports.iter().find(|name| !offered(name)) {
        return Err(InspectError::Import(foreign.clone()));
    }
    if about.contract.is_none() {
        return Err(InspectError::NoExport);
    }
    Ok(about)
}

/// Reads what a component says of itself, whatever contract it speaks.
///
/// # Errors
/// When the bytes are no component.
pub fn look(bytes: &[u8]) -> Result<About, InspectError> {
    if !bytes.starts_with(b"\0asm") {
        return Err(InspectError::NotWasm);
    }
    let (mut imports, mut exports, mut noted, mut asked, mut depth) = (Vec::new(), Vec::new(), Noted::default(), None, 0_u32);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => return Err(InspectError::CoreModule),
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export?.name.name.to_owned());
                }
            }
            Payload::CustomSection(section) if depth == 0 && section.name() == asks::SECTION && asked.is_some() => {
                return Err(AsksError::Twice.into());
            }
            Payload::CustomSection(section) if depth == 0 && section.name() == asks::SECTION => {
                asked = Some(asks::read(section.data())?);
            }
            Payload::CustomSection(section) => {
                if let KnownCustom::Producers(section) = section.as_known() {
                    // What is noted is a courtesy: a component with it garbled is a component all the same.
                    noted.read(section).ok();
                }
            }
            _ => {}
        }
    }
    let exported = format!("{CONTRACT}/provisioning@");
    let contract = exports.iter().find_map(|name: &String| name.strip_prefix(&exported)).map(str::to_owned);
    let (said, asks) = asked.map(|Section { language, asks }| (language, asks)).unzip();
    let language = said.or_else(|| noted.language());
    let world = contract.as_ref().map(|version| format!("{CONTRACT}/provisioner@{version}"));
    Ok(About { world, contract, imports, exports, language, asks })
}

/// What the tools that made a component noted in it, and in what it is made of.
#[derive(Default)]
struct Noted {
    tools: Vec<String>,
    languages: Vec<String>,
}

impl Noted {
    fn read(&mut self, section: ProducersSectionReader<'_>) -> Result<(), BinaryReaderError> {
        for field in section {
            let field = field?;
            let into = match field.name {
                "processed-by" => &mut self.tools,
                "language" => &mut self.languages,
                _ => continue,
            };
            for value in field.values {
                into.push(value?.name.to_owned());
            }
        }
        Ok(())
    }

    /// The language. An interpreter's own is not the author's, so that a tool that brings an interpreter counts before it.
    fn language(self) -> Option<String> {
        let tool = |name: &str| self.tools.iter().any(|tool| tool.to_ascii_lowercase().contains(name));
        if tool("componentize-py") {
            return Some("Python".into());
        }
        if tool("componentize-js") || tool("componentizejs") || tool("componentize-qjs") {
            return Some("JavaScript".into());
        }
        self.languages.into_iter().next()
    }
}

/// Whether a component built for a version can run here: the same major version, or below 1.0 the same minor one.
fn speaks(wants: &str) -> bool {
    fn line(version: &str) -> Option<(u64, u64)> {
        let mut parts = version.split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        Some(if major == 0 { (0, minor) } else { (major, 0) })
    }
    line(wants).is_some() && line(wants) == line(CONTRACT_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn a_contract_is_spoken_when_its_line_is_the_same() {
        assert!(speaks("0.1.0"));
        assert!(speaks("0.1.7"));
        for other in ["0.2.0", "1.0.0", "", "x", "0"] {
            assert!(!speaks(other), "{other} was taken");
        }
    }

    #[test]
    fn a_component_tells_its_world_and_its_imports_but_not_those_of_its_parts() {
        let text = r#"(component
            (import "muster:provision/log@0.1.0" (instance))
            (component (import "inner:a/b" (instance)))
            (core module (import "env" "f" (func)))
            (instance $i)
            (export "muster:provision/provisioning@0.1.0" (instance $i))
            (@producers (language "Rust" "1.95")))"#;
        let about = inspect(&component(text)).unwrap();
        assert_eq!(about.imports, ["muster:provision/log@0.1.0"]);
        assert_eq!(about.exports, ["muster:provision/provisioning@0.1.0"]);
        assert_eq!(about.world.as_deref(), Some("muster:provision/provisioner@0.1.0"));
        assert_eq!(about.contract.as_deref(), Some("0.1.0"));
        assert_eq!(about.language.as_deref(), Some("Rust"));
    }

    #[test]
    fn what_is_no_component_is_said_to_be_none() {
        assert!(matches!(look(&component("(module)")), Err(InspectError::CoreModule)));
        assert!(matches!(look(b"hello"), Err(InspectError::NotWasm)));
        assert!(matches!(look(b""), Err(InspectError::NotWasm)));
        assert!(matches!(look(b"\0asm\x0d\0\x01\0\xff"), Err(InspectError::Damaged(_))));
    }

    #[test]
    fn a_component_that_is_no_module_can_be_looked_at_all_the_same() {
        let empty = component("(component)");
        let about = look(&empty).unwrap();
        assert_eq!((about.world, about.contract, about.language), (None, None, None));
        assert!(matches!(inspect(&empty), Err(InspectError::NoExport)));
        let foreign = component(r#"(component (import "other:x/y@1.0.0" (instance)))"#);
        assert_eq!(look(&foreign).unwrap().imports, ["other:x/y@1.0.0"]);
        assert!(matches!(inspect(&foreign), Err(InspectError::Import(name)) if name == "other:x/y@1.0.0"));
    }

    #[test]
    fn an_interpreter_does_not_hide_the_authors_language() {
        let text = r#"(component (core module (@producers (language "C11" "") (processed-by "componentize-py" "1"))))"#;
        assert_eq!(look(&component(text)).unwrap().language.as_deref(), Some("Python"));
    }
}
