//! Nodes: what agents are called at their controllers, and how they are set up there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::any::AnyRow;

use crate::names::{AgentName, ControllerName, LabelName};
use crate::store::columns::{is_taken, json, parsed, to_json};
use crate::store::{Result, Store, StoreError};

/// A node that an agent has, is to have, or had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// The controller.
    pub controller: ControllerName,
    /// Its name there.
    pub name: String,
    /// The agent's id.
    pub agent_id: String,
    /// The agent's name.
    pub agent: AgentName,
    /// The label whose release launches there.
    pub label: LabelName,
    /// How it is set up.
    pub plan: NodePlan,
    /// Since when it is wanted.
    pub began_us: i64,
    /// Since when it is known to be there; none of one that was asked for, and may be somebody else's.
    pub made_us: Option<i64>,
    /// Since when it is to go, although its agent stays.
    pub leaving_us: Option<i64>,
}

/// How a node is set up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodePlan {
    /// Its labels.
    pub labels: Vec<LabelName>,
    /// Its executors.
    pub executors: u32,
    /// Its root on the agent's machine.
    pub root: String,
    /// Whether only builds that ask for one of its labels run there.
    pub is_exclusive: bool,
    /// Variables for its builds.
    pub environment: BTreeMap<String, String>,
    /// Whether it stays when the agent's program is started anew, or the agent is gone.
    pub is_kept: bool,
    /// Whether its name has no part that nobody can guess.
    pub is_plain: bool,
    /// How long its builds are waited for, in seconds.
    pub drain_seconds: u32,
    /// Which start of the agent's program it was made for.
    pub instance: Option<String>,
}

impl Store {
    /// Writes a new node.
    ///
    /// # Errors
    /// A conflict if there is one of the name, or the agent has one, at the controller.
    pub async fn insert_node(&self, row: &NodeRow) -> Result<()> {
        let sql = "INSERT INTO nodes (controller, name, agent_id, agent, label, plan, began_us, made_us, leaving_us) \
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
        let query = sqlx::query(sql).bind(row.controller.as_str()).bind(&row.name).bind(&row.agent_id).bind(row.agent.as_str());
        let query = query.bind(row.label.as_str()).bind(to_json("plan", &row.plan)?);
        match query.bind(row.began_us).bind(row.made_us).bind(row.leaving_us).execute(&self.write).await {
            Err(error) if is_taken(&error) => {
                Err(StoreError::Conflict(format!("there is a node `{}` at controller `{}` already", row.name, row.controller)))
            }
            done => Ok(done.map(drop)?),
        }
    }

    /// Writes all of a node but its controller and its name.
    ///
    /// # Errors
    /// Missing if there is no such node, and a conflict if the agent has another one there.
    pub async fn update_node(&self, row: &NodeRow) -> Result<()> {
        let sql = "UPDATE nodes SET agent_id = $3, agent = $4, label = $5, plan = $6, began_us = $7, made_us = $8, leaving_us = $9 \
            WHERE controller = $1 AND name = $2";
        let query = sqlx::query(sql).bind(row.controller.as_str()).bind(&row.name).bind(&row.agent_id).bind(row.agent.as_str());
        let query = query.bind(row.label.as_str()).bind(to_json("plan", &row.plan)?);
        match query.bind(row.began_us).bind(row.made_us).bind(row.leaving_us).execute(&self.write).await {
            Err(error) if is_taken(&error) => {
                Err(StoreError::Conflict(format!("agent `{}` has another node at controller `{}`", row.agent, row.controller)))
            }
            done => match done?.rows_affected() {
                0 => Err(StoreError::Missing(format!("there is no node `{}` at controller `{}`", row.name, row.controller))),
                _ => Ok(()),
            },
        }
    }

    /// Deletes a node's row, if it is there.
    ///
    /// # Errors
    /// The database is not available.
    pub async fn delete_node(&self, controller: &ControllerName, name: &str) -> Result<()> {
        let sql = "DELETE FROM nodes WHERE controller = $1 AND name = $2";
        sqlx::query(sql).bind(controller.as_str()).bind(name).execute(&self.write).await?;
        Ok(())
    }

    /// Reads all nodes.
    ///
    /// # Errors
    /// The database is not available, or a row can not be read.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>> {
        let rows = sqlx::query("SELECT * FROM nodes").fetch_all(&self.read).await?;
        rows.iter().map(node_row).collect()
    }
}

fn node_row(row: &AnyRow) -> Result<NodeRow> {
    Ok(NodeRow {
        controller: parsed(row, "controller")?,
        name: row.try_get("name")?,
        agent_id: row.try_get("agent_id")?,
        agent: parsed(row, "agent")?,
        label: parsed(row, "label")?,
        plan: json(row, "plan")?,
        began_us: row.try_get("began_us")?,
        made_us: row.try_get("made_us")?,
        leaving_us: row.try_get("leaving_us")?,
    })
}
