//! What PostgreSQL has of its own: updates without the indexes, and hints.

use std::time::{Duration, Instant};

use deploycore::model::{AttemptOutcome, Completion, JobStatus, LogName, Timings};
use deploycore::port::queue::{Beat, Error};
use deploycore::port::{JobQueue, JobQueueExt};
use servers::postgres::{Options, Postgres as Server};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::timeout;

use crate::bed::{self, PATIENCE, job, lease, request, success};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_touch_no_index() {
    const COUNTS: &str =
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = 'deploycore' AND relname = 'jobs'";
    // A server of its own: no row that died after the begin of a transaction that writes, in any database, may be cleaned, and the updates of
    // a page that is full of dead rows go elsewhere.
    let server = Server::start(&Options::default()).unwrap();
    let database = server.create_database().unwrap();
    let queue = bed::open_at(&database.url()).await.queue();
    queue.enqueue(&(0..100).map(|_| job()).collect::<Vec<_>>()).await.unwrap();
    let leases: Vec<_> = queue.claim(&request(100)).await.unwrap().iter().map(lease).collect();
    // Each worker beats for its few builds, in turn.
    for _ in 0..30 {
        for of_worker in leases.chunks(4) {
            let beats = queue.heartbeat(of_worker).await.unwrap();
            assert!(beats.iter().all(|beat| matches!(beat, Beat::Held { .. })));
        }
    }
    // The server counts with a delay.
    let mut watcher = PgConnection::connect(&database.url()).await.unwrap();
    let start = Instant::now();
    loop {
        let (updated, hot): (i64, i64) = sqlx::query_as(COUNTS).fetch_one(&mut watcher).await.unwrap();
        // 100 claims and 3,000 heartbeats.
        if updated >= 3_100 {
            println!("{hot} of {updated} updates were HOT");
            assert!(hot * 10 > (updated - 100) * 9, "{hot} of {updated} updates were HOT");
            return;
        }
        assert!(start.elapsed() < PATIENCE, "the server counted {updated} updates");
        tokio::time::sleep(Duration::from_millis(200)).await;
        queue.heartbeat(&leases[..1]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_hears_of_a_job_and_a_busy_one_is_not_told() {
    let (worker, database) = bed::open().await;
    let queue = worker.queue();
    let mut hint = queue.ready();
    // The first tells that it listens from now on.
    timeout(PATIENCE, hint.given()).await.expect("it listens");
    let host = bed::open_at(&database.url()).await.queue();
    for _ in 0..3 {
        host.enqueue(&[job(), job()]).await.unwrap();
        timeout(PATIENCE, hint.given()).await.expect("the hint comes");
        // While a job waits, nobody needs to be told of another, nor of one whose time has not come.
        host.enqueue_one(&job()).await.unwrap();
        assert_eq!(queue.claim(&request(9)).await.unwrap().len(), 3);
        host.enqueue_one(&job().with_not_before("2200-01-01T00:00:00Z".parse().unwrap())).await.unwrap();
        let more = timeout(Duration::from_millis(300), hint.given()).await;
        assert!(more.is_err(), "a hint for nothing");
    }

    // A listener whose connection is ended listens again.
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'LISTEN%'";
    let mut admin = PgConnection::connect(&database.url()).await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, i64>(end).fetch_one(&mut admin).await.unwrap(), 1);
    timeout(PATIENCE, hint.given()).await.expect("it listens again");
    host.enqueue_one(&job()).await.unwrap();
    timeout(PATIENCE, hint.given()).await.expect("the hint comes");
}

/// Who writes by hand is held to the rules too.
#[tokio::test]
async fn a_job_that_cannot_be_is_refused() {
    let (postgres, database) = bed::open().await;
    let queue = postgres.queue();
    queue.enqueue_one(&job()).await.unwrap();
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    for set in [
        "status = 'DONE'",
        "status = 'RUNNING'",
        "status = 'SUCCEEDED', finished_at = 1",
        "finished_at = 1",
        "max_attempts = 0",
        "max_releases = -1",
        "build_timeout = -1",
        "epoch = 1",
        "attempts = -1",
        "releases = -1",
        "rescues = -1",
        "turn = -1",
        "artifact = 'a', digest = 'd', size = 1",
        "size = 1",
    ] {
        let update = AssertSqlSafe(format!("UPDATE deploycore.jobs SET {set}"));
        let error = sqlx::raw_sql(update).execute(&mut connection).await.expect_err(set);
        assert!(error.to_string().contains("violates check constraint"), "{set}: {error}");
    }
    assert_eq!(queue.claim(&request(1)).await.unwrap().len(), 1);
}

/// A success is kept in the columns of its job, and what they do not hold is kept too.
#[tokio::test]
async fn a_success_is_known_again_whatever_the_worker_said_of_it() {
    let (postgres, _database) = bed::open().await;
    let queue = postgres.queue();
    queue.enqueue(&[job(), job(), job(), job()]).await.unwrap();
    let jobs = queue.claim(&request(4)).await.unwrap();
    let log = |of: usize| Some(LogName { job: jobs[of].spec.id, epoch: jobs[of].epoch });
    let small = Timings { build_ms: 7, store_ms: 9 };
    let said = [(None, small), (log(1), small), (log(0), small), (None, Timings { build_ms: u64::MAX, store_ms: 0 })];
    for (job, (log, timings)) in jobs.iter().zip(said) {
        let Completion::Succeeded { artifact, .. } = success(job) else { panic!("a success") };
        let other = Completion::Succeeded { artifact: artifact.clone(), log, timings: Timings::default() };
        let completion = Completion::Succeeded { artifact, log, timings };
        let lease = lease(job);
        assert_eq!(queue.complete(&lease, &completion).await.unwrap(), JobStatus::Succeeded);
        let done = queue.require(lease.job).await.unwrap();
        let attempts = queue.attempts(job.spec.id).await.unwrap();
        assert_eq!(attempts.len(), 1);
        assert_eq!(attempts[0].ended_at, done.finished_at);
        assert_eq!(attempts[0].outcome, Some(AttemptOutcome::Completed { completion: completion.clone() }));
        assert_eq!(queue.complete(&lease, &completion).await.unwrap(), JobStatus::Succeeded, "a repeated call");
        assert!(matches!(queue.complete(&lease, &other).await, Err(Error::LeaseLost { .. })));
    }
}
