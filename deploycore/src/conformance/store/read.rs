//! Reading ranges.

use futures::future::join_all;
use futures::stream::TryStreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::steps::*;

/// Ranges that start and end on, before and after the borders of pieces and chunks.
pub async fn ranges_give_their_bytes(subject: Subject) {
    let store = subject.store();
    let bytes = bytes(SEVERAL, 1);
    let digest = put(&*store, &bytes).await.digest();
    let borders = [0, 1, PIECE - 1, PIECE, PIECE + 1, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, SEVERAL - 1, SEVERAL];
    for start in borders {
        for end in borders.into_iter().filter(|end| *end > start) {
            let read = store.read_all(&digest, start as u64..end as u64).await.expect("a read");
            assert!(read == bytes[start..end], "bytes {start}..{end}");
        }
    }
}

/// Seeded.
pub async fn random_ranges_give_their_bytes(subject: Subject) {
    let store = subject.store();
    let bytes = bytes(SEVERAL, 1);
    let digest = put(&*store, &bytes).await.digest();
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..50 {
        let start = random.random_range(0..SEVERAL);
        let end = random.random_range(start..=SEVERAL);
        let read = store.read_all(&digest, start as u64..end as u64).await.expect("a read");
        assert!(read == bytes[start..end], "bytes {start}..{end}");
    }
}

/// Memory is the reader's to plan.
pub async fn chunks_are_bounded(subject: Subject) {
    let store = subject.store();
    let bytes = bytes(SEVERAL, 1);
    let digest = put(&*store, &bytes).await.digest();
    let chunks: Vec<_> =
        store.read(&digest, 0..SEVERAL as u64).await.expect("a read").try_collect().await.expect("all chunks");
    assert!(chunks.iter().all(|chunk| chunk.len() <= MAX_CHUNK), "at most {MAX_CHUNK} bytes at once");
    assert_eq!(chunks.iter().map(bytes::Bytes::len).sum::<usize>(), SEVERAL);
}

/// At the start, within, at the end, and of the empty artifact.
pub async fn an_empty_range_gives_nothing(subject: Subject) {
    let store = subject.store();
    for len in [0, 1000] {
        let digest = put(&*store, &bytes(len, 1)).await.digest();
        for at in [0, len as u64 / 2, len as u64] {
            assert_eq!(store.read_all(&digest, at..at).await.expect("a read"), b"");
        }
    }
}

/// A range that leaves the artifact is not cut to what is there.
#[allow(clippy::reversed_empty_ranges, reason = "that is one of the mistakes")]
pub async fn a_range_past_the_end_is_refused(subject: Subject) {
    let store = subject.store();
    let digest = put(&*store, &bytes(1000, 1)).await.digest();
    for range in [0..1001, 1000..1001, 1001..1001, 5000..6000, 0..u64::MAX, 10..5] {
        match store.read_all(&digest, range.clone()).await {
            Err(Error::Invalid(_)) => {}
            other => panic!("{range:?} is refused, instead of {:?}", other.map(|bytes| bytes.len())),
        }
    }
    let digest = put(&*store, &bytes(0, 1)).await.digest();
    assert!(matches!(store.read_all(&digest, 0..1).await, Err(Error::Invalid(_))));
}

/// Not even no bytes of it.
pub async fn what_is_not_there_cannot_be_read(subject: Subject) {
    let store = subject.store();
    for range in [0..0, 0..1, 5..10] {
        assert_not_found(&*store, &Digest::of(b"something else"), range).await;
    }
    match store.verify(&Digest::of(b"something else")).await {
        Err(Error::NotFound { .. }) => {}
        other => panic!("not found, instead of {other:?}"),
    }
}

/// Each read has its own place.
pub async fn reads_at_once_do_not_mix(subject: Subject) {
    let store = subject.store();
    let all = [bytes(SEVERAL, 1), bytes(SEVERAL, 2)];
    for bytes in &all {
        put(&*store, bytes).await;
    }
    join_all((0..16).map(|index: usize| {
        let (store, bytes) = (&store, &all[index % 2]);
        async move {
            let start = index * 10_000;
            let end = SEVERAL - start;
            let read = store.read_all(&Digest::of(bytes), start as u64..end as u64).await.expect("a read");
            assert!(read == bytes[start..end], "read {index}");
        }
    }))
    .await;
}
