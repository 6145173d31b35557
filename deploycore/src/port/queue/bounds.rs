//! What a queue refuses and what it cuts, the same in every backend.
//!
//! A request that the caller can mend is refused with [`Error::Invalid`]. What a worker says at the end of an attempt is cut
//! instead, because refusing it would strand the job until its lease is lost.

use std::time::Duration;

use super::{ClaimRequest, Error, MAX_BATCH, MAX_PAGE, RescueRequest};
use crate::model::{Completion, Failure, NewJob, Retry};

/// The most attempts that a job may ask for.
pub const MAX_ATTEMPTS: u32 = 100;
/// The most releases that a job may ask for.
pub const MAX_RELEASES: u32 = 1_000;
/// The longest build timeout that a job may ask for: a week.
pub const MAX_BUILD_TIMEOUT: Duration = Duration::from_hours(7 * 24);
/// The longest delay before a job is queued again: a day. A longer one is cut.
pub const MAX_DELAY: Duration = Duration::from_hours(24);

/// Refuses an enqueue of too many jobs, or of one that could run too long or too often.
pub fn check_enqueue(jobs: &[NewJob]) -> Result<(), Error> {
    check_batch("jobs to enqueue", jobs.len())?;
    jobs.iter().try_for_each(check_job)
}

fn check_job(job: &NewJob) -> Result<(), Error> {
    if job.max_attempts.get() > MAX_ATTEMPTS {
        return invalid(format!("job {}: at most {MAX_ATTEMPTS} attempts, not {}", job.id, job.max_attempts));
    }
    if job.max_releases > MAX_RELEASES {
        return invalid(format!("job {}: at most {MAX_RELEASES} releases, not {}", job.id, job.max_releases));
    }
    if job.build_timeout.is_zero() || job.build_timeout > MAX_BUILD_TIMEOUT {
        return invalid(format!(
            "job {}: a build timeout of {MAX_BUILD_TIMEOUT:?} at most and more than zero, not {:?}",
            job.id, job.build_timeout
        ));
    }
    Ok(())
}

/// Refuses a claim of no jobs or of too many.
pub fn check_claim(request: &ClaimRequest) -> Result<(), Error> {
    check_limit("jobs to claim", request.limit)
}

/// Refuses more than [`MAX_BATCH`] items of a batch, for instance leases to beat for.
pub fn check_batch(what: &str, len: usize) -> Result<(), Error> {
    if len > MAX_BATCH {
        return invalid(format!("at most {MAX_BATCH} {what}, not {len}"));
    }
    Ok(())
}

/// Refuses a rescue of no jobs or of too many.
pub fn check_rescue(request: &RescueRequest) -> Result<(), Error> {
    check_limit("jobs to rescue", request.limit)
}

/// Refuses to prune no jobs or too many.
pub fn check_prune(limit: usize) -> Result<(), Error> {
    check_limit("jobs to prune", limit)
}

/// Refuses a page of no jobs or of too many.
pub fn check_page(limit: u32) -> Result<(), Error> {
    if limit == 0 || limit > MAX_PAGE {
        return invalid(format!("1 to {MAX_PAGE} jobs in a page, not {limit}"));
    }
    Ok(())
}

/// A completion as it is kept and compared: message and delay cut.
pub fn cut_completion(completion: &Completion) -> Completion {
    let mut kept = completion.clone();
    if let Completion::Failed { failure } = &mut kept {
        failure.message.truncate(Failure::cut(&failure.message).len());
        if let Retry::After(delay) = &mut failure.retry {
            *delay = cut_delay(*delay);
        }
    }
    kept
}

/// A delay, cut to [`MAX_DELAY`].
pub fn cut_delay(delay: Duration) -> Duration {
    delay.min(MAX_DELAY)
}

fn check_limit(what: &str, limit: usize) -> Result<(), Error> {
    if limit == 0 || limit > MAX_BATCH {
        return invalid(format!("1 to {MAX_BATCH} {what}, not {limit}"));
    }
    Ok(())
}

fn invalid<T>(why: String) -> Result<T, Error> {
    Err(Error::Invalid(why))
}
