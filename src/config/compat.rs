//! `[compat.*]`: the URLs of other servers, for machines that still call them.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use crate::limits::{AGENT_LABELS_MAX, COMPAT_LABELS_MAX, COMPAT_NETWORKS_MAX, DYNASLAVE_IDLE, LOST_KEPT_MAX};
use crate::names::{AgentName, LabelName, TeamName};

/// `[compat]`: each of its sections turns on the URLs that it is named for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compat {
    /// The DynaSlave plugin's.
    pub dynaslave: Option<DynaSlave>,
    /// The Swarm plugin's.
    pub swarm: Option<Swarm>,
}

/// `[compat.dynaslave]`: the URLs that a register script of the DynaSlave plugin calls.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynaSlave {
    /// Whose the agents are.
    pub team: TeamName,
    /// Which labels may be asked for.
    pub labels: Vec<LabelName>,
    /// What every agent carries besides.
    #[serde(default)]
    pub default_labels: Vec<LabelName>,
    /// From where it may be called. Nothing is allowed that is not listed, this machine itself included.
    pub networks: Vec<IpNet>,
    /// The file of a token that a call needs as well.
    pub token_file: Option<PathBuf>,
    /// Whether a caller may have another host dialled than its own.
    #[serde(default)]
    pub any_host: bool,
    /// What is put before an agent's name, with a `-`; nothing if it is empty.
    #[serde(default = "dynaslave_prefix")]
    pub prefix: String,
    /// The user on the machines, if it is another than `ssh.user`.
    pub user: Option<String>,
    /// How long a lost agent is kept before it is gone, in seconds.
    #[serde(default = "dynaslave_idle_seconds")]
    pub idle_timeout_seconds: u64,
}

/// `[compat.swarm]`: the URLs that the Jenkins Swarm client calls.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swarm {
    /// Whose the agents are.
    pub team: TeamName,
    /// Which labels may be asked for.
    pub labels: Vec<LabelName>,
    /// What every agent carries besides, and can not be taken from it.
    #[serde(default)]
    pub default_labels: Vec<LabelName>,
    /// From where it may be called. Nothing is allowed that is not listed, this machine itself included.
    pub networks: Vec<IpNet>,
    /// The file of a token that the client sends as its password.
    pub token_file: Option<PathBuf>,
    /// Whether the machines are dialled by ssh, at the address from which they call.
    #[serde(default)]
    pub ssh: bool,
}

fn dynaslave_prefix() -> String {
    "dynaslave".into()
}

fn dynaslave_idle_seconds() -> u64 {
    DYNASLAVE_IDLE.as_secs()
}

impl Compat {
    /// How long a lost agent of the DynaSlave plugin's URL is kept.
    pub fn dynaslave_kept(&self) -> Duration {
        self.dynaslave.as_ref().map_or(DYNASLAVE_IDLE, |section| Duration::from_secs(section.idle_timeout_seconds))
    }

    /// Which setting is beyond what it may be, and why. `dials` says whether there is a section `[ssh]`.
    pub(super) fn out_of_range(&self, dials: bool) -> Option<(&'static str, String)> {
        let no_ssh = |field| Some((field, "a section `[ssh]` is needed, since the machines are dialled".to_owned()));
        if let Some(dynaslave) = &self.dynaslave {
            if !dials {
                return no_ssh("compat.dynaslave");
            }
            if !(1..=LOST_KEPT_MAX.as_secs()).contains(&dynaslave.idle_timeout_seconds) {
                let problem = format!("{} is not between 1 and {}", dynaslave.idle_timeout_seconds, LOST_KEPT_MAX.as_secs());
                return Some(("compat.dynaslave.idle_timeout_seconds", problem));
            }
            if let Err(error) = dynaslave.prefix.parse::<AgentName>()
                && !dynaslave.prefix.is_empty()
            {
                return Some(("compat.dynaslave.prefix", error.to_string()));
            }
            if dynaslave.user.as_ref().is_some_and(String::is_empty) {
                return Some(("compat.dynaslave.user", "a user's name can not be empty".into()));
            }
        }
        if self.swarm.as_ref().is_some_and(|swarm| swarm.ssh) && !dials {
            return no_ssh("compat.swarm.ssh");
        }
        let (dynaslave, swarm) = (self.dynaslave.as_ref(), self.swarm.as_ref());
        let counts = [
            ("compat.dynaslave.labels", dynaslave.map(|it| it.labels.len()), 1, COMPAT_LABELS_MAX),
            ("compat.dynaslave.default_labels", dynaslave.map(|it| it.default_labels.len()), 0, AGENT_LABELS_MAX),
            ("compat.dynaslave.networks", dynaslave.map(|it| it.networks.len()), 1, COMPAT_NETWORKS_MAX),
            ("compat.swarm.labels", swarm.map(|it| it.labels.len()), 1, COMPAT_LABELS_MAX),
            ("compat.swarm.default_labels", swarm.map(|it| it.default_labels.len()), 0, AGENT_LABELS_MAX),
            ("compat.swarm.networks", swarm.map(|it| it.networks.len()), 1, COMPAT_NETWORKS_MAX),
        ];
        let wrong = counts.into_iter().find(|(_, count, min, max)| count.is_some_and(|count| !(*min..=*max).contains(&count)));
        wrong.map(|(field, count, min, max)| (field, format!("{} entries; there are to be {min} to {max}", count.unwrap_or_default())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMUM: &str = "[dynaslave]\nteam = \"media\"\nlabels = [\"linux\"]\nnetworks = [\"10.0.0.0/8\", \"fd00::/8\"]\n";

    #[test]
    fn a_section_has_the_plugins_own_defaults() {
        let compat: Compat = toml::from_str(MINIMUM).unwrap();
        assert_eq!(compat.out_of_range(true), None);
        assert_eq!(compat.dynaslave_kept(), Duration::from_secs(1800));
        assert_eq!(compat.dynaslave.unwrap().prefix, "dynaslave");
        assert_eq!(Compat::default().out_of_range(false), None);
    }

    #[test]
    fn a_setting_beyond_its_range_is_named() {
        let field = |text: &str, dials| toml::from_str::<Compat>(text).unwrap().out_of_range(dials).map(|(field, _)| field);
        assert_eq!(field(MINIMUM, false), Some("compat.dynaslave"));
        for (more, wrong) in [
            ("idle_timeout_seconds = 0", "compat.dynaslave.idle_timeout_seconds"),
            ("prefix = \"-o\"", "compat.dynaslave.prefix"),
            ("user = \"\"", "compat.dynaslave.user"),
        ] {
            assert_eq!(field(&format!("{MINIMUM}{more}\n"), true), Some(wrong));
        }
        let swarm = MINIMUM.replace("dynaslave", "swarm");
        assert_eq!(field(&swarm, false), None);
        assert_eq!(field(&format!("{swarm}ssh = true\n"), false), Some("compat.swarm.ssh"));
        assert_eq!(field(&MINIMUM.replace("[\"linux\"]", "[]"), true), Some("compat.dynaslave.labels"));
        assert_eq!(field(&swarm.replace("[\"10.0.0.0/8\", \"fd00::/8\"]", "[]"), true), Some("compat.swarm.networks"));
    }

    #[test]
    fn what_is_required_has_no_default() {
        for line in MINIMUM.lines().skip(1) {
            assert!(toml::from_str::<Compat>(&MINIMUM.replace(line, "")).is_err(), "{line}");
        }
        assert!(toml::from_str::<Compat>(&format!("{MINIMUM}network = []\n")).is_err());
        assert!(toml::from_str::<Compat>(&MINIMUM.replace("10.0.0.0/8", "10.0.0.0/33")).is_err());
    }
}
