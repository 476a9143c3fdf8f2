//! Runs: listed, shown, and followed.

pub(crate) mod recording;

use std::convert::Infallible;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::Stream;
use serde::Deserialize;

use crate::api::{LogLine, Page, Run};
use crate::http::App;
use crate::http::access::Person;
use crate::http::problem::Fault;
use crate::http::receive::{Asked, Id, Name, page};
use crate::limits::PAGE_ROWS_MAX;
use crate::names::{AgentName, LabelName};
use crate::provision::RUNNING;
use crate::store::runs::{LogRow, RunFilter, RunRow};

impl From<RunRow> for Run {
    fn from(row: RunRow) -> Self {
        Self {
            id: row.id,
            agent: row.agent.to_string(),
            label: row.label.to_string(),
            release: row.release,
            module: row.module.to_string(),
            attempt: row.attempt,
            verdict: row.verdict,
            reason: row.reason,
            began_us: row.began_us,
            ended_us: row.ended_us,
            calls: row.calls,
            bytes_sent: row.bytes_sent,
            bytes_saved: row.bytes_saved,
        }
    }
}

impl From<LogRow> for LogLine {
    fn from(row: LogRow) -> Self {
        Self { seq: row.seq, at_us: row.at_us, level: row.level, text: row.text }
    }
}

/// Which runs.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Those of this agent.
    #[param(value_type = Option<String>)]
    agent: Option<AgentName>,
    /// Those of this label.
    #[param(value_type = Option<String>)]
    label: Option<LabelName>,
    /// What the page before gave as `next`.
    cursor: Option<String>,
    /// Rows at most.
    limit: Option<u32>,
}

/// Lists runs, newest first.
#[utoipa::path(get, path = "/v1/runs", tag = "runs", params(Which), responses((status = 200, body = Page<Run>)))]
pub(crate) async fn list(State(app): State<App>, person: Person, Asked(which): Asked<Which>) -> Result<axum::Json<Page<Run>>, Fault> {
    let filter = RunFilter { agent: which.agent, label: which.label, labels: person.labels(&app) };
    let rows = app.store.runs(&filter, &page(which.cursor, which.limit)).await?;
    Ok(axum::Json(Page { items: rows.items.into_iter().map(Run::from).collect(), next: rows.next }))
}

async fn find(app: &App, person: &Person, id: &Id) -> Result<RunRow, Fault> {
    let labels = person.labels(app);
    let row = app.store.run(&id.0).await?.filter(|row| labels.as_ref().is_none_or(|labels| labels.contains(&row.label)));
    row.ok_or_else(|| {
        Fault::not_found("no-run", "there is no such run, or its label is another team's").with_hint("`muster run ls` lists them")
    })
}

/// Shows a run.
#[utoipa::path(get, path = "/v1/runs/{id}", tag = "runs", params(("id" = String, Path)), responses((status = 200, body = Run)))]
pub(crate) async fn show(State(app): State<App>, person: Person, Name(id): Name<Id>) -> Result<axum::Json<Run>, Fault> {
    Ok(axum::Json(find(&app, &person, &id).await?.into()))
}

/// A run's log: text, or with `Accept: text/event-stream` its lines as they come, until the run has ended.
#[utoipa::path(
    get, path = "/v1/runs/{id}/log", tag = "runs", params(("id" = String, Path)),
    responses((status = 200, body = String, content_type = "text/plain"), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn log(State(app): State<App>, person: Person, Name(id): Name<Id>, headers: HeaderMap) -> Result<Response, Fault> {
    find(&app, &person, &id).await?;
    let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    if text(header::ACCEPT).is_some_and(|accept| accept.contains("text/event-stream")) {
        let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<i64>().ok());
        let lines = follow(app, id.0, last.map_or(0, |last| last.saturating_add(1)));
        return Ok(Sse::new(lines).keep_alive(KeepAlive::default()).into_response());
    }
    let body = paged(app, id.0, async |app: &App, id: &str, from| {
        let rows = app.store.run_log(id, from, PAGE_ROWS_MAX).await?;
        let last = rows.last().map(|row| row.seq);
        let text = rows.iter().map(|row| format!("{} {:6} {}\n", time(row.at_us), row.level, row.text)).collect();
        Ok((last, text))
    });
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], axum::body::Body::from_stream(body)).into_response())
}

/// A run's journal: every call with its answer, a JSON object a line.
#[utoipa::path(
    get, path = "/v1/runs/{id}/journal", tag = "runs", params(("id" = String, Path)),
    responses((status = 200, body = String, content_type = "application/x-ndjson"), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn journal(State(app): State<App>, person: Person, Name(id): Name<Id>) -> Result<Response, Fault> {
    find(&app, &person, &id).await?;
    let body = paged(app, id.0, async |app: &App, id: &str, from| {
        let rows = app.store.run_journal(id, from, PAGE_ROWS_MAX).await?;
        let last = rows.last().map(|(seq, _)| *seq);
        let text = rows.into_iter().map(|(_, entry)| entry + "\n").collect();
        Ok((last, text))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], axum::body::Body::from_stream(body)).into_response())
}

/// A text that is read from the store page by page, as it is sent.
fn paged(
    app: App,
    id: String,
    read: impl AsyncFn(&App, &str, i64) -> Result<(Option<i64>, String), crate::store::StoreError>,
) -> impl Stream<Item = Result<String, std::io::Error>> {
    futures_util::stream::try_unfold((app, id, read, Some(0)), async |(app, id, read, from)| {
        let Some(from) = from else { return Ok(None) };
        let (last, text) = read(&app, &id, from).await.map_err(std::io::Error::other)?;
        Ok(last.map(|last| (text, (app, id, read, Some(last + 1)))))
    })
}

struct Follow {
    app: App,
    id: String,
    from: i64,
    lines: std::collections::VecDeque<LogRow>,
    done: bool,
}

/// The lines of a run from a place on, as they come, and at last the verdict.
fn follow(app: App, id: String, from: i64) -> impl Stream<Item = Result<Event, Infallible>> {
    let follow = Follow { app, id, from, lines: std::collections::VecDeque::new(), done: false };
    futures_util::stream::unfold(follow, async |mut follow| {
        if follow.done {
            return None;
        }
        let event = follow.next().await?;
        Some((Ok(event), follow))
    })
}

impl Follow {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(row) = self.lines.pop_front() {
                self.from = row.seq + 1;
                let seq = row.seq.to_string();
                return Event::default().event("line").id(seq).json_data(LogLine::from(row)).ok();
            }
            // The order matters: who asks for news first, and reads then, misses none that comes in between.
            let news = self.app.provision.follow(&self.id);
            let ended = self.app.store.run(&self.id).await.ok()??.verdict;
            self.lines = self.app.store.run_log(&self.id, self.from, PAGE_ROWS_MAX).await.ok()?.into();
            if !self.lines.is_empty() {
                continue;
            }
            if ended != RUNNING {
                self.done = true;
                return Some(Event::default().event("end").data(ended));
            }
            match news {
                Some(mut news) => tokio::select! {
                    // An error says that the run has ended; the store knows its last lines by then.
                    _ = news.changed() => {}
                    () = self.app.ending.cancelled() => return None,
                },
                // It runs elsewhere, or ends just now.
                None => tokio::time::sleep(crate::limits::RECORDS_GATHER).await,
            }
        }
    }
}

/// The time of day, in UTC.
fn time(at_us: i64) -> String {
    jiff::Timestamp::from_microsecond(at_us).map(|at| at.strftime("%H:%M:%S%.3f").to_string()).unwrap_or_default()
}
