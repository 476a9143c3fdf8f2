//! The clockwork: leases, agents that are dialled or poll for steps, what waits at controllers, pauses that are over, heartbeats on their way to the store, and what is old.

pub mod demand;
pub mod dial;
pub mod nodes;
pub mod polled;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::journal::now_us;
use crate::limits::{CLEAR_INTERVAL, HEARTBEAT_FLUSH_INTERVAL, RECONCILE_INTERVAL_MAX};
use crate::roster::Roster;
use crate::store::Store;
use crate::store::clear::Kept;

/// Does what is due at its time, for as long as the server lives. A failure of the store is logged, and the work done the next time.
///
/// None waits for another: clearing away may take long after a swap of a large label, and leases are to be looked at meanwhile.
pub async fn work(store: Store, roster: Arc<Roster>, poll: Duration, kept: Kept) {
    tokio::join!(leases(&roster, poll), heartbeats(&roster), clearing(&store, &kept));
}

async fn leases(roster: &Roster, poll: Duration) {
    let mut ticker = ticker((poll / 4).min(RECONCILE_INTERVAL_MAX));
    loop {
        ticker.tick().await;
        roster.expire().await;
    }
}

async fn heartbeats(roster: &Roster) {
    let mut ticker = ticker(HEARTBEAT_FLUSH_INTERVAL);
    loop {
        ticker.tick().await;
        if let Err(error) = roster.flush_heartbeats().await {
            tracing::error!(%error, "heartbeats could not be written");
        }
    }
}

async fn clearing(store: &Store, kept: &Kept) {
    let mut ticker = ticker(CLEAR_INTERVAL);
    loop {
        ticker.tick().await;
        match store.clear(now_us(), kept).await {
            Ok(cleared) => tracing::debug!(?cleared, "what is old was cleared away"),
            Err(error) => tracing::error!(%error, "what is old could not be cleared away"),
        }
    }
}

fn ticker(interval: Duration) -> tokio::time::Interval {
    let mut ticker = tokio::time::interval(interval);
    // After a pause of the machine one tick is enough; a burst of them would find the same work again.
    ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticker
}
