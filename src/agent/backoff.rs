//! Pauses that grow, and differ from agent to agent.

use std::time::Duration;

use crate::limits::{RECONNECT_FIRST, RECONNECT_MAX};

/// How long to wait before the next try to reach the server.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    /// Begins with the shortest pause.
    pub(super) fn new() -> Self {
        Self { next: RECONNECT_FIRST, max: RECONNECT_MAX }
    }

    /// The pause after one more failure: between half of what is due and all of it, so that agents do not return together.
    pub(super) fn pause(&mut self) -> Duration {
        let due = self.next;
        self.next = due.saturating_mul(2).min(self.max);
        due.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// The pause after a refusal that lasts until somebody does something about it: about the longest one.
    pub(super) fn longest_pause(&mut self) -> Duration {
        self.next = self.max;
        self.pause()
    }

    /// Begins anew, after a success.
    pub(super) fn reset(&mut self) {
        self.next = RECONNECT_FIRST.min(self.max);
    }

    /// Keeps the pauses below the time in which the server misses an agent that it has poll so often: three polls and more.
    pub(super) fn keep_within(&mut self, poll: Duration) {
        self.max = poll.saturating_mul(2).min(RECONNECT_MAX);
        self.next = self.next.min(self.max);
    }
}
