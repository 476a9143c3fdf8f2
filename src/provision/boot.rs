//! Which run is the first of a boot: what it is sent is what its image lacks.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::names::LabelName;
use crate::roster::agent::View;
use crate::store::boots::{Boot, Booted};

/// A run that is the first of its label to succeed since the agent's program was started, if it succeeds.
#[derive(Debug)]
pub(super) struct FirstRun {
    /// What the machine was made from, if it said so.
    pub(super) image: Option<String>,
    /// What is true of the agent when the run has succeeded.
    pub(super) booted: Booted,
}

impl FirstRun {
    /// Looks at an agent before a run; none if a run of the label has succeeded already.
    pub(super) fn of(view: &View, label: &LabelName) -> Option<Self> {
        let instance = view.row.instance.clone();
        let mut labels = match view.row.booted.instance == instance {
            true => view.row.booted.labels.clone(),
            false => BTreeSet::new(),
        };
        if !labels.insert(label.clone()) {
            return None;
        }
        // An agent may change its labels as often as it likes.
        labels.retain(|label| view.row.labels.contains(label));
        Some(Self { image: view.claims.image.clone(), booted: Booted { instance, labels } })
    }

    /// What is kept of it.
    pub(super) fn boot(&self, label: &LabelName, syncing: Duration) -> Boot {
        let sync_us = u64::try_from(syncing.as_micros()).unwrap_or(u64::MAX);
        Boot { label: label.clone(), image: self.image.clone(), sync_us }
    }
}
