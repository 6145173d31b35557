//! The steps that cases are made of. Each panics when the backend refuses what it must take.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::model::{
    ArtifactName, ArtifactRef, Attempt, AttemptOutcome, ClaimId, Completion, ConcurrencyKey, DedupKey, Digest, Failure,
    FailureKind, Job, JobId, JobStatus, Lease, NewJob, Retry, Timestamp, Timings, WorkerName,
};
use crate::port::queue::{ClaimRequest, Enqueued, Error, MAX_BATCH, RescueRequest};
use crate::port::{JobQueue, JobQueueExt};

/// The backend under test.
pub(super) type Subject = Arc<dyn JobQueue>;

pub(super) const HOUR: Duration = Duration::from_hours(1);
/// Long enough to be seen by a clock of milliseconds.
pub(super) const MOMENT: Duration = Duration::from_millis(20);

/// Lets the backend's clock run: virtual time where the backend follows tokio's paused clock, else real time.
pub(super) async fn pass(duration: Duration) {
    tokio::time::sleep(duration).await;
}

pub(super) fn job() -> NewJob {
    NewJob::new("web".parse().expect("a name"), "abcdef0123".parse().expect("a commit"))
}

pub(super) fn attempts(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("more than 0")
}

pub(super) fn dedup(key: &str) -> DedupKey {
    key.parse().expect("a key")
}

pub(super) fn key(key: &str) -> ConcurrencyKey {
    key.parse().expect("a key")
}

pub(super) fn worker() -> WorkerName {
    "kit-1".parse().expect("a name")
}

/// `n` fresh ids in rising order.
pub(super) fn rising_ids(n: usize) -> Vec<JobId> {
    let first = JobId::new().as_uuid().as_u128() & !0xffff;
    (0..n as u128).map(|i| Uuid::from_u128(first + i).into()).collect()
}

pub(super) async fn enqueue(queue: &Subject, jobs: &[NewJob]) -> Vec<Enqueued> {
    queue.enqueue(jobs).await.expect("the enqueue is within all bounds")
}

/// Adds a job that is new.
pub(super) async fn add(queue: &Subject, spec: &NewJob) -> JobId {
    let answer = queue.enqueue_one(spec).await.expect("the enqueue is within all bounds");
    assert_eq!(answer, Enqueued::Created { job: spec.id });
    spec.id
}

pub(super) fn request(claim: ClaimId, limit: usize) -> ClaimRequest {
    ClaimRequest { claim, worker: worker(), limit }
}

pub(super) async fn claim_as(queue: &Subject, claim: ClaimId, limit: usize) -> Vec<Job> {
    queue.claim(&request(claim, limit)).await.expect("the claim is within all bounds")
}

/// A claim with an id of its own.
pub(super) async fn claim(queue: &Subject, limit: usize) -> Vec<Job> {
    claim_as(queue, ClaimId::new(), limit).await
}

/// Claims all that there is; the ids, in order.
pub(super) async fn claim_ids(queue: &Subject) -> Vec<JobId> {
    claim(queue, MAX_BATCH).await.iter().map(|job| job.spec.id).collect()
}

/// Claims the one job that there is.
pub(super) async fn claim_one(queue: &Subject) -> Job {
    let mut jobs = claim(queue, 2).await;
    assert_eq!(jobs.len(), 1, "one job is claimable: {jobs:?}");
    jobs.remove(0)
}

/// Adds a job and claims it.
pub(super) async fn start(queue: &Subject, spec: &NewJob) -> Job {
    add(queue, spec).await;
    claim_one(queue).await
}

/// The lease of a running job.
pub(super) fn lease(job: &Job) -> Lease {
    job.running.as_ref().expect("a running job has a lease").lease
}

pub(super) fn success(job: JobId) -> Completion {
    let name = ArtifactName::for_job(&"web".parse().expect("a name"), job);
    let artifact = ArtifactRef { name, digest: Digest::of(job.as_uuid().as_bytes()), size: 16 };
    Completion::Succeeded { artifact, log: None, timings: Timings { build_ms: 70, store_ms: 8 } }
}

pub(super) fn failure(retry: Retry) -> Completion {
    Completion::Failed { failure: Failure::new(FailureKind::Infrastructure, "no disk").with_retry(retry) }
}

/// Ends an attempt at a job that nobody else touches; the job after it.
pub(super) async fn complete(queue: &Subject, lease: &Lease, completion: &Completion) -> Job {
    let status = queue.complete(lease, completion).await.expect("the lease is the current one");
    let job = get(queue, lease.job).await;
    assert_eq!(status, job.status, "the answer is what became of the job");
    job
}

pub(super) async fn get(queue: &Subject, job: JobId) -> Job {
    queue.require(job).await.expect("the job exists")
}

pub(super) async fn history(queue: &Subject, job: JobId) -> Vec<Attempt> {
    queue.attempts(job).await.expect("the history can be read")
}

/// How the newest attempt ended, and when.
pub(super) async fn last_end(queue: &Subject, job: JobId) -> (AttemptOutcome, Timestamp) {
    let last = history(queue, job).await.pop().expect("there was an attempt");
    (last.outcome.expect("it ended"), last.ended_at.expect("it ended at some time"))
}

/// Takes every running lease for lost, and has every rescued job eligible at once.
pub(super) fn rescue_all() -> RescueRequest {
    RescueRequest { lost_after: Duration::ZERO, backoff: Duration::ZERO, backoff_max: Duration::ZERO, limit: MAX_BATCH }
}

/// Takes no lease for lost: only deadlines count.
pub(super) fn rescue_late() -> RescueRequest {
    RescueRequest { lost_after: HOUR, ..rescue_all() }
}

pub(super) async fn rescue(queue: &Subject, request: &RescueRequest) -> Vec<crate::port::queue::Rescued> {
    queue.rescue(request).await.expect("the rescue is within all bounds")
}

/// Every call under `lease` is refused or told that it is lost, and the job stays as it is.
pub(super) async fn assert_zombie(queue: &Subject, lease: &Lease) {
    let before = (get(queue, lease.job).await, history(queue, lease.job).await);
    let beat = queue.heartbeat_one(lease).await.expect("a heartbeat never fails for a lost lease");
    assert_eq!(beat, crate::port::queue::Beat::Lost, "the zombie is told");
    for completion in [success(lease.job), failure(Retry::Never), failure(Retry::After(HOUR)), Completion::Cancelled] {
        assert_lost(queue.complete(lease, &completion).await, lease);
    }
    assert_lost(queue.release(lease, "from the grave", Duration::ZERO).await, lease);
    let after = (get(queue, lease.job).await, history(queue, lease.job).await);
    assert_eq!(before, after, "a zombie changes nothing");
}

pub(super) fn assert_lost<T: std::fmt::Debug>(answer: Result<T, Error>, lease: &Lease) {
    match answer {
        Err(Error::LeaseLost { job, epoch }) => assert_eq!((job, epoch), (lease.job, lease.epoch)),
        other => panic!("LeaseLost is wanted, not {other:?}"),
    }
}

pub(super) fn assert_not_found<T: std::fmt::Debug>(answer: Result<T, Error>, id: JobId) {
    match answer {
        Err(Error::NotFound { job }) => assert_eq!(job, id),
        other => panic!("NotFound is wanted, not {other:?}"),
    }
}

pub(super) fn assert_invalid<T: std::fmt::Debug>(answer: Result<T, Error>) {
    match answer {
        Err(error @ Error::Invalid(_)) => assert!(!error.is_retryable()),
        other => panic!("Invalid is wanted, not {other:?}"),
    }
}

pub(super) async fn assert_status(queue: &Subject, job: JobId, status: JobStatus) -> Job {
    let job = get(queue, job).await;
    assert_eq!(job.status, status, "{job:?}");
    assert_eq!(job.running.is_some(), status == JobStatus::Running, "a lease while it runs, and only then: {job:?}");
    assert_eq!(job.finished_at.is_some(), status.is_finished(), "an end when it ended, and only then: {job:?}");
    job
}
