//! Adding jobs.

use std::time::Duration;

use tokio::task::JoinSet;

use super::steps::*;
use crate::model::{Completion, Epoch, JobId, JobStatus, NewJob, Retry};
use crate::port::queue::{Enqueued, Error, MAX_BATCH, bounds};

/// What is read back is what was asked for, field by field.
pub async fn a_new_job_is_queued_as_it_was_asked_for(queue: Subject) {
    let plain = job();
    let full = job()
        .with_priority(-7)
        .with_not_before("2200-01-01T00:00:00.123456Z".parse().expect("an instant"))
        .with_max_attempts(attempts(9))
        .with_max_releases(0)
        .with_build_timeout(Duration::from_millis(90_500))
        .with_dedup_key(dedup("web/abc"))
        .with_concurrency_key(key("host:1"));
    let extreme = job()
        .with_priority(i16::MIN)
        .with_max_attempts(attempts(bounds::MAX_ATTEMPTS))
        .with_max_releases(bounds::MAX_RELEASES)
        .with_build_timeout(bounds::MAX_BUILD_TIMEOUT);
    for spec in [plain, full, extreme] {
        add(&queue, &spec).await;
        let job = assert_status(&queue, spec.id, JobStatus::Queued).await;
        assert_eq!(job.spec, spec);
        assert_eq!(job.eligible_at, spec.not_before.unwrap_or(job.created_at));
        assert_eq!((job.epoch, job.attempts, job.releases, job.rescues), (Epoch::ZERO, 0, 0, 0));
        assert_eq!((job.cancel_requested, job.artifact, job.failure), (false, None, None));
        assert!(history(&queue, spec.id).await.is_empty());
    }
}

/// An earliest start that has passed does not make the job older than it is.
pub async fn an_earliest_start_in_the_past_is_the_present(queue: Subject) {
    let spec = job().with_not_before("2001-01-01T00:00:00Z".parse().expect("an instant"));
    add(&queue, &spec).await;
    let job = get(&queue, spec.id).await;
    assert_eq!(job.eligible_at, job.created_at);
    assert_eq!(job.spec, spec);
}

/// The answers stand in the order of the jobs, whatever the order of their ids.
pub async fn a_batch_is_answered_in_its_order(queue: Subject) {
    let mut jobs: Vec<_> = rising_ids(5).into_iter().map(|id| job().with_id(id)).collect();
    jobs.reverse();
    add(&queue, &jobs[2]).await;
    let answers = enqueue(&queue, &jobs).await;
    for (index, (answer, spec)) in answers.iter().zip(&jobs).enumerate() {
        let wanted = if index == 2 { Enqueued::Repeated { job: spec.id } } else { Enqueued::Created { job: spec.id } };
        assert_eq!(*answer, wanted);
    }
    assert_eq!(answers.len(), 5);
}

/// A whole batch fits, one more job does not, and none at all is fine.
pub async fn a_batch_has_a_bound(queue: Subject) {
    let mut jobs: Vec<_> = (0..MAX_BATCH).map(|_| job()).collect();
    assert_eq!(enqueue(&queue, &jobs).await.len(), MAX_BATCH);
    assert_eq!(enqueue(&queue, &[]).await, []);
    for spec in &mut jobs {
        spec.id = JobId::new();
    }
    jobs.push(job());
    assert_invalid(queue.enqueue(&jobs).await);
    assert_eq!(queue.get(jobs[0].id).await.expect("a read"), None);
}

/// A lost reply: the same call again answers that it was done, whatever became of the job.
pub async fn repeating_adds_nothing_at_any_stage(queue: Subject) {
    let spec = job();
    add(&queue, &spec).await;
    let repeated = [Enqueued::Repeated { job: spec.id }];
    assert_eq!(enqueue(&queue, std::slice::from_ref(&spec)).await, repeated);
    let running = claim_one(&queue).await;
    assert_eq!(enqueue(&queue, std::slice::from_ref(&spec)).await, repeated);
    complete(&queue, &lease(&running), &success(spec.id)).await;
    assert_eq!(enqueue(&queue, std::slice::from_ref(&spec)).await, repeated);
    assert_status(&queue, spec.id, JobStatus::Succeeded).await;
    assert!(claim_ids(&queue).await.is_empty());
}

/// Each field of the body counts.
pub async fn another_body_under_the_same_id_is_a_conflict(queue: Subject) {
    let spec = job();
    add(&queue, &spec).await;
    let others: [NewJob; 9] = [
        NewJob { service: "api".parse().expect("a name"), ..spec.clone() },
        NewJob { commit: "fedcba9".parse().expect("a commit"), ..spec.clone() },
        spec.clone().with_priority(1),
        spec.clone().with_not_before("2001-01-01T00:00:00Z".parse().expect("an instant")),
        spec.clone().with_max_attempts(attempts(4)),
        spec.clone().with_max_releases(4),
        spec.clone().with_build_timeout(HOUR),
        spec.clone().with_dedup_key(dedup("k")),
        spec.clone().with_concurrency_key(key("k")),
    ];
    for other in others {
        match queue.enqueue(std::slice::from_ref(&other)).await {
            Err(error @ Error::Conflict { job }) => {
                assert_eq!(job, spec.id);
                assert!(!error.is_retryable());
            }
            answer => panic!("Conflict is wanted for {other:?}, not {answer:?}"),
        }
    }
    assert_eq!(get(&queue, spec.id).await.spec, spec);
}

/// All or none: a conflict in the middle leaves no job of the batch behind.
pub async fn a_conflict_refuses_the_whole_batch(queue: Subject) {
    let taken = job();
    add(&queue, &taken).await;
    let (first, last) = (job(), job());
    let batch = [first.clone(), taken.clone().with_priority(1), last.clone()];
    assert!(matches!(queue.enqueue(&batch).await, Err(Error::Conflict { .. })));
    for id in [first.id, last.id] {
        assert_eq!(queue.get(id).await.expect("a read"), None, "none of the batch is added");
    }
    assert_eq!(claim_ids(&queue).await, [taken.id]);
}

/// The same id twice in one call: as if one after the other.
pub async fn an_id_twice_in_a_batch_is_a_repeat_or_a_conflict(queue: Subject) {
    let spec = job();
    let answers = enqueue(&queue, &[spec.clone(), spec.clone()]).await;
    assert_eq!(answers, [Enqueued::Created { job: spec.id }, Enqueued::Repeated { job: spec.id }]);
    let other = job();
    let batch = [other.clone(), other.clone().with_priority(3)];
    assert!(matches!(queue.enqueue(&batch).await, Err(Error::Conflict { .. })));
    assert_eq!(queue.get(other.id).await.expect("a read"), None);
    assert_eq!(claim_ids(&queue).await, [spec.id]);
}

/// While a job with the key is queued or runs, a second one is not added.
pub async fn a_dedup_key_is_unique_among_unfinished_jobs(queue: Subject) {
    let first = job().with_dedup_key(dedup("k"));
    add(&queue, &first).await;
    let deduplicated = [Enqueued::Deduplicated { existing: first.id }];
    let second = job().with_dedup_key(dedup("k"));
    assert_eq!(enqueue(&queue, std::slice::from_ref(&second)).await, deduplicated);
    assert_eq!(enqueue(&queue, std::slice::from_ref(&second)).await, deduplicated, "and again");
    assert_eq!(queue.get(second.id).await.expect("a read"), None, "it leaves no trace");
    let running = claim_one(&queue).await;
    assert_eq!(enqueue(&queue, std::slice::from_ref(&second)).await, deduplicated, "a running job has it still");
    complete(&queue, &lease(&running), &failure(Retry::After(HOUR))).await;
    assert_eq!(enqueue(&queue, std::slice::from_ref(&second)).await, deduplicated, "so has one that waits for a retry");
    add(&queue, &job().with_dedup_key(dedup("other"))).await;
    add(&queue, &job()).await;
    add(&queue, &job()).await;
}

/// Each way for a job to end frees its key.
pub async fn a_finished_job_frees_its_dedup_key(queue: Subject) {
    let spec = || job().with_dedup_key(dedup("k"));
    let running = start(&queue, &spec()).await;
    complete(&queue, &lease(&running), &success(running.spec.id)).await;
    let running = start(&queue, &spec()).await;
    complete(&queue, &lease(&running), &failure(Retry::Never)).await;
    let running = start(&queue, &spec()).await;
    queue.cancel(running.spec.id).await.expect("the job exists");
    complete(&queue, &lease(&running), &Completion::Cancelled).await;
    let queued = add(&queue, &spec()).await;
    queue.cancel(queued).await.expect("the job exists");
    start(&queue, &spec().with_max_attempts(attempts(1))).await;
    rescue(&queue, &rescue_all()).await;
    let running = start(&queue, &spec().with_max_releases(0)).await;
    queue.release(&lease(&running), "enough", Duration::ZERO).await.expect("the lease is current");
    add(&queue, &spec()).await;
}

/// Two jobs of one call with one key count as if enqueued one after the other.
pub async fn a_dedup_key_twice_in_a_batch_adds_the_first(queue: Subject) {
    let [first, second, other] = [dedup("k"), dedup("k"), dedup("l")].map(|key| job().with_dedup_key(key));
    let batch = [first.clone(), second, other.clone()];
    let answers = enqueue(&queue, &batch).await;
    let deduplicated = Enqueued::Deduplicated { existing: first.id };
    assert_eq!(answers, [Enqueued::Created { job: first.id }, deduplicated, Enqueued::Created { job: other.id }]);
    let answers = enqueue(&queue, &batch).await;
    assert_eq!(answers, [Enqueued::Repeated { job: first.id }, deduplicated, Enqueued::Repeated { job: other.id }]);
}

/// A repeat is a repeat although another job has taken over the key since.
pub async fn a_known_id_is_looked_at_before_the_dedup_key(queue: Subject) {
    let first = job().with_dedup_key(dedup("k"));
    add(&queue, &first).await;
    queue.cancel(first.id).await.expect("the job exists");
    let second = job().with_dedup_key(dedup("k"));
    add(&queue, &second).await;
    let answers = enqueue(&queue, &[first.clone(), second.clone()]).await;
    assert_eq!(answers, [Enqueued::Repeated { job: first.id }, Enqueued::Repeated { job: second.id }]);
    let conflicting = second.clone().with_priority(1);
    assert!(matches!(queue.enqueue(&[conflicting]).await, Err(Error::Conflict { .. })));
}

/// What could run too long or too often is refused, with the whole batch.
pub async fn a_job_past_the_bounds_is_refused(queue: Subject) {
    let good = job();
    let moment = Duration::from_millis(1);
    let bad = [
        job().with_max_attempts(attempts(bounds::MAX_ATTEMPTS + 1)),
        job().with_max_releases(bounds::MAX_RELEASES + 1),
        job().with_build_timeout(Duration::ZERO),
        job().with_build_timeout(bounds::MAX_BUILD_TIMEOUT + moment),
    ];
    for spec in bad {
        assert_invalid(queue.enqueue(&[good.clone(), spec]).await);
    }
    assert!(claim_ids(&queue).await.is_empty());
}

/// Many callers that repeat the same enqueue at once: one creates the job.
pub async fn concurrent_repeats_create_a_job_once(queue: Subject) {
    for _ in 0..10 {
        let spec = job();
        let answers = at_once(&queue, &vec![spec.clone(); 8]).await;
        let created = answers.iter().filter(|answer| **answer == Enqueued::Created { job: spec.id }).count();
        let repeated = answers.iter().filter(|answer| **answer == Enqueued::Repeated { job: spec.id }).count();
        assert_eq!((created, repeated), (1, 7));
    }
    assert_eq!(claim_ids(&queue).await.len(), 10);
}

/// Many jobs with one dedup key at once: one is added and all learn of it.
pub async fn concurrent_jobs_with_one_dedup_key_add_one(queue: Subject) {
    for round in 0..10 {
        let specs: Vec<_> = (0..8).map(|_| job().with_dedup_key(dedup(&format!("k{round}")))).collect();
        let answers = at_once(&queue, &specs).await;
        let created: Vec<_> = answers
            .iter()
            .filter(|answer| matches!(answer, Enqueued::Created { .. }))
            .map(|answer| answer.job())
            .collect();
        assert_eq!(created.len(), 1, "{answers:?}");
        assert!(answers.iter().all(|answer| answer.job() == created[0]), "{answers:?}");
    }
}

async fn at_once(queue: &Subject, specs: &[NewJob]) -> Vec<Enqueued> {
    let mut calls = JoinSet::new();
    for spec in specs.iter().cloned() {
        let queue = queue.clone();
        calls.spawn(async move { queue.enqueue(&[spec]).await.expect("the enqueue is within all bounds")[0] });
    }
    calls.join_all().await
}
