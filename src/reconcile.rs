//! The clockwork: leases, pauses that are over, heartbeats on their way to the store, and what is old.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::journal::now_us;
use crate::limits::{CLEAR_INTERVAL, HEARTBEAT_FLUSH_INTERVAL, RECONCILE_INTERVAL_MAX};
use crate::roster::Roster;
use crate::store::Store;
use crate::store::clear::Kept;

/// Does what is due at its time, for as long as the server lives. A failure of the store is logged, and the work done the next time.
pub async fn work(store: Store, roster: Arc<Roster>, poll: Duration, kept: Kept) {
    let mut leases = ticker((poll / 4).min(RECONCILE_INTERVAL_MAX));
    let mut heartbeats = ticker(HEARTBEAT_FLUSH_INTERVAL);
    let mut clearing = ticker(CLEAR_INTERVAL);
    loop {
        tokio::select! {
            _ = leases.tick() => {
                if let Err(error) = roster.expire().await {
                    tracing::error!(%error, "leases could not be looked at");
                }
            }
            _ = heartbeats.tick() => {
                if let Err(error) = roster.flush_heartbeats().await {
                    tracing::error!(%error, "heartbeats could not be written");
                }
            }
            _ = clearing.tick() => match store.clear(now_us(), &kept).await {
                Ok(cleared) => tracing::debug!(?cleared, "what is old was cleared away"),
                Err(error) => tracing::error!(%error, "what is old could not be cleared away"),
            },
        }
    }
}

fn ticker(interval: Duration) -> tokio::time::Interval {
    let mut ticker = tokio::time::interval(interval);
    // After a pause of the machine one tick is enough; a burst of them would find the same work again.
    ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticker
}
