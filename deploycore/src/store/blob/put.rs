//! Storing: bytes to a blob under a fresh key, then the manifest that makes them an artifact.

use bytes::{Bytes, BytesMut};
use futures::stream::StreamExt;
use object_store::path::Path;
use object_store::{Error as ObjectError, MultipartUpload, ObjectStoreExt, PutMode, PutPayload};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::fault::{fault, permanent, retryable};
use super::layout::{BlobKey, Record};
use super::{BlobStore, deletion};
use crate::model::{MAX_ARTIFACT_SIZE, Manifest, ManifestHasher};
use crate::port::store::{Error, MAX_CHUNK, Source};

/// A file grows by writes of this size: no more of an artifact need be held for it.
const FOLDER_PART: usize = MAX_CHUNK;
const FOLDER_PARTS_IN_FLIGHT: usize = 2;

pub(super) async fn put(store: &BlobStore, source: Source) -> Result<Manifest, Error> {
    let blob = BlobKey::fresh();
    let path = store.layout.blob(blob);
    let manifest = match upload(store, &path, source).await {
        Ok(manifest) => manifest,
        Err(error) => {
            // Nothing names the blob yet, so nothing is lost if a write whose reply was lost left one.
            discard(store, &path).await;
            return Err(error);
        }
    };
    publish(store, Record::new(blob, manifest)).await
}

/// Writes the blob, durably, and hashes it on the way. On an error nothing of it stays but what the store below could not take back.
async fn upload(store: &BlobStore, path: &Path, source: Source) -> Result<Manifest, Error> {
    let mut upload = Upload::new(store, path);
    match feed(&mut upload, source).await {
        Ok(manifest) => upload.finish().await.map(|()| manifest),
        Err(error) => {
            upload.abort().await;
            Err(error)
        }
    }
}

async fn feed(upload: &mut Upload<'_>, mut source: Source) -> Result<Manifest, Error> {
    let mut hasher = ManifestHasher::new();
    while let Some(chunk) = source.next().await {
        // A chunk may have any size; hashing a bounded span at a time keeps the reactor's other tasks alive.
        for span in chunk.map_err(Error::Source)?.chunks(MAX_CHUNK) {
            if hasher.size() + span.len() as u64 > MAX_ARTIFACT_SIZE {
                return Err(Error::Invalid(format!(
                    "the artifact is larger than the limit of {MAX_ARTIFACT_SIZE} bytes"
                )));
            }
            hasher.update(span);
            upload.write(span).await?;
            tokio::task::yield_now().await;
        }
    }
    Ok(hasher.finish())
}

/// One object while its parts are gathered and sent.
struct Upload<'a> {
    store: &'a BlobStore,
    path: &'a Path,
    part_size: usize,
    parts_in_flight: usize,
    /// The part under way.
    part: BytesMut,
    /// Set once there is more than one part.
    parts: Option<Parts>,
    /// Bytes taken so far.
    size: u64,
}

impl<'a> Upload<'a> {
    fn new(store: &'a BlobStore, path: &'a Path) -> Self {
        let (part_size, parts_in_flight) = if store.folder.is_some() {
            (FOLDER_PART, FOLDER_PARTS_IN_FLIGHT)
        } else {
            let part_size = usize::try_from(store.settings.part_size.as_u64()).unwrap_or(usize::MAX).max(1);
            (part_size, store.settings.parts_in_flight.max(1))
        };
        Self { store, path, part_size, parts_in_flight, part: BytesMut::new(), parts: None, size: 0 }
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            // The part is sent only when a further byte comes: the last one may be the only one.
            if self.part.len() == self.part_size {
                self.send_part().await?;
            }
            let room = (self.part_size - self.part.len()).min(bytes.len());
            self.part.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
        }
        Ok(())
    }

    async fn send_part(&mut self) -> Result<(), Error> {
        let parts = match &mut self.parts {
            Some(parts) => parts,
            none => {
                let upload = self.store.objects.put_multipart(self.path).await.map_err(fault)?;
                none.insert(Parts { upload, under_way: JoinSet::new() })
            }
        };
        parts.wait_until_fewer_than(self.parts_in_flight).await?;
        let next = BytesMut::with_capacity(self.part_size);
        parts.put(std::mem::replace(&mut self.part, next).freeze());
        Ok(())
    }

    async fn finish(mut self) -> Result<(), Error> {
        let last = std::mem::take(&mut self.part).freeze();
        let Some(parts) = &mut self.parts else {
            return self.store.objects.put(self.path, PutPayload::from(last)).await.map(drop).map_err(fault);
        };
        parts.put(last);
        let finished = match parts.wait_until_fewer_than(1).await {
            Ok(()) => match parts.upload.complete().await {
                Err(error) if !is_whole(self.store, self.path, self.size).await => Err(fault(error)),
                _ => Ok(()),
            },
            Err(error) => Err(error),
        };
        if finished.is_err() {
            self.abort().await;
        }
        finished
    }

    async fn abort(self) {
        let Some(Parts { mut upload, mut under_way }) = self.parts else {
            return;
        };
        under_way.shutdown().await;
        if let Err(error) = upload.abort().await {
            debug!(path = %self.path, %error, "an unfinished upload is left to the sweep");
        }
    }
}

/// Whether an object is there although its upload did not say so: a reply may have been lost. A folder loses none, and what it could not complete may
/// be there without being durable.
async fn is_whole(store: &BlobStore, path: &Path, size: u64) -> bool {
    store.folder.is_none() && store.objects.head(path).await.is_ok_and(|meta| meta.size == size)
}

/// An upload by parts. Where it cannot be completed, `object_store`'s own driver of one tells why the end of the upload failed too, if it did, and
/// not why it could not be completed.
struct Parts {
    upload: Box<dyn MultipartUpload>,
    under_way: JoinSet<object_store::Result<()>>,
}

impl Parts {
    fn put(&mut self, part: Bytes) {
        self.under_way.spawn(self.upload.put_part(PutPayload::from(part)));
    }

    async fn wait_until_fewer_than(&mut self, most: usize) -> Result<(), Error> {
        while self.under_way.len() >= most
            && let Some(stored) = self.under_way.join_next().await
        {
            stored.map_err(permanent)?.map_err(fault)?;
        }
        Ok(())
    }
}

/// Writes the manifest, create-only, and gives it back once the artifact is there, whoever stored it, and no deletion under way may take it
/// away. Until then our blob is kept.
pub(super) async fn publish(store: &BlobStore, record: Record) -> Result<Manifest, Error> {
    let (digest, began) = (record.manifest.digest(), Instant::now());
    loop {
        let placed = place(store, record.clone()).await?;
        if placed == Placed::Another {
            deletion::touch(store, &digest).await?;
        }
        if deletion::is_safe(store, &digest).await? {
            if placed == Placed::Another {
                discard(store, &store.layout.blob(record.header.blob)).await;
            }
            return Ok(record.manifest);
        }
        deletion::wait(began).await?;
    }
}

/// Whose blob the manifest names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placed {
    Ours,
    Another,
    /// It was deleted just now.
    Nothing,
}

/// Writes the manifest, create-only, unless there is one whose blob is whole.
async fn place(store: &BlobStore, record: Record) -> Result<Placed, Error> {
    let path = store.layout.manifest(&record.manifest.digest());
    let bytes = record.encode().map_err(permanent)?;
    match store.objects.put_opts(&path, bytes.into(), PutMode::Create.into()).await {
        Ok(_) => confirm(store, record).await,
        Err(ObjectError::AlreadyExists { .. } | ObjectError::Precondition { .. }) => settle(store, record).await,
        Err(error) => {
            // The write may have taken place although its reply was lost. The blob stays unless another's manifest is seen: ours may
            // yet appear and name it.
            let error = fault(error);
            match store.record(&record.manifest.digest()).await {
                Ok(Some(_)) => settle(store, record).await,
                _ => Err(error),
            }
        }
    }
}

/// Our manifest is there. A put that stalled for longer than the age of a sweep may have lost its blob before it got here.
async fn confirm(store: &BlobStore, record: Record) -> Result<Placed, Error> {
    if store.blob_size(record.header.blob).await? == Some(record.header.size) {
        store.remember(&record.manifest.digest(), record.header);
        return Ok(Placed::Ours);
    }
    // Another put may have written its own in place of ours, which nobody could read.
    let found = store.record(&record.manifest.digest()).await;
    if found.is_ok_and(|found| found.is_some_and(|found| found.header.blob == record.header.blob)) {
        store.remove(&store.layout.manifest(&record.manifest.digest())).await?;
    }
    Err(retryable("the blob was swept before its manifest was written: the put stalled for too long"))
}

/// A manifest is there already: ours after a lost reply, another put's, or a broken one.
async fn settle(store: &BlobStore, record: Record) -> Result<Placed, Error> {
    let digest = record.manifest.digest();
    let found = match store.record(&digest).await {
        Ok(Some(found)) => Some(found),
        Ok(None) => return Ok(Placed::Nothing),
        Err(Error::Corrupt { detail, .. }) => {
            warn!(%digest, detail, "a damaged manifest is replaced");
            None
        }
        Err(error) => return Err(error),
    };
    if let Some(found) = found {
        if found.header.blob == record.header.blob {
            // The write that failed may have failed to sync.
            store.sync_manifests().await?;
            return confirm(store, record).await;
        }
        if store.blob_size(found.header.blob).await? == Some(found.header.size) {
            // Whoever wrote it may not have come to sync it yet.
            store.sync_manifests().await?;
            return Ok(Placed::Another);
        }
        warn!(%digest, "a manifest whose blob is gone or cut is replaced");
    }
    // Nobody can read the artifact as it is, so nobody loses by this; of two that replace it at once the last stays, both are whole.
    let bytes = record.encode().map_err(permanent)?;
    store.objects.put(&store.layout.manifest(&digest), bytes.into()).await.map_err(fault)?;
    confirm(store, record).await
}

/// Removes a blob that nothing names; if that fails, the sweep will.
pub(super) async fn discard(store: &BlobStore, path: &Path) {
    if let Err(error) = store.remove(path).await {
        debug!(%path, error = %crate::port::chain(&error), "a blob without manifest is left to the sweep");
    }
}
