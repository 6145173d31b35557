//! What becomes of a job: the decisions that every backend must make alike, as pure functions on one job.
//!
//! A backend finds the job and its attempt, calls one of these under its lock or in its transaction, and writes what came out.
//! `now` is the backend's clock. None of them looks at another job: order, dedup keys and concurrency limits are the backend's.
//!
//! ```text
//!            claim                complete(success)
//!  QUEUED ──────────► RUNNING ───────────────────────► SUCCEEDED
//!     ▲                 │  │  failed for good, out of attempts or releases, past the deadline
//!     └─────────────────┘  ├──────────────────────────► FAILED
//!   release, rescue,       │  a cancel was requested
//!   failure to retry       └──────────────────────────► CANCELLED ◄── cancel of a queued job, a newer one in its place
//! ```

use std::time::Duration;

use super::{Beat, ClaimRequest, Error, Fate, RescueRequest, Rescued, bounds};
use crate::model::{
    Attempt, AttemptOutcome, Completion, Epoch, Failure, FailureKind, Job, JobId, JobStatus, Lease, NewJob, Retry,
    RunningLease, Timestamp, elapsed, later,
};

/// A new job, queued, with its turn (see [`turn`](super::turn)). It is eligible when its earliest start has passed.
pub fn enqueue(spec: &NewJob, turn: u64, now: Timestamp) -> Job {
    Job {
        spec: spec.clone(),
        created_at: now,
        status: JobStatus::Queued,
        epoch: Epoch::ZERO,
        attempts: 0,
        releases: 0,
        rescues: 0,
        eligible_at: spec.not_before.map_or(now, |wanted| wanted.max(now)),
        turn,
        running: None,
        cancel_requested: false,
        finished_at: None,
        artifact: None,
        failure: None,
    }
}

/// Starts the next attempt at a queued job; what comes out is the entry for the history.
pub fn claim(job: &mut Job, request: &ClaimRequest, now: Timestamp) -> Attempt {
    debug_assert_eq!(job.status, JobStatus::Queued, "the backend picks among the queued");
    job.status = JobStatus::Running;
    job.epoch = job.epoch.next();
    job.attempts += 1;
    let lease = Lease { job: job.spec.id, claim: request.claim, epoch: job.epoch };
    job.running = Some(RunningLease {
        lease,
        worker: request.worker.clone(),
        claimed_at: now,
        last_heartbeat: now,
        deadline: later(now, job.spec.build_timeout),
    });
    Attempt { lease, worker: request.worker.clone(), claimed_at: now, ended_at: None, outcome: None }
}

/// Takes a heartbeat. The job changes only when the answer is [`Beat::Held`].
pub fn heartbeat(job: &mut Job, lease: &Lease, now: Timestamp) -> Beat {
    let cancel_requested = job.cancel_requested;
    match &mut job.running {
        Some(running) if running.lease == *lease => {
            running.last_heartbeat = running.last_heartbeat.max(now);
            Beat::Held { cancel_requested, time_left: elapsed(now, running.deadline) }
        }
        _ => Beat::Lost,
    }
}

/// What a call under a lease is to the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The lease is the current one: go on.
    Current,
    /// The attempt has ended with this very outcome: change nothing and answer as before.
    Repeated,
}

/// Whether `lease` may end its attempt with `outcome` (cut as it is kept, see [`bounds`]). `attempt` is the entry of the history for
/// the lease's job and epoch, if there is one.
///
/// Errors: `LeaseLost`.
pub fn standing(
    job: &Job,
    attempt: Option<&Attempt>,
    lease: &Lease,
    outcome: &AttemptOutcome,
) -> Result<Standing, Error> {
    if job.running.as_ref().is_some_and(|running| running.lease == *lease) {
        return Ok(Standing::Current);
    }
    match attempt {
        Some(attempt) if attempt.lease == *lease && attempt.outcome.as_ref() == Some(outcome) => Ok(Standing::Repeated),
        _ => Err(Error::LeaseLost { job: lease.job, epoch: lease.epoch }),
    }
}

/// Ends the running attempt with the worker's word, cut as it is kept.
///
/// Errors: `Invalid` when the worker says cancelled and nobody asked; the job is unchanged then.
pub fn complete(job: &mut Job, completion: &Completion, now: Timestamp) -> Result<(), Error> {
    match completion {
        Completion::Succeeded { artifact, .. } => {
            job.artifact = Some(artifact.clone());
            finish(job, JobStatus::Succeeded, now);
        }
        Completion::Failed { failure } => {
            job.failure = Some(failure.clone());
            match failure.retry {
                Retry::After(_) if job.cancel_requested => finish(job, JobStatus::Cancelled, now),
                Retry::After(delay) if has_attempts_left(job) => requeue(job, later(now, delay)),
                Retry::Never | Retry::After(_) => finish(job, JobStatus::Failed, now),
            }
        }
        Completion::Cancelled if job.cancel_requested => finish(job, JobStatus::Cancelled, now),
        Completion::Cancelled => {
            let id = job.spec.id;
            return Err(Error::Invalid(format!(
                "nobody asked to cancel job {id}: release it, or complete it as failed"
            )));
        }
    }
    Ok(())
}

/// Ends the running attempt without burning it.
pub fn release(job: &mut Job, reason: &str, delay: Duration, now: Timestamp) -> Fate {
    job.attempts = job.attempts.saturating_sub(1);
    job.releases += 1;
    let bound = job.spec.max_releases;
    let fate = if job.cancel_requested {
        Fate::Cancelled
    } else if job.releases > bound {
        let message = format!("released more often than {bound} times, at last because: {reason}");
        Fate::Failed { failure: Failure::new(FailureKind::Released, message) }
    } else {
        Fate::Requeued { eligible_at: later(now, bounds::cut_delay(delay)) }
    };
    follow(job, &fate, now);
    fate
}

/// The answer to a repeated release of the attempt `epoch`: where the job went, or has gone since.
pub fn released(job: &Job, epoch: Epoch) -> Fate {
    let requeued = Fate::Requeued { eligible_at: job.eligible_at };
    match job.status {
        _ if job.epoch != epoch => requeued,
        JobStatus::Cancelled => Fate::Cancelled,
        JobStatus::Failed => job.failure.clone().map_or(requeued, |failure| Fate::Failed { failure }),
        JobStatus::Queued | JobStatus::Running | JobStatus::Succeeded => requeued,
    }
}

/// Ends the running attempt if its lease is lost or its deadline has passed, with the entry for the history; else the job is
/// unchanged. A job that is both lost and past its deadline is past its deadline.
pub fn rescue(job: &mut Job, request: &RescueRequest, now: Timestamp) -> Option<(Rescued, AttemptOutcome)> {
    let running = job.running.as_ref()?;
    let (lease, silent) = (running.lease, elapsed(running.last_heartbeat, now));
    let outcome = if now >= running.deadline {
        AttemptOutcome::DeadlinePassed
    } else if silent >= request.lost_after {
        job.rescues += 1;
        AttemptOutcome::LeaseLost
    } else {
        return None;
    };
    let fate = if job.cancel_requested {
        Fate::Cancelled
    } else if outcome == AttemptOutcome::DeadlinePassed {
        let message = format!("the build took longer than {:?}", job.spec.build_timeout);
        Fate::Failed { failure: Failure::new(FailureKind::Timeout, message) }
    } else if has_attempts_left(job) {
        let delay = bounds::cut_delay(request.delay(job.rescues));
        Fate::Requeued { eligible_at: later(now, delay) }
    } else {
        let message = format!("the worker was silent for {silent:?}, and all {} attempts are spent", job.attempts);
        Fate::Failed { failure: Failure::new(FailureKind::LeaseLost, message) }
    };
    follow(job, &fate, now);
    Some((Rescued { lease, fate }, outcome))
}

/// Asks for the end of a job.
pub fn cancel(job: &mut Job, now: Timestamp) {
    match job.status {
        JobStatus::Queued => {
            job.cancel_requested = true;
            finish(job, JobStatus::Cancelled, now);
        }
        JobStatus::Running => job.cancel_requested = true,
        JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled => {}
    }
}

/// Ends a queued job whose place a newer one of its service takes; whether it was queued.
pub fn supersede(job: &mut Job, newer: JobId, now: Timestamp) -> bool {
    if job.status != JobStatus::Queued {
        return false;
    }
    job.failure = Some(Failure::new(FailureKind::Superseded, format!("superseded by job {newer}")));
    cancel(job, now);
    true
}

fn has_attempts_left(job: &Job) -> bool {
    job.attempts < job.spec.max_attempts.get()
}

fn follow(job: &mut Job, fate: &Fate, now: Timestamp) {
    match fate {
        Fate::Requeued { eligible_at } => requeue(job, *eligible_at),
        Fate::Failed { failure } => {
            job.failure = Some(failure.clone());
            finish(job, JobStatus::Failed, now);
        }
        Fate::Cancelled => finish(job, JobStatus::Cancelled, now),
    }
}

fn requeue(job: &mut Job, eligible_at: Timestamp) {
    job.status = JobStatus::Queued;
    job.running = None;
    job.eligible_at = eligible_at;
}

fn finish(job: &mut Job, status: JobStatus, now: Timestamp) {
    job.status = status;
    job.running = None;
    job.finished_at = Some(now);
}
