//! Storing by parts: a blob under a fresh key, whose parts come in any order, then the manifest.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::PutPayload;
use object_store::multipart::{MultipartStore, PartId};
use serde::{Deserialize, Serialize};

use super::BlobStore;
use super::fault::{fault, is_no_upload, is_without_parts, permanent};
use super::layout::{BlobKey, Record};
use super::put::{discard, publish};
use crate::model::{Manifest, piece_size_for};
use crate::port::store::multipart::MAX_PARTS;
use crate::port::store::{Error, Multipart, PartTag, UploadId};

/// What an [`UploadId`] of this store says, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Upload {
    /// The key that the blob will have.
    blob: BlobKey,
    /// The client's name for the upload.
    id: String,
}

impl Upload {
    fn encode(&self) -> Result<UploadId, Error> {
        serde_json::to_string(self).map(UploadId::new).map_err(permanent)
    }

    fn decode(id: &UploadId) -> Result<Self, Error> {
        serde_json::from_str(id.as_str()).map_err(|_| Error::NoUpload { upload: id.clone() })
    }
}

impl BlobStore {
    fn uploads(&self) -> Result<Arc<dyn MultipartStore>, Error> {
        let uploads = self.multipart.as_ref().map(|uploads| uploads.0.clone());
        uploads.ok_or_else(|| permanent("this store does not store by parts"))
    }
}

#[async_trait]
impl Multipart for BlobStore {
    fn part_size(&self, size: u64) -> u64 {
        let least = self.settings.part_size.as_u64().max(size.div_ceil(u64::from(MAX_PARTS)));
        least.next_multiple_of(piece_size_for(size))
    }

    async fn begin(&self) -> Result<UploadId, Error> {
        let blob = BlobKey::fresh();
        let id = self.uploads()?.create_multipart(&self.layout.blob(blob)).await.map_err(fault)?;
        Upload { blob, id }.encode()
    }

    async fn put_part(&self, upload: &UploadId, index: u32, part: Vec<Bytes>) -> Result<PartTag, Error> {
        let Upload { blob, id } = Upload::decode(upload)?;
        let payload = PutPayload::from_iter(part);
        match self.uploads()?.put_part(&self.layout.blob(blob), &id, index as usize, payload).await {
            Ok(part) => Ok(PartTag::new(part.content_id)),
            Err(error) if is_no_upload(&error) => Err(Error::NoUpload { upload: upload.clone() }),
            Err(error) => Err(fault(error)),
        }
    }

    async fn finish(&self, upload: &UploadId, manifest: &Manifest, tags: Vec<PartTag>) -> Result<Manifest, Error> {
        let Upload { blob, id } = Upload::decode(upload)?;
        let path = self.layout.blob(blob);
        let parts = tags.into_iter().map(|tag| PartId { content_id: tag.as_str().to_owned() }).collect();
        if let Err(error) = self.uploads()?.complete_multipart(&path, &id, parts).await {
            // It may have been completed before: by a call whose reply was lost, or by another replicator.
            match self.blob_size(blob).await? {
                Some(size) if size == manifest.size() => {}
                _ if is_no_upload(&error) || is_without_parts(&error) => {
                    return Err(Error::NoUpload { upload: upload.clone() });
                }
                _ => return Err(fault(error)),
            }
        }
        match self.blob_size(blob).await? {
            Some(size) if size == manifest.size() => publish(self, Record::new(blob, manifest.clone())).await,
            found => {
                discard(self, &path).await;
                let found = found.unwrap_or_default();
                let detail = format!("its parts make {found} bytes instead of {}", manifest.size());
                Err(Error::Corrupt { digest: manifest.digest(), detail })
            }
        }
    }

    async fn abort(&self, upload: &UploadId) -> Result<(), Error> {
        let Ok(Upload { blob, id }) = Upload::decode(upload) else {
            return Ok(());
        };
        match self.uploads()?.abort_multipart(&self.layout.blob(blob), &id).await {
            Err(error) if !is_no_upload(&error) => Err(fault(error)),
            _ => Ok(()),
        }
    }
}
