//! What a verdict makes of an agent.

use crate::api::AgentState;
use crate::journal::now_us;
use crate::limits::{RETRY_FIRST, RETRY_MAX};
use crate::sandbox::Verdict;
use crate::shelf::Release;
use crate::store::agents::AgentRow;

/// Changes the row of an agent whose run has ended, and says why.
///
/// An agent that was drained, stopped, lost or removed meanwhile stays what it is.
pub(super) fn after(row: &mut AgentRow, release: &Release, run: &str, verdict: &Verdict, is_last: bool) -> String {
    let what = format!("release {} of label `{}`", release.number, release.label);
    if row.state != AgentState::Provisioning {
        return format!("run {run} of {what} ended: {}", verdict.word());
    }
    match verdict {
        Verdict::Provisioned => {
            row.releases.insert(release.label.clone(), release.number);
            if is_last {
                row.state = AgentState::Ready;
                row.attempt = 0;
            }
            format!("provisioned with {what}")
        }
        // When it is back it opens a session, and that makes it due.
        Verdict::LinkLost { reason } => {
            row.state = AgentState::Registered;
            format!("the link was lost during {what}: {reason}")
        }
        Verdict::RefusedNever { reason } => {
            fail(row, None);
            format!("the module of {what} says that this agent will not do: {reason}")
        }
        Verdict::RefusedLater { reason, after_seconds } => {
            fail(row, Some(i64::from(*after_seconds) * 1_000_000));
            format!("the module of {what} asks to wait {after_seconds} s: {reason}")
        }
        failed => {
            let pause = pause_us(row.attempt);
            fail(row, Some(pause));
            format!("{what}: {}: {}", failed.word(), failed.reason().unwrap_or_default())
        }
    }
}

fn fail(row: &mut AgentRow, pause_us: Option<i64>) {
    row.state = AgentState::Failed;
    row.retry_at_us = pause_us.map(|pause| now_us() + pause);
}

/// The pause before the attempt after this one: doubled each time, and shortened at random by up to half, so that a fleet that failed
/// together does not come back together.
pub(super) fn pause_us(attempt: i64) -> i64 {
    let doublings = u32::try_from(attempt - 1).unwrap_or(0).min(16);
    let pause = RETRY_FIRST.saturating_mul(1 << doublings).min(RETRY_MAX);
    let share = 1.0 - rand::random::<f64>() / 2.0;
    i64::try_from(pause.mul_f64(share).as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_differ() {
        let pauses: Vec<_> = (1..30).map(pause_us).collect();
        assert!(pauses.iter().all(|pause| (RETRY_FIRST / 2).as_micros() as i64 <= *pause && *pause <= RETRY_MAX.as_micros() as i64));
        assert!(pauses.last().unwrap() > &(RETRY_MAX.as_micros() as i64 / 2 - 1));
        assert!((0..10).map(|_| pause_us(5)).collect::<std::collections::BTreeSet<_>>().len() > 1);
    }
}
