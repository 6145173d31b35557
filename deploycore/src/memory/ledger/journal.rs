//! The journal of uploads in memory.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{Entry, Ledger};
use crate::model::CopyLease;
use crate::port::ledger::{CopyJournal, Error, JournaledUpload, bounds, transition};
use crate::port::store::{PartTag, UploadId};

impl Ledger {
    /// Looks at or changes the uploads of the artifact of a lease that is the current one.
    fn with_uploads<T>(&self, lease: &CopyLease, work: impl FnOnce(&mut Entry) -> T) -> Result<T, Error> {
        let (mut artifacts, _) = self.locked();
        let not_found = || Error::NotFound { artifact: lease.artifact.clone() };
        let entry = artifacts.entries.get_mut(&lease.artifact).ok_or_else(not_found)?;
        transition::journal(entry.copies.get(&lease.region).ok_or_else(not_found)?, lease)?;
        Ok(work(entry))
    }
}

#[async_trait]
impl CopyJournal for Ledger {
    async fn upload(&self, lease: &CopyLease) -> Result<Option<JournaledUpload>, Error> {
        self.with_uploads(lease, |entry| entry.uploads.get(&lease.region).cloned())
    }

    async fn begin(&self, lease: &CopyLease, upload: &UploadId, part_size: u64) -> Result<(), Error> {
        bounds::check_upload(upload, part_size)?;
        let upload = JournaledUpload { upload: upload.clone(), part_size, parts: BTreeMap::new() };
        self.with_uploads(lease, |entry| drop(entry.uploads.insert(lease.region.clone(), upload)))
    }

    async fn add(&self, lease: &CopyLease, parts: &[(u32, PartTag)]) -> Result<(), Error> {
        bounds::check_parts(parts)?;
        self.with_uploads(lease, |entry| {
            let upload = entry.uploads.get_mut(&lease.region).ok_or_else(|| transition::no_upload(lease))?;
            upload.parts.extend(parts.iter().cloned());
            Ok(())
        })?
    }

    async fn clear(&self, lease: &CopyLease) -> Result<(), Error> {
        self.with_uploads(lease, |entry| drop(entry.uploads.remove(&lease.region)))
    }
}
