//! Manifests for a region's machines: one read of the store for all who come for one, whatever it gives.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deploycore::model::Digest;
use deploycore::port::ManifestSource;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::GatewaySettings;
use super::wire::{Problem, Report};

/// So long a read that gave no manifest answers those who come after it too. A thousand machines that ask for what is not there, or for what the
/// store is slow to give, would else read one after the other. A copy that has just arrived is shown so much later.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// What a failure counts for among the bytes that are kept.
const FAILURE_WEIGHT: u64 = 1 << 10;
/// Reads of the store at once, each for another artifact. The next waits for its turn.
const READS: usize = 64;

pub(super) struct Manifests {
    source: Arc<dyn ManifestSource>,
    kept: Cache<Digest, Kept, Weight>,
    /// Of requests that wait for the store. They are not those of polls and reports, which a slow store is nothing to.
    places: Semaphore,
    reads: Semaphore,
    most: usize,
    patience: Duration,
}

/// What a read gave, and until when that holds where it is no manifest.
#[derive(Clone)]
enum Kept {
    Body(Bytes),
    Failure(Report, Instant),
}

#[derive(Debug, Clone, Copy)]
struct Weight;

impl quick_cache::Weighter<Digest, Kept> for Weight {
    fn weight(&self, _: &Digest, kept: &Kept) -> u64 {
        match kept {
            Kept::Body(body) => body.len().max(1) as u64,
            Kept::Failure(..) => FAILURE_WEIGHT,
        }
    }
}

impl Kept {
    fn holds(&self) -> bool {
        match self {
            Self::Body(_) => true,
            Self::Failure(_, until) => Instant::now() < *until,
        }
    }

    fn answer(self) -> Result<Bytes, Report> {
        match self {
            Self::Body(body) => Ok(body),
            Self::Failure(report, _) => Err(report),
        }
    }
}

impl Manifests {
    pub(super) fn new(source: Arc<dyn ManifestSource>, settings: &GatewaySettings) -> Self {
        let most = settings.max_manifests.min(Semaphore::MAX_PERMITS);
        Self {
            source,
            kept: Cache::with_weighter(1_000, settings.manifest_cache.as_u64(), Weight),
            places: Semaphore::new(most),
            reads: Semaphore::new(READS),
            most,
            patience: settings.request_timeout,
        }
    }

    /// The manifest of an artifact as it goes over the wire.
    pub(super) async fn get(&self, digest: &Digest) -> Result<Bytes, Report> {
        if let Some(kept) = self.kept.get(digest) {
            if kept.holds() {
                return kept.answer();
            }
            self.kept.remove_if(digest, |kept| !kept.holds());
        }
        let _place = self.places.try_acquire().map_err(|_| {
            metrics::counter!("deploycore_gateway_requests_refused_total").increment(1);
            Problem::Overloaded.says(format!("{} requests wait for manifests already", self.most))
        })?;
        // One of them reads, until its own deadline at the latest. When its client goes away another begins anew.
        let read = self.read(digest, Instant::now() + self.patience);
        let Ok(kept) = self.kept.get_or_insert_async(digest, async { Ok::<_, Infallible>(read.await) }).await;
        kept.answer()
    }

    async fn read(&self, digest: &Digest, deadline: Instant) -> Kept {
        let read = async {
            let _turn = self.reads.acquire().await;
            self.source.region_manifest(digest).await
        };
        let report = match timeout_at(deadline, read).await {
            Ok(Ok(Some(manifest))) => return Kept::Body(super::routes::encode(&manifest)),
            Ok(Ok(None)) => Problem::NoManifest.says(format!("{digest} is not in this region")),
            Ok(Err(error)) => error.into(),
            Err(_) => Problem::Unavailable.says("the store took too long"),
        };
        Kept::Failure(report, Instant::now() + FAILURE_KEPT)
    }
}
