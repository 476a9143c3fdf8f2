//! A label's policy: what a person writes, checked whole.
//!
//! [`LabelPolicy`] is what `muster label apply` sends and what a release records. Nothing is granted that is not written here.
//! The text of a policy file is read by [`parse_file`]; what differs between two policies is told by [`differences`].

mod node;

pub mod placeholders;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use globset::{GlobBuilder, GlobSet};
use serde::{Deserialize, Serialize};

use crate::limits::{
    PATH_BYTES_MAX, POLICY_ITEMS_MAX, POLICY_LABELS_MAX, POLICY_TEXT_BYTES_MAX, RUN_CALLS, RUN_CALLS_MAX, RUN_CPU_MS, RUN_CPU_MS_MAX,
    RUN_MEMORY_MIB, RUN_MEMORY_MIB_MAX, RUN_SECONDS, RUN_SECONDS_MAX,
};
use crate::names::{BundleName, ControllerName, Digest, LabelName, ModuleName, NameError, SecretName, TeamName};
pub use node::{NodeMode, NodeNaming};

/// What the server does for a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelPolicy {
    /// The team that the label belongs to.
    pub team: TeamName,
    /// When an agent carries several labels, the lowest goes first.
    #[serde(default)]
    pub order: i32,
    /// The module: `NAME@DIGEST`, or a name alone for its newest version at the time of apply.
    pub module: ModuleRef,
    /// The bundles: `NAME@VERSION`, or a name alone for its newest version at the time of apply.
    #[serde(default)]
    pub bundles: Vec<BundleRef>,
    /// What the module can ask for.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// What the module may do.
    #[serde(default)]
    pub grants: Grants,
    /// What is started when every module has succeeded, unless a module says otherwise.
    #[serde(default)]
    pub launch: Launch,
    /// Whether a mirror removes what others put there.
    #[serde(default)]
    pub mirror_foreign: MirrorForeign,
    /// How much of the files at a destination a mirror may remove: a run that would remove more fails before it changes anything.
    #[serde(default)]
    pub max_delete: Share,
    /// Whether the server places its own `muster-agent` on machines that it dials and that have none of its version.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub place_agent: bool,
    /// How far a run may go.
    #[serde(default)]
    pub limits: RunLimits,
}

/// A module by name, and by digest when it is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleRef {
    /// The name.
    pub name: ModuleName,
    /// The digest; a release always has it.
    pub digest: Option<Digest>,
}

/// A bundle by name, and by version when it is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleRef {
    /// The name.
    pub name: BundleName,
    /// The version; a release always has it.
    pub version: Option<Digest>,
}

macro_rules! reference {
    ($name:ident, $pin:ident) => {
        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                match text.split_once('@') {
                    Some((name, pin)) => Ok(Self { name: name.parse()?, $pin: Some(pin.parse()?) }),
                    None => Ok(Self { name: text.parse()?, $pin: None }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match &self.$pin {
                    Some(pin) => write!(f, "{}@sha256:{pin}", self.name),
                    None => write!(f, "{}", self.name),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

reference!(ModuleRef, digest);
reference!(BundleRef, version);

/// What a module may do on an agent of the label. Empty by default.
///
/// A grant is a path or a glob: `*` and `?` stay within one component, `**` crosses them. A grant that does not begin with `/` is below
/// the agent's root.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// Programs that may be run, probed and launched.
    #[serde(default)]
    pub run: Vec<Glob>,
    /// Paths that may be written, removed, pushed to and mirrored to.
    #[serde(default)]
    pub write: Vec<Glob>,
    /// Paths that may be read. What may be written may be read too.
    #[serde(default)]
    pub read: Vec<Glob>,
    /// Secrets that commands may be given.
    #[serde(default)]
    pub secrets: Vec<SecretName>,
}

/// A path, or a glob of paths.
#[derive(Debug, Clone)]
pub struct Glob {
    text: String,
    /// Of one glob: the way to compile it that answers with an error where it can not be.
    matcher: GlobSet,
}

/// Why a text is no grant.
#[derive(Debug, thiserror::Error)]
pub enum GlobError {
    /// Empty, too long, or with a NUL or a `..`.
    #[error("a grant is a path or a glob of at most {PATH_BYTES_MAX} bytes, without `..`: `{0}` is not one")]
    Path(String),
    /// The glob can not be read.
    #[error("`{0}` is no glob: {1}")]
    Syntax(String, String),
}

impl Glob {
    /// The grant as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a path is granted. A relative grant is below `root`; `path` is absolute and has no `.` or `..`.
    pub fn grants(&self, root: &str, path: &str) -> bool {
        if self.text.starts_with('/') {
            return self.matcher.is_match(path);
        }
        let below = path.strip_prefix(root.trim_end_matches('/'));
        below.and_then(|rest| rest.strip_prefix('/')).is_some_and(|rest| self.matcher.is_match(rest))
    }
}

impl FromStr for Glob {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        let odd = text.is_empty() || text.len() > PATH_BYTES_MAX || text.contains('\0') || text.split('/').any(|part| part == "..");
        if odd {
            return Err(GlobError::Path(text.escape_default().to_string()));
        }
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        let matcher = glob.and_then(|glob| GlobSet::builder().add(glob).build());
        let matcher = matcher.map_err(|error| GlobError::Syntax(text.escape_default().to_string(), error.kind().to_string()))?;
        Ok(Self { text: text.into(), matcher })
    }
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Glob {}

impl Serialize for Glob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Glob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What is started when every module has succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// The program and its arguments, in which `{name}`, `{labels}` and `{root}` are the agent's. None: nothing is started, unless a module
    /// says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Says outright that nothing is started. Not together with `command`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub none: bool,
    /// The controller that the label's agents work for. Not together with either. What follows is of the node that each has there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<ControllerName>,
    /// The Java that starts the controller's program. None: one that the machine has is looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub java: Option<String>,
    /// Whether a node stays when the agent's program is started anew, and when the agent is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_node: bool,
    /// How nodes are named.
    #[serde(default, skip_serializing_if = "is_default")]
    pub node_name: NodeNaming,
    /// Which builds run there.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: NodeMode,
    /// Variables for its builds. They are for everybody to see there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// For how many seconds builds are waited for before their node is taken from them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A share in whole percent, written as `"25%"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u8);

impl Share {
    /// Percent, from 0 to 100.
    pub fn percent(self) -> u8 {
        self.0
    }
}

impl Default for Share {
    fn default() -> Self {
        Self(100)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let percent = text.strip_suffix('%').and_then(|number| number.parse().ok()).filter(|percent| *percent <= 100);
        percent.map(Self).ok_or_else(|| format!("`{}` is no share; write it as `25%`, from 0% to 100%", text.escape_default()))
    }
}

impl Serialize for Share {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Whether a mirror removes what was not put there by Muster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorForeign {
    /// It stays.
    #[default]
    Keep,
    /// It is removed.
    Delete,
}

/// How far one run may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunLimits {
    /// Memory of the module, in MiB.
    pub memory_mib: u32,
    /// Processor time of the module, in milliseconds.
    pub cpu_ms: u32,
    /// Wall-clock time of the run, in seconds; what its agent does counts.
    pub run_seconds: u32,
    /// Calls.
    pub calls: u32,
}

impl Default for RunLimits {
    fn default() -> Self {
        Self { memory_mib: RUN_MEMORY_MIB, cpu_ms: RUN_CPU_MS, run_seconds: RUN_SECONDS, calls: RUN_CALLS }
    }
}

/// What is wrong with a policy that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct PolicyError {
    /// Which field.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl LabelPolicy {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first field that is beyond its limit or contradicts another.
    pub fn check(&self) -> Result<(), PolicyError> {
        let wrong = |field: &str, problem: String| Err(PolicyError { field: field.into(), problem });
        let counts = [
            ("bundles", self.bundles.len()),
            ("settings", self.settings.len()),
            ("grants.run", self.grants.run.len()),
            ("grants.write", self.grants.write.len()),
            ("grants.read", self.grants.read.len()),
            ("grants.secrets", self.grants.secrets.len()),
        ];
        for (field, count) in counts {
            if count > POLICY_ITEMS_MAX {
                return wrong(field, format!("{count} items; at most {POLICY_ITEMS_MAX} are allowed"));
            }
        }
        for (name, value) in &self.settings {
            if name.is_empty() || name.len() > POLICY_TEXT_BYTES_MAX || value.len() > POLICY_TEXT_BYTES_MAX {
                return wrong(
                    "settings",
                    format!("a name and a value have at most {POLICY_TEXT_BYTES_MAX} bytes, and a name at least one"),
                );
            }
        }
        for (at, bundle) in self.bundles.iter().enumerate() {
            if self.bundles.iter().take(at).any(|other| other.name == bundle.name) {
                return wrong("bundles", format!("`{}` is named twice; a release has one version of each bundle", bundle.name));
            }
        }
        for (field, value, max) in [
            ("limits.memory_mib", self.limits.memory_mib, RUN_MEMORY_MIB_MAX),
            ("limits.cpu_ms", self.limits.cpu_ms, RUN_CPU_MS_MAX),
            ("limits.run_seconds", self.limits.run_seconds, RUN_SECONDS_MAX),
            ("limits.calls", self.limits.calls, RUN_CALLS_MAX),
        ] {
            if value == 0 || value > max {
                return wrong(field, format!("{value} is not between 1 and {max}"));
            }
        }
        if self.launch.controller.is_some() && (self.launch.none || self.launch.command.is_some()) {
            return wrong("launch", "`controller` says by itself what is started: neither `command` nor `none = true` goes with it".into());
        }
        self.launch.check_node()?;
        match &self.launch.command {
            Some(_) if self.launch.none => wrong("launch", "either `command` or `none = true`, not both".into()),
            Some(command) => check_launch(command),
            None => Ok(()),
        }
    }
}

fn check_launch(command: &[String]) -> Result<(), PolicyError> {
    let wrong = |problem: String| Err(PolicyError { field: "launch.command".into(), problem });
    let bytes: usize = command.iter().map(String::len).sum();
    match command.first() {
        None => wrong("is empty; its first item is the program".into()),
        Some(program) if !program.contains('/') => wrong(format!("`{program}` is not a path; a program is named by its path")),
        Some(_) if command.len() > POLICY_ITEMS_MAX || bytes > POLICY_TEXT_BYTES_MAX => {
            wrong(format!("at most {POLICY_ITEMS_MAX} items and {POLICY_TEXT_BYTES_MAX} bytes are allowed"))
        }
        Some(_) if command.iter().any(|item| item.contains('\0')) => wrong("holds a NUL".into()),
        Some(_) => placeholders::check(command).or_else(|error| wrong(error.to_string())),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    label: BTreeMap<LabelName, LabelPolicy>,
}

/// Reads a policy file: `[label.NAME]` tables, as TOML.
///
/// # Errors
/// A sentence with line and column when it can not be read, or with label and field when it can not be so.
pub fn parse_file(text: &str) -> Result<BTreeMap<LabelName, LabelPolicy>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    if file.label.is_empty() {
        return Err("there is no [label.NAME] in it".into());
    }
    if file.label.len() > POLICY_LABELS_MAX {
        return Err(format!("{} labels; at most {POLICY_LABELS_MAX} are allowed", file.label.len()));
    }
    for (label, policy) in &file.label {
        policy.check().map_err(|error| format!("label.{label}.{error}"))?;
    }
    Ok(file.label)
}

/// What differs between two policies, a line each, for people: `~ module: a@… → a@…`. Digests are cut to what tells them apart.
pub fn differences(before: Option<&LabelPolicy>, after: &LabelPolicy) -> Vec<String> {
    let before = before.map(flat).unwrap_or_default();
    let after = flat(after);
    let mut lines = Vec::new();
    for (field, value) in &after {
        match before.get(field) {
            None => lines.push(format!("+ {field}: {value}")),
            Some(old) if old != value => lines.push(format!("~ {field}: {old} → {value}")),
            Some(_) => {}
        }
    }
    lines.extend(before.iter().filter(|(field, _)| !after.contains_key(*field)).map(|(field, value)| format!("- {field}: {value}")));
    lines
}

/// A text in which a digest is cut to its first 12 digits.
fn short(text: &str) -> String {
    let digits = text.rsplit_once("sha256:").filter(|(_, digits)| digits.parse::<Digest>().is_ok());
    digits.map_or_else(|| text.to_owned(), |(before, digits)| format!("{before}{}", digits.get(..12).unwrap_or(digits)))
}

/// Every leaf of a policy with its path. What is a list of grants has one line an item, so that a grant that is added stands out.
fn flat(policy: &LabelPolicy) -> BTreeMap<String, String> {
    fn walk(path: String, value: &serde_json::Value, into: &mut BTreeMap<String, String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    walk(if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, value, into);
                }
            }
            serde_json::Value::Array(items) if path.starts_with("grants.") || path == "bundles" => {
                for item in items {
                    let text = item.as_str().unwrap_or_default();
                    let (name, rest) = text.split_once('@').filter(|_| path == "bundles").unwrap_or((text, "yes"));
                    into.insert(format!("{path} {name}"), short(rest));
                }
            }
            serde_json::Value::String(text) => {
                into.insert(path, short(text));
            }
            other => {
                into.insert(path, other.to_string());
            }
        }
    }
    let mut into = BTreeMap::new();
    if let Ok(value) = serde_json::to_value(policy) {
        walk(String::new(), &value, &mut into);
    }
    into
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_stays_within_a_component_and_below_its_root() {
        let grants = |glob: &str, path: &str| glob.parse::<Glob>().unwrap().grants("/srv/agent", path);
        assert!(grants("/usr/bin/java", "/usr/bin/java"));
        assert!(!grants("/usr/bin/java", "/usr/bin/javac"));
        assert!(grants("/usr/bin/*", "/usr/bin/java"));
        assert!(!grants("/usr/bin/*", "/usr/bin/x/java"));
        assert!(grants("/apps/**", "/apps/a/b/c"));
        assert!(!grants("/apps/**", "/appsx/a"));
        assert!(grants("tools/**", "/srv/agent/tools/a/b"));
        assert!(!grants("tools/**", "/srv/agentx/tools/a"));
        assert!(!grants("tools/**", "/tools/a"));
        assert!(grants("**", "/srv/agent/a"));
        assert!("../x".parse::<Glob>().is_err());
        assert!("".parse::<Glob>().is_err());
        assert!("a[".parse::<Glob>().is_err());
        assert!(format!("{}a{}", "{".repeat(300), "}".repeat(300)).parse::<Glob>().is_err());
    }

    #[test]
    fn a_policy_file_says_where_it_is_wrong() {
        let good = "[label.linux]\nteam = \"media\"\nmodule = \"base\"\nbundles = [\"tools\"]\n";
        let policies = parse_file(good).unwrap();
        assert_eq!(policies.len(), 1);
        assert!(parse_file("[label.linux]\nteam = \"media\"\nmodule = \"base\"\nrunn = 1\n").unwrap_err().contains("runn"));
        assert!(parse_file(&good.replace("[\"tools\"]", "[\"tools\", \"tools\"]")).unwrap_err().contains("label.linux.bundles"));
        assert!(parse_file(&format!("{good}[label.linux.limits]\ncpu_ms = 0\n")).unwrap_err().contains("limits.cpu_ms"));
        assert!(parse_file(&format!("{good}[label.linux.launch]\ncommand = [\"java\"]\n")).unwrap_err().contains("not a path"));
        let odd = parse_file(&format!("{good}[label.linux.launch]\ncommand = [\"/bin/a\", \"{{host}}\"]\n")).unwrap_err();
        assert!(odd.starts_with("label.linux.launch.command: ") && odd.contains("`{name}`"), "{odd}");
        assert!(parse_file("").unwrap_err().contains("label.NAME"));
        let launch = |text: &str| parse_file(&format!("{good}[label.linux.launch]\ncontroller = \"main\"\n{text}\n"));
        assert!(launch("").is_ok());
        assert!(launch("none = true").unwrap_err().contains("label.linux.launch"));
        assert!(launch("command = [\"/bin/true\"]").unwrap_err().contains("label.linux.launch"));
    }

    #[test]
    fn a_difference_names_each_grant_and_bundle() {
        let one = parse_file("[label.a]\nteam=\"t\"\nmodule=\"m\"\nbundles=[\"x\"]\n").unwrap().into_values().next().unwrap();
        let two = parse_file("[label.a]\nteam=\"t\"\nmodule=\"m\"\n[label.a.grants]\nrun=[\"/opt/t@1/sh\",\"/opt/t@2/sh\"]\n")
            .unwrap()
            .into_values()
            .next()
            .unwrap();
        let lines = differences(Some(&one), &two);
        assert_eq!(lines, ["+ grants.run /opt/t@1/sh: yes", "+ grants.run /opt/t@2/sh: yes", "- bundles x: yes"]);
        assert!(differences(Some(&one), &one).is_empty());
    }
}
