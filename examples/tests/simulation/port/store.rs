//! An artifact store, far away.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::model::{Digest, LogName, Manifest};
use deploycore::port::ArtifactStore;
use deploycore::port::store::{Chunks, Deletion, Error, Source};
use futures::stream::{self, BoxStream, StreamExt};

use super::Far;

#[async_trait]
impl ArtifactStore for Far<dyn ArtifactStore> {
    async fn put(&self, bytes: Source) -> Result<Manifest, Error> {
        let inner = self.inner.clone();
        self.link.attached().call("store.put", async move { inner.put(bytes).await }).await
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        let (inner, digest) = (self.inner.clone(), *digest);
        self.link.call("store.manifest", async move { inner.manifest(&digest).await }).await
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Chunks, Error> {
        let (inner, digest) = (self.inner.clone(), *digest);
        let chunks = self.link.call("store.read", async move { inner.read(&digest, range).await }).await?;
        let link = self.link.clone();
        let faulty = chunks.then(move |chunk| {
            let link = link.clone();
            async move {
                link.life.awake().await;
                if link.breaks() { Err(link.broken("a read")) } else { chunk }
            }
        });
        Ok(faulty.boxed())
    }

    async fn exists(&self, digest: &Digest) -> Result<bool, Error> {
        let (inner, digest) = (self.inner.clone(), *digest);
        self.link.call("store.exists", async move { inner.exists(&digest).await }).await
    }

    async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        let (inner, digest) = (self.inner.clone(), *digest);
        self.link.call("store.delete", async move { inner.delete(&digest).await }).await
    }

    async fn delete_idle(&self, digest: &Digest, idle: Duration) -> Result<Deletion, Error> {
        let (inner, digest) = (self.inner.clone(), *digest);
        self.link.call("store.delete_idle", async move { inner.delete_idle(&digest, idle).await }).await
    }

    fn list(&self) -> BoxStream<'_, Result<Digest, Error>> {
        let inner = self.inner.clone();
        let all = self.link.call("store.list", async move { Ok::<_, Error>(inner.list().collect::<Vec<_>>().await) });
        stream::once(all).flat_map(|all| stream::iter(all.unwrap_or_else(|error| vec![Err(error)]))).boxed()
    }

    async fn put_log(&self, log: &LogName, bytes: Bytes) -> Result<(), Error> {
        let (inner, log) = (self.inner.clone(), *log);
        self.link.call("store.put_log", async move { inner.put_log(&log, bytes).await }).await
    }

    async fn log(&self, log: &LogName) -> Result<Option<Bytes>, Error> {
        let (inner, log) = (self.inner.clone(), *log);
        self.link.call("store.log", async move { inner.log(&log).await }).await
    }
}
