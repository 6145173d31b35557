//! Any server that dies in the middle of the work.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use deploycore::model::{AttemptOutcome, JobId, JobStatus};
use deploycore::port::JobQueue;
use deploycore::port::queue::{Error, RescueRequest};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bed::{self, PATIENCE, Queue, job, lease, request, success};

const JOBS: usize = 150;

/// What the callers were told, and how often a call had to be made again.
#[derive(Default)]
struct Said {
    enqueued: Mutex<BTreeSet<JobId>>,
    succeeded: AtomicUsize,
    repeated: AtomicUsize,
}

impl Said {
    /// Makes a call again while its error may pass.
    async fn persistently<T, F: Future<Output = Result<T, Error>>>(&self, call: impl Fn() -> F) -> Result<T, Error> {
        loop {
            match call().await {
                Err(error) if error.is_retryable() => {
                    self.repeated.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => return other,
            }
        }
    }
}

async fn produce(queue: Arc<Queue>, said: Arc<Said>) {
    for _ in 0..JOBS / 3 {
        let jobs = [job(), job(), job()];
        said.persistently(|| queue.enqueue(&jobs)).await.unwrap();
        said.enqueued.lock().await.extend(jobs.iter().map(|job| job.id));
    }
}

async fn work(queue: Arc<Queue>, said: Arc<Said>) {
    while said.succeeded.load(Ordering::SeqCst) < JOBS {
        let request = request(2);
        let claimed = said.persistently(|| queue.claim(&request)).await.unwrap();
        for job in claimed {
            let (lease, completion) = (lease(&job), success(&job));
            match said.persistently(|| queue.complete(&lease, &completion)).await {
                Ok(_) => drop(said.succeeded.fetch_add(1, Ordering::SeqCst)),
                Err(Error::LeaseLost { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_done_twice_when_the_server_is_killed() {
    let (mut server, url) = bed::own_server();
    let queue = bed::open_at(&url).await.queue();
    let said = Arc::new(Said::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(produce(Arc::clone(&queue), Arc::clone(&said)));
    for _ in 0..3 {
        tasks.spawn(work(bed::open_at(&url).await.queue(), Arc::clone(&said)));
    }
    for kill in 1..=3 {
        // Killed in the middle: after so many successes.
        let target = kill * JOBS / 5;
        let progress = async {
            while said.succeeded.load(Ordering::SeqCst) < target {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, progress).await.expect("work goes on");
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.start_again().unwrap();
            server
        })
        .await
        .unwrap();
    }
    // A claim or a completion whose reply was lost has been repeated, so no lease is lost for good; the rescue is for the test's own peace.
    let finish = async {
        while tasks.join_next().await.is_some_and(|ended| ended.is_ok()) {}
        tasks.is_empty()
    };
    assert!(timeout(PATIENCE, finish).await.expect("it ends"), "a caller panicked");

    // A connection that nobody used since the last kill is found dead by the call that gets it.
    let stats = said.persistently(|| queue.stats()).await.unwrap();
    let repeated = said.repeated.load(Ordering::SeqCst);
    println!("{repeated} calls were repeated; {:?}", stats.counts);
    assert!(repeated > 0, "no call met the dead server: the test shows little");
    let enqueued = said.enqueued.lock().await.clone();
    assert_eq!(enqueued.len(), JOBS);
    for id in enqueued {
        let job = queue.get(id).await.unwrap().expect("an acknowledged job is there");
        assert_eq!(job.status, JobStatus::Succeeded, "{job:?}");
        let attempts = queue.attempts(id).await.unwrap();
        let successes =
            attempts.iter().filter(|attempt| matches!(attempt.outcome, Some(AttemptOutcome::Completed { .. }))).count();
        assert_eq!((attempts.len(), successes), (1, 1), "{attempts:?}");
    }
    assert_eq!(queue.rescue(&RescueRequest::default()).await.unwrap(), []);
    drop(server);
    let gone = queue.stats().await.unwrap_err();
    assert!(gone.is_retryable(), "{gone:?}");
}
