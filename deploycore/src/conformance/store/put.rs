//! Storing whole artifacts.

use futures::future::join_all;
use futures::stream::{self, StreamExt};

use super::steps::*;

/// Around the borders of BLAKE3's chunks and of pieces, none and one byte, and several MiB.
pub async fn bytes_of_any_size_come_back(subject: Subject) {
    let store = subject.store();
    let sizes = [0, 1, 1023, 1024, 1025, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1, 3 * PIECE, SEVERAL];
    for (len, seed) in sizes.into_iter().zip(0..) {
        let bytes = bytes(len, seed);
        put(&*store, &bytes).await;
        assert_there(&*store, &bytes).await;
    }
    assert_eq!(list(&*store).await.len(), sizes.len());
}

/// How the bytes come does not show in the artifact.
pub async fn chunks_of_any_size_make_the_same_artifact(subject: Subject) {
    let store = subject.store();
    let (small, large) = (bytes(3000, 1), bytes(SEVERAL, 2));
    for (bytes, chunk) in
        [(&small, 1), (&small, 7), (&large, 4096), (&large, 65_537), (&large, PIECE), (&large, SEVERAL)]
    {
        let manifest = store.put(chunks(bytes, chunk).boxed()).await.expect("a put");
        assert_eq!(manifest, Manifest::of(bytes), "chunks of {chunk}");
        assert_there(&*store, bytes).await;
        store.delete(&manifest.digest()).await.expect("a deletion");
    }
    let empty = || stream::iter([Ok(bytes::Bytes::new()), Ok(bytes::Bytes::new())]);
    let source = empty().chain(chunks(&small, 1500)).chain(empty()).boxed();
    assert_eq!(store.put(source).await.expect("a put"), Manifest::of(&small), "empty chunks are no bytes");
}

/// A second put succeeds and keeps the first.
pub async fn the_same_bytes_again_are_the_same_artifact(subject: Subject) {
    let store = subject.store();
    let bytes = bytes(SEVERAL, 1);
    for _ in 0..3 {
        put(&*store, &bytes).await;
        assert_there(&*store, &bytes).await;
    }
    assert_eq!(list(&*store).await.len(), 1);
}

/// Of publishers that meet, each succeeds.
pub async fn the_same_bytes_at_once_are_one_artifact(subject: Subject) {
    let store = subject.store();
    let bytes = bytes(PIECE + 1, 1);
    // All sources end at one moment, so that the puts meet where they publish.
    let (sources, gates): (Vec<_>, Vec<_>) =
        (0..8).map(|_| gated(&bytes, 50_000)).map(|(source, reached, let_go)| (source, (reached, let_go))).unzip();
    let open = async {
        let mut doors = Vec::new();
        for (reached, let_go) in gates {
            reached.await.expect("the source is read");
            doors.push(let_go);
        }
        for door in doors {
            door.send(()).expect("the put goes on");
        }
    };
    let (manifests, ()) = tokio::join!(join_all(sources.into_iter().map(|source| store.put(source))), open);
    for manifest in manifests {
        assert_eq!(manifest.expect("each put succeeds"), Manifest::of(&bytes));
    }
    assert_there(&*store, &bytes).await;
    assert_eq!(list(&*store).await.len(), 1);
}

/// Puts do not mix.
pub async fn different_bytes_at_once_keep_apart(subject: Subject) {
    let store = subject.store();
    let all: Vec<_> = (0..8).map(|seed| bytes(PIECE + seed as usize, seed)).collect();
    join_all(all.iter().map(|bytes| store.put(chunks(bytes, 10_000).boxed()))).await;
    for bytes in &all {
        assert_there(&*store, bytes).await;
    }
    assert_eq!(list(&*store).await.len(), all.len());
}

/// Once a put returned, it is there for everyone.
pub async fn another_process_sees_what_was_put(subject: Subject) {
    let (small, large) = (bytes(10, 1), bytes(SEVERAL, 2));
    put(&*subject.store(), &small).await;
    put(&*subject.store(), &large).await;
    let other = subject.reopen().await;
    assert_there(&*other, &small).await;
    assert_there(&*other, &large).await;
}
