//! How the copies to each region go, counted by the database.

use std::collections::BTreeMap;
use std::time::Duration;

use deploycore::model::{CopyState, FiguresRequest, RegionName, ReplicationFigures, Timestamp};
use deploycore::port::BackendError;
use sqlx::mysql::MySqlConnection;

use crate::columns::Columns;
use crate::mariadb::database::{self, failed};
use crate::stored;

/// What is not complete, to be counted late when it is wanted since before an instant.
pub(in crate::mariadb) const UNFINISHED: &str = "
    SELECT c.region, c.state, COUNT(*) AS copies, CAST(SUM(a.size - c.bytes) AS SIGNED) AS bytes,
        MIN(COALESCE(c.pending_since, c.registered_at)) AS oldest,
        CAST(SUM(CASE WHEN COALESCE(c.pending_since, c.registered_at) < ? THEN 1 ELSE 0 END) AS SIGNED) AS overdue
    FROM deploycore_copies c FORCE INDEX (copies_unfinished) STRAIGHT_JOIN deploycore_artifacts a ON a.name = c.artifact
    WHERE c.state IN ('pending', 'failed')
    GROUP BY c.region, c.state";

/// What became complete since an instant, and which of it took longer than so many microseconds. Of the sorted latencies the percentiles are the
/// nearest rank.
pub(in crate::mariadb) const COMPLETED: &str = "
    WITH done AS (
        SELECT region, completed_at - COALESCE(pending_since, registered_at) AS took
        FROM deploycore_copies FORCE INDEX (copies_completed) WHERE completed_at > ?
    ), ranked AS (
        SELECT region, took, ROW_NUMBER() OVER (PARTITION BY region ORDER BY took) AS place,
            COUNT(*) OVER (PARTITION BY region) AS copies
        FROM done
    )
    SELECT region, COUNT(*) AS copies, CAST(SUM(CASE WHEN took > ? THEN 1 ELSE 0 END) AS SIGNED) AS late,
        MIN(CASE WHEN place * 100 >= copies * 50 THEN took END) AS p50,
        MIN(CASE WHEN place * 100 >= copies * 99 THEN took END) AS p99, MAX(took) AS longest
    FROM ranked GROUP BY region";

/// In a transaction that sees one state of the ledger.
pub(super) async fn figures_now(
    connection: &mut MySqlConnection,
    request: &FiguresRequest,
) -> Result<BTreeMap<RegionName, ReplicationFigures>, BackendError> {
    let now = database::now(connection).await?;
    figures(connection, request, now).await
}

async fn figures(
    connection: &mut MySqlConnection,
    request: &FiguresRequest,
    now: Timestamp,
) -> Result<BTreeMap<RegionName, ReplicationFigures>, BackendError> {
    let now = stored::micros(now);
    let mut regions: BTreeMap<RegionName, ReplicationFigures> = BTreeMap::new();
    let unfinished = sqlx::query(UNFINISHED).bind(now.saturating_sub(micros(request.threshold)));
    for row in unfinished.fetch_all(&mut *connection).await.map_err(failed)? {
        let columns = Columns(&row);
        let figures = regions.entry(columns.parse("region")?).or_default();
        if columns.word("state", CopyState::parse)? == CopyState::Failed {
            figures.failed = columns.number("copies")?;
            continue;
        }
        figures.pending = columns.number("copies")?;
        figures.pending_bytes = columns.number("bytes")?;
        figures.oldest_pending = columns.optional_time("oldest")?;
        figures.overdue = columns.number("overdue")?;
    }
    let completed = sqlx::query(COMPLETED).bind(now.saturating_sub(micros(request.window)));
    for row in completed.bind(micros(request.threshold)).fetch_all(connection).await.map_err(failed)? {
        let columns = Columns(&row);
        let took = |column| columns.number(column).map(|micros| Some(Duration::from_micros(micros)));
        let figures = regions.entry(columns.parse("region")?).or_default();
        figures.completed = columns.number("copies")?;
        figures.late = columns.number("late")?;
        (figures.p50, figures.p99, figures.max) = (took("p50")?, took("p99")?, took("longest")?);
    }
    Ok(regions)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
