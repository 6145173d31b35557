//! Seeded mutants: each breaks one invariant, which its check must catch.

pub mod goals;
mod ledger;
mod queue;
mod store;

use std::sync::Arc;

use deploycore::memory;
use deploycore::port::{ArtifactStore, GoalStateStore, JobQueue, ReplicationLedger};

use self::goals::Flaw;
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
    /// A global store that forgets what it acknowledged.
    GoalIsLost,
    /// A ledger that says yes to a pin although a region misses the artifact.
    PinsAnything,
    /// A ledger that says yes to a pin and forgets it.
    PinsNothing,
    /// A mirror that copies older goals over newer ones, into a store that lets it.
    MirrorGoesBack,
    /// A disk that stages damaged bytes unverified.
    StagesUnverified,
    /// A disk that calls a blob whole before it was fetched.
    SwitchesEarly,
    /// A node that takes pieces from its peers unverified.
    TrustsPeers,
    /// A gate whose counts do not outlive it.
    GateForgets,
    /// An agent that does not look at newer goals.
    IgnoresNewGoals,
}

impl Mutant {
    /// The invariant that it breaks.
    pub fn breaks(self) -> Invariant {
        match self {
            Self::ZombiesComplete => Invariant::OneEffectiveRun,
            Self::StoresLater => Invariant::StoredBeforeSucceeded,
            Self::NothingIsRescued => Invariant::EveryJobEnds,
            Self::EnqueueIsLost | Self::GoalIsLost => Invariant::NothingIsLost,
            Self::PinsAnything | Self::PinsNothing => Invariant::NoEarlyDeploy,
            Self::MirrorGoesBack => Invariant::NoGoingBack,
            Self::GateForgets => Invariant::StoreReadOnce,
            Self::StagesUnverified | Self::TrustsPeers => Invariant::VerifiedBytesOnly,
            Self::SwitchesEarly => Invariant::OldOrNew,
            Self::IgnoresNewGoals => Invariant::NewestGoalWins,
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
    pub fn ledger(mutant: Option<Self>, inner: Arc<dyn ReplicationLedger>) -> Arc<dyn ReplicationLedger> {
        match mutant {
            Some(flaw @ (Self::PinsAnything | Self::PinsNothing)) => Arc::new(ledger::Ledger { inner, flaw }),
            _ => inner,
        }
    }

    /// The main store that services see.
    pub fn main(mutant: Option<Self>, inner: memory::Store) -> Arc<dyn ArtifactStore> {
        match mutant {
            Some(Self::StoresLater) => Arc::new(store::StoresLater { inner, later: std::sync::Mutex::default() }),
            _ => Arc::new(inner),
        }
    }

    /// The global goals that services see.
    pub fn goals(mutant: Option<Self>, inner: memory::Goals) -> Arc<dyn GoalStateStore> {
        match mutant {
            Some(Self::GoalIsLost) => goals::Goals::new(Arc::new(inner), Flaw::Forgets),
            _ => Arc::new(inner),
        }
    }

    /// The goals of a region that its mirror writes.
    pub fn region_goals(mutant: Option<Self>, inner: memory::Goals) -> Arc<dyn GoalStateStore> {
        match mutant {
            Some(Self::MirrorGoesBack) => goals::Goals::new(Arc::new(inner), Flaw::Agrees),
            _ => Arc::new(inner),
        }
    }

    /// The goals of a region that an agent sees.
    pub fn agent_goals(mutant: Option<Self>, inner: Arc<dyn GoalStateStore>) -> Arc<dyn GoalStateStore> {
        match mutant {
            Some(Self::IgnoresNewGoals) => goals::Goals::new(inner, Flaw::Freezes),
            _ => inner,
        }
    }
}
