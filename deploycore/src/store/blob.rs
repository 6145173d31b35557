//! The [`ArtifactStore`] on any [`object_store::ObjectStore`].
//!
//! # Layout
//!
//! ```text
//! blobs/<uuid>            the bytes of one put, under a fresh key
//! manifests/<digest>      line 1: {"format":1,"blob":"<uuid>","size":N}; line 2: the manifest; both JSON
//! logs/<job>/<epoch>      the log of an attempt, until [`BlobStore::sweep_logs`] finds it too old
//! touches/<digest>        empty: written when bytes are put that are there already
//! deletions/<digest>-<uuid>   empty: a deletion of what is idle is under way
//! ```
//!
//! An artifact exists when `manifests/<digest>` does. It is written last and create-only, so that readers see all or nothing and the first
//! of two publishers stays. A blob that no manifest names is what a put left that failed, was dropped or came second;
//! [`BlobStore::sweep`] removes those. A damaged manifest is as good as none, and a put replaces it; one of a newer format is an error to
//! whoever needs it, and stays.
//!
//! # Durability
//!
//! `file://` syncs each file and each folder that names it before a call returns. Clouds are durable by their own word.

mod cloud;
mod deletion;
mod fault;
mod folder;
mod layout;
mod multipart;
mod open;
mod put;
mod read;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use futures::stream::{BoxStream, StreamExt};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};

use self::fault::{fault, io_fault, is_missing};
use self::folder::Folder;
use self::layout::{BlobKey, Header, Layout, Record};
pub use self::open::open_url;
pub use self::sweep::Swept;
use crate::model::{Digest, LogName, Manifest};
use crate::port::store::{ArtifactStore, Chunks, Deletion, Error, MAX_LOG, Multipart, Source};

/// How many artifacts' places are remembered, so that a ranged read costs one request; about 100 bytes each.
const MAX_PLACES: usize = 4096;

/// Bounds of a [`BlobStore`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlobStoreSettings {
    /// Blobs up to this size are one request; larger ones go up in parts of this size. 16 MiB by default, at least 5 MiB where the
    /// store is a cloud. Clouds take at most 10,000 parts: 16 MiB carries artifacts of up to 156 GiB.
    ///
    /// An upload by parts has parts of this size too, or of the least multiple of the artifact's pieces that is not smaller.
    pub part_size: ByteSize,
    /// Parts on their way at once, 3 by default. A put holds at most this many and one more in memory. In a local folder it holds 3 MiB,
    /// whatever these settings say.
    pub parts_in_flight: usize,
}

impl Default for BlobStoreSettings {
    /// 16 MiB, three at once: a put holds at most 64 MiB.
    fn default() -> Self {
        Self { part_size: ByteSize::mib(16), parts_in_flight: 3 }
    }
}

impl BlobStoreSettings {
    /// Sets the size of a part.
    #[must_use]
    pub fn with_part_size(mut self, size: ByteSize) -> Self {
        self.part_size = size;
        self
    }

    /// Sets how many parts are on their way at once.
    #[must_use]
    pub fn with_parts_in_flight(mut self, parts: usize) -> Self {
        self.parts_in_flight = parts;
        self
    }
}

/// The client's face for uploads by parts.
#[derive(Clone)]
struct MultipartObjects(Arc<dyn MultipartStore>);

impl fmt::Debug for MultipartObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MultipartObjects")
    }
}

/// An [`ArtifactStore`] on an object store. Many processes may use one store at the same time.
///
/// A put that fails leaves at most a blob without a manifest, a put that is dropped also an unfinished upload. On `file://` both are found by
/// [`BlobStore::sweep`]; in a cloud, unfinished uploads are ended by a lifecycle rule of the bucket.
#[derive(Debug)]
pub struct BlobStore {
    objects: Arc<dyn ObjectStore>,
    layout: Layout,
    folder: Option<Folder>,
    multipart: Option<MultipartObjects>,
    settings: BlobStoreSettings,
    /// Where artifacts lie. An entry may be stale when another process deleted the artifact and stored it again; a read notices by the
    /// missing blob.
    places: Mutex<HashMap<Digest, Header>>,
}

impl BlobStore {
    /// A store on `objects`, below `prefix`.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self::assemble(objects, prefix, None)
    }

    /// Stores by parts through `objects`, the other face of the client that the store was made with. [`open_url`] does this itself.
    #[must_use]
    pub fn with_multipart(mut self, objects: Arc<dyn MultipartStore>) -> Self {
        self.multipart = Some(MultipartObjects(objects));
        self
    }

    /// Sets the bounds.
    #[must_use]
    pub fn with_settings(mut self, settings: BlobStoreSettings) -> Self {
        self.settings = settings;
        self
    }

    fn assemble(objects: Arc<dyn ObjectStore>, prefix: Path, folder: Option<Folder>) -> Self {
        let (layout, settings) = (Layout::new(prefix), BlobStoreSettings::default());
        Self { objects, layout, folder, multipart: None, settings, places: Mutex::default() }
    }

    /// The manifest object of an artifact, read whole and checked.
    async fn record(&self, digest: &Digest) -> Result<Option<Record>, Error> {
        let bytes = match self.objects.get(&self.layout.manifest(digest)).await {
            Ok(found) => found.bytes().await.map_err(fault)?,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(fault(error)),
        };
        let record = Record::decode(&bytes, digest).map_err(|unusable| unusable.into_error(digest))?;
        self.remember(digest, record.header);
        Ok(Some(record))
    }

    /// The first line of a manifest object.
    async fn header(&self, digest: &Digest) -> Result<Option<Header>, Error> {
        let start = match self.objects.get_range(&self.layout.manifest(digest), 0..layout::MAX_HEADER).await {
            Ok(start) => start,
            Err(error) if is_missing(&error) => return Ok(None),
            // An empty object has no such range; read whole, it is told from a store that is down.
            Err(_) => return Ok(self.record(digest).await?.map(|record| record.header)),
        };
        Header::decode(&start).map(Some).map_err(|unusable| unusable.into_error(digest))
    }

    /// The size of a blob, or `None`.
    async fn blob_size(&self, key: BlobKey) -> Result<Option<u64>, Error> {
        match self.objects.head(&self.layout.blob(key)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(fault(error)),
        }
    }

    /// Removes an object; it may be gone already.
    async fn remove(&self, path: &Path) -> Result<(), Error> {
        match self.objects.delete(path).await {
            Err(error) if !is_missing(&error) => Err(fault(error)),
            _ => Ok(()),
        }
    }

    /// Makes the manifests' folder durable where that is up to this process.
    async fn sync_manifests(&self) -> Result<(), Error> {
        match &self.folder {
            Some(folder) => folder.sync_manifests().await.map_err(io_fault),
            None => Ok(()),
        }
    }

    fn remembered(&self, digest: &Digest) -> Option<Header> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(digest).copied()
    }

    fn remember(&self, digest: &Digest, header: Header) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= MAX_PLACES {
            places.clear();
        }
        places.insert(*digest, header);
    }

    fn forget(&self, digest: &Digest) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }
}

#[async_trait]
impl ArtifactStore for BlobStore {
    async fn put(&self, bytes: Source) -> Result<Manifest, Error> {
        put::put(self, bytes).await
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        Ok(self.record(digest).await?.map(|record| record.manifest))
    }

    async fn read(&self, digest: &Digest, range: std::ops::Range<u64>) -> Result<Chunks, Error> {
        read::read(self, digest, range).await
    }

    /// It reads the first line of the manifest, as audits ask for every artifact again and again: damage below that line is
    /// for [`manifest`](ArtifactStore::manifest) to find.
    async fn exists(&self, digest: &Digest) -> Result<bool, Error> {
        match self.header(digest).await {
            Ok(Some(header)) => Ok(self.blob_size(header.blob).await? == Some(header.size)),
            // A damaged manifest is as good as none: the bytes cannot be had.
            Ok(None) | Err(Error::Corrupt { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        let blob = deletion::blob_of(self, digest).await?;
        deletion::erase(self, digest, blob).await
    }

    /// A store that programs of several versions put into is no place for this: earlier ones know of no deletions, and their puts rely on
    /// what is there.
    async fn delete_idle(&self, digest: &Digest, idle: Duration) -> Result<Deletion, Error> {
        deletion::delete_idle(self, digest, idle).await
    }

    fn list(&self) -> BoxStream<'_, Result<Digest, Error>> {
        let found = self.objects.list(Some(&self.layout.manifests()));
        found
            .filter_map(|meta| async move {
                match meta {
                    Ok(meta) => Layout::digest_of(&meta.location).map(Ok),
                    Err(error) => Some(Err(fault(error))),
                }
            })
            .boxed()
    }

    async fn put_log(&self, log: &LogName, bytes: Bytes) -> Result<(), Error> {
        if bytes.len() > MAX_LOG {
            return Err(Error::Invalid(format!(
                "a log of {} bytes is larger than the limit of {MAX_LOG}",
                bytes.len()
            )));
        }
        self.objects.put(&self.layout.log(log), bytes.into()).await.map_err(fault)?;
        Ok(())
    }

    async fn log(&self, log: &LogName) -> Result<Option<Bytes>, Error> {
        match self.objects.get(&self.layout.log(log)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(fault),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(fault(error)),
        }
    }

    fn multipart(&self) -> Option<&dyn Multipart> {
        self.multipart.is_some().then_some(self as &dyn Multipart)
    }
}
