//! Jobs and attempts as rows.

use deploycore::model::{
    ArtifactRef, Attempt, AttemptOutcome, Epoch, Job, JobId, JobStatus, Lease, NewJob, RunningLease, Timestamp,
};
use deploycore::port::BackendError;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::sqlite::database::{NAME, corrupt, failed};
use crate::sqlite::row::Columns;
use crate::stored::{self, Corrupt};

/// The columns that [`job`] reads.
macro_rules! job_columns {
    () => {
        "j.id, j.created_at, j.\"commit\", j.name, j.status, j.last_heartbeat, j.priority, j.not_before, j.max_attempts, \
         j.max_releases, j.build_timeout, j.dedup_key, j.concurrency_key, j.epoch, j.attempts, j.releases, j.rescues, \
         j.eligible_at, j.cancel_requested, j.claim_id, j.worker, j.claimed_at, j.deadline, j.finished_at, j.artifact, \
         j.digest, j.size, j.failure"
    };
}
pub(super) use job_columns;

/// Reads [`job_columns`].
pub(super) fn job(row: &SqliteRow) -> Result<Job, BackendError> {
    let columns = Columns(row);
    let spec = NewJob {
        id: columns.parse("id")?,
        service: columns.parse("name")?,
        commit: columns.parse("commit")?,
        priority: columns.number("priority")?,
        not_before: columns.optional_time("not_before")?,
        max_attempts: columns.number::<u32>("max_attempts")?.try_into().map_err(|_| out_of_range("max_attempts", 0))?,
        max_releases: columns.number("max_releases")?,
        build_timeout: stored::between(0, columns.integer("build_timeout")?),
        dedup_key: columns.optional_parse("dedup_key")?,
        concurrency_key: columns.optional_parse("concurrency_key")?,
    };
    let status = columns.word("status", JobStatus::parse)?;
    let epoch = Epoch::new(columns.number("epoch")?);
    let running = match status {
        JobStatus::Running => Some(RunningLease {
            lease: Lease { job: spec.id, claim: columns.parse("claim_id")?, epoch },
            worker: columns.parse("worker")?,
            claimed_at: columns.time("claimed_at")?,
            last_heartbeat: columns.time("last_heartbeat")?,
            deadline: columns.time("deadline")?,
        }),
        _ => None,
    };
    let artifact = match status {
        JobStatus::Succeeded => Some(ArtifactRef {
            name: columns.parse("artifact")?,
            digest: columns.parse("digest")?,
            size: columns.number("size")?,
        }),
        _ => None,
    };
    Ok(Job {
        spec,
        created_at: columns.time("created_at")?,
        status,
        epoch,
        attempts: columns.number("attempts")?,
        releases: columns.number("releases")?,
        rescues: columns.number("rescues")?,
        eligible_at: columns.time("eligible_at")?,
        running,
        cancel_requested: columns.is_set("cancel_requested")?,
        finished_at: columns.optional_time("finished_at")?,
        artifact,
        failure: columns.optional_json("failure")?,
    })
}

fn out_of_range(column: &'static str, value: i64) -> BackendError {
    corrupt(Corrupt::new(column, value))
}

pub(super) async fn find(connection: &mut SqliteConnection, id: JobId) -> Result<Option<Job>, BackendError> {
    const FIND: &str = concat!("SELECT ", job_columns!(), " FROM jobs j WHERE j.id = ?1");
    let row = sqlx::query(FIND).bind(id.to_string()).fetch_optional(connection).await.map_err(failed)?;
    row.as_ref().map(job).transpose()
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
    row.as_ref().map(read_attempt).transpose()
}

pub(super) async fn attempts(connection: &mut SqliteConnection, job: JobId) -> Result<Vec<Attempt>, BackendError> {
    const ALL: &str = "SELECT * FROM attempts WHERE job = ?1 ORDER BY epoch";
    let rows = sqlx::query(ALL).bind(job.to_string()).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(read_attempt).collect()
}

fn read_attempt(row: &SqliteRow) -> Result<Attempt, BackendError> {
    let columns = Columns(row);
    Ok(Attempt {
        lease: Lease {
            job: columns.parse("job")?,
            claim: columns.parse("claim_id")?,
            epoch: Epoch::new(columns.number("epoch")?),
        },
        worker: columns.parse("worker")?,
        claimed_at: columns.time("claimed_at")?,
        ended_at: columns.optional_time("ended_at")?,
        outcome: columns.optional_json("outcome")?,
    })
}
