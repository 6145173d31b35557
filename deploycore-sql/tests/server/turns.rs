//! Services that take turns while many connections are at it, on any server.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deploycore::model::{JobId, NewJob};
use deploycore::port::queue::Order;
use deploycore::port::{JobQueue, JobQueueExt};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bed::{self, PATIENCE, lease, request, success};
use crate::races::four_handles;

const CLAIMERS: usize = 8;
const BURST: usize = 1_000;
const OTHERS: [&str; 3] = ["api", "auth", "billing"];

fn job_of(service: &str) -> NewJob {
    NewJob::new(service.parse().unwrap(), "abcdef0".parse().unwrap())
}

/// When each job was claimed, counted in claims.
type Claims = Mutex<HashMap<JobId, usize>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_holds_up_no_other_service_while_all_is_busy() {
    let database = bed::empty();
    let handles = four_handles(&database.url()).await;
    handles[0].set_order(Order::FairShare).await.unwrap();
    let burst: Vec<_> = (0..BURST).map(|_| job_of("web")).collect();
    handles[0].enqueue(&burst).await.unwrap();
    let (claims, stop) = (Arc::new(Claims::default()), Arc::new(AtomicBool::new(false)));
    let mut claimers = JoinSet::new();
    for number in 0..CLAIMERS {
        let (queue, claims, stop) = (Arc::clone(&handles[number % 4]), Arc::clone(&claims), Arc::clone(&stop));
        claimers.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                for job in queue.claim(&request(1)).await.unwrap() {
                    let mut claims = claims.lock().await;
                    let place = claims.len();
                    claims.insert(job.spec.id, place);
                    drop(claims);
                    queue.complete(&lease(&job), &success(&job)).await.unwrap();
                }
            }
        });
    }
    // Of what runs each claimer may have taken one before, and tell of one too late.
    let most = 2 * (OTHERS.len() + 1) + 2 * CLAIMERS;
    let mut waits = Vec::new();
    for number in 0..24 {
        let job = job_of(OTHERS[number % OTHERS.len()]);
        handles[number % 4].enqueue_one(&job).await.unwrap();
        let before = claims.lock().await.len();
        let claimed = async {
            loop {
                if let Some(place) = claims.lock().await.get(&job.id) {
                    return *place;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        waits.push(timeout(PATIENCE, claimed).await.expect("it is claimed").saturating_sub(before));
    }
    let left = BURST.saturating_sub(claims.lock().await.len());
    stop.store(true, Ordering::SeqCst);
    timeout(PATIENCE, claimers.join_all()).await.expect("they end");
    println!("{waits:?} claims before each, {left} of the burst left");
    assert!(left > 100, "the burst is over: the test shows little");
    assert!(waits.iter().all(|wait| *wait <= most), "{waits:?}");
}
