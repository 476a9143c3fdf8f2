//! Where each content of a bundle lies.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, Row as _};

use crate::limits::STORE_BATCH_ROWS;
use crate::names::Digest;
use crate::store::columns::{number, parsed, places, to_bigint};
use crate::store::{Result, Store};

/// Where a content lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which segment.
    pub segment: i64,
    /// Where its frame begins there, in bytes.
    pub offset: u32,
    /// The bytes of its frame.
    pub frame_bytes: u32,
    /// The bytes of the content.
    pub size: u32,
    /// The CRC-32 of its frame; none of what was stored by an earlier version.
    pub crc: Option<u32>,
}

/// What of a segment can not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// What does not end within so many bytes; a segment that is missing has none.
    Beyond(u64),
    /// One content.
    One(Digest),
}

impl Store {
    /// Writes where contents lie. What is known of one already stays.
    ///
    /// # Errors
    /// The database is not available.
    pub async fn insert_contents(&self, contents: &[(Digest, Place)]) -> Result<()> {
        // Two uploads of the same contents take PostgreSQL's locks in the same order.
        let mut contents: Vec<_> = contents.iter().collect();
        contents.sort_unstable_by_key(|(digest, _)| *digest.as_bytes());
        let mut tx = self.begin().await?;
        for batch in contents.chunks(STORE_BATCH_ROWS) {
            let sql = format!(
                "INSERT INTO contents (digest, segment, place, frame_bytes, size, crc) VALUES {} ON CONFLICT (digest) DO NOTHING",
                places(batch.len(), 6)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(batch.len() == STORE_BATCH_ROWS);
            for (digest, place) in batch {
                query = query.bind(digest.to_string()).bind(place.segment).bind(i64::from(place.offset));
                query = query.bind(i64::from(place.frame_bytes)).bind(i64::from(place.size)).bind(place.crc.map(i64::from));
            }
            query.execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Forgets contents that can not be read: of a segment what lies beyond its length, or one that is not at its place what it was. Answers
    /// how many there were.
    ///
    /// # Errors
    /// The database is not available.
    pub async fn forget_contents(&self, segment: i64, gone: Gone) -> Result<u64> {
        let query = match gone {
            Gone::Beyond(bytes) => {
                sqlx::query("DELETE FROM contents WHERE segment = $1 AND place + frame_bytes > $2").bind(segment).bind(to_bigint(bytes))
            }
            Gone::One(digest) => {
                sqlx::query("DELETE FROM contents WHERE segment = $1 AND digest = $2").bind(segment).bind(digest.to_string())
            }
        };
        Ok(query.execute(&self.write).await?.rows_affected())
    }

    /// Answers for each digest where its content lies, in their order; none if there is no such content.
    ///
    /// # Errors
    /// The database is not available, or a row can not be read.
    pub async fn places(&self, digests: &[Digest]) -> Result<Vec<Option<Place>>> {
        let mut all = Vec::with_capacity(digests.len());
        for batch in digests.chunks(STORE_BATCH_ROWS) {
            let sql = format!("SELECT * FROM contents WHERE digest IN (VALUES {})", places(batch.len(), 1));
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(batch.len() == STORE_BATCH_ROWS);
            for digest in batch {
                query = query.bind(digest.to_string());
            }
            let mut found = HashMap::with_capacity(batch.len());
            for row in query.fetch_all(&self.read).await? {
                let number = |column| number(&row, column);
                let place = Place {
                    segment: row.try_get("segment")?,
                    offset: number("place")?,
                    frame_bytes: number("frame_bytes")?,
                    size: number("size")?,
                    crc: row.try_get::<Option<i64>, _>("crc")?.and_then(|crc| u32::try_from(crc).ok()),
                };
                found.insert(parsed::<Digest>(&row, "digest")?, place);
            }
            all.extend(batch.iter().map(|digest| found.get(digest).copied()));
        }
        Ok(all)
    }
}
