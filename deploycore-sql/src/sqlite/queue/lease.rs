//! What is done under a lease, and to one: heartbeats, ends, cancels and rescues.

use std::time::Duration;

use deploycore::model::{AttemptOutcome, Completion, Failure, Job, JobId, JobStatus, Lease};
use deploycore::port::BackendError;
use deploycore::port::queue::transition::{self, Standing};
use deploycore::port::queue::{Beat, Error, Fate, RescueRequest, Rescued, bounds};

use super::row;
use crate::columns::Columns;
use crate::columns::job_columns;
use crate::sqlite::database::{Moment, failed};
use crate::stored;

/// One statement a lease, guarded by epoch and claim, and nothing indexed is written.
pub(super) async fn heartbeat(moment: &mut Moment, leases: &[Lease]) -> Result<Vec<Beat>, BackendError> {
    const BEAT: &str = "
        UPDATE jobs SET last_heartbeat = max(last_heartbeat, ?1)
        WHERE id = ?2 AND status = 'RUNNING' AND epoch = ?3 AND claim_id = ?4
        RETURNING cancel_requested, deadline";
    let now = stored::micros(moment.now);
    let mut beats = Vec::with_capacity(leases.len());
    for lease in leases {
        let beat = sqlx::query(BEAT)
            .bind(now)
            .bind(lease.job.to_string())
            .bind(lease.epoch.get() as i64)
            .bind(lease.claim.to_string())
            .fetch_optional(moment.connection())
            .await
            .map_err(failed)?;
        beats.push(match beat {
            None => Beat::Lost,
            Some(row) => Beat::Held {
                cancel_requested: Columns(&row).is_set("cancel_requested")?,
                time_left: stored::between(now, Columns(&row).integer("deadline")?),
            },
        });
    }
    Ok(beats)
}

pub(super) async fn complete(moment: &mut Moment, lease: &Lease, completion: Completion) -> Result<JobStatus, Error> {
    if let Completion::Succeeded { artifact, .. } = &completion
        && i64::try_from(artifact.size).is_err()
    {
        return Err(Error::Invalid(format!("an artifact of {} bytes", artifact.size)));
    }
    let now = moment.now;
    let before = require(moment, lease.job).await?;
    let outcome = AttemptOutcome::Completed { completion: completion.clone() };
    if standing(moment, &before, lease, &outcome).await? == Standing::Repeated {
        return Ok(before.status);
    }
    let mut job = before.clone();
    transition::complete(&mut job, &completion, now)?;
    row::update(moment.connection(), &before, &mut job, now).await?;
    row::end_attempt(moment.connection(), lease, &outcome, now).await?;
    Ok(job.status)
}

pub(super) async fn release(moment: &mut Moment, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
    let (reason, delay) = (Failure::cut(reason), as_stored(delay));
    let now = moment.now;
    let before = require(moment, lease.job).await?;
    let outcome = AttemptOutcome::Released { reason: reason.to_owned() };
    if standing(moment, &before, lease, &outcome).await? == Standing::Repeated {
        return Ok(transition::released(&before, lease.epoch));
    }
    let mut job = before.clone();
    let fate = transition::release(&mut job, reason, delay, now);
    row::update(moment.connection(), &before, &mut job, now).await?;
    row::end_attempt(moment.connection(), lease, &outcome, now).await?;
    Ok(fate)
}

pub(super) async fn cancel(moment: &mut Moment, id: JobId) -> Result<Job, Error> {
    let now = moment.now;
    let before = require(moment, id).await?;
    let mut job = before.clone();
    transition::cancel(&mut job, now);
    if job != before {
        row::update(moment.connection(), &before, &mut job, now).await?;
    }
    Ok(job)
}

/// What a rescue took back.
pub(super) struct Taken {
    pub(super) jobs: Vec<Rescued>,
    /// How many of them were silent; the others were out of time.
    pub(super) lost: usize,
}

/// As many rows as builds run: the index on RUNNING is enough.
pub(in crate::sqlite) const OVERDUE: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM jobs j INDEXED BY jobs_running
      WHERE j.status = 'RUNNING' AND (j.deadline <= ?1 OR j.last_heartbeat <= ?2)
      ORDER BY j.last_heartbeat, j.id LIMIT ?3"
);

pub(super) async fn rescue(moment: &mut Moment, request: &RescueRequest) -> Result<Taken, BackendError> {
    let request =
        RescueRequest { backoff: as_stored(request.backoff), backoff_max: as_stored(request.backoff_max), ..*request };
    let now = moment.now;
    let rows = sqlx::query(OVERDUE)
        .bind(stored::micros(now))
        .bind(stored::before(stored::micros(now), request.lost_after))
        .bind(request.limit as i64)
        .fetch_all(moment.connection())
        .await
        .map_err(failed)?;
    let mut taken = Taken { jobs: Vec::with_capacity(rows.len()), lost: 0 };
    for row in &rows {
        let before = Columns(row).job()?;
        let mut job = before.clone();
        let Some((rescued, outcome)) = transition::rescue(&mut job, &request, now) else {
            continue;
        };
        row::update(moment.connection(), &before, &mut job, now).await?;
        row::end_attempt(moment.connection(), &rescued.lease, &outcome, now).await?;
        taken.lost += usize::from(outcome == AttemptOutcome::LeaseLost);
        taken.jobs.push(rescued);
    }
    Ok(taken)
}

/// See [`transition::standing`]; the history is asked only when the lease is not the current one.
async fn standing(moment: &mut Moment, job: &Job, lease: &Lease, outcome: &AttemptOutcome) -> Result<Standing, Error> {
    let is_current = job.running.as_ref().is_some_and(|running| running.lease == *lease);
    let attempt = if is_current { None } else { row::attempt(moment.connection(), lease).await? };
    transition::standing(job, attempt.as_ref(), lease, outcome)
}

async fn require(moment: &mut Moment, job: JobId) -> Result<Job, Error> {
    row::find(moment.connection(), job).await?.ok_or(Error::NotFound { job })
}

/// A delay cut as instants are stored, so that an answer and a later look agree.
fn as_stored(delay: Duration) -> Duration {
    Duration::from_micros(stored::micros_of(bounds::cut_delay(delay)) as u64)
}
