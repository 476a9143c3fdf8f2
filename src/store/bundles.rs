//! Bundles: what is known of each version. Their manifests and files are blobs.

use sqlx::Row;
use sqlx::any::AnyRow;

use crate::names::{BundleName, Digest, TeamName};
use crate::store::columns::{number, parsed, to_bigint};
use crate::store::{PageAsked, Paged, Result, Store, StoreError};

/// One version of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleRow {
    /// Its name.
    pub name: BundleName,
    /// The sha256 of its manifest.
    pub version: Digest,
    /// The team that the name belongs to.
    pub team: TeamName,
    /// Its files and symlinks.
    pub files: u64,
    /// The bytes of its files.
    pub bytes: u64,
    /// When it was pushed.
    pub pushed_us: i64,
}

impl Store {
    /// Writes a version of a bundle, the newest from then on; `false` if it was there already.
    ///
    /// A name belongs to the team that used it first.
    ///
    /// # Errors
    /// A conflict if the name belongs to another team.
    pub async fn insert_bundle(&self, bundle: &BundleRow) -> Result<bool> {
        let mut tx = self.begin().await?;
        // This takes PostgreSQL's lock on the name's row, whether it is new or not, so places are given one after the other.
        let sql = "INSERT INTO bundle_names (name, team, newest) VALUES ($1, $2, 0) \
            ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING team, newest";
        let query = sqlx::query(sql).bind(bundle.name.as_str()).bind(bundle.team.as_str());
        let named = query.fetch_one(&mut *tx).await?;
        if named.try_get::<&str, _>("team")? != bundle.team.as_str() {
            return Err(StoreError::Conflict(format!("the bundle {} belongs to another team", bundle.name)));
        }
        let place = named.try_get::<i64, _>("newest")? + 1;
        let sql = "INSERT INTO bundles (name, version, place, files, bytes, pushed_us) \
            VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name, version) DO NOTHING";
        let query = sqlx::query(sql)
            .bind(bundle.name.as_str())
            .bind(bundle.version.to_string())
            .bind(place)
            .bind(to_bigint(bundle.files))
            .bind(to_bigint(bundle.bytes))
            .bind(bundle.pushed_us);
        let is_new = query.execute(&mut *tx).await?.rows_affected() == 1;
        if !is_new {
            // One that is the newest already keeps its place.
            let sql = "UPDATE bundles SET place = $3, pushed_us = $4 WHERE name = $1 AND version = $2 AND place < $5";
            let query = sqlx::query(sql).bind(bundle.name.as_str()).bind(bundle.version.to_string()).bind(place);
            query.bind(bundle.pushed_us).bind(place - 1).execute(&mut *tx).await?;
        }
        let sql = "UPDATE bundle_names SET newest = (SELECT MAX(place) FROM bundles WHERE name = $1) WHERE name = $1";
        sqlx::query(sql).bind(bundle.name.as_str()).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(is_new)
    }

    /// Reads one version of a bundle.
    ///
    /// # Errors
    /// The database is not available, or the row can not be read.
    pub async fn bundle(&self, name: &BundleName, version: &Digest) -> Result<Option<BundleRow>> {
        let sql = "SELECT v.name, v.version, n.team, v.place, v.files, v.bytes, v.pushed_us \
            FROM bundles AS v JOIN bundle_names AS n ON n.name = v.name WHERE v.name = $1 AND v.version = $2";
        let row = sqlx::query(sql).bind(name.as_str()).bind(version.to_string()).fetch_optional(&self.read).await?;
        row.as_ref().map(bundle_row).transpose()
    }

    /// Reads the version of a bundle that was pushed last.
    ///
    /// # Errors
    /// The database is not available, or the row can not be read.
    pub async fn bundle_newest(&self, name: &BundleName) -> Result<Option<BundleRow>> {
        let sql = "SELECT v.name, v.version, n.team, v.place, v.files, v.bytes, v.pushed_us \
            FROM bundle_names AS n JOIN bundles AS v ON v.name = n.name AND v.place = n.newest WHERE n.name = $1";
        let row = sqlx::query(sql).bind(name.as_str()).fetch_optional(&self.read).await?;
        row.as_ref().map(bundle_row).transpose()
    }

    /// Lists the versions of a bundle, newest first.
    ///
    /// # Errors
    /// A cursor that is none, a database that is not available, a row that can not be read.
    pub async fn bundle_versions(&self, name: &BundleName, page: &PageAsked) -> Result<Paged<BundleRow>> {
        let sql = "SELECT v.name, v.version, n.team, v.place, v.files, v.bytes, v.pushed_us \
            FROM bundles AS v JOIN bundle_names AS n ON n.name = v.name WHERE v.name = $1 AND v.place < $2 ORDER BY v.place DESC LIMIT $3";
        let query = sqlx::query(sql).bind(name.as_str()).bind(page.falling_key()?).bind(page.rows());
        let rows = query.fetch_all(&self.read).await?;
        let placed = rows.iter().map(|row| Ok((row.try_get::<i64, _>("place")?, bundle_row(row)?))).collect::<Result<Vec<_>>>()?;
        let paged = page.cut(placed, |(place, _)| place.to_string());
        Ok(Paged { items: paged.items.into_iter().map(|(_, bundle)| bundle).collect(), next: paged.next })
    }

    /// Lists the newest version of each bundle, of one team or of all, by name.
    ///
    /// # Errors
    /// A cursor that is none, a database that is not available, a row that can not be read.
    pub async fn bundles(&self, team: Option<&TeamName>, page: &PageAsked) -> Result<Paged<BundleRow>> {
        let sql = "SELECT v.name, v.version, n.team, v.place, v.files, v.bytes, v.pushed_us \
            FROM bundle_names AS n JOIN bundles AS v ON v.name = n.name AND v.place = n.newest \
            WHERE n.name > $1 AND ($2 IS NULL OR n.team = $2) ORDER BY n.name LIMIT $3";
        let query = sqlx::query(sql).bind(page.text_key()?.unwrap_or_default()).bind(team.map(TeamName::as_str)).bind(page.rows());
        let rows = query.fetch_all(&self.read).await?;
        Ok(page.cut(rows.iter().map(bundle_row).collect::<Result<_>>()?, |bundle| bundle.name.to_string()))
    }
}

fn bundle_row(row: &AnyRow) -> Result<BundleRow> {
    Ok(BundleRow {
        name: parsed(row, "name")?,
        version: parsed(row, "version")?,
        team: parsed(row, "team")?,
        files: number(row, "files")?,
        bytes: number(row, "bytes")?,
        pushed_us: row.try_get("pushed_us")?,
    })
}
