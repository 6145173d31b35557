//! A broken main store.

use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::memory;
use deploycore::model::{Digest, LogName, Manifest};
use deploycore::port::store::{Chunks, Deletion, Error, Source};
use deploycore::port::{ArtifactStore, ArtifactStoreExt};
use futures::stream::{BoxStream, TryStreamExt};
use tokio::task::JoinSet;

/// A store that says yes first and stores some time later.
#[derive(Debug)]
pub struct StoresLater {
    pub inner: memory::Store,
    pub later: Mutex<JoinSet<()>>,
}

#[async_trait]
impl ArtifactStore for StoresLater {
    async fn put(&self, bytes: Source) -> Result<Manifest, Error> {
        let chunks: Vec<Bytes> = bytes.try_collect().await.map_err(Error::Source)?;
        let all = Bytes::from(chunks.concat());
        let manifest = Manifest::of(&all);
        let inner = self.inner.clone();
        self.later.lock().expect("nobody panics").spawn(async move {
            tokio::time::sleep(Duration::from_secs(30)).await;
            inner.put_bytes(all).await.expect("memory takes everything");
        });
        Ok(manifest)
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        self.inner.manifest(digest).await
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Chunks, Error> {
        self.inner.read(digest, range).await
    }

    async fn exists(&self, digest: &Digest) -> Result<bool, Error> {
        self.inner.exists(digest).await
    }

    async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        self.inner.delete(digest).await
    }

    async fn delete_idle(&self, digest: &Digest, idle: Duration) -> Result<Deletion, Error> {
        self.inner.delete_idle(digest, idle).await
    }

    fn list(&self) -> BoxStream<'_, Result<Digest, Error>> {
        self.inner.list()
    }

    async fn put_log(&self, log: &LogName, bytes: Bytes) -> Result<(), Error> {
        self.inner.put_log(log, bytes).await
    }

    async fn log(&self, log: &LogName) -> Result<Option<Bytes>, Error> {
        self.inner.log(log).await
    }
}
