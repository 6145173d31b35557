//! The store of artifacts and build logs.

pub mod multipart;

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};

use super::BackendError;
use crate::model::{Digest, LogName, Manifest};

pub use multipart::{Multipart, PartTag, UploadId};

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store does not have the artifact.
    #[error("artifact {digest} is not in the store")]
    NotFound {
        /// Its digest.
        digest: Digest,
    },
    /// What is stored does not hash to its name: it was changed or cut after it was written.
    #[error("artifact {digest} is damaged in the store: {detail}")]
    Corrupt {
        /// The digest it should have.
        digest: Digest,
        /// What is wrong.
        detail: String,
    },
    /// The store does not know the upload: it was finished, aborted or has expired, or it was another store's.
    #[error("the store knows no upload {upload}")]
    NoUpload {
        /// Its id.
        upload: UploadId,
    },
    /// The bytes to store could not be read.
    #[error("the bytes to store could not be read")]
    Source(#[source] io::Error),
    /// The request breaks a bound of the contract.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// Anything below the contract.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Backend(error) if error.is_retryable())
    }
}

/// What an [idle deletion](ArtifactStore::delete_idle) left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// Nothing: it was deleted, or not there.
    Gone,
    /// The artifact, which was put within the time.
    InUse,
}

/// Bytes on their way into a store, in chunks of any size.
pub type Source = BoxStream<'static, io::Result<Bytes>>;
/// Bytes on their way out of a store, in chunks of at most [`MAX_CHUNK`].
pub type Chunks = BoxStream<'static, Result<Bytes, Error>>;

/// The largest chunk that a store yields, 1 MiB.
pub const MAX_CHUNK: usize = 1 << 20;
/// The largest build log, 16 MiB.
pub const MAX_LOG: usize = 16 << 20;

/// A store of artifacts, named by their digest, and of build logs. See the [module](crate::port) for repeating and cancel safety.
#[async_trait]
pub trait ArtifactStore: Send + Sync + Debug + 'static {
    /// Stores an artifact of unknown length and gives its manifest, in one pass and bounded memory.
    ///
    /// Readers see all or nothing: the artifact exists under its digest only when all its bytes and its manifest are durable. A
    /// second put of the same bytes succeeds and keeps the first. A put that fails or is dropped leaves nothing that a reader
    /// could see; what it leaves for the store to clean is the backend's to say.
    ///
    /// Errors: `Source` when the stream fails; `Invalid` past [`MAX_ARTIFACT_SIZE`](crate::model::MAX_ARTIFACT_SIZE).
    async fn put(&self, bytes: Source) -> Result<Manifest, Error>;

    /// The manifest of a stored artifact, checked to merge to its digest, or `None`. It does not read the artifact's bytes.
    ///
    /// Errors: `Corrupt`.
    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error>;

    /// Streams the bytes of `range`, which lies within the artifact. Not verified: whoever uses them verifies them against the
    /// manifest.
    ///
    /// Errors: `NotFound`; `Invalid` when the range leaves the artifact.
    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Chunks, Error>;

    /// Whether the artifact's manifest and blob are there and the blob has the right size; it does not read the bytes.
    async fn exists(&self, digest: &Digest) -> Result<bool, Error>;

    /// Deletes an artifact: first the manifest, then the bytes. Idempotent. Whoever deletes makes sure that nobody puts the same
    /// bytes at the same time.
    async fn delete(&self, digest: &Digest) -> Result<(), Error>;

    /// Deletes an artifact that nobody has put for `idle`, by the store's clock, and says what is there then. Unlike
    /// [`delete`](Self::delete) it may run beside puts of the same bytes, and many times at once: a put that has succeeded leaves an artifact
    /// that no deletion of an `idle` longer than its calls take removes. A put may wait for the end of a deletion. Idempotent; cut off, it
    /// leaves the artifact as it was, or gone, or for the next put or deletion to take for gone.
    ///
    /// By default a store refuses: nothing is ever collected from it then.
    async fn delete_idle(&self, digest: &Digest, idle: Duration) -> Result<Deletion, Error> {
        let _ = (digest, idle);
        Err(BackendError::permanent("artifact store", "this store cannot delete beside puts").into())
    }

    /// The digests of all stored artifacts, in no order.
    fn list(&self) -> BoxStream<'_, Result<Digest, Error>>;

    /// Stores the log of an attempt, at most [`MAX_LOG`] bytes; the last write wins.
    async fn put_log(&self, log: &LogName, bytes: Bytes) -> Result<(), Error>;

    /// The log of an attempt, or `None`.
    async fn log(&self, log: &LogName) -> Result<Option<Bytes>, Error>;

    /// Storing by parts, where the store can: a replicator then copies in parallel, and goes on after a restart. `None` by default: copies
    /// are whole puts.
    fn multipart(&self) -> Option<&dyn Multipart> {
        None
    }
}

/// Convenience on any [`ArtifactStore`].
#[async_trait]
pub trait ArtifactStoreExt: ArtifactStore {
    /// Stores bytes that are at hand whole.
    async fn put_bytes(&self, bytes: Bytes) -> Result<Manifest, Error> {
        self.put(futures::stream::iter([Ok(bytes)]).boxed()).await
    }

    /// The manifest; `NotFound` instead of `None`.
    async fn require_manifest(&self, digest: &Digest) -> Result<Manifest, Error> {
        self.manifest(digest).await?.ok_or(Error::NotFound { digest: *digest })
    }

    /// The bytes of `range` as one buffer.
    async fn read_all(&self, digest: &Digest, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let (chunks, mut bytes) = (self.read(digest, range).await?, Vec::new());
        futures::pin_mut!(chunks);
        while let Some(chunk) = chunks.try_next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Reads all bytes of an artifact, a piece at a time, and compares them with its manifest.
    ///
    /// Errors: `Corrupt` naming the first bad piece; `NotFound`.
    async fn verify(&self, digest: &Digest) -> Result<Manifest, Error> {
        let manifest = self.require_manifest(digest).await?;
        for index in 0..manifest.piece_count() {
            let range = manifest.piece_range(index).expect("the index is below the count");
            let bytes = self.read_all(digest, range).await?;
            if !manifest.verify_piece(index, &bytes) {
                let detail = format!("piece {index} of {} does not verify", manifest.piece_count());
                return Err(Error::Corrupt { digest: *digest, detail });
            }
        }
        Ok(manifest)
    }
}

impl<T: ArtifactStore + ?Sized> ArtifactStoreExt for T {}
