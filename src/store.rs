//! What survives: rows in SQLite or PostgreSQL, contents by their digests, and the secrets' files.
//!
//! One SQL text serves both databases, so every column is TEXT, BIGINT or DOUBLE PRECISION: times are microseconds, lists and maps are
//! JSON, digests are hexadecimal. Whatever is answered with `Ok` has been written durably. No SQL lives outside this room, and nothing here
//! knows why a row changes.

pub mod agents;
pub mod blobs;
pub mod boots;
pub mod bundles;
pub mod clear;
pub mod contents;
pub mod hosts;
pub mod labels;
pub mod modules;
pub mod nodes;
pub mod run_contents;
pub mod runs;
pub mod secrets;
pub mod segments;
pub mod tokens;

mod columns;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{Any, AnyPool, Connection as _, Transaction};

use crate::limits::{STORE_CONNECTIONS_MAX, STORE_WAIT_MAX};

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something else is there already, or came first.
    #[error("{0}")]
    Conflict(String),
    /// What was to be changed is not there.
    #[error("{0}")]
    Missing(String),
    /// A cursor that no page of this listing gave.
    #[error("the cursor is not one of this listing")]
    Cursor,
    /// The database can not be reached, or did not do its work.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// A row is there and can not be read.
    #[error("column `{column}` of a row can not be read")]
    Corrupt {
        /// Which column.
        column: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database could not be brought to this version's tables.
    #[error("the database's tables can not be brought to this version")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// The database's URL is of another kind.
    #[error("the database's URL begins with neither `sqlite:` nor `postgres:`")]
    Url,
}

/// What the store answers.
pub type Result<T> = std::result::Result<T, StoreError>;

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { index, source } => Self::Corrupt { column: index, source },
            other => Self::Unavailable(other),
        }
    }
}

/// Which page of a listing is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageAsked {
    /// What the page before gave as `next`; none for the first.
    pub cursor: Option<String>,
    /// Rows at most; [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX) bounds it.
    pub limit: u32,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paged<T> {
    /// The rows.
    pub items: Vec<T>,
    /// The cursor of the next page; none on the last.
    pub next: Option<String>,
}

/// The database. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    /// For reading. On SQLite readers never wait for a writer.
    read: AnyPool,
    /// For writing. On SQLite it has one connection, so that writers queue here in their order and not in SQLite's busy loop.
    write: AnyPool,
    dialect: Dialect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Sqlite,
    Postgres,
}

impl Store {
    /// Opens the database and brings its tables to this version.
    ///
    /// `sqlite:///path/muster.db` is made if it is missing (its directory is not); `postgres://…` must be there.
    ///
    /// # Errors
    /// A URL of another kind, a database that can not be reached, and tables of a newer version.
    pub async fn open(url: &str) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let dialect = match url.split_once(':') {
            Some(("sqlite", _)) => Dialect::Sqlite,
            Some(("postgres" | "postgresql", _)) => Dialect::Postgres,
            _ => return Err(StoreError::Url),
        };
        let mut options: AnyConnectOptions = url.parse()?;
        let pool = AnyPoolOptions::new().max_connections(STORE_CONNECTIONS_MAX).acquire_timeout(STORE_WAIT_MAX);
        // SQLite ends a transaction by itself when the disk is full or fails, and the driver goes on counting it: such a connection would
        // begin no other one.
        let pool = pool.before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }));
        let (read, write) = match dialect {
            Dialect::Sqlite => {
                options.database_url.query_pairs_mut().append_pair("mode", "rwc");
                let pool = pool.after_connect(|connection, _| Box::pin(set_sqlite_up(connection)));
                let write = pool.clone().max_connections(1).connect_with(options.clone()).await?;
                (pool.connect_lazy_with(options), write)
            }
            Dialect::Postgres => {
                let both = match pool.connect_with(options.clone()).await {
                    // The pool only says that it waited; the database says why.
                    Err(sqlx::Error::PoolTimedOut) => {
                        let direct = tokio::time::timeout(STORE_WAIT_MAX, sqlx::AnyConnection::connect_with(&options)).await;
                        direct.map_err(|_| sqlx::Error::PoolTimedOut)??;
                        return Err(sqlx::Error::PoolTimedOut.into());
                    }
                    connected => connected?,
                };
                (both.clone(), both)
            }
        };
        sqlx::migrate!("src/store/migrations").run(&write).await.map_err(StoreError::Migrate)?;
        Ok(Self { read, write, dialect })
    }

    /// Asks the database for a sign of life: whether it can be read, and be written to as far as that can be asked without writing.
    ///
    /// # Errors
    /// The database can not be reached.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").fetch_one(&self.read).await?;
        Ok(self.begin().await?.rollback().await?)
    }

    /// Closes every connection, once what is under way has ended. Later calls fail.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    /// Begins a transaction that will write.
    ///
    /// On SQLite it takes the write lock at once: a transaction that reads first and then wants it is refused without any waiting.
    async fn begin(&self) -> Result<Transaction<'static, Any>> {
        Ok(match self.dialect {
            Dialect::Sqlite => self.write.begin_with("BEGIN IMMEDIATE").await?,
            Dialect::Postgres => self.write.begin().await?,
        })
    }
}

async fn set_sqlite_up(connection: &mut sqlx::AnyConnection) -> sqlx::Result<()> {
    // The timeout is first, so that the switch to WAL waits for another program that has the file open.
    // Each connection has pages of its own in memory, and the machine has all of them already: 512 KiB is a quarter of what SQLite takes.
    let pragmas = "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
        PRAGMA cache_size = -512";
    sqlx::raw_sql(pragmas).execute(connection).await.map(drop)
}
