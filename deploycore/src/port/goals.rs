//! The store of goals: what should run.

mod admission;
mod index;

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use super::BackendError;
use crate::model::{Goal, GoalPosition, Revision, ServiceName};

pub use admission::{Admission, admit};
pub use index::Index;

/// What can go wrong with a goal-state store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The write expected another revision (or none): someone else wrote first. Read again and decide again.
    #[error("the goal of {service} is at revision {found:?}, not at {expected:?}")]
    Conflict {
        /// The service.
        service: ServiceName,
        /// What the write expected; `None` for a create.
        expected: Option<Revision>,
        /// What is stored.
        found: Option<Revision>,
    },
    /// The store has a newer goal: a goal never goes back.
    #[error("{service} is at {stored}; {offered} would go back")]
    Stale {
        /// The service.
        service: ServiceName,
        /// What is stored.
        stored: GoalPosition,
        /// What was offered.
        offered: GoalPosition,
    },
    /// The store has the same position with other content: two writers believe to own one generation. Someone must look.
    #[error("{service} has another goal at {position}: one generation was written twice")]
    Equivocation {
        /// The service.
        service: ServiceName,
        /// The position with two contents.
        position: GoalPosition,
    },
    /// The changes since this revision are gone, or the store never was at it (it was restored, or it is another store): list
    /// everything and go on from the list's revision.
    #[error("the changes since revision {since} are not kept; the oldest that may be asked for is {oldest}")]
    Compacted {
        /// What was asked for.
        since: Revision,
        /// The smallest revision that may be asked for.
        oldest: Revision,
    },
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

/// The most goals in one history or page of changes.
pub const MAX_BATCH: usize = 1_000;
/// The largest goal, 64 KiB as JSON: goals travel to every machine.
pub const MAX_GOAL: usize = 64 << 10;
/// The longest span in a run specification, a week: machines add them to instants, and these end.
pub const MAX_RUN_SPAN: Duration = Duration::from_hours(7 * 24);
/// How many goals of a service a store keeps at least, the current one included.
pub const HISTORY: usize = 100;

/// A goal with the revision of this store that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The write's revision.
    pub revision: Revision,
    /// The goal.
    pub goal: Goal,
}

/// Goals at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The store's revision: changes after it are not in the list.
    pub revision: Revision,
    /// The goals, by service name.
    pub goals: Vec<Stored>,
}

/// What a conditional write expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// The service has no goal.
    Absent,
    /// Its goal was written by this revision.
    At(Revision),
}

/// Changes in the order of their revisions. A goal that changed twice may be shown once, with its newest content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Ask from here next.
    pub revision: Revision,
    /// The changed goals.
    pub goals: Vec<Stored>,
}

/// A store of goals, one per service, with a history. See the [module](crate::port) for repeating and cancel safety.
///
/// Revisions of one store grow with each write. Goals are never deleted.
#[async_trait]
pub trait GoalStateStore: Send + Sync + Debug + 'static {
    /// The goal of a service, or `None`.
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error>;

    /// The goals of all services whose name starts with `prefix`, at one instant.
    async fn list(&self, prefix: &str) -> Result<Snapshot, Error>;

    /// Writes a goal if the service stands where `expect` says and the goal's position is greater than the stored one; durable
    /// when it returns. The earlier goal joins the history.
    ///
    /// Repeating it with the goal that is stored now succeeds and gives its revision, whatever `expect` says: the reply was lost.
    ///
    /// Errors, looked for in this order (see [`admit`]): `Invalid` past [`MAX_GOAL`] or [`MAX_RUN_SPAN`], `Stale`, `Conflict`,
    /// `Equivocation`. So of two that race for one generation the slower has a conflict, and only who writes over what it has read
    /// equivocates.
    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error>;

    /// The goals of a service, the current one included, greatest position first, at most `limit` and at most
    /// [`MAX_BATCH`]; at least [`HISTORY`] are kept.
    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error>;

    /// What changed after `since`, at most [`MAX_BATCH`] goals.
    ///
    /// Errors: `Compacted`, also for a revision greater than the store's.
    async fn changes(&self, since: Revision) -> Result<Changes, Error>;

    /// Changes after `since` as they come: a hint, to be backed by a poll. The stream ends with an error when the source fails; a
    /// new watch from the last revision seen resumes it. It yields nothing twice and skips nothing within one stream.
    ///
    /// Errors, in the stream: `Compacted`.
    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>>;

    /// Forgets which goals changed before or at `through`, or all that changed so far where `through` lies ahead; goals and
    /// history stay. Idempotent.
    async fn compact(&self, through: Revision) -> Result<(), Error>;

    /// How long the store wants a reader to let pass between two polls, if it has said so: a wish of one that serves many. A reader that
    /// polls more seldom by itself stays with that.
    fn next_poll(&self) -> Option<Duration> {
        None
    }
}

/// Convenience on any [`GoalStateStore`].
#[async_trait]
pub trait GoalStateStoreExt: GoalStateStore {
    /// What changed after `since`, or everything when that is compacted.
    async fn changes_or_all(&self, since: Revision) -> Result<Changes, Error> {
        match self.changes(since).await {
            Err(Error::Compacted { .. }) => {
                let Snapshot { revision, goals } = self.list("").await?;
                Ok(Changes { revision, goals })
            }
            other => other,
        }
    }
}

impl<T: GoalStateStore + ?Sized> GoalStateStoreExt for T {}
