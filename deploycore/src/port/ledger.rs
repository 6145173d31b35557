//! The ledger of copies: which region has which artifact.
//!
//! What follows from each call is decided by pure functions that every backend shares: [`bounds`] and [`transition`].

pub mod bounds;
pub mod journal;
pub mod tombstones;
pub mod transition;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use journal::{CopyJournal, JournaledUpload};
pub use tombstones::{Idle, Tombstones};

use super::BackendError;
use crate::model::{
    ArtifactName, ArtifactStatus, ClaimId, CopyLease, CopyPriority, CopyState, CopyTask, Digest, FiguresRequest,
    NewArtifact, PinHolder, RegionName, ReplicationFigures, ServiceName, Timestamp, Tombstone,
};

/// What can go wrong with a ledger.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No artifact has this name.
    #[error("artifact {artifact} is not in the ledger: it is not built, or not registered yet")]
    NotFound {
        /// The name.
        artifact: ArtifactName,
    },
    /// The name is registered with another digest, size, service, job or set of regions.
    #[error("artifact {artifact} is registered with another body: a name stands for one artifact")]
    Conflict {
        /// The name.
        artifact: ArtifactName,
    },
    /// The copy lease is not the current one.
    #[error("the lease to copy {artifact} to {region} is lost: stop the copy")]
    LeaseLost {
        /// The artifact.
        artifact: ArtifactName,
        /// The region.
        region: RegionName,
    },
    /// Some required region does not have the artifact.
    #[error("artifact {artifact} is not deployable: {} still missing", regions(.missing))]
    NotDeployable {
        /// The artifact.
        artifact: ArtifactName,
        /// Each region that does not have it, with where it stands.
        missing: BTreeMap<RegionName, CopyState>,
    },
    /// The artifact is collected, or is about to be: it cannot be deployed any more.
    #[error("artifact {artifact} is {} since {}: {}; build it anew", .tombstone.stage.as_str(), .tombstone.since, .tombstone.reason)]
    Collected {
        /// The artifact.
        artifact: ArtifactName,
        /// When and why.
        tombstone: Tombstone,
    },
    /// The bytes are in use: they are not collected.
    #[error("the artifacts with digest {digest} are not collected: {why}")]
    InUse {
        /// Of the bytes.
        digest: Digest,
        /// By what.
        why: String,
    },
    /// The same bytes, of another artifact, are being deleted: the registration may be repeated when that is over.
    #[error("artifact {artifact} cannot be registered yet: bytes with its digest {digest} are being deleted")]
    BeingDeleted {
        /// The artifact.
        artifact: ArtifactName,
        /// Of the bytes.
        digest: Digest,
    },
    /// The request breaks a bound of the contract.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// Anything below the contract.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

fn regions(missing: &BTreeMap<RegionName, CopyState>) -> String {
    let names: Vec<_> = missing.iter().map(|(region, state)| format!("{region} ({state})")).collect();
    names.join(", ")
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Backend(error) => error.is_retryable(),
            Self::BeingDeleted { .. } => true,
            _ => false,
        }
    }
}

/// The most items in one call and in one page.
pub const MAX_BATCH: usize = 1_000;

/// What a registration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// Rows were added.
    Created,
    /// The same artifact was registered before.
    Repeated,
}

/// A replicator's wish for copies to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRequest {
    /// Chosen by the caller: a repeated call with the same id gives the same tasks and never further ones.
    pub claim: ClaimId,
    /// The region to copy to.
    pub region: RegionName,
    /// How long the lease holds without progress, by the ledger's clock; at most [`bounds::MAX_LEASE`].
    pub lease: Duration,
    /// At most this many, 1 to [`MAX_BATCH`].
    pub limit: usize,
    /// Only copies that are at least so urgent.
    pub least: CopyPriority,
}

/// What follows a failed copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyRetry {
    /// It stays pending and may be claimed after this delay.
    After(Duration),
    /// It is failed until someone [reopens](ReplicationLedgerExt::reopen_failed) it.
    GiveUp,
}

/// Which artifacts a list shows; an empty filter shows all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LedgerFilter {
    /// Of this service.
    pub service: Option<ServiceName>,
    /// With a copy in this state in this region.
    pub copy: Option<(RegionName, CopyState)>,
    /// Pinned by this holder.
    pub pinned_by: Option<PinHolder>,
}

/// A place in a list of artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerCursor {
    /// Of the last artifact shown.
    pub registered_at: Timestamp,
    /// Of the last artifact shown.
    pub artifact: ArtifactName,
}

/// A page of artifacts, newest `registered_at` first, then greatest name first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerPage {
    /// The artifacts.
    pub artifacts: Vec<ArtifactStatus>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<LedgerCursor>,
}

/// The ledger of copies. See the [module](crate::port) for clocks, repeating and cancel safety.
#[async_trait]
pub trait ReplicationLedger: Send + Sync + Debug + 'static {
    /// Adds an artifact with a pending copy for each required region, durably. Idempotent.
    ///
    /// A [tombstone](Tombstones) of its digest under which nothing was deleted yet is lifted in the same transaction.
    ///
    /// Errors: `Conflict` when the name is taken by another body, or by an artifact that was collected; `BeingDeleted` while bytes with its
    /// digest are; `Invalid` when no region is required, or past the [`bounds`].
    async fn register(&self, artifact: &NewArtifact) -> Result<Registered, Error>;

    /// Those of `names` (at most [`MAX_BATCH`]) that are not in the ledger.
    async fn unregistered(&self, names: &[ArtifactName]) -> Result<BTreeSet<ArtifactName>, Error>;

    /// Takes up to `limit` pending copies of a region whose delay has passed and that no live lease holds, the most urgent first,
    /// of those the oldest artifact's, with an epoch one more than any before.
    ///
    /// Idempotent by claim id: a repeated call gives those tasks of the first call whose lease still holds, and no others. A claim is
    /// forgotten when other claims have taken over all its copies, or when it got none.
    ///
    /// A lease that ran out is still the current one until another claim or a reopening takes the copy: the work is not thrown away.
    ///
    /// Errors: `Invalid` past the [`bounds`].
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, Error>;

    /// Reports how many bytes are copied (more than the size counts as the size) and renews the lease for `extend` from now. Tells how
    /// urgent the copy is by now: someone may have raised it.
    ///
    /// Errors: `LeaseLost`, `NotFound`; `Invalid` past the [`bounds`].
    async fn progress(&self, lease: &CopyLease, bytes: u64, extend: Duration) -> Result<CopyPriority, Error>;

    /// The copy is whole, verified and durable in the region's store. The journal forgets its upload in the same transaction. Repeating it
    /// under the same lease succeeds and changes nothing.
    ///
    /// Errors: `LeaseLost`, also when the attempt was reported as failed; `NotFound`.
    async fn complete(&self, lease: &CopyLease) -> Result<(), Error>;

    /// The attempt failed. Repeating it under the same lease succeeds and changes nothing. A reason or delay past the [`bounds`] is cut.
    ///
    /// Errors: `LeaseLost`, also when the attempt was reported as complete; `NotFound`.
    async fn fail(&self, lease: &CopyLease, reason: &str, retry: CopyRetry) -> Result<(), Error>;

    /// Makes each copy of an artifact at least so urgent, also one that is complete, should it be reopened; how many copies that changed.
    /// It never makes one less urgent, so it may be repeated. A collected artifact has no copies, so none changes.
    ///
    /// Errors: `NotFound`.
    async fn prioritize(&self, artifact: &ArtifactName, priority: CopyPriority) -> Result<usize, Error>;

    /// A complete copy has disappeared, or a failed one shall be tried again: it is pending again, claimable at once, its epoch one
    /// more. `seen` is the epoch at which the caller saw it; if the copy has moved on, nothing changes and the answer is `false`, also
    /// when this very call moved it and is repeated. A pending copy stays as it is, with `false`, and so does each of an artifact with a
    /// [tombstone](Tombstones). Pins stay.
    ///
    /// Errors: `NotFound`.
    async fn reopen(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        seen: crate::model::Epoch,
        reason: &str,
    ) -> Result<bool, Error>;

    /// An artifact in all its regions, or `None`.
    async fn status(&self, artifact: &ArtifactName) -> Result<Option<ArtifactStatus>, Error>;

    /// A page of at most `limit` (1 to [`MAX_BATCH`]) artifacts after `after`.
    ///
    /// Errors: `Invalid` past the [`bounds`].
    async fn list(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, Error>;

    /// How the copies to each region go, by the ledger's clock. A region of which nothing is pending, failed or lately complete is left out.
    ///
    /// It looks at each copy that is pending or failed, and at each that became complete within the window; how long the history is
    /// does not matter.
    async fn figures(&self, request: &FiguresRequest) -> Result<BTreeMap<RegionName, ReplicationFigures>, Error>;

    /// Pins an artifact if, in the same transaction, it is complete in each required region that is not `waived`; else it changes nothing.
    /// A pinned artifact is not collected. Idempotent, but checked anew each time: a holder whose pin stands is refused while a copy is
    /// missing. A waived region that the artifact does not require changes nothing, and waiving all of them waives none: see
    /// [`transition::gate`].
    ///
    /// Errors: `NotDeployable` with the missing regions; `Collected`; `NotFound`.
    async fn pin(
        &self,
        artifact: &ArtifactName,
        holder: &PinHolder,
        waived: &BTreeSet<RegionName>,
    ) -> Result<(), Error>;

    /// Takes a holder's pin away. Idempotent; an unknown artifact has no pins.
    async fn unpin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), Error>;

    /// The journal of uploads, where the ledger keeps one. `None` by default: a copy that stopped then starts over.
    fn journal(&self) -> Option<&dyn CopyJournal> {
        None
    }

    /// The tombstones, where the ledger keeps some. `None` by default: nothing is ever collected then.
    fn tombstones(&self) -> Option<&dyn Tombstones> {
        None
    }
}

/// Convenience on any [`ReplicationLedger`].
#[async_trait]
pub trait ReplicationLedgerExt: ReplicationLedger {
    /// The status of an artifact; `NotFound` instead of `None`.
    async fn require(&self, artifact: &ArtifactName) -> Result<ArtifactStatus, Error> {
        self.status(artifact).await?.ok_or_else(|| Error::NotFound { artifact: artifact.clone() })
    }

    /// Succeeds when the artifact is complete in each required region; otherwise the error names the missing ones, or its tombstone.
    async fn deployable(&self, artifact: &ArtifactName) -> Result<ArtifactStatus, Error> {
        let status = self.require(artifact).await?;
        transition::gate(&status, &BTreeSet::new())?;
        Ok(status)
    }

    /// Reopens each copy of an artifact that was given up, so that its region tries again; which regions. No service does this by itself:
    /// what made every attempt fail is for a person to mend first.
    ///
    /// Errors: `NotFound`.
    async fn reopen_failed(&self, artifact: &ArtifactName, reason: &str) -> Result<BTreeSet<RegionName>, Error> {
        let mut reopened = BTreeSet::new();
        for (region, copy) in self.require(artifact).await?.copies {
            if copy.state == CopyState::Failed && self.reopen(artifact, &region, copy.epoch, reason).await? {
                reopened.insert(region);
            }
        }
        Ok(reopened)
    }
}

impl<T: ReplicationLedger + ?Sized> ReplicationLedgerExt for T {}
