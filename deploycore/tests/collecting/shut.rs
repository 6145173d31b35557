//! A store in which nothing can be deleted for now.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::memory::Store;
use deploycore::model::{Digest, LogName, Manifest};
use deploycore::port::store::{Chunks, Deletion, Error, Source};
use deploycore::port::{ArtifactStore, BackendError};
use futures::stream::BoxStream;

#[derive(Debug)]
pub(crate) struct Shut {
    inner: Store,
    is_open: AtomicBool,
}

impl Shut {
    pub(crate) fn new(inner: &Store) -> Self {
        Self { inner: inner.clone(), is_open: AtomicBool::new(false) }
    }

    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl ArtifactStore for Shut {
    async fn put(&self, bytes: Source) -> Result<Manifest, Error> {
        self.inner.put(bytes).await
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
        if !self.is_open.load(Ordering::SeqCst) {
            return Err(BackendError::retryable("shut", "it is").into());
        }
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
