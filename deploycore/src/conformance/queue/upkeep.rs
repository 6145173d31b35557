//! Counts, age and pruning.

use std::time::Duration;

use super::steps::*;
use crate::model::{ClaimId, JobStatus, Retry, later};
use crate::port::queue::{Claiming, MAX_BATCH, QueueStats};

async fn stats(queue: &Subject) -> QueueStats {
    queue.stats().await.expect("the counts")
}

/// Each status is counted, also with no job in it.
pub async fn each_status_is_counted(queue: Subject) {
    let empty = stats(&queue).await;
    assert_eq!(empty.counts, JobStatus::ALL.map(|status| (status, 0)).into());
    assert_eq!((empty.oldest_queued_seconds, empty.paused), (None, false));
    for n in 1..=3 {
        let running = start(&queue, &job()).await;
        complete(&queue, &lease(&running), &success(running.spec.id)).await;
        if n > 1 {
            let running = start(&queue, &job()).await;
            complete(&queue, &lease(&running), &failure(Retry::Never)).await;
        }
    }
    let cancelled = add(&queue, &job()).await;
    queue.cancel(cancelled).await.expect("the job exists");
    enqueue(&queue, &(0..9).map(|_| job()).collect::<Vec<_>>()).await;
    claim(&queue, 5).await;
    let counts = stats(&queue).await.counts;
    let wanted = JobStatus::ALL.into_iter().zip([4, 5, 3, 2, 1]);
    assert_eq!(counts, wanted.collect());
}

/// The age is of the job that has been eligible longest, though a pause or a limit keeps it; what is not due has none.
pub async fn the_age_is_of_the_longest_eligible_job(queue: Subject) {
    let first = start(&queue, &job().with_concurrency_key(key("a"))).await;
    let far = job().with_not_before(later(first.created_at, HOUR));
    add(&queue, &far).await;
    assert_eq!(stats(&queue).await.oldest_queued_seconds, None, "running, or not due");
    add(&queue, &job().with_concurrency_key(key("a"))).await;
    pass(MOMENT).await;
    queue.set_claiming(Claiming::Paused).await.expect("a pause");
    let age = stats(&queue).await.oldest_queued_seconds.expect("a job is due");
    assert!((0.005..60.0).contains(&age), "{age}");
    queue.set_claiming(Claiming::Open).await.expect("a resume");
    pass(MOMENT).await;
    assert!(stats(&queue).await.oldest_queued_seconds.expect("a job is due") > age);
    queue.release(&lease(&first), "drain", Duration::ZERO).await.expect("the lease is current");
    let again = stats(&queue).await.oldest_queued_seconds.expect("a job is due");
    assert!(again > age, "a job that came back just now is younger");
    assert_eq!(claim_ids(&queue).await, [first.spec.id]);
}

/// Finished jobs go, with their attempts; others stay.
pub async fn a_prune_deletes_finished_jobs_with_their_attempts(queue: Subject) {
    let ends = [success as fn(_) -> _, |_| failure(Retry::Never)];
    let mut finished = Vec::new();
    for end in ends {
        let running = start(&queue, &job()).await;
        complete(&queue, &lease(&running), &end(running.spec.id)).await;
        finished.push((running.spec.id, lease(&running)));
    }
    let cancelled = add(&queue, &job()).await;
    queue.cancel(cancelled).await.expect("the job exists");
    let running = start(&queue, &job()).await.spec.id;
    let queued = add(&queue, &job()).await;
    assert_eq!(queue.prune(Duration::ZERO, MAX_BATCH).await.expect("a prune"), 3);
    for (id, lease) in &finished {
        assert_eq!(queue.get(*id).await.expect("a read"), None);
        assert!(history(&queue, *id).await.is_empty());
        assert_not_found(queue.complete(lease, &success(*id)).await, *id);
    }
    assert_eq!(queue.get(cancelled).await.expect("a read"), None);
    assert_status(&queue, running, JobStatus::Running).await;
    assert_status(&queue, queued, JobStatus::Queued).await;
    assert_eq!(history(&queue, running).await.len(), 1);
    assert_eq!(queue.prune(Duration::ZERO, MAX_BATCH).await.expect("a prune"), 0);
}

/// What finished more recently stays.
pub async fn a_prune_keeps_young_jobs(queue: Subject) {
    let id = add(&queue, &job()).await;
    queue.cancel(id).await.expect("the job exists");
    assert_eq!(queue.prune(HOUR, MAX_BATCH).await.expect("a prune"), 0);
    assert_status(&queue, id, JobStatus::Cancelled).await;
    pass(MOMENT).await;
    assert_eq!(queue.prune(Duration::from_millis(5), MAX_BATCH).await.expect("a prune"), 1);
}

/// Not the oldest jobs go first, but those that finished first.
pub async fn a_prune_takes_first_what_finished_first(queue: Subject) {
    let ids = rising_ids(4);
    enqueue(&queue, &ids.iter().map(|id| job().with_id(*id)).collect::<Vec<_>>()).await;
    for index in [2, 0, 3, 1] {
        queue.cancel(ids[index]).await.expect("the job exists");
        pass(MOMENT).await;
    }
    for (limit, left) in [(1, vec![0, 3, 1]), (2, vec![1]), (5, vec![])] {
        queue.prune(Duration::ZERO, limit).await.expect("a prune");
        for (index, id) in ids.iter().enumerate() {
            assert_eq!(queue.get(*id).await.expect("a read").is_some(), left.contains(&index), "{index} of {left:?}");
        }
    }
}

/// The bounds of a prune.
pub async fn a_prune_out_of_bounds_is_refused(queue: Subject) {
    for limit in [0, MAX_BATCH + 1] {
        assert_invalid(queue.prune(Duration::ZERO, limit).await);
    }
}

/// A pruned job is as if it had never been: its id is free, and its history does not come back.
pub async fn a_pruned_id_is_free_again(queue: Subject) {
    let spec = job().with_dedup_key(dedup("k"));
    add(&queue, &spec).await;
    let id = ClaimId::new();
    let old = claim_as(&queue, id, 1).await.remove(0);
    complete(&queue, &lease(&old), &success(spec.id)).await;
    assert_eq!(queue.prune(Duration::ZERO, 1).await.expect("a prune"), 1);
    let other = spec.with_priority(3);
    add(&queue, &other).await;
    assert!(history(&queue, other.id).await.is_empty());
    assert_eq!(claim_one(&queue).await.spec, other);
    assert_eq!(history(&queue, other.id).await.len(), 1);
}
