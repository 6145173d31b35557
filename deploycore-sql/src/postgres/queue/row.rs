//! Jobs and attempts as rows.

use std::collections::HashMap;

use deploycore::model::{Attempt, AttemptOutcome, Epoch, Job, JobId, Lease, Timestamp};
use deploycore::port::BackendError;
use sqlx::postgres::PgConnection;
use sqlx::types::Uuid;

use super::lease::epoch;
use crate::columns::{Columns, job_columns};
use crate::postgres::database::{NAME, corrupt, failed};
use crate::stored;

pub(super) async fn find(connection: &mut PgConnection, id: JobId) -> Result<Option<Job>, BackendError> {
    const FIND: &str = concat!("SELECT ", job_columns!(), " FROM deploycore.jobs j WHERE j.id = $1");
    let row = sqlx::query(FIND).bind(id.as_uuid()).fetch_optional(connection).await.map_err(failed)?;
    row.as_ref().map(|row| Columns(row).job()).transpose()
}

/// A job as it stands, until the end of the transaction.
pub(super) async fn lock(connection: &mut PgConnection, id: JobId) -> Result<Option<Job>, BackendError> {
    const LOCK: &str = concat!("SELECT ", job_columns!(), " FROM deploycore.jobs j WHERE j.id = $1 FOR UPDATE");
    let row = sqlx::query(LOCK).bind(id.as_uuid()).fetch_optional(connection).await.map_err(failed)?;
    row.as_ref().map(|row| Columns(row).job()).transpose()
}

/// Jobs as they stand, until the end of the transaction. They are locked in one order, so that two calls do not wait for each other.
pub(super) async fn lock_all(
    connection: &mut PgConnection,
    ids: impl Iterator<Item = JobId>,
) -> Result<HashMap<JobId, Job>, BackendError> {
    const LOCK: &str =
        concat!("SELECT ", job_columns!(), " FROM deploycore.jobs j WHERE j.id = ANY ($1) ORDER BY j.id FOR UPDATE");
    let ids: Vec<Uuid> = ids.map(JobId::as_uuid).collect();
    let rows = sqlx::query(LOCK).bind(ids).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).job().map(|job| (job.spec.id, job))).collect()
}

/// A job whose attempt ends.
pub(super) struct Ended {
    /// As it was locked in this transaction.
    pub(super) before: Job,
    /// What a transition made of it.
    pub(super) after: Job,
    pub(super) outcome: AttemptOutcome,
}

/// Writes the ends of attempts, and what became of their jobs.
pub(super) async fn end(
    connection: &mut PgConnection,
    ended: &mut [Ended],
    now: Timestamp,
) -> Result<(), BackendError> {
    if ended.is_empty() {
        return Ok(());
    }
    let mut jobs: Vec<_> = ended.iter_mut().map(|ended| (&ended.before, &mut ended.after)).collect();
    update(connection, &mut jobs, now).await?;
    end_attempts(connection, ended, now).await
}

/// Writes what transitions made of jobs, each with the job as it was locked in this transaction: its status, epoch and claim guard the
/// write. Instants of what came out are cut as they are stored. The lease stays in its columns: it is the current one while RUNNING.
pub(super) async fn update(
    connection: &mut PgConnection,
    jobs: &mut [(&Job, &mut Job)],
    now: Timestamp,
) -> Result<(), BackendError> {
    const UPDATE: &str = "
        UPDATE deploycore.jobs j SET
            status = n.status, attempts = n.attempts, releases = n.releases, rescues = n.rescues,
            eligible_at = n.eligible_at, delayed = n.delayed,
            ready_xid = CASE WHEN n.status = 'QUEUED' AND NOT n.delayed THEN pg_current_xact_id()::text::bigint ELSE j.ready_xid END,
            cancel_requested = n.cancel_requested,
            finished_at = n.finished_at, artifact = n.artifact, digest = n.digest, size = n.size, failure = n.failure
        FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::bigint[], $7::bigint[],
                    $8::bigint[], $9::bigint[], $10::boolean[], $11::boolean[], $12::bigint[], $13::text[], $14::text[],
                    $15::bigint[], $16::text[])
            AS n (id, was, epoch, claim_id, status, attempts, releases, rescues, eligible_at, delayed, cancel_requested,
                  finished_at, artifact, digest, size, failure)
        WHERE j.id = n.id AND j.status = n.was AND j.epoch = n.epoch AND (n.claim_id IS NULL OR j.claim_id = n.claim_id)";
    for (_, after) in jobs.iter_mut() {
        let stored = stored::timestamp("eligible_at", stored::micros(after.eligible_at)).map_err(corrupt)?;
        after.eligible_at = stored;
    }
    let before = |value: fn(&Job) -> String| -> Vec<String> { jobs.iter().map(|(before, _)| value(before)).collect() };
    let integers = |value: fn(&Job) -> i64| -> Vec<i64> { jobs.iter().map(|(_, after)| value(after)).collect() };
    let texts = |value: fn(&Job) -> Option<String>| -> Vec<Option<String>> {
        jobs.iter().map(|(_, after)| value(after)).collect()
    };
    let ids: Vec<Uuid> = jobs.iter().map(|(before, _)| before.spec.id.as_uuid()).collect();
    let claims: Vec<Option<Uuid>> =
        jobs.iter().map(|(before, _)| before.running.as_ref().map(|running| running.lease.claim.as_uuid())).collect();
    let delayed: Vec<bool> = jobs.iter().map(|(_, after)| after.eligible_at > now).collect();
    let asked: Vec<bool> = jobs.iter().map(|(_, after)| after.cancel_requested).collect();
    let finished: Vec<Option<i64>> = jobs.iter().map(|(_, after)| after.finished_at.map(stored::micros)).collect();
    let size = |job: &Job| job.artifact.as_ref().map(|artifact| i64::try_from(artifact.size)).transpose();
    let sizes: Result<Vec<Option<i64>>, _> = jobs.iter().map(|(_, after)| size(after)).collect();
    let updated = sqlx::query(UPDATE)
        .bind(ids)
        .bind(before(|job| job.status.as_str().to_owned()))
        .bind(jobs.iter().map(|(before, _)| before.epoch.get() as i64).collect::<Vec<_>>())
        .bind(claims)
        .bind(texts(|job| Some(job.status.as_str().to_owned())))
        .bind(integers(|job| i64::from(job.attempts)))
        .bind(integers(|job| i64::from(job.releases)))
        .bind(integers(|job| i64::from(job.rescues)))
        .bind(integers(|job| stored::micros(job.eligible_at)))
        .bind(delayed)
        .bind(asked)
        .bind(finished)
        .bind(texts(|job| job.artifact.as_ref().map(|artifact| artifact.name.to_string())))
        .bind(texts(|job| job.artifact.as_ref().map(|artifact| artifact.digest.to_string())))
        .bind(sizes.map_err(|error| BackendError::permanent(NAME, error))?)
        .bind(texts(|job| job.failure.as_ref().map(stored::json)))
        .execute(connection)
        .await
        .map_err(failed)?;
    if updated.rows_affected() == jobs.len() as u64 {
        return Ok(());
    }
    let (updated, locked) = (updated.rows_affected(), jobs.len());
    Err(BackendError::permanent(NAME, format!("{updated} of {locked} jobs were as they were when they were locked")))
}

async fn end_attempts(connection: &mut PgConnection, ended: &[Ended], now: Timestamp) -> Result<(), BackendError> {
    const END: &str = "
        INSERT INTO deploycore.attempts (job, epoch, claim_id, worker, claimed_at, ended_at, outcome)
        SELECT n.job, n.epoch, n.claim_id, n.worker, n.claimed_at, $6, n.outcome
        FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::bigint[], $7::text[])
            AS n (job, epoch, claim_id, worker, claimed_at, outcome)";
    let mut running = Vec::with_capacity(ended.len());
    for Ended { before, .. } in ended {
        let none = || BackendError::permanent(NAME, format!("job {} ends and did not run", before.spec.id));
        running.push(before.running.as_ref().ok_or_else(none)?);
    }
    sqlx::query(END)
        .bind(running.iter().map(|running| running.lease.job.as_uuid()).collect::<Vec<_>>())
        .bind(running.iter().map(|running| running.lease.epoch.get() as i64).collect::<Vec<_>>())
        .bind(running.iter().map(|running| running.lease.claim.as_uuid()).collect::<Vec<_>>())
        .bind(running.iter().map(|running| running.worker.to_string()).collect::<Vec<_>>())
        .bind(running.iter().map(|running| stored::micros(running.claimed_at)).collect::<Vec<_>>())
        .bind(stored::micros(now))
        .bind(ended.iter().map(|ended| stored::json(&ended.outcome)).collect::<Vec<_>>())
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

/// The attempt at a job with the epoch of a lease, whatever its claim.
pub(super) async fn attempt(connection: &mut PgConnection, lease: &Lease) -> Result<Option<Attempt>, BackendError> {
    const FIND: &str = "
        SELECT job, epoch, claim_id, worker, claimed_at, ended_at, outcome
        FROM deploycore.all_attempts WHERE job = $1 AND epoch = $2";
    let Ok(epoch) = i64::try_from(lease.epoch.get()) else {
        return Ok(None);
    };
    let query = sqlx::query(FIND).bind(lease.job.as_uuid()).bind(epoch);
    let row = query.fetch_optional(connection).await.map_err(failed)?;
    row.as_ref().map(|row| Columns(row).attempt()).transpose()
}

/// The same for many leases, by job and epoch.
pub(super) async fn attempts_of(
    connection: &mut PgConnection,
    leases: &[Lease],
) -> Result<HashMap<(JobId, Epoch), Attempt>, BackendError> {
    const FIND: &str = "
        SELECT a.job, a.epoch, a.claim_id, a.worker, a.claimed_at, a.ended_at, a.outcome
        FROM unnest($1::uuid[], $2::bigint[]) AS n (job, epoch)
            JOIN deploycore.all_attempts a ON a.job = n.job AND a.epoch = n.epoch";
    if leases.is_empty() {
        return Ok(HashMap::new());
    }
    let jobs: Vec<Uuid> = leases.iter().map(|lease| lease.job.as_uuid()).collect();
    let epochs: Vec<i64> = leases.iter().map(epoch).collect();
    let rows = sqlx::query(FIND).bind(jobs).bind(epochs).fetch_all(connection).await.map_err(failed)?;
    let attempt = |row| Columns(row).attempt().map(|attempt| ((attempt.lease.job, attempt.lease.epoch), attempt));
    rows.iter().map(attempt).collect()
}

pub(super) async fn attempts(connection: &mut PgConnection, job: JobId) -> Result<Vec<Attempt>, BackendError> {
    const ALL: &str = "
        SELECT job, epoch, claim_id, worker, claimed_at, ended_at, outcome FROM deploycore.all_attempts WHERE job = $1
        ORDER BY epoch";
    let rows = sqlx::query(ALL).bind(job.as_uuid()).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).attempt()).collect()
}
