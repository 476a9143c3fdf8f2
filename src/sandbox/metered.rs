//! The processor time of a guest's call.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Meters the processor time of a call, and ends it when that is spent.
///
/// A guest computes only while it is polled, and yields at every tick, so the time of the thread during each poll, added up, is what it
/// cost. Time in which its thread did not run, or in which it waited for its agent, is not its fault and does not count.
pub(super) struct Metered<F> {
    call: Pin<Box<F>>,
    spent: Duration,
    limit: Duration,
}

impl<F> Metered<F> {
    pub(super) fn new(call: F, limit: Duration) -> Self {
        Self { call: Box::pin(call), spent: Duration::ZERO, limit }
    }
}

/// What the call answered, or nothing when its time was spent.
impl<F: Future> Future for Metered<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let began = thread_time();
        let polled = self.call.as_mut().poll(context);
        self.spent += thread_time().saturating_sub(began);
        match polled {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.spent > self.limit => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
