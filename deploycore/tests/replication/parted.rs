//! A store that takes parts, and misbehaves on command.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use deploycore::model::{Digest, LogName, Manifest};
use deploycore::port::store::{Chunks, Deletion, Error, Multipart, PartTag, Source, UploadId};
use deploycore::port::{ArtifactStore, BackendError};
use deploycore::store::{BlobStore, BlobStoreSettings};
use futures::stream::BoxStream;

/// Bytes of a part.
pub(crate) const PART: usize = 256 << 10;

/// What a call of the store by parts is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Well,
    /// It never answers.
    Hang,
    /// It fails, and may go well the next time.
    Fail,
    /// It lets nobody in.
    Refuse,
    /// It has no such upload, or not all its parts.
    Forgotten,
}

/// Says what each call is told: its name, which such call it is, and the part.
type Script = Box<dyn Fn(&'static str, usize, u32) -> Answer + Send + Sync>;

/// A blob store in memory that counts its calls by parts.
pub(crate) struct Parted {
    pub(crate) inner: BlobStore,
    script: Mutex<Script>,
    calls: AtomicUsize,
    open: Mutex<BTreeSet<String>>,
    lost: Mutex<BTreeSet<String>>,
    parts: AtomicUsize,
    begun: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    /// Bytes a second that all parts on their way share; 0 for no limit.
    rate: AtomicUsize,
}

impl std::fmt::Debug for Parted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Parted {
    pub(crate) fn new() -> Self {
        let settings = BlobStoreSettings::default().with_part_size(ByteSize(PART as u64));
        Self {
            inner: BlobStore::open(&"memory://".parse().unwrap()).unwrap().with_settings(settings),
            script: Mutex::new(Box::new(|_, _, _| Answer::Well)),
            calls: AtomicUsize::default(),
            open: Mutex::default(),
            lost: Mutex::default(),
            parts: AtomicUsize::default(),
            begun: AtomicUsize::default(),
            now: AtomicUsize::default(),
            most: AtomicUsize::default(),
            rate: AtomicUsize::default(),
        }
    }

    /// Takes so many bytes a second of all parts together.
    pub(crate) fn set_rate(&self, bytes: usize) {
        self.rate.store(bytes, SeqCst);
    }

    /// Parts on their way.
    pub(crate) fn parts_now(&self) -> usize {
        self.now.load(SeqCst)
    }

    async fn cross(&self, bytes: usize) {
        const STEP: std::time::Duration = std::time::Duration::from_millis(10);
        let mut left = bytes as f64;
        while left > 0.0 {
            tokio::time::sleep(STEP).await;
            let rate = self.rate.load(SeqCst);
            if rate == 0 {
                return;
            }
            left -= rate as f64 * STEP.as_secs_f64() / self.parts_now().max(1) as f64;
        }
    }

    /// From now on; the calls are counted anew.
    pub(crate) fn follow(&self, script: impl Fn(&'static str, usize, u32) -> Answer + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
        self.calls.store(0, SeqCst);
    }

    /// Parts taken so far.
    pub(crate) fn parts(&self) -> usize {
        self.parts.load(SeqCst)
    }

    pub(crate) fn begun(&self) -> usize {
        self.begun.load(SeqCst)
    }

    pub(crate) fn most_parts_at_once(&self) -> usize {
        self.most.load(SeqCst)
    }

    /// Uploads neither finished nor aborted.
    pub(crate) fn open(&self) -> usize {
        self.open.lock().unwrap().len()
    }

    /// Takes no part of the uploads that are open now any more, and does not say why.
    pub(crate) fn lose_uploads(&self) {
        self.lost.lock().unwrap().append(&mut self.open.lock().unwrap());
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    async fn told(&self, call: &'static str, part: u32) -> Result<(), Error> {
        let number = self.calls.fetch_add(1, SeqCst);
        let answer = (self.script.lock().unwrap())(call, number, part);
        match answer {
            Answer::Well => Ok(()),
            Answer::Hang => std::future::pending().await,
            Answer::Fail => Err(BackendError::retryable("probe", "503").into()),
            Answer::Refuse => Err(BackendError::permanent("probe", "403").into()),
            Answer::Forgotten => Err(Error::NoUpload { upload: UploadId::new("forgotten") }),
        }
    }
}

#[async_trait]
impl Multipart for Parted {
    fn part_size(&self, size: u64) -> u64 {
        self.inner.part_size(size)
    }

    async fn begin(&self) -> Result<UploadId, Error> {
        self.told("begin", 0).await?;
        let upload = self.inner.begin().await?;
        self.begun.fetch_add(1, SeqCst);
        self.open.lock().unwrap().insert(upload.to_string());
        Ok(upload)
    }

    async fn put_part(&self, upload: &UploadId, index: u32, part: Vec<Bytes>) -> Result<PartTag, Error> {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        let _leave = Leave(&self.now);
        self.most.fetch_max(now, SeqCst);
        self.cross(part.iter().map(Bytes::len).sum()).await;
        self.told("put_part", index).await?;
        if self.lost.lock().unwrap().contains(upload.as_str()) {
            return Err(BackendError::permanent("probe", "InvalidBlockList").into());
        }
        let tag = self.inner.put_part(upload, index, part).await?;
        self.parts.fetch_add(1, SeqCst);
        Ok(tag)
    }

    async fn finish(&self, upload: &UploadId, manifest: &Manifest, tags: Vec<PartTag>) -> Result<Manifest, Error> {
        self.told("finish", 0).await?;
        let manifest = self.inner.finish(upload, manifest, tags).await?;
        self.open.lock().unwrap().remove(upload.as_str());
        Ok(manifest)
    }

    async fn abort(&self, upload: &UploadId) -> Result<(), Error> {
        self.told("abort", 0).await?;
        self.inner.abort(upload).await?;
        self.open.lock().unwrap().remove(upload.as_str());
        Ok(())
    }
}

#[async_trait]
impl ArtifactStore for Parted {
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
        Some(self)
    }
}
