//! That an artifact is being collected, or was.

use serde::{Deserialize, Serialize};

use super::{Digest, Timestamp};

/// How far the collection of an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TombstoneStage {
    /// It is to be deleted. Nothing is yet: the tombstone may be lifted.
    Marked,
    /// Its bytes are being deleted, in one store after the other.
    Deleting,
    /// No store has its bytes for its sake.
    Deleted,
}

impl TombstoneStage {
    /// The word that stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Marked => "marked",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
        }
    }
}

/// Why an artifact cannot be deployed any more: it is collected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// How far.
    pub stage: TombstoneStage,
    /// Why, in the collector's words.
    pub reason: String,
    /// When it came to its stage, by the ledger's clock.
    pub since: Timestamp,
}

/// The tombstone of what all artifacts with one digest have in common: their bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestTombstone {
    /// Of the bytes.
    pub digest: Digest,
    /// The tombstone.
    #[serde(flatten)]
    pub tombstone: Tombstone,
}
