//! What can go wrong with a deploy, a rollback or the wait for machines.

use std::time::Duration;

use super::{Convergence, WaiverError};
use crate::model::{ArtifactName, Generation, GoalPosition, ServiceName};
use crate::port::{BackendError, goals, ledger};

/// What can go wrong between a request and its goal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The artifact was built for another service.
    #[error("artifact {artifact} is of service {owner}, not of {service}")]
    OtherService {
        /// The artifact.
        artifact: ArtifactName,
        /// The service that was to be deployed.
        service: ServiceName,
        /// The service that it was built for.
        owner: ServiceName,
    },
    /// The ledger refuses the artifact: it is not deployable, and the error names the missing regions, or it is unknown; or the
    /// ledger failed.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// A waiver is refused.
    #[error(transparent)]
    Waiver(#[from] WaiverError),
    /// The service has no goal.
    #[error("{service} was never deployed")]
    NeverDeployed {
        /// The service.
        service: ServiceName,
    },
    /// No earlier deploy is left in the history.
    #[error("{service} has nothing to roll back to: {current} is the oldest deploy in its history")]
    NothingToRollBackTo {
        /// The service.
        service: ServiceName,
        /// The deploy that runs now.
        current: GoalPosition,
    },
    /// The named generation is not in the history.
    #[error("{service} has no generation {wanted} in its history, which goes from {oldest} to {newest}")]
    UnknownGeneration {
        /// The service.
        service: ServiceName,
        /// What was named.
        wanted: Generation,
        /// The oldest that is kept.
        oldest: GoalPosition,
        /// The newest.
        newest: GoalPosition,
    },
    /// Another goal was written between the look and the write of a rollback to "the previous": it would undo something else now.
    #[error("{service} is at {found} now, not at {seen} any more: look again, then roll back again")]
    Superseded {
        /// The service.
        service: ServiceName,
        /// What the rollback, or the wait, was about.
        seen: GoalPosition,
        /// What is there.
        found: GoalPosition,
    },
    /// Other writers were faster each time.
    #[error("the goal of {service} was changed by others {tries} times in a row")]
    Contended {
        /// The service.
        service: ServiceName,
        /// How often this writer tried.
        tries: u32,
    },
    /// The goal-state store refuses the goal, or failed.
    #[error(transparent)]
    Goals(#[from] goals::Error),
    /// Some machines took the goal up and went back to what they ran before; none is still on its way.
    #[error("{} of {} machines reverted {}", .0.reverted(), .0.live(), .0.position)]
    Reverted(Box<Convergence>),
    /// Some machines are not there yet, and the time is over.
    #[error("{} of {} machines run {} after {limit:?}", .last.converged(), .last.live(), .last.position)]
    NotConverged {
        /// How long was waited.
        limit: Duration,
        /// Where they were at last.
        last: Box<Convergence>,
    },
    /// A call took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// A directory of machines failed.
    #[error(transparent)]
    Directory(#[from] BackendError),
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Ledger(ledger::Error::NotDeployable { .. }) | Self::Contended { .. } | Self::Late(_) => true,
            Self::Ledger(error) => error.is_retryable(),
            Self::Goals(error) => error.is_retryable(),
            Self::Directory(error) => error.is_retryable(),
            _ => false,
        }
    }
}
