//! What a module asks for, held against what its label's policy grants.

use crate::api::Asks;
use crate::policy::{Glob, Grants};

/// What is asked for and not granted, a line each, as a policy names it: `grants.run /usr/bin/java`.
///
/// A line may be of something that a grant covers in a way that can not be told from the texts: a path below the root asked for, and a
/// directory granted by its absolute path.
pub fn not_granted(asks: &Asks, grants: &Grants) -> Vec<String> {
    let mut lines = Vec::new();
    for (kind, items) in asks.kinds() {
        let granted = |item: &&String| match kind {
            "run" => covered(item, &[&grants.run]),
            "write" => covered(item, &[&grants.write]),
            // What may be written may be read too.
            "read" => covered(item, &[&grants.read, &grants.write]),
            "secrets" => grants.secrets.iter().any(|name| name.as_str() == **item),
            // No policy can grant it yet.
            _ => false,
        };
        lines.extend(items.iter().filter(|item| !granted(item)).map(|item| format!("grants.{kind} {item}")));
    }
    lines
}

/// Stands for any agent's root.
const ROOT: &str = "/root-of-an-agent";

fn covered(asked: &str, grants: &[&Vec<Glob>]) -> bool {
    let is_glob = asked.contains(['*', '?', '[', '{', '\\']);
    let path = if asked.starts_with('/') { asked.to_owned() } else { format!("{ROOT}/{asked}") };
    grants.iter().flat_map(|grants| grants.iter()).any(|grant| {
        let text = grant.as_str();
        // Of a glob only a whole tree is known to cover another one.
        let tree =
            text.strip_suffix("**").filter(|tree| !tree.contains(['*', '?', '[', '{', '\\']) && (tree.is_empty() || tree.ends_with('/')));
        let within = |tree: &str| asked.starts_with(tree) && asked.starts_with('/') == text.starts_with('/');
        text == asked || tree.is_some_and(within) || !is_glob && grant.grants(ROOT, &path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globs(texts: &[&str]) -> Vec<Glob> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_grant_covers_what_it_names_and_what_lies_below_it() {
        for (asked, granted, covers) in [
            ("/usr/bin/java", "/usr/bin/java", true),
            ("/usr/bin/java", "/usr/bin/*", true),
            ("/usr/bin/java", "/usr/bin/javac", false),
            ("tools/bin/x", "tools/**", true),
            ("tools/**", "**", true),
            ("tools/**", "tools/**", true),
            ("tools/a/**", "tools/**", true),
            // One component is not a tree, and a pattern is not what it stands for.
            ("tools/**", "tools/*", false),
            ("tools/*", "tools/a", false),
            ("tools/**", "tools/[a-z]/**", false),
            ("toolsx/**", "tools/**", false),
            // Where the root is, is not known here.
            ("tools/**", "/**", false),
            ("/opt/**", "**", false),
        ] {
            assert_eq!(covered(asked, &[&globs(&[granted])]), covers, "{asked} by {granted}");
        }
    }

    #[test]
    fn each_kind_is_held_against_its_own_grants() {
        let list = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let asks = Asks {
            run: list(&["/bin/df"]),
            write: list(&["cache/**"]),
            read: list(&["cache/index", "/etc/os-release"]),
            secrets: list(&["artifactory", "signing"]),
            http: list(&["https://artifacts.internal.example/**"]),
        };
        let grants = Grants { write: globs(&["cache/**"]), secrets: vec!["signing".parse().unwrap()], ..Grants::default() };
        let lines = [
            "grants.run /bin/df",
            "grants.read /etc/os-release",
            "grants.secrets artifactory",
            "grants.http https://artifacts.internal.example/**",
        ];
        assert_eq!(not_granted(&asks, &grants), lines);
        assert!(not_granted(&Asks::default(), &Grants::default()).is_empty());
    }
}
