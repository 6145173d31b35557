//! What is done under a lease, and to one: heartbeats, ends, cancels and rescues.

use std::collections::HashMap;
use std::time::Duration;

use deploycore::model::{AttemptOutcome, Completion, Epoch, Failure, Job, JobId, JobStatus, Lease};
use deploycore::port::BackendError;
use deploycore::port::queue::transition::{self, Standing};
use deploycore::port::queue::{Beat, Error, Fate, RescueRequest, Rescued, bounds};
use serde::Serialize;
use sqlx::mysql::MySqlConnection;

use super::row::{self, Ended};
use crate::columns::{Columns, job_columns};
use crate::mariadb::database::{self, Database, failed, instant};
use crate::mariadb::row::Hex;
use crate::stored;

/// A lease, for the statement.
#[derive(Serialize)]
struct Beating {
    job: Hex,
    epoch: u64,
    claim_id: Hex,
}

/// Two statements, on a connection that no other call has. Each lease is guarded by epoch and claim, and nothing indexed is written. A lease
/// that the second finds current was so in the first, since none comes back. They decide as [`transition::heartbeat`], which a test compares
/// them with.
pub(super) async fn heartbeat(database: &Database, leases: &[Lease]) -> Result<Vec<Beat>, Error> {
    const BEAT: &str = concat!(
        "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
             job CHAR(32) PATH '$.job', epoch BIGINT PATH '$.epoch', claim_id CHAR(32) PATH '$.claim_id')) n
         STRAIGHT_JOIN deploycore_jobs j FORCE INDEX (PRIMARY) ON j.id = UNHEX(n.job)
         SET j.last_heartbeat = GREATEST(j.last_heartbeat, ",
        instant!(),
        ") WHERE j.status = 'RUNNING' AND j.epoch = n.epoch AND j.claim_id = UNHEX(n.claim_id)"
    );
    const HELD: &str = "
        SELECT j.id, j.epoch, j.claim_id, j.cancel_requested, j.deadline, j.last_heartbeat
        FROM JSON_TABLE(?, '$[*]' COLUMNS (
            job CHAR(32) PATH '$.job', epoch BIGINT PATH '$.epoch', claim_id CHAR(32) PATH '$.claim_id')) n
        STRAIGHT_JOIN deploycore_jobs j ON j.id = UNHEX(n.job)
        WHERE j.status = 'RUNNING' AND j.epoch = n.epoch AND j.claim_id = UNHEX(n.claim_id)";
    // No lease that was handed out has an epoch beyond what a column holds.
    let real = leases.iter().filter(|lease| i64::try_from(lease.epoch.get()).is_ok());
    let beating =
        |lease: &Lease| Beating { job: lease.job.into(), epoch: lease.epoch.get(), claim_id: lease.claim.into() };
    // In one order, so that two batches do not wait for each other.
    let mut sorted: Vec<_> = real.copied().collect();
    sorted.sort_unstable_by_key(|lease| lease.job);
    let sorted = stored::json(&sorted.iter().map(beating).collect::<Vec<_>>());
    let mut borrowed = database.borrow_for_beat().await?;
    sqlx::query(BEAT).bind(&sorted).execute(borrowed.connection()).await.map_err(failed)?;
    let rows = sqlx::query(HELD).bind(&sorted).fetch_all(borrowed.connection()).await.map_err(failed)?;
    borrowed.give_back();
    let mut held = HashMap::with_capacity(rows.len());
    for row in &rows {
        let columns = Columns(row);
        let lease = Lease {
            job: columns.job_id("id")?,
            claim: columns.claim_id("claim_id")?,
            epoch: Epoch::new(columns.number("epoch")?),
        };
        let time_left = stored::between(columns.integer("last_heartbeat")?, columns.integer("deadline")?);
        held.insert(lease, Beat::Held { cancel_requested: columns.is_set("cancel_requested")?, time_left });
    }
    Ok(leases.iter().map(|lease| held.get(lease).copied().unwrap_or(Beat::Lost)).collect())
}

pub(super) async fn complete(database: &Database, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
    if let Completion::Succeeded { artifact, .. } = completion
        && i64::try_from(artifact.size).is_err()
    {
        return Err(Error::Invalid(format!("an artifact of {} bytes", artifact.size)));
    }
    let mut moment = database.begin().await?;
    let completed = end(moment.connection(), lease, completion).await;
    moment.end(completed).await
}

async fn end(connection: &mut MySqlConnection, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
    let before = lock(connection, lease.job).await?;
    let outcome = AttemptOutcome::Completed { completion: completion.clone() };
    if standing(connection, &before, lease, &outcome).await? == Standing::Repeated {
        return Ok(before.status);
    }
    let now = database::now(connection).await?;
    let mut job = before.clone();
    transition::complete(&mut job, completion, now)?;
    let status = job.status;
    row::end(connection, &mut [Ended { before, after: job, outcome }], now).await?;
    Ok(status)
}

pub(super) async fn release(database: &Database, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
    let mut moment = database.begin().await?;
    let released = give_back(moment.connection(), lease, Failure::cut(reason), as_stored(delay)).await;
    moment.end(released).await
}

async fn give_back(
    connection: &mut MySqlConnection,
    lease: &Lease,
    reason: &str,
    delay: Duration,
) -> Result<Fate, Error> {
    let before = lock(connection, lease.job).await?;
    let outcome = AttemptOutcome::Released { reason: reason.to_owned() };
    if standing(connection, &before, lease, &outcome).await? == Standing::Repeated {
        return Ok(transition::released(&before, lease.epoch));
    }
    let now = database::now(connection).await?;
    let mut job = before.clone();
    let fate = transition::release(&mut job, reason, delay, now);
    row::end(connection, &mut [Ended { before, after: job, outcome }], now).await?;
    Ok(fate)
}

pub(super) async fn cancel(database: &Database, id: JobId) -> Result<Job, Error> {
    let mut moment = database.begin().await?;
    let cancelled = ask_to_end(moment.connection(), id).await;
    moment.end(cancelled).await
}

async fn ask_to_end(connection: &mut MySqlConnection, id: JobId) -> Result<Job, Error> {
    let before = lock(connection, id).await?;
    let now = database::now(connection).await?;
    let mut job = before.clone();
    transition::cancel(&mut job, now);
    if job != before {
        row::update(connection, &mut [(&before, &mut job)], now).await?;
    }
    Ok(job)
}

/// What a rescue took back.
pub(super) struct Taken {
    pub(super) jobs: Vec<Rescued>,
    /// How many of them were silent; the others were out of time.
    pub(super) lost: usize,
}

pub(super) async fn rescue(database: &Database, request: &RescueRequest) -> Result<Taken, Error> {
    let request =
        RescueRequest { backoff: as_stored(request.backoff), backoff_max: as_stored(request.backoff_max), ..*request };
    let mut moment = database.begin().await?;
    let taken = take_back(moment.connection(), &request).await;
    Ok(moment.end(taken).await?)
}

/// It walks over as many rows as builds run, and locks none of them.
pub(in crate::mariadb) const OVERDUE: &str = concat!(
    "SELECT id FROM deploycore_jobs FORCE INDEX (jobs_queue)
     WHERE status = 'RUNNING' AND (deadline <= ",
    instant!(),
    " OR last_heartbeat <= ",
    instant!(),
    " - ?) ORDER BY last_heartbeat, id LIMIT ?"
);

/// A job that another call holds is left to that: it beats, ends or is rescued there.
async fn take_back(connection: &mut MySqlConnection, request: &RescueRequest) -> Result<Taken, BackendError> {
    const LOCK: &str = concat!(
        "SELECT ",
        job_columns!("`"),
        " FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) n
          STRAIGHT_JOIN deploycore_jobs j ON j.id = UNHEX(n.id)
          WHERE j.status = 'RUNNING' FOR UPDATE SKIP LOCKED"
    );
    let overdue = sqlx::query(OVERDUE).bind(stored::micros_of(request.lost_after)).bind(request.limit as i64);
    let rows = overdue.fetch_all(&mut *connection).await.map_err(failed)?;
    let mut taken = Taken { jobs: Vec::with_capacity(rows.len()), lost: 0 };
    if rows.is_empty() {
        return Ok(taken);
    }
    let mut ids = rows.iter().map(|row| Columns(row).job_id("id")).collect::<Result<Vec<_>, _>>()?;
    ids.sort_unstable();
    let ids: Vec<Hex> = ids.into_iter().map(Hex::from).collect();
    let rows = sqlx::query(LOCK).bind(stored::json(&ids)).fetch_all(&mut *connection).await.map_err(failed)?;
    let now = database::now(connection).await?;
    let mut ended = Vec::with_capacity(rows.len());
    for row in &rows {
        let before = Columns(row).job()?;
        let mut job = before.clone();
        // It may have beaten since it was seen.
        let Some((rescued, outcome)) = transition::rescue(&mut job, request, now) else {
            continue;
        };
        taken.lost += usize::from(outcome == AttemptOutcome::LeaseLost);
        taken.jobs.push(rescued);
        ended.push(Ended { before, after: job, outcome });
    }
    row::end(connection, &mut ended, now).await?;
    Ok(taken)
}

/// See [`transition::standing`]; the history is asked only when the lease is not the current one.
async fn standing(
    connection: &mut MySqlConnection,
    job: &Job,
    lease: &Lease,
    outcome: &AttemptOutcome,
) -> Result<Standing, Error> {
    let is_current = job.running.as_ref().is_some_and(|running| running.lease == *lease);
    let attempt = if is_current { None } else { row::attempt(connection, lease).await? };
    transition::standing(job, attempt.as_ref(), lease, outcome)
}

async fn lock(connection: &mut MySqlConnection, job: JobId) -> Result<Job, Error> {
    row::lock(connection, job).await?.ok_or(Error::NotFound { job })
}

/// A delay cut as instants are stored, so that an answer and a later look agree.
fn as_stored(delay: Duration) -> Duration {
    Duration::from_micros(stored::micros_of(bounds::cut_delay(delay)) as u64)
}
