//! A store that counts what it is given, in a file that outlives a killed process.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::model::{Digest, LogName, Manifest};
use deploycore::port::ArtifactStore;
use deploycore::port::store::{Chunks, Deletion, Error, Multipart, PartTag, Source, UploadId};
use deploycore::store::BlobStore;
use futures::stream::{BoxStream, StreamExt as _};

const NAME: &str = "sent";

/// Bytes sent by all processes that used the folder.
pub(super) fn read(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    File::open(folder.join(NAME))?.read_exact_at(&mut bytes, 0)?;
    Ok(u64::from_le_bytes(bytes))
}

#[derive(Debug)]
pub(super) struct Counter {
    file: File,
    sent: Mutex<u64>,
}

impl Counter {
    pub(super) fn open(folder: &Path) -> anyhow::Result<Self> {
        let sent = read(folder).unwrap_or_default();
        let file = File::options().create(true).truncate(false).write(true).open(folder.join(NAME))?;
        file.write_all_at(&sent.to_le_bytes(), 0)?;
        Ok(Self { file, sent: Mutex::new(sent) })
    }

    /// Counts bytes that are about to be sent.
    fn add(&self, bytes: u64) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        *sent += bytes;
        self.file.write_all_at(&sent.to_le_bytes(), 0).expect("eight bytes of a file that is open");
    }
}

#[derive(Debug)]
pub(super) struct Counted {
    inner: BlobStore,
    counter: Arc<Counter>,
}

impl Counted {
    pub(super) fn new(inner: BlobStore, counter: Arc<Counter>) -> Self {
        Self { inner, counter }
    }
}

#[async_trait]
impl ArtifactStore for Counted {
    async fn put(&self, bytes: Source) -> Result<Manifest, Error> {
        let counter = self.counter.clone();
        let noted = bytes.inspect(move |span| {
            if let Ok(span) = span {
                counter.add(span.len() as u64);
            }
        });
        self.inner.put(noted.boxed()).await
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
    fn multipart(&self) -> Option<&dyn Multipart> {
        self.inner.multipart().map(|_| self as &dyn Multipart)
    }
}

#[async_trait]
impl Multipart for Counted {
    fn part_size(&self, size: u64) -> u64 {
        self.inner.part_size(size)
    }
    async fn begin(&self) -> Result<UploadId, Error> {
        self.inner.begin().await
    }
    async fn put_part(&self, upload: &UploadId, index: u32, part: Vec<Bytes>) -> Result<PartTag, Error> {
        self.counter.add(part.iter().map(|span| span.len() as u64).sum());
        self.inner.put_part(upload, index, part).await
    }
    async fn finish(&self, upload: &UploadId, manifest: &Manifest, tags: Vec<PartTag>) -> Result<Manifest, Error> {
        self.inner.finish(upload, manifest, tags).await
    }
    async fn abort(&self, upload: &UploadId) -> Result<(), Error> {
        self.inner.abort(upload).await
    }
}
