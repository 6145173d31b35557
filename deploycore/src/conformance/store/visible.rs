//! All or nothing: what a reader sees of puts that are under way, fail, or are dropped.

use super::steps::*;

/// All bytes have come, but nobody has said that they are all.
pub async fn nothing_is_there_before_the_last_byte(subject: Subject) {
    let store = subject.store();
    for (len, seed) in [(10, 1), (SEVERAL, 2)] {
        let bytes = bytes(len, seed);
        let digest = Digest::of(&bytes);
        let (source, reached, let_go) = gated(&bytes, 100_000);
        let look = async {
            reached.await.expect("the source is read to its end");
            assert_absent(&*store, &digest).await;
            assert_absent(&*subject.reopen().await, &digest).await;
            let_go.send(()).expect("the put goes on");
        };
        let (manifest, ()) = tokio::join!(store.put(source), look);
        assert_eq!(manifest.expect("a put").digest(), digest);
        assert_there(&*store, &bytes).await;
    }
}

/// The error is the source's, nothing is there, and the bytes can be put again.
pub async fn a_failing_source_leaves_nothing(subject: Subject) {
    let whole = bytes(SEVERAL, 1);
    fails_with(&subject, &whole.slice(..SEVERAL / 2)).await;
    put(&*subject.store(), &whole).await;
    assert_there(&*subject.store(), &whole).await;
}

/// Whole bytes are no artifact when the source does not end well.
pub async fn a_source_that_fails_at_its_end_leaves_nothing(subject: Subject) {
    for (len, seed) in [(10, 1), (SEVERAL, 2)] {
        fails_with(&subject, &bytes(len, seed)).await;
    }
}

/// Not even the empty artifact.
pub async fn a_source_that_fails_at_once_leaves_nothing(subject: Subject) {
    fails_with(&subject, &bytes(0, 1)).await;
}

async fn fails_with(subject: &Subject, before: &bytes::Bytes) {
    let store = subject.store();
    match store.put(failing(before)).await {
        Err(Error::Source(error)) => assert!(error.to_string().contains("the pipe broke"), "{error}"),
        other => panic!("an error of the source, instead of {other:?}"),
    }
    assert_absent(&*store, &Digest::of(before)).await;
    assert_eq!(list(&*store).await, [], "nothing else is there either");
}

/// A build that is cancelled while its bytes are stored.
pub async fn a_dropped_put_leaves_nothing(subject: Subject) {
    let store = subject.store();
    for (len, seed) in [(10, 1), (SEVERAL, 2)] {
        let bytes = bytes(len, seed);
        let (source, reached, _let_go) = gated(&bytes, 100_000);
        tokio::select! {
            biased;
            stored = store.put(source) => panic!("the source has not ended: {stored:?}"),
            _ = reached => {}
        }
        assert_absent(&*store, &Digest::of(&bytes)).await;
        assert_eq!(list(&*store).await, []);
        put(&*store, &bytes).await;
        assert_there(&*store, &bytes).await;
        store.delete(&Digest::of(&bytes)).await.expect("a deletion");
    }
}

/// What is stored stays whatever becomes of a further put.
pub async fn a_failed_put_of_stored_bytes_takes_nothing_away(subject: Subject) {
    let store = subject.store();
    let bytes = bytes(SEVERAL, 1);
    put(&*store, &bytes).await;
    store.put(failing(&bytes)).await.expect_err("the source fails");
    assert_there(&*store, &bytes).await;
}

/// Neither by a digest that nobody stored nor by that of no bytes.
pub async fn an_unknown_artifact_is_not_there(subject: Subject) {
    let store = subject.store();
    put(&*store, &bytes(1000, 1)).await;
    assert_absent(&*store, &Digest::of(b"something else")).await;
    assert_absent(&*store, &Digest::of(b"")).await;
    assert_absent(&*store, &Digest::from_bytes([0; 32])).await;
}
