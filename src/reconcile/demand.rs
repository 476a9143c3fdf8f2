//! Looking at what waits at a controller, on an interval, for as long as a label's policy in force names it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::controller::Controller;
use crate::controller::demand::{Demand, Wait};
use crate::limits::DEMAND_PAUSE;
use crate::names::LabelName;
use crate::reconcile::ticker;
use crate::shelf::Shelf;
use crate::telemetry::{DemandFigures, Metrics};

/// Looks at one controller, for as long as the server lives. One that is away is asked again at the next interval.
pub async fn work(controller: Arc<Controller>, shelf: Arc<Shelf>, metrics: Arc<Metrics>) {
    let mut ticker = ticker(controller.demand_interval());
    let (mut told, mut away) = (BTreeSet::new(), false);
    loop {
        tokio::select! {
            _ = ticker.tick() => {}
            () = controller.demand_wanted() => {}
        }
        let releases = shelf.releases();
        let named = releases.values().filter(|release| release.policy.launch.controller.as_ref() == Some(&controller.name));
        let labels: BTreeSet<LabelName> = named.map(|release| release.label.clone()).collect();
        if labels.is_empty() && told.is_empty() {
            continue;
        }
        look(&controller, &metrics, &labels, &mut told, &mut away).await;
        // Whoever asks for a label that is not known yet makes a look begin, and many may ask.
        tokio::time::sleep(DEMAND_PAUSE).await;
    }
}

async fn look(controller: &Controller, metrics: &Metrics, labels: &BTreeSet<LabelName>, told: &mut BTreeSet<LabelName>, away: &mut bool) {
    let (name, looked) = (&controller.name, controller.look(labels).await);
    metrics.controller_answers(name, looked.is_ok());
    let found = match looked {
        Ok(found) => {
            if std::mem::take(away) {
                tracing::info!(controller = %name, "controller {name} answers again");
            }
            found
        }
        Err(error) => {
            if !std::mem::replace(away, true) {
                tracing::warn!(controller = %name, %error, "what waits at controller {name} is not known");
            }
            if controller.demand_is_fresh() {
                return;
            }
            BTreeMap::new()
        }
    };
    for label in told.iter().filter(|label| !found.contains_key(*label)) {
        metrics.forget_demand(name, label);
    }
    for (label, demand) in &found {
        metrics.set_demand(name, label, &figures(demand));
    }
    *told = found.into_keys().collect();
}

fn figures(demand: &Demand) -> DemandFigures {
    let count = |wait: Wait| (wait.as_str(), demand.waiting.get(&wait).copied().unwrap_or_default());
    DemandFigures {
        queued: Wait::ALL.map(count).to_vec(),
        busy: demand.busy,
        idle: demand.idle,
        oldest: demand.oldest,
        should_grow: demand.should_grow(),
    }
}
