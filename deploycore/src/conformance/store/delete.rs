//! Listing and deleting.

use super::steps::*;

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
