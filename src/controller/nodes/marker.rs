//! How Muster's nodes and marks are told from others', in words that Jenkins keeps and shows in its list.

use crate::limits::ID_BYTES;
use crate::names::{AgentName, LabelName};

/// How every mark begins with which Muster takes a node out.
const MARK: &str = "Muster: ";

/// What stands in the descriptions of this server's nodes.
pub(super) struct Marker(String);

impl Marker {
    pub(super) fn new(server: &str) -> Self {
        Self(format!("muster:{server}/"))
    }

    /// A node's description.
    pub(super) fn description(&self, agent: &AgentName, label: &LabelName, agent_id: &str) -> String {
        format!("Muster made this for its agent {agent}, label {label}, and removes it. Leave this in: {}{agent_id}", self.0)
    }

    /// The id of the agent that a description tells of, if it is this server's.
    pub(super) fn of<'a>(&self, description: &'a str) -> Option<&'a str> {
        let (_, rest) = description.split_once(self.0.as_str())?;
        rest.get(..ID_BYTES).filter(|id| id.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }
}

/// A reason for a node to be out.
pub(super) fn mark(why: &str) -> String {
    format!("{MARK}{why}")
}

/// Whether a node is out because Muster says so.
pub fn is_ours(reason: &str) -> bool {
    reason.starts_with(MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_tells_this_servers_agent_and_no_other_servers() {
        let (ours, theirs) = (Marker::new("aa"), Marker::new("bb"));
        let id = "0123456789abcdef0123456789abcdef";
        let text = ours.description(&"web-1".parse().unwrap(), &"linux".parse().unwrap(), id);
        assert_eq!(ours.of(&text), Some(id));
        assert_eq!(ours.of(&format!("  edited by a person\n{text}\n")), Some(id));
        assert_eq!(theirs.of(&text), None);
        assert_eq!(ours.of("muster:aa/short"), None);
        assert_eq!(ours.of("a node of somebody's"), None);
        assert!(is_ours(&mark("drained")) && !is_ours("drained"));
    }
}
