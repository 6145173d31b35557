//! Concurrency keys.

use std::time::Duration;

use super::steps::*;
use crate::model::{Completion, ConcurrencyKey, JobId, NewJob, Retry};
use crate::port::queue::MAX_BATCH;

fn with(key: &ConcurrencyKey, n: usize) -> Vec<NewJob> {
    rising_ids(n).into_iter().map(|id| job().with_id(id).with_concurrency_key(key.clone())).collect()
}

fn ids(jobs: &[NewJob]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

async fn limit(queue: &Subject, key: &ConcurrencyKey, limit: u32) {
    queue.set_concurrency_limit(key, attempts(limit)).await.expect("a limit is set");
}

/// Where no limit was set it is 1, also within one claim; other keys and jobs without a key go on.
pub async fn one_job_of_a_key_runs_by_default(queue: Subject) {
    let (a, b) = (with(&key("a"), 3), with(&key("b"), 2));
    let free = job().with_priority(-1);
    enqueue(&queue, &[a.clone(), b.clone(), vec![free.clone()]].concat()).await;
    let mut claimed = claim_ids(&queue).await;
    let mut wanted = vec![a[0].id, b[0].id, free.id];
    claimed.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(claimed, wanted);
    assert!(claim_ids(&queue).await.is_empty());
}

/// Jobs past the limit do not use up the claim's own limit.
pub async fn a_full_key_does_not_hide_the_jobs_behind_it(queue: Subject) {
    let blocked: Vec<_> = with(&key("a"), 20).into_iter().map(|job| job.with_priority(3)).collect();
    enqueue(&queue, &blocked).await;
    let free = add(&queue, &job()).await;
    let claimed: Vec<_> = claim(&queue, 2).await.iter().map(|job| job.spec.id).collect();
    assert_eq!(claimed, [blocked[0].id, free]);
}

/// A set limit holds within a claim and over claims.
pub async fn a_set_limit_is_kept(queue: Subject) {
    let jobs = with(&key("a"), 5);
    for _ in 0..2 {
        limit(&queue, &key("a"), 3).await;
    }
    enqueue(&queue, &jobs).await;
    let mut claimed: Vec<_> = claim(&queue, 2).await.iter().map(|job| job.spec.id).collect();
    claimed.extend(claim_ids(&queue).await);
    assert_eq!(claimed, ids(&jobs)[..3]);
    assert!(claim_ids(&queue).await.is_empty());
    limit(&queue, &key("a"), 4).await;
    assert_eq!(claim_ids(&queue).await, [jobs[3].id]);
}

/// Lowering it ends nothing, and holds further jobs back until enough have ended.
pub async fn lowering_a_limit_ends_no_running_job(queue: Subject) {
    let jobs = with(&key("a"), 4);
    limit(&queue, &key("a"), 3).await;
    enqueue(&queue, &jobs).await;
    let running = claim(&queue, MAX_BATCH).await;
    assert_eq!(running.len(), 3);
    limit(&queue, &key("a"), 1).await;
    for job in &running {
        assert!(claim_ids(&queue).await.is_empty());
        complete(&queue, &lease(job), &success(job.spec.id)).await;
    }
    assert_eq!(claim_ids(&queue).await, [jobs[3].id]);
}

/// Each way to end an attempt makes room at once.
pub async fn each_end_of_an_attempt_makes_room(queue: Subject) {
    let jobs = with(&key("a"), 6);
    enqueue(&queue, &jobs).await;
    for (round, spec) in jobs.iter().take(5).enumerate() {
        let running = claim_one(&queue).await;
        assert_eq!(running.spec.id, spec.id);
        assert!(claim_ids(&queue).await.is_empty());
        let lease = lease(&running);
        match round {
            0 => drop(complete(&queue, &lease, &success(running.spec.id)).await),
            1 => drop(complete(&queue, &lease, &failure(Retry::After(HOUR))).await),
            2 => drop(queue.release(&lease, "drain", HOUR).await.expect("the lease is current")),
            3 => {
                queue.cancel(running.spec.id).await.expect("the job exists");
                assert!(claim_ids(&queue).await.is_empty(), "it runs until its worker has stopped");
                complete(&queue, &lease, &Completion::Cancelled).await;
            }
            _ => {
                queue.cancel(running.spec.id).await.expect("the job exists");
                rescue(&queue, &rescue_all()).await;
            }
        }
    }
    assert_eq!(claim_ids(&queue).await, [jobs[5].id]);
}

/// A waiting retry takes no room, and waits for room when it is due.
pub async fn a_retry_waits_for_room(queue: Subject) {
    let jobs = with(&key("a"), 2);
    enqueue(&queue, &jobs).await;
    let first = claim_one(&queue).await;
    complete(&queue, &lease(&first), &failure(Retry::After(Duration::ZERO))).await;
    assert_eq!(claim_ids(&queue).await, [jobs[0].id], "the older one goes first");
    assert!(claim_ids(&queue).await.is_empty());
}
