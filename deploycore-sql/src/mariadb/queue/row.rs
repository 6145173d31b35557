//! Jobs and attempts as rows.

use deploycore::model::{Attempt, AttemptOutcome, Job, JobId, Lease, Timestamp};
use deploycore::port::BackendError;
use serde::Serialize;
use sqlx::mysql::MySqlConnection;

use crate::columns::{Columns, job_columns};
use crate::mariadb::database::{NAME, corrupt, failed};
use crate::mariadb::row::Hex;
use crate::stored;

pub(super) async fn find(connection: &mut MySqlConnection, id: JobId) -> Result<Option<Job>, BackendError> {
    const FIND: &str = concat!("SELECT ", job_columns!("`"), " FROM deploycore_jobs j WHERE j.id = ?");
    let row = sqlx::query(FIND).bind(id.as_uuid()).fetch_optional(connection).await.map_err(failed)?;
    row.as_ref().map(|row| Columns(row).job()).transpose()
}

/// A job as it stands, until the end of the transaction.
pub(super) async fn lock(connection: &mut MySqlConnection, id: JobId) -> Result<Option<Job>, BackendError> {
    const LOCK: &str = concat!("SELECT ", job_columns!("`"), " FROM deploycore_jobs j WHERE j.id = ? FOR UPDATE");
    let row = sqlx::query(LOCK).bind(id.as_uuid()).fetch_optional(connection).await.map_err(failed)?;
    row.as_ref().map(|row| Columns(row).job()).transpose()
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
    connection: &mut MySqlConnection,
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

/// What a transition made of a job, and what the job was, for the statement.
#[derive(Serialize)]
struct Changed<'j> {
    id: Hex,
    was: &'static str,
    epoch: u64,
    claim_id: Option<Hex>,
    status: &'static str,
    attempts: u32,
    releases: u32,
    rescues: u32,
    eligible_at: i64,
    is_delayed: u8,
    cancel_requested: u8,
    finished_at: Option<i64>,
    artifact: Option<&'j str>,
    digest: Option<String>,
    size: Option<u64>,
    failure: Option<String>,
}

impl<'j> Changed<'j> {
    fn of(before: &Job, after: &'j Job, now: Timestamp) -> Self {
        let artifact = after.artifact.as_ref();
        Self {
            id: before.spec.id.into(),
            was: before.status.as_str(),
            epoch: before.epoch.get(),
            claim_id: before.running.as_ref().map(|running| running.lease.claim.into()),
            status: after.status.as_str(),
            attempts: after.attempts,
            releases: after.releases,
            rescues: after.rescues,
            eligible_at: stored::micros(after.eligible_at),
            is_delayed: u8::from(after.eligible_at > now),
            cancel_requested: u8::from(after.cancel_requested),
            finished_at: after.finished_at.map(stored::micros),
            artifact: artifact.map(|artifact| artifact.name.as_str()),
            digest: artifact.map(|artifact| artifact.digest.to_string()),
            size: artifact.map(|artifact| artifact.size),
            failure: after.failure.as_ref().map(stored::json),
        }
    }
}

/// Writes what transitions made of jobs, each with the job as it was locked in this transaction: its status, epoch and claim guard the
/// write. Instants of what came out are cut as they are stored. The lease stays in its columns: it is the current one while RUNNING.
pub(super) async fn update(
    connection: &mut MySqlConnection,
    jobs: &mut [(&Job, &mut Job)],
    now: Timestamp,
) -> Result<(), BackendError> {
    const UPDATE: &str = "
        UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
            id CHAR(32) PATH '$.id', was VARCHAR(9) PATH '$.was', epoch BIGINT PATH '$.epoch',
            claim_id CHAR(32) PATH '$.claim_id', status VARCHAR(9) PATH '$.status', attempts BIGINT PATH '$.attempts',
            releases BIGINT PATH '$.releases', rescues BIGINT PATH '$.rescues', eligible_at BIGINT PATH '$.eligible_at',
            is_delayed BIGINT PATH '$.is_delayed', cancel_requested BIGINT PATH '$.cancel_requested',
            finished_at BIGINT PATH '$.finished_at', artifact VARCHAR(128) PATH '$.artifact',
            digest VARCHAR(64) PATH '$.digest', size BIGINT PATH '$.size', failure MEDIUMTEXT CHARACTER SET utf8mb4 PATH '$.failure')) n
        STRAIGHT_JOIN deploycore_jobs j ON j.id = UNHEX(n.id)
        SET j.status = n.status, j.attempts = n.attempts, j.releases = n.releases, j.rescues = n.rescues,
            j.eligible_at = n.eligible_at, j.is_delayed = n.is_delayed, j.cancel_requested = n.cancel_requested,
            j.finished_at = n.finished_at, j.artifact = n.artifact, j.digest = n.digest, j.size = n.size,
            j.failure = n.failure
        WHERE j.status = n.was AND j.epoch = n.epoch AND (n.claim_id IS NULL OR j.claim_id = UNHEX(n.claim_id))";
    for (_, after) in jobs.iter_mut() {
        let stored = stored::timestamp("eligible_at", stored::micros(after.eligible_at)).map_err(corrupt)?;
        after.eligible_at = stored;
    }
    let rows: Vec<_> = jobs.iter().map(|(before, after)| Changed::of(before, after, now)).collect();
    let updated = sqlx::query(UPDATE).bind(stored::json(&rows)).execute(connection).await.map_err(failed)?;
    all_were_as_locked("jobs", updated.rows_affected(), jobs.len())
}

/// The driver counts the rows that a write found, whether it changed them or not.
pub(in crate::mariadb) fn all_were_as_locked(what: &str, written: u64, locked: usize) -> Result<(), BackendError> {
    if written == locked as u64 {
        return Ok(());
    }
    let why = format!("{written} of {locked} {what} were as they were when they were locked");
    Err(BackendError::permanent(NAME, why))
}

/// An attempt that ended, for the statement.
#[derive(Serialize)]
struct Attempted<'j> {
    job: Hex,
    epoch: u64,
    claim_id: Hex,
    worker: &'j str,
    claimed_at: i64,
    outcome: String,
}

async fn end_attempts(connection: &mut MySqlConnection, ended: &[Ended], now: Timestamp) -> Result<(), BackendError> {
    const END: &str = "
        INSERT INTO deploycore_attempts (job, epoch, claim_id, worker, claimed_at, ended_at, outcome)
        SELECT UNHEX(n.job), n.epoch, UNHEX(n.claim_id), n.worker, n.claimed_at, ?, n.outcome
        FROM JSON_TABLE(?, '$[*]' COLUMNS (
            job CHAR(32) PATH '$.job', epoch BIGINT PATH '$.epoch', claim_id CHAR(32) PATH '$.claim_id',
            worker VARCHAR(128) PATH '$.worker', claimed_at BIGINT PATH '$.claimed_at',
            outcome MEDIUMTEXT CHARACTER SET utf8mb4 PATH '$.outcome')) n";
    let mut rows = Vec::with_capacity(ended.len());
    for Ended { before, outcome, .. } in ended {
        let none = || BackendError::permanent(NAME, format!("job {} ends and did not run", before.spec.id));
        let running = before.running.as_ref().ok_or_else(none)?;
        rows.push(Attempted {
            job: running.lease.job.into(),
            epoch: running.lease.epoch.get(),
            claim_id: running.lease.claim.into(),
            worker: running.worker.as_str(),
            claimed_at: stored::micros(running.claimed_at),
            outcome: stored::json(outcome),
        });
    }
    let end = sqlx::query(END).bind(stored::micros(now)).bind(stored::json(&rows));
    end.execute(connection).await.map_err(failed)?;
    Ok(())
}

/// The ended attempt at a job with the epoch of a lease, whatever its claim.
pub(super) async fn attempt(connection: &mut MySqlConnection, lease: &Lease) -> Result<Option<Attempt>, BackendError> {
    const FIND: &str = "
        SELECT job, epoch, claim_id, worker, claimed_at, ended_at, outcome
        FROM deploycore_attempts WHERE job = ? AND epoch = ?";
    let Ok(epoch) = i64::try_from(lease.epoch.get()) else {
        return Ok(None);
    };
    let query = sqlx::query(FIND).bind(lease.job.as_uuid()).bind(epoch);
    let row = query.fetch_optional(connection).await.map_err(failed)?;
    row.as_ref().map(|row| Columns(row).attempt()).transpose()
}

pub(super) async fn attempts(connection: &mut MySqlConnection, job: JobId) -> Result<Vec<Attempt>, BackendError> {
    const ALL: &str = "
        SELECT job, epoch, claim_id, worker, claimed_at, ended_at, outcome FROM deploycore_attempts WHERE job = ?
        UNION ALL
        SELECT id, epoch, claim_id, worker, claimed_at, NULL, NULL FROM deploycore_jobs
        WHERE id = ? AND status = 'RUNNING'
        ORDER BY epoch";
    let query = sqlx::query(ALL).bind(job.as_uuid()).bind(job.as_uuid());
    let rows = query.fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).attempt()).collect()
}
