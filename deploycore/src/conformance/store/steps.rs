//! Steps that the cases share.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use tokio::sync::oneshot;

pub(super) use super::Harness;
pub(super) use crate::model::{Digest, MIN_PIECE_SIZE, Manifest};
pub(super) use crate::port::store::{ArtifactStore, ArtifactStoreExt, Error, MAX_CHUNK, MAX_LOG, Source};

pub(super) type Subject = Arc<dyn Harness>;

/// The smallest piece.
pub(super) const PIECE: usize = MIN_PIECE_SIZE as usize;
/// A size of several pieces and several chunks, off every border.
pub(super) const SEVERAL: usize = 11 * PIECE + 12_345;

/// Bytes that no other seed gives.
pub(super) fn bytes(len: usize, seed: u64) -> Bytes {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out.into()
}

/// The bytes in chunks of `len`.
pub(super) fn chunks(bytes: &Bytes, len: usize) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let spans: Vec<_> = bytes.chunks(len).map(Bytes::copy_from_slice).map(Ok).collect();
    stream::iter(spans)
}

pub(super) async fn put(store: &dyn ArtifactStore, bytes: &Bytes) -> Manifest {
    let manifest = store.put_bytes(bytes.clone()).await.expect("a put");
    assert_eq!(manifest, Manifest::of(bytes), "the manifest is of the bytes");
    manifest
}

pub(super) async fn list(store: &dyn ArtifactStore) -> Vec<Digest> {
    let mut digests: Vec<_> = store.list().try_collect().await.expect("a list");
    digests.sort_unstable();
    digests
}

/// The artifact is there, whole, by each way to look at it.
pub(super) async fn assert_there(store: &dyn ArtifactStore, bytes: &Bytes) {
    let expected = Manifest::of(bytes);
    let digest = expected.digest();
    assert!(store.exists(&digest).await.expect("exists"), "it exists");
    assert_eq!(store.manifest(&digest).await.expect("a manifest").as_ref(), Some(&expected));
    let read = store.read_all(&digest, 0..expected.size()).await.expect("a read");
    assert!(read == bytes[..], "{} bytes come back as they were", bytes.len());
    assert_eq!(store.verify(&digest).await.expect("it verifies"), expected);
    assert!(list(store).await.contains(&digest), "it is listed");
}

/// The artifact is not there, by each way to look at it.
pub(super) async fn assert_absent(store: &dyn ArtifactStore, digest: &Digest) {
    assert!(!store.exists(digest).await.expect("exists"), "it does not exist");
    assert_eq!(store.manifest(digest).await.expect("a manifest"), None);
    assert_not_found(store, digest, 0..1).await;
    assert!(!list(store).await.contains(digest), "it is not listed");
}

pub(super) async fn assert_not_found(store: &dyn ArtifactStore, digest: &Digest, range: std::ops::Range<u64>) {
    match store.read_all(digest, range).await {
        Err(Error::NotFound { digest: named }) => assert_eq!(named, *digest),
        other => panic!("not found, instead of {:?}", other.map(|bytes| bytes.len())),
    }
}

/// A source that gives `before` and then waits: it says that it came there, and ends when it is let.
pub(super) fn gated(before: &Bytes, chunk: usize) -> (Source, oneshot::Receiver<()>, oneshot::Sender<()>) {
    let ((reached, on_reached), (let_go, on_let_go)) = (oneshot::channel(), oneshot::channel());
    let gate = stream::once(async move {
        let _ = reached.send(());
        let _ = on_let_go.await;
        Ok(Bytes::new())
    });
    (chunks(before, chunk).chain(gate).boxed(), on_reached, let_go)
}

/// A source that gives `before` and then fails.
pub(super) fn failing(before: &Bytes) -> Source {
    chunks(before, 100_000).chain(stream::once(async { Err(io::Error::other("the pipe broke")) })).boxed()
}
