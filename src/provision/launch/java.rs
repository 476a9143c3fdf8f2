//! Which Java of a machine runs a controller's program.

use std::fmt::Write as _;

use crate::controller::jenkins::start::java_major;
use crate::limits::JAVA_LOOK_MAX;
use crate::link::Link;
use crate::machine::Command;

/// Says the path of each Java that the machine has at the usual places, and what it says of itself; or of the one that is named.
const LOOK: &str = r#"
if [ $# -eq 0 ]; then
    set -- "$(command -v java)" /usr/bin/java /usr/local/bin/java /opt/java/openjdk/bin/java /usr/lib/jvm/*/bin/java /opt/*/bin/java
fi
tried=:
for java; do
    [ -n "$java" ] && [ -x "$java" ] || continue
    real=$(readlink -f -- "$java") || real=$java
    case $tried in *":$real:"*) continue ;; esac
    tried=$tried$real:
    printf 'muster-java %s\n' "$java"
    "$java" -version </dev/null 2>&1 | head -n 20
done
"#;

/// Javas that are told of when none will do.
const TOLD_MAX: usize = 8;

/// Finds a Java of at least a major version; the one that is named, if one is, else the first that will do.
///
/// # Errors
/// Why there is none, for a person.
pub(super) async fn find(link: &dyn Link, named: Option<&str>, at_least: u16) -> Result<String, String> {
    let command = Command {
        program: "/bin/sh".into(),
        args: ["-c", LOOK, "sh"].into_iter().chain(named).map(ToOwned::to_owned).collect(),
        timeout_ms: u64::try_from(JAVA_LOOK_MAX.as_millis()).ok(),
        ..Command::default()
    };
    let output = link.exec(&command, &mut |_, _| {}).await.map_err(|error| format!("looking for a Java: {error}"))?;
    let found = parse(&String::from_utf8_lossy(&output.stdout));
    // One that is named may be below the agent's root.
    let is_usable = |path: &str| path.starts_with('/') || named.is_some();
    if let Some((path, _)) = found.iter().find(|(path, major)| is_usable(path) && major.is_some_and(|major| major >= at_least)) {
        return Ok(path.clone());
    }
    let mut why = format!("it takes a Java {at_least} or later");
    match (found.is_empty(), named) {
        (true, Some(named)) => write!(why, ", and there is no program `{named}`, which `launch.java` names"),
        (true, None) => write!(why, ", and no Java was found; install one, or name it by `launch.java` in the label's policy"),
        (false, _) => {
            let told = found.iter().take(TOLD_MAX).map(|(path, major)| match major {
                Some(major) => format!("`{path}` is {major}"),
                None => format!("`{path}` does not say what it is"),
            });
            write!(why, ": {}", told.collect::<Vec<_>>().join(", "))
        }
    }
    .map_or(Err(String::new()), |()| Err(why))
}

/// Takes apart what the machine said: paths, each with what that Java says.
fn parse(said: &str) -> Vec<(String, Option<u16>)> {
    let javas = said.split("muster-java ").skip(1);
    let java = javas.filter_map(|part| part.split_once('\n'));
    java.map(|(path, rest)| (path.chars().filter(|letter| !letter.is_control()).take(300).collect(), java_major(rest))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_says_of_its_javas_is_taken_apart() {
        let said = "muster-java /usr/bin/java\nopenjdk version \"17.0.15\" 2025-04-15\nmore\nmuster-java /opt/x/bin/java\nsh: oops\n";
        assert_eq!(parse(said), [("/usr/bin/java".into(), Some(17)), ("/opt/x/bin/java".into(), None)]);
        assert_eq!(parse(""), []);
        assert_eq!(parse("muster-java /cut"), []);
    }
}
