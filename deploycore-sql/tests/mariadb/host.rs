//! Text of any kind, and a host's own transaction.

use std::time::Duration;

use deploycore::model::{AttemptOutcome, Completion, DedupKey, Failure, FailureKind, JobStatus, Retry};
use deploycore::port::queue::turn::TURNS_OF_AN_ORDER;
use deploycore::port::queue::{Beat, Enqueued, Error, Fate, Order};
use deploycore::port::{JobQueue, JobQueueExt};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection};

use crate::bed::{self, Queue, job, lease, request, success};

#[tokio::test]
async fn text_of_every_kind_is_held() {
    let (mariadb, _database) = bed::open().await;
    let queue = mariadb.queue();
    queue.enqueue_one(&job()).await.unwrap();
    let claimed = queue.claim(&request(1)).await.unwrap().pop().unwrap();
    let fate = queue.release(&lease(&claimed), "a\0b", Duration::ZERO).await.unwrap();
    assert!(matches!(fate, Fate::Requeued { .. }));
    let claimed = queue.claim(&request(1)).await.unwrap().pop().unwrap();
    let failure = Failure::new(FailureKind::Build, "c\0\\ \"\u{1f980}\n\u{10ffff}d").with_retry(Retry::Never);
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
    let (mariadb, database) = bed::open().await;
    let queue = mariadb.queue();
    let mut host = MySqlConnection::connect(&database.url()).await.unwrap();
    sqlx::raw_sql("CREATE TABLE commits (id VARCHAR(64) PRIMARY KEY)").execute(&mut host).await.unwrap();
    let insert = "INSERT INTO commits VALUES ('abcdef0')";
    let (first, second) = (job(), job().with_priority(1));

    let mut transaction = host.begin().await.unwrap();
    sqlx::raw_sql(insert).execute(&mut *transaction).await.unwrap();
    Queue::enqueue_in(&mut transaction, &[first.clone(), second.clone()]).await.unwrap();
    assert_eq!(queue.get(first.id).await.unwrap(), None, "it is not there before the host commits");
    assert_eq!(queue.claim(&request(2)).await.unwrap(), []);
    transaction.rollback().await.unwrap();
    assert_eq!(queue.get(first.id).await.unwrap(), None);

    // The server's default, at which a snapshot would hide what others commit meanwhile.
    let mut transaction = host.begin().await.unwrap();
    sqlx::raw_sql(insert).execute(&mut *transaction).await.unwrap();
    let answers = Queue::enqueue_in(&mut transaction, &[first.clone(), second.clone()]).await.unwrap();
    assert_eq!(answers, [Enqueued::Created { job: first.id }, Enqueued::Created { job: second.id }]);
    let key: DedupKey = "nightly".parse().unwrap();
    let theirs = job().with_dedup_key(key.clone()).with_priority(-1);
    queue.enqueue_one(&theirs).await.unwrap();
    let ours = Queue::enqueue_in(&mut transaction, &[theirs.clone(), job().with_dedup_key(key)]).await.unwrap();
    assert_eq!(ours, [Enqueued::Repeated { job: theirs.id }, Enqueued::Deduplicated { existing: theirs.id }]);
    // A refused call adds nothing, and the transaction goes on.
    let other = job();
    let refused = Queue::enqueue_in(&mut transaction, &[other.clone(), first.clone().with_priority(7)]).await;
    assert!(matches!(refused, Err(Error::Conflict { job }) if job == first.id), "{refused:?}");
    let again = Queue::enqueue_in(&mut transaction, std::slice::from_ref(&first)).await.unwrap();
    assert_eq!(again, [Enqueued::Repeated { job: first.id }]);
    transaction.commit().await.unwrap();

    assert_eq!(queue.get(other.id).await.unwrap(), None);
    let claimed: Vec<_> = queue.claim(&request(9)).await.unwrap().into_iter().map(|job| job.spec).collect();
    assert_eq!(claimed, [second, first, theirs]);
    let kept: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM commits").fetch_one(&mut host).await.unwrap();
    assert_eq!(kept, 1);
}

#[tokio::test]
async fn a_worker_goes_on_beating_for_a_job_that_a_host_met() {
    let (mariadb, database) = bed::open().await;
    let queue = mariadb.queue();
    let key: DedupKey = "nightly".parse().unwrap();
    queue.enqueue_one(&job().with_dedup_key(key.clone())).await.unwrap();
    let claimed = queue.claim(&request(1)).await.unwrap().pop().unwrap();
    let mut host = MySqlConnection::connect(&database.url()).await.unwrap();
    for isolation in ["REPEATABLE READ", "READ COMMITTED"] {
        let set = format!("SET SESSION TRANSACTION ISOLATION LEVEL {isolation}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut host).await.unwrap();
        let mut transaction = host.begin().await.unwrap();
        let answers = Queue::enqueue_in(&mut transaction, &[job().with_dedup_key(key.clone())]).await.unwrap();
        assert_eq!(answers, [Enqueued::Deduplicated { existing: claimed.spec.id }]);
        let beat = queue.heartbeat_one(&lease(&claimed)).await.unwrap_or_else(|error| panic!("{isolation}: {error}"));
        assert!(matches!(beat, Beat::Held { .. }), "{isolation}: {beat:?}");
        transaction.commit().await.unwrap();
    }
    queue.complete(&lease(&claimed), &success(&claimed)).await.unwrap();
}

#[tokio::test]
async fn a_host_whose_transaction_the_server_ended_begins_again() {
    let (mariadb, database) = bed::open().await;
    let queue = mariadb.queue();
    let (mut one, mut other) = (
        MySqlConnection::connect(&database.url()).await.unwrap(),
        MySqlConnection::connect(&database.url()).await.unwrap(),
    );
    sqlx::raw_sql("CREATE TABLE commits (id INT PRIMARY KEY); INSERT INTO commits VALUES (1)")
        .execute(&mut one)
        .await
        .unwrap();
    let spec = job();
    // The first host waits for the row of the second, which then waits for the first one's job. The server ends the one that wrote less.
    let mut first = one.begin().await.unwrap();
    let mut second = other.begin().await.unwrap();
    Queue::enqueue_in(&mut first, &(0..9).map(|_| job()).chain([spec.clone()]).collect::<Vec<_>>()).await.unwrap();
    sqlx::raw_sql("UPDATE commits SET id = 2").execute(&mut *second).await.unwrap();
    let (blocked, ended) = tokio::join!(
        async { sqlx::raw_sql("UPDATE commits SET id = 3").execute(&mut *first).await },
        Queue::enqueue_in(&mut second, std::slice::from_ref(&spec)),
    );
    blocked.unwrap();
    let error = ended.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    second.rollback().await.unwrap();
    first.commit().await.unwrap();

    let mut again = other.begin().await.unwrap();
    let answers = Queue::enqueue_in(&mut again, std::slice::from_ref(&spec)).await.unwrap();
    assert_eq!(answers, [Enqueued::Repeated { job: spec.id }]);
    again.commit().await.unwrap();
    assert_eq!(queue.claim(&request(99)).await.unwrap().len(), 10);
}

#[tokio::test]
async fn jobs_of_a_hosts_transaction_take_turns() {
    let (mariadb, database) = bed::open().await;
    let queue = mariadb.queue();
    queue.set_order(Order::FairShare).await.unwrap();
    let mut host = MySqlConnection::connect(&database.url()).await.unwrap();
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
