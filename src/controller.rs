//! Controllers: what agents work for, seen from outside.
//!
//! A controller is another server, with a will and a pace of its own: requests to it are few at once, a restart of it is waited for, and what
//! it says is kept in its own words. `jenkins` speaks with one, `check` finds out what it lets its user do, and `demand` what waits there.

pub mod check;
pub mod demand;
pub mod jenkins;
pub mod nodes;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::Arc;

use crate::config;
use crate::controller::demand::Board;
use crate::controller::jenkins::{Jenkins, Settings};
use crate::limits::{CONFIG_BYTES_MAX, CONTROLLER_UNSURE};
use crate::names::ControllerName;

/// The controllers of the configuration.
#[derive(Default)]
pub struct Controllers(BTreeMap<ControllerName, Arc<Controller>>);

/// One controller.
pub struct Controller {
    /// Its name in the configuration.
    pub name: ControllerName,
    /// How it is spoken with.
    pub jenkins: Jenkins,
    /// What is put before the name of a node.
    pub name_prefix: String,
    board: Board,
    checking: tokio::sync::Mutex<()>,
}

impl Controllers {
    /// Takes the controllers of the configuration. None is asked anything yet.
    ///
    /// # Errors
    /// Which setting can not be used, and why.
    pub fn open(sections: &BTreeMap<ControllerName, config::controller::Controller>) -> Result<Self, String> {
        let open = |(name, section): (&ControllerName, &config::controller::Controller)| {
            let controller = Controller::open(name, section).map_err(|(field, problem)| format!("controller.{name}.{field}: {problem}"))?;
            Ok((name.clone(), Arc::new(controller)))
        };
        sections.iter().map(open).collect::<Result<_, String>>().map(Self)
    }

    /// A controller by its name.
    pub fn get(&self, name: &ControllerName) -> Option<&Arc<Controller>> {
        self.0.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Controller>> {
        self.0.values()
    }

    /// Their names.
    pub fn names(&self) -> BTreeSet<ControllerName> {
        self.0.keys().cloned().collect()
    }
}

impl Controller {
    fn open(name: &ControllerName, section: &config::controller::Controller) -> Result<Self, (&'static str, String)> {
        let ca = section.ca_file.as_ref().map(|file| {
            let mut pem = Vec::new();
            let read = std::fs::File::open(file).and_then(|opened| opened.take(CONFIG_BYTES_MAX).read_to_end(&mut pem));
            read.map_err(|error| ("ca_file", format!("{} can not be read: {error}", file.display())))?;
            // Without one nothing would be trusted, and each call would say so in other words.
            let is_pem = String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----");
            if is_pem { Ok(pem) } else { Err(("ca_file", format!("{} holds no certificate", file.display()))) }
        });
        let settings = Settings {
            url: section.url.get().clone(),
            user: section.user.clone(),
            token_file: section.token_file.clone(),
            ca: ca.transpose()?,
            timeout: section.timeout(),
            at_once: section.requests_at_once,
            per_second: section.requests_per_second,
            unsure: CONTROLLER_UNSURE,
        };
        Ok(Self {
            name: name.clone(),
            jenkins: Jenkins::new(settings).map_err(|error| ("ca_file", format!("it can not be used: {error}")))?,
            name_prefix: section.name_prefix.clone(),
            board: Board::new(section.demand_interval()),
            checking: tokio::sync::Mutex::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_certificates_that_holds_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let (file, url) = (directory.path().join("ca.pem"), "https://jenkins.example".to_owned().try_into().unwrap());
        let mut section = config::controller::Controller::new(url, "muster", directory.path().join("token"));
        let open = |section: &_| Controllers::open(&BTreeMap::from([("main".parse().unwrap(), Clone::clone(section))]));
        assert_eq!(open(&section).unwrap().names().len(), 1);
        section.ca_file = Some(file.clone());
        assert!(open(&section).err().unwrap().starts_with("controller.main.ca_file: "));
        std::fs::write(&file, "no certificate").unwrap();
        assert!(open(&section).err().unwrap().ends_with("holds no certificate"));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(open(&section).err().unwrap().contains("can not be used"));
    }
}
