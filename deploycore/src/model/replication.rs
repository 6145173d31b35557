//! What the ledger says of an artifact in a region.

pub(super) mod figures;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    ArtifactName, ArtifactRef, ClaimId, Epoch, JobId, PinHolder, RegionName, ServiceName, Timestamp, Tombstone,
};

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

/// How soon a copy is made. The more urgent is claimed first, and in a region's lane the others give way to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyPriority {
    /// In its turn, as every build.
    #[default]
    Normal,
    /// Something is broken, and this mends it.
    Emergency,
    /// A rollback waits for it: what is wanted back ran well before.
    Rollback,
}

impl CopyPriority {
    /// From the least urgent to the most.
    pub const ALL: [Self; 3] = [Self::Normal, Self::Emergency, Self::Rollback];

    /// The word that stands in JSON and on a command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Emergency => "emergency",
            Self::Rollback => "rollback",
        }
    }

    /// Its place in the order of claims, as it stands in SQL: 0 goes first.
    pub const fn precedence(self) -> i16 {
        match self {
            Self::Rollback => 0,
            Self::Emergency => 1,
            Self::Normal => 2,
        }
    }

    /// The priority with this place.
    pub fn of_precedence(precedence: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.precedence() == precedence)
    }
}

impl fmt::Display for CopyPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CopyPriority {
    type Err = UnknownPriority;

    fn from_str(word: &str) -> Result<Self, UnknownPriority> {
        let known = Self::ALL.into_iter().find(|priority| priority.as_str() == word);
        known.ok_or_else(|| UnknownPriority(word.to_owned()))
    }
}

/// A word that is no priority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no priority: normal, emergency or rollback")]
pub struct UnknownPriority(String);

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
    /// How soon its copies are made.
    #[serde(default)]
    pub priority: CopyPriority,
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
    /// How urgent it is.
    pub priority: CopyPriority,
}

/// A copy as the ledger knows it. Every instant is of the database's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Where it stands.
    pub state: CopyState,
    /// How urgent it is: as it was registered, or raised since.
    pub priority: CopyPriority,
    /// Since when it is wanted: its registration, or the last reopening.
    pub pending_since: Timestamp,
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
    /// When it was pinned last, also if that pin is gone.
    #[serde(default)]
    pub last_pinned_at: Option<Timestamp>,
    /// Set while it is collected, and from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<Tombstone>,
}

impl ArtifactStatus {
    /// The required regions that do not have it yet, with where they stand; none of them = deployable.
    pub fn missing(&self) -> BTreeMap<RegionName, CopyState> {
        let incomplete = self.copies.iter().filter(|(_, copy)| copy.state != CopyState::Complete);
        incomplete.map(|(region, copy)| (region.clone(), copy.state)).collect()
    }

    /// Complete in each required region, and not collected.
    pub fn is_deployable(&self) -> bool {
        self.tombstone.is_none() && !self.copies.is_empty() && self.missing().is_empty()
    }

    /// The last time that it was needed for all that the ledger knows: its registration, or its last pin.
    pub fn last_needed_at(&self) -> Timestamp {
        self.last_pinned_at.map_or(self.registered_at, |pinned| pinned.max(self.registered_at))
    }
}
