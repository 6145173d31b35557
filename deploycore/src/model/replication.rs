//! What the ledger says of an artifact in a region.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ArtifactName, ArtifactRef, ClaimId, Epoch, JobId, PinHolder, RegionName, ServiceName, Timestamp};

/// Where a copy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// To be copied, or being copied.
    Pending,
    /// Whole and verified in the region's store.
    Complete,
    /// Given up after many attempts; [`reopen_failed`](crate::port::ReplicationLedgerExt::reopen_failed) tries again.
    Failed,
}

impl CopyState {
    /// The word that stands in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Complete => "complete",
            Self::Failed => "failed",
        }
    }

    /// The state that a word names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Pending, Self::Complete, Self::Failed].into_iter().find(|state| state.as_str() == word)
    }
}

impl fmt::Display for CopyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What to register: an artifact in the main store and the regions that must have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewArtifact {
    /// The artifact.
    pub artifact: ArtifactRef,
    /// The service it is of.
    pub service: ServiceName,
    /// The job that made it.
    pub job: JobId,
    /// The regions that must have it before it may be deployed; at least one.
    pub required: BTreeSet<RegionName>,
}

/// The right to copy an artifact to a region.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CopyLease {
    /// What.
    pub artifact: ArtifactName,
    /// Where to.
    pub region: RegionName,
    /// The call of claim that took it.
    pub claim: ClaimId,
    /// Counts the claims and reopenings of this copy.
    pub epoch: Epoch,
}

/// A copy to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyTask {
    /// The right to make it.
    pub lease: CopyLease,
    /// What to copy.
    pub artifact: ArtifactRef,
    /// Which attempt this is, from 1.
    pub attempt: u32,
}

/// A copy as the ledger knows it. Every instant is of the database's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Where it stands.
    pub state: CopyState,
    /// Claims and reopenings so far.
    pub epoch: Epoch,
    /// Attempts since it was registered or reopened.
    pub attempts: u32,
    /// Bytes copied, as last reported; the whole size once complete, 0 again after a reopening.
    pub bytes: u64,
    /// Not claimed before this instant.
    pub eligible_at: Timestamp,
    /// When the running attempt's lease ends; `None` when none runs.
    pub leased_until: Option<Timestamp>,
    /// The last change.
    pub updated_at: Timestamp,
    /// When it became complete.
    pub completed_at: Option<Timestamp>,
    /// Why the last attempt failed, or why it was reopened.
    pub last_error: Option<String>,
}

/// An artifact in all its regions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactStatus {
    /// What was registered.
    #[serde(flatten)]
    pub registered: NewArtifact,
    /// When.
    pub registered_at: Timestamp,
    /// Each required region.
    pub copies: BTreeMap<RegionName, CopyStatus>,
    /// Who keeps it from being collected.
    pub pins: BTreeSet<PinHolder>,
}

impl ArtifactStatus {
    /// The required regions that do not have it yet, with where they stand; none of them = deployable.
    pub fn missing(&self) -> BTreeMap<RegionName, CopyState> {
        let incomplete = self.copies.iter().filter(|(_, copy)| copy.state != CopyState::Complete);
        incomplete.map(|(region, copy)| (region.clone(), copy.state)).collect()
    }

    /// Complete in each required region.
    pub fn is_deployable(&self) -> bool {
        !self.copies.is_empty() && self.missing().is_empty()
    }
}
