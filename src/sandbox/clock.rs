//! The time of a run, as its module sees it.
//!
//! It follows from what is in the journal alone, so that a replay sees the same: it stands at the run's beginning, moves to the time of each
//! answer as that comes, and to the end of each pause that the module makes; each look at it moves it by a microsecond, so that a module which
//! looks until a time is over comes to an end. While a module computes it stands still.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use wasmtime_wasi::HostWallClock;
use wasmtime_wasi::p2::Pollable;

/// How the time passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// A pause takes as long as it takes.
    Real,
    /// A pause is over at once, unless it would last beyond the run's end, in microseconds since the Unix epoch.
    Replayed {
        /// That end.
        ends_us: i64,
    },
}

/// The clock of one run, in microseconds since the Unix epoch.
#[derive(Debug)]
pub(crate) struct Clock {
    began_us: i64,
    pace: Pace,
    time: Mutex<Time>,
    over: Notify,
}

#[derive(Debug)]
struct Time {
    now_us: i64,
    /// What the module waits for at once: one entry for each pause.
    awaited_us: Vec<i64>,
}

impl Clock {
    /// A clock that begins at a time.
    pub(crate) fn new(began_us: i64, pace: Pace) -> Self {
        Self { began_us, pace, time: Mutex::new(Time { now_us: began_us, awaited_us: Vec::new() }), over: Notify::new() }
    }

    /// The time, without looking at it as the module does.
    pub(crate) fn shown_us(&self) -> i64 {
        self.time().now_us
    }

    /// The time, as the module looks at it.
    pub(crate) fn look_us(&self) -> i64 {
        let mut time = self.time();
        time.now_us = time.now_us.saturating_add(1);
        time.now_us
    }

    /// Nanoseconds since the beginning, as the module looks at them.
    pub(crate) fn look_ns(&self) -> u64 {
        u64::try_from(self.look_us().saturating_sub(self.began_us)).unwrap_or_default().saturating_mul(1000)
    }

    /// Moves to a time, unless that is over already; what it is then.
    pub(crate) fn reach(&self, at_us: i64) -> i64 {
        let mut time = self.time();
        time.now_us = time.now_us.max(at_us);
        time.now_us
    }

    /// Waits, in a replay, until a pause is begun that lasts beyond the run's end.
    pub(crate) async fn over(&self) {
        self.over.notified().await;
    }

    /// A pause until so many nanoseconds after the beginning.
    pub(crate) fn until(self: &Arc<Self>, at_ns: u64) -> Pause {
        Pause { clock: Arc::clone(self), at_us: self.began_us.saturating_add(microseconds(at_ns)) }
    }

    /// A pause of so many nanoseconds.
    pub(crate) fn pause(self: &Arc<Self>, length_ns: u64) -> Pause {
        Pause { clock: Arc::clone(self), at_us: self.shown_us().saturating_add(microseconds(length_ns)) }
    }

    /// Moves to the earliest of the times that are waited for. `false`, and no move, if the run is over before that.
    fn move_on(&self) -> bool {
        let mut time = self.time();
        let Some(first) = time.awaited_us.iter().min().copied() else { return true };
        match self.pace {
            Pace::Replayed { ends_us } if first > ends_us => false,
            _ => {
                time.now_us = time.now_us.max(first);
                true
            }
        }
    }

    /// Waits until the clock is there; `Waiting` has to stand in the list.
    async fn wait_until(&self, at_us: i64) {
        if self.look_us() >= at_us {
            return;
        }
        loop {
            // Whatever else is waited for has looked at the clock before it moves.
            tokio::task::yield_now().await;
            if self.pace == Pace::Real {
                let left = at_us.saturating_sub(self.shown_us());
                tokio::time::sleep(Duration::from_micros(u64::try_from(left).unwrap_or_default())).await;
            }
            if !self.move_on() {
                self.over.notify_one();
                std::future::pending::<()>().await;
            }
            tokio::task::yield_now().await;
            if self.shown_us() >= at_us {
                return;
            }
        }
    }

    fn time(&self) -> MutexGuard<'_, Time> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn microseconds(ns: u64) -> i64 {
    i64::try_from(ns.div_ceil(1000)).unwrap_or(i64::MAX)
}

/// The clock as the engine's own interfaces read it.
pub(crate) struct Wall(pub(crate) Arc<Clock>);

impl HostWallClock for Wall {
    fn resolution(&self) -> Duration {
        Duration::from_micros(1)
    }

    fn now(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.look_us()).unwrap_or_default())
    }
}

/// A time that a module waits for.
pub(crate) struct Pause {
    clock: Arc<Clock>,
    at_us: i64,
}

/// Stands in the list of what is waited for until it is dropped.
struct Waiting<'a> {
    clock: &'a Clock,
    at_us: i64,
}

impl<'a> Waiting<'a> {
    fn new(clock: &'a Clock, at_us: i64) -> Self {
        clock.time().awaited_us.push(at_us);
        Self { clock, at_us }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut time = self.clock.time();
        if let Some(place) = time.awaited_us.iter().position(|at_us| *at_us == self.at_us) {
            time.awaited_us.swap_remove(place);
        }
    }
}

impl Pollable for Pause {
    /// The module may wait for several pauses at once, and is told which are over. That must not depend on how timers are rounded, so the clock
    /// moves to the earliest of them and no further, and each is looked at only after it has moved. One that is over stays in the list until
    /// all are dropped: else the clock would move to the next one while the module is being told.
    fn ready<'a, 'b>(&'a mut self) -> Pin<Box<dyn Future<Output = ()> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let (clock, at_us) = (&*self.clock, self.at_us);
        let waiting = Waiting::new(clock, at_us);
        let mut over = Box::pin(clock.wait_until(at_us));
        Box::pin(std::future::poll_fn(move |context| {
            // It lives as long as this closure.
            let _ = &waiting;
            over.as_mut().poll(context)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What became ready of some pauses that are waited for together, as the engine waits for them.
    async fn first_of(clock: &Arc<Clock>, lengths_us: &[u64]) -> Vec<usize> {
        let mut pauses: Vec<Pause> = lengths_us.iter().map(|us| clock.pause(us * 1000)).collect();
        let mut waiting: Vec<_> = pauses.iter_mut().map(Pollable::ready).collect();
        std::future::poll_fn(move |context| {
            let polled: Vec<bool> = waiting.iter_mut().map(|pause| pause.as_mut().poll(context).is_ready()).collect();
            let ready: Vec<usize> = polled.iter().enumerate().filter_map(|(at, ready)| ready.then_some(at)).collect();
            if ready.is_empty() { std::task::Poll::Pending } else { std::task::Poll::Ready(ready) }
        })
        .await
    }

    #[tokio::test]
    async fn of_several_pauses_the_shortest_are_over_first_in_a_run_and_in_its_replay() {
        let mut seen = Vec::new();
        for pace in [Pace::Real, Pace::Replayed { ends_us: i64::MAX }] {
            let clock = Arc::new(Clock::new(1_000_000, pace));
            let mut first = Vec::new();
            for lengths_us in [&[30_000, 3_000, 3_000, 500_000][..], &[2_000, 1_000], &[1_000, 1_001, 1_100, 900], &[0, 700]] {
                first.push((first_of(&clock, lengths_us).await, clock.shown_us()));
            }
            seen.push((first, clock.look_us(), clock.look_ns()));
        }
        assert_eq!(seen[0], seen[1]);
        let ready: Vec<&[usize]> = seen[0].0.iter().map(|(ready, _)| ready.as_slice()).collect();
        assert_eq!(ready, [&[1, 2][..], &[1], &[3], &[0]]);
    }

    #[tokio::test]
    async fn a_clock_never_goes_back_and_moves_as_it_is_looked_at() {
        let clock = Clock::new(5, Pace::Real);
        assert_eq!((clock.reach(9), clock.reach(7), clock.shown_us(), clock.look_us(), clock.look_ns()), (9, 9, 9, 10, 6000));
    }

    #[tokio::test]
    async fn a_pause_beyond_the_runs_end_is_never_over_in_a_replay() {
        let clock = Arc::new(Clock::new(0, Pace::Replayed { ends_us: 10 }));
        let mut pause = clock.pause(11_000);
        tokio::select! {
            () = pause.ready() => panic!("it was over"),
            () = clock.over() => {}
        }
    }
}
