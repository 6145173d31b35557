//! Taking back jobs whose lease is lost or whose deadline passed.

use std::time::Duration;

use tokio::task::JoinSet;

use super::steps::*;
use crate::model::{AttemptOutcome, Completion, FailureKind, Job, JobStatus, Lease, Retry, later};
use crate::port::JobQueueExt;
use crate::port::queue::{Fate, MAX_BATCH, RescueRequest, Rescued};

/// Rescues the one running job; where it went.
async fn rescue_one(queue: &Subject, request: &RescueRequest, running: &Job) -> Fate {
    let mut rescued = rescue(queue, request).await;
    assert_eq!(rescued.len(), 1, "{rescued:?}");
    let Rescued { lease: void, fate } = rescued.remove(0);
    assert_eq!(void, lease(running), "it names the lease that is void");
    fate
}

/// A lost lease: queued again at once, the attempt counts, the history says so.
pub async fn the_first_rescue_queues_the_job_at_once(queue: Subject) {
    let running = start(&queue, &job()).await;
    let request = RescueRequest { backoff: HOUR, backoff_max: HOUR, ..rescue_all() };
    let fate = rescue_one(&queue, &request, &running).await;
    let waiting = assert_status(&queue, running.spec.id, JobStatus::Queued).await;
    let (outcome, ended_at) = last_end(&queue, running.spec.id).await;
    assert_eq!(outcome, AttemptOutcome::LeaseLost);
    assert_eq!(fate, Fate::Requeued { eligible_at: ended_at });
    assert_eq!(waiting.eligible_at, ended_at);
    assert_eq!((waiting.attempts, waiting.releases, waiting.rescues), (1, 0, 1));
    assert!(rescue(&queue, &request).await.is_empty(), "each lease is rescued once");
    let next = claim_one(&queue).await;
    assert_eq!((next.attempts, next.epoch), (2, running.epoch.next()));
}

/// A lease with a fresh claim or heartbeat is not lost; jobs that do not run are not rescued.
pub async fn a_live_lease_is_left_alone(queue: Subject) {
    let running = start(&queue, &job()).await;
    assert!(rescue(&queue, &rescue_late()).await.is_empty());
    assert!(rescue(&queue, &RescueRequest::default()).await.is_empty());
    assert_eq!(get(&queue, running.spec.id).await, running);
    complete(&queue, &lease(&running), &failure(Retry::After(HOUR))).await;
    add(&queue, &job()).await;
    assert!(rescue(&queue, &rescue_all()).await.is_empty());
}

/// From the second rescue on the job waits; each wait is twice the one before, up to a bound.
pub async fn later_rescues_back_off(queue: Subject) {
    let spec = job().with_max_attempts(attempts(10));
    add(&queue, &spec).await;
    let request =
        RescueRequest { backoff: Duration::from_millis(20), backoff_max: Duration::from_millis(50), ..rescue_all() };
    for (round, wait) in [0, 20, 40, 50, 50].map(Duration::from_millis).into_iter().enumerate() {
        let running = claim_one(&queue).await;
        let fate = rescue_one(&queue, &request, &running).await;
        let (_, ended_at) = last_end(&queue, spec.id).await;
        assert_eq!(fate, Fate::Requeued { eligible_at: later(ended_at, wait) }, "rescue {}", round + 1);
        assert_eq!(get(&queue, spec.id).await.eligible_at, later(ended_at, wait));
        pass(wait + MOMENT).await;
    }
    let running = claim_one(&queue).await;
    rescue_one(&queue, &RescueRequest { backoff: HOUR, backoff_max: HOUR, ..rescue_all() }, &running).await;
    assert!(claim_ids(&queue).await.is_empty(), "not before its time");
}

/// Lost once too often.
pub async fn a_lost_last_attempt_fails_the_job(queue: Subject) {
    let spec = job().with_max_attempts(attempts(2));
    add(&queue, &spec).await;
    assert!(matches!(rescue_one(&queue, &rescue_all(), &claim_one(&queue).await).await, Fate::Requeued { .. }));
    let last = claim_one(&queue).await;
    let fate = rescue_one(&queue, &rescue_all(), &last).await;
    let job = assert_status(&queue, spec.id, JobStatus::Failed).await;
    let failure = job.failure.expect("it failed");
    assert_eq!(failure.kind, FailureKind::LeaseLost);
    assert_eq!(fate, Fate::Failed { failure });
    assert_eq!((job.attempts, job.rescues), (2, 2));
    assert_eq!(last_end(&queue, spec.id).await.0, AttemptOutcome::LeaseLost);
    assert_zombie(&queue, &lease(&last)).await;
    assert!(claim_ids(&queue).await.is_empty());
}

/// The build's time is bounded by the database's clock, however lively the worker and however many attempts are left.
pub async fn a_passed_deadline_fails_the_job_although_it_heartbeats(queue: Subject) {
    let running =
        start(&queue, &job().with_build_timeout(Duration::from_millis(1)).with_max_attempts(attempts(9))).await;
    pass(MOMENT).await;
    queue.heartbeat_one(&lease(&running)).await.expect("a heartbeat");
    let fate = rescue_one(&queue, &rescue_late(), &running).await;
    let job = assert_status(&queue, running.spec.id, JobStatus::Failed).await;
    let failure = job.failure.expect("it failed");
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert_eq!(fate, Fate::Failed { failure });
    assert_eq!(job.rescues, 0, "its lease was not lost");
    assert_eq!(last_end(&queue, running.spec.id).await.0, AttemptOutcome::DeadlinePassed);
    assert_zombie(&queue, &lease(&running)).await;
}

/// Silent and out of time: out of time counts.
pub async fn a_deadline_outranks_a_lost_lease(queue: Subject) {
    let running = start(&queue, &job().with_build_timeout(Duration::from_millis(1))).await;
    pass(MOMENT).await;
    assert!(matches!(rescue_one(&queue, &rescue_all(), &running).await, Fate::Failed { .. }));
    let job = assert_status(&queue, running.spec.id, JobStatus::Failed).await;
    assert_eq!(job.failure.map(|failure| failure.kind), Some(FailureKind::Timeout));
}

/// The deadline is of the attempt, not of the job.
pub async fn each_attempt_has_the_whole_time(queue: Subject) {
    let first = start(&queue, &job().with_build_timeout(HOUR)).await;
    pass(MOMENT).await;
    rescue_one(&queue, &rescue_all(), &first).await;
    let running = claim_one(&queue).await.running.expect("it runs");
    assert_eq!(running.deadline, later(running.claimed_at, HOUR));
    assert!(running.claimed_at > first.running.expect("it ran").claimed_at);
}

/// A requested cancel turns a requeue, a last loss and a passed deadline alike into a cancel.
pub async fn a_requested_cancel_takes_effect(queue: Subject) {
    let short = Duration::from_millis(1);
    let specs = [job(), job().with_max_attempts(attempts(1)), job().with_build_timeout(short)];
    for spec in specs {
        let running = start(&queue, &spec).await;
        queue.cancel(spec.id).await.expect("the job exists");
        pass(MOMENT).await;
        assert_eq!(rescue_one(&queue, &rescue_all(), &running).await, Fate::Cancelled);
        assert_status(&queue, spec.id, JobStatus::Cancelled).await;
        let passed = spec.build_timeout == short;
        let wanted = if passed { AttemptOutcome::DeadlinePassed } else { AttemptOutcome::LeaseLost };
        assert_eq!(last_end(&queue, spec.id).await.0, wanted);
        assert_lost(queue.complete(&lease(&running), &Completion::Cancelled).await, &lease(&running));
    }
    assert!(claim_ids(&queue).await.is_empty());
}

/// At most as many as asked for; the rest comes with the next calls.
pub async fn a_rescue_takes_at_most_its_limit(queue: Subject) {
    enqueue(&queue, &(0..7).map(|_| job()).collect::<Vec<_>>()).await;
    let mut wanted: Vec<_> = claim(&queue, 7).await.iter().map(lease).map(|lease| lease.job).collect();
    let request = RescueRequest { limit: 3, ..rescue_all() };
    let mut seen = Vec::new();
    for size in [3, 3, 1, 0] {
        let rescued = rescue(&queue, &request).await;
        assert_eq!(rescued.len(), size);
        seen.extend(rescued.iter().map(|rescued| rescued.lease.job));
    }
    seen.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(seen, wanted);
}

/// However few a rescue may take, what is alive is not in the way of what is not.
pub async fn a_small_rescue_finds_the_one_among_many_that_live(queue: Subject) {
    for place in 0..6 {
        let specs =
            (0..6).map(|at| if at == place { job().with_build_timeout(Duration::from_millis(1)) } else { job() });
        let mut late = Vec::new();
        for spec in specs {
            let running = start(&queue, &spec).await;
            late.extend((spec.build_timeout < HOUR / 60).then_some(running));
        }
        pass(MOMENT).await;
        let request = RescueRequest { limit: 1, ..rescue_late() };
        assert!(matches!(rescue_one(&queue, &request, &late[0]).await, Fate::Failed { .. }));
        assert!(rescue(&queue, &request).await.is_empty());
    }
}

/// The bounds of a rescue.
pub async fn a_limit_out_of_bounds_is_refused(queue: Subject) {
    start(&queue, &job()).await;
    for limit in [0, MAX_BATCH + 1] {
        assert_invalid(queue.rescue(&RescueRequest { limit, ..rescue_all() }).await);
    }
    assert_eq!(rescue(&queue, &rescue_all()).await.len(), 1);
}

/// Many reapers at once: each lease is rescued by one of them.
pub async fn concurrent_reapers_rescue_each_lease_once(queue: Subject) {
    for _ in 0..5 {
        enqueue(&queue, &(0..20).map(|_| job().with_max_attempts(attempts(1))).collect::<Vec<_>>()).await;
        let mut wanted: Vec<Lease> = claim(&queue, 20).await.iter().map(lease).collect();
        let mut reapers = JoinSet::new();
        for _ in 0..6 {
            let queue = queue.clone();
            reapers.spawn(async move { rescue(&queue, &rescue_all()).await });
        }
        let mut seen: Vec<_> = reapers.join_all().await.concat().into_iter().map(|rescued| rescued.lease).collect();
        seen.sort_by_key(|lease| lease.job);
        wanted.sort_by_key(|lease| lease.job);
        assert_eq!(seen, wanted);
        for lease in &wanted {
            assert_eq!(get(&queue, lease.job).await.rescues, 1);
        }
    }
}

/// A completion and a rescue at once: one of them wins, and the other one is told.
pub async fn a_completion_and_a_rescue_do_not_both_win(queue: Subject) {
    for _ in 0..20 {
        let running = start(&queue, &job()).await;
        let (id, lease) = (running.spec.id, lease(&running));
        let mut calls = JoinSet::new();
        let (reaper, worker) = (queue.clone(), queue.clone());
        calls.spawn(async move { !rescue(&reaper, &rescue_all()).await.is_empty() });
        calls.spawn(async move { worker.complete(&lease, &success(id)).await.is_ok() });
        let wins = calls.join_all().await.into_iter().filter(|won| *won).count();
        assert_eq!(wins, 1);
        let job = get(&queue, id).await;
        let outcome = last_end(&queue, id).await.0;
        match job.status {
            JobStatus::Succeeded => assert!(matches!(outcome, AttemptOutcome::Completed { .. }), "{outcome:?}"),
            JobStatus::Queued => assert_eq!(outcome, AttemptOutcome::LeaseLost),
            other => panic!("{other} is no way out of here"),
        }
        queue.cancel(id).await.expect("the job exists");
    }
}
