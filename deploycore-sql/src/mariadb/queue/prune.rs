//! Deleting what ended long ago.

use std::time::Duration;

use deploycore::port::BackendError;
use sqlx::mysql::MySqlConnection;

use crate::columns::Columns;
use crate::mariadb::database::{failed, instant};
use crate::mariadb::row::Hex;
use crate::stored;

/// Jobs that another prune holds are its own.
pub(in crate::mariadb) const OLD: &str = concat!(
    "SELECT id FROM deploycore_jobs FORCE INDEX (jobs_finished) WHERE finished_at <= ",
    instant!(),
    " - ? ORDER BY finished_at, id LIMIT ? FOR UPDATE SKIP LOCKED"
);

/// Deletes finished jobs with their attempts; how many.
pub(super) async fn prune(
    connection: &mut MySqlConnection,
    age: Duration,
    limit: usize,
) -> Result<usize, BackendError> {
    const HISTORY: &str = "
        DELETE a FROM JSON_TABLE(?, '$[*]' COLUMNS (job CHAR(32) PATH '$')) n
        STRAIGHT_JOIN deploycore_attempts a ON a.job = UNHEX(n.job)";
    const JOBS: &str = "
        DELETE j FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) n
        STRAIGHT_JOIN deploycore_jobs j ON j.id = UNHEX(n.id)";
    let old = sqlx::query(OLD).bind(stored::micros_of(age)).bind(limit as i64);
    let rows = old.fetch_all(&mut *connection).await.map_err(failed)?;
    let ids: Result<Vec<Hex>, _> = rows.iter().map(|row| Columns(row).job_id("id").map(Hex::from)).collect();
    let ids = stored::json(&ids?);
    sqlx::query(HISTORY).bind(&ids).execute(&mut *connection).await.map_err(failed)?;
    let pruned = sqlx::query(JOBS).bind(&ids).execute(connection).await.map_err(failed)?;
    Ok(pruned.rows_affected() as usize)
}
