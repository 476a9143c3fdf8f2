//! Nodes: what they may be called, what one is asked for as, and what Jenkins says of one.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde_json::json;

use crate::controller::jenkins::words::clean;
use crate::limits::{AGENT_EXECUTORS_MAX, NODE_NAME_BYTES_MAX};
use crate::names::LabelName;

/// Names that Jenkins takes, and whose URL leads to something else: some of these nodes can never be removed again. The first
/// were tried; the others are methods of the list of nodes as well.
const HIDDEN: [&str; 12] = [
    "api",
    "_all",
    "(built-in)",
    "(master)",
    "doCreateItem",
    "createItem",
    "checkName",
    "configSubmit",
    "config.xml",
    "updateNow",
    "monitors",
    "search",
];

/// The name of a node that Jenkins takes and can find again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Box<str>);

/// Why a text is no name of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeNameError {
    /// It is empty or too long.
    #[error("a node's name has 1 to {NODE_NAME_BYTES_MAX} bytes, this one has {0}")]
    Length(usize),
    /// It holds what makes trouble there or in a URL.
    #[error("a node's name is made of letters, digits, `.`, `_` and `-`, and does not end with a `.`: `{0}` is not one")]
    Character(String),
    /// Jenkins has something else under its URL.
    #[error("`{0}` can not name a node: Jenkins has something else at its URL")]
    Hidden(String),
}

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<Self, NodeNameError> {
        if text.is_empty() || text.len() > NODE_NAME_BYTES_MAX {
            return Err(NodeNameError::Length(text.len()));
        }
        let is_method = text.strip_prefix("do").is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_uppercase()));
        if is_method || HIDDEN.contains(&text) {
            return Err(NodeNameError::Hidden(text.into()));
        }
        // A name that ends with a dot is refused, and `.` and `..` do.
        let fits = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) && !text.ends_with('.');
        if fits { Ok(Self(text.into())) } else { Err(NodeNameError::Character(text.escape_default().to_string())) }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How many executors a node has: Jenkins takes any number, and none makes a node that it does not show and that nobody can remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Executors(u32);

impl Executors {
    /// So many; none if it is not between 1 and [`AGENT_EXECUTORS_MAX`].
    pub fn new(count: u32) -> Option<Self> {
        (1..=AGENT_EXECUTORS_MAX).contains(&count).then_some(Self(count))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// A node that is to be made: inbound, over WebSocket, and kept until it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: NodeName,
    /// What people read of it.
    pub description: String,
    /// Its executors.
    pub executors: Executors,
    /// Its root on the agent's machine.
    pub remote_root: String,
    /// Its labels.
    pub labels: Vec<LabelName>,
    /// Whether only builds that ask for one of its labels run there.
    pub is_exclusive: bool,
    /// Variables for its builds.
    pub environment: Vec<(String, String)>,
}

impl Wanted {
    /// The fields of the form that makes it.
    pub(super) fn form(&self) -> [(&'static str, String); 3] {
        let mut properties = json!({"stapler-class-bag": "true"});
        if !self.environment.is_empty() {
            let variables: Vec<_> = self.environment.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
            properties = json!({"stapler-class-bag": "true", "hudson-slaves-EnvironmentVariablesNodeProperty": {"env": variables}});
        }
        let node = json!({
            "name": self.name.as_str(),
            "nodeDescription": self.description,
            "numExecutors": self.executors.get().to_string(),
            "remoteFS": self.remote_root,
            "labelString": text_of(&self.labels),
            "mode": if self.is_exclusive { "EXCLUSIVE" } else { "NORMAL" },
            "launcher": {
                "stapler-class": "hudson.slaves.JNLPLauncher",
                "webSocket": true,
                "workDirSettings": {"disabled": false, "workDirPath": "", "internalDir": "remoting", "failIfWorkDirIsMissing": false},
            },
            "retentionStrategy": {"stapler-class": "hudson.slaves.RetentionStrategy$Always"},
            "nodeProperties": properties,
            "type": DUMB,
        });
        [("name", self.name.to_string()), ("type", DUMB.into()), ("json", node.to_string())]
    }
}

const DUMB: &str = "hudson.slaves.DumbSlave";

/// Labels as Jenkins has them in one text.
pub(super) fn text_of(labels: &[LabelName]) -> String {
    labels.iter().map(LabelName::as_str).collect::<Vec<_>>().join(" ")
}

/// A node as Jenkins shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, which need not be one that Muster would give.
    pub name: String,
    /// What people read of it.
    pub description: String,
    /// Its executors.
    pub executors: u32,
    /// Its labels, also those that Jenkins gives by itself, but for its own name.
    pub labels: BTreeSet<String>,
    /// Whether it takes no builds.
    pub is_offline: bool,
    /// Whether somebody marked it so. Between a restart of Jenkins and the agent's return this can be wrong.
    pub is_marked: bool,
    /// Whether nothing runs there. A build that has an executor and did not start yet counts.
    pub is_idle: bool,
    /// Why it is offline, if somebody or something said so.
    pub reason: String,
}

/// Which part of a node is asked for.
pub(super) const NODE_TREE: &str =
    "displayName,description,numExecutors,assignedLabels[name],offline,temporarilyOffline,idle,offlineCauseReason";

/// The class of a node that is an agent's, and not Jenkins' own.
const AGENT: &str = "hudson.slaves.SlaveComputer";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeJson {
    #[serde(default, rename = "_class")]
    class: String,
    display_name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    num_executors: u32,
    #[serde(default)]
    assigned_labels: Vec<Named>,
    offline: bool,
    temporarily_offline: bool,
    idle: bool,
    #[serde(default)]
    offline_cause_reason: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
}

impl NodeJson {
    /// The node; none if it is Jenkins' own, or none that is an agent's.
    pub(super) fn into_node(self) -> Option<Node> {
        if self.class != AGENT {
            return None;
        }
        let name = self.display_name;
        let labels = self.assigned_labels.into_iter().map(|label| label.name).filter(|label| *label != name && !label.is_empty()).collect();
        Some(Node {
            labels,
            name,
            description: self.description.unwrap_or_default(),
            executors: self.num_executors,
            is_offline: self.offline,
            is_marked: self.temporarily_offline,
            is_idle: self.idle,
            reason: clean(&self.offline_cause_reason.unwrap_or_default()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_jenkins_takes_and_finds_again() {
        for good in ["n1", "N1", "built-in", "master", "new", "all", "con", "-x", ".n", "a.b_c-d", "document", "do-it", &"x".repeat(200)] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "a.",
            "a b",
            " a",
            "a ",
            "a\tb",
            "a\u{7}b",
            "é",
            "😀",
            "a'b",
            "a\"b",
            "a/b",
            "a\\b",
            "a%b",
            "a?b",
            "a*b",
            "a!b",
            "a@b",
            "a#b",
            "a$b",
            "a^b",
            "a&b",
            "a|b",
            "a<b",
            "a>b",
            "a[b",
            "a]b",
            "a:b",
            "a;b",
            "api",
            "_all",
            "(built-in)",
            "(master)",
            "doCreateItem",
            "createItem",
            "doDelete",
            "config.xml",
        ] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?} was taken");
        }
        assert_eq!("x".repeat(201).parse::<NodeName>(), Err(NodeNameError::Length(201)));
    }

    #[test]
    fn a_node_has_at_least_one_executor_and_not_endlessly_many() {
        assert!(Executors::new(0).is_none() && Executors::new(AGENT_EXECUTORS_MAX + 1).is_none());
        assert_eq!(Executors::new(AGENT_EXECUTORS_MAX).map(Executors::get), Some(AGENT_EXECUTORS_MAX));
    }
}
