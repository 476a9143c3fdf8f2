//! What of an agent goes into the arguments of what a policy launches: `{name}`, `{labels}` and `{root}`.
//!
//! They are values, not text: an argument is cut into its parts before any value is known, so that a value makes no further argument and
//! is not looked through for placeholders itself. Two braces of a kind stand for one.

/// What an agent has to put in.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels; they are joined by `,`.
    pub labels: &'a [&'a str],
    /// Its root.
    pub root: &'a str,
}

/// What is wrong with the braces of an argument. It follows the argument's field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceholderError {
    /// No such placeholder.
    #[error(
        "`{{{0}}}` is none of the placeholders `{{name}}`, `{{labels}}` and `{{root}}`; write `{{{{` and `}}}}` for braces that are meant as such"
    )]
    Unknown(String),
    /// A brace that belongs to no placeholder.
    #[error("`{0}` has a brace without its other; write `{{{{` or `}}}}` for one that is meant as such")]
    Brace(String),
    /// The program can not depend on the agent.
    #[error("`{0}` is the program, and has no placeholders: what is granted is a path")]
    Program(String),
}

/// Checks a command's placeholders.
///
/// # Errors
/// The first that is none.
pub fn check(command: &[String]) -> Result<(), PlaceholderError> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    if program.contains(['{', '}']) {
        return Err(PlaceholderError::Program(shown(program)));
    }
    arguments.iter().try_for_each(|argument| parts(argument).map(drop))
}

/// An argument with an agent's values.
///
/// # Errors
/// When it holds what is no placeholder.
pub fn fill(argument: &str, values: &Values<'_>) -> Result<String, PlaceholderError> {
    let filled = parts(argument)?.into_iter().map(|part| match part {
        Part::Text(text) => text.to_owned(),
        Part::Name => values.name.to_owned(),
        Part::Labels => values.labels.join(","),
        Part::Root => values.root.to_owned(),
    });
    Ok(filled.collect())
}

enum Part<'a> {
    Text(&'a str),
    Name,
    Labels,
    Root,
}

fn parts(argument: &str) -> Result<Vec<Part<'_>>, PlaceholderError> {
    let brace = || PlaceholderError::Brace(shown(argument));
    let mut parts = Vec::new();
    let mut rest = argument;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        parts.push(Part::Text(before));
        if let Some(after) = from.strip_prefix("{{").or_else(|| from.strip_prefix("}}")) {
            parts.push(Part::Text(from.get(..1).unwrap_or_default()));
            rest = after;
            continue;
        }
        let (word, after) = from.strip_prefix('{').and_then(|from| from.split_once('}')).ok_or_else(brace)?;
        parts.push(match word {
            "name" => Part::Name,
            "labels" => Part::Labels,
            "root" => Part::Root,
            _ if word.contains('{') => return Err(brace()),
            other => return Err(PlaceholderError::Unknown(shown(other))),
        });
        rest = after;
    }
    parts.push(Part::Text(rest));
    Ok(parts)
}

/// A text for an error: with what can not be printed escaped, and cut.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect::<String>().escape_default().to_string()
}

const SHOWN_CHARS_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALUES: Values<'_> = Values { name: "web-1", labels: &["linux", "large"], root: "/srv/a b/{name}" };

    fn filled(argument: &str) -> Result<String, PlaceholderError> {
        fill(argument, &VALUES)
    }

    #[test]
    fn a_placeholder_is_the_agents_value_wherever_it_is_in_an_argument() {
        assert_eq!(filled("{name}").unwrap(), "web-1");
        assert_eq!(filled("--tags=queue={labels},host={name}").unwrap(), "--tags=queue=linux,large,host=web-1");
        assert_eq!(filled("no placeholder").unwrap(), "no placeholder");
        assert_eq!(filled("").unwrap(), "");
        assert_eq!(fill("{labels}", &Values { labels: &[], ..VALUES }).unwrap(), "");
    }

    #[test]
    fn a_value_is_neither_split_nor_looked_through() {
        assert_eq!(filled("{root}/builds").unwrap(), "/srv/a b/{name}/builds");
    }

    #[test]
    fn two_braces_stand_for_one() {
        assert_eq!(filled("{{name}}").unwrap(), "{name}");
        assert_eq!(filled("{{{name}}}").unwrap(), "{web-1}");
        assert_eq!(filled("a}}b{{c").unwrap(), "a}b{c");
    }

    #[test]
    fn what_is_no_placeholder_is_refused_with_those_that_are() {
        assert_eq!(
            filled("--name={nmae}").unwrap_err().to_string(),
            "`{nmae}` is none of the placeholders `{name}`, `{labels}` and `{root}`; write `{{` and `}}` for braces that are meant as such"
        );
        for odd in ["{", "}", "{name", "name}", "{a{name}", "{name}}"] {
            assert_eq!(filled(odd).unwrap_err(), PlaceholderError::Brace(odd.into()));
        }
        assert_eq!(filled("{Name}").unwrap_err(), PlaceholderError::Unknown("Name".into()));
        assert_eq!(filled("{}").unwrap_err(), PlaceholderError::Unknown(String::new()));
        assert_eq!(filled("{ name }").unwrap_err(), PlaceholderError::Unknown(" name ".into()));
        assert_eq!(filled("{\u{1b}[2J}").unwrap_err(), PlaceholderError::Unknown("\\u{1b}[2J".into()));
    }

    #[test]
    fn the_program_is_the_same_for_all_agents() {
        let command = |words: &[&str]| check(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(command(&["/bin/{name}"]), Err(PlaceholderError::Program("/bin/{name}".into())));
        assert_eq!(command(&["/bin/{{a}}"]), Err(PlaceholderError::Program("/bin/{{a}}".into())));
        assert_eq!(command(&["/bin/a", "{name}"]), Ok(()));
        assert!(command(&["/bin/a", "b", "{x}"]).is_err());
        assert_eq!(command(&[]), Ok(()));
    }

    proptest! {
        #[test]
        fn a_text_whose_braces_are_doubled_is_itself(text in ".*") {
            prop_assert_eq!(filled(&text.replace('{', "{{").replace('}', "}}")).unwrap(), text);
        }
    }
}
