//! Stores and ledgers that misbehave on command.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::memory::Store;
use deploycore::model::{
    ArtifactName, ArtifactStatus, CopyLease, CopyPriority, CopyTask, Digest, Epoch, FiguresRequest, LogName, Manifest,
    NewArtifact, PinHolder, RegionName, ReplicationFigures,
};
use deploycore::port::ledger::{
    ClaimRequest, CopyJournal, CopyRetry, Error as LedgerError, JournaledUpload, LedgerCursor, LedgerFilter,
    LedgerPage, Registered,
};
use deploycore::port::store::{ArtifactStoreExt, Chunks, Deletion, Error, PartTag, Source, UploadId};
use deploycore::port::{ArtifactStore, BackendError, ReplicationLedger};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::Notify;

/// How a [`Probe`] treats puts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mode {
    Well,
    /// Takes this long over each.
    Slow(Duration),
    /// Takes the bytes and never answers.
    Hang,
    /// Refuses.
    Fail,
    Panic,
    /// Stores other bytes.
    Lie,
    /// Something else answers at its address: it finds nothing.
    Elsewhere,
}

/// A memory store that counts what it is asked and can be told how to answer.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) inner: Store,
    plug: Plug,
    mode: Mutex<Mode>,
    puts: AtomicUsize,
    now: Arc<AtomicUsize>,
    most: AtomicUsize,
    dropped: Arc<AtomicUsize>,
    reads: AtomicUsize,
}

impl Probe {
    pub(crate) fn new() -> Self {
        Self::on(Store::new(), Plug::never())
    }

    /// On a store that others use too, with a plug in each call.
    pub(crate) fn on(inner: Store, plug: Plug) -> Self {
        Self {
            inner,
            plug,
            mode: Mutex::new(Mode::Well),
            puts: AtomicUsize::default(),
            now: Arc::default(),
            most: AtomicUsize::default(),
            dropped: Arc::default(),
            reads: AtomicUsize::default(),
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    pub(crate) fn puts(&self) -> usize {
        self.puts.load(SeqCst)
    }

    pub(crate) fn most_puts_at_once(&self) -> usize {
        self.most.load(SeqCst)
    }

    /// Puts that were dropped before they answered.
    pub(crate) fn dropped_puts(&self) -> usize {
        self.dropped.load(SeqCst)
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.load(SeqCst)
    }
}

/// Notes that a put is under way, and whether it was dropped.
struct Under {
    now: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    answered: bool,
}

impl Drop for Under {
    fn drop(&mut self) {
        self.now.fetch_sub(1, SeqCst);
        if !self.answered {
            self.dropped.fetch_add(1, SeqCst);
        }
    }
}

#[async_trait]
impl ArtifactStore for Probe {
    async fn put(&self, bytes: Source) -> Result<Manifest, Error> {
        self.puts.fetch_add(1, SeqCst);
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        let mut under = Under { now: self.now.clone(), dropped: self.dropped.clone(), answered: false };
        let mode = *self.mode.lock().unwrap();
        let result = match mode {
            Mode::Well => self.plug.around(self.inner.put(bytes)).await,
            Mode::Slow(time) => {
                tokio::time::sleep(time).await;
                self.inner.put(bytes).await
            }
            Mode::Hang => {
                drop(bytes.try_collect::<Vec<_>>().await);
                std::future::pending().await
            }
            Mode::Fail | Mode::Elsewhere => Err(BackendError::retryable("probe", "503").into()),
            Mode::Panic => panic!("the store panics"),
            Mode::Lie => self.inner.put_bytes(Bytes::from_static(b"other bytes")).await,
        };
        under.answered = true;
        result
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        self.plug.around(self.inner.manifest(digest)).await
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Chunks, Error> {
        self.reads.fetch_add(1, SeqCst);
        self.plug.around(self.inner.read(digest, range)).await
    }

    async fn exists(&self, digest: &Digest) -> Result<bool, Error> {
        if matches!(*self.mode.lock().unwrap(), Mode::Elsewhere) {
            return Ok(false);
        }
        self.plug.around(self.inner.exists(digest)).await
    }

    async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        self.inner.delete(digest).await
    }

    async fn delete_idle(&self, digest: &Digest, idle: Duration) -> Result<Deletion, Error> {
        self.inner.delete_idle(digest, idle).await
    }

    fn list(&self) -> BoxStream<'_, Result<Digest, Error>> {
        if matches!(*self.mode.lock().unwrap(), Mode::Elsewhere) {
            return futures::stream::iter([Err(BackendError::retryable("probe", "404").into())]).boxed();
        }
        self.inner.list()
    }

    async fn put_log(&self, log: &LogName, bytes: Bytes) -> Result<(), Error> {
        self.inner.put_log(log, bytes).await
    }

    async fn log(&self, log: &LogName) -> Result<Option<Bytes>, Error> {
        self.inner.log(log).await
    }
}

/// Stops whoever comes to its n-th point for ever, so that a test can drop them there.
#[derive(Debug, Clone)]
pub(crate) struct Plug {
    left: Arc<AtomicUsize>,
    reached: Arc<Notify>,
}

impl Plug {
    /// Stops at the point with this number, from 0.
    pub(crate) fn at(point: usize) -> Self {
        Self { left: Arc::new(AtomicUsize::new(point)), reached: Arc::default() }
    }

    pub(crate) fn never() -> Self {
        Self::at(usize::MAX)
    }

    /// Resolves when someone is stopped.
    pub(crate) async fn reached(&self) {
        self.reached.notified().await;
    }

    /// A call with a point before it, as when the request is lost, and one after it, as when the reply is.
    async fn around<T>(&self, call: impl Future<Output = T>) -> T {
        self.point().await;
        let answer = call.await;
        self.point().await;
        answer
    }

    async fn point(&self) {
        if self.left.fetch_sub(1, SeqCst) == 0 {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// A ledger behind a plug, which can also be made deaf to progress.
#[derive(Debug)]
pub(crate) struct Plugged {
    inner: Arc<dyn ReplicationLedger>,
    plug: Plug,
    deaf: AtomicBool,
    /// How long it takes to journal parts.
    distance: Duration,
}

impl Plugged {
    pub(crate) fn new(inner: Arc<dyn ReplicationLedger>, plug: Plug) -> Self {
        Self { inner, plug, deaf: AtomicBool::new(false), distance: Duration::ZERO }
    }

    /// One whose journal answers after a while.
    pub(crate) fn far(inner: Arc<dyn ReplicationLedger>, distance: Duration) -> Self {
        Self { distance, ..Self::new(inner, Plug::never()) }
    }

    fn behind(&self) -> &dyn CopyJournal {
        self.inner.journal().expect("the ledger in memory has one")
    }

    pub(crate) fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, SeqCst);
    }
}

#[async_trait]
impl ReplicationLedger for Plugged {
    async fn register(&self, artifact: &NewArtifact) -> Result<Registered, LedgerError> {
        self.plug.around(self.inner.register(artifact)).await
    }

    async fn unregistered(&self, names: &[ArtifactName]) -> Result<BTreeSet<ArtifactName>, LedgerError> {
        self.plug.around(self.inner.unregistered(names)).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, LedgerError> {
        self.plug.around(self.inner.claim(request)).await
    }

    async fn progress(&self, lease: &CopyLease, bytes: u64, extend: Duration) -> Result<CopyPriority, LedgerError> {
        if self.deaf.load(SeqCst) {
            return Err(BackendError::retryable("probe", "no connection").into());
        }
        self.plug.around(self.inner.progress(lease, bytes, extend)).await
    }

    async fn complete(&self, lease: &CopyLease) -> Result<(), LedgerError> {
        self.plug.around(self.inner.complete(lease)).await
    }

    async fn fail(&self, lease: &CopyLease, reason: &str, retry: CopyRetry) -> Result<(), LedgerError> {
        self.plug.around(self.inner.fail(lease, reason, retry)).await
    }

    async fn prioritize(&self, artifact: &ArtifactName, priority: CopyPriority) -> Result<usize, LedgerError> {
        self.inner.prioritize(artifact, priority).await
    }

    async fn reopen(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        seen: Epoch,
        reason: &str,
    ) -> Result<bool, LedgerError> {
        self.plug.around(self.inner.reopen(artifact, region, seen, reason)).await
    }

    async fn status(&self, artifact: &ArtifactName) -> Result<Option<ArtifactStatus>, LedgerError> {
        self.inner.status(artifact).await
    }

    async fn list(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, LedgerError> {
        self.plug.around(self.inner.list(filter, after, limit)).await
    }

    async fn figures(&self, request: &FiguresRequest) -> Result<BTreeMap<RegionName, ReplicationFigures>, LedgerError> {
        self.inner.figures(request).await
    }

    async fn pin(
        &self,
        artifact: &ArtifactName,
        holder: &PinHolder,
        waived: &BTreeSet<RegionName>,
    ) -> Result<(), LedgerError> {
        self.inner.pin(artifact, holder, waived).await
    }

    async fn unpin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), LedgerError> {
        self.inner.unpin(artifact, holder).await
    }

    fn journal(&self) -> Option<&dyn CopyJournal> {
        Some(self)
    }
}

#[async_trait]
impl CopyJournal for Plugged {
    async fn upload(&self, lease: &CopyLease) -> Result<Option<JournaledUpload>, LedgerError> {
        self.behind().upload(lease).await
    }

    async fn begin(&self, lease: &CopyLease, upload: &UploadId, part_size: u64) -> Result<(), LedgerError> {
        self.behind().begin(lease, upload, part_size).await
    }

    async fn add(&self, lease: &CopyLease, parts: &[(u32, PartTag)]) -> Result<(), LedgerError> {
        tokio::time::sleep(self.distance).await;
        self.behind().add(lease, parts).await
    }

    async fn clear(&self, lease: &CopyLease) -> Result<(), LedgerError> {
        self.behind().clear(lease).await
    }
}
