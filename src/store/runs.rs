//! Runs, with their logs and journals.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use crate::limits::STORE_BATCH_ROWS;
use crate::names::{AgentName, Digest, LabelName};
use crate::store::agents::{self, AgentRow};
use crate::store::boots::{self, Boot};
use crate::store::columns::{is_orphan, is_taken, number, parsed, places, to_bigint, to_text};
use crate::store::{PageAsked, Paged, Result, Store, StoreError};

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRow {
    /// Its id, a UUID of version 7: ids sort by time.
    pub id: String,
    /// The agent's id.
    pub agent_id: String,
    /// The agent's name.
    pub agent: AgentName,
    /// The label.
    pub label: LabelName,
    /// The release.
    pub release: i64,
    /// The module's digest.
    pub module: Digest,
    /// Which attempt at this release, for this agent.
    pub attempt: u32,
    /// `running`, or the verdict's word.
    pub verdict: String,
    /// What the module or the server said about it.
    pub reason: Option<String>,
    /// When it began.
    pub began_us: i64,
    /// When it ended.
    pub ended_us: Option<i64>,
    /// Calls made.
    pub calls: u64,
    /// Bytes of bundle content that were sent.
    pub bytes_sent: u64,
    /// Bytes of bundle content that the agent had already.
    pub bytes_saved: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEnd {
    /// The verdict's word.
    pub verdict: String,
    /// What the module or the server said about it.
    pub reason: Option<String>,
    /// When it ended.
    pub ended_us: i64,
    /// Calls made.
    pub calls: u64,
    /// Bytes of bundle content that were sent.
    pub bytes_sent: u64,
    /// Bytes of bundle content that the agent had already.
    pub bytes_saved: u64,
    /// Set if it is the first run of its label that succeeded since the agent's program was started.
    pub boot: Option<Boot>,
}

/// One line of a run's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    /// Its place in the log, from 0.
    pub seq: i64,
    /// When.
    pub at_us: i64,
    /// The level's word.
    pub level: String,
    /// The text. A NUL in it is stored as U+FFFD: PostgreSQL has none.
    pub text: String,
}

/// Which runs a listing shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Of agents with this name.
    pub agent: Option<AgentName>,
    /// For this label.
    pub label: Option<LabelName>,
    /// For one of these labels: what a team may see. With an empty list, none.
    pub labels: Option<Vec<LabelName>>,
}

impl Store {
    /// Writes a run that begins.
    ///
    /// # Errors
    /// A conflict if the id is taken; missing if its agent is.
    pub async fn begin_run(&self, run: &RunRow) -> Result<()> {
        let sql = "INSERT INTO runs (id, agent_id, agent, label, release, module, attempt, verdict, reason, began_us, ended_us, calls, bytes_sent, bytes_saved) \
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";
        let query = sqlx::query(sql)
            .bind(&run.id)
            .bind(&run.agent_id)
            .bind(run.agent.as_str())
            .bind(run.label.as_str())
            .bind(run.release)
            .bind(run.module.to_string())
            .bind(i64::from(run.attempt))
            .bind(&run.verdict)
            .bind(run.reason.as_deref().map(to_text))
            .bind(run.began_us)
            .bind(run.ended_us)
            .bind(to_bigint(run.calls))
            .bind(to_bigint(run.bytes_sent))
            .bind(to_bigint(run.bytes_saved));
        match query.execute(&self.write).await {
            Err(error) if is_taken(&error) => Err(StoreError::Conflict(format!("there is a run {} already", run.id))),
            Err(error) if is_orphan(&error) => Err(StoreError::Missing(format!("there is no agent with id {}", run.agent_id))),
            other => Ok(other.map(drop)?),
        }
    }

    /// Writes lines of a run's log and entries of its journal, all of them or none. One whose `seq` is there already is passed over: it was
    /// written by a call whose answer was lost.
    ///
    /// # Errors
    /// Missing if the run is.
    pub async fn append_records(&self, run_id: &str, log: &[LogRow], journal: &[(i64, String)]) -> Result<()> {
        let mut tx = self.begin().await?;
        append(&mut tx, run_id, log, journal).await?;
        Ok(tx.commit().await?)
    }

    /// Ends a run in one transaction: its last records, its verdict, its boot if it is one, and its agent's new row with an event.
    ///
    /// An agent that is gone in the store stays as it is, and the run ends all the same.
    ///
    /// # Errors
    /// A conflict if the run has ended already; missing if there is none. Nothing was written then.
    pub async fn end_run(
        &self,
        run_id: &str,
        end: &RunEnd,
        log: &[LogRow],
        journal: &[(i64, String)],
        agent: Option<(&AgentRow, &str)>,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let sql = "UPDATE runs SET verdict = $2, reason = $3, ended_us = $4, calls = $5, bytes_sent = $6, bytes_saved = $7 \
            WHERE id = $1 AND ended_us IS NULL";
        let query = sqlx::query(sql)
            .bind(run_id)
            .bind(&end.verdict)
            .bind(end.reason.as_deref().map(to_text))
            .bind(end.ended_us)
            .bind(to_bigint(end.calls))
            .bind(to_bigint(end.bytes_sent))
            .bind(to_bigint(end.bytes_saved));
        if query.execute(&mut *tx).await?.rows_affected() == 0 {
            let known = sqlx::query("SELECT 1 FROM runs WHERE id = $1").bind(run_id).fetch_optional(&mut *tx).await?.is_some();
            return Err(match known {
                true => StoreError::Conflict(format!("the run {run_id} has ended already")),
                false => StoreError::Missing(format!("there is no run {run_id}")),
            });
        }
        append(&mut tx, run_id, log, journal).await?;
        if let Some(boot) = &end.boot {
            boots::add(&mut tx, run_id, end, boot).await?;
        }
        if let Some((agent, cause)) = agent {
            agents::update(&mut tx, agent, Some(cause)).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Reads every run that has not ended.
    ///
    /// # Errors
    /// The database is not available, or a row can not be read.
    pub async fn unfinished_runs(&self) -> Result<Vec<RunRow>> {
        let rows = sqlx::query("SELECT * FROM runs WHERE ended_us IS NULL ORDER BY id").fetch_all(&self.read).await?;
        rows.iter().map(run_row).collect()
    }

    /// Reads one run.
    ///
    /// # Errors
    /// The database is not available, or the row can not be read.
    pub async fn run(&self, id: &str) -> Result<Option<RunRow>> {
        let row = sqlx::query("SELECT * FROM runs WHERE id = $1").bind(id).fetch_optional(&self.read).await?;
        row.as_ref().map(run_row).transpose()
    }

    /// Lists runs, newest first.
    ///
    /// # Errors
    /// A cursor that is none, a database that is not available, a row that can not be read.
    pub async fn runs(&self, filter: &RunFilter, page: &PageAsked) -> Result<Paged<RunRow>> {
        // Each list of values has a condition of its own, and a value is only ever bound.
        let one = |name: &'static str, value: Option<&str>| value.map(|value| (name, vec![value.to_string()]));
        let lists = [
            one("id <", page.id_key()?),
            one("agent =", filter.agent.as_ref().map(AgentName::as_str)),
            one("label =", filter.label.as_ref().map(LabelName::as_str)),
            // With an agent it is the agent's runs that are few: the expression keeps the database from going by the label instead.
            filter.labels.as_ref().map(|labels| {
                let column = if filter.agent.is_some() { "label || '' IN" } else { "label IN" };
                (column, labels.iter().map(ToString::to_string).collect())
            }),
        ];
        let mut sql = String::from("SELECT * FROM runs WHERE 1 = 1");
        let mut values = vec![];
        for (condition, list) in lists.into_iter().flatten() {
            if list.is_empty() {
                return Ok(Paged { items: vec![], next: None });
            }
            let places: Vec<String> = (1..=list.len()).map(|place| format!("${}", values.len() + place)).collect();
            sql.push_str(&format!(" AND {condition} ({})", places.join(", ")));
            values.extend(list);
        }
        sql.push_str(&format!(" ORDER BY id DESC LIMIT ${}", values.len() + 1));
        let query = values.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, value| query.bind(value)).bind(page.rows());
        let rows = query.fetch_all(&self.read).await?;
        Ok(page.cut(rows.iter().map(run_row).collect::<Result<_>>()?, |run| run.id.clone()))
    }

    /// Reads up to `limit` lines of a run's log, from `from_seq` on.
    ///
    /// # Errors
    /// The database is not available, or a row can not be read.
    pub async fn run_log(&self, run_id: &str, from_seq: i64, limit: u32) -> Result<Vec<LogRow>> {
        let sql = "SELECT seq, at_us, level, text FROM run_log WHERE run_id = $1 AND seq >= $2 ORDER BY seq LIMIT $3";
        let rows = sqlx::query(sql).bind(run_id).bind(from_seq).bind(i64::from(limit)).fetch_all(&self.read).await?;
        let line = |row: &AnyRow| {
            Ok(LogRow { seq: row.try_get("seq")?, at_us: row.try_get("at_us")?, level: row.try_get("level")?, text: row.try_get("text")? })
        };
        rows.iter().map(line).collect()
    }

    /// Reads up to `limit` entries of a run's journal with their places, from `from_seq` on.
    ///
    /// # Errors
    /// The database is not available, or a row can not be read.
    pub async fn run_journal(&self, run_id: &str, from_seq: i64, limit: u32) -> Result<Vec<(i64, String)>> {
        let sql = "SELECT seq, entry FROM run_journal WHERE run_id = $1 AND seq >= $2 ORDER BY seq LIMIT $3";
        let rows = sqlx::query(sql).bind(run_id).bind(from_seq).bind(i64::from(limit)).fetch_all(&self.read).await?;
        rows.iter().map(|row| Ok((row.try_get("seq")?, row.try_get("entry")?))).collect()
    }
}

async fn append(tx: &mut AnyConnection, run_id: &str, log: &[LogRow], journal: &[(i64, String)]) -> Result<()> {
    for batch in log.chunks(STORE_BATCH_ROWS) {
        let sql = format!(
            "INSERT INTO run_log (run_id, seq, at_us, level, text) VALUES {} ON CONFLICT (run_id, seq) DO NOTHING",
            places(batch.len(), 5)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(batch.len() == STORE_BATCH_ROWS);
        for line in batch {
            query = query.bind(run_id).bind(line.seq).bind(line.at_us).bind(&line.level).bind(to_text(&line.text));
        }
        query.execute(&mut *tx).await.map_err(|error| not_appended(error, run_id))?;
    }
    for batch in journal.chunks(STORE_BATCH_ROWS) {
        let sql =
            format!("INSERT INTO run_journal (run_id, seq, entry) VALUES {} ON CONFLICT (run_id, seq) DO NOTHING", places(batch.len(), 3));
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(batch.len() == STORE_BATCH_ROWS);
        for (seq, entry) in batch {
            query = query.bind(run_id).bind(seq).bind(to_text(entry));
        }
        query.execute(&mut *tx).await.map_err(|error| not_appended(error, run_id))?;
    }
    Ok(())
}

fn not_appended(error: sqlx::Error, run_id: &str) -> StoreError {
    if is_orphan(&error) { StoreError::Missing(format!("there is no run {run_id}")) } else { error.into() }
}

fn run_row(row: &AnyRow) -> Result<RunRow> {
    Ok(RunRow {
        id: row.try_get("id")?,
        agent_id: row.try_get("agent_id")?,
        agent: parsed(row, "agent")?,
        label: parsed(row, "label")?,
        release: row.try_get("release")?,
        module: parsed(row, "module")?,
        attempt: number(row, "attempt")?,
        verdict: row.try_get("verdict")?,
        reason: row.try_get("reason")?,
        began_us: row.try_get("began_us")?,
        ended_us: row.try_get("ended_us")?,
        calls: number(row, "calls")?,
        bytes_sent: number(row, "bytes_sent")?,
        bytes_saved: number(row, "bytes_saved")?,
    })
}
