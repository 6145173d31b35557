//! The artifact store in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::time::Instant;

use crate::model::{Digest, LogName, MAX_ARTIFACT_SIZE, Manifest, ManifestHasher};
use crate::port::store::{ArtifactStore, Chunks, Deletion, Error, MAX_CHUNK, MAX_LOG, Source};

/// An [`ArtifactStore`] in memory. Clones share one store; it ends with the last of them.
#[derive(Debug, Clone, Default)]
pub struct Store {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    artifacts: BTreeMap<Digest, Stored>,
    logs: BTreeMap<(uuid::Uuid, u64), Bytes>,
}

#[derive(Debug, Clone)]
struct Stored {
    manifest: Manifest,
    bytes: Bytes,
    /// The last put.
    put_at: Instant,
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the byte at `at` as a failing disk would, below the manifest; `false` when the artifact has no such byte.
    pub fn damage(&self, digest: &Digest, at: u64) -> bool {
        let mut state = self.lock();
        let Some(stored) = state.artifacts.get_mut(digest) else {
            return false;
        };
        let mut bytes = stored.bytes.to_vec();
        let Some(byte) = bytes.get_mut(at as usize) else {
            return false;
        };
        *byte ^= 1;
        stored.bytes = bytes.into();
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stored(&self, digest: &Digest) -> Option<Stored> {
        self.lock().artifacts.get(digest).cloned()
    }
}

#[async_trait]
impl ArtifactStore for Store {
    async fn put(&self, mut source: Source) -> Result<Manifest, Error> {
        let (mut hasher, mut bytes) = (ManifestHasher::new(), Vec::new());
        while let Some(chunk) = source.try_next().await.map_err(Error::Source)? {
            if hasher.size() + chunk.len() as u64 > MAX_ARTIFACT_SIZE {
                return Err(Error::Invalid(format!(
                    "the artifact is larger than the limit of {MAX_ARTIFACT_SIZE} bytes"
                )));
            }
            hasher.update(&chunk);
            bytes.extend_from_slice(&chunk);
        }
        let manifest = hasher.finish();
        let put_at = Instant::now();
        let stored = Stored { manifest: manifest.clone(), bytes: bytes.into(), put_at };
        self.lock().artifacts.entry(manifest.digest()).or_insert(stored).put_at = put_at;
        Ok(manifest)
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        Ok(self.stored(digest).map(|stored| stored.manifest))
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Chunks, Error> {
        let stored = self.stored(digest).ok_or(Error::NotFound { digest: *digest })?;
        let size = stored.manifest.size();
        if range.start > range.end || range.end > size {
            let Range { start, end } = range;
            return Err(Error::Invalid(format!("bytes {start}..{end} of an artifact of {size} bytes")));
        }
        let bytes = stored.bytes.slice(range.start as usize..range.end as usize);
        let spans = (0..bytes.len()).step_by(MAX_CHUNK).map(move |at| bytes.slice(at..bytes.len().min(at + MAX_CHUNK)));
        Ok(stream::iter(spans.map(Ok).collect::<Vec<_>>()).boxed())
    }

    async fn exists(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.lock().artifacts.contains_key(digest))
    }

    async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        self.lock().artifacts.remove(digest);
        Ok(())
    }

    async fn delete_idle(&self, digest: &Digest, idle: Duration) -> Result<Deletion, Error> {
        let artifacts = &mut self.lock().artifacts;
        if artifacts.get(digest).is_some_and(|stored| stored.put_at.elapsed() < idle) {
            return Ok(Deletion::InUse);
        }
        artifacts.remove(digest);
        Ok(Deletion::Gone)
    }

    fn list(&self) -> BoxStream<'_, Result<Digest, Error>> {
        let digests: Vec<_> = self.lock().artifacts.keys().copied().map(Ok).collect();
        stream::iter(digests).boxed()
    }

    async fn put_log(&self, log: &LogName, bytes: Bytes) -> Result<(), Error> {
        if bytes.len() > MAX_LOG {
            return Err(Error::Invalid(format!(
                "a log of {} bytes is larger than the limit of {MAX_LOG}",
                bytes.len()
            )));
        }
        self.lock().logs.insert((log.job.as_uuid(), log.epoch.get()), bytes);
        Ok(())
    }

    async fn log(&self, log: &LogName) -> Result<Option<Bytes>, Error> {
        Ok(self.lock().logs.get(&(log.job.as_uuid(), log.epoch.get())).cloned())
    }
}
