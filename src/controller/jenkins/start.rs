//! How an agent is started: the file of arguments that Java is given, and which Java a machine has.
//!
//! `java @FILE` reads its arguments from a file, so that the secret is in no list of processes. The file is to be readable by the agent's user
//! alone. An agent that lost its controller begins again as the same process, so the file stays while the agent runs.

use std::fmt;

use reqwest::Url;

use crate::controller::jenkins::jar::Remoting;
use crate::controller::jenkins::node::NodeName;
use crate::limits::PATH_BYTES_MAX;

/// What an agent is to connect as. It does not show its secret.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// The absolute path of its `agent.jar` on the machine.
    pub jar: &'a str,
    /// The Remoting in it.
    pub remoting: &'a Remoting,
    /// The controller's URL, as the machine is to call it.
    pub url: &'a str,
    /// The node.
    pub node: &'a NodeName,
    /// The node's secret.
    pub secret: &'a str,
    /// The absolute path of the directory in which it works: the root of the node.
    pub work_dir: &'a str,
}

/// The text of a file of arguments. It holds a secret and does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ArgumentFile(String);

/// Why an agent can not be started. None holds the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Its Remoting is too old.
    #[error("Remoting {0} does not speak WebSocket; Muster's agents need 4.0 or later, which Jenkins has since 2.217")]
    Remoting(String),
    /// The controller's URL is none.
    #[error("the controller says that its URL is `{0}`, which is no http or https URL; set it at Manage Jenkins, System, Jenkins URL")]
    Url(String),
    /// A path can not be used.
    #[error("`{0}` can not be a path for Java: it is absolute, has at most {PATH_BYTES_MAX} bytes and no control characters")]
    Path(String),
    /// A path that this Remoting can not be started from.
    #[error("Remoting {0} can not be started from `{1}`: a path of Java's class path has neither `:` nor `*`")]
    ClassPath(String, String),
    /// A name that this Remoting takes for an option.
    #[error("Remoting {0} takes the name `{1}` for an option: let the controller's name_prefix not begin with `-`")]
    Name(String, String),
    /// The secret is none.
    #[error("the node's secret is not made of hexadecimal digits")]
    Secret,
}

impl fmt::Debug for Start<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start").field("jar", &self.jar).field("url", &self.url).field("node", &self.node).finish_non_exhaustive()
    }
}

impl fmt::Debug for ArgumentFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ArgumentFile").finish_non_exhaustive()
    }
}

impl ArgumentFile {
    /// The arguments with which Java starts an agent that connects over WebSocket.
    ///
    /// # Errors
    /// Why it can not.
    pub fn new(start: &Start<'_>) -> Result<Self, StartError> {
        let Start { jar, remoting, url, node, secret, work_dir } = *start;
        if !remoting.has_websocket() {
            return Err(StartError::Remoting(remoting.to_string()));
        }
        let is_url = Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !is_url || url.chars().any(|letter| letter.is_control() || letter.is_whitespace()) {
            return Err(StartError::Url(url.chars().take(PATH_BYTES_MAX).collect::<String>().escape_default().to_string()));
        }
        for path in [jar, work_dir] {
            // Beginning with `/`, it is neither an option nor a file of options either.
            if !path.starts_with('/') || path.len() > PATH_BYTES_MAX || path.chars().any(char::is_control) {
                return Err(StartError::Path(path.chars().take(PATH_BYTES_MAX).collect::<String>().escape_default().to_string()));
            }
        }
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(StartError::Secret);
        }
        if remoting.has_one_entry() {
            let arguments = ["-jar", jar, "-url", url, "-secret", secret, "-name", node.as_str(), "-webSocket", "-workDir", work_dir];
            return Ok(Self::of(&arguments));
        }
        // With `-jar`, these know none of this, say so, and end as if all were well.
        if jar.contains([':', '*']) {
            return Err(StartError::ClassPath(remoting.to_string(), jar.into()));
        }
        if node.as_str().starts_with('-') {
            return Err(StartError::Name(remoting.to_string(), node.to_string()));
        }
        let main = "hudson.remoting.jnlp.Main";
        Ok(Self::of(&["-cp", jar, main, "-headless", "-url", url, "-webSocket", "-workDir", work_dir, secret, node.as_str()]))
    }

    fn of(arguments: &[&str]) -> Self {
        Self(arguments.iter().map(|argument| quote(argument) + "\n").collect())
    }

    /// The text to write.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An argument as Java reads it from a file: within quotes a backslash escapes what follows, and nothing else is special.
fn quote(argument: &str) -> String {
    format!("\"{}\"", argument.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The major version of a Java by what its `-version` says, on both streams together: 17 for `17.0.15`, 8 for `1.8.0_392`. None if it is no
/// Java's.
///
/// Other lines may come before: what variables of the environment it picked up, and warnings.
pub fn java_major(said: &str) -> Option<u16> {
    said.lines().find_map(|line| {
        let (who, rest) = line.trim_end().split_once(" version \"")?;
        let (version, _) = rest.split_once('"')?;
        // A warning may tell of versions as well, in a sentence.
        let is_name = !who.is_empty() && who.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let version = version.strip_prefix("1.").unwrap_or(version);
        let digits = version.split(|letter: char| !letter.is_ascii_digit()).next()?;
        digits.parse().ok().filter(|major| is_name && (1..1000).contains(major))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "ababababababababababababababababababababababababababababababab00";

    fn arguments(remoting: &str, change: impl for<'a> FnOnce(&mut Start<'a>)) -> Result<ArgumentFile, StartError> {
        let (remoting, node) = (Remoting::parse(remoting).unwrap(), "builds-a1".parse().unwrap());
        let mut start = Start {
            jar: "/srv/a b/agent.jar",
            remoting: &remoting,
            url: "https://jenkins.example/",
            node: &node,
            secret: SECRET,
            work_dir: "/srv/\"w\\",
        };
        change(&mut start);
        ArgumentFile::new(&start)
    }

    #[test]
    fn each_argument_has_a_line_and_the_words_are_those_of_its_remoting() {
        let newer = arguments("3206.vb_15dcf73f6a_9", |_| {}).unwrap();
        let expected = format!(
            "\"-jar\"\n\"/srv/a b/agent.jar\"\n\"-url\"\n\"https://jenkins.example/\"\n\"-secret\"\n\"{SECRET}\"\n\"-name\"\n\"builds-a1\"\n\"-webSocket\"\n\"-workDir\"\n\"/srv/\\\"w\\\\\"\n"
        );
        assert_eq!(newer.as_str(), expected);
        let older = arguments("3063.v26e24490f041", |_| {}).unwrap();
        let expected = format!(
            "\"-cp\"\n\"/srv/a b/agent.jar\"\n\"hudson.remoting.jnlp.Main\"\n\"-headless\"\n\"-url\"\n\"https://jenkins.example/\"\n\"-webSocket\"\n\"-workDir\"\n\"/srv/\\\"w\\\\\"\n\"{SECRET}\"\n\"builds-a1\"\n"
        );
        assert_eq!(older.as_str(), expected);
    }

    #[test]
    fn what_would_be_taken_for_something_else_is_refused() {
        let (old, new) = ("3063.v26e24490f041", "3206.vb_15dcf73f6a_9");
        let dash = "-a".parse().unwrap();
        assert!(matches!(arguments("3.29", |_| {}), Err(StartError::Remoting(_))));
        assert!(matches!(arguments(new, |start| start.url = "@/etc/passwd"), Err(StartError::Url(_))));
        assert!(matches!(arguments(new, |start| start.url = "http://a/\n-name"), Err(StartError::Url(_))));
        assert!(matches!(arguments(new, |start| start.work_dir = "work"), Err(StartError::Path(_))));
        assert!(matches!(arguments(new, |start| start.jar = "/a\n/agent.jar"), Err(StartError::Path(_))));
        assert!(matches!(arguments(new, |start| start.secret = "@file"), Err(StartError::Secret)));
        assert!(matches!(arguments(old, |start| start.jar = "/a:b/agent.jar"), Err(StartError::ClassPath(..))));
        assert!(arguments(new, |start| start.jar = "/a:b/agent.jar").is_ok());
        let node = |start: &mut Start<'_>| start.node = Box::leak(Box::new(NodeName::clone(&dash)));
        assert!(matches!(arguments(old, node), Err(StartError::Name(..))));
        assert!(arguments(new, node).is_ok());
    }

    #[test]
    fn the_secret_is_not_shown() {
        let file = arguments("3206.vb_15dcf73f6a_9", |start| assert!(!format!("{start:?}").contains(SECRET))).unwrap();
        assert!(!format!("{file:?}").contains(SECRET) && file.as_str().contains(SECRET));
    }

    #[test]
    fn a_java_is_known_by_the_version_in_quotes() {
        let known = [
            ("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime Environment (build 17.0.15+6-Debian-1deb12u1)\n", 17),
            ("openjdk version \"11.0.25\" 2024-10-15 LTS\nOpenJDK Runtime Environment Temurin-11.0.25+9 (build 11.0.25+9-LTS)\n", 11),
            ("openjdk version \"21\" 2023-09-19 LTS\r\nOpenJDK Runtime Environment Corretto-21.0.0.35.1 (build 21+35-LTS)\r\n", 21),
            ("java version \"1.8.0_392\"\nJava(TM) SE Runtime Environment (build 1.8.0_392-b08)\n", 8),
            ("openjdk version \"1.8.0_432\"\nOpenJDK Runtime Environment (build 1.8.0_432-8u432-ga)\n", 8),
            ("openjdk version \"9-internal\"\n", 9),
            ("openjdk version \"26-ea\" 2026-03-17\n", 26),
            ("Picked up JAVA_TOOL_OPTIONS: -Da version \"5\"\nopenjdk version \"17.0.1\" 2021-10-19\n", 17),
            ("OpenJDK 64-Bit Server VM warning: Sharing is only supported for boot loader classes\nopenjdk version \"25.0.1\"\n", 25),
        ];
        for (said, major) in known {
            assert_eq!(java_major(said), Some(major), "{said}");
        }
        let garbage = [
            "",
            "java",
            "bash: java: command not found",
            "openjdk version 17",
            "openjdk version \"",
            "openjdk version \"x\"",
            "openjdk version \"1.\"",
            "go version \"99999999\"",
            "a b version \"17\"",
        ];
        for said in garbage {
            assert_eq!(java_major(said), None, "{said}");
        }
    }
}
