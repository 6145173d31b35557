//! Opening a file, and what is said when it cannot be opened.

use deploycore::build::{Reaper, ReaperSettings};
use deploycore::model::{ClaimId, JobId, NewJob};
use deploycore::port::queue::ClaimRequest;
use deploycore::port::{BackendError, JobQueue, JobQueueExt, chain, queue};
use deploycore_sql::Sqlite;
use deploycore_sql::sqlite::{OpenError, Settings};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use std::time::Duration;
use tempfile::TempDir;

fn url(folder: &TempDir, name: &str) -> String {
    format!("sqlite://{}/{name}", folder.path().display())
}

fn job() -> NewJob {
    NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap())
}

#[tokio::test]
async fn what_one_handle_wrote_another_reads() {
    let folder = tempfile::tempdir().unwrap();
    let first = Sqlite::open(&url(&folder, "queue.db")).await.unwrap();
    let job = job();
    first.queue().enqueue_one(&job).await.unwrap();
    let second = Sqlite::open(&url(&folder, "queue.db")).await.unwrap();
    assert_eq!(second.queue().require(job.id).await.unwrap().spec, job);
    first.close().await;
    second.close().await;
    let third = Sqlite::open(&url(&folder, "queue.db")).await.unwrap();
    assert_eq!(third.queue().require(job.id).await.unwrap().spec, job);
    assert_eq!(third.path(), folder.path().join("queue.db"));
}

#[tokio::test]
async fn a_url_is_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::open(&url(&folder, "a%20b%3F.db")).await.unwrap();
    assert_eq!(sqlite.path(), folder.path().join("a b?.db"));
    assert!(sqlite.path().is_file());
}

#[tokio::test]
async fn a_url_of_something_else_is_refused() {
    for (url, why) in [
        ("postgres://host/db", "postgres"),
        ("memory://", "memory"),
        ("sqlite::memory:", "sqlite://"),
        ("/tmp/queue.db", "sqlite://"),
        ("sqlite://", "no file"),
        ("sqlite:///tmp/", "no file"),
        ("sqlite://:memory:", "no file"),
        ("sqlite:///tmp/queue.db?mode=ro", "parameters"),
    ] {
        let error = Sqlite::open(url).await.unwrap_err();
        assert!(matches!(error, OpenError::Url { .. }), "{url}: {error:?}");
        assert!(error.to_string().contains(url) && error.to_string().contains(why), "{url}: {error}");
    }
}

#[tokio::test]
async fn a_place_that_holds_no_database_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Sqlite::open(&url(&folder, "missing/queue.db")).await.unwrap_err();
    assert!(matches!(error, OpenError::MissingFolder { .. }), "{error:?}");
    assert!(error.to_string().contains("missing"), "{error}");

    std::fs::write(folder.path().join("notes.txt"), "these are notes, not a database; ".repeat(100)).unwrap();
    let error = Sqlite::open(&url(&folder, "notes.txt")).await.unwrap_err();
    assert!(matches!(error, OpenError::NotADatabase { .. }), "{error:?}");
    assert!(error.to_string().contains("notes.txt"), "{error}");

    std::fs::create_dir(folder.path().join("folder.db")).unwrap();
    let error = Sqlite::open(&url(&folder, "folder.db")).await.unwrap_err();
    assert!(matches!(error, OpenError::CannotOpen { .. }), "{error:?}");
    assert!(error.to_string().contains("folder.db"), "{error}");
}

#[tokio::test]
async fn a_lock_that_is_not_given_back_in_time_is_a_retryable_error_without_effect() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::default().with_busy_timeout(Duration::from_millis(50));
    let sqlite = Sqlite::open_with(&url(&folder, "queue.db"), &settings).await.unwrap();
    let queue = sqlite.queue();
    let (before, blocked) = (job(), job());
    queue.enqueue_one(&before).await.unwrap();

    let claim = |limit| ClaimRequest { claim: ClaimId::new(), worker: "worker-1".parse().unwrap(), limit };
    let first = claim(1);
    let claimed = queue.claim(&first).await.unwrap();

    let mut other = SqliteConnectOptions::new().filename(sqlite.path()).connect().await.unwrap();
    let lock = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = queue.enqueue_one(&blocked).await.unwrap_err();
    assert!(error.is_retryable(), "{}", chain(&error));
    let queue::Error::Backend(error) = error else { panic!("{error:?}") };
    assert_eq!(BackendError::backend(&error), "sqlite");
    let refused = Sqlite::open_with(&url(&folder, "queue.db"), &settings).await.unwrap_err();
    assert!(matches!(refused, OpenError::Busy { .. }) && refused.is_retryable(), "{refused:?}");
    // Reading goes on meanwhile, and so do claims that find nothing to hand out or were answered before.
    assert_eq!(queue.claim(&claim(1)).await.unwrap(), []);
    assert_eq!(queue.claim(&first).await.unwrap(), claimed);
    assert!(queue.get(before.id).await.unwrap().is_some());
    assert_eq!(queue.get(blocked.id).await.unwrap(), None);
    // No heartbeat arrives now, so the time that a reaper leaves for heartbeats does not run yet.
    let reaper = Reaper::new(ReaperSettings::default(), queue.clone()).unwrap();
    assert!(reaper.tick().await.unwrap_err().is_retryable());

    lock.rollback().await.unwrap();
    assert!(reaper.tick().await.unwrap().waits.is_some());
    queue.enqueue_one(&blocked).await.unwrap();
    assert!(queue.get(blocked.id).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_has_happened_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let queue = Sqlite::open(&url(&folder, "queue.db")).await.unwrap().queue();
    let mut batches: Vec<Vec<JobId>> = Vec::new();
    let mut finished = 0;
    for turn in 0..60 {
        let jobs: Vec<_> = (0..20).map(|_| job()).collect();
        let patience = Duration::from_micros(150 * turn);
        finished += usize::from(tokio::time::timeout(patience, queue.enqueue(&jobs)).await.is_ok());
        batches.push(jobs.iter().map(|job| job.id).collect());
    }
    assert!(finished < 60, "no call was dropped: the test shows nothing");
    // The writer is free again, whatever was dropped, and this call comes after all of them.
    queue.enqueue_one(&job()).await.unwrap();
    for batch in batches {
        let mut found = 0;
        for id in &batch {
            found += usize::from(queue.get(*id).await.unwrap().is_some());
        }
        assert!(found == 0 || found == batch.len(), "{found} of {}", batch.len());
    }
}
