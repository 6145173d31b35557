//! What MariaDB has of its own: calls that it ends for each other, and slots.

use std::sync::Arc;
use std::time::Duration;

use deploycore::model::{ConcurrencyKey, DedupKey};
use deploycore::port::JobQueue;
use deploycore::port::queue::Enqueued;
use sqlx::{Connection, MySqlConnection};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bed::{self, PATIENCE, job, lease, request, success};
use crate::races::four_handles;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_the_server_ends_for_each_other_are_made_again() {
    let database = bed::empty();
    let handles = four_handles(&database.url()).await;
    // Batches with the same dedup keys and ids in any order stand in each other's way.
    let keys: Vec<DedupKey> = (0..6).map(|number| format!("key-{number}").parse().unwrap()).collect();
    let jobs: Vec<_> = keys.iter().map(|key| job().with_dedup_key(key.clone())).collect();
    for turn in 0..20 {
        let mut calls = JoinSet::new();
        for number in 0..16 {
            let queue = Arc::clone(&handles[number % 4]);
            let mut batch: Vec<_> =
                keys.iter().map(|key| job().with_dedup_key(key.clone())).chain(jobs.iter().cloned()).collect();
            batch.rotate_left(number % 12);
            calls.spawn(async move { queue.enqueue(&batch).await.unwrap() });
        }
        let answers = timeout(PATIENCE, calls.join_all()).await.expect("it ends");
        let created = answers.iter().flatten().filter(|answer| matches!(answer, Enqueued::Created { .. })).count();
        assert_eq!(created, keys.len(), "turn {turn}: {answers:?}");
        for claimed in handles[0].claim(&request(99)).await.unwrap() {
            handles[0].complete(&lease(&claimed), &success(&claimed)).await.unwrap();
        }
        handles[0].prune(Duration::ZERO, 99).await.unwrap();
        assert_eq!(handles[0].stats().await.unwrap().counts.values().sum::<u64>(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_is_given_once_whatever_a_claim_sees() {
    let (mariadb, database) = bed::open().await;
    let queue = mariadb.queue();
    let key = ConcurrencyKey::new("db").unwrap();
    let jobs: Vec<_> = (0..2).map(|_| job().with_concurrency_key(key.clone())).collect();
    queue.enqueue(&jobs).await.unwrap();
    let claimed = queue.claim(&request(2)).await.unwrap();
    assert_eq!(claimed.len(), 1);
    // As a claim would that sees none running, on another node of a cluster for instance.
    let blind = "
        UPDATE deploycore_jobs SET status = 'RUNNING', epoch = 1, claim_id = id, worker = 'w', claimed_at = 1,
               last_heartbeat = 1, deadline = 1, slot = ? WHERE status = 'QUEUED'";
    let mut blindly = MySqlConnection::connect(&database.url()).await.unwrap();
    let refused = sqlx::query(blind).bind(1).execute(&mut blindly).await.unwrap_err();
    assert!(refused.to_string().contains("jobs_slot"), "{refused}");
    let refused = sqlx::query(blind).bind(None::<i64>).execute(&mut blindly).await.unwrap_err();
    assert!(refused.to_string().contains("CONSTRAINT"), "{refused}");
    queue.complete(&lease(&claimed[0]), &success(&claimed[0])).await.unwrap();
    assert_eq!(queue.claim(&request(2)).await.unwrap().len(), 1);
}
