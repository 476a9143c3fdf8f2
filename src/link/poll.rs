//! Steps of a [`Shell`](super::shell::Shell) that the machine fetches: what `muster-poll` asks for, and what it brings back.
//!
//! A step is handed out until the machine says that it has it, and is over when its status came. Its output comes before that, whole. One
//! that the machine had and has no more, without a status, is lost: it is never handed out a second time. HTTP is somebody else's: this is a
//! queue with a few words to it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::shell::{Input, Runner, Step};
use crate::limits::{SHELL_ANSWER_BYTES_MAX, STEPS_MAX};
use crate::machine::{CallError, Stream};

/// The steps of one machine that polls.
#[derive(Default)]
pub struct Line {
    steps: Mutex<BTreeMap<u64, Waiting>>,
    changed: Notify,
    /// The number of the last poll: one that is open still when another comes knows less.
    polls: AtomicU64,
}

/// A step until it is over.
struct Waiting {
    text: Bytes,
    has_input: bool,
    input: Input,
    output_bytes_max: usize,
    /// Whether it was handed out.
    is_sent: bool,
    /// Whether the machine said that it has it.
    is_there: bool,
    written: [Option<Bytes>; 2],
    /// Whether something is just being brought for each.
    is_written: [bool; 2],
    done: Option<oneshot::Sender<Done>>,
}

/// How a step ended: what it wrote to both outputs, and its status.
type Done = ([Option<Bytes>; 2], i32);

/// A step as it is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    /// Its number.
    pub id: u64,
    /// What the machine's shell reads.
    pub text: Bytes,
    /// Whether there is an input to be fetched.
    pub has_input: bool,
    /// How much of its output is worth bringing back, in bytes.
    pub output_bytes_max: usize,
}

/// The step that is spoken of is none that is waited for, or its input was fetched before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody waits for this step")]
pub struct NoStep;

impl Line {
    fn steps(&self) -> MutexGuard<'_, BTreeMap<u64, Waiting>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next step for a machine that has those of `here` under way; none if there is none for so long. One that was handed out and that
    /// the machine has not is handed out again: the answer was lost.
    pub async fn next(&self, here: &[u64], wait: Duration) -> Option<Handed> {
        let until = Instant::now() + wait;
        let poll = self.polls.fetch_add(1, Ordering::Relaxed) + 1;
        self.changed.notify_waiters();
        loop {
            let changed = self.changed.notified();
            if self.polls.load(Ordering::Relaxed) != poll {
                return None;
            }
            if let Some(handed) = self.hand_out(here) {
                return Some(handed);
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return None;
            }
        }
    }

    fn hand_out(&self, here: &[u64]) -> Option<Handed> {
        let mut steps = self.steps();
        let lost: Vec<u64> = steps.iter().filter(|(id, step)| step.is_there && !here.contains(id)).map(|(id, _)| *id).collect();
        for id in lost {
            if let Some(done) = steps.remove(&id).and_then(|step| step.done) {
                let why = "the machine lost the step, or could not bring what came of it\n";
                let _ = done.send(([None, Some(why.into())], 48));
            }
        }
        for id in here {
            if let Some(step) = steps.get_mut(id) {
                step.is_there = true;
            }
        }
        let (id, step) = steps.iter_mut().find(|(id, step)| !step.is_sent || !here.contains(id))?;
        step.is_sent = true;
        Some(Handed { id: *id, text: step.text.clone(), has_input: step.has_input, output_bytes_max: step.output_bytes_max })
    }

    /// The input of a step. What comes in pieces is handed out once.
    ///
    /// # Errors
    /// If there is none to hand out.
    pub fn input(&self, id: u64) -> Result<Input, NoStep> {
        let mut steps = self.steps();
        let step = steps.get_mut(&id).ok_or(NoStep)?;
        match std::mem::replace(&mut step.input, Input::None) {
            Input::None => Err(NoStep),
            Input::Whole(bytes) => {
                step.input = Input::Whole(bytes.clone());
                Ok(Input::Whole(bytes))
            }
            pieces @ Input::Pieces(_) => Ok(pieces),
        }
    }

    /// Begins to take what a step wrote. Why it failed has room in any case.
    ///
    /// # Errors
    /// If nobody waits for it, or it is just being brought: that would be memory for nothing.
    pub fn writing(&self, id: u64, stream: Stream) -> Result<Writing<'_>, NoStep> {
        let mut steps = self.steps();
        let step = steps.get_mut(&id).ok_or(NoStep)?;
        let least = if stream == Stream::Stderr { SHELL_ANSWER_BYTES_MAX } else { 0 };
        let is_written = of(&mut step.is_written, stream);
        if std::mem::replace(is_written, true) {
            return Err(NoStep);
        }
        Ok(Writing { line: self, id, stream, bytes_max: step.output_bytes_max.max(least) })
    }

    /// Takes a step's end.
    ///
    /// # Errors
    /// If nobody waits for it.
    pub fn done(&self, id: u64, status: i32) -> Result<(), NoStep> {
        let step = self.steps().remove(&id).ok_or(NoStep)?;
        if let Some(done) = step.done {
            // Whoever waited may have given up just now.
            let _ = done.send((step.written, status));
        }
        Ok(())
    }
}

/// The one of two that is a stream's.
fn of<T>([out, err]: &mut [T; 2], stream: Stream) -> &mut T {
    if stream == Stream::Stdout { out } else { err }
}

/// What a step wrote, while it is brought.
pub struct Writing<'a> {
    line: &'a Line,
    id: u64,
    stream: Stream,
    /// How many bytes it may be.
    pub bytes_max: usize,
}

impl Writing<'_> {
    /// Takes it. Brought again, it counts instead.
    ///
    /// # Errors
    /// If nobody waits for it any more.
    pub fn end(self, bytes: Bytes) -> Result<(), NoStep> {
        *of(&mut self.line.steps().get_mut(&self.id).ok_or(NoStep)?.written, self.stream) = Some(bytes);
        Ok(())
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if let Some(step) = self.line.steps().get_mut(&self.id) {
            *of(&mut step.is_written, self.stream) = false;
        }
    }
}

/// A step that is waited for; when it is not any more, it is not handed out either.
struct Place<'a>(&'a Line, u64);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.steps().remove(&self.1);
    }
}

#[async_trait::async_trait]
impl Runner for Arc<Line> {
    async fn run(&self, step: Step, output: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<i32, CallError> {
        let (done, over) = oneshot::channel();
        let waiting = Waiting {
            has_input: !matches!(step.input, Input::None),
            text: step.text.into(),
            input: step.input,
            output_bytes_max: step.output_bytes_max,
            is_sent: false,
            is_there: false,
            written: [None, None],
            is_written: [false, false],
            done: Some(done),
        };
        {
            let mut steps = self.steps();
            if steps.len() >= STEPS_MAX {
                return Err(CallError::Other(format!("{STEPS_MAX} steps wait for the machine already")));
            }
            steps.insert(step.id, waiting);
        }
        let _place = Place(self, step.id);
        self.changed.notify_waiters();
        let ([out, err], status) = over.await.map_err(|_| CallError::Unreachable("the step was given up".into()))?;
        for (stream, bytes) in [(Stream::Stdout, out), (Stream::Stderr, err)] {
            if let Some(bytes) = bytes {
                output(stream, &bytes);
            }
        }
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(id: u64) -> Step {
        Step { id, text: format!("step {id}"), input: Input::Whole("in".into()), output_bytes_max: 10 }
    }

    #[tokio::test]
    async fn a_step_is_handed_out_until_the_machine_has_it_and_is_over_with_its_status() {
        let line = Arc::new(Line::default());
        assert_eq!(line.next(&[], Duration::ZERO).await, None);
        let mut written = Vec::new();
        let mut see = |stream, bytes: &[u8]| written.push((stream, bytes.to_vec()));
        let mut running = line.run(step(7), &mut see);
        let handed = tokio::select! {
            status = &mut running => panic!("{status:?}"),
            handed = line.next(&[], Duration::from_secs(60)) => handed.unwrap(),
        };
        assert_eq!((handed.id, handed.text.as_ref(), handed.has_input), (7, b"step 7".as_slice(), true));
        assert_eq!(line.next(&[], Duration::ZERO).await.unwrap(), handed, "the answer was lost");
        assert_eq!(line.next(&[7], Duration::ZERO).await, None, "it is there");
        assert!(matches!(line.input(7), Ok(Input::Whole(_))) && matches!(line.input(7), Ok(Input::Whole(_))));
        let writing = line.writing(7, Stream::Stderr).unwrap();
        assert!(line.writing(7, Stream::Stderr).is_err(), "it is being brought");
        writing.end("err".into()).unwrap();
        line.writing(7, Stream::Stdout).unwrap().end("out".into()).unwrap();
        line.done(7, 3).unwrap();
        assert_eq!(line.done(7, 3), Err(NoStep));
        assert_eq!(running.await, Ok(3));
        assert_eq!(written, [(Stream::Stdout, b"out".to_vec()), (Stream::Stderr, b"err".to_vec())]);
    }

    #[tokio::test]
    async fn a_step_that_the_machine_had_and_lost_is_not_handed_out_again() {
        let line = Arc::new(Line::default());
        let mut said = Vec::new();
        let mut see = |_, bytes: &[u8]| said.extend_from_slice(bytes);
        let polls = async {
            assert_eq!(line.next(&[], Duration::from_secs(60)).await.unwrap().id, 1);
            assert_eq!(line.next(&[1], Duration::ZERO).await, None);
            assert_eq!(line.next(&[], Duration::ZERO).await, None);
        };
        let (status, ()) = tokio::join!(line.run(step(1), &mut see), polls);
        assert_eq!(status, Ok(48));
        assert!(String::from_utf8(said).unwrap().contains("lost"));
    }

    #[tokio::test]
    async fn a_poll_that_is_open_still_when_another_comes_is_answered_with_nothing() {
        let line = Arc::new(Line::default());
        let (older, newer) = tokio::join!(line.next(&[], Duration::from_secs(600)), line.next(&[], Duration::ZERO));
        assert_eq!((older, newer), (None, None));
    }

    #[tokio::test]
    async fn a_step_that_is_given_up_is_not_handed_out() {
        let line = Arc::new(Line::default());
        let mut ignore = |_, _: &[u8]| {};
        let running = line.run(step(1), &mut ignore);
        tokio::select! {
            biased;
            _ = running => panic!("it ended"),
            handed = line.next(&[], Duration::from_secs(60)) => assert_eq!(handed.unwrap().id, 1),
        }
        assert_eq!(line.next(&[], Duration::ZERO).await, None);
        assert!(line.input(1).is_err() && line.writing(1, Stream::Stdout).is_err());
    }
}
