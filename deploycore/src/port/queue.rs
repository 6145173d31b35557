//! The queue of build jobs.
//!
//! What follows from each call is decided by pure functions that every backend shares: [`bounds`], [`transition`] and [`turn`].

pub mod bounds;
mod hint;
pub mod transition;
pub mod turn;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use hint::{ReadyHint, ReadyHints};
pub use turn::Order;

use super::BackendError;
use crate::model::{
    Attempt, ClaimId, CommitId, Completion, ConcurrencyKey, Failure, Job, JobId, JobStatus, Lease, NewJob, ServiceName,
    Timestamp, WorkerName,
};

/// What can go wrong with a queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No job has this id.
    #[error("job {job} does not exist, or was pruned")]
    NotFound {
        /// The id.
        job: JobId,
    },
    /// The id is taken by a job with another body.
    #[error("job {job} exists with another body: a job id stands for one enqueue")]
    Conflict {
        /// The id.
        job: JobId,
    },
    /// The lease is not the current one: the job was rescued, cancelled, completed or released meanwhile.
    #[error("the lease on job {job} (epoch {epoch}) is lost: stop the build and drop its result")]
    LeaseLost {
        /// The job.
        job: JobId,
        /// The epoch of the refused lease.
        epoch: crate::model::Epoch,
    },
    /// The request breaks a bound of the contract.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// Anything below the contract.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Backend(error) if error.is_retryable())
    }
}

/// The most items in one call: jobs to enqueue, claim, rescue or prune, leases to beat for, attempts to end.
pub const MAX_BATCH: usize = 1_000;
/// The most jobs in one page of a list.
pub const MAX_PAGE: u32 = 1_000;

/// What an enqueue did with one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Enqueued {
    /// It was added.
    Created {
        /// Its id.
        job: JobId,
    },
    /// The same job was enqueued before.
    Repeated {
        /// Its id.
        job: JobId,
    },
    /// An unfinished job has the same dedup key; nothing was added.
    Deduplicated {
        /// The id of that job.
        existing: JobId,
    },
}

impl Enqueued {
    /// The job that stands for the request.
    pub fn job(self) -> JobId {
        match self {
            Self::Created { job } | Self::Repeated { job } | Self::Deduplicated { existing: job } => job,
        }
    }
}

/// A worker's wish for jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRequest {
    /// Chosen by the caller: a repeated call with the same id gives the same jobs and never further ones.
    pub claim: ClaimId,
    /// Who asks, for the attempt history.
    pub worker: WorkerName,
    /// At most this many jobs, 1 to [`MAX_BATCH`].
    pub limit: usize,
}

/// What a heartbeat learnt of one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// The lease holds.
    Held {
        /// Someone asked to cancel: stop the build and complete it as cancelled.
        cancel_requested: bool,
        /// What is left of the build's time, by the database's clock.
        time_left: Duration,
    },
    /// The lease is not the current one any more: stop the build, drop its result.
    Lost,
}

/// The end of one attempt, among others in one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptEnd {
    /// Whose attempt it was.
    pub lease: Lease,
    /// How it ended.
    pub completion: Completion,
}

/// Which lost leases to rescue and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RescueRequest {
    /// A lease whose newest heartbeat is at least this old is lost.
    pub lost_after: Duration,
    /// The delay before the second rescue of a job; it doubles with each further one. The first has none.
    pub backoff: Duration,
    /// The longest such delay.
    pub backoff_max: Duration,
    /// At most this many jobs, 1 to [`MAX_BATCH`].
    pub limit: usize,
}

impl Default for RescueRequest {
    /// Lost after 90 s, backing off from 10 s to 5 min, 1,000 jobs at once.
    fn default() -> Self {
        Self {
            lost_after: Duration::from_secs(90),
            backoff: Duration::from_secs(10),
            backoff_max: Duration::from_mins(5),
            limit: MAX_BATCH,
        }
    }
}

impl RescueRequest {
    /// The delay after the `rescues`-th rescue of a job, counted from 1.
    pub fn delay(&self, rescues: u32) -> Duration {
        match rescues {
            0 | 1 => Duration::ZERO,
            n => self.backoff.saturating_mul(1 << (n - 2).min(20)).min(self.backoff_max),
        }
    }
}

/// What a rescue did with one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rescued {
    /// The lease that is now void.
    pub lease: Lease,
    /// Where the job went.
    pub fate: Fate,
}

/// Where a job goes when its lease ends without a completion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fate {
    /// Back to the queue.
    Requeued {
        /// Not claimed before this instant.
        eligible_at: Timestamp,
    },
    /// To its end.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// A cancel had been requested.
    Cancelled,
}

/// Which jobs a list shows; an empty filter shows all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobFilter {
    /// Any of these; empty for all.
    pub statuses: Vec<JobStatus>,
    /// Of this service.
    pub service: Option<ServiceName>,
    /// Of this commit.
    pub commit: Option<CommitId>,
    /// Finished at this instant or later.
    pub finished_since: Option<Timestamp>,
}

/// A place in a list of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCursor {
    /// Of the last job shown.
    pub created_at: Timestamp,
    /// Of the last job shown.
    pub job: JobId,
}

/// A page of jobs, newest `created_at` first, then greatest id first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<JobCursor>,
}

/// The queue at one instant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Jobs in each status; a status without jobs is listed with 0.
    pub counts: BTreeMap<JobStatus, u64>,
    /// How long the queued job that waits longest has been eligible, in seconds, whether a pause, a concurrency limit or a lack of
    /// workers keeps it. `None` when no queued job is eligible.
    pub oldest_queued_seconds: Option<f64>,
    /// Whether claiming is paused.
    pub paused: bool,
    /// Which job goes first among those of one priority.
    #[serde(default)]
    pub order: Order,
}

/// Whether jobs are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claiming {
    /// Claims get jobs.
    Open,
    /// Claims get none; everything else goes on.
    Paused,
}

/// A queue of build jobs. See the [module](crate::port) for clocks, repeating and cancel safety.
///
/// Order of claims: higher priority, then smaller turn, then older `created_at`, then smaller id, among the jobs whose earliest start has passed
/// and whose concurrency key is below its limit. All turns are the same but under [`Order::FairShare`]. A job that comes back keeps its turn.
#[async_trait]
pub trait JobQueue: Send + Sync + Debug + 'static {
    /// Adds jobs, all or none; the answers stand in the order of the jobs. At most [`MAX_BATCH`].
    ///
    /// Once it returned, the jobs survive the loss of any process and of power. Idempotent by job id. Two jobs of one call with
    /// the same dedup key, or the same id, count as if enqueued one after the other. A known id is looked at before the dedup key. A
    /// deduplicated job leaves no trace: repeated after the other job has finished, it is created.
    ///
    /// A job that is created with [`OlderJobs::CancelQueued`](crate::model::OlderJobs) cancels, in the same transaction, the jobs of its service that
    /// are QUEUED then, those before it in the same call too: each is CANCELLED with a failure that names the newer job. Of two such calls at
    /// once neither may see the other's jobs. A repeated or deduplicated job cancels nothing.
    ///
    /// Errors: `Conflict` when an id is taken by another body; `Invalid` past the [`bounds`].
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error>;

    /// Takes up to `limit` jobs in order, each with a lease whose epoch is one more than any before, in one transaction.
    ///
    /// Idempotent by claim id: a repeated call gives those jobs of the first call whose lease still holds, and no others, also while
    /// claiming is paused. A call that got no job leaves no trace, and a claim is forgotten when its last job is pruned. No two claims
    /// ever hold one job, and no concurrency limit is ever passed. Empty when nothing is claimable or claiming is paused.
    ///
    /// Errors: `Invalid` past the [`bounds`].
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error>;

    /// Shows that the builds under these leases live; the answers stand in the order of the leases. At most [`MAX_BATCH`].
    ///
    /// A heartbeat does not move a build's deadline; past it the lease holds, with no time left, until a rescue. A lease on a job that
    /// does not exist is lost.
    ///
    /// Errors: `Invalid` past the [`bounds`].
    async fn heartbeat(&self, leases: &[Lease]) -> Result<Vec<Beat>, Error>;

    /// Ends an attempt, and gives the status of the job after it. Repeating it with the same completion succeeds and changes nothing; it gives the status
    /// that the job has by then.
    ///
    /// A failure with [`Retry::After`](crate::model::Retry) queues the job again while attempts are left; a requested cancel makes the job
    /// CANCELLED instead. A failure with `Retry::Never` makes it FAILED in any case, and a success is taken although a cancel was
    /// requested: the work is done. Messages and delays past the [`bounds`] are cut.
    ///
    /// Errors: `LeaseLost` when the lease is not the current one or ended with another completion; `NotFound`; `Invalid` for
    /// [`Completion::Cancelled`] where no cancel was requested.
    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error>;

    /// Ends several attempts, each as [`complete`](Self::complete) would, for the price of about one; the answers stand in the order of the
    /// ends, each the status of the job after it. At most [`MAX_BATCH`].
    ///
    /// Each end has an answer of its own: one that is refused leaves the others alone. Two ends of one lease count as if one came after the
    /// other. Once it returned, all that it answered for is durable. A call that fails as a whole may have ended any of the attempts:
    /// repeated, it is answered as repeated calls of `complete` are.
    ///
    /// Errors of an end: `LeaseLost`, `NotFound`, `Invalid`, as of `complete`. Errors of the call: `Invalid` past the [`bounds`], `Backend`.
    async fn complete_batch(&self, ends: &[AttemptEnd]) -> Result<Vec<Result<JobStatus, Error>>, Error> {
        bounds::check_batch("attempts to end", ends.len())?;
        let mut answers = Vec::with_capacity(ends.len());
        for AttemptEnd { lease, completion } in ends {
            match self.complete(lease, completion).await {
                Err(error @ Error::Backend(_)) => return Err(error),
                answer => answers.push(answer),
            }
        }
        Ok(answers)
    }

    /// Gives a job back without burning an attempt, claimable again after `delay`; past the job's bound of releases it fails.
    /// A requested cancel takes effect. Repeating it with the same reason succeeds, changes nothing, and tells where the job went or
    /// has gone since. A reason or delay past the [`bounds`] is cut.
    ///
    /// Errors: `LeaseLost`, `NotFound`.
    async fn release(&self, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error>;

    /// Asks for the end of a job: a queued one is cancelled at once, a running one learns of it by its heartbeat, a finished one
    /// stays as it is. Idempotent.
    ///
    /// Errors: `NotFound`.
    async fn cancel(&self, job: JobId) -> Result<Job, Error>;

    /// Takes back jobs whose lease is lost or whose deadline passed, by the database's clock.
    ///
    /// Lost: to the queue while attempts are left, else FAILED. Past the deadline: FAILED, also when it still heartbeats. A
    /// requested cancel makes either CANCELLED. Safe to run many times at once: each lease is rescued once. The order is free.
    ///
    /// Errors: `Invalid` past the [`bounds`].
    async fn rescue(&self, request: &RescueRequest) -> Result<Vec<Rescued>, Error>;

    /// One job, or `None`.
    async fn get(&self, job: JobId) -> Result<Option<Job>, Error>;

    /// A page of at most `limit` (1 to [`MAX_PAGE`]) jobs after `after`. A job that exists during the whole walk is shown once.
    ///
    /// Errors: `Invalid` past the [`bounds`].
    async fn list(&self, filter: &JobFilter, after: Option<JobCursor>, limit: u32) -> Result<JobPage, Error>;

    /// Counts and age.
    async fn stats(&self) -> Result<QueueStats, Error>;

    /// The attempts at a job, oldest first. Empty when the job does not exist.
    async fn attempts(&self, job: JobId) -> Result<Vec<Attempt>, Error>;

    /// Deletes at most `limit` (1 to [`MAX_BATCH`]) jobs that finished at least `age` ago, with their attempts, first those that
    /// finished first; how many it deleted.
    ///
    /// Errors: `Invalid` past the [`bounds`].
    async fn prune(&self, age: Duration, limit: usize) -> Result<usize, Error>;

    /// Pauses or resumes claiming, durably and for every worker. Idempotent.
    async fn set_claiming(&self, claiming: Claiming) -> Result<(), Error>;

    /// Sets how many jobs of a key may run at once, durably; 1 where it was never set. Lowering it ends no running job. Idempotent.
    async fn set_concurrency_limit(&self, key: &ConcurrencyKey, limit: NonZeroU32) -> Result<(), Error>;

    /// Sets which job goes first among those of one priority, durably and for every program; [`Order::Oldest`] where it was never set. Idempotent.
    ///
    /// It is for the jobs that are enqueued from now on. Those that wait under another order are claimed before all of these, in the order
    /// that they have.
    async fn set_order(&self, order: Order) -> Result<(), Error>;

    /// Tells from now on when jobs may have become claimable, so that a worker with nothing to do starts sooner than it would look again. A
    /// hint may come for nothing, late, or not at all; a backend that has none never gives any. Each hint is for one waiter of the process,
    /// which [passes it on](ReadyHint::pass_on) when there may be more jobs.
    fn ready(&self) -> ReadyHint {
        ReadyHint::never()
    }
}

/// Convenience on any [`JobQueue`].
#[async_trait]
pub trait JobQueueExt: JobQueue {
    /// Adds one job.
    async fn enqueue_one(&self, job: &NewJob) -> Result<Enqueued, Error> {
        let answers = self.enqueue(std::slice::from_ref(job)).await?;
        answers.into_iter().next().ok_or_else(|| short_answer("enqueue"))
    }

    /// Beats for one lease.
    async fn heartbeat_one(&self, lease: &Lease) -> Result<Beat, Error> {
        let beats = self.heartbeat(std::slice::from_ref(lease)).await?;
        beats.into_iter().next().ok_or_else(|| short_answer("heartbeat"))
    }

    /// One job; `NotFound` instead of `None`.
    async fn require(&self, job: JobId) -> Result<Job, Error> {
        self.get(job).await?.ok_or(Error::NotFound { job })
    }
}

impl<T: JobQueue + ?Sized> JobQueueExt for T {}

fn short_answer(call: &'static str) -> Error {
    Error::Backend(BackendError::permanent("queue", format!("{call} answered for fewer items than it was given")))
}
