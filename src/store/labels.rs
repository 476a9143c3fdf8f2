//! Labels: their releases, and which of them is in force.

use sqlx::Row;
use sqlx::any::AnyRow;

use crate::names::{Digest, LabelName, TeamName};
use crate::store::columns::{parsed, to_text};
use crate::store::{PageAsked, Paged, Result, Store, StoreError};

/// A release that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRelease {
    /// The label.
    pub label: LabelName,
    /// The team that the label belongs to from now on.
    pub team: TeamName,
    /// The policy, as JSON, with module and bundles pinned.
    pub policy: String,
    /// The module that it pins.
    pub module: Digest,
    /// How it came about.
    pub how: String,
    /// Who made it: a token's id.
    pub made_by: String,
    /// When it was made.
    pub made_us: i64,
}

/// A release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseRow {
    /// The label.
    pub label: LabelName,
    /// Its number: 1 for the label's first.
    pub release: i64,
    /// The team that the label belonged to with this release.
    pub team: TeamName,
    /// The policy, as JSON, with module and bundles pinned.
    pub policy: String,
    /// The module that it pins.
    pub module: Digest,
    /// How it came about.
    pub how: String,
    /// Who made it: a token's id.
    pub made_by: String,
    /// When it was made.
    pub made_us: i64,
}

impl Store {
    /// Writes a label's next release, puts it in force, and answers its number.
    ///
    /// # Errors
    /// A conflict if the release in force is not `expected_previous` (none: the label is new): somebody else was first.
    pub async fn add_release(&self, new: &NewRelease, expected_previous: Option<i64>) -> Result<i64> {
        let mut tx = self.begin().await?;
        // This takes PostgreSQL's lock on the label's row, whether it is new or not, so the second of two applies waits here.
        let sql = "INSERT INTO labels (label, release) VALUES ($1, 0) \
            ON CONFLICT (label) DO UPDATE SET label = excluded.label RETURNING release";
        let current: i64 = sqlx::query_scalar(sql).bind(new.label.as_str()).fetch_one(&mut *tx).await?;
        if current != expected_previous.unwrap_or(0) {
            let label = &new.label;
            return Err(StoreError::Conflict(match current {
                0 => format!("the label {label} has no release yet"),
                current => format!("the label {label} has release {current} in force by now"),
            }));
        }
        let release = current + 1;
        let sql = "INSERT INTO releases (label, release, team, policy, module, how, made_by, made_us) \
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        sqlx::query(sql)
            .bind(new.label.as_str())
            .bind(release)
            .bind(new.team.as_str())
            .bind(&new.policy)
            .bind(new.module.to_string())
            .bind(to_text(&new.how))
            .bind(&new.made_by)
            .bind(new.made_us)
            .execute(&mut *tx)
            .await?;
        let sql = "UPDATE labels SET release = $2 WHERE label = $1";
        sqlx::query(sql).bind(new.label.as_str()).bind(release).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(release)
    }

    /// Reads one release.
    ///
    /// # Errors
    /// The database is not available, or the row can not be read.
    pub async fn release(&self, label: &LabelName, release: i64) -> Result<Option<ReleaseRow>> {
        let sql = "SELECT label, release, team, policy, module, how, made_by, made_us FROM releases WHERE label = $1 AND release = $2";
        let row = sqlx::query(sql).bind(label.as_str()).bind(release).fetch_optional(&self.read).await?;
        row.as_ref().map(release_row).transpose()
    }

    /// Reads the releases in force, of all labels.
    ///
    /// # Errors
    /// The database is not available, or a row can not be read.
    pub async fn current_releases(&self) -> Result<Vec<ReleaseRow>> {
        let sql = "SELECT r.label, r.release, r.team, r.policy, r.module, r.how, r.made_by, r.made_us \
            FROM labels AS l JOIN releases AS r ON r.label = l.label AND r.release = l.release ORDER BY r.label";
        sqlx::query(sql).fetch_all(&self.read).await?.iter().map(release_row).collect()
    }

    /// Lists a label's releases, newest first.
    ///
    /// # Errors
    /// A cursor that is none, a database that is not available, a row that can not be read.
    pub async fn releases(&self, label: &LabelName, page: &PageAsked) -> Result<Paged<ReleaseRow>> {
        let sql = "SELECT label, release, team, policy, module, how, made_by, made_us FROM releases \
            WHERE label = $1 AND release < $2 ORDER BY release DESC LIMIT $3";
        let query = sqlx::query(sql).bind(label.as_str()).bind(page.falling_key()?).bind(page.rows());
        let rows = query.fetch_all(&self.read).await?;
        Ok(page.cut(rows.iter().map(release_row).collect::<Result<_>>()?, |row| row.release.to_string()))
    }
}

fn release_row(row: &AnyRow) -> Result<ReleaseRow> {
    Ok(ReleaseRow {
        label: parsed(row, "label")?,
        release: row.try_get("release")?,
        team: parsed(row, "team")?,
        policy: row.try_get("policy")?,
        module: parsed(row, "module")?,
        how: row.try_get("how")?,
        made_by: row.try_get("made_by")?,
        made_us: row.try_get("made_us")?,
    })
}
