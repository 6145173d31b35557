//! Build logs.

use super::steps::*;
use crate::model::{Epoch, JobId, LogName};

fn name(epoch: u64) -> LogName {
    LogName { job: JobId::new(), epoch: Epoch::new(epoch) }
}

/// As it was, here and elsewhere, also an empty one.
pub async fn a_log_comes_back(subject: Subject) {
    let store = subject.store();
    for len in [0, 1, 100_000] {
        let (name, bytes) = (name(1), bytes(len, 1));
        store.put_log(&name, bytes.clone()).await.expect("a log");
        assert_eq!(store.log(&name).await.expect("a log"), Some(bytes.clone()));
        assert_eq!(subject.reopen().await.log(&name).await.expect("a log"), Some(bytes));
    }
}

/// A worker may write its log more than once.
pub async fn the_last_write_wins(subject: Subject) {
    let store = subject.store();
    let name = name(1);
    for len in [1000, 10, 2000] {
        store.put_log(&name, bytes(len, len as u64)).await.expect("a log");
        assert_eq!(store.log(&name).await.expect("a log"), Some(bytes(len, len as u64)));
    }
}

/// By job and by epoch.
pub async fn attempts_have_logs_of_their_own(subject: Subject) {
    let store = subject.store();
    let first = name(1);
    let names = [first, LogName { epoch: Epoch::new(2), ..first }, LogName { epoch: Epoch::new(12), ..first }, name(1)];
    for (name, seed) in names.iter().zip(0..) {
        store.put_log(name, bytes(100, seed)).await.expect("a log");
    }
    for (name, seed) in names.iter().zip(0..) {
        assert_eq!(store.log(name).await.expect("a log"), Some(bytes(100, seed)), "{name}");
    }
}

/// Also of a job whose other attempt has one.
pub async fn an_unknown_log_is_none(subject: Subject) {
    let store = subject.store();
    let known = name(1);
    store.put_log(&known, bytes(10, 1)).await.expect("a log");
    assert_eq!(store.log(&name(1)).await.expect("none"), None);
    assert_eq!(store.log(&LogName { epoch: Epoch::new(2), ..known }).await.expect("none"), None);
}

/// It is not listed, and its digest names nothing.
pub async fn a_log_is_no_artifact(subject: Subject) {
    let store = subject.store();
    store.put_log(&name(1), bytes(10, 1)).await.expect("a log");
    assert_absent(&*store, &Digest::of(&bytes(10, 1))).await;
    assert_eq!(list(&*store).await, []);
}

/// A refused log leaves the one before.
pub async fn the_largest_log_fits_and_a_larger_one_is_refused(subject: Subject) {
    let store = subject.store();
    let (name, largest) = (name(1), bytes(MAX_LOG, 1));
    store.put_log(&name, largest.clone()).await.expect("the largest log");
    match store.put_log(&name, bytes(MAX_LOG + 1, 2)).await {
        Err(Error::Invalid(_)) => {}
        other => panic!("a log past the bound is refused, instead of {other:?}"),
    }
    assert!(store.log(&name).await.expect("a log") == Some(largest), "the log before is there");
}
