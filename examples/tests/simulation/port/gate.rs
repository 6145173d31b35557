//! A region's store as its gate sees it: each read is counted.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::model::{Digest, LogName, Manifest};
use deploycore::port::ArtifactStore;
use deploycore::port::store::{Chunks, Deletion, Error, Source};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

use crate::simulation::check::Checker;
use crate::simulation::swarm::SwarmParts;

/// A store whose reads are those of a gate.
#[derive(Debug)]
pub struct GateStore {
    pub inner: Arc<dyn ArtifactStore>,
    pub parts: Arc<SwarmParts>,
    pub checker: Arc<Checker>,
}

#[async_trait]
impl ArtifactStore for GateStore {
    async fn put(&self, bytes: Source) -> Result<Manifest, Error> {
        self.inner.put(bytes).await
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        self.inner.manifest(digest).await
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Chunks, Error> {
        let chunks = self.inner.read(digest, range.clone()).await?;
        // Bytes flow when the first is asked for: an answer that got lost on its way has cost nothing.
        let (parts, checker, digest) = (self.parts.clone(), self.checker.clone(), *digest);
        let counted = async move {
            let record = parts.granted(&digest).await;
            checker.gate_read(&parts.region, &digest, &range, record.as_ref());
            chunks
        };
        Ok(counted.flatten_stream().boxed())
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
