//! Listing and deleting.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::steps::*;
use crate::port::store::Deletion;

const HOUR: Duration = Duration::from_hours(1);
/// Longer than a store needs for some calls, and than the grain of its clock.
const WHILE: Duration = Duration::from_secs(3);

async fn delete_idle(store: &dyn ArtifactStore, bytes: &[u8], idle: Duration) -> Deletion {
    store.delete_idle(&Digest::of(bytes), idle).await.expect("a deletion")
}

/// In no order, all of them.
pub async fn a_list_names_each_artifact_once(subject: Subject) {
    let store = subject.store();
    let mut expected = Vec::new();
    for seed in 0..30 {
        let bytes = bytes(100, seed);
        put(&*store, &bytes).await;
        put(&*store, &bytes).await;
        expected.push(Digest::of(&bytes));
    }
    expected.sort_unstable();
    assert_eq!(list(&*store).await, expected);
    assert_eq!(list(&*subject.reopen().await).await, expected);
}

/// A store that nobody wrote to is no error.
pub async fn an_empty_store_lists_nothing(subject: Subject) {
    assert_eq!(list(&*subject.store()).await, []);
}

/// By each way to look at it, here and elsewhere.
pub async fn a_deleted_artifact_is_gone(subject: Subject) {
    let store = subject.store();
    for (len, seed) in [(0, 1), (10, 2), (SEVERAL, 3)] {
        let bytes = bytes(len, seed);
        put(&*store, &bytes).await;
        let other = subject.reopen().await;
        assert_there(&*other, &bytes).await;
        store.delete(&Digest::of(&bytes)).await.expect("a deletion");
        assert_absent(&*store, &Digest::of(&bytes)).await;
        assert_absent(&*other, &Digest::of(&bytes)).await;
    }
}

/// Also of what never was.
pub async fn deleting_again_changes_nothing(subject: Subject) {
    let store = subject.store();
    store.delete(&Digest::of(b"something else")).await.expect("nothing to delete");
    let digest = put(&*store, &bytes(10, 1)).await.digest();
    for _ in 0..3 {
        store.delete(&digest).await.expect("a deletion");
    }
    assert_absent(&*store, &digest).await;
}

/// Artifacts share nothing, also when they share most of their bytes.
pub async fn deleting_leaves_the_others(subject: Subject) {
    let store = subject.store();
    let whole = bytes(SEVERAL, 1);
    let part = whole.slice(..SEVERAL - 1);
    put(&*store, &whole).await;
    put(&*store, &part).await;
    store.delete(&Digest::of(&part)).await.expect("a deletion");
    assert_there(&*store, &whole).await;
    assert_eq!(list(&*store).await, [Digest::of(&whole)]);
}

/// A deletion is not for ever.
pub async fn a_deleted_artifact_can_be_stored_again(subject: Subject) {
    let (store, other) = (subject.store(), subject.reopen().await);
    let bytes = bytes(SEVERAL, 1);
    for _ in 0..2 {
        put(&*store, &bytes).await;
        assert_there(&*other, &bytes).await;
        store.delete(&Digest::of(&bytes)).await.expect("a deletion");
    }
    put(&*store, &bytes).await;
    assert_there(&*store, &bytes).await;
    assert_there(&*other, &bytes).await;
}

/// What was put lately is not idle; what was not is gone by each way to look at it, and may be stored again.
pub async fn only_what_is_idle_is_deleted(subject: Subject) {
    let (store, other) = (subject.store(), subject.reopen().await);
    assert_eq!(delete_idle(&*store, b"something else", HOUR).await, Deletion::Gone);
    for (len, seed) in [(0, 1), (SEVERAL, 2)] {
        let bytes = bytes(len, seed);
        put(&*store, &bytes).await;
        for _ in 0..2 {
            assert_eq!(delete_idle(&*other, &bytes, HOUR).await, Deletion::InUse);
            assert_there(&*store, &bytes).await;
        }
        for _ in 0..2 {
            assert_eq!(delete_idle(&*other, &bytes, Duration::ZERO).await, Deletion::Gone);
            assert_absent(&*store, &Digest::of(&bytes)).await;
            assert_absent(&*other, &Digest::of(&bytes)).await;
        }
        put(&*store, &bytes).await;
        assert_there(&*other, &bytes).await;
    }
}

/// A put of bytes that are there already is a put.
pub async fn a_repeated_put_makes_young(subject: Subject) {
    let (store, bytes) = (subject.store(), bytes(SEVERAL, 1));
    put(&*store, &bytes).await;
    sleep(WHILE).await;
    put(&*store, &bytes).await;
    assert_eq!(delete_idle(&*store, &bytes, WHILE.mul_f64(0.9)).await, Deletion::InUse);
    assert_there(&*store, &bytes).await;
}

/// Puts of the same bytes and idle deletions at once: what was put stays.
pub async fn what_is_put_beside_deletions_stays(subject: Subject) {
    let (store, bytes) = (subject.store(), bytes(SEVERAL, 1));
    put(&*store, &bytes).await;
    for puts_first in [true, false] {
        sleep(WHILE).await;
        let (mut puts, mut deletions) = (JoinSet::new(), JoinSet::new());
        for turn in [puts_first, !puts_first] {
            for _ in 0..3 {
                let (subject, bytes) = (subject.clone(), bytes.clone());
                if turn {
                    puts.spawn(async move { put(&*subject.store(), &bytes).await });
                } else {
                    deletions.spawn(async move { delete_idle(&*subject.store(), &bytes, WHILE / 2).await });
                }
            }
        }
        puts.join_all().await;
        assert_there(&*store, &bytes).await;
        deletions.join_all().await;
        assert_there(&*store, &bytes).await;
        assert_eq!(list(&*store).await, [Digest::of(&bytes)]);
    }
}
