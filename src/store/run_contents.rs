//! Contents that stand beside the journals of runs: what a module was answered, where that is too large for an entry.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sqlx::Row as _;

use crate::limits::CALL_FILE_BYTES_MAX;
use crate::names::Digest;
use crate::store::columns::{corrupt, is_orphan, parsed, to_bigint};
use crate::store::{Result, Store, StoreError};

/// How much is done to make them small: they are written while their run goes on.
const LEVEL: i32 = 1;

impl Store {
    /// Writes contents of a run, all of them or none. What is there already stays.
    ///
    /// # Errors
    /// Missing if the run is.
    pub async fn append_contents(&self, run_id: &str, contents: &[(Digest, Vec<u8>)]) -> Result<()> {
        let mut tx = self.begin().await?;
        for (digest, bytes) in contents {
            let bytes = bytes.clone();
            let packed = tokio::task::spawn_blocking(move || zstd::bulk::compress(&bytes, LEVEL).map(|packed| STANDARD.encode(packed)));
            let packed = packed.await.map_err(std::io::Error::other).flatten().map_err(|error| corrupt("packed", error))?;
            let sql =
                "INSERT INTO run_contents (run_id, sha256, bytes, packed) VALUES ($1, $2, $3, $4) ON CONFLICT (run_id, sha256) DO NOTHING";
            let query = sqlx::query(sql).bind(run_id).bind(digest.to_string()).bind(to_bigint(packed.len() as u64)).bind(packed);
            query.execute(&mut *tx).await.map_err(|error| match is_orphan(&error) {
                true => StoreError::Missing(format!("there is no run {run_id}")),
                false => error.into(),
            })?;
        }
        Ok(tx.commit().await?)
    }

    /// Reads up to `limit` contents of a run, in the order of their digests, from the first that comes after `after` on.
    ///
    /// # Errors
    /// The database is not available, or a row can not be read.
    pub async fn run_contents(&self, run_id: &str, after: Option<&Digest>, limit: u32) -> Result<Vec<(Digest, Vec<u8>)>> {
        let after = after.map(Digest::to_string).unwrap_or_default();
        let sql = "SELECT sha256, packed FROM run_contents WHERE run_id = $1 AND sha256 > $2 ORDER BY sha256 LIMIT $3";
        let rows = sqlx::query(sql).bind(run_id).bind(after).bind(i64::from(limit)).fetch_all(&self.read).await?;
        let content = |row: &sqlx::any::AnyRow| {
            let packed = STANDARD.decode(row.try_get::<&str, _>("packed")?).map_err(|error| corrupt("packed", error))?;
            let bytes = zstd::bulk::decompress(&packed, CALL_FILE_BYTES_MAX).map_err(|error| corrupt("packed", error))?;
            Ok((parsed(row, "sha256")?, bytes))
        };
        rows.iter().map(content).collect()
    }
}
