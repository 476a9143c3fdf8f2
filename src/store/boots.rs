//! Boots: what the first successful run of each label was sent after an agent's program was started, and what that comes to by image.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use crate::limits::{BOOT_IMAGES_SHOWN_MAX, BOOTS_KEPT_PER_LABEL};
use crate::names::LabelName;
use crate::store::columns::{number, to_bigint, to_text};
use crate::store::runs::RunEnd;
use crate::store::{Result, Store};

/// Which labels of an agent succeeded since its program was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booted {
    /// Which start of the program; none of one that does not say.
    pub instance: Option<String>,
    /// The labels.
    pub labels: BTreeSet<LabelName>,
}

/// What makes a run's end that of a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// The label.
    pub label: LabelName,
    /// What the machine was made from, if it said so.
    pub image: Option<String>,
    /// The time that bringing bundles took, in microseconds.
    pub sync_us: u64,
}

/// What the boots of one label from one image came to.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRow {
    /// The image; none stands for all agents that said none.
    pub image: Option<String>,
    /// How many boots.
    pub boots: u64,
    /// Bytes of bundle content that a boot was sent, on average.
    pub bytes_per_boot: f64,
    /// The time that bringing bundles took a boot, on average, in microseconds.
    pub sync_us_per_boot: f64,
    /// When the last of them had succeeded.
    pub last_us: i64,
}

impl Store {
    /// Sums up the boots of a label since a time, of the newest [`BOOTS_KEPT_PER_LABEL`], by image: up to [`BOOT_IMAGES_SHOWN_MAX`] images,
    /// and first those whose boots were sent most altogether.
    ///
    /// # Errors
    /// The database is not available, or a row can not be read.
    pub async fn boots_by_image(&self, label: &LabelName, since_us: i64) -> Result<Vec<ImageRow>> {
        // Averages, as a sum of what others count may be beyond a BIGINT, at which SQLite gives up.
        let sql = "SELECT image, COUNT(*) AS boots, CAST(AVG(bytes_sent) AS DOUBLE PRECISION) AS bytes, \
            CAST(AVG(sync_us) AS DOUBLE PRECISION) AS sync_us, MAX(at_us) AS last_us \
            FROM (SELECT * FROM boots WHERE label = $1 AND at_us >= $2 ORDER BY at_us DESC LIMIT $3) AS newest \
            GROUP BY image ORDER BY COUNT(*) * AVG(bytes_sent) DESC, MAX(at_us) DESC LIMIT $4";
        let query = sqlx::query(sql).bind(label.as_str()).bind(since_us).bind(i64::from(BOOTS_KEPT_PER_LABEL));
        let rows = query.bind(i64::from(BOOT_IMAGES_SHOWN_MAX)).fetch_all(&self.read).await?;
        rows.iter().map(image_row).collect()
    }
}

/// Writes a boot, which is the end of its first run.
pub(super) async fn add(tx: &mut AnyConnection, run_id: &str, end: &RunEnd, boot: &Boot) -> Result<()> {
    let sql = "INSERT INTO boots (label, at_us, run_id, image, bytes_sent, sync_us) VALUES ($1, $2, $3, $4, $5, $6)";
    let query = sqlx::query(sql)
        .bind(boot.label.as_str())
        .bind(end.ended_us)
        .bind(run_id)
        .bind(boot.image.as_deref().map(to_text))
        .bind(to_bigint(end.bytes_sent))
        .bind(to_bigint(boot.sync_us));
    query.execute(tx).await?;
    Ok(())
}

fn image_row(row: &AnyRow) -> Result<ImageRow> {
    Ok(ImageRow {
        image: row.try_get("image")?,
        boots: number(row, "boots")?,
        bytes_per_boot: row.try_get("bytes")?,
        sync_us_per_boot: row.try_get("sync_us")?,
        last_us: row.try_get("last_us")?,
    })
}
