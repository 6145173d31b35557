//! Seeded mutants: each breaks one invariant, which its check must catch.

mod queue;
mod store;

use std::sync::Arc;

use deploycore::memory;
use deploycore::port::{ArtifactStore, GoalStateStore, JobQueue, ReplicationLedger};

use super::check::Invariant;

/// One broken thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A queue that takes the word of a zombie.
    ZombiesComplete,
    /// A main store that says yes before it has stored.
    StoresLater,
    /// A queue whose rescue finds nothing.
    NothingIsRescued,
    /// A queue that forgets what it acknowledged.
    EnqueueIsLost,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ZombiesComplete, Self::StoresLater, Self::NothingIsRescued, Self::EnqueueIsLost];

    /// The invariant that it breaks.
    pub fn breaks(self) -> Invariant {
        match self {
            Self::ZombiesComplete => Invariant::OneEffectiveRun,
            Self::StoresLater => Invariant::StoredBeforeSucceeded,
            Self::NothingIsRescued => Invariant::EveryJobEnds,
            Self::EnqueueIsLost => Invariant::NothingIsLost,
        }
    }

    /// The queue that services see.
    pub fn queue(mutant: Option<Self>, inner: Arc<dyn JobQueue>) -> Arc<dyn JobQueue> {
        match mutant {
            Some(flaw @ (Self::ZombiesComplete | Self::NothingIsRescued | Self::EnqueueIsLost)) => {
                Arc::new(queue::Queue { inner, flaw })
            }
            _ => inner,
        }
    }

    /// The ledger that services see.
    pub fn ledger(_mutant: Option<Self>, inner: Arc<dyn ReplicationLedger>) -> Arc<dyn ReplicationLedger> {
        inner
    }

    /// The main store that services see.
    pub fn main(mutant: Option<Self>, inner: memory::Store) -> Arc<dyn ArtifactStore> {
        match mutant {
            Some(Self::StoresLater) => Arc::new(store::StoresLater { inner, later: std::sync::Mutex::default() }),
            _ => Arc::new(inner),
        }
    }

    /// The global goals that services see.
    pub fn goals(_mutant: Option<Self>, inner: memory::Goals) -> Arc<dyn GoalStateStore> {
        Arc::new(inner)
    }
}
