//! Removing what puts left behind, and logs that are old.

use std::collections::HashMap;
use std::future::ready;
use std::time::Duration;

use futures::stream::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use tracing::info;

use super::fault::{fault, io_fault};
use super::layout::{BlobKey, Layout};
use super::{BlobStore, deletion};
use crate::model::{Timestamp, elapsed};
use crate::port::store::{ArtifactStore, Error};

/// Manifests read, or logs removed, at once.
const PARALLEL: usize = 16;

/// What a sweep removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects and unfinished files.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl BlobStore {
    /// Removes blobs that no manifest names and that are at least `min_age` old, by the store's instants and this host's clock, and in a local
    /// folder the files of unfinished writes. Idempotent; safe to run many times at once and beside puts.
    ///
    /// A put writes its manifest right after its blob, so an age of hours is ample; a day is a good choice. A put that stalls for longer
    /// between the two may lose its blob. It looks for the blob again after its manifest and fails when it is gone; what a sweep removes
    /// after that look is found missing by the next audit, as any lost copy is.
    ///
    /// It reads the first line of each manifest and holds about 50 bytes for each old blob.
    ///
    /// Errors: `Corrupt` when a manifest does not say which blob it names, `Backend` when a newer program wrote one: then no blob is
    /// removed. Files of unfinished writes, which no manifest can name, may be.
    pub async fn sweep(&self, min_age: Duration) -> Result<Swept, Error> {
        let mut swept = Swept::default();
        if let Some(folder) = &self.folder {
            (swept.objects, swept.bytes) = folder.sweep_unfinished(min_age).await.map_err(io_fault)?;
        }
        swept.objects += deletion::sweep_marks(self).await?;
        // Blobs first, manifests after: a blob whose manifest was written meanwhile is then seen as named.
        let suspects = self.old_blobs(min_age).await?;
        for (blob, size) in self.unnamed(suspects).await? {
            self.remove(&self.layout.blob(blob)).await?;
            swept.objects += 1;
            swept.bytes += size;
        }
        if swept.objects > 0 {
            info!(objects = swept.objects, bytes = swept.bytes, "leftovers of puts removed");
        }
        Ok(swept)
    }

    /// Removes the logs that were stored at least `min_age` ago, by the store's instants and this host's clock, whatever has become of their
    /// jobs. Idempotent; safe to run many times at once and beside everything else, and cancel safe: what is left is for the next. A log that
    /// two remove at once may be counted by both.
    ///
    /// It goes through the list of all logs, removes a few at once as it finds them, and holds no more than a page of the list.
    ///
    /// Errors: `Backend`. What was removed until then stays so.
    pub async fn sweep_logs(&self, min_age: Duration) -> Result<Swept, Error> {
        let now = Timestamp::now();
        let is_old =
            |meta: &ObjectMeta| self.layout.is_log(&meta.location) && elapsed(deletion::instant(meta), now) >= min_age;
        let found = self.objects.list(Some(&self.layout.logs())).map_err(fault);
        let old = found.try_filter(|meta| ready(is_old(meta)));
        let mut removals = old
            .map_ok(|meta| async move { self.remove(&meta.location).await.map(|()| meta.size) })
            .try_buffer_unordered(PARALLEL);
        let mut swept = Swept::default();
        while let Some(size) = removals.try_next().await? {
            swept.objects += 1;
            swept.bytes += size;
        }
        if let Some(folder) = &self.folder {
            folder.sweep_empty_logs().await.map_err(io_fault)?;
        }
        if swept.objects > 0 {
            info!(objects = swept.objects, bytes = swept.bytes, "old logs removed");
        }
        Ok(swept)
    }

    async fn old_blobs(&self, min_age: Duration) -> Result<HashMap<BlobKey, u64>, Error> {
        let (now, mut old) = (Timestamp::now().as_millisecond(), HashMap::new());
        let min_age = i64::try_from(min_age.as_millis()).unwrap_or(i64::MAX);
        let mut found = self.objects.list(Some(&self.layout.blobs()));
        while let Some(meta) = found.try_next().await.map_err(fault)? {
            if now.saturating_sub(meta.last_modified.timestamp_millis()) < min_age {
                continue;
            }
            if let Some(blob) = Layout::key_of(&meta.location) {
                old.insert(blob, meta.size);
            }
        }
        Ok(old)
    }

    async fn unnamed(&self, mut suspects: HashMap<BlobKey, u64>) -> Result<HashMap<BlobKey, u64>, Error> {
        if suspects.is_empty() {
            return Ok(suspects);
        }
        let mut headers =
            self.list().map(|digest| async move { self.header(&digest?).await }).buffer_unordered(PARALLEL);
        while let Some(header) = headers.try_next().await? {
            if let Some(header) = header {
                suspects.remove(&header.blob);
            }
        }
        drop(headers);
        Ok(suspects)
    }
}
