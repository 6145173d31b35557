//! The swarm that moves artifacts between the machines of a region.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::BackendError;
use crate::model::{Digest, Manifest};

/// What can go wrong with a swarm.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing of this digest is seeded or fetched here.
    #[error("artifact {digest} is neither fetched nor seeded here")]
    NotFound {
        /// Its digest.
        digest: Digest,
    },
    /// The file does not hold the artifact.
    #[error("{} does not hold artifact {digest}: {detail}", path.display())]
    Corrupt {
        /// The digest it should have.
        digest: Digest,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A fetch of the same digest to another place is under way.
    #[error("artifact {digest} is being fetched to {} already", path.display())]
    Conflict {
        /// The digest.
        digest: Digest,
        /// Where the other fetch writes.
        path: PathBuf,
    },
    /// The fetch was ended by [`PeerSwarm::leave`] or the swarm was shut down; what was verified stays on disk.
    #[error("the fetch of {digest} was stopped")]
    Stopped {
        /// The digest.
        digest: Digest,
    },
    /// The file could not be written or read.
    #[error("{} could not be used", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
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

/// Which of several fetches goes first, on the machine and at those that serve it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// A share by weight.
    #[default]
    Normal,
    /// A share by weight, four times that of a normal one.
    High,
    /// Before all others: a rollback. While it can use the bandwidth, others wait.
    Rollback,
}

impl Priority {
    /// What artifacts get of a bandwidth that is too small for all of them is as their weights. That of a rollback counts among
    /// rollbacks.
    pub const fn weight(self) -> u32 {
        match self {
            Self::Normal => 1,
            Self::High | Self::Rollback => 4,
        }
    }
}

/// Limits of a machine's part in the swarm, or of one artifact's: of the fetch, and of the serving that comes with it. Both hold at once.
///
/// Over any time, as much is asked for, or sent, as a limit says, and a twentieth of a second's worth and one block (1 MiB) more at
/// the most; what others are slow to bring may come bunched. 0 lets nothing through; without a limit, as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes a second to take in.
    pub ingress: Option<u64>,
    /// Bytes a second to give out.
    pub egress: Option<u64>,
    /// Bytes a second to read from disk and to write to it, together: what is given out counts as read, what is taken in as
    /// written. Verifying what a file holds before it is fetched to, or offered, is not limited.
    pub disk: Option<u64>,
}

/// What to fetch.
#[derive(Debug, Clone)]
pub struct FetchRequest {
    /// Of what.
    pub manifest: Arc<Manifest>,
    /// The file to write. Its folder exists. While the fetch runs, the file holds verified and missing pieces side by side, and the
    /// swarm may keep a file of its own beside it (the same name with `.pieces`) from which a later fetch to the same path goes on.
    pub destination: PathBuf,
    /// Before or after others.
    pub priority: Priority,
    /// How fast.
    pub limits: Limits,
}

/// A fetch under way.
///
/// Dropping it stops the fetch; what was verified stays on disk, and the same request goes on from there.
#[must_use = "dropping a fetch stops it"]
pub struct Fetch {
    /// Where it stands; closed when the fetch has ended.
    pub progress: watch::Receiver<FetchProgress>,
    /// Resolves when every piece is verified, written and synced, or the fetch cannot go on. A lack of peers is no reason to end:
    /// the fetch waits, and its progress says for what. When it resolved well, nothing holds the file open for writing, so that it
    /// can be executed; the file may get a second name, and is served under the first until [`PeerSwarm::leave`].
    pub done: BoxFuture<'static, Result<FetchSummary, Error>>,
}

impl Debug for Fetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetch").field("progress", &*self.progress.borrow()).finish_non_exhaustive()
    }
}

/// Where a fetch stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchProgress {
    /// Pieces verified and written.
    pub pieces: u32,
    /// Bytes verified and written, those found on disk at the start included.
    pub bytes: u64,
    /// Peers connected for this artifact.
    pub peers: u32,
    /// Why nothing moves, when nothing moves.
    pub waiting_for: Option<String>,
}

/// What a completed fetch did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchSummary {
    /// Bytes taken from the region's store through its gate, in verified pieces.
    pub from_store: u64,
    /// Bytes taken from peers, in verified pieces.
    pub from_peers: u64,
    /// Bytes that were on disk already and verified.
    pub resumed: u64,
    /// Pieces that did not verify and were fetched again.
    pub bad_pieces: u32,
    /// From start to end.
    pub elapsed: Duration,
}

/// A swarm node at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmStats {
    /// Artifacts being fetched.
    pub fetching: u32,
    /// Artifacts complete and offered.
    pub seeding: u32,
    /// Connected peers.
    pub peers: u32,
    /// Bytes received in verified pieces since the start.
    pub downloaded: u64,
    /// Bytes given to peers since the start.
    pub uploaded: u64,
    /// Peers refused for bad bytes.
    pub quarantined: u32,
}

/// A machine's part in its region's swarm. See the [module](crate::port) for cancel safety.
#[async_trait]
pub trait PeerSwarm: Send + Sync + Debug + 'static {
    /// Starts to fetch an artifact into a file, serving verified pieces to peers meanwhile and after the end, until
    /// [`leave`](Self::leave).
    ///
    /// No byte is given to a peer before its piece verified. A second fetch of the same digest to the same place joins the first. If the
    /// destination holds pieces from an earlier fetch, they are verified and kept.
    ///
    /// Errors: `Conflict`, `Disk`.
    async fn fetch(&self, request: FetchRequest) -> Result<Fetch, Error>;

    /// Offers a file that holds the whole artifact. It is verified first, piece by piece. Idempotent.
    ///
    /// Errors: `Corrupt`, `Disk`.
    async fn seed(&self, manifest: Arc<Manifest>, file: PathBuf) -> Result<(), Error>;

    /// Stops fetching and offering an artifact; the file stays. Idempotent. Once it returned the file may be deleted.
    async fn leave(&self, digest: &Digest) -> Result<(), Error>;

    /// Changes how urgent an artifact is and how fast it may go, whether it is still being fetched or only offered. It holds at once, for
    /// what is not under way yet, in place of what the fetch asked for. Idempotent. A limit that was lowered or raised leaves what moved
    /// before as it was.
    ///
    /// A rollback may thus be made of a fetch under way, and the other way round; a later fetch that joins it may make it more urgent
    /// again.
    ///
    /// Errors: `NotFound` when it is neither fetched nor offered here.
    async fn adjust(&self, digest: &Digest, priority: Priority, limits: Limits) -> Result<(), Error>;

    /// Changes how fast this machine may go, all artifacts together, in place of what it was set up with. It holds at once, and until the next
    /// call or the end of this node. Idempotent.
    async fn limit(&self, limits: Limits) -> Result<(), Error>;

    /// What this node does.
    async fn stats(&self) -> Result<SwarmStats, Error>;
}
