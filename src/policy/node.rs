//! What a policy says of the node that an agent has at its controller.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::{DRAIN_SECONDS, DRAIN_SECONDS_MAX, PATH_BYTES_MAX, POLICY_ITEMS_MAX, POLICY_TEXT_BYTES_MAX};
use crate::policy::{Launch, PolicyError};

/// How nodes are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeNaming {
    /// By the agent's name and a part that nobody can guess and that does not come again: whoever knew a name's secret once can connect as
    /// that name whenever it is there.
    #[default]
    Unguessable,
    /// By the agent's name alone.
    Plain,
}

/// Which builds run on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeMode {
    /// All that may.
    #[default]
    Normal,
    /// Those that ask for one of its labels.
    Exclusive,
}

impl Launch {
    /// For how long builds are waited for before their node is taken from them.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds.unwrap_or(DRAIN_SECONDS).into())
    }

    /// Checks what is said of nodes.
    pub(super) fn check_node(&self) -> Result<(), PolicyError> {
        let wrong = |field: &str, problem: String| Err(PolicyError { field: format!("launch.{field}"), problem });
        let set = [
            ("java", self.java.is_some()),
            ("keep_node", self.keep_node),
            ("node_name", self.node_name != NodeNaming::default()),
            ("mode", self.mode != NodeMode::default()),
            ("environment", !self.environment.is_empty()),
            ("drain_seconds", self.drain_seconds.is_some()),
        ];
        if let Some((field, _)) = set.into_iter().find(|(_, set)| *set && self.controller.is_none()) {
            return wrong(field, "it is of a node, and goes with `controller` alone".into());
        }
        if let Some(java) = &self.java
            && (!java.contains('/') || java.len() > PATH_BYTES_MAX || java.contains(char::is_control))
        {
            return wrong("java", format!("`{}` is not a path; a program is named by its path", java.escape_default()));
        }
        if self.environment.len() > POLICY_ITEMS_MAX {
            return wrong("environment", format!("{} items; at most {POLICY_ITEMS_MAX} are allowed", self.environment.len()));
        }
        for (name, value) in &self.environment {
            let is_name = !name.is_empty()
                && name.len() <= POLICY_TEXT_BYTES_MAX
                && !name.contains(|letter: char| letter == '=' || letter.is_control());
            if !is_name || value.len() > POLICY_TEXT_BYTES_MAX || value.contains('\0') {
                return wrong("environment", format!("a name has no `=`, and both have at most {POLICY_TEXT_BYTES_MAX} bytes"));
            }
        }
        match self.drain_seconds {
            Some(seconds) if seconds == 0 || seconds > DRAIN_SECONDS_MAX => {
                wrong("drain_seconds", format!("{seconds} is not between 1 and {DRAIN_SECONDS_MAX}"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_of_a_node_goes_with_a_controller_alone() {
        let with = |change: fn(&mut Launch)| {
            let mut launch = Launch { controller: Some("builds".parse().unwrap()), ..Launch::default() };
            change(&mut launch);
            let with = launch.check_node().map_err(|error| error.field);
            launch.controller = None;
            (with, launch.check_node().map_err(|error| error.field))
        };
        let refused = |field: &str| Err(format!("launch.{field}"));
        assert_eq!(with(|_| {}), (Ok(()), Ok(())));
        assert_eq!(with(|launch| launch.java = Some("/usr/bin/java".into())), (Ok(()), refused("java")));
        assert_eq!(with(|launch| launch.keep_node = true), (Ok(()), refused("keep_node")));
        assert_eq!(with(|launch| launch.mode = NodeMode::Exclusive), (Ok(()), refused("mode")));
        assert_eq!(with(|launch| launch.node_name = NodeNaming::Plain), (Ok(()), refused("node_name")));
        assert_eq!(with(|launch| launch.drain_seconds = Some(1)), (Ok(()), refused("drain_seconds")));
        assert_eq!(with(|launch| launch.drain_seconds = Some(0)).0, refused("drain_seconds"));
        assert_eq!(with(|launch| launch.java = Some("java".into())).0, refused("java"));
        assert_eq!(with(|launch| launch.environment = BTreeMap::from([("A=B".into(), String::new())])).0, refused("environment"));
    }
}
