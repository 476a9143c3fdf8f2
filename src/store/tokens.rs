//! Tokens. Of their secrets only hashes are here.

use sqlx::Row;
use sqlx::any::AnyRow;

use crate::api::TokenKind;
use crate::names::{LabelName, TeamName};
use crate::store::columns::{is_taken, json, parsed_if_any, to_json, to_word, word};
use crate::store::{PageAsked, Paged, Result, Store, StoreError};

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub kind: TokenKind,
    /// Its team.
    pub team: Option<TeamName>,
    /// For `join`: the labels that agents may carry.
    pub labels: Vec<LabelName>,
    /// A hash of its secret.
    pub secret_hash: String,
    /// When it was made.
    pub made_us: i64,
    /// When it was revoked.
    pub revoked_us: Option<i64>,
}

impl Store {
    /// Writes a token.
    ///
    /// # Errors
    /// A conflict if the id is taken.
    pub async fn insert_token(&self, token: &TokenRow) -> Result<()> {
        let sql = "INSERT INTO tokens (id, kind, team, labels, secret_hash, made_us, revoked_us) VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let query = sqlx::query(sql)
            .bind(&token.id)
            .bind(to_word("kind", &token.kind)?)
            .bind(token.team.as_ref().map(TeamName::as_str))
            .bind(to_json("labels", &token.labels)?)
            .bind(&token.secret_hash)
            .bind(token.made_us)
            .bind(token.revoked_us);
        match query.execute(&self.write).await {
            Err(error) if is_taken(&error) => Err(StoreError::Conflict(format!("there is a token {} already", token.id))),
            other => Ok(other.map(drop)?),
        }
    }

    /// Reads one token, revoked or not.
    ///
    /// # Errors
    /// The database is not available, or the row can not be read.
    pub async fn token(&self, id: &str) -> Result<Option<TokenRow>> {
        let sql = "SELECT id, kind, team, labels, secret_hash, made_us, revoked_us FROM tokens WHERE id = $1";
        sqlx::query(sql).bind(id).fetch_optional(&self.read).await?.as_ref().map(token).transpose()
    }

    /// Lists tokens, revoked ones too, highest id first.
    ///
    /// # Errors
    /// A cursor that is none, a database that is not available, a row that can not be read.
    pub async fn tokens(&self, page: &PageAsked) -> Result<Paged<TokenRow>> {
        let sql = "SELECT id, kind, team, labels, secret_hash, made_us, revoked_us FROM tokens \
            WHERE $1 IS NULL OR id < $1 ORDER BY id DESC LIMIT $2";
        let rows = sqlx::query(sql).bind(page.id_key()?).bind(page.rows()).fetch_all(&self.read).await?;
        Ok(page.cut(rows.iter().map(token).collect::<Result<_>>()?, |token| token.id.clone()))
    }

    /// Revokes a token; `false` if there is none or it was revoked before.
    ///
    /// # Errors
    /// The database is not available.
    pub async fn revoke_token(&self, id: &str, at_us: i64) -> Result<bool> {
        let query = sqlx::query("UPDATE tokens SET revoked_us = $2 WHERE id = $1 AND revoked_us IS NULL").bind(id).bind(at_us);
        Ok(query.execute(&self.write).await?.rows_affected() == 1)
    }
}

fn token(row: &AnyRow) -> Result<TokenRow> {
    Ok(TokenRow {
        id: row.try_get("id")?,
        kind: word(row, "kind")?,
        team: parsed_if_any(row, "team")?,
        labels: json(row, "labels")?,
        secret_hash: row.try_get("secret_hash")?,
        made_us: row.try_get("made_us")?,
        revoked_us: row.try_get("revoked_us")?,
    })
}
