//! Steps of a [`Shell`](super::shell::Shell) that the machine fetches: what `muster-poll` asks for, and what it brings back.
//!
//! A step is handed out until the machine says that it has it, and is over when its status came. Its output comes before that, whole. HTTP
//! is somebody else's: this is a queue with a few words to it.

use std::collections::BTreeMap;
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
}

/// A step until it is over.
struct Waiting {
    text: Bytes,
    has_input: bool,
    input: Input,
    output_bytes_max: usize,
    /// Whether it was handed out.
    is_sent: bool,
    written: [Option<Bytes>; 2],
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
        loop {
            let changed = self.changed.notified();
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

    /// How many bytes may be brought of a step's output. Why it failed has room in any case.
    ///
    /// # Errors
    /// If nobody waits for it.
    pub fn output_bytes_max(&self, id: u64, stream: Stream) -> Result<usize, NoStep> {
        let least = if stream == Stream::Stderr { SHELL_ANSWER_BYTES_MAX } else { 0 };
        self.steps().get(&id).map(|step| step.output_bytes_max.max(least)).ok_or(NoStep)
    }

    /// Takes what a step wrote. Brought again, it counts instead.
    ///
    /// # Errors
    /// If nobody waits for it.
    pub fn wrote(&self, id: u64, stream: Stream, bytes: Bytes) -> Result<(), NoStep> {
        let mut steps = self.steps();
        let [out, err] = &mut steps.get_mut(&id).ok_or(NoStep)?.written;
        *(if stream == Stream::Stdout { out } else { err }) = Some(bytes);
        Ok(())
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
            written: [None, None],
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
        line.wrote(7, Stream::Stderr, "err".into()).unwrap();
        line.wrote(7, Stream::Stdout, "out".into()).unwrap();
        line.done(7, 3).unwrap();
        assert_eq!(line.done(7, 3), Err(NoStep));
        assert_eq!(running.await, Ok(3));
        assert_eq!(written, [(Stream::Stdout, b"out".to_vec()), (Stream::Stderr, b"err".to_vec())]);
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
        assert_eq!(line.wrote(1, Stream::Stdout, "x".into()), Err(NoStep));
        assert!(line.input(1).is_err() && line.output_bytes_max(1, Stream::Stdout).is_err());
    }
}
