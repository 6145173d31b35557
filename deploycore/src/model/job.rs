//! A job: one build of one commit of one service.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    ArtifactRef, ClaimId, CommitId, ConcurrencyKey, DedupKey, JobId, LogName, ServiceName, Timestamp, WorkerName,
    friendly,
};

/// Where a job stands. `Queued → Running → Succeeded | Failed | Cancelled`; a lost lease leads from `Running` back to
/// `Queued`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobStatus {
    /// Waits to be claimed.
    Queued,
    /// A worker holds its lease.
    Running,
    /// The artifact is in the main store.
    Succeeded,
    /// It will not be tried again.
    Failed,
    /// Cancelled on request.
    Cancelled,
}

impl JobStatus {
    /// All five, in the order of the road.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// Whether the job has reached its end.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The word that stands in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// The status that a word names.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Counts the claims of a job. It only grows; the newest one is the only one that may write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// Before the first claim.
    pub const ZERO: Self = Self(0);

    /// An epoch from its number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The epoch of the next claim.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A worker's right to a job. Only the current one, by both claim and epoch, can heartbeat, complete or release the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// The call of claim that took it.
    pub claim: ClaimId,
    /// Which claim of the job this is.
    pub epoch: Epoch,
}

/// What becomes of the older jobs of a service when a newer one is enqueued.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OlderJobs {
    /// They stay.
    #[default]
    Keep,
    /// Those that are queued, also for another attempt, are cancelled. Those that run are left alone.
    CancelQueued,
}

/// What to enqueue. The id, chosen by the caller, makes repeating the call harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewJob {
    /// Chosen by the caller.
    pub id: JobId,
    /// What is built.
    pub service: ServiceName,
    /// From which commit.
    pub commit: CommitId,
    /// Higher first; 0 by default.
    #[serde(default)]
    pub priority: i16,
    /// Not claimed before this instant of the database's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Claims that may be used up by failures and lost leases; 3 by default.
    #[serde(default = "default_max_attempts")]
    pub max_attempts: NonZeroU32,
    /// Releases that burn no attempt; one more fails the job. 10 by default.
    #[serde(default = "default_max_releases")]
    pub max_releases: u32,
    /// How long one attempt may take by the database's clock; 15 minutes by default.
    #[serde(with = "friendly", default = "default_build_timeout")]
    pub build_timeout: Duration,
    /// Unique among unfinished jobs: enqueueing it again yields the job that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedup_key: Option<DedupKey>,
    /// Jobs with the same key share a limit of concurrent builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_key: Option<ConcurrencyKey>,
    /// Whether it takes the place of what is queued of its service; it does not by default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub older_jobs: OlderJobs,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn default_max_attempts() -> NonZeroU32 {
    NonZeroU32::new(3).expect("3 is not 0")
}

fn default_max_releases() -> u32 {
    10
}

fn default_build_timeout() -> Duration {
    Duration::from_mins(15)
}

impl NewJob {
    /// A job with a fresh id and the defaults of each field.
    pub fn new(service: ServiceName, commit: CommitId) -> Self {
        Self {
            id: JobId::new(),
            service,
            commit,
            priority: 0,
            not_before: None,
            max_attempts: default_max_attempts(),
            max_releases: default_max_releases(),
            build_timeout: default_build_timeout(),
            dedup_key: None,
            concurrency_key: None,
            older_jobs: OlderJobs::Keep,
        }
    }

    /// Sets the id.
    #[must_use]
    pub fn with_id(mut self, id: JobId) -> Self {
        self.id = id;
        self
    }

    /// Sets the priority; higher goes first.
    #[must_use]
    pub fn with_priority(mut self, priority: i16) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the earliest start.
    #[must_use]
    pub fn with_not_before(mut self, instant: Timestamp) -> Self {
        self.not_before = Some(instant);
        self
    }

    /// Sets how many attempts there may be.
    #[must_use]
    pub fn with_max_attempts(mut self, attempts: NonZeroU32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets how many releases burn no attempt.
    #[must_use]
    pub fn with_max_releases(mut self, releases: u32) -> Self {
        self.max_releases = releases;
        self
    }

    /// Sets how long one attempt may take.
    #[must_use]
    pub fn with_build_timeout(mut self, timeout: Duration) -> Self {
        self.build_timeout = timeout;
        self
    }

    /// Makes the job unique among unfinished ones.
    #[must_use]
    pub fn with_dedup_key(mut self, key: DedupKey) -> Self {
        self.dedup_key = Some(key);
        self
    }

    /// Puts the job under the limit of a key.
    #[must_use]
    pub fn with_concurrency_key(mut self, key: ConcurrencyKey) -> Self {
        self.concurrency_key = Some(key);
        self
    }

    /// Sets what becomes of the older jobs of its service.
    #[must_use]
    pub fn with_older_jobs(mut self, older_jobs: OlderJobs) -> Self {
        self.older_jobs = older_jobs;
        self
    }
}

/// A job as the queue knows it. Every instant is of the database's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What was enqueued.
    #[serde(flatten)]
    pub spec: NewJob,
    /// When it was enqueued.
    pub created_at: Timestamp,
    /// Where it stands.
    pub status: JobStatus,
    /// How often it was claimed.
    pub epoch: Epoch,
    /// Attempts used up, the running one included.
    pub attempts: u32,
    /// Releases used up.
    pub releases: u32,
    /// Leases lost so far.
    pub rescues: u32,
    /// While queued: not claimed before this instant (the wanted earliest start, or a backoff).
    pub eligible_at: Timestamp,
    /// Its place among the jobs of its priority: the smaller goes first. See [`Order`](crate::port::queue::Order).
    #[serde(default)]
    pub turn: u64,
    /// Who runs it, while running.
    pub running: Option<RunningLease>,
    /// Whether someone asked to cancel it.
    pub cancel_requested: bool,
    /// When it reached its end.
    pub finished_at: Option<Timestamp>,
    /// What it produced, once succeeded.
    pub artifact: Option<ArtifactRef>,
    /// The last failure, also when the job goes on.
    pub failure: Option<Failure>,
}

/// The lease of a running job, with its times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningLease {
    /// The right to write.
    pub lease: Lease,
    /// Who said it is.
    pub worker: WorkerName,
    /// When it was claimed.
    pub claimed_at: Timestamp,
    /// The newest heartbeat, or the claim.
    pub last_heartbeat: Timestamp,
    /// When the attempt is out of time.
    pub deadline: Timestamp,
}

/// How an attempt ends by its worker's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Completion {
    /// The artifact is in the main store, whole.
    Succeeded {
        /// What was stored.
        artifact: ArtifactRef,
        /// The log of the attempt, if one was kept.
        log: Option<LogName>,
        /// How long it took, by the worker's clock.
        timings: Timings,
    },
    /// The build failed.
    Failed {
        /// Why, and whether another attempt may help.
        failure: Failure,
    },
    /// The worker stopped because a cancel was requested.
    Cancelled,
}

/// Where the time of a successful attempt went, by the worker's clock: for people and reports, never for decisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// From the claim to the first byte of output, in milliseconds.
    pub build_ms: u64,
    /// From the first byte of output until the artifact was durable in the main store, in milliseconds.
    pub store_ms: u64,
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// For people; cut to [`Failure::MAX_MESSAGE`] bytes by [`Failure::new`].
    pub message: String,
    /// The log of the attempt, if one was kept.
    pub log: Option<LogName>,
    /// Whether to try again.
    pub retry: Retry,
}

impl Failure {
    /// The longest message, in bytes.
    pub const MAX_MESSAGE: usize = 4096;

    /// A failure that is not to be retried, with no log.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(Self::cut(&message).len());
        Self { kind, message, log: None, retry: Retry::Never }
    }

    /// The longest head of a text that fits a message.
    pub fn cut(text: &str) -> &str {
        &text[..text.floor_char_boundary(Self::MAX_MESSAGE)]
    }

    /// Names the log.
    #[must_use]
    pub fn with_log(mut self, log: LogName) -> Self {
        self.log = Some(log);
        self
    }

    /// Sets whether to try again.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }
}

/// What kind of failure ended an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The build itself failed: trying the same commit again gives the same.
    Build,
    /// The build took longer than it may.
    Timeout,
    /// The lease was lost more often than attempts allow.
    LeaseLost,
    /// The job was released more often than it may be.
    Released,
    /// Something around the build failed: the store, the checkout, the disk.
    Infrastructure,
    /// A newer job of the service took its place before it ran.
    Superseded,
}

/// Whether a failed attempt is followed by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// The job is FAILED.
    Never,
    /// The job is queued again after this delay, if it has attempts left.
    After(#[serde(with = "friendly")] Duration),
}

/// One claim of a job and how it ended. Kept until the job is pruned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The lease it had.
    pub lease: Lease,
    /// Who said it was.
    pub worker: WorkerName,
    /// When it was claimed.
    pub claimed_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it ended; `None` while it runs.
    pub outcome: Option<AttemptOutcome>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AttemptOutcome {
    /// The worker completed it.
    Completed {
        /// What the worker said.
        completion: Completion,
    },
    /// The worker gave it back.
    Released {
        /// Why.
        reason: String,
    },
    /// No heartbeat for too long; the reaper took it.
    LeaseLost,
    /// Out of time by the database's clock; the reaper took it.
    DeadlinePassed,
}
