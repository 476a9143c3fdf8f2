//! Clearing away what is older or more than is kept.

use crate::limits::STORE_BATCH_ROWS;
use crate::store::columns::to_bigint;
use crate::store::{Result, Store};

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Runs of each agent that ended. One that has not is always kept.
    pub runs_per_agent: u32,
    /// How long the log and the journal of a run are kept after its end.
    pub records_us: i64,
    /// Changes of state of each agent.
    pub events_per_agent: u32,
    /// How long an agent that is gone is kept, with its runs.
    pub gone_us: i64,
    /// How long a boot is kept.
    pub boots_us: i64,
    /// Boots of each label.
    pub boots_per_label: u32,
    /// Bytes of the contents beside all journals, as they are stored.
    pub contents_bytes: u64,
}

/// What was cleared away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Runs.
    pub runs: u64,
    /// Lines of logs, entries of journals and contents beside them.
    pub records: u64,
    /// Changes of state, but for those of agents that were cleared away.
    pub events: u64,
    /// Agents.
    pub agents: u64,
    /// Boots.
    pub boots: u64,
}

impl Store {
    /// Deletes what is beyond `kept` at `now_us`, a bounded number of rows at a time, so that no other write waits long for it.
    ///
    /// When it is cut off, what it deleted stays deleted, and the next call goes on.
    ///
    /// # Errors
    /// The database is not available.
    pub async fn clear(&self, now_us: i64, kept: &Kept) -> Result<Cleared> {
        let mut cleared = Cleared::default();
        self.clear_gone(now_us.saturating_sub(kept.gone_us), &mut cleared).await?;
        self.clear_runs(kept.runs_per_agent, &mut cleared).await?;
        self.clear_old_records(now_us.saturating_sub(kept.records_us), &mut cleared).await?;
        self.clear_events(kept.events_per_agent, &mut cleared).await?;
        self.clear_contents(kept.contents_bytes, &mut cleared).await?;
        self.clear_boots(now_us.saturating_sub(kept.boots_us), kept.boots_per_label, &mut cleared).await?;
        Ok(cleared)
    }

    async fn clear_gone(&self, before_us: i64, cleared: &mut Cleared) -> Result<()> {
        loop {
            let sql = "SELECT id FROM agents WHERE state = 'gone' AND since_us < $1 LIMIT $2";
            let ids: Vec<String> = sqlx::query_scalar(sql).bind(before_us).bind(batch()).fetch_all(&self.read).await?;
            if ids.is_empty() {
                return Ok(());
            }
            for id in ids {
                // A run that did not end goes too: nobody will end it any more.
                let sql = "SELECT id FROM runs WHERE agent_id = $1";
                let runs: Vec<String> = sqlx::query_scalar(sql).bind(&id).fetch_all(&self.read).await?;
                for run in runs {
                    self.delete_run(&run, cleared).await?;
                }
                let deleted = sqlx::query("DELETE FROM agents WHERE id = $1").bind(&id).execute(&self.write).await?;
                cleared.agents += deleted.rows_affected();
            }
        }
    }

    async fn clear_runs(&self, kept: u32, cleared: &mut Cleared) -> Result<()> {
        let sql = "SELECT agent_id FROM runs GROUP BY agent_id HAVING COUNT(*) > $1";
        let agents: Vec<String> = sqlx::query_scalar(sql).bind(i64::from(kept)).fetch_all(&self.read).await?;
        for agent in agents {
            let sql = "SELECT id FROM runs WHERE agent_id = $1 AND ended_us IS NOT NULL ORDER BY id DESC LIMIT $2 OFFSET $3";
            let query = sqlx::query_scalar(sql).bind(agent).bind(i64::MAX).bind(i64::from(kept));
            let runs: Vec<String> = query.fetch_all(&self.read).await?;
            for run in runs {
                self.delete_run(&run, cleared).await?;
            }
        }
        Ok(())
    }

    async fn clear_old_records(&self, before_us: i64, cleared: &mut Cleared) -> Result<()> {
        loop {
            let sql = "SELECT id FROM runs WHERE records = 1 AND ended_us < $1 LIMIT $2";
            let runs: Vec<String> = sqlx::query_scalar(sql).bind(before_us).bind(batch()).fetch_all(&self.read).await?;
            if runs.is_empty() {
                return Ok(());
            }
            for run in runs {
                self.delete_records(&run, cleared).await?;
                sqlx::query("UPDATE runs SET records = 0 WHERE id = $1").bind(run).execute(&self.write).await?;
            }
        }
    }

    /// The oldest runs lose theirs first.
    async fn clear_contents(&self, kept_bytes: u64, cleared: &mut Cleared) -> Result<()> {
        let sql = "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM run_contents";
        let mut bytes: i64 = sqlx::query_scalar(sql).fetch_one(&self.read).await?;
        while bytes > to_bigint(kept_bytes) {
            let sql = "SELECT run_id, CAST(SUM(bytes) AS BIGINT) FROM run_contents GROUP BY run_id ORDER BY run_id LIMIT $1";
            let runs: Vec<(String, i64)> = sqlx::query_as(sql).bind(batch()).fetch_all(&self.read).await?;
            if runs.is_empty() {
                return Ok(());
            }
            for (run, own) in runs {
                if bytes <= to_bigint(kept_bytes) {
                    return Ok(());
                }
                self.delete_contents(&run, cleared).await?;
                bytes = bytes.saturating_sub(own);
            }
        }
        Ok(())
    }

    async fn clear_events(&self, kept: u32, cleared: &mut Cleared) -> Result<()> {
        let sql = "SELECT agent_id FROM agent_events GROUP BY agent_id HAVING COUNT(*) > $1";
        let agents: Vec<String> = sqlx::query_scalar(sql).bind(i64::from(kept)).fetch_all(&self.read).await?;
        for agent in agents {
            let sql = "DELETE FROM agent_events WHERE agent_id = $1 AND seq IN (SELECT seq FROM agent_events WHERE agent_id = $1 \
                AND seq <= (SELECT MAX(seq) FROM agent_events WHERE agent_id = $1) - $2 LIMIT $3)";
            loop {
                let query = sqlx::query(sql).bind(&agent).bind(i64::from(kept)).bind(batch());
                match query.execute(&self.write).await?.rows_affected() {
                    0 => break,
                    deleted => cleared.events += deleted,
                }
            }
        }
        Ok(())
    }

    async fn clear_boots(&self, before_us: i64, kept: u32, cleared: &mut Cleared) -> Result<()> {
        let labels: Vec<String> = sqlx::query_scalar("SELECT DISTINCT label FROM boots").fetch_all(&self.read).await?;
        for label in labels {
            // The newest of those that are too many, if there are.
            let sql = "SELECT at_us FROM boots WHERE label = $1 ORDER BY at_us DESC LIMIT 1 OFFSET $2";
            let surplus: Option<i64> = sqlx::query_scalar(sql).bind(&label).bind(i64::from(kept)).fetch_optional(&self.read).await?;
            let before_us = surplus.map_or(before_us, |at_us| before_us.max(at_us.saturating_add(1)));
            let sql = "DELETE FROM boots WHERE label = $1 AND at_us < $2 \
                AND run_id IN (SELECT run_id FROM boots WHERE label = $1 AND at_us < $2 LIMIT $3)";
            loop {
                match sqlx::query(sql).bind(&label).bind(before_us).bind(batch()).execute(&self.write).await?.rows_affected() {
                    0 => break,
                    deleted => cleared.boots += deleted,
                }
            }
        }
        Ok(())
    }

    async fn delete_run(&self, run: &str, cleared: &mut Cleared) -> Result<()> {
        self.delete_records(run, cleared).await?;
        cleared.runs += sqlx::query("DELETE FROM runs WHERE id = $1").bind(run).execute(&self.write).await?.rows_affected();
        Ok(())
    }

    async fn delete_records(&self, run: &str, cleared: &mut Cleared) -> Result<()> {
        let log = "DELETE FROM run_log WHERE run_id = $1 AND seq IN (SELECT seq FROM run_log WHERE run_id = $1 LIMIT $2)";
        let journal = "DELETE FROM run_journal WHERE run_id = $1 AND seq IN (SELECT seq FROM run_journal WHERE run_id = $1 LIMIT $2)";
        for sql in [log, journal] {
            loop {
                match sqlx::query(sql).bind(run).bind(batch()).execute(&self.write).await?.rows_affected() {
                    0 => break,
                    deleted => cleared.records += deleted,
                }
            }
        }
        self.delete_contents(run, cleared).await
    }

    async fn delete_contents(&self, run: &str, cleared: &mut Cleared) -> Result<()> {
        // A run has few: they are limited, and each counts as more than an entry may hold.
        let deleted = sqlx::query("DELETE FROM run_contents WHERE run_id = $1").bind(run).execute(&self.write).await?;
        cleared.records += deleted.rows_affected();
        Ok(())
    }
}

fn batch() -> i64 {
    to_bigint(STORE_BATCH_ROWS as u64)
}
