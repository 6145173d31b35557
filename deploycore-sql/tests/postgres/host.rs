//! Text of any kind, and a host's own transaction.

use std::time::Duration;

use deploycore::model::{AttemptOutcome, Completion, Failure, FailureKind, JobStatus, Retry};
use deploycore::port::queue::turn::TURNS_OF_AN_ORDER;
use deploycore::port::queue::{Enqueued, Error, Fate, Order};
use deploycore::port::{JobQueue, JobQueueExt};
use sqlx::{Connection, PgConnection};

use crate::bed::{self, Queue, job, lease, request};

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
    for _ in 0..2 {
        assert_eq!(queue.complete(&lease(&claimed), &completion).await.unwrap(), JobStatus::Failed);
        assert_eq!(queue.require(claimed.spec.id).await.unwrap().failure, Some(failure.clone()));
    }
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

#[tokio::test]
async fn jobs_of_a_hosts_transaction_take_turns() {
    let (postgres, database) = bed::open().await;
    let queue = postgres.queue();
    queue.set_order(Order::FairShare).await.unwrap();
    let mut host = PgConnection::connect(&database.url()).await.unwrap();
    let mut transaction = host.begin().await.unwrap();
    let jobs: Vec<_> = (0..4).map(|_| job()).collect();
    Queue::enqueue_in(&mut transaction, &jobs[..2]).await.unwrap();
    // Others do not wait for the host, and do not see its jobs.
    let other = job();
    queue.enqueue_one(&other).await.unwrap();
    // It sees its own.
    Queue::enqueue_in(&mut transaction, &jobs[2..]).await.unwrap();
    transaction.commit().await.unwrap();
    let mut turns = Vec::new();
    for job in jobs.iter().chain([&other]) {
        turns.push(queue.require(job.id).await.unwrap().turn - TURNS_OF_AN_ORDER);
    }
    assert_eq!(turns, [1, 2, 3, 4, 1]);
}
