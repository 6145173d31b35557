//! Many connections at once, on any server.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use deploycore::model::{AttemptOutcome, ConcurrencyKey, Job, JobId, JobStatus, Lease};
use deploycore::port::queue::{Beat, Error, RescueRequest};
use deploycore::port::{JobQueue, JobQueueExt};
use sqlx::Connection as _;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bed::{self, Connection, HOLD, PATIENCE, Queue, Sql, WAITERS, job, lease, request, success};

/// Between looks for a waiter. MariaDB shows transactions as they were a tenth of a second ago.
const LOOK: Duration = Duration::from_millis(110);

/// Four handles as four processes have them, with eight connections each.
pub(crate) async fn four_handles(url: &str) -> Vec<Arc<Queue>> {
    let settings = bed::settings().with_connections(8);
    let mut handles = Vec::new();
    for _ in 0..4 {
        handles.push(Sql::open_with(url, &settings).await.unwrap().queue());
    }
    handles
}

fn rescue_all() -> RescueRequest {
    RescueRequest { lost_after: Duration::ZERO, backoff: Duration::ZERO, ..RescueRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_at_once_share_no_job() {
    let database = bed::empty();
    let handles = four_handles(&database.url()).await;
    let jobs: Vec<_> = (0..600).map(|_| job()).collect();
    handles[0].enqueue(&jobs).await.unwrap();
    let mut claimers = JoinSet::new();
    for number in 0..32_usize {
        let queue = Arc::clone(&handles[number % 4]);
        claimers.spawn(async move {
            let mut taken = Vec::new();
            for turn in 0.. {
                let claimed = queue.claim(&request(1 + (number + turn) % 3)).await.unwrap();
                if claimed.is_empty() {
                    break;
                }
                taken.extend(claimed);
            }
            taken
        });
    }
    let taken = timeout(PATIENCE, claimers.join_all()).await.expect("it ends").concat();
    let ids: BTreeSet<_> = taken.iter().map(|job| job.spec.id).collect();
    assert_eq!(taken.len(), ids.len(), "a job was handed out twice");
    // A claimer leaves when it finds none: whatever others held at that moment they took.
    assert_eq!(ids, jobs.iter().map(|job| job.id).collect());
    assert!(taken.iter().all(|job| job.epoch.get() == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_made_many_times_at_once_takes_jobs_once() {
    let database = bed::empty();
    let handles = four_handles(&database.url()).await;
    for turn in 0..20 {
        let jobs: Vec<_> = (0..10).map(|_| job()).collect();
        handles[0].enqueue(&jobs).await.unwrap();
        let request = request(3);
        let mut calls = JoinSet::new();
        for number in 0..12 {
            let (queue, request) = (Arc::clone(&handles[number % 4]), request.clone());
            calls.spawn(async move { queue.claim(&request).await.unwrap() });
        }
        let answers = timeout(PATIENCE, calls.join_all()).await.expect("it ends");
        assert_eq!(answers[0].len(), 3);
        assert!(answers.iter().all(|answer| *answer == answers[0]), "turn {turn}: {answers:?}");
        let stats = handles[0].stats().await.unwrap();
        assert_eq!(stats.counts[&JobStatus::Running], 3 * (turn + 1));
    }
}

/// How many of a key run by the workers' own account.
#[derive(Default)]
struct Running {
    now: AtomicI64,
    most: AtomicI64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_limit_of_a_key_is_passed_under_32_claimers() {
    let database = bed::empty();
    let handles = four_handles(&database.url()).await;
    let keys: Vec<_> = ["one", "three"].map(|name| ConcurrencyKey::new(name).unwrap()).into();
    let limits = [1, 3];
    handles[0].set_concurrency_limit(&keys[1], NonZeroU32::new(3).unwrap()).await.unwrap();
    // Ids rise, so the order of claims is the order here.
    let mut order: [Vec<JobId>; 2] = Default::default();
    let mut jobs = Vec::new();
    for index in 0..2 {
        let mut of_key: Vec<_> = (0..60).map(|_| job().with_concurrency_key(keys[index].clone())).collect();
        of_key.sort_unstable_by_key(|job| job.id);
        order[index] = of_key.iter().map(|job| job.id).collect();
        jobs.extend(of_key);
    }
    jobs.extend((0..40).map(|_| job()));
    handles[0].enqueue(&jobs).await.unwrap();
    let all = jobs.len();

    let running: Arc<[Running; 2]> = Arc::default();
    let done = Arc::new(AtomicUsize::new(0));
    let mut claimers = JoinSet::new();
    for number in 0..32_usize {
        let (queue, running, done) = (Arc::clone(&handles[number % 4]), Arc::clone(&running), Arc::clone(&done));
        let keys = keys.clone();
        claimers.spawn(async move {
            while done.load(Ordering::SeqCst) < all {
                for job in queue.claim(&request(1 + number % 2)).await.unwrap() {
                    let key = job.spec.concurrency_key.as_ref();
                    let counter = key.map(|key| &running[keys.iter().position(|known| known == key).unwrap()]);
                    if let Some(counter) = counter {
                        let now = counter.now.fetch_add(1, Ordering::SeqCst) + 1;
                        counter.most.fetch_max(now, Ordering::SeqCst);
                    }
                    tokio::task::yield_now().await;
                    // Before the call: once it has reached the server the place is free.
                    if let Some(counter) = counter {
                        counter.now.fetch_sub(1, Ordering::SeqCst);
                    }
                    queue.complete(&lease(&job), &success(&job)).await.unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
    timeout(2 * PATIENCE, claimers.join_all()).await.expect("it ends");

    let mut ended = BTreeMap::new();
    for job in &jobs {
        let attempts = handles[0].attempts(job.id).await.unwrap();
        assert_eq!(attempts.len(), 1, "{}", job.id);
        ended.insert(job.id, (attempts[0].claimed_at, attempts[0].ended_at.unwrap()));
    }
    for index in 0..2 {
        // By the workers' account, and by the history: an end frees its place for a claim at the same instant.
        let most = running[index].most.load(Ordering::SeqCst);
        let mut changes: Vec<_> = order[index].iter().flat_map(|id| [(ended[id].0, 1), (ended[id].1, -1)]).collect();
        changes.sort_unstable();
        let (mut now, mut peak) = (0, 0);
        for (_, change) in changes {
            now += change;
            peak = peak.max(now);
        }
        assert!(most <= limits[index] && peak <= limits[index], "{}: {most}, {peak}", keys[index]);
        assert!(index == 0 || peak > 1, "the key was never contended: the test shows little");
    }
    let mut claimed: Vec<_> = order[0].iter().map(|id| (ended[id].0, *id)).collect();
    claimed.sort_unstable();
    assert_eq!(
        claimed.into_iter().map(|(_, id)| id).collect::<Vec<_>>(),
        order[0],
        "strict order where the limit is 1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_is_refused_100_times_of_100() {
    let (sql, _database) = bed::open().await;
    let queue = sql.queue();
    for turn in 0..100 {
        queue.enqueue_one(&job()).await.unwrap();
        let zombie = queue.claim(&request(1)).await.unwrap().pop().unwrap();
        assert_eq!(queue.rescue(&rescue_all()).await.unwrap().len(), 1);
        // A worker of the same name takes it at once.
        let current = queue.claim(&request(1)).await.unwrap().pop().unwrap();
        assert_eq!(current.spec.id, zombie.spec.id);
        let refused = queue.complete(&lease(&zombie), &success(&zombie)).await;
        assert!(matches!(refused, Err(Error::LeaseLost { .. })), "turn {turn}: {refused:?}");
        let mixed = Lease { epoch: current.epoch, ..lease(&zombie) };
        let refused = queue.complete(&mixed, &success(&zombie)).await;
        assert!(matches!(refused, Err(Error::LeaseLost { .. })), "turn {turn}: {refused:?}");
        assert_eq!(queue.heartbeat_one(&lease(&zombie)).await.unwrap(), Beat::Lost);
        assert!(matches!(queue.release(&lease(&zombie), "", Duration::ZERO).await, Err(Error::LeaseLost { .. })));
        assert_eq!(queue.require(current.spec.id).await.unwrap(), current, "the zombie changed it");
        queue.complete(&lease(&current), &success(&current)).await.unwrap();
        let completed = queue.require(current.spec.id).await.unwrap();
        assert_eq!(completed.artifact.as_ref().unwrap().digest, artifact_digest(&current));
        let outcomes: Vec<_> =
            queue.attempts(current.spec.id).await.unwrap().into_iter().map(|attempt| attempt.outcome).collect();
        assert!(matches!(outcomes[..], [Some(AttemptOutcome::LeaseLost), Some(AttemptOutcome::Completed { .. })]));
    }
}

fn artifact_digest(job: &Job) -> deploycore::model::Digest {
    let deploycore::model::Completion::Succeeded { artifact, .. } = success(job) else { unreachable!() };
    artifact.digest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_lost_lease_is_rescued_once_by_many_at_once() {
    let database = bed::empty();
    let handles = four_handles(&database.url()).await;
    handles[0].enqueue(&(0..200).map(|_| job()).collect::<Vec<_>>()).await.unwrap();
    let claimed = handles[0].claim(&request(200)).await.unwrap();
    assert_eq!(claimed.len(), 200);
    let mut rescuers = JoinSet::new();
    for number in 0..8 {
        let queue = Arc::clone(&handles[number % 4]);
        rescuers.spawn(async move {
            let mut rescued = Vec::new();
            for _ in 0..20 {
                let request = RescueRequest { limit: 30, ..rescue_all() };
                rescued.extend(queue.rescue(&request).await.unwrap());
            }
            rescued
        });
    }
    let rescued = timeout(PATIENCE, rescuers.join_all()).await.expect("it ends").concat();
    let leases: BTreeSet<_> = rescued.iter().map(|rescued| rescued.lease.job).collect();
    assert_eq!((rescued.len(), leases.len()), (200, 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_does_not_wait_behind_a_busy_pool() {
    let database = bed::empty();
    let settings = bed::settings().with_connections(1);
    let queue = Sql::open_with(&database.url(), &settings).await.unwrap().queue();
    queue.enqueue(&[job(), job()]).await.unwrap();
    let claimed = queue.claim(&request(2)).await.unwrap();
    // Someone holds the first job's row, so the only connection for calls waits for it.
    let mut other = Connection::connect(&database.url()).await.unwrap();
    let mut held = other.begin().await.unwrap();
    let lock = sqlx::query(HOLD).bind(claimed[0].spec.id.as_uuid());
    lock.execute(&mut *held).await.unwrap();
    let blocked = {
        let (queue, job) = (Arc::clone(&queue), claimed[0].clone());
        tokio::spawn(async move { queue.complete(&lease(&job), &success(&job)).await })
    };
    let mut watcher = Connection::connect(&database.url()).await.unwrap();
    wait_for_a_waiter(&mut watcher).await;
    let start = Instant::now();
    assert!(matches!(queue.heartbeat_one(&lease(&claimed[1])).await.unwrap(), Beat::Held { .. }));
    assert!(start.elapsed() < Duration::from_secs(5) && !blocked.is_finished());
    let waits = timeout(Duration::from_millis(200), queue.get(claimed[1].spec.id)).await;
    assert!(waits.is_err(), "the pool was not busy: the test shows nothing");
    held.rollback().await.unwrap();
    assert_eq!(blocked.await.unwrap().unwrap(), JobStatus::Succeeded);
}

async fn wait_for_a_waiter(watcher: &mut Connection) {
    let start = Instant::now();
    while sqlx::query_scalar::<_, i64>(WAITERS).fetch_one(&mut *watcher).await.unwrap() == 0 {
        assert!(start.elapsed() < PATIENCE, "nobody waits for the lock");
        tokio::time::sleep(LOOK).await;
    }
}
