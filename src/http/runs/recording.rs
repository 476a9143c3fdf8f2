//! A whole run, to be replayed elsewhere: its recording, and the module that it ran.

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::value::RawValue;

use crate::api::Run;
use crate::http::App;
use crate::http::access::Person;
use crate::http::problem::Fault;
use crate::http::receive::{Id, Name};
use crate::journal::recording::{Content, Part};
use crate::limits::{KEPT_AT_ONCE, MODULE_BYTES_MAX, PAGE_ROWS_MAX, PIECE_BYTES};
use crate::names::Digest;
use crate::store::StoreError;

/// What is sent next of a recording.
enum Next {
    Run(Box<Run>),
    Lines(i64),
    Entries(i64),
    Contents(Option<Digest>),
    End,
}

/// A recording that is being sent.
struct Sending {
    app: App,
    id: String,
    next: Option<Next>,
    lines: u64,
    entries: u64,
}

/// A run's recording, for a replay: its log, its journal and the contents beside that, a JSON object a line.
#[utoipa::path(
    get, path = "/v1/runs/{id}/recording", tag = "runs", params(("id" = String, Path)),
    responses((status = 200, body = String, content_type = "application/x-ndjson"), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn recording(State(app): State<App>, person: Person, Name(id): Name<Id>) -> Result<Response, Fault> {
    let run: Run = super::find(&app, &person, &id).await?.into();
    let mut sending = Sending { app, id: id.0, next: Some(Next::Run(Box::new(run))), lines: 0, entries: 0 };
    let first = sending.piece().await?;
    // Most are one piece, and one answer: who fetches many waits for no second packet of each.
    let body = match &sending.next {
        None => Body::from(first),
        Some(_) => Body::from_stream(stream::once(async { Ok(first) }).chain(rest(sending))),
    };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// The module that a run ran, as it was uploaded.
#[utoipa::path(
    get, path = "/v1/runs/{id}/module", tag = "runs", params(("id" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/wasm"), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn module(State(app): State<App>, person: Person, Name(id): Name<Id>) -> Result<Response, Fault> {
    let run = super::find(&app, &person, &id).await?;
    let bytes = app.blobs.get(&run.module, MODULE_BYTES_MAX).await?;
    Ok(([(header::CONTENT_TYPE, "application/wasm")], bytes).into_response())
}

fn rest(sending: Sending) -> impl Stream<Item = Result<String, std::io::Error>> {
    stream::try_unfold(sending, async |mut sending| {
        let piece = sending.piece().await.map_err(std::io::Error::other)?;
        Ok(if piece.is_empty() { None } else { Some((piece, sending)) })
    })
}

impl Sending {
    /// What is sent at once; empty after the end.
    async fn piece(&mut self) -> Result<String, StoreError> {
        let mut piece = String::new();
        while piece.len() < PIECE_BYTES {
            let Some(next) = self.next.take() else { break };
            piece.push_str(&self.text(next).await?);
        }
        Ok(piece)
    }

    /// Some lines, and notes what comes after them.
    async fn text(&mut self, next: Next) -> Result<String, StoreError> {
        let (store, id) = (&self.app.store, self.id.as_str());
        let (parts, next) = match next {
            Next::Run(run) => (vec![Part::Run(run)], Some(Next::Lines(0))),
            Next::Lines(from) => {
                let rows = store.run_log(id, from, PAGE_ROWS_MAX).await?;
                self.lines += rows.len() as u64;
                let next = more(&rows, PAGE_ROWS_MAX).map_or(Next::Entries(0), |row| Next::Lines(row.seq + 1));
                (rows.into_iter().map(|row| Part::Line(row.into())).collect(), Some(next))
            }
            Next::Entries(from) => {
                let rows = store.run_journal(id, from, PAGE_ROWS_MAX).await?;
                let next = more(&rows, PAGE_ROWS_MAX).map_or(Next::Contents(None), |(seq, _)| Next::Entries(seq + 1));
                let entries: Vec<Part> =
                    rows.into_iter().filter_map(|(_, text)| RawValue::from_string(text).ok().map(Part::Entry)).collect();
                self.entries += entries.len() as u64;
                (entries, Some(next))
            }
            Next::Contents(after) => {
                let rows = store.run_contents(id, after.as_ref(), KEPT_AT_ONCE).await?;
                let next = more(&rows, KEPT_AT_ONCE).map_or(Next::End, |(digest, _)| Next::Contents(Some(*digest)));
                (rows.iter().map(|(digest, bytes)| Part::Content(Content::of(digest, bytes))).collect(), Some(next))
            }
            Next::End => (vec![Part::End { lines: self.lines, entries: self.entries }], None),
        };
        self.next = next;
        Ok(parts.iter().map(Part::to_line).collect())
    }
}

/// The last row of a full page: there may be more after it.
fn more<T>(rows: &[T], asked: u32) -> Option<&T> {
    rows.last().filter(|_| rows.len() >= asked as usize)
}
