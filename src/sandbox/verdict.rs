//! How a run ended.

use crate::limits::REASON_BYTES_MAX;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The module said that the machine is what it must be.
    Provisioned,
    /// The module asked to be run again, not before so many seconds.
    RefusedLater {
        /// Why, in the module's words.
        reason: String,
        /// The seconds.
        after_seconds: u32,
    },
    /// The module said that this agent will not do for this label.
    RefusedNever {
        /// Why, in the module's words.
        reason: String,
    },
    /// The module refused for another reason.
    Refused {
        /// Why, in the module's words.
        reason: String,
    },
    /// The module did what no module may: it ran into a trap.
    Trapped {
        /// Which, with the module's own backtrace.
        reason: String,
    },
    /// The run's wall-clock time is over.
    TimedOut {
        /// The limit, in seconds.
        limit_seconds: u32,
    },
    /// The run reached another of its limits.
    OverLimit {
        /// Which: its name in the policy where it has one, and how much it is.
        which: String,
    },
    /// The link to the agent was lost.
    LinkLost {
        /// What is known of it.
        reason: String,
    },
    /// The server itself is at fault.
    HostFault {
        /// What happened.
        reason: String,
    },
}

impl Verdict {
    /// The stable word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Provisioned => "provisioned",
            Self::RefusedLater { .. } => "refused-later",
            Self::RefusedNever { .. } => "refused-never",
            Self::Refused { .. } => "refused",
            Self::Trapped { .. } => "trapped",
            Self::TimedOut { .. } => "timed-out",
            Self::OverLimit { .. } => "over-limit",
            Self::LinkLost { .. } => "link-lost",
            Self::HostFault { .. } => "host-fault",
        }
    }

    /// What there is to say about it, for people.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Provisioned => None,
            Self::RefusedLater { reason, after_seconds } => Some(format!("{reason} (again in {after_seconds} s)")),
            Self::RefusedNever { reason }
            | Self::Refused { reason }
            | Self::Trapped { reason }
            | Self::LinkLost { reason }
            | Self::HostFault { reason } => Some(reason.clone()),
            Self::TimedOut { limit_seconds } => Some(format!("the run took longer than `limits.run_seconds` = {limit_seconds}")),
            Self::OverLimit { which } => Some(which.clone()),
        }
    }
}

/// Cuts a text that came from a module to what is kept of it, at a character's border.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > REASON_BYTES_MAX {
        let end = text.floor_char_boundary(REASON_BYTES_MAX);
        text.truncate(end);
        text.push('…');
    }
    text
}
