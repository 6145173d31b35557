//! Showing that a build lives.

use std::time::Duration;

use tokio::time::Instant;

use super::steps::*;
use crate::model::{ClaimId, JobId, JobStatus, Lease, later};
use crate::port::JobQueueExt;
use crate::port::queue::{Beat, MAX_BATCH, RescueRequest};

async fn beat(queue: &Subject, lease: &Lease) -> Beat {
    queue.heartbeat_one(lease).await.expect("a heartbeat")
}

/// It moves the newest heartbeat and nothing else.
pub async fn a_heartbeat_moves_no_deadline(queue: Subject) {
    let started = start(&queue, &job().with_build_timeout(HOUR)).await;
    pass(MOMENT).await;
    let answer = beat(&queue, &lease(&started)).await;
    let Beat::Held { cancel_requested: false, time_left } = answer else { panic!("the lease holds: {answer:?}") };
    assert!(time_left < HOUR && time_left > Duration::from_mins(50), "{time_left:?}");
    let mut after = get(&queue, started.spec.id).await;
    let running = after.running.as_mut().expect("it runs");
    let before = started.running.as_ref().expect("it ran");
    assert!(running.last_heartbeat > before.last_heartbeat);
    assert_eq!(running.deadline, later(running.claimed_at, HOUR));
    running.last_heartbeat = before.last_heartbeat;
    assert_eq!(after, started);
}

/// The answers stand in the order of the leases, each for itself.
pub async fn the_answers_stand_in_order(queue: Subject) {
    enqueue(&queue, &[job(), job(), job()]).await;
    let jobs = claim(&queue, 3).await;
    complete(&queue, &lease(&jobs[1]), &success(jobs[1].spec.id)).await;
    queue.cancel(jobs[2].spec.id).await.expect("the job exists");
    let unknown = Lease { job: JobId::new(), ..lease(&jobs[0]) };
    let leases = [lease(&jobs[2]), unknown, lease(&jobs[0]), lease(&jobs[1]), lease(&jobs[2])];
    let beats = queue.heartbeat(&leases).await.expect("a heartbeat");
    let told: Vec<_> = beats
        .iter()
        .map(|beat| match beat {
            Beat::Held { cancel_requested, .. } => Some(*cancel_requested),
            Beat::Lost => None,
        })
        .collect();
    assert_eq!(told, [Some(true), None, Some(false), None, Some(true)]);
}

/// A batch has a bound, and none at all is fine.
pub async fn a_batch_has_a_bound(queue: Subject) {
    let running = start(&queue, &job()).await;
    assert_eq!(queue.heartbeat(&[]).await.expect("a heartbeat"), []);
    let leases = vec![lease(&running); MAX_BATCH + 1];
    assert_invalid(queue.heartbeat(&leases).await);
    assert_eq!(queue.heartbeat(&leases[1..]).await.expect("a heartbeat").len(), MAX_BATCH);
}

/// A requested cancel reaches the worker by its next heartbeat.
pub async fn a_heartbeat_tells_of_a_requested_cancel(queue: Subject) {
    let running = start(&queue, &job()).await;
    assert!(matches!(beat(&queue, &lease(&running)).await, Beat::Held { cancel_requested: false, .. }));
    queue.cancel(running.spec.id).await.expect("the job exists");
    assert!(matches!(beat(&queue, &lease(&running)).await, Beat::Held { cancel_requested: true, .. }));
}

/// Both the epoch and the claim id must be right.
pub async fn a_lease_that_is_not_the_current_one_is_lost(queue: Subject) {
    let running = start(&queue, &job()).await;
    let current = lease(&running);
    pass(MOMENT).await;
    let forged = [
        Lease { epoch: current.epoch.next(), ..current },
        Lease { epoch: crate::model::Epoch::ZERO, ..current },
        Lease { claim: ClaimId::new(), ..current },
    ];
    for lease in &forged {
        assert_eq!(beat(&queue, lease).await, Beat::Lost);
    }
    assert_eq!(get(&queue, running.spec.id).await, running, "and keeps nothing alive");
    assert!(matches!(beat(&queue, &current).await, Beat::Held { .. }));
}

/// Past the deadline the lease holds, with no time left, until a rescue.
pub async fn past_the_deadline_no_time_is_left(queue: Subject) {
    let running = start(&queue, &job().with_build_timeout(Duration::from_millis(1))).await;
    pass(MOMENT).await;
    let none_left = Beat::Held { cancel_requested: false, time_left: Duration::ZERO };
    assert_eq!(beat(&queue, &lease(&running)).await, none_left);
    assert_status(&queue, running.spec.id, JobStatus::Running).await;
    rescue(&queue, &rescue_late()).await;
    assert_eq!(beat(&queue, &lease(&running)).await, Beat::Lost);
}

/// Of two builds the silent one is lost. Where the machine stalls so long that either may count as silent, it is tried again with
/// more patience.
pub async fn a_heartbeat_keeps_a_lease_from_being_lost(queue: Subject) {
    for patience in [50, 500, 5_000].map(Duration::from_millis) {
        let spec = || job().with_max_attempts(attempts(10));
        let (loud, silent) = (start(&queue, &spec()).await, start(&queue, &spec()).await);
        pass(patience * 2).await;
        let before = Instant::now();
        beat(&queue, &lease(&loud)).await;
        let request = RescueRequest { lost_after: patience, ..rescue_all() };
        let rescued: Vec<_> = rescue(&queue, &request).await.into_iter().map(|rescued| rescued.lease).collect();
        assert!(rescued.contains(&lease(&silent)));
        let kept = !rescued.contains(&lease(&loud));
        assert!(kept || before.elapsed() >= patience, "a lease with a fresh heartbeat was rescued");
        if kept {
            assert_eq!(rescued, [lease(&silent)]);
            return;
        }
        for id in [loud.spec.id, silent.spec.id] {
            queue.cancel(id).await.expect("the job exists");
        }
    }
    panic!("this machine stalls for seconds: the case says nothing");
}
