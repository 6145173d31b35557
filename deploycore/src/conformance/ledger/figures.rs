//! How the copies to each region go.

use std::collections::BTreeMap;
use std::time::Duration;

use super::steps::*;
use crate::model::{CopyStatus, FiguresRequest, RegionName, ReplicationFigures};
use crate::port::ledger::CopyRetry;

async fn figures(ledger: &Subject, window: Duration, threshold: Duration) -> BTreeMap<RegionName, ReplicationFigures> {
    ledger.figures(&FiguresRequest { window, threshold }).await.expect("a look")
}

fn latency(copy: &CopyStatus) -> Duration {
    let latency = copy.completed_at.expect("complete").duration_since(copy.pending_since);
    latency.try_into().expect("time goes forward")
}

/// Of no copies, and of copies that were complete long ago, there is nothing to say.
pub async fn an_idle_region_has_no_figures(ledger: Subject) {
    assert!(figures(&ledger, HOUR, HOUR).await.is_empty());
    register(&ledger, "a", &["eu"]).await;
    finish(&ledger, "eu").await;
    pass(MOMENT).await;
    assert_eq!(figures(&ledger, HOUR, HOUR).await[&region("eu")].completed, 1);
    assert!(figures(&ledger, Duration::ZERO, HOUR).await.is_empty());
}

/// Pending copies with the bytes that are not over, by region; which of them are late; and those given up, apart.
pub async fn what_is_pending_and_failed_is_counted(ledger: Subject) {
    for text in ["a", "b", "c"] {
        register(&ledger, text, &["eu", "us"]).await;
        pass(MOMENT).await;
    }
    let tasks = claim(&ledger, "eu", HOUR).await;
    ledger.progress(&tasks[0].lease, 1000, HOUR).await.expect("the lease is current");
    ledger.fail(&tasks[1].lease, "net", CopyRetry::After(HOUR)).await.expect("the lease is current");
    ledger.fail(&tasks[2].lease, "gone", CopyRetry::GiveUp).await.expect("the lease is current");
    let found = figures(&ledger, HOUR, HOUR).await;
    let eu = ReplicationFigures {
        pending: 2,
        pending_bytes: 2 * SIZE - 1000,
        oldest_pending: Some(copy(&ledger, "a", "eu").await.pending_since),
        failed: 1,
        ..ReplicationFigures::default()
    };
    let us = ReplicationFigures { pending: 3, pending_bytes: 3 * SIZE, failed: 0, ..eu.clone() };
    assert_eq!(found, BTreeMap::from([(region("eu"), eu), (region("us"), us)]));
    let found = figures(&ledger, HOUR, Duration::ZERO).await;
    assert_eq!((found[&region("eu")].overdue, found[&region("us")].overdue), (2, 3));
}

/// From the registration to the completion, of those that were complete within the window.
pub async fn completed_copies_have_a_latency(ledger: Subject) {
    for text in ["a", "b", "c", "d"] {
        register(&ledger, text, &["eu"]).await;
    }
    let mut latencies = Vec::new();
    for task in claim(&ledger, "eu", HOUR).await {
        pass(MOMENT).await;
        ledger.complete(&task.lease).await.expect("the lease is current");
        latencies.push(latency(&copy(&ledger, task.artifact.name.as_str(), "eu").await));
    }
    latencies.sort_unstable();
    let found = figures(&ledger, HOUR, HOUR).await.remove(&region("eu")).expect("figures");
    assert_eq!((found.completed, found.late, found.pending, found.failed), (4, 0, 0, 0));
    assert_eq!((found.p50, found.p99, found.max), (Some(latencies[1]), Some(latencies[3]), Some(latencies[3])));
    assert_eq!((found.oldest_pending, found.pending_bytes), (None, 0));
    let found = figures(&ledger, HOUR, latencies[1]).await.remove(&region("eu")).expect("figures");
    assert_eq!(found.late, latencies.iter().filter(|latency| **latency > latencies[1]).count() as u64);
}

/// Its latency begins with the reopening.
pub async fn a_reopened_copy_counts_anew(ledger: Subject) {
    register(&ledger, "a", &["eu"]).await;
    pass(MOMENT).await;
    let first = finish(&ledger, "eu").await;
    let before = figures(&ledger, HOUR, HOUR).await[&region("eu")].clone();
    assert!(before.max >= Some(MOMENT), "{before:?}");
    assert!(ledger.reopen(&first.artifact, &first.region, first.epoch, "lost").await.expect("it is registered"));
    let found = figures(&ledger, HOUR, HOUR).await[&region("eu")].clone();
    assert_eq!((found.pending, found.completed, found.pending_bytes), (1, 0, SIZE));
    assert_eq!(found.oldest_pending, Some(copy(&ledger, "a", "eu").await.pending_since));
    finish(&ledger, "eu").await;
    let after = figures(&ledger, HOUR, HOUR).await[&region("eu")].clone();
    let latency = latency(&copy(&ledger, "a", "eu").await);
    assert_eq!((after.pending, after.completed, after.max), (0, 1, Some(latency)));
}
