//! A run's log and journal on their way to the store, and to whoever follows.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::journal::{Records, Taken};
use crate::limits::RECORDS_GATHER;
use crate::names::Digest;
use crate::provision::Provision;
use crate::sandbox::Outcome;
use crate::store::runs::LogRow;

/// Rows that are still to be written.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) log: Vec<LogRow>,
    pub(super) journal: Vec<(i64, String)>,
    contents: Vec<(Digest, Vec<u8>)>,
}

impl Rows {
    fn add(&mut self, taken: Taken) {
        let row =
            |line: crate::journal::Line| LogRow { seq: line.seq, at_us: line.at_us, level: line.level.as_str().into(), text: line.text };
        self.log.extend(taken.lines.into_iter().map(row));
        self.journal.extend(taken.entries);
        self.contents.extend(taken.contents);
    }
}

/// Who follows which run.
#[derive(Debug, Default)]
pub(super) struct Following {
    runs: Mutex<HashMap<String, watch::Sender<()>>>,
}

impl Following {
    pub(super) fn follow(&self, run: &str) -> Option<watch::Receiver<()>> {
        self.lock().get(run).map(watch::Sender::subscribe)
    }

    pub(super) fn ended(&self, run: &str) {
        self.lock().remove(run);
    }

    fn began(&self, run: &str) {
        self.lock().insert(run.to_owned(), watch::Sender::new(()));
    }

    fn more(&self, run: &str) {
        if let Some(sender) = self.lock().get(run) {
            sender.send_replace(());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, watch::Sender<()>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Provision {
    /// Stores what a run records while it goes on, and answers what came of it with what is still to be stored.
    pub(super) async fn record(&self, run: &str, records: &Records, running: impl Future<Output = Outcome>) -> (Outcome, Rows) {
        self.following.began(run);
        let mut running = std::pin::pin!(running);
        let mut rows = Rows::default();
        let outcome = loop {
            tokio::select! {
                outcome = &mut running => break outcome,
                () = records.gathered() => {}
            }
            tokio::select! {
                outcome = &mut running => break outcome,
                () = tokio::time::sleep(RECORDS_GATHER) => {}
            }
            rows.add(records.take());
            self.keep_contents(run, &mut rows).await;
            match self.store.append_records(run, &rows.log, &rows.journal).await {
                Ok(()) => rows = Rows { contents: rows.contents, ..Rows::default() },
                // They are tried again with the next ones, and at last with the run's end.
                Err(error) => tracing::error!(run, %error, "records of run {run} could not be stored yet"),
            }
            self.following.more(run);
        };
        rows.add(records.take());
        self.keep_contents(run, &mut rows).await;
        (outcome, rows)
    }

    /// Stores what stands beside the journal. It is not worth holding up a run's end: without it, the run can not be replayed.
    async fn keep_contents(&self, run: &str, rows: &mut Rows) {
        if rows.contents.is_empty() {
            return;
        }
        match self.store.append_contents(run, &rows.contents).await {
            Ok(()) => rows.contents.clear(),
            Err(error) => tracing::error!(run, %error, "contents of run {run} could not be stored yet"),
        }
    }
}
