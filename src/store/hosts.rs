//! The keys of hosts that were trusted at their first use.

use sqlx::Row as _;

use crate::store::{Result, Store, StoreError};

impl Store {
    /// The key that is remembered of a host.
    ///
    /// # Errors
    /// The database is not available.
    pub async fn host_key(&self, host: &str) -> Result<Option<String>> {
        let row = sqlx::query("SELECT key FROM ssh_hosts WHERE host = $1").bind(host).fetch_optional(&self.read).await?;
        row.map(|row| Ok(row.try_get("key")?)).transpose()
    }

    /// Remembers the key of a host of which none is remembered.
    ///
    /// # Errors
    /// A conflict if another is; the database is not available.
    pub async fn remember_host_key(&self, host: &str, key: &str, now_us: i64) -> Result<()> {
        let mut tx = self.begin().await?;
        let sql = "INSERT INTO ssh_hosts (host, key, since_us) VALUES ($1, $2, $3) ON CONFLICT (host) DO UPDATE SET host = excluded.host RETURNING key";
        let row = sqlx::query(sql).bind(host).bind(key).bind(now_us).fetch_one(&mut *tx).await?;
        if row.try_get::<&str, _>("key")? != key {
            return Err(StoreError::Conflict(format!("another key of {host} is remembered")));
        }
        Ok(tx.commit().await?)
    }

    /// Forgets the key of a host, if one is remembered.
    ///
    /// # Errors
    /// The database is not available.
    pub async fn forget_host_key(&self, host: &str) -> Result<()> {
        sqlx::query("DELETE FROM ssh_hosts WHERE host = $1").bind(host).execute(&self.write).await?;
        Ok(())
    }
}
