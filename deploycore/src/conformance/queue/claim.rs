//! Taking jobs: order, leases, repeating.

use std::time::Duration;

use super::steps::*;
use crate::model::{ClaimId, Epoch, JobStatus, Retry, elapsed, later};
use crate::port::queue::{Claiming, MAX_BATCH};

/// Nothing to take is no error.
pub async fn an_empty_queue_gives_no_job(queue: Subject) {
    assert!(claim_ids(&queue).await.is_empty());
}

/// The answer is the job as it now is, with all that a worker needs.
pub async fn a_claimed_job_runs_under_its_lease(queue: Subject) {
    let spec = job().with_build_timeout(Duration::from_mins(7));
    add(&queue, &spec).await;
    let id = ClaimId::new();
    let claimed = claim_as(&queue, id, 1).await;
    let job = assert_status(&queue, spec.id, JobStatus::Running).await;
    assert_eq!(claimed, std::slice::from_ref(&job));
    let running = job.running.expect("it runs");
    assert_eq!((running.lease.job, running.lease.claim, running.lease.epoch), (spec.id, id, job.epoch));
    assert_eq!((job.epoch, job.attempts, job.releases, job.rescues), (Epoch::new(1), 1, 0, 0));
    assert_eq!((running.worker, running.last_heartbeat), (worker(), running.claimed_at));
    assert!(running.claimed_at >= job.created_at);
    assert_eq!(running.deadline, later(running.claimed_at, Duration::from_mins(7)));
    let attempts = history(&queue, spec.id).await;
    assert_eq!(attempts.len(), 1);
    assert_eq!((attempts[0].lease, &attempts[0].worker), (running.lease, &worker()));
    assert_eq!((attempts[0].claimed_at, attempts[0].ended_at), (running.claimed_at, None));
    assert_eq!(attempts[0].outcome, None);
}

/// A running job is not handed out a second time.
pub async fn a_running_job_is_not_claimable(queue: Subject) {
    start(&queue, &job()).await;
    assert!(claim_ids(&queue).await.is_empty());
}

/// Priority first, then age, then id.
pub async fn jobs_come_in_order(queue: Subject) {
    let ids = rising_ids(7);
    let spec = |index: usize, priority| job().with_id(ids[index]).with_priority(priority);
    // The older ones have the greater ids.
    enqueue(&queue, &[spec(6, 0), spec(5, 0), spec(4, 5)]).await;
    pass(MOMENT).await;
    enqueue(&queue, &[spec(3, 0), spec(2, 0), spec(1, 5), spec(0, -1)]).await;
    let wanted: Vec<_> = [4, 1, 5, 6, 2, 3, 0].map(|index| ids[index]).to_vec();
    let mut claimed = Vec::new();
    for limit in [1, 2, 3, 4] {
        claimed.extend(claim(&queue, limit).await.iter().map(|job| job.spec.id));
    }
    assert_eq!(claimed, wanted);
}

/// No more than asked for, and all there is when fewer are left.
pub async fn a_claim_takes_at_most_its_limit(queue: Subject) {
    enqueue(&queue, &[job(), job(), job()]).await;
    assert_eq!(claim(&queue, 2).await.len(), 2);
    assert_eq!(claim(&queue, 2).await.len(), 1);
}

/// The bounds of a claim.
pub async fn a_limit_out_of_bounds_is_refused(queue: Subject) {
    add(&queue, &job()).await;
    for limit in [0, MAX_BATCH + 1] {
        assert_invalid(queue.claim(&request(ClaimId::new(), limit)).await);
    }
    assert_eq!(claim(&queue, MAX_BATCH).await.len(), 1);
}

/// A job waits for its earliest start, whatever its priority, and blocks nobody.
pub async fn an_earliest_start_is_kept(queue: Subject) {
    let first = add(&queue, &job()).await;
    let now = get(&queue, first).await.created_at;
    let far = job().with_priority(9).with_not_before(later(now, HOUR));
    let near = job().with_priority(8).with_not_before(later(now, Duration::from_millis(500)));
    enqueue(&queue, &[far, near.clone()]).await;
    let claimed = claim(&queue, 1).await;
    assert_eq!(claimed[0].spec.id, first, "what is not due does not stand in the way");
    for _ in 0..100 {
        if let [job] = claim(&queue, 2).await.as_slice() {
            assert_eq!(job.spec.id, near.id);
            let started = job.running.as_ref().expect("it runs").claimed_at;
            assert!(started >= job.eligible_at, "not before its time");
            return;
        }
        pass(Duration::from_millis(50)).await;
    }
    panic!("a job whose earliest start has passed is never handed out");
}

/// A lost reply: the same claim again gives the same jobs, as they are now.
pub async fn repeating_gives_the_same_jobs(queue: Subject) {
    enqueue(&queue, &[job(), job().with_priority(1), job(), job()]).await;
    let id = ClaimId::new();
    let first = claim_as(&queue, id, 3).await;
    let mut again = claim_as(&queue, id, 3).await;
    again.sort_by_key(|job| first.iter().position(|known| known.spec.id == job.spec.id));
    assert_eq!(again, first);
    assert_eq!(history(&queue, first[0].spec.id).await.len(), 1, "no second attempt");
}

/// A claim that got fewer than it asked for does not get the rest by repeating, nor by asking for more.
pub async fn repeating_gives_no_further_jobs(queue: Subject) {
    let first = add(&queue, &job()).await;
    let id = ClaimId::new();
    assert_eq!(claim_as(&queue, id, 2).await.len(), 1);
    let second = add(&queue, &job()).await;
    for limit in [2, 5] {
        let again: Vec<_> = claim_as(&queue, id, limit).await.iter().map(|job| job.spec.id).collect();
        assert_eq!(again, [first]);
    }
    assert_eq!(claim_ids(&queue).await, [second]);
}

/// Each way to end an attempt takes the job out of a repeated claim, and no new one comes in its place.
pub async fn repeating_gives_only_jobs_whose_lease_holds(queue: Subject) {
    let ids = rising_ids(5);
    let jobs: Vec<_> = ids.iter().map(|id| job().with_id(*id)).collect();
    enqueue(&queue, &jobs).await;
    let id = ClaimId::new();
    let claimed = claim_as(&queue, id, 5).await;
    add(&queue, &job()).await;
    complete(&queue, &lease(&claimed[0]), &success(ids[0])).await;
    complete(&queue, &lease(&claimed[1]), &failure(Retry::After(Duration::ZERO))).await;
    queue.release(&lease(&claimed[2]), "drain", Duration::ZERO).await.expect("the lease is current");
    let mut held: Vec<_> = claim_as(&queue, id, 5).await.iter().map(|job| job.spec.id).collect();
    held.sort_unstable();
    assert_eq!(held, ids[3..]);
    rescue(&queue, &rescue_all()).await;
    assert!(claim_as(&queue, id, 5).await.is_empty(), "all its leases have ended, although the jobs are queued again");
    let others: Vec<_> = claim(&queue, MAX_BATCH).await;
    assert_eq!(others.len(), 5, "four go round again, and one is new");
    assert!(claim_as(&queue, id, 5).await.is_empty(), "its jobs run under another claim");
}

/// Many repeats of one claim at once share its jobs.
pub async fn concurrent_repeats_share_their_jobs(queue: Subject) {
    for _ in 0..5 {
        enqueue(&queue, &(0..6).map(|_| job()).collect::<Vec<_>>()).await;
        let id = ClaimId::new();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let queue = queue.clone();
            calls.spawn(async move { claim_as(&queue, id, 3).await });
        }
        let mut answers = calls.join_all().await;
        for jobs in &mut answers {
            jobs.sort_by_key(|job| job.spec.id);
        }
        assert_eq!(answers[0].len(), 3);
        assert!(answers.iter().all(|jobs| *jobs == answers[0]), "{answers:?}");
        assert_eq!(claim(&queue, MAX_BATCH).await.len(), 3);
    }
}

/// Paused: no job is handed out, what runs goes on, and a repeat gives what it gave.
pub async fn a_pause_stops_claims_and_nothing_else(queue: Subject) {
    let spec = job();
    add(&queue, &spec).await;
    let id = ClaimId::new();
    let running = claim_as(&queue, id, 1).await.remove(0);
    let waiting = add(&queue, &job()).await;
    for _ in 0..2 {
        queue.set_claiming(Claiming::Paused).await.expect("a pause");
    }
    assert!(claim_ids(&queue).await.is_empty());
    assert_eq!(claim_as(&queue, id, 1).await, std::slice::from_ref(&running));
    assert!(queue.stats().await.expect("the counts").paused);
    add(&queue, &job().with_priority(-1)).await;
    complete(&queue, &lease(&running), &success(spec.id)).await;
    for _ in 0..2 {
        queue.set_claiming(Claiming::Open).await.expect("a resume");
    }
    assert!(!queue.stats().await.expect("the counts").paused);
    let claimed = claim_ids(&queue).await;
    assert_eq!((claimed.len(), claimed[0]), (2, waiting));
}

/// Through failures, releases and lost leases: each claim has the next epoch and the history keeps them all.
pub async fn the_epoch_grows_with_each_claim(queue: Subject) {
    let spec = job().with_max_attempts(attempts(10));
    add(&queue, &spec).await;
    let mut leases = Vec::new();
    for round in 1..=6 {
        let running = claim_one(&queue).await;
        assert_eq!((running.epoch, lease(&running).epoch), (Epoch::new(round), Epoch::new(round)));
        leases.push(lease(&running));
        match round % 3 {
            0 => drop(complete(&queue, &lease(&running), &failure(Retry::After(Duration::ZERO))).await),
            1 => drop(queue.release(&lease(&running), "drain", Duration::ZERO).await.expect("the lease is current")),
            _ => drop(rescue(&queue, &rescue_all()).await),
        }
        let job = assert_status(&queue, spec.id, JobStatus::Queued).await;
        assert_eq!(job.epoch, Epoch::new(round), "the epoch stays when an attempt ends");
    }
    let kept: Vec<_> = history(&queue, spec.id).await.iter().map(|attempt| attempt.lease).collect();
    assert_eq!(kept, leases, "oldest first");
    for lease in &leases {
        let job = get(&queue, spec.id).await;
        assert!(job.epoch >= lease.epoch);
    }
}

/// A job that goes round keeps its age, and with it its place.
pub async fn a_job_that_comes_back_keeps_its_place(queue: Subject) {
    let first = start(&queue, &job()).await;
    pass(MOMENT).await;
    let second = add(&queue, &job()).await;
    queue.release(&lease(&first), "drain", Duration::ZERO).await.expect("the lease is current");
    let again = get(&queue, first.spec.id).await;
    assert_eq!(again.created_at, first.created_at);
    assert!(elapsed(again.created_at, again.eligible_at) > Duration::ZERO, "the backend's clock runs");
    assert_eq!(claim_ids(&queue).await, [first.spec.id, second]);
}
