//! What the cases have in common: a store that the kit controls, folders, and waits that end.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};

use super::{Region, Regions};
use crate::memory::Store;
use crate::model::{Digest, LogName, MIN_PIECE_SIZE, Manifest};
use crate::port::store::{Chunks, Error as StoreError, Source};
use crate::port::swarm::{Error, Fetch, FetchProgress, FetchRequest, FetchSummary, Limits, PeerSwarm, Priority};
use crate::port::{ArtifactStore, ArtifactStoreExt, BackendError};

/// Far above what any step takes.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) const PIECE: u64 = MIN_PIECE_SIZE;

/// A store that can fail or lie.
#[derive(Debug)]
pub(super) struct Tap {
    store: Store,
    /// Bytes that may still be read.
    budget: AtomicU64,
    lie: AtomicBool,
}

impl Tap {
    /// From now on at most so many bytes are given out, then reads fail.
    pub(super) fn allow(&self, bytes: u64) {
        self.budget.store(bytes, Ordering::SeqCst);
    }

    pub(super) fn open(&self) {
        self.allow(u64::MAX);
    }

    pub(super) fn close(&self) {
        self.allow(0);
    }

    /// The next read gives wrong bytes.
    pub(super) fn lie_once(&self) {
        self.lie.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_lied(&self) -> bool {
        !self.lie.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl ArtifactStore for Tap {
    async fn put(&self, bytes: Source) -> Result<Manifest, StoreError> {
        self.store.put(bytes).await
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, StoreError> {
        self.store.manifest(digest).await
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Chunks, StoreError> {
        let len = range.end - range.start;
        let take = |budget: u64| budget.checked_sub(len);
        if self.budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err() {
            return Err(BackendError::retryable("tap", "the store is closed for now").into());
        }
        let chunks = self.store.read(digest, range).await?;
        if !self.lie.swap(false, Ordering::SeqCst) {
            return Ok(chunks);
        }
        Ok(chunks.map(|chunk| chunk.map(|bytes| bytes.iter().map(|byte| !byte).collect::<Bytes>())).boxed())
    }

    async fn exists(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.store.exists(digest).await
    }

    async fn delete(&self, digest: &Digest) -> Result<(), StoreError> {
        self.store.delete(digest).await
    }

    fn list(&self) -> BoxStream<'_, Result<Digest, StoreError>> {
        self.store.list()
    }

    async fn put_log(&self, log: &LogName, bytes: Bytes) -> Result<(), StoreError> {
        self.store.put_log(log, bytes).await
    }

    async fn log(&self, log: &LogName) -> Result<Option<Bytes>, StoreError> {
        self.store.log(log).await
    }
}

/// A region under test with a store and a folder.
pub(super) struct Site {
    pub(super) tap: Arc<Tap>,
    pub(super) region: Arc<dyn Region>,
    folder: tempfile::TempDir,
}

impl Site {
    pub(super) async fn open(regions: Arc<dyn Regions>) -> Self {
        let tap = Tap { store: Store::new(), budget: AtomicU64::new(u64::MAX), lie: AtomicBool::new(false) };
        let tap = Arc::new(tap);
        let region = regions.open(Arc::clone(&tap) as Arc<dyn ArtifactStore>).await;
        Self { tap, region, folder: tempfile::tempdir().expect("a temporary folder") }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) async fn put(&self, len: u64, seed: u8) -> Artifact {
        self.put_bytes(bytes(len, seed)).await
    }

    pub(super) async fn put_bytes(&self, bytes: Vec<u8>) -> Artifact {
        let manifest = self.tap.put_bytes(Bytes::from(bytes.clone())).await.expect("the store takes it");
        Artifact { manifest: Arc::new(manifest), bytes }
    }

    /// A file with the artifact's bytes.
    pub(super) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("the file is written");
        path
    }

    pub(super) async fn fetch(&self, swarm: &Arc<dyn PeerSwarm>, artifact: &Artifact, name: &str) -> Fetch {
        swarm.fetch(artifact.request(self.path(name))).await.expect("the fetch begins")
    }

    /// Fetches to the end and compares the file.
    pub(super) async fn fetch_whole(
        &self,
        swarm: &Arc<dyn PeerSwarm>,
        artifact: &Artifact,
        name: &str,
    ) -> FetchSummary {
        let fetch = self.fetch(swarm, artifact, name).await;
        let summary = done(fetch).await.expect("the fetch ends well");
        self.holds(name, artifact);
        summary
    }

    pub(super) fn holds(&self, name: &str, artifact: &Artifact) {
        let found = std::fs::read(self.path(name)).expect("the file is there");
        assert_eq!(found.len(), artifact.bytes.len(), "the file has the artifact's length");
        assert!(found == artifact.bytes, "the file has the artifact's bytes");
    }

    /// A fetch of which some pieces are there and the rest cannot come.
    pub(super) async fn fetch_half(&self, swarm: &Arc<dyn PeerSwarm>, artifact: &Artifact, name: &str) -> Fetch {
        self.tap.allow(artifact.manifest.size() / 2);
        let mut fetch = self.fetch(swarm, artifact, name).await;
        until(&mut fetch, "two pieces are there", |progress| progress.pieces >= 2).await;
        fetch
    }
}

#[derive(Debug, Clone)]
pub(super) struct Artifact {
    pub(super) manifest: Arc<Manifest>,
    pub(super) bytes: Vec<u8>,
}

impl Artifact {
    pub(super) fn request(&self, destination: PathBuf) -> FetchRequest {
        FetchRequest {
            manifest: Arc::clone(&self.manifest),
            destination,
            priority: Priority::Normal,
            limits: Limits::default(),
        }
    }

    pub(super) fn digest(&self) -> Digest {
        self.manifest.digest()
    }
}

fn bytes(len: u64, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// The end of a fetch, which comes.
pub(super) async fn done(fetch: Fetch) -> Result<FetchSummary, Error> {
    tokio::time::timeout(PATIENCE, fetch.done).await.expect("the fetch ends")
}

/// Drives a fetch until its progress shows something.
pub(super) async fn until(fetch: &mut Fetch, what: &str, check: impl Fn(&FetchProgress) -> bool) {
    let Fetch { progress, done } = fetch;
    let seen = async {
        tokio::select! {
            biased;
            seen = progress.wait_for(|progress| check(progress)) => { seen.expect("the fetch goes on"); }
            ended = done => panic!("the fetch ended before {what}: {ended:?}"),
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Asks again until the answer is yes: for effects that the contract grants, but not at once.
pub(super) async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let asked = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("never: {what}"));
}
