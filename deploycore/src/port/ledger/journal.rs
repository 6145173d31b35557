//! What is kept of a copy that is made by parts, so that another replicator goes on where the last one stopped.

use std::collections::BTreeMap;
use std::fmt::Debug;

use async_trait::async_trait;

use super::Error;
use crate::model::CopyLease;
use crate::port::store::{PartTag, UploadId};

/// An upload under way to a region's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournaledUpload {
    /// The store's name for it.
    pub upload: UploadId,
    /// Bytes of each part but the last; fixed when the upload began.
    pub part_size: u64,
    /// The parts that the store has taken, by their index.
    pub parts: BTreeMap<u32, PartTag>,
}

/// A journal with at most one upload for each copy. Every call wants the current lease of a running attempt, so that a replicator that lost
/// its copy changes nothing.
///
/// Errors of each call: `LeaseLost`, `NotFound`; `Invalid` past the [`bounds`](super::bounds).
#[async_trait]
pub trait CopyJournal: Send + Sync + Debug {
    /// The copy's upload, whichever attempt began it.
    async fn upload(&self, lease: &CopyLease) -> Result<Option<JournaledUpload>, Error>;

    /// Notes a new upload without parts, in the place of any before.
    async fn begin(&self, lease: &CopyLease, upload: &UploadId, part_size: u64) -> Result<(), Error>;

    /// Adds parts to the upload, durably and all or none. A part that is there gets the new tag.
    ///
    /// Errors: `Invalid` also when there is no upload.
    async fn add(&self, lease: &CopyLease, parts: &[(u32, PartTag)]) -> Result<(), Error>;

    /// Forgets the upload: it is aborted. Idempotent. One that was finished goes with the copy's completion.
    async fn clear(&self, lease: &CopyLease) -> Result<(), Error>;
}
