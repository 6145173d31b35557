//! One attempt at one copy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::lane::Lane;
use super::parts::ByParts;
use super::room::Moving;
use super::verified;
use crate::model::{CopyTask, Manifest};
use crate::pace::within;
use crate::port::chain;
use crate::port::ledger::{self, CopyRetry};
use crate::port::store::{ArtifactStore, Error, Source};

/// How often the end of an attempt is told to a ledger that fails, before it is left to the lease.
const TELLS: u32 = 3;
/// Settings may not make a busy loop of the reports.
const MIN_PROGRESS_PERIOD: Duration = Duration::from_millis(100);
/// The most pieces of one copy read at once, however small they are.
const MAX_PIECES_AHEAD: u64 = 16;

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Completed,
    /// It will be tried again, or is given up.
    Failed {
        /// A store failed, which may fail for all artifacts alike.
        by_store: bool,
    },
    Lost,
}

impl Outcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed { .. } => "failed",
            Self::Lost => "lost",
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the main store does not have the artifact")]
    MainLost,
    #[error("the main store's copy is damaged")]
    MainDamaged(#[source] Error),
    #[error("the main store cannot be read")]
    Main(#[source] Error),
    #[error("the main store has {found} bytes under this digest, the ledger says {expected}")]
    Size { expected: u64, found: u64 },
    #[error("the region's store failed")]
    Region(#[source] Error),
    #[error("the region's store took other bytes than it was given: it has {0}")]
    Differs(crate::model::Digest),
    #[error("no byte moved for {0:?}, with {1} copied")]
    Stalled(Duration, u64),
    #[error("a part was not over within {0:?}")]
    PartTimeout(Duration),
    #[error("the ledger's journal cannot be used")]
    Ledger(#[source] ledger::Error),
    #[error("the lease is lost")]
    LeaseLost,
}

impl Fault {
    /// Whether the same part may go well at once.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Main(error) | Self::Region(error) => error.is_retryable(),
            Self::PartTimeout(_) => true,
            _ => false,
        }
    }

    /// Whether it may be for the store that it failed, and not for the artifact.
    fn is_of_store(&self) -> bool {
        matches!(self, Self::Main(_) | Self::Region(_) | Self::Stalled(..) | Self::PartTimeout(_))
    }
}

/// A claimed copy.
pub(super) struct Copy<'a> {
    pub(super) lane: &'a Lane,
    pub(super) task: &'a CopyTask,
}

impl Copy<'_> {
    /// Makes the copy and tells the ledger.
    pub(super) async fn make(&self) -> Outcome {
        let started = Instant::now();
        match self.bring().await {
            Ok(moved) => match self.tell_completed().await {
                Ok(()) => {
                    let ms = started.elapsed().as_millis() as u64;
                    info!(bytes = moved, ms, "copied");
                    Outcome::Completed
                }
                Err(error) => untold(&error),
            },
            Err(Fault::LeaseLost) => {
                info!("the lease is lost: another replicator has the copy");
                Outcome::Lost
            }
            Err(fault) => match self.tell_failed(&fault).await {
                Ok(()) => Outcome::Failed { by_store: fault.is_of_store() },
                Err(error) => untold(&error),
            },
        }
    }

    /// Brings the artifact to the region unless it is there; how many bytes moved.
    async fn bring(&self) -> Result<u64, Fault> {
        if self.is_there().await? {
            self.drop_upload().await;
            return Ok(0);
        }
        let manifest = self.main_manifest().await?;
        let shared = Arc::new(Shared::new(self.lane.begin_moving(self.task.priority)));
        // Whichever ends first drops the other: a put that is dropped leaves nothing visible, and an upload is in the journal.
        tokio::select! {
            biased;
            moved = self.transfer(manifest, &shared) => moved,
            fault = self.keep_lease(&shared) => Err(fault),
        }
    }

    async fn transfer(&self, manifest: Manifest, shared: &Arc<Shared>) -> Result<u64, Fault> {
        let size = manifest.size();
        match self.lane.store.multipart() {
            Some(store) if size > store.part_size(size) => {
                ByParts { copy: self, store, manifest: &manifest, shared }.make().await
            }
            _ => self.put(manifest, shared).await,
        }
    }

    /// Whether the region has the artifact already: after a crash between the copy and its completion, or from a job that made the same
    /// bytes.
    async fn is_there(&self) -> Result<bool, Fault> {
        let (digest, size) = (&self.task.artifact.digest, self.task.artifact.size);
        if !self.store_call(self.lane.store.exists(digest)).await.map_err(Fault::Region)? {
            return Ok(false);
        }
        match self.store_call(self.lane.store.manifest(digest)).await {
            Ok(manifest) => Ok(manifest.is_some_and(|manifest| manifest.size() == size)),
            // To be stored anew.
            Err(Error::Corrupt { .. }) => Ok(false),
            Err(error) => Err(Fault::Region(error)),
        }
    }

    async fn main_manifest(&self) -> Result<Manifest, Fault> {
        let (digest, expected) = (&self.task.artifact.digest, self.task.artifact.size);
        let manifest = self.store_call(self.lane.main.manifest(digest)).await.map_err(verified::main_fault)?;
        let manifest = manifest.ok_or(Fault::MainLost)?;
        let found = manifest.size();
        if found != expected {
            return Err(Fault::Size { expected, found });
        }
        Ok(manifest)
    }

    /// Streams the bytes into one put.
    async fn put(&self, manifest: Manifest, shared: &Arc<Shared>) -> Result<u64, Fault> {
        let size = manifest.size();
        let ahead = (self.lane.put_share() / manifest.piece_size()).clamp(1, MAX_PIECES_AHEAD);
        // A store that takes parts gathers what is smaller than one.
        let gathers = self.lane.store.multipart().is_some();
        let _held = shared.moving.hold(if gathers { size } else { size.min(ahead * manifest.piece_size()) }).await;
        let source = verified_source(self.lane.main.clone(), manifest.clone(), ahead as usize, shared.clone());
        match self.lane.store.put(source).await {
            Ok(stored) if stored == manifest => {
                self.lane.count_sent(size);
                Ok(size)
            }
            Ok(stored) => Err(Fault::Differs(stored.digest())),
            // What broke the source says more than what the store makes of it.
            Err(error) => Err(shared.take_fault().unwrap_or(Fault::Region(error))),
        }
    }

    /// Renews the lease from time to time; resolves when the copy shall end.
    async fn keep_lease(&self, shared: &Shared) -> Fault {
        let settings = &self.lane.settings;
        let period = settings.progress_period.min(settings.lease / 3).max(MIN_PROGRESS_PERIOD);
        let (mut seen, mut moved_at) = (0, Instant::now());
        loop {
            sleep(period).await;
            let bytes = shared.bytes.load(Ordering::Relaxed);
            let limit = settings.stall_timeout.max(self.lane.part_limit());
            if bytes != seen || shared.moving.is_held_up() {
                (seen, moved_at) = (bytes, Instant::now());
            } else if moved_at.elapsed() >= limit {
                return Fault::Stalled(limit, bytes);
            }
            let extend = settings.lease.min(ledger::bounds::MAX_LEASE);
            let told = self.lane.ledger.progress(&self.task.lease, bytes, extend);
            match within(settings.call_timeout, "ledger", told).await {
                Ok(priority) => shared.moving.raise(priority),
                Err(ledger::Error::Backend(error)) => {
                    // The copy goes on: if another takes the lease meanwhile, the next report says so, and both copies are the same bytes.
                    warn!(error = %chain(&error), "progress cannot be reported");
                }
                Err(_) => return Fault::LeaseLost,
            }
        }
    }

    async fn tell_completed(&self) -> Result<(), ledger::Error> {
        self.tell(|| self.lane.ledger.complete(&self.task.lease)).await
    }

    async fn tell_failed(&self, fault: &Fault) -> Result<(), ledger::Error> {
        let (attempt, reason) = (self.task.attempt, chain(fault));
        let retry = if attempt >= self.lane.settings.max_attempts {
            warn!(%reason, "the copy is given up");
            self.drop_upload().await;
            CopyRetry::GiveUp
        } else {
            let delay = self.lane.retry_delay(attempt);
            warn!(%reason, ?delay, "the copy failed");
            CopyRetry::After(delay)
        };
        self.tell(|| self.lane.ledger.fail(&self.task.lease, &reason, retry)).await
    }

    /// Tells the ledger of the end, a few times if it must: both calls may be repeated.
    async fn tell<F: Future<Output = Result<(), ledger::Error>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<(), ledger::Error> {
        let settings = &self.lane.settings;
        for failures in 1.. {
            match within(settings.call_timeout, "ledger", call()).await {
                Err(error) if error.is_retryable() && failures < TELLS => sleep(settings.backoff.delay(failures)).await,
                told => return told,
            }
        }
        unreachable!("the last try returns")
    }

    pub(super) async fn store_call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        within(self.lane.settings.call_timeout, "artifact store", call).await
    }
}

fn untold(error: &ledger::Error) -> Outcome {
    // Complete or not, the next claim after the lease finds out.
    warn!(error = %chain(error), "the end of the attempt could not be told");
    Outcome::Lost
}

/// What the stream of bytes tells the attempt that runs it.
#[derive(Debug)]
pub(super) struct Shared {
    /// Its place in the lane.
    pub(super) moving: Arc<Moving>,
    /// Verified and handed to the region's store.
    bytes: AtomicU64,
    fault: Mutex<Option<Fault>>,
}

impl Shared {
    fn new(moving: Arc<Moving>) -> Self {
        Self { moving, bytes: AtomicU64::default(), fault: Mutex::default() }
    }

    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take_fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set_fault(&self, fault: Fault) -> std::io::Error {
        let error = std::io::Error::other(chain(&fault));
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
        error
    }
}

/// The bytes of the main store, each piece verified before any of its bytes is handed on; `ahead` pieces are read at once.
fn verified_source(main: Arc<dyn ArtifactStore>, manifest: Manifest, ahead: usize, shared: Arc<Shared>) -> Source {
    let manifest = Arc::new(manifest);
    let (count, noted) = (manifest.piece_count(), shared.clone());
    stream::iter((0..count).filter_map({
        let manifest = manifest.clone();
        move |index| manifest.piece_range(index)
    }))
    .map(move |range| {
        let (main, manifest, shared) = (main.clone(), manifest.clone(), shared.clone());
        async move {
            shared.moving.turn().await;
            verified::read(&*main, &manifest, range).await.map_err(|fault| shared.set_fault(fault))
        }
    })
    .buffered(ahead)
    .map_ok(|spans| stream::iter(spans.into_iter().map(Ok)))
    .try_flatten()
    .inspect_ok(move |span: &Bytes| noted.add(span.len() as u64))
    .boxed()
}
