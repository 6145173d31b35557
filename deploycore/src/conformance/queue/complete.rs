//! Ending an attempt by the worker's word.

use std::time::Duration;

use super::steps::*;
use crate::model::{
    AttemptOutcome, ClaimId, Completion, Epoch, Failure, FailureKind, Job, JobId, JobStatus, Lease, LogName, Retry,
    Timings, later,
};
use crate::port::queue::bounds;

async fn assert_last_completion(queue: &Subject, job: JobId, wanted: &Completion) {
    let (outcome, _) = last_end(queue, job).await;
    assert_eq!(outcome, AttemptOutcome::Completed { completion: wanted.clone() });
}

/// Success: the artifact, the end and the log are kept.
pub async fn a_success_is_kept(queue: Subject) {
    let running = start(&queue, &job()).await;
    let Completion::Succeeded { artifact, .. } = success(running.spec.id) else { unreachable!() };
    let log = Some(LogName { job: running.spec.id, epoch: running.epoch });
    let completion = Completion::Succeeded {
        artifact: artifact.clone(),
        log,
        timings: Timings { build_ms: 5, store_ms: u64::from(u32::MAX) },
    };
    let answer = complete(&queue, &lease(&running), &completion).await;
    let job = assert_status(&queue, running.spec.id, JobStatus::Succeeded).await;
    assert_eq!(answer, job);
    assert_eq!((job.artifact, job.failure, job.attempts), (Some(artifact), None, 1));
    assert_last_completion(&queue, running.spec.id, &completion).await;
    let (_, ended_at) = last_end(&queue, running.spec.id).await;
    assert_eq!(job.finished_at, Some(ended_at));
    assert!(claim_ids(&queue).await.is_empty());
}

/// A failure for good: its kind, message and log are kept.
pub async fn a_failure_for_good_ends_the_job(queue: Subject) {
    for kind in [FailureKind::Build, FailureKind::Timeout, FailureKind::Infrastructure] {
        let running = start(&queue, &job().with_max_attempts(attempts(5))).await;
        let log = LogName { job: running.spec.id, epoch: running.epoch };
        let failure = Failure::new(kind, "line 1\nline 2: \u{201c}it's\u{201d} broken").with_log(log);
        let completion = Completion::Failed { failure: failure.clone() };
        let answer = complete(&queue, &lease(&running), &completion).await;
        let job = assert_status(&queue, running.spec.id, JobStatus::Failed).await;
        assert_eq!(answer, job);
        assert_eq!((job.failure, job.artifact), (Some(failure), None));
        assert_last_completion(&queue, running.spec.id, &completion).await;
    }
    assert!(claim_ids(&queue).await.is_empty());
}

/// A failure to retry: queued again, eligible after exactly its delay.
pub async fn a_failure_to_retry_queues_the_job_again(queue: Subject) {
    let running = start(&queue, &job()).await;
    let completion = failure(Retry::After(HOUR));
    let answer = complete(&queue, &lease(&running), &completion).await;
    let waiting = assert_status(&queue, running.spec.id, JobStatus::Queued).await;
    assert_eq!(answer, waiting);
    let (_, ended_at) = last_end(&queue, running.spec.id).await;
    assert_eq!(waiting.eligible_at, later(ended_at, HOUR));
    assert_eq!((waiting.attempts, waiting.releases, waiting.rescues), (1, 0, 0));
    let Completion::Failed { failure } = completion else { unreachable!() };
    assert_eq!(waiting.failure, Some(failure), "the last failure shows although the job goes on");
    assert!(claim_ids(&queue).await.is_empty(), "not before its delay");
}

/// Attempts are bounded: the last one's failure is the job's.
pub async fn the_last_attempt_ends_the_job(queue: Subject) {
    let spec = job().with_max_attempts(attempts(3));
    add(&queue, &spec).await;
    for round in 1..=3 {
        let running = claim_one(&queue).await;
        assert_eq!(running.attempts, round);
        let after = complete(&queue, &lease(&running), &failure(Retry::After(Duration::ZERO))).await;
        assert_eq!(after.status, if round < 3 { JobStatus::Queued } else { JobStatus::Failed });
    }
    let job = assert_status(&queue, spec.id, JobStatus::Failed).await;
    assert_eq!((job.attempts, job.failure.map(|failure| failure.kind)), (3, Some(FailureKind::Infrastructure)));
    assert!(claim_ids(&queue).await.is_empty());
}

/// Success after a failure is success.
pub async fn a_retry_may_succeed(queue: Subject) {
    let running = start(&queue, &job()).await;
    complete(&queue, &lease(&running), &failure(Retry::After(Duration::ZERO))).await;
    let running = claim_one(&queue).await;
    complete(&queue, &lease(&running), &success(running.spec.id)).await;
    let job = assert_status(&queue, running.spec.id, JobStatus::Succeeded).await;
    assert!(job.artifact.is_some());
    assert_eq!(history(&queue, running.spec.id).await.len(), 2);
}

/// A lost reply: the same completion again succeeds and changes nothing; another one is refused.
pub async fn repeating_changes_nothing(queue: Subject) {
    let completions = |job| [success(job), failure(Retry::Never), failure(Retry::After(HOUR))];
    for index in 0..3 {
        let running = start(&queue, &job()).await;
        let (id, lease) = (running.spec.id, lease(&running));
        let all = completions(id);
        let first = complete(&queue, &lease, &all[index]).await;
        let before = history(&queue, id).await;
        pass(Duration::from_millis(2)).await;
        assert_eq!(complete(&queue, &lease, &all[index]).await, first);
        for other in all.iter().filter(|other| **other != all[index]) {
            assert_lost(queue.complete(&lease, other).await, &lease);
        }
        assert_lost(queue.release(&lease, "late", Duration::ZERO).await, &lease);
        assert_eq!(get(&queue, id).await, first);
        assert_eq!(history(&queue, id).await, before);
    }
}

/// A repeat that comes when the job already runs again leaves the new run alone.
pub async fn a_late_repeat_leaves_the_next_run_alone(queue: Subject) {
    let first = start(&queue, &job()).await;
    let completion = failure(Retry::After(Duration::ZERO));
    complete(&queue, &lease(&first), &completion).await;
    let second = claim_one(&queue).await;
    assert_eq!(complete(&queue, &lease(&first), &completion).await, second);
    assert_eq!(get(&queue, second.spec.id).await, second);
    complete(&queue, &lease(&second), &success(second.spec.id)).await;
    complete(&queue, &lease(&first), &completion).await;
    assert_status(&queue, second.spec.id, JobStatus::Succeeded).await;
}

/// Both the epoch and the claim id must be right.
pub async fn a_forged_lease_is_refused(queue: Subject) {
    let running = start(&queue, &job()).await;
    let current = lease(&running);
    let forged = [
        Lease { epoch: current.epoch.next(), ..current },
        Lease { epoch: Epoch::ZERO, ..current },
        Lease { claim: ClaimId::new(), ..current },
    ];
    for lease in &forged {
        assert_zombie(&queue, lease).await;
    }
    complete(&queue, &current, &success(current.job)).await;
}

/// A lease on a job that was never claimed, and on one that does not exist.
pub async fn a_lease_from_nowhere_is_refused(queue: Subject) {
    let id = add(&queue, &job()).await;
    let never = Lease { job: id, claim: ClaimId::new(), epoch: Epoch::new(1) };
    assert_zombie(&queue, &never).await;
    let unknown = Lease { job: JobId::new(), ..never };
    assert_not_found(queue.complete(&unknown, &success(unknown.job)).await, unknown.job);
    assert_not_found(queue.release(&unknown, "gone", Duration::ZERO).await, unknown.job);
}

/// A worker that was taken for dead: its calls are refused before, while and after the job runs again.
pub async fn a_rescued_lease_is_void(queue: Subject) {
    let zombie = start(&queue, &job()).await;
    rescue(&queue, &rescue_all()).await;
    assert_zombie(&queue, &lease(&zombie)).await;
    let next = claim_one(&queue).await;
    assert_zombie(&queue, &lease(&zombie)).await;
    complete(&queue, &lease(&next), &success(next.spec.id)).await;
    assert_zombie_with_same_success(&queue, &zombie).await;
}

/// So is the lease of an attempt that was released, or failed for a retry.
pub async fn a_lease_that_was_given_back_is_void(queue: Subject) {
    let released = start(&queue, &job()).await;
    queue.release(&lease(&released), "drain", Duration::ZERO).await.expect("the lease is current");
    assert_zombie(&queue, &lease(&released)).await;
    let next = claim_one(&queue).await;
    assert_zombie(&queue, &lease(&released)).await;
    complete(&queue, &lease(&next), &success(next.spec.id)).await;
    assert_zombie_with_same_success(&queue, &released).await;
}

/// The newer run may well produce the same completion; the zombie is refused all the same.
async fn assert_zombie_with_same_success(queue: &Subject, zombie: &Job) {
    assert_zombie(queue, &lease(zombie)).await;
    assert_status(queue, zombie.spec.id, JobStatus::Succeeded).await;
}

/// Cancelled on request.
pub async fn a_cancelled_build_ends_the_job(queue: Subject) {
    let running = start(&queue, &job()).await;
    queue.cancel(running.spec.id).await.expect("the job exists");
    let answer = complete(&queue, &lease(&running), &Completion::Cancelled).await;
    let job = assert_status(&queue, running.spec.id, JobStatus::Cancelled).await;
    assert_eq!(answer, job);
    assert_eq!(complete(&queue, &lease(&running), &Completion::Cancelled).await, job);
    assert_last_completion(&queue, running.spec.id, &Completion::Cancelled).await;
    assert_lost(queue.complete(&lease(&running), &success(running.spec.id)).await, &lease(&running));
}

/// A worker cannot cancel on its own.
pub async fn cancelled_is_refused_where_nobody_asked(queue: Subject) {
    let running = start(&queue, &job()).await;
    assert_invalid(queue.complete(&lease(&running), &Completion::Cancelled).await);
    assert_eq!(get(&queue, running.spec.id).await, running);
    complete(&queue, &lease(&running), &success(running.spec.id)).await;
}

/// The work is done: success counts although a cancel was requested. A failure for good does too; one to retry is cancelled.
pub async fn a_requested_cancel_stops_only_further_attempts(queue: Subject) {
    let ends = [
        (success as fn(JobId) -> Completion, JobStatus::Succeeded),
        (|_| failure(Retry::Never), JobStatus::Failed),
        (|_| failure(Retry::After(Duration::ZERO)), JobStatus::Cancelled),
    ];
    for (completion, wanted) in ends {
        let running = start(&queue, &job()).await;
        queue.cancel(running.spec.id).await.expect("the job exists");
        complete(&queue, &lease(&running), &completion(running.spec.id)).await;
        assert_status(&queue, running.spec.id, wanted).await;
        assert!(claim_ids(&queue).await.is_empty());
    }
}

/// The deadline counts when a rescue sees it; a build that is just done is not thrown away.
pub async fn a_success_after_the_deadline_counts_until_a_rescue(queue: Subject) {
    let running = start(&queue, &job().with_build_timeout(Duration::from_millis(1))).await;
    pass(MOMENT).await;
    complete(&queue, &lease(&running), &success(running.spec.id)).await;
    assert!(rescue(&queue, &rescue_all()).await.is_empty());
    assert_status(&queue, running.spec.id, JobStatus::Succeeded).await;
}

/// What is too long is cut, not refused, and its repeat is known.
pub async fn long_messages_and_delays_are_cut(queue: Subject) {
    let running = start(&queue, &job()).await;
    let message = "\u{e9}".repeat(Failure::MAX_MESSAGE);
    let retry = Retry::After(bounds::MAX_DELAY * 3);
    let failure = Failure { kind: FailureKind::Build, message, log: None, retry };
    let completion = Completion::Failed { failure };
    let first = complete(&queue, &lease(&running), &completion).await;
    let kept = first.failure.clone().expect("it failed");
    assert_eq!(kept.message, "\u{e9}".repeat(Failure::MAX_MESSAGE / 2));
    let (outcome, ended_at) = last_end(&queue, running.spec.id).await;
    assert_eq!(outcome, AttemptOutcome::Completed { completion: bounds::cut_completion(&completion) });
    assert_eq!(first.eligible_at, later(ended_at, bounds::MAX_DELAY));
    assert_eq!(complete(&queue, &lease(&running), &completion).await, first);
}
