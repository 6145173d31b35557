//! How the copies to each region go, counted by the database.

use std::collections::BTreeMap;

use deploycore::model::{FiguresRequest, RegionName, ReplicationFigures};
use deploycore::port::BackendError;
use sqlx::postgres::PgConnection;

use crate::figures::Figures;
use crate::postgres::database::{self, failed};
use crate::stored;

/// What is not complete, to be counted late when it is wanted since before an instant.
pub(in crate::postgres) const UNFINISHED: &str = "
    SELECT c.region, c.state, COUNT(*) AS copies, (SUM(a.size - c.bytes))::bigint AS bytes,
        MIN(COALESCE(c.pending_since, c.registered_at)) AS oldest,
        (SUM(CASE WHEN COALESCE(c.pending_since, c.registered_at) < $1 THEN 1 ELSE 0 END))::bigint AS overdue
    FROM deploycore.copies c JOIN deploycore.artifacts a ON a.name = c.artifact
    WHERE c.state IN ('pending', 'failed')
    GROUP BY c.region, c.state";

/// What became complete since an instant, and which of it took longer than so many microseconds. Of the sorted latencies the percentiles are the
/// nearest rank.
pub(in crate::postgres) const COMPLETED: &str = "
    WITH done AS (
        SELECT region, completed_at - COALESCE(pending_since, registered_at) AS took
        FROM deploycore.copies WHERE completed_at > $1
    ), ranked AS (
        SELECT region, took, ROW_NUMBER() OVER (PARTITION BY region ORDER BY took) AS place,
            COUNT(*) OVER (PARTITION BY region) AS copies
        FROM done
    )
    SELECT region, COUNT(*) AS copies, (SUM(CASE WHEN took > $2 THEN 1 ELSE 0 END))::bigint AS late,
        MIN(CASE WHEN place * 100 >= copies * 50 THEN took END) AS p50,
        MIN(CASE WHEN place * 100 >= copies * 99 THEN took END) AS p99, MAX(took) AS longest
    FROM ranked GROUP BY region";

/// In a transaction that sees one state of the ledger.
pub(super) async fn figures(
    connection: &mut PgConnection,
    request: &FiguresRequest,
) -> Result<BTreeMap<RegionName, ReplicationFigures>, BackendError> {
    let now = stored::micros(database::now(connection).await?);
    let (threshold, window) = (stored::micros_of(request.threshold), stored::micros_of(request.window));
    let mut figures = Figures::default();
    let unfinished = sqlx::query(UNFINISHED).bind(now.saturating_sub(threshold));
    for row in unfinished.fetch_all(&mut *connection).await.map_err(failed)? {
        figures.take_unfinished(&row)?;
    }
    let completed = sqlx::query(COMPLETED).bind(now.saturating_sub(window)).bind(threshold);
    for row in completed.fetch_all(connection).await.map_err(failed)? {
        figures.take_completed(&row)?;
    }
    Ok(figures.0)
}
