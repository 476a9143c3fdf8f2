//! `[controller.NAME]`: what agents work for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use crate::limits::{
    CONTROLLER_REQUESTS_AT_ONCE, CONTROLLER_REQUESTS_AT_ONCE_MAX, CONTROLLER_REQUESTS_PER_SECOND, CONTROLLER_REQUESTS_PER_SECOND_MAX,
    CONTROLLER_TIMEOUT, CONTROLLER_TIMEOUT_MAX, CONTROLLERS_MAX, DEMAND_INTERVAL, DEMAND_INTERVAL_MAX,
};
use crate::names::{AgentName, ControllerName};

/// `[controller.NAME]`: a controller, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Controller {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ControllerKind,
    /// Its URL, as people see it.
    pub url: ControllerUrl,
    /// The user.
    pub user: String,
    /// The file of the user's API token.
    pub token_file: PathBuf,
    /// A file of certificates to trust instead of those of the machine.
    pub ca_file: Option<PathBuf>,
    /// How long one request may take, in seconds.
    #[serde(default = "timeout_seconds")]
    pub timeout_seconds: u64,
    /// What is put before the name of a node.
    #[serde(default)]
    pub name_prefix: String,
    /// Requests under way at once.
    #[serde(default = "requests_at_once")]
    pub requests_at_once: usize,
    /// Requests that begin in a second.
    #[serde(default = "requests_per_second")]
    pub requests_per_second: u32,
    /// How often it is asked what waits there, in seconds.
    #[serde(default = "demand_seconds")]
    pub demand_seconds: u64,
}

/// What a controller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControllerKind {
    /// Jenkins.
    Jenkins,
}

/// The URL of a controller: where it is, and no more.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ControllerUrl(Url);

impl ControllerUrl {
    /// The URL, with a slash at its end.
    pub fn get(&self) -> &Url {
        &self.0
    }
}

impl TryFrom<String> for ControllerUrl {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        // What is wrong is told without the text: it may hold a password.
        let mut url = Url::parse(&text).map_err(|_| "a controller's URL is to be as `https://jenkins.example/`")?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err("a controller's URL begins with http:// or https:// and names a host");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a user or a password has no place in a controller's URL");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("a controller's URL ends with its path");
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self(url))
    }
}

fn timeout_seconds() -> u64 {
    CONTROLLER_TIMEOUT.as_secs()
}

fn requests_at_once() -> usize {
    CONTROLLER_REQUESTS_AT_ONCE
}

fn requests_per_second() -> u32 {
    CONTROLLER_REQUESTS_PER_SECOND
}

fn demand_seconds() -> u64 {
    DEMAND_INTERVAL.as_secs()
}

impl Controller {
    /// A controller with every default.
    pub fn new(url: ControllerUrl, user: &str, token_file: PathBuf) -> Self {
        Self {
            kind: ControllerKind::Jenkins,
            url,
            user: user.into(),
            token_file,
            ca_file: None,
            timeout_seconds: timeout_seconds(),
            name_prefix: String::new(),
            requests_at_once: requests_at_once(),
            requests_per_second: requests_per_second(),
            demand_seconds: demand_seconds(),
        }
    }

    /// How long one request may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    /// How often it is asked what waits there.
    pub fn demand_interval(&self) -> Duration {
        Duration::from_secs(self.demand_seconds)
    }

    fn out_of_range(&self) -> Option<(&'static str, String)> {
        // A colon would end the user's name where it is sent.
        if self.user.is_empty() || self.user.contains(|letter: char| letter == ':' || letter.is_control()) {
            return Some(("user", "a user's name is not empty and has no `:`".into()));
        }
        if let Err(error) = self.name_prefix.parse::<AgentName>()
            && !self.name_prefix.is_empty()
        {
            return Some(("name_prefix", error.to_string()));
        }
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let counts = [
            ("timeout_seconds", self.timeout_seconds, CONTROLLER_TIMEOUT_MAX.as_secs()),
            ("requests_at_once", wide(self.requests_at_once), wide(CONTROLLER_REQUESTS_AT_ONCE_MAX)),
            ("requests_per_second", self.requests_per_second.into(), CONTROLLER_REQUESTS_PER_SECOND_MAX.into()),
            ("demand_seconds", self.demand_seconds, DEMAND_INTERVAL_MAX.as_secs()),
        ];
        let wrong = counts.into_iter().find(|(_, value, max)| !(1..=*max).contains(value));
        wrong.map(|(field, value, max)| (field, format!("{value} is not between 1 and {max}")))
    }
}

/// Which setting of which controller is beyond what it may be, and why.
pub(super) fn out_of_range(controllers: &BTreeMap<ControllerName, Controller>) -> Option<(String, String)> {
    if controllers.len() > CONTROLLERS_MAX {
        return Some(("controller".into(), format!("{} controllers; at most {CONTROLLERS_MAX} are allowed", controllers.len())));
    }
    controllers.iter().find_map(|(name, controller)| {
        let (field, problem) = controller.out_of_range()?;
        Some((format!("controller.{name}.{field}"), problem))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMUM: &str =
        "[main]\ntype = \"jenkins\"\nurl = \"https://jenkins.example/ci\"\nuser = \"muster\"\ntoken_file = \"/etc/muster/jenkins\"\n";

    fn parse(text: &str) -> Result<BTreeMap<ControllerName, Controller>, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_controller_needs_four_settings_and_has_defaults_for_the_rest() {
        let controllers = parse(MINIMUM).unwrap();
        assert_eq!(out_of_range(&controllers), None);
        let main = controllers.values().next().unwrap();
        assert_eq!(main.url.get().as_str(), "https://jenkins.example/ci/");
        assert_eq!((main.timeout(), main.demand_interval()), (CONTROLLER_TIMEOUT, DEMAND_INTERVAL));
        assert_eq!((main.requests_at_once, main.requests_per_second, main.name_prefix.as_str()), (4, 20, ""));
        for line in MINIMUM.lines().skip(1) {
            assert!(parse(&MINIMUM.replace(line, "")).is_err(), "{line}");
        }
        assert!(parse(&MINIMUM.replace("main", "\"a/b\"")).is_err());
        assert!(parse(&MINIMUM.replace("jenkins\"\nurl", "gitlab\"\nurl")).is_err());
        assert!(parse(&format!("{MINIMUM}token = \"x\"\n")).is_err());
    }

    #[test]
    fn a_setting_beyond_its_range_is_named_with_its_controller() {
        for (more, field) in [
            ("timeout_seconds = 0", "timeout_seconds"),
            ("requests_at_once = 65", "requests_at_once"),
            ("requests_per_second = 0", "requests_per_second"),
            ("demand_seconds = 3601", "demand_seconds"),
            ("name_prefix = \"a b\"", "name_prefix"),
        ] {
            let wrong = out_of_range(&parse(&format!("{MINIMUM}{more}\n")).unwrap()).map(|(field, _)| field);
            assert_eq!(wrong, Some(format!("controller.main.{field}")));
        }
        let wrong = out_of_range(&parse(&MINIMUM.replace("\"muster\"", "\"a:b\"")).unwrap());
        assert_eq!(wrong.unwrap().0, "controller.main.user");
        let many = (0..=CONTROLLERS_MAX).map(|at| MINIMUM.replace("main", &format!("c{at}"))).collect::<String>();
        assert_eq!(out_of_range(&parse(&many).unwrap()).unwrap().0, "controller");
    }

    #[test]
    fn a_url_that_can_not_be_one_is_refused_and_a_password_in_it_is_not_shown() {
        for bad in ["jenkins.example", "ftp://h/", "https://u:secret@h/", "https://h/?a=b", "https://h/#x", "https://"] {
            let error = parse(&MINIMUM.replace("https://jenkins.example/ci", bad)).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
