//! What statements of any server decide is what the shared pure functions decide.

use std::time::Duration;

use deploycore::model::{AttemptOutcome, ConcurrencyKey, JobStatus, NewJob};
use deploycore::port::queue::turn::TURNS_OF_AN_ORDER;
use deploycore::port::queue::{Beat, Order, transition};
use deploycore::port::{JobQueue, JobQueueExt};

use crate::bed::{self, job, lease, request, success};

fn keyed() -> NewJob {
    job().with_concurrency_key(ConcurrencyKey::new("db").unwrap())
}

#[tokio::test]
async fn an_enqueue_is_that_of_the_transition() {
    let (sql, _database) = bed::open().await;
    let queue = sql.queue();
    let (past, future) = ("2001-01-01T00:00:00Z", "2200-01-01T00:00:00.000001Z");
    let at = |instant: &str| job().with_not_before(instant.parse().unwrap()).with_priority(-3);
    for (order, turns) in
        [(Order::Oldest, [0; 4]), (Order::FairShare, [1, 2, 1, 0].map(|turn| TURNS_OF_AN_ORDER + turn))]
    {
        queue.set_order(order).await.unwrap();
        for (spec, turn) in [job(), keyed(), at(past), at(future)].into_iter().zip(turns) {
            queue.enqueue_one(&spec).await.unwrap();
            let stored = queue.require(spec.id).await.unwrap();
            assert_eq!(stored, transition::enqueue(&spec, turn, stored.created_at));
        }
    }
}

#[tokio::test]
async fn a_claim_is_that_of_the_transition() {
    let (sql, _database) = bed::open().await;
    let queue = sql.queue();
    // Without a key, with one (other statements), and a second time after a lost lease.
    for spec in [job(), keyed()] {
        queue.enqueue_one(&spec).await.unwrap();
        for _ in 0..2 {
            let mut expected = queue.require(spec.id).await.unwrap();
            let claim = request(1);
            let claimed = queue.claim(&claim).await.unwrap().pop().unwrap();
            let now = claimed.running.as_ref().unwrap().claimed_at;
            let attempt = transition::claim(&mut expected, &claim, now);
            assert_eq!(claimed, expected);
            assert_eq!(queue.require(spec.id).await.unwrap(), expected);
            assert_eq!(queue.attempts(spec.id).await.unwrap().pop().unwrap(), attempt);
            queue.release(&lease(&claimed), "again", Duration::ZERO).await.unwrap();
        }
        queue.cancel(spec.id).await.unwrap();
    }
}

#[tokio::test]
async fn a_heartbeat_is_that_of_the_transition() {
    let (sql, _database) = bed::open().await;
    let queue = sql.queue();
    queue.enqueue_one(&job()).await.unwrap();
    let mut expected = queue.claim(&request(1)).await.unwrap().pop().unwrap();
    let held = lease(&expected);
    queue.cancel(expected.spec.id).await.unwrap();
    expected.cancel_requested = true;
    let beat = queue.heartbeat_one(&held).await.unwrap();
    let stored = queue.require(expected.spec.id).await.unwrap();
    let now = stored.running.as_ref().unwrap().last_heartbeat;
    assert!(now > expected.running.as_ref().unwrap().last_heartbeat);
    assert_eq!(beat, transition::heartbeat(&mut expected, &held, now));
    assert_eq!(stored, expected);
    // A lease twice in one batch is answered twice; one that is not the current one is lost.
    let stale = deploycore::model::Lease { epoch: held.epoch.next(), ..held };
    let beats = queue.heartbeat(&[held, stale, held]).await.unwrap();
    assert!(matches!(beats[..], [Beat::Held { .. }, Beat::Lost, Beat::Held { .. }]), "{beats:?}");
}

#[tokio::test]
async fn a_success_is_that_of_the_transition() {
    let (sql, _database) = bed::open().await;
    let queue = sql.queue();
    for cancel in [false, true] {
        queue.enqueue_one(&job()).await.unwrap();
        let mut expected = queue.claim(&request(1)).await.unwrap().pop().unwrap();
        let held = lease(&expected);
        if cancel {
            queue.cancel(held.job).await.unwrap();
            expected.cancel_requested = true;
        }
        let completion = success(&expected);
        assert_eq!(queue.complete(&held, &completion).await.unwrap(), JobStatus::Succeeded);
        let completed = queue.require(held.job).await.unwrap();
        transition::complete(&mut expected, &completion, completed.finished_at.unwrap()).unwrap();
        assert_eq!(completed, expected);
        let attempt = queue.attempts(held.job).await.unwrap().pop().unwrap();
        assert_eq!((attempt.lease, attempt.ended_at), (held, completed.finished_at));
        assert_eq!(attempt.outcome, Some(AttemptOutcome::Completed { completion }));
    }
}
