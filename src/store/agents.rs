//! Agents, and the changes of their states.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AssertSqlSafe, Row};

use crate::api::{AgentEvent, AgentState};
use crate::limits::STORE_SEEN_BATCH_ROWS;
use crate::names::{AgentName, LabelName, TeamName};
use crate::store::boots::Booted;
use crate::store::columns::{is_taken, json, json_if_any, parsed, parsed_if_any, places, to_json, to_text, to_word, word};
use crate::store::{PageAsked, Paged, Result, Store, StoreError};

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRow {
    /// Its id; never used twice.
    pub id: String,
    /// Its name. At most one agent that is not gone has it.
    pub name: AgentName,
    /// A hash of its own credential.
    pub credential_hash: String,
    /// The token that admitted it.
    pub token_id: String,
    /// The team that its token belongs to.
    pub team: Option<TeamName>,
    /// What it said of itself, as JSON.
    pub claims: String,
    /// The labels that it was admitted with.
    pub labels: Vec<LabelName>,
    /// Its state.
    pub state: AgentState,
    /// Why it is in that state.
    pub reason: String,
    /// Since when.
    pub since_us: i64,
    /// When it is tried again, if it failed and is.
    pub retry_at_us: Option<i64>,
    /// Why a person drained it, if one did: it is drained still when it was lost meanwhile.
    pub drained: Option<String>,
    /// How many attempts at provisioning failed in a row.
    pub attempt: i64,
    /// The release that each of its labels was provisioned with.
    pub releases: BTreeMap<LabelName, i64>,
    /// Which start of the agent program it is.
    pub instance: Option<String>,
    /// Which labels succeeded since which start of the agent program.
    pub booted: Booted,
    /// A hash of the key that lets the same machine repeat its first registration.
    pub registration_key_hash: Option<String>,
    /// When it was last heard of.
    pub last_seen_us: i64,
    /// When it registered.
    pub registered_us: i64,
}

impl Store {
    /// Writes a new agent with its first event; with `replacing`, the agent of that id becomes gone in the same transaction.
    ///
    /// # Errors
    /// A conflict if another agent that is not gone has the name, if the id is taken, or if the agent to be replaced is gone already.
    pub async fn insert_agent(&self, agent: &AgentRow, cause: &str, replacing: Option<&str>) -> Result<()> {
        let mut tx = self.begin().await?;
        if let Some(old) = replacing {
            let sql = "UPDATE agents SET state = 'gone', reason = $2, since_us = $3, retry_at_us = NULL WHERE id = $1 AND state <> 'gone'";
            let reason = "replaced by a new registration of its name";
            let query = sqlx::query(sql).bind(old).bind(reason).bind(agent.since_us);
            if query.execute(&mut *tx).await?.rows_affected() == 0 {
                return Err(StoreError::Conflict(format!("the agent {old} that was to be replaced is gone already")));
            }
            add_event(&mut tx, old, agent.since_us, AgentState::Gone, reason).await?;
        }
        let sql = "INSERT INTO agents (id, name, credential_hash, token_id, team, claims, labels, state, reason, since_us, retry_at_us, \
            attempt, releases, instance, registration_key_hash, last_seen_us, registered_us, drained, booted) \
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)";
        match bound(sql, agent)?.execute(&mut *tx).await {
            Err(error) if is_taken(&error) => {
                return Err(StoreError::Conflict(format!("there is an agent {} already", agent.name)));
            }
            other => other?,
        };
        add_event(&mut tx, &agent.id, agent.since_us, agent.state, cause).await?;
        Ok(tx.commit().await?)
    }

    /// Writes the whole row of an agent; with a cause, also an event with its state, at `since_us`.
    ///
    /// # Errors
    /// Missing if there is no such agent or it is gone in the store: an agent that is gone stays so.
    pub async fn update_agent(&self, agent: &AgentRow, cause: Option<&str>) -> Result<()> {
        let mut tx = self.begin().await?;
        if !update(&mut tx, agent, cause).await? {
            return Err(StoreError::Missing(format!("there is no agent {} with id {}, or it is gone", agent.name, agent.id)));
        }
        Ok(tx.commit().await?)
    }

    /// Writes when agents were last heard of, all in one transaction. An id that is not there is passed over; no time goes back.
    ///
    /// # Errors
    /// The database is not available.
    pub async fn update_agents_seen(&self, seen: &[(String, i64)]) -> Result<()> {
        // Two servers that write the same rows lock them in the same order.
        let mut seen: Vec<&(String, i64)> = seen.iter().collect();
        seen.sort_unstable();
        let mut tx = self.begin().await?;
        for batch in seen.chunks(STORE_SEEN_BATCH_ROWS) {
            let sql = format!(
                "UPDATE agents SET last_seen_us = v.column2 FROM (VALUES {}) AS v \
                WHERE agents.id = v.column1 AND agents.last_seen_us < v.column2",
                places(batch.len(), 2)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(batch.len() == STORE_SEEN_BATCH_ROWS);
            for (id, at_us) in batch {
                query = query.bind(id).bind(at_us);
            }
            query.execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Reads every agent that is not gone.
    ///
    /// # Errors
    /// The database is not available, or a row can not be read.
    pub async fn living_agents(&self) -> Result<Vec<AgentRow>> {
        let mut agents = Vec::new();
        let mut rows = sqlx::query("SELECT * FROM agents WHERE state <> 'gone'").fetch(&self.read);
        while let Some(row) = rows.try_next().await? {
            agents.push(agent_row(&row)?);
        }
        Ok(agents)
    }

    /// Reads the agent of a name: the one that is not gone, or else the one that went last.
    ///
    /// # Errors
    /// The database is not available, or the row can not be read.
    pub async fn agent_by_name(&self, name: &AgentName) -> Result<Option<AgentRow>> {
        let sql = "SELECT * FROM agents WHERE name = $1 ORDER BY CASE WHEN state = 'gone' THEN 1 ELSE 0 END, since_us DESC LIMIT 1";
        sqlx::query(sql).bind(name.as_str()).fetch_optional(&self.read).await?.as_ref().map(agent_row).transpose()
    }

    /// Lists agents that are gone, highest id first.
    ///
    /// # Errors
    /// A cursor that is none, a database that is not available, a row that can not be read.
    pub async fn agents_gone(&self, page: &PageAsked) -> Result<Paged<AgentRow>> {
        let sql = "SELECT * FROM agents WHERE state = 'gone' AND ($1 IS NULL OR id < $1) ORDER BY id DESC LIMIT $2";
        let rows = sqlx::query(sql).bind(page.id_key()?).bind(page.rows()).fetch_all(&self.read).await?;
        Ok(page.cut(rows.iter().map(agent_row).collect::<Result<_>>()?, |agent| agent.id.clone()))
    }

    /// Reads the last changes of an agent's state, newest first.
    ///
    /// # Errors
    /// The database is not available, or a row can not be read.
    pub async fn agent_events(&self, agent_id: &str, limit: u32) -> Result<Vec<AgentEvent>> {
        let sql = "SELECT at_us, state, cause FROM agent_events WHERE agent_id = $1 ORDER BY seq DESC LIMIT $2";
        let rows = sqlx::query(sql).bind(agent_id).bind(i64::from(limit)).fetch_all(&self.read).await?;
        let event =
            |row: &AnyRow| Ok(AgentEvent { at_us: row.try_get("at_us")?, state: word(row, "state")?, cause: row.try_get("cause")? });
        rows.iter().map(event).collect()
    }
}

/// Writes the whole row of an agent, and with a cause an event; `false` if it is not there or is gone.
pub(super) async fn update(tx: &mut AnyConnection, agent: &AgentRow, cause: Option<&str>) -> Result<bool> {
    let sql = "UPDATE agents SET name = $2, credential_hash = $3, token_id = $4, team = $5, claims = $6, labels = $7, state = $8, \
        reason = $9, since_us = $10, retry_at_us = $11, attempt = $12, releases = $13, instance = $14, registration_key_hash = $15, \
        last_seen_us = $16, registered_us = $17, drained = $18, booted = $19 WHERE id = $1 AND state <> 'gone'";
    if bound(sql, agent)?.execute(&mut *tx).await?.rows_affected() == 0 {
        return Ok(false);
    }
    if let Some(cause) = cause {
        add_event(tx, &agent.id, agent.since_us, agent.state, cause).await?;
    }
    Ok(true)
}

/// Writes an event. The agent's row was written before in the same transaction, so two events do not ask for the same place.
async fn add_event(tx: &mut AnyConnection, agent_id: &str, at_us: i64, state: AgentState, cause: &str) -> Result<()> {
    let sql = "INSERT INTO agent_events (agent_id, seq, at_us, state, cause) \
        SELECT $1, COALESCE(MAX(seq), 0) + 1, $2, $3, $4 FROM agent_events WHERE agent_id = $1";
    let query = sqlx::query(sql).bind(agent_id).bind(at_us).bind(to_word("state", &state)?).bind(to_text(cause));
    query.execute(tx).await?;
    Ok(())
}

fn bound<'q>(sql: &'static str, agent: &'q AgentRow) -> Result<Query<'q, Any, AnyArguments>> {
    Ok(sqlx::query(sql)
        .bind(&agent.id)
        .bind(agent.name.as_str())
        .bind(&agent.credential_hash)
        .bind(&agent.token_id)
        .bind(agent.team.as_ref().map(TeamName::as_str))
        .bind(&agent.claims)
        .bind(to_json("labels", &agent.labels)?)
        .bind(to_word("state", &agent.state)?)
        .bind(to_text(&agent.reason))
        .bind(agent.since_us)
        .bind(agent.retry_at_us)
        .bind(agent.attempt)
        .bind(to_json("releases", &agent.releases)?)
        .bind(agent.instance.as_deref().map(to_text))
        .bind(&agent.registration_key_hash)
        .bind(agent.last_seen_us)
        .bind(agent.registered_us)
        .bind(agent.drained.as_deref().map(to_text))
        .bind(to_json("booted", &agent.booted)?))
}

fn agent_row(row: &AnyRow) -> Result<AgentRow> {
    Ok(AgentRow {
        id: row.try_get("id")?,
        name: parsed(row, "name")?,
        credential_hash: row.try_get("credential_hash")?,
        token_id: row.try_get("token_id")?,
        team: parsed_if_any(row, "team")?,
        claims: row.try_get("claims")?,
        labels: json(row, "labels")?,
        state: word(row, "state")?,
        reason: row.try_get("reason")?,
        since_us: row.try_get("since_us")?,
        retry_at_us: row.try_get("retry_at_us")?,
        drained: row.try_get("drained")?,
        attempt: row.try_get("attempt")?,
        releases: json(row, "releases")?,
        instance: row.try_get("instance")?,
        booted: json_if_any(row, "booted")?.unwrap_or_default(),
        registration_key_hash: row.try_get("registration_key_hash")?,
        last_seen_us: row.try_get("last_seen_us")?,
        registered_us: row.try_get("registered_us")?,
    })
}
