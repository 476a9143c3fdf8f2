//! What a module asks for: the grants that its project names, which the component carries in a section of its own.
//!
//! Nothing is granted by being asked for. The section [`SECTION`] holds `{"language": "C", "asks": {…}}` as JSON, with the kinds of a policy's
//! grants. The language is there because not every tool notes it, and some note that of an interpreter.

use serde::{Deserialize, Serialize};

use crate::api::Asks;
use crate::limits::{ASKS_BYTES_MAX, NAME_BYTES_MAX, POLICY_ITEMS_MAX, POLICY_TEXT_BYTES_MAX};
use crate::names::SecretName;
use crate::policy::Glob;

/// The name of the component's section.
pub const SECTION: &str = "muster-module";

/// Why what a module asks for can not be read.
#[derive(Debug, thiserror::Error)]
pub enum AsksError {
    /// It is longer than anything that a person would read.
    #[error("it has {0} bytes; at most {ASKS_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// There are two: nobody could say which one counts.
    #[error("the component has two of them")]
    Twice,
    /// It is not what `muster module build` writes.
    #[error("it can not be read: {0}")]
    Json(serde_json::Error),
    /// The language's name is longer than any.
    #[error("its language has {0} bytes; at most {NAME_BYTES_MAX} are allowed")]
    Language(usize),
    /// No grant could be what is asked for.
    #[error("asks.{kind}: {problem}")]
    Item {
        /// The kind of grants.
        kind: &'static str,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    pub(super) language: String,
    pub(super) asks: Asks,
}

/// Reads the section's text.
///
/// # Errors
/// When it is too long, of another form, or asks for what no grant can be.
pub(super) fn read(text: &[u8]) -> Result<Section, AsksError> {
    if text.len() > ASKS_BYTES_MAX {
        return Err(AsksError::TooLong(text.len()));
    }
    let section: Section = serde_json::from_slice(text).map_err(AsksError::Json)?;
    if section.language.len() > NAME_BYTES_MAX {
        return Err(AsksError::Language(section.language.len()));
    }
    check(&section.asks)?;
    Ok(section)
}

/// Checks that a policy could grant what is asked for.
///
/// # Errors
/// The first item that is no grant, and a kind with too many of them.
pub fn check(asks: &Asks) -> Result<(), AsksError> {
    for (kind, items) in asks.kinds() {
        let wrong = |problem: String| AsksError::Item { kind, problem };
        if items.len() > POLICY_ITEMS_MAX {
            return Err(wrong(format!("{} items; at most {POLICY_ITEMS_MAX} are allowed", items.len())));
        }
        for item in items {
            match kind {
                "secrets" => item.parse::<SecretName>().map(drop).map_err(|error| wrong(error.to_string()))?,
                "http" if item.is_empty() || item.len() > POLICY_TEXT_BYTES_MAX => {
                    return Err(wrong(format!("an item has 1 to {POLICY_TEXT_BYTES_MAX} bytes, this one has {}", item.len())));
                }
                "http" => {}
                _ => item.parse::<Glob>().map(drop).map_err(|error| wrong(error.to_string()))?,
            }
        }
    }
    Ok(())
}

/// The component with the language that it was written in, and what it asks for, at its end.
///
/// # Errors
/// As [`check`], and when it is too long.
pub fn carried(mut component: Vec<u8>, language: &str, asks: Asks) -> Result<Vec<u8>, AsksError> {
    check(&asks)?;
    let text = serde_json::to_vec(&Section { language: language.into(), asks }).map_err(AsksError::Json)?;
    if text.len() > ASKS_BYTES_MAX {
        return Err(AsksError::TooLong(text.len()));
    }
    let mut content = Vec::with_capacity(text.len() + 16);
    push_length(&mut content, SECTION.len());
    content.extend_from_slice(SECTION.as_bytes());
    content.extend_from_slice(&text);
    component.push(CUSTOM_SECTION);
    push_length(&mut component, content.len());
    component.extend_from_slice(&content);
    Ok(component)
}

/// What begins a custom section.
const CUSTOM_SECTION: u8 = 0;

/// A length as WebAssembly has it: seven bits a byte, the lowest first.
fn push_length(into: &mut Vec<u8>, mut length: usize) {
    loop {
        let low = u8::try_from(length & 0x7f).unwrap_or_default();
        length >>= 7;
        if length == 0 {
            return into.push(low);
        }
        into.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::inspect::{InspectError, look};

    fn asks() -> Asks {
        Asks { run: vec!["/usr/bin/java".into()], write: vec!["tools/**".into()], secrets: vec!["artifactory".into()], ..Asks::default() }
    }

    fn empty() -> Vec<u8> {
        wat::parse_str("(component)").unwrap()
    }

    #[test]
    fn what_is_carried_is_read_again() {
        let component = carried(empty(), "Python", asks()).unwrap();
        wasmparser::Validator::new().validate_all(&component).unwrap();
        let about = look(&component).unwrap();
        assert_eq!((about.asks, about.language.as_deref()), (Some(asks()), Some("Python")));
        assert_eq!(look(&empty()).unwrap().asks, None);
        // Longer than one byte of length can say.
        let many = Asks { run: (0..200).map(|number| format!("/opt/tools/bin/program-{number}")).collect(), ..Asks::default() };
        assert_eq!(look(&carried(empty(), "C", many.clone()).unwrap()).unwrap().asks, Some(many));
    }

    #[test]
    fn what_can_not_be_granted_is_not_carried() {
        for (odd, kind) in [
            (Asks { run: vec!["../x".into()], ..Asks::default() }, "asks.run"),
            (Asks { read: vec!["a[".into()], ..Asks::default() }, "asks.read"),
            (Asks { secrets: vec!["a/b".into()], ..Asks::default() }, "asks.secrets"),
            (Asks { http: vec![String::new()], ..Asks::default() }, "asks.http"),
            (Asks { write: vec!["a".into(); POLICY_ITEMS_MAX + 1], ..Asks::default() }, "asks.write"),
        ] {
            let told = carried(empty(), "C", odd).unwrap_err().to_string();
            assert!(told.starts_with(kind), "{told}");
        }
        let long = Asks { run: (0..200).map(|number| format!("/{number}{}", "a".repeat(1000))).collect(), ..Asks::default() };
        assert!(matches!(carried(empty(), "C", long), Err(AsksError::TooLong(_))));
    }

    #[test]
    fn a_section_that_is_none_of_ours_makes_no_module() {
        let twice = carried(carried(empty(), "C", asks()).unwrap(), "C", asks()).unwrap();
        assert!(matches!(look(&twice), Err(InspectError::Asks(AsksError::Twice))));
        let text = r#"(component (@custom "muster-module" "{\"language\":\"C\",\"asks\":{\"rum\":[]}}"))"#;
        let told = look(&wat::parse_str(text).unwrap()).unwrap_err().to_string();
        assert!(told.contains("`muster-module`") && told.contains("rum"), "{told}");
        let long = carried(empty(), &"C".repeat(NAME_BYTES_MAX + 1), asks()).unwrap();
        assert!(matches!(look(&long), Err(InspectError::Asks(AsksError::Language(_)))));
        // What a part of it carries is not its own.
        let inner = r#"(component (component (@custom "muster-module" "x")))"#;
        assert_eq!(look(&wat::parse_str(inner).unwrap()).unwrap().asks, None);
    }
}
