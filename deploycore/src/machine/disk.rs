//! What an agent keeps on disk.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;

use async_trait::async_trait;

use super::journal::{Journal, Links};
use crate::model::{ArtifactRef, Digest, Manifest, ServiceName};

#[cfg(feature = "process")]
mod local;

#[cfg(feature = "process")]
pub(super) use local::journals;
#[cfg(feature = "process")]
pub use local::{LocalDisk, LocalDiskSettings};

/// What can go wrong with a machine's disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data folder is of another version of the layout.
    #[error(
        "{} has layout version {found}, this program reads version {wanted}: use the program that made it, or an empty folder",
        path.display()
    )]
    Version {
        /// The folder.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What this program reads.
        wanted: u32,
    },
    /// Another agent uses the data folder.
    #[error("{} is in use by another agent: give each agent a folder of its own", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A journal cannot be read, so nobody knows what runs.
    #[error("the journal {} is not readable ({detail}): stop the service, then remove its folder", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// There is not enough room for an artifact, those under way counted.
    #[error("{} has {free} bytes free for {digest}, which needs {needed}", path.display())]
    NoSpace {
        /// The artifact.
        digest: Digest,
        /// The folder.
        path: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that are free and not promised to another fetch.
        free: u64,
    },
    /// A blob is not on disk.
    #[error("the blob of {digest} is not on disk")]
    Missing {
        /// The artifact.
        digest: Digest,
    },
    /// The fetched bytes are not the artifact.
    #[error("the bytes fetched for {digest} are something else: {detail}")]
    Corrupt {
        /// The artifact.
        digest: Digest,
        /// What is wrong.
        detail: String,
    },
    /// The system refused.
    #[error("{} could not be used", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What a start finds.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Each service with its links.
    pub services: Vec<(Journal, Links)>,
    /// The blobs that are whole.
    pub blobs: BTreeSet<Digest>,
}

/// Room for an artifact. Dropping it gives back what was not written.
#[must_use = "dropping it gives the room back"]
pub struct Room {
    /// The file to fetch to. Its folder exists.
    pub part: PathBuf,
    _guard: Box<dyn Any + Send + Sync>,
}

impl Room {
    /// Room at `part`, given back when `guard` is dropped.
    pub fn new(part: PathBuf, guard: impl Any + Send + Sync) -> Self {
        Self { part, _guard: Box::new(guard) }
    }
}

impl Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("part", &self.part).finish_non_exhaustive()
    }
}

/// A machine's disk: blobs by digest, and for each service a journal and two links.
///
/// A method that returned has made its change durable. A future that is dropped, or a crash, leaves the change made or not
/// made, never half, save that [`switch`](Self::switch) may have moved one link of the two.
#[async_trait]
pub trait Disk: Send + Sync + Debug + 'static {
    /// What is there.
    ///
    /// Errors: `Journal`, `Io`.
    async fn load(&self) -> Result<Loaded, Error>;

    /// Replaces the journal of a service, the first time with its folder.
    async fn write_journal(&self, journal: &Journal) -> Result<(), Error>;

    /// Makes the links of a service name these blobs: each in one step, `previous` first.
    ///
    /// Errors: `Missing`, `Io`.
    async fn switch(&self, service: &ServiceName, links: Links) -> Result<(), Error>;

    /// Promises room for an artifact that is to be fetched. What an earlier fetch left at the same place counts as written.
    ///
    /// Errors: `NoSpace`, `Io`.
    async fn reserve(&self, artifact: &ArtifactRef) -> Result<Room, Error>;

    /// Reads the fetched file whole, compares it with the manifest, and only then names it as a blob, executable. The file that was
    /// fetched to stays usable under its own name until [`remove`](Self::remove): the swarm serves from it. Idempotent.
    ///
    /// Errors: `Corrupt`, `Missing`, `Io`.
    async fn stage(&self, manifest: &Manifest) -> Result<(), Error>;

    /// Whether the blob is on disk, whole.
    async fn holds(&self, digest: &Digest) -> Result<bool, Error>;

    /// The manifest of a staged blob, if it was kept: with it a blob is offered to the swarm while the region is away.
    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error>;

    /// All artifacts of which there are bytes, whole or not.
    async fn artifacts(&self) -> Result<BTreeSet<Digest>, Error>;

    /// Removes all bytes of an artifact. Idempotent. The caller makes sure that nobody uses them.
    async fn remove(&self, digest: &Digest) -> Result<(), Error>;

    /// Where a blob is.
    fn blob(&self, digest: &Digest) -> PathBuf;

    /// The folder of a service.
    fn folder(&self, service: &ServiceName) -> PathBuf;
}
