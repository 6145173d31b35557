//! The five traits that a backend implements: small, object-safe, used as `Arc<dyn JobQueue>`.
//!
//! What they have in common:
//!
//! - **Clock.** Leases, deadlines and order follow the backend's own clock (the database's), never a caller's.
//! - **Repeating.** A call whose reply was lost may be made again with the same ids: it gives the same answer. The same id with
//!   another body is a conflict.
//! - **Cancel safety.** A future that is dropped may or may not have had its effect, as with a lost reply, but never a part of it.
//! - **Errors.** The outcomes of the domain are variants; everything else is a [`BackendError`], which says whether the same
//!   call may succeed later.

pub mod goals;
pub mod ledger;
pub mod queue;
pub mod region;
pub mod store;
pub mod swarm;

use std::fmt;

pub use goals::{GoalStateStore, GoalStateStoreExt};
pub use ledger::{ReplicationLedger, ReplicationLedgerExt};
pub use queue::{JobQueue, JobQueueExt};
pub use region::{MachineDirectory, ManifestSource, ReportSink};
pub use store::{ArtifactStore, ArtifactStoreExt};
pub use swarm::PeerSwarm;

/// A failure below the contract: the database, the disk, the network.
#[derive(Debug, thiserror::Error)]
#[error("the {backend} backend failed")]
pub struct BackendError {
    backend: &'static str,
    retryable: bool,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl BackendError {
    /// A failure after which the same call may succeed: a connection lost, a lock held, a time limit.
    pub fn retryable(backend: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { backend, retryable: true, source: source.into() }
    }

    /// A failure that stays until someone mends something: a missing table, a full disk, a refused credential.
    pub fn permanent(backend: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { backend, retryable: false, source: source.into() }
    }

    /// Which backend failed, for instance `sqlite`.
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

/// An error with all that caused it, on one line: `a: b: c`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    struct Chain<'a>(&'a (dyn std::error::Error + 'static));
    impl fmt::Display for Chain<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}", self.0)?;
            let mut next = self.0.source();
            while let Some(error) = next {
                write!(f, ": {error}")?;
                next = error.source();
            }
            Ok(())
        }
    }
    Chain(error).to_string()
}
