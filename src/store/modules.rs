//! Modules: what is known of each version. Their bytes are blobs.

use sqlx::Row;
use sqlx::any::AnyRow;

use crate::api::Asks;
use crate::names::{Digest, ModuleName, TeamName};
use crate::store::columns::{json, json_if_any, number, parsed, to_bigint, to_json, to_text};
use crate::store::{PageAsked, Paged, Result, Store, StoreError};

/// One version of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleRow {
    /// The sha256 of its bytes.
    pub digest: Digest,
    /// Its name.
    pub name: ModuleName,
    /// The team that the name belongs to.
    pub team: TeamName,
    /// Its size.
    pub size_bytes: u64,
    /// The world that it implements.
    pub world: String,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// The language it was written in, if it says so.
    pub language: Option<String>,
    /// What it asks for, if it says so.
    pub asks: Option<Asks>,
    /// When it was uploaded.
    pub uploaded_us: i64,
}

impl Store {
    /// Writes a version of a module, the newest from then on; `false` if it was there already.
    ///
    /// A name belongs to the team that used it first.
    ///
    /// # Errors
    /// A conflict if the name belongs to another team.
    pub async fn insert_module(&self, module: &ModuleRow) -> Result<bool> {
        let mut tx = self.begin().await?;
        // This takes PostgreSQL's lock on the name's row, whether it is new or not, so places are given one after the other.
        let sql = "INSERT INTO module_names (name, team, newest) VALUES ($1, $2, 0) \
            ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING team, newest";
        let query = sqlx::query(sql).bind(module.name.as_str()).bind(module.team.as_str());
        let named = query.fetch_one(&mut *tx).await?;
        if named.try_get::<&str, _>("team")? != module.team.as_str() {
            return Err(StoreError::Conflict(format!("the module {} belongs to another team", module.name)));
        }
        let place = named.try_get::<i64, _>("newest")? + 1;
        let sql = "INSERT INTO modules (name, digest, place, size_bytes, world, imports, language, asks, uploaded_us) \
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (name, digest) DO NOTHING";
        let query = sqlx::query(sql)
            .bind(module.name.as_str())
            .bind(module.digest.to_string())
            .bind(place)
            .bind(to_bigint(module.size_bytes))
            .bind(&module.world)
            .bind(to_json("imports", &module.imports)?)
            .bind(module.language.as_deref().map(to_text))
            .bind(module.asks.as_ref().map(|asks| to_json("asks", asks)).transpose()?)
            .bind(module.uploaded_us);
        let is_new = query.execute(&mut *tx).await?.rows_affected() == 1;
        if !is_new {
            // One that is the newest already keeps its place.
            let sql = "UPDATE modules SET place = $3, uploaded_us = $4 WHERE name = $1 AND digest = $2 AND place < $5";
            let query = sqlx::query(sql).bind(module.name.as_str()).bind(module.digest.to_string()).bind(place);
            query.bind(module.uploaded_us).bind(place - 1).execute(&mut *tx).await?;
        }
        let sql = "UPDATE module_names SET newest = (SELECT MAX(place) FROM modules WHERE name = $1) WHERE name = $1";
        sqlx::query(sql).bind(module.name.as_str()).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(is_new)
    }

    /// Reads one version of a module.
    ///
    /// # Errors
    /// The database is not available, or the row can not be read.
    pub async fn module(&self, name: &ModuleName, digest: &Digest) -> Result<Option<ModuleRow>> {
        let sql = "SELECT v.name, v.digest, n.team, v.place, v.size_bytes, v.world, v.imports, v.language, v.asks, v.uploaded_us \
            FROM modules AS v JOIN module_names AS n ON n.name = v.name WHERE v.name = $1 AND v.digest = $2";
        let row = sqlx::query(sql).bind(name.as_str()).bind(digest.to_string()).fetch_optional(&self.read).await?;
        row.as_ref().map(module_row).transpose()
    }

    /// Reads the version of a module that was uploaded last.
    ///
    /// # Errors
    /// The database is not available, or the row can not be read.
    pub async fn module_newest(&self, name: &ModuleName) -> Result<Option<ModuleRow>> {
        let sql = "SELECT v.name, v.digest, n.team, v.place, v.size_bytes, v.world, v.imports, v.language, v.asks, v.uploaded_us \
            FROM module_names AS n JOIN modules AS v ON v.name = n.name AND v.place = n.newest WHERE n.name = $1";
        let row = sqlx::query(sql).bind(name.as_str()).fetch_optional(&self.read).await?;
        row.as_ref().map(module_row).transpose()
    }

    /// Lists the versions of a module, newest first.
    ///
    /// # Errors
    /// A cursor that is none, a database that is not available, a row that can not be read.
    pub async fn module_versions(&self, name: &ModuleName, page: &PageAsked) -> Result<Paged<ModuleRow>> {
        let sql = "SELECT v.name, v.digest, n.team, v.place, v.size_bytes, v.world, v.imports, v.language, v.asks, v.uploaded_us \
            FROM modules AS v JOIN module_names AS n ON n.name = v.name WHERE v.name = $1 AND v.place < $2 ORDER BY v.place DESC LIMIT $3";
        let query = sqlx::query(sql).bind(name.as_str()).bind(page.falling_key()?).bind(page.rows());
        let rows = query.fetch_all(&self.read).await?;
        let placed = rows.iter().map(|row| Ok((row.try_get::<i64, _>("place")?, module_row(row)?))).collect::<Result<Vec<_>>>()?;
        let paged = page.cut(placed, |(place, _)| place.to_string());
        Ok(Paged { items: paged.items.into_iter().map(|(_, module)| module).collect(), next: paged.next })
    }

    /// Lists the newest version of each module, of one team or of all, by name.
    ///
    /// # Errors
    /// A cursor that is none, a database that is not available, a row that can not be read.
    pub async fn modules(&self, team: Option<&TeamName>, page: &PageAsked) -> Result<Paged<ModuleRow>> {
        let sql = "SELECT v.name, v.digest, n.team, v.place, v.size_bytes, v.world, v.imports, v.language, v.asks, v.uploaded_us \
            FROM module_names AS n JOIN modules AS v ON v.name = n.name AND v.place = n.newest \
            WHERE n.name > $1 AND ($2 IS NULL OR n.team = $2) ORDER BY n.name LIMIT $3";
        let query = sqlx::query(sql).bind(page.text_key()?.unwrap_or_default()).bind(team.map(TeamName::as_str)).bind(page.rows());
        let rows = query.fetch_all(&self.read).await?;
        Ok(page.cut(rows.iter().map(module_row).collect::<Result<_>>()?, |module| module.name.to_string()))
    }
}

fn module_row(row: &AnyRow) -> Result<ModuleRow> {
    Ok(ModuleRow {
        digest: parsed(row, "digest")?,
        name: parsed(row, "name")?,
        team: parsed(row, "team")?,
        size_bytes: number(row, "size_bytes")?,
        world: row.try_get("world")?,
        imports: json(row, "imports")?,
        language: row.try_get("language")?,
        asks: json_if_any(row, "asks")?,
        uploaded_us: row.try_get("uploaded_us")?,
    })
}
