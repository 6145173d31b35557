//! Many callers at once, from a seed.
//!
//! The seed decides what each caller does; how their calls interleave is up to the runtime and the backend. A failure names the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;

use super::steps::*;
use crate::model::{
    AttemptOutcome, ClaimId, Completion, ConcurrencyKey, Epoch, JobId, JobStatus, Lease, NewJob, Retry,
};
use crate::port::queue::{Fate, RescueRequest};

const SEEDS: [u64; 3] = [1, 2, 3];

/// Lets others run, now and then for longer.
async fn mingle(random: &mut Rng) {
    match random.u8(..8) {
        0 => pass(Duration::from_millis(random.u64(1..3))).await,
        1..=4 => tokio::task::yield_now().await,
        _ => {}
    }
}

/// Each job is taken once, and all are taken.
pub async fn claims_at_once_share_no_job(queue: Subject) {
    for seed in SEEDS {
        let jobs: Vec<_> = (0..40).map(|_| job()).collect();
        enqueue(&queue, &jobs).await;
        let mut workers = JoinSet::new();
        for index in 0..8 {
            let (queue, mut random) = (queue.clone(), Rng::with_seed(seed * 100 + index));
            workers.spawn(async move {
                let mut taken = Vec::new();
                loop {
                    mingle(&mut random).await;
                    let claimed = claim(&queue, random.usize(1..5)).await;
                    if claimed.is_empty() {
                        return taken;
                    }
                    taken.extend(claimed.into_iter().map(|job| (job.spec.id, job.epoch)));
                }
            });
        }
        let mut taken = workers.join_all().await.concat();
        taken.sort_unstable();
        let mut wanted: Vec<_> = jobs.iter().map(|job| (job.id, Epoch::new(1))).collect();
        wanted.sort_unstable();
        assert_eq!(taken, wanted, "seed {seed}");
    }
}

/// What a worker holds is never more than the limit of its key, and no limit starves its jobs.
pub async fn claims_at_once_pass_no_limit(queue: Subject) {
    let keys: [(ConcurrencyKey, u32); 3] = [(key("one"), 1), (key("two"), 2), (key("five"), 5)];
    for (key, limit) in &keys[1..] {
        queue.set_concurrency_limit(key, attempts(*limit)).await.expect("a limit is set");
    }
    for seed in SEEDS {
        let jobs: Vec<_> = (0..45).map(|n| job().with_concurrency_key(keys[n % 3].0.clone())).collect();
        enqueue(&queue, &jobs).await;
        let gauges = Arc::new(keys.clone().map(|(key, limit)| (key, limit, AtomicU32::new(0))));
        let left = Arc::new(AtomicUsize::new(jobs.len()));
        let mut workers = JoinSet::new();
        for index in 0..8 {
            let (queue, gauges, left) = (queue.clone(), gauges.clone(), left.clone());
            let mut random = Rng::with_seed(seed * 100 + index);
            workers.spawn(async move {
                while left.load(Ordering::SeqCst) > 0 {
                    let claimed = claim(&queue, random.usize(1..6)).await;
                    for job in &claimed {
                        let (key, limit, gauge) = gauge_of(gauges.as_slice(), &job.spec);
                        let running = gauge.fetch_add(1, Ordering::SeqCst) + 1;
                        assert!(running <= *limit, "seed {seed}: {running} of {key} run, of {limit}");
                    }
                    pass(Duration::from_millis(random.u64(1..3))).await;
                    for job in &claimed {
                        gauge_of(gauges.as_slice(), &job.spec).2.fetch_sub(1, Ordering::SeqCst);
                        complete(&queue, &lease(job), &success(job.spec.id)).await;
                        left.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            });
        }
        workers.join_all().await;
    }
}

type Gauge = (ConcurrencyKey, u32, AtomicU32);

fn gauge_of<'a>(gauges: &'a [Gauge], job: &NewJob) -> &'a Gauge {
    gauges.iter().find(|(key, ..)| job.concurrency_key.as_ref() == Some(key)).expect("each job has a known key")
}

/// What the backend told its callers.
#[derive(Debug, Default)]
struct Told {
    /// Each lease that a claim gave.
    granted: BTreeMap<(JobId, Epoch), BTreeSet<ClaimId>>,
    /// Each end that was accepted from a worker, repeats included.
    ended: Vec<(Lease, AttemptOutcome)>,
    rescued: Vec<(Lease, Fate)>,
}

/// Workers that repeat, lose and outlive their leases, two reapers and someone who cancels: afterwards each job has ended, and its
/// history is what the callers were told.
pub async fn a_busy_queue_keeps_its_invariants(queue: Subject) {
    for seed in SEEDS {
        let told = Arc::new(Mutex::new(Told::default()));
        let jobs: Vec<_> = (0..30).map(|n| busy_job(n, &mut Rng::with_seed(seed + n))).collect();
        let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
        let mut callers = JoinSet::new();
        for index in 0..8 {
            let (queue, told, jobs, ids) = (queue.clone(), told.clone(), jobs.clone(), ids.clone());
            let mut random = Rng::with_seed(seed * 100 + index);
            match index {
                0..5 => callers.spawn(async move { work(&queue, &jobs, &told, &mut random).await }),
                5..7 => callers.spawn(async move { reap(&queue, &told, &mut random).await }),
                _ => callers.spawn(async move { cancel_some(&queue, &jobs, &ids, &mut random).await }),
            };
        }
        callers.join_all().await;
        drain(&queue, &ids, &told).await;
        let told = std::mem::take(&mut *lock(&told));
        check(&queue, &ids, &told, seed).await;
    }
}

fn busy_job(n: u64, random: &mut Rng) -> NewJob {
    let job = job().with_priority(random.i16(0..3)).with_max_attempts(attempts(4)).with_max_releases(3);
    if n.is_multiple_of(3) { job.with_concurrency_key(key("busy")) } else { job }
}

fn lock(told: &Mutex<Told>) -> std::sync::MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn work(queue: &Subject, jobs: &[NewJob], told: &Mutex<Told>, random: &mut Rng) {
    let mut leases: Vec<Lease> = Vec::new();
    for _ in 0..40 {
        mingle(random).await;
        match random.u8(..10) {
            0 => drop(queue.enqueue(jobs).await.expect("the same jobs again")),
            1..=3 => leases.extend(claim_twice(queue, told, random).await),
            4 => drop(queue.heartbeat(&leases[leases.len().saturating_sub(20)..]).await.expect("a heartbeat")),
            _ if leases.is_empty() => {}
            choice => {
                // The lease stays at hand: it comes again as a repeat or as a zombie's.
                let lease = leases[random.usize(..leases.len())];
                end(queue, told, &lease, choice).await;
            }
        }
    }
}

async fn claim_twice(queue: &Subject, told: &Mutex<Told>, random: &mut Rng) -> Vec<Lease> {
    let (id, limit) = (ClaimId::new(), random.usize(1..4));
    let first: Vec<_> = claim_as(queue, id, limit).await.iter().map(lease).collect();
    mingle(random).await;
    let again: Vec<_> = claim_as(queue, id, limit).await.iter().map(lease).collect();
    if !first.is_empty() {
        assert!(again.iter().all(|lease| first.contains(lease)), "{again:?} is no repeat of {first:?}");
    }
    let mut told = lock(told);
    for lease in first.iter().chain(&again) {
        told.granted.entry((lease.job, lease.epoch)).or_default().insert(lease.claim);
    }
    if first.is_empty() { again } else { first }
}

async fn end(queue: &Subject, told: &Mutex<Told>, lease: &Lease, choice: u8) {
    let completion = match choice {
        5 | 6 => success(lease.job),
        7 => failure(Retry::After(Duration::ZERO)),
        8 => failure(Retry::Never),
        _ => {
            if queue.release(lease, "drain", Duration::ZERO).await.is_ok() {
                lock(told).ended.push((*lease, AttemptOutcome::Released { reason: "drain".to_owned() }));
            }
            return;
        }
    };
    if queue.complete(lease, &completion).await.is_ok() {
        lock(told).ended.push((*lease, AttemptOutcome::Completed { completion }));
    }
}

async fn reap(queue: &Subject, told: &Mutex<Told>, random: &mut Rng) {
    for _ in 0..15 {
        pass(Duration::from_millis(random.u64(1..3))).await;
        let request = RescueRequest { limit: random.usize(1..3), ..rescue_all() };
        let rescued = rescue(queue, &request).await;
        lock(told).rescued.extend(rescued.into_iter().map(|rescued| (rescued.lease, rescued.fate)));
    }
}

async fn cancel_some(queue: &Subject, jobs: &[NewJob], ids: &[JobId], random: &mut Rng) {
    enqueue(queue, jobs).await;
    for _ in 0..6 {
        pass(Duration::from_millis(random.u64(1..4))).await;
        queue.cancel(ids[random.usize(..ids.len())]).await.expect("the job exists");
    }
}

/// Lets all jobs end. Each round costs each unfinished job an attempt, so that few rounds are enough.
async fn drain(queue: &Subject, ids: &[JobId], told: &Mutex<Told>) {
    for _ in 0..300 {
        let rescued = rescue(queue, &rescue_all()).await;
        lock(told).rescued.extend(rescued.into_iter().map(|rescued| (rescued.lease, rescued.fate)));
        for job in claim(queue, 100).await {
            let lease = lease(&job);
            lock(told).granted.entry((lease.job, lease.epoch)).or_default().insert(lease.claim);
            end(queue, told, &lease, 5).await;
        }
        let counts = queue.stats().await.expect("the counts").counts;
        if counts[&JobStatus::Queued] + counts[&JobStatus::Running] == 0 {
            return;
        }
    }
    panic!("some of {ids:?} never end");
}

async fn check(queue: &Subject, ids: &[JobId], told: &Told, seed: u64) {
    for id in ids {
        let (job, history) = (get(queue, *id).await, history(queue, *id).await);
        let context = format!("seed {seed}: {job:?} with {history:?}");
        let granted: Vec<_> = told.granted.range((*id, Epoch::ZERO)..=(*id, Epoch::new(u64::MAX))).collect();
        assert_eq!(granted.len() as u64, job.epoch.get(), "each epoch was granted: {context}");
        assert_eq!(history.len(), granted.len(), "each grant is in the history: {context}");
        for (number, (((_, epoch), claims), attempt)) in (1..).zip(granted.iter().zip(&history)) {
            assert_eq!(*epoch, Epoch::new(number), "epochs leave no gap: {context}");
            assert_eq!(claims.len(), 1, "one claim has a lease: {context}");
            assert_eq!((attempt.lease.epoch, Some(&attempt.lease.claim)), (*epoch, claims.first()), "{context}");
            let outcome = attempt.outcome.as_ref().unwrap_or_else(|| panic!("each attempt ended: {context}"));
            let rescues = told.rescued.iter().filter(|(lease, _)| *lease == attempt.lease).count();
            let ends = told.ended.iter().filter(|(lease, _)| *lease == attempt.lease);
            assert!(ends.clone().all(|(_, told)| told == outcome), "what was accepted is what is kept: {context}");
            let by_reaper = matches!(outcome, AttemptOutcome::LeaseLost | AttemptOutcome::DeadlinePassed);
            assert_eq!(rescues, usize::from(by_reaper), "a lease is rescued once: {context}");
            assert_eq!(by_reaper, ends.count() == 0, "a reaper and a worker do not both end it: {context}");
        }
        let count = |wanted: fn(&AttemptOutcome) -> bool| {
            history.iter().filter(|attempt| attempt.outcome.as_ref().is_some_and(wanted)).count() as u32
        };
        assert_eq!(job.rescues, count(|outcome| *outcome == AttemptOutcome::LeaseLost), "{context}");
        assert_eq!(job.releases, count(|outcome| matches!(outcome, AttemptOutcome::Released { .. })), "{context}");
        assert_eq!(u64::from(job.attempts + job.releases), job.epoch.get(), "{context}");
        assert!(job.attempts <= job.spec.max_attempts.get() && job.releases <= job.spec.max_releases + 1, "{context}");
        let successes =
            count(|outcome| matches!(outcome, AttemptOutcome::Completed { completion: Completion::Succeeded { .. } }));
        assert_eq!(successes, u32::from(job.status == JobStatus::Succeeded), "{context}");
        assert_eq!(job.artifact.is_some(), job.status == JobStatus::Succeeded, "{context}");
        assert!(job.status != JobStatus::Cancelled || job.cancel_requested, "{context}");
    }
}
