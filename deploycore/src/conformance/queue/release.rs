//! Giving a job back.

use std::time::Duration;

use super::steps::*;
use crate::model::{AttemptOutcome, Failure, FailureKind, Job, JobStatus, later};
use crate::port::queue::{Fate, bounds};

async fn release(queue: &Subject, job: &Job, reason: &str, delay: Duration) -> Fate {
    queue.release(&lease(job), reason, delay).await.expect("the lease is current")
}

/// Queued again after exactly the delay, with no attempt burnt.
pub async fn a_released_job_burns_no_attempt(queue: Subject) {
    let running = start(&queue, &job()).await;
    let fate = release(&queue, &running, "drain", HOUR).await;
    let waiting = assert_status(&queue, running.spec.id, JobStatus::Queued).await;
    let (outcome, ended_at) = last_end(&queue, running.spec.id).await;
    assert_eq!(outcome, AttemptOutcome::Released { reason: "drain".to_owned() });
    assert_eq!(fate, Fate::Requeued { eligible_at: later(ended_at, HOUR) });
    assert_eq!(waiting.eligible_at, later(ended_at, HOUR));
    assert_eq!((waiting.attempts, waiting.releases, waiting.rescues), (0, 1, 0));
    assert_eq!((waiting.epoch, waiting.failure), (running.epoch, None));
    assert!(claim_ids(&queue).await.is_empty(), "not before its delay");
}

/// All attempts are left after many releases.
pub async fn releases_and_attempts_are_counted_apart(queue: Subject) {
    let spec = job().with_max_attempts(attempts(1)).with_max_releases(5);
    add(&queue, &spec).await;
    for _ in 0..5 {
        release(&queue, &claim_one(&queue).await, "drain", Duration::ZERO).await;
    }
    let running = claim_one(&queue).await;
    assert_eq!((running.attempts, running.releases), (1, 5));
    complete(&queue, &lease(&running), &success(spec.id)).await;
    assert_status(&queue, spec.id, JobStatus::Succeeded).await;
}

/// One release more than the bound fails the job.
pub async fn releases_are_bounded(queue: Subject) {
    for bound in [0, 2] {
        let spec = job().with_max_releases(bound);
        add(&queue, &spec).await;
        for _ in 0..bound {
            let fate = release(&queue, &claim_one(&queue).await, "drain", Duration::ZERO).await;
            assert!(matches!(fate, Fate::Requeued { .. }));
        }
        let running = claim_one(&queue).await;
        let fate = release(&queue, &running, "again", Duration::ZERO).await;
        let job = assert_status(&queue, spec.id, JobStatus::Failed).await;
        let failure = job.failure.expect("it failed");
        assert_eq!(failure.kind, FailureKind::Released);
        assert_eq!(fate, Fate::Failed { failure });
        assert_eq!(release(&queue, &running, "again", Duration::ZERO).await, fate, "and repeats so");
        assert!(claim_ids(&queue).await.is_empty());
    }
}

/// A lost reply: the same release again succeeds and changes nothing, also when the job runs again; another is refused.
pub async fn repeating_changes_nothing(queue: Subject) {
    let first = start(&queue, &job()).await;
    let fate = release(&queue, &first, "drain", Duration::ZERO).await;
    let before = (get(&queue, first.spec.id).await, history(&queue, first.spec.id).await);
    pass(Duration::from_millis(2)).await;
    assert_eq!(release(&queue, &first, "drain", Duration::ZERO).await, fate);
    assert_lost(queue.release(&lease(&first), "another reason", Duration::ZERO).await, &lease(&first));
    assert_eq!((get(&queue, first.spec.id).await, history(&queue, first.spec.id).await), before);
    let second = claim_one(&queue).await;
    assert!(matches!(release(&queue, &first, "drain", Duration::ZERO).await, Fate::Requeued { .. }));
    assert_eq!(get(&queue, first.spec.id).await, second, "the next run is left alone");
    complete(&queue, &lease(&second), &success(second.spec.id)).await;
    assert!(matches!(release(&queue, &first, "drain", Duration::ZERO).await, Fate::Requeued { .. }));
    assert_status(&queue, first.spec.id, JobStatus::Succeeded).await;
}

/// A requested cancel takes effect, also past the bound of releases.
pub async fn a_requested_cancel_takes_effect(queue: Subject) {
    for bound in [0, 5] {
        let running = start(&queue, &job().with_max_releases(bound)).await;
        queue.cancel(running.spec.id).await.expect("the job exists");
        assert_eq!(release(&queue, &running, "drain", Duration::ZERO).await, Fate::Cancelled);
        assert_eq!(release(&queue, &running, "drain", Duration::ZERO).await, Fate::Cancelled);
        assert_status(&queue, running.spec.id, JobStatus::Cancelled).await;
    }
    assert!(claim_ids(&queue).await.is_empty());
}

/// What is too long is cut, not refused, and its repeat is known.
pub async fn long_reasons_and_delays_are_cut(queue: Subject) {
    let running = start(&queue, &job()).await;
    let reason = "x".repeat(Failure::MAX_MESSAGE * 2);
    let fate = release(&queue, &running, &reason, bounds::MAX_DELAY * 2).await;
    let (outcome, ended_at) = last_end(&queue, running.spec.id).await;
    assert_eq!(outcome, AttemptOutcome::Released { reason: "x".repeat(Failure::MAX_MESSAGE) });
    assert_eq!(fate, Fate::Requeued { eligible_at: later(ended_at, bounds::MAX_DELAY) });
    assert_eq!(release(&queue, &running, &reason, bounds::MAX_DELAY * 2).await, fate);
}
