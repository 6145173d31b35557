//! Jobs and attempts as rows.

use deploycore::model::{Attempt, AttemptOutcome, Job, JobId, Lease, Timestamp};
use deploycore::port::BackendError;
use sqlx::sqlite::SqliteConnection;

use crate::columns::{Columns, job_columns};
use crate::sqlite::database::{NAME, corrupt, failed};
use crate::stored;

pub(super) async fn find(connection: &mut SqliteConnection, id: JobId) -> Result<Option<Job>, BackendError> {
    const FIND: &str = concat!("SELECT ", job_columns!(), " FROM jobs j WHERE j.id = ?1");
    let row = sqlx::query(FIND).bind(id.to_string()).fetch_optional(connection).await.map_err(failed)?;
    row.as_ref().map(|row| Columns(row).job()).transpose()
}

/// Writes what a transition made of a job. `before` is the job as it was read in this transaction: its status, epoch and claim guard
/// the write. Instants of `after` are cut as they are stored.
pub(super) async fn update(
    connection: &mut SqliteConnection,
    before: &Job,
    after: &mut Job,
    now: Timestamp,
) -> Result<(), BackendError> {
    const UPDATE: &str = "
        UPDATE jobs SET
            status = ?1, epoch = ?2, attempts = ?3, releases = ?4, rescues = ?5, eligible_at = ?6, delayed = ?7,
            cancel_requested = ?8, claim_id = ?9, worker = ?10, claimed_at = ?11, last_heartbeat = ?12, deadline = ?13,
            finished_at = ?14, artifact = ?15, digest = ?16, size = ?17, failure = ?18
        WHERE id = ?19 AND status = ?20 AND epoch = ?21 AND claim_id IS ?22";
    let eligible_at = stored::micros(after.eligible_at);
    after.eligible_at = stored::timestamp("eligible_at", eligible_at).map_err(corrupt)?;
    let (running, artifact) = (after.running.as_ref(), after.artifact.as_ref());
    let size = artifact.map(|artifact| i64::try_from(artifact.size)).transpose();
    let size = size.map_err(|error| BackendError::permanent(NAME, error))?;
    let updated = sqlx::query(UPDATE)
        .bind(after.status.as_str())
        .bind(after.epoch.get() as i64)
        .bind(i64::from(after.attempts))
        .bind(i64::from(after.releases))
        .bind(i64::from(after.rescues))
        .bind(eligible_at)
        .bind(i64::from(eligible_at > stored::micros(now)))
        .bind(i64::from(after.cancel_requested))
        .bind(running.map(|running| running.lease.claim.to_string()))
        .bind(running.map(|running| running.worker.as_str()))
        .bind(running.map(|running| stored::micros(running.claimed_at)))
        .bind(running.map(|running| stored::micros(running.last_heartbeat)))
        .bind(running.map(|running| stored::micros(running.deadline)))
        .bind(after.finished_at.map(stored::micros))
        .bind(artifact.map(|artifact| artifact.name.as_str()))
        .bind(artifact.map(|artifact| artifact.digest.to_string()))
        .bind(size)
        .bind(after.failure.as_ref().map(stored::json))
        .bind(before.spec.id.to_string())
        .bind(before.status.as_str())
        .bind(before.epoch.get() as i64)
        .bind(before.running.as_ref().map(|running| running.lease.claim.to_string()))
        .execute(connection)
        .await
        .map_err(failed)?;
    match updated.rows_affected() {
        1 => Ok(()),
        _ => Err(BackendError::permanent(NAME, format!("job {} changed under the write lock", before.spec.id))),
    }
}

pub(super) async fn start_attempt(connection: &mut SqliteConnection, attempt: &Attempt) -> Result<(), BackendError> {
    const START: &str = "INSERT INTO attempts (job, epoch, claim_id, worker, claimed_at) VALUES (?1, ?2, ?3, ?4, ?5)";
    sqlx::query(START)
        .bind(attempt.lease.job.to_string())
        .bind(attempt.lease.epoch.get() as i64)
        .bind(attempt.lease.claim.to_string())
        .bind(attempt.worker.as_str())
        .bind(stored::micros(attempt.claimed_at))
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

pub(super) async fn end_attempt(
    connection: &mut SqliteConnection,
    lease: &Lease,
    outcome: &AttemptOutcome,
    now: Timestamp,
) -> Result<(), BackendError> {
    const END: &str = "
        UPDATE attempts SET ended_at = ?1, outcome = ?2
        WHERE job = ?3 AND epoch = ?4 AND claim_id = ?5 AND ended_at IS NULL";
    let ended = sqlx::query(END)
        .bind(stored::micros(now))
        .bind(stored::json(outcome))
        .bind(lease.job.to_string())
        .bind(lease.epoch.get() as i64)
        .bind(lease.claim.to_string())
        .execute(connection)
        .await
        .map_err(failed)?;
    match ended.rows_affected() {
        1 => Ok(()),
        _ => Err(BackendError::permanent(NAME, format!("job {} runs without an attempt {}", lease.job, lease.epoch))),
    }
}

/// The attempt at a job with the epoch of a lease, whatever its claim.
pub(super) async fn attempt(connection: &mut SqliteConnection, lease: &Lease) -> Result<Option<Attempt>, BackendError> {
    const FIND: &str = "SELECT * FROM attempts WHERE job = ?1 AND epoch = ?2";
    let Ok(epoch) = i64::try_from(lease.epoch.get()) else {
        return Ok(None);
    };
    let query = sqlx::query(FIND).bind(lease.job.to_string()).bind(epoch);
    let row = query.fetch_optional(connection).await.map_err(failed)?;
    row.as_ref().map(|row| Columns(row).attempt()).transpose()
}

pub(super) async fn attempts(connection: &mut SqliteConnection, job: JobId) -> Result<Vec<Attempt>, BackendError> {
    const ALL: &str = "SELECT * FROM attempts WHERE job = ?1 ORDER BY epoch";
    let rows = sqlx::query(ALL).bind(job.to_string()).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).attempt()).collect()
}
