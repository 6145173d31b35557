//! A newer job in the place of what is queued of its service.

use super::steps::*;
use crate::model::{FailureKind, JobId, JobStatus, NewJob, OlderJobs, Retry};
use crate::port::JobQueueExt as _;
use crate::port::queue::{Enqueued, Error};

fn newer() -> NewJob {
    job().with_older_jobs(OlderJobs::CancelQueued)
}

fn of_another_service() -> NewJob {
    NewJob { service: "api".parse().expect("a name"), ..job() }
}

/// Cancelled, with a word about which job took the place.
async fn assert_superseded(queue: &Subject, id: JobId, by: JobId) {
    let job = assert_status(queue, id, JobStatus::Cancelled).await;
    let failure = job.failure.as_ref().expect("it says why");
    assert_eq!((failure.kind, failure.retry), (FailureKind::Superseded, Retry::Never));
    assert!(failure.message.contains(&by.to_string()), "it names {by}: {}", failure.message);
}

/// What is queued of the service ends, whatever it waits for, and is never handed out.
pub async fn a_newer_job_cancels_what_is_queued_of_its_service(queue: Subject) {
    let waits = add(&queue, &job()).await;
    let delayed = add(&queue, &job().with_not_before("2200-01-01T00:00:00Z".parse().expect("an instant"))).await;
    let keyed = add(&queue, &job().with_concurrency_key(key("k")).with_priority(5)).await;
    let spec = newer();
    let id = add(&queue, &spec).await;
    for old in [waits, delayed, keyed] {
        assert_superseded(&queue, old, id).await;
        assert!(history(&queue, old).await.is_empty());
    }
    assert_eq!(get(&queue, id).await.spec, spec);
    assert_eq!(claim_ids(&queue).await, [id]);
}

/// A build under way goes on. One that comes back to the queue is queued, for the next newer job too.
pub async fn what_runs_is_left_alone_until_it_is_queued_again(queue: Subject) {
    let running = start(&queue, &job()).await;
    let second = add(&queue, &newer()).await;
    assert_eq!(get(&queue, running.spec.id).await, running);
    complete(&queue, &lease(&running), &failure(Retry::After(HOUR))).await;
    assert_status(&queue, running.spec.id, JobStatus::Queued).await;
    let third = add(&queue, &newer()).await;
    for old in [running.spec.id, second] {
        assert_superseded(&queue, old, third).await;
    }
    assert_eq!(history(&queue, running.spec.id).await.len(), 1);
    assert_eq!(claim_ids(&queue).await, [third]);
}

/// Other services, what has ended, and everything where nobody asked.
pub async fn all_else_stays_as_it_is(queue: Subject) {
    let done = start(&queue, &job()).await;
    let done = complete(&queue, &lease(&done), &success(done.spec.id)).await;
    let other = add(&queue, &of_another_service()).await;
    let newest = add(&queue, &newer()).await;
    let later = add(&queue, &job()).await;
    assert_eq!(get(&queue, done.spec.id).await, done);
    assert_eq!(claim_ids(&queue).await, [other, newest, later]);
}

/// A repeat finds what came after the first call, and leaves it alone; so does a job that was not added.
pub async fn a_repeated_or_deduplicated_job_cancels_nothing(queue: Subject) {
    let first = newer().with_dedup_key(dedup("web"));
    add(&queue, &first).await;
    let later = add(&queue, &job()).await;
    assert_eq!(enqueue(&queue, std::slice::from_ref(&first)).await, [Enqueued::Repeated { job: first.id }]);
    let same_key = newer().with_dedup_key(dedup("web"));
    assert_eq!(enqueue(&queue, &[same_key]).await, [Enqueued::Deduplicated { existing: first.id }]);
    let other_body = first.clone().with_older_jobs(OlderJobs::Keep);
    assert!(matches!(queue.enqueue_one(&other_body).await, Err(Error::Conflict { .. })));
    assert_eq!(claim_ids(&queue).await, [first.id, later]);
}

/// As if they came one after the other; a batch that is refused cancels nothing.
pub async fn in_a_batch_each_counts_after_those_before_it(queue: Subject) {
    let old = add(&queue, &job().with_dedup_key(dedup("web"))).await;
    let taken = job();
    let known = add(&queue, &NewJob { service: "api".parse().expect("a name"), ..taken.clone() }).await;
    let refused = queue.enqueue(&[newer(), taken]).await;
    assert!(matches!(refused, Err(Error::Conflict { job }) if job == known), "{refused:?}");
    assert_status(&queue, old, JobStatus::Queued).await;

    let (before, middle, after) = (job(), newer(), job().with_dedup_key(dedup("web")));
    let answers = enqueue(&queue, &[before.clone(), middle.clone(), after.clone()]).await;
    // The dedup key of the old one is free by then.
    assert_eq!(answers, [&before, &middle, &after].map(|job| Enqueued::Created { job: job.id }));
    for id in [old, before.id] {
        assert_superseded(&queue, id, middle.id).await;
    }
    for id in [known, middle.id, after.id] {
        assert_status(&queue, id, JobStatus::Queued).await;
    }
}
