//! What statements decide is what the shared pure functions decide.

use std::time::Duration;

use deploycore::model::{AttemptOutcome, Completion, ConcurrencyKey, Failure, FailureKind, JobStatus, NewJob, Retry};
use deploycore::port::queue::{Beat, Enqueued, Error, Fate, transition};
use deploycore::port::{JobQueue, JobQueueExt};
use deploycore_sql::postgres::Queue;
use sqlx::{Connection, PgConnection};

use crate::bed::{self, job, lease, request, success};

fn keyed() -> NewJob {
    job().with_concurrency_key(ConcurrencyKey::new("db").unwrap())
}

#[tokio::test]
async fn an_enqueue_is_that_of_the_transition() {
    let (postgres, _database) = bed::open().await;
    let queue = postgres.queue();
    let (past, future) = ("2001-01-01T00:00:00Z", "2200-01-01T00:00:00.000001Z");
    let at = |instant: &str| job().with_not_before(instant.parse().unwrap()).with_priority(-3);
    for spec in [job(), keyed(), at(past), at(future)] {
        queue.enqueue_one(&spec).await.unwrap();
        let stored = queue.require(spec.id).await.unwrap();
        assert_eq!(stored, transition::enqueue(&spec, stored.created_at));
    }
}

#[tokio::test]
async fn a_claim_is_that_of_the_transition() {
    let (postgres, _database) = bed::open().await;
    let queue = postgres.queue();
    // Without a key, with one (another statement of the function), and a second time after a lost lease.
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
    let (postgres, _database) = bed::open().await;
    let queue = postgres.queue();
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
    let (postgres, _database) = bed::open().await;
    let queue = postgres.queue();
    for cancel in [false, true] {
        queue.enqueue_one(&job()).await.unwrap();
        let mut expected = queue.claim(&request(1)).await.unwrap().pop().unwrap();
        let held = lease(&expected);
        if cancel {
            queue.cancel(held.job).await.unwrap();
            expected.cancel_requested = true;
        }
        let completion = success(&expected);
        let completed = queue.complete(&held, &completion).await.unwrap();
        transition::complete(&mut expected, &completion, completed.finished_at.unwrap()).unwrap();
        assert_eq!(completed, expected);
        assert_eq!(queue.require(held.job).await.unwrap(), expected);
        let attempt = queue.attempts(held.job).await.unwrap().pop().unwrap();
        assert_eq!((attempt.lease, attempt.ended_at), (held, completed.finished_at));
        assert_eq!(attempt.outcome, Some(AttemptOutcome::Completed { completion }));
    }
}

#[tokio::test]
async fn text_that_the_server_cannot_hold_is_held() {
    let (postgres, _database) = bed::open().await;
    let queue = postgres.queue();
    queue.enqueue_one(&job()).await.unwrap();
    let claimed = queue.claim(&request(1)).await.unwrap().pop().unwrap();
    let fate = queue.release(&lease(&claimed), "a\0b", Duration::ZERO).await.unwrap();
    assert!(matches!(fate, Fate::Requeued { .. }));
    let claimed = queue.claim(&request(1)).await.unwrap().pop().unwrap();
    let failure = Failure::new(FailureKind::Build, "c\0\u{1f980}d").with_retry(Retry::Never);
    let completion = Completion::Failed { failure: failure.clone() };
    let failed = queue.complete(&lease(&claimed), &completion).await.unwrap();
    assert_eq!((failed.status, failed.failure), (JobStatus::Failed, Some(failure)));
    let again = queue.complete(&lease(&claimed), &completion).await.unwrap();
    assert_eq!(again.status, JobStatus::Failed);
    let outcomes: Vec<_> = queue.attempts(claimed.spec.id).await.unwrap().into_iter().map(|a| a.outcome).collect();
    let released = AttemptOutcome::Released { reason: "a\0b".to_owned() };
    assert_eq!(outcomes, [Some(released), Some(AttemptOutcome::Completed { completion })]);
}

#[tokio::test]
async fn a_host_enqueues_in_its_own_transaction() {
    let (postgres, database) = bed::open().await;
    let queue = postgres.queue();
    let mut host = PgConnection::connect(&database.url()).await.unwrap();
    sqlx::raw_sql("CREATE TABLE public.commits (id text PRIMARY KEY)").execute(&mut host).await.unwrap();
    let insert = "INSERT INTO public.commits VALUES ('abcdef0')";
    let (first, second) = (job(), job().with_priority(1));

    let mut transaction = host.begin().await.unwrap();
    sqlx::raw_sql(insert).execute(&mut *transaction).await.unwrap();
    Queue::enqueue_in(&mut transaction, &[first.clone(), second.clone()]).await.unwrap();
    assert_eq!(queue.get(first.id).await.unwrap(), None, "it is not there before the host commits");
    assert_eq!(queue.claim(&request(2)).await.unwrap(), []);
    transaction.rollback().await.unwrap();
    assert_eq!(queue.get(first.id).await.unwrap(), None);

    let mut transaction = host.begin().await.unwrap();
    sqlx::raw_sql(insert).execute(&mut *transaction).await.unwrap();
    let answers = Queue::enqueue_in(&mut transaction, &[first.clone(), second.clone()]).await.unwrap();
    assert_eq!(answers, [Enqueued::Created { job: first.id }, Enqueued::Created { job: second.id }]);
    // A refused call adds nothing, and the transaction goes on.
    let other = job();
    let refused = Queue::enqueue_in(&mut transaction, &[other.clone(), first.clone().with_priority(7)]).await;
    assert!(matches!(refused, Err(Error::Conflict { job }) if job == first.id), "{refused:?}");
    let again = Queue::enqueue_in(&mut transaction, std::slice::from_ref(&first)).await.unwrap();
    assert_eq!(again, [Enqueued::Repeated { job: first.id }]);
    transaction.commit().await.unwrap();

    assert_eq!(queue.get(other.id).await.unwrap(), None);
    let claimed: Vec<_> = queue.claim(&request(9)).await.unwrap().into_iter().map(|job| job.spec).collect();
    assert_eq!(claimed, [second, first]);
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM public.commits").fetch_one(&mut host).await.unwrap();
    assert_eq!(kept, 1);
}
