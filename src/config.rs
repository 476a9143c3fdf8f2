//! `muster.toml`: what an admin sets for one server. Every setting has a default, so that no file is needed.

pub mod compat;
pub mod controller;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use crate::limits::{
    CONFIG_BYTES_MAX, DIAL_NETWORKS_MAX, LOST_KEPT, LOST_KEPT_MAX, POLL_INTERVAL, POLL_INTERVAL_MAX, POLL_INTERVAL_MIN, RUN_RECORDS_KEPT,
    RUN_RECORDS_KEPT_DAYS_MAX, RUNS_AT_ONCE, RUNS_AT_ONCE_MAX, RUNS_KEPT_PER_AGENT, RUNS_KEPT_PER_AGENT_MAX, SESSIONS_CEILING,
    SESSIONS_MAX, STREAMS_CEILING, STREAMS_MAX,
};
use crate::names::ControllerName;

/// The port on which a server listens unless told otherwise.
pub const PORT: u16 = 7700;

const DAY_SECONDS: u64 = 24 * 3600;

/// The settings of one server, checked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The directory that holds everything; relative to the working directory.
    pub data: PathBuf,
    /// The database, if it is not the file in `data`.
    pub database: Option<DatabaseUrl>,
    /// Registration and polling.
    pub register: Register,
    /// Runs.
    pub runs: Runs,
    /// Sessions.
    pub sessions: Sessions,
    /// What sending bundles may take.
    pub bits: Bits,
    /// How agents are dialled; without it none is.
    pub ssh: Option<Ssh>,
    /// The URLs of other servers.
    pub compat: compat::Compat,
    /// What agents work for, by name.
    pub controller: BTreeMap<ControllerName, controller::Controller>,
    /// Metrics.
    pub metrics: Metrics,
    /// What is kept.
    pub kept: Kept,
}

/// The URL of a database. It may hold a password, so it is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The URL, password included.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl(…)")
    }
}

/// `[register]`: registration and polling.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Register {
    /// How often an agent polls, in seconds.
    pub poll_seconds: f64,
    /// How long a lost agent is kept before it is gone, in seconds.
    pub lost_kept_seconds: u64,
}

/// `[runs]`: runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runs {
    /// How many go on at once.
    pub at_once: u32,
}

/// `[sessions]`: the agents' sessions.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// How many are open at once.
    pub max: usize,
}

/// `[bits]`: what sending bundles to agents may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bits {
    /// To how many agents at once; the others wait for their turn.
    pub streams_max: usize,
    /// Bytes a second, for all of them together and shared fairly; no bound if none.
    pub bytes_per_second: Option<u64>,
}

/// `[ssh]`: how the server dials agents.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ssh {
    /// The user on the machines.
    pub user: String,
    /// Files of private keys, not encrypted, that are tried one after the other.
    #[serde(default)]
    pub keys: Vec<PathBuf>,
    /// The certificate for the first of them.
    pub certificate: Option<PathBuf>,
    /// The socket of an ssh-agent.
    pub agent: Option<PathBuf>,
    /// A file of known hosts.
    pub known_hosts: Option<PathBuf>,
    /// Public keys of the authorities whose host certificates are trusted.
    #[serde(default)]
    pub authorities: Vec<String>,
    /// Whether a machine of which no key is known is trusted the first time, and its key remembered.
    #[serde(default)]
    pub first_use: bool,
    /// In which networks machines are dialled, whatever their names lead to. Unless set, everywhere but on this machine and on link-local,
    /// multicast and unspecified addresses.
    pub networks: Option<Vec<IpNet>>,
    /// The `muster-agent` that is placed where a policy allows it; beside this program unless set.
    pub program: Option<PathBuf>,
}

/// `[metrics]`: what `/metrics` tells.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Whether anyone may read them; if not, an admin's token is needed.
    pub public: bool,
}

/// `[kept]`: how much of the past is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kept {
    /// Runs of each agent.
    pub runs_per_agent: u32,
    /// Days for which the log and the journal of a run are kept.
    pub record_days: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
            data: PathBuf::from("muster-data"),
            database: None,
            register: Register::default(),
            runs: Runs::default(),
            sessions: Sessions::default(),
            bits: Bits::default(),
            ssh: None,
            compat: compat::Compat::default(),
            controller: BTreeMap::new(),
            metrics: Metrics::default(),
            kept: Kept::default(),
        }
    }
}

impl Default for Register {
    fn default() -> Self {
        Self { poll_seconds: POLL_INTERVAL.as_secs_f64(), lost_kept_seconds: LOST_KEPT.as_secs() }
    }
}

impl Register {
    /// How often an agent polls.
    pub fn poll_interval(&self) -> Duration {
        Duration::try_from_secs_f64(self.poll_seconds).unwrap_or(POLL_INTERVAL)
    }

    /// How long a lost agent is kept.
    pub fn lost_kept(&self) -> Duration {
        Duration::from_secs(self.lost_kept_seconds)
    }
}

impl Default for Runs {
    fn default() -> Self {
        Self { at_once: RUNS_AT_ONCE }
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self { max: SESSIONS_MAX }
    }
}

impl Default for Bits {
    fn default() -> Self {
        Self { streams_max: STREAMS_MAX, bytes_per_second: None }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { public: true }
    }
}

impl Default for Kept {
    fn default() -> Self {
        let days = RUN_RECORDS_KEPT.as_secs() / DAY_SECONDS;
        Self { runs_per_agent: RUNS_KEPT_PER_AGENT, record_days: u32::try_from(days).unwrap_or(RUN_RECORDS_KEPT_DAYS_MAX) }
    }
}

impl Kept {
    /// For how long the log and the journal of a run are kept.
    pub fn records(&self) -> Duration {
        Duration::from_secs(u64::from(self.record_days) * DAY_SECONDS)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can not be read.
    #[error("{} can not be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large to be one.
    #[error("{} has more than {CONFIG_BYTES_MAX} bytes", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// The file is no TOML, or names what is no setting, or gives a setting what it can not be.
    #[error("{}:{line}:{column}: {problem}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A setting is beyond what it may be.
    #[error("{}: {field}: {problem}", file.display())]
    Range {
        /// The file.
        file: PathBuf,
        /// The setting.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads a configuration file; without one, everything has its default.
    ///
    /// # Errors
    /// What is wrong with the file, with line and column or with the setting's name. The text of the file is not repeated.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(file) = file else {
            return Ok(Self::default());
        };
        let read = |source| ConfigError::Read { file: file.into(), source };
        let mut text = String::new();
        std::fs::File::open(file).map_err(read)?.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(read)?;
        if u64::try_from(text.len()).is_ok_and(|bytes| bytes > CONFIG_BYTES_MAX) {
            return Err(ConfigError::TooLarge { file: file.into() });
        }
        Self::parse(file, &text)
    }

    fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let (line, column) = place(text, error.span().map_or(0, |span| span.start));
            ConfigError::Syntax { file: file.into(), line, column, problem: error.message().trim().into() }
        })?;
        let wrong = config.out_of_range().map(|(field, problem)| (field.to_owned(), problem));
        match wrong.or_else(|| controller::out_of_range(&config.controller)) {
            Some((field, problem)) => Err(ConfigError::Range { file: file.into(), field, problem }),
            None => Ok(config),
        }
    }

    fn out_of_range(&self) -> Option<(&'static str, String)> {
        let (poll_min, poll_max) = (POLL_INTERVAL_MIN.as_secs_f64(), POLL_INTERVAL_MAX.as_secs_f64());
        let poll = self.register.poll_seconds;
        if !(poll_min..=poll_max).contains(&poll) {
            return Some(("register.poll_seconds", format!("{poll} is not between {poll_min} and {poll_max}")));
        }
        if self.data.as_os_str().is_empty() {
            return Some(("data", "a directory's path can not be empty".into()));
        }
        if let Some(ssh) = &self.ssh {
            if ssh.user.is_empty() {
                return Some(("ssh.user", "a user's name can not be empty".into()));
            }
            if ssh.keys.is_empty() && ssh.agent.is_none() {
                return Some(("ssh.keys", "a key's file or an ssh-agent is needed".into()));
            }
            let networks = ssh.networks.as_ref().map_or(1, Vec::len);
            if !(1..=DIAL_NETWORKS_MAX).contains(&networks) {
                return Some(("ssh.networks", format!("{networks} entries; there are to be 1 to {DIAL_NETWORKS_MAX}, or no such setting")));
            }
            if ssh.certificate.is_some() && ssh.keys.is_empty() {
                return Some(("ssh.certificate", "a certificate belongs to a key in `keys`".into()));
            }
        }
        if let Some(wrong) = self.compat.out_of_range(self.ssh.is_some()) {
            return Some(wrong);
        }
        let schemes = ["sqlite:", "postgres://", "postgresql://"];
        if self.database.as_ref().is_some_and(|url| !schemes.iter().any(|scheme| url.as_str().starts_with(scheme))) {
            return Some(("database", format!("a database's URL begins with one of {}", schemes.join(", "))));
        }
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let counts = [
            ("register.lost_kept_seconds", self.register.lost_kept_seconds, LOST_KEPT_MAX.as_secs()),
            ("runs.at_once", self.runs.at_once.into(), RUNS_AT_ONCE_MAX.into()),
            ("sessions.max", wide(self.sessions.max), wide(SESSIONS_CEILING)),
            ("bits.streams_max", wide(self.bits.streams_max), wide(STREAMS_CEILING)),
            ("bits.bytes_per_second", self.bits.bytes_per_second.unwrap_or(u64::MAX), u64::MAX),
            ("kept.runs_per_agent", self.kept.runs_per_agent.into(), RUNS_KEPT_PER_AGENT_MAX.into()),
            ("kept.record_days", self.kept.record_days.into(), RUN_RECORDS_KEPT_DAYS_MAX.into()),
        ];
        let wrong = counts.into_iter().find(|(_, value, max)| !(1..=*max).contains(value));
        wrong.map(|(field, value, max)| (field, format!("{value} is not between 1 and {max}")))
    }
}

/// The line and the column of a byte, both from 1.
fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("muster.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn no_file_and_an_empty_file_are_the_defaults() {
        let config = Config::load(None).unwrap();
        assert_eq!(parse("").unwrap(), config);
        assert_eq!(config.listen.to_string(), "127.0.0.1:7700");
        assert_eq!(config.register.poll_interval(), POLL_INTERVAL);
        assert_eq!(config.register.lost_kept(), LOST_KEPT);
        assert_eq!(config.kept.records(), RUN_RECORDS_KEPT);
        assert!(config.metrics.public);
        assert_eq!(config.out_of_range(), None);
    }

    #[test]
    fn every_setting_can_be_set() {
        let text = "listen = \"[::1]:80\"\ndata = \"/var/lib/muster\"\ndatabase = \"postgres://u:secret@h/d\"\n\
            [register]\npoll_seconds = 0.5\nlost_kept_seconds = 60\n[runs]\nat_once = 4\n[sessions]\nmax = 10\n\
            [bits]\nstreams_max = 3\nbytes_per_second = 1000000\n[metrics]\npublic = false\n[kept]\nruns_per_agent = 3\nrecord_days = 1\n";
        let config = parse(text).unwrap();
        assert_eq!(config.register.poll_interval(), Duration::from_millis(500));
        assert_eq!((config.runs.at_once, config.sessions.max, config.metrics.public), (4, 10, false));
        assert_eq!(config.kept.records(), Duration::from_secs(DAY_SECONDS));
        assert!(!format!("{config:?}").contains("secret"), "a password is shown");
    }

    #[test]
    fn an_unknown_setting_is_refused_by_name_and_place() {
        let error = parse("listen = \"127.0.0.1:1\"\n\n  lisen = 3\n").unwrap_err();
        assert!(error.starts_with("muster.toml:3:3: unknown field `lisen`"), "{error}");
        let error = parse("[runs]\nat_onec = 3\n").unwrap_err();
        assert!(error.starts_with("muster.toml:2:1: unknown field `at_onec`, expected `at_once`"), "{error}");
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_place() {
        assert!(parse("listen = \n").unwrap_err().starts_with("muster.toml:1:"));
        assert!(parse("a = 1\n[runs]\nat_once = \"x\"\n").unwrap_err().starts_with("muster.toml:1:1"));
        assert!(parse("[runs]\nat_once = \"x\"\n").unwrap_err().starts_with("muster.toml:2:11: invalid type"));
        assert!(parse("listen = \"here\"\n").unwrap_err().starts_with("muster.toml:1:10: invalid socket address"));
    }

    #[test]
    fn a_setting_beyond_its_range_is_named() {
        for (text, field) in [
            ("[register]\npoll_seconds = 0.0", "register.poll_seconds"),
            ("[register]\npoll_seconds = nan", "register.poll_seconds"),
            ("[register]\npoll_seconds = 3601", "register.poll_seconds"),
            ("[register]\nlost_kept_seconds = 0", "register.lost_kept_seconds"),
            ("[runs]\nat_once = 0", "runs.at_once"),
            ("[runs]\nat_once = 1025", "runs.at_once"),
            ("[sessions]\nmax = 0", "sessions.max"),
            ("[bits]\nstreams_max = 0", "bits.streams_max"),
            ("[bits]\nbytes_per_second = 0", "bits.bytes_per_second"),
            ("[ssh]\nuser = \"u\"", "ssh.keys"),
            ("[ssh]\nuser = \"u\"\nkeys = [\"k\"]\nnetworks = []", "ssh.networks"),
            ("[ssh]\nuser = \"\"\nkeys = [\"k\"]", "ssh.user"),
            ("[ssh]\nuser = \"u\"\nagent = \"a\"\ncertificate = \"c\"", "ssh.certificate"),
            ("[kept]\nruns_per_agent = 0", "kept.runs_per_agent"),
            ("[kept]\nrecord_days = 3651", "kept.record_days"),
            ("data = \"\"", "data"),
            ("database = \"mysql://h\"", "database"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(&format!("muster.toml: {field}: ")), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Config::load(Some(Path::new("/nowhere/muster.toml"))).unwrap_err();
        assert_eq!(error.to_string(), "/nowhere/muster.toml can not be read");
    }
}
