//! Where the ready jobs begin, as far as a process knows: a claim that starts there does not walk over what was claimed before.
//!
//! A claimed job leaves its entry in the index of ready jobs until the server cleans it, which it may not do while any transaction is open that
//! began before. The dead entries stand where each claim begins to look. A [`Floor`] leads past them and passes over no job: it is learnt
//! in one snapshot, as the first job that this shows as ready and the oldest transaction that it does not know the end of. A job before the floor
//! became ready in that transaction or a later one, and is found by the index of these.

use std::cmp::Reverse;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deploycore::model::{Job, JobId, Timestamp};
use deploycore::port::BackendError;
use sqlx::postgres::PgConnection;
use tokio::time::Instant;

use super::Query;
use crate::columns::Columns;
use crate::postgres::database::failed;
use crate::stored;

/// Jobs that are claimed before the floor is learnt anew.
const JOBS_OF_FLOOR: usize = 32;
/// Jobs that are claimed from the beginning before it is asked whether a floor is worth its price.
const JOBS_WITHOUT_FLOOR: usize = 256;
/// A floor that the server finds sooner is not worth its price, which is a fifth of a claim.
const WORTH: Duration = Duration::from_micros(200);
/// A floor that is found no sooner than this, and no sooner than from the beginning, is given up: what became ready since `since` is too much.
const DEAR: Duration = Duration::from_millis(2);
/// How long a floor is used at most, and how long claims go without one that was given up. Programs of earlier versions do not note when a job comes back: it is passed over no longer than this.
const AGE_OF_FLOOR: Duration = Duration::from_secs(10);
/// How long claims are made by the function after one that had to be, for instance while jobs with a concurrency key are ready.
const FUNCTION_FIRST: Duration = Duration::from_secs(1);

/// No ready job stands before this place but those that became ready in transaction `since` or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Floor {
    pub(super) priority: i16,
    pub(super) turn: u64,
    pub(super) created_at: Timestamp,
    pub(super) job: JobId,
    /// The number of a transaction.
    pub(super) since: i64,
}

/// What the claims of a process know.
#[derive(Debug)]
pub(super) struct Floors {
    state: Mutex<State>,
    worth: Duration,
    dear: Duration,
}

#[derive(Debug, Default)]
struct State {
    floor: Option<Kept>,
    claimed: usize,
    function_until: Option<Instant>,
    /// None is learnt before.
    learnt_after: Option<Instant>,
}

/// A floor that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) floor: Floor,
    until: Instant,
    /// How long the server looked for the first floor of this line, from the beginning.
    from_beginning: Duration,
}

impl Default for Floors {
    fn default() -> Self {
        Self { state: Mutex::default(), worth: WORTH, dear: DEAR }
    }
}

/// How to claim.
pub(super) enum Way {
    /// From this floor, or from the beginning.
    Plain(Option<Kept>),
    /// By the function, which can do all.
    Function,
}

impl Floors {
    pub(super) fn way(&self) -> Way {
        let (mut state, now) = (self.lock(), Instant::now());
        if state.function_until.is_some_and(|until| now < until) {
            return Way::Function;
        }
        if state.floor.is_some_and(|kept| kept.until <= now) {
            // One that was worth it until now most likely is still: it is asked about soon.
            (state.floor, state.claimed) = (None, JOBS_WITHOUT_FLOOR - JOBS_OF_FLOOR);
        }
        Way::Plain(state.floor)
    }

    /// A claim that was not plain got jobs: those soon after it hardly will be plain.
    pub(super) fn note_function(&self) {
        self.lock().function_until = Some(Instant::now() + FUNCTION_FIRST);
    }

    /// Whether it is time to learn a floor, after a claim from `floor` that gave these jobs.
    pub(super) fn is_due(&self, floor: Option<&Floor>, jobs: &[Job]) -> bool {
        let mut state = self.lock();
        if state.learnt_after.is_some_and(|after| Instant::now() < after) {
            return false;
        }
        state.claimed += jobs.len();
        let is_before = |job: &Job| floor.is_some_and(|floor| floor.is_after(job));
        let most = if floor.is_some() { JOBS_OF_FLOOR } else { JOBS_WITHOUT_FLOOR };
        let is_due = state.claimed >= most || jobs.iter().any(is_before);
        if is_due {
            state.claimed = 0;
        }
        is_due
    }

    /// Takes what [`Floor::learn`] gave. A floor that came from another keeps the age of that one: it knows no more of what passed it.
    pub(super) fn put(&self, from: Option<&Kept>, floor: Option<Floor>, walk: Duration) {
        let (mut state, now) = (self.lock(), Instant::now());
        let line = match from {
            // A transaction that has written is open for long, and much became ready since: a claim looks through all of that.
            Some(kept) if walk >= self.dear.max(kept.from_beginning) => {
                state.learnt_after = Some(now + AGE_OF_FLOOR);
                None
            }
            Some(kept) => Some((kept.until, kept.from_beginning)),
            None => (walk >= self.worth).then_some((now + AGE_OF_FLOOR, walk)),
        };
        state.floor = floor.zip(line).map(|(floor, (until, from_beginning))| Kept { floor, until, from_beginning });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Floor {
    fn is_after(&self, job: &Job) -> bool {
        let place = (Reverse(self.priority), self.turn, self.created_at, self.job);
        (Reverse(job.spec.priority), job.turn, job.created_at, job.spec.id) < place
    }

    /// The floor as of now, `None` when no job is ready, and how long the server looked for it. It looks from an earlier one on, so it walks
    /// no further than a claim.
    pub(super) async fn learn(
        connection: &mut PgConnection,
        from: Option<&Self>,
    ) -> Result<(Option<Self>, Duration), BackendError> {
        let row = match from {
            Some(floor) => floor.bind(sqlx::query(LEARN_ON)).fetch_optional(connection).await,
            None => sqlx::query(LEARN).fetch_optional(connection).await,
        };
        let Some(row) = row.map_err(failed)? else {
            return Ok((None, Duration::ZERO));
        };
        let columns = Columns(&row);
        let floor = Self {
            priority: columns.number("priority")?,
            turn: columns.number("turn")?,
            created_at: columns.time("created_at")?,
            job: columns.job_id("id")?,
            since: columns.integer("since")?,
        };
        Ok((Some(floor), stored::between(0, columns.integer("walk")?)))
    }

    /// Binds a floor to the next five parameters of a statement.
    pub(super) fn bind<'q>(&self, query: Query<'q>) -> Query<'q> {
        let query = query.bind(i64::from(self.priority)).bind(self.turn as i64).bind(stored::micros(self.created_at));
        query.bind(self.job.as_uuid()).bind(self.since)
    }
}

/// Those that are ready, whatever their place.
macro_rules! ready {
    () => {
        "status = 'QUEUED' AND NOT delayed AND concurrency_key IS NULL"
    };
}
pub(super) use ready;

/// Ready jobs in their order, from a floor on: what came before it lately, then its own priority, then the lower ones. `$more` ends each of the
/// three looks, the other parameters are the places of the floor's fields. The first look asks in the words of the index `jobs_ready_since` and
/// has an order that no index gives: the server shall walk along no other.
macro_rules! from_floor {
    ($columns:literal, $more:literal, $priority:literal, $turn:literal, $created_at:literal, $job:literal, $since:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM (SELECT ",
            $columns,
            " FROM deploycore.jobs WHERE coalesce(",
            ready!(),
            ", false) AND ready_xid >= ",
            $since,
            " AND (priority > ",
            $priority,
            " OR (priority = ",
            $priority,
            " AND (turn, created_at, id) < (",
            $turn,
            ", ",
            $created_at,
            ", ",
            $job,
            "))) ORDER BY -priority, turn, created_at, id ",
            $more,
            ") late
             UNION ALL
             SELECT ",
            $columns,
            " FROM (SELECT ",
            $columns,
            " FROM deploycore.jobs WHERE ",
            ready!(),
            " AND priority = ",
            $priority,
            " AND (turn, created_at, id) >= (",
            $turn,
            ", ",
            $created_at,
            ", ",
            $job,
            ") ORDER BY turn, created_at, id ",
            $more,
            ") here
             UNION ALL
             SELECT ",
            $columns,
            " FROM (SELECT ",
            $columns,
            " FROM deploycore.jobs WHERE ",
            ready!(),
            " AND priority < ",
            $priority,
            " ORDER BY priority DESC, turn, created_at, id ",
            $more,
            ") lower"
        )
    };
}
pub(super) use from_floor;

/// What is told of the first job. The clock is read right before the walk to it and right after: a server whose processors are all taken needs
/// longer to begin than to walk. `OFFSET 0` keeps the two apart for the planner, so that the walk comes second.
macro_rules! learn {
    ($($first:tt)+) => {
        concat!(
            "WITH begun AS MATERIALIZED (SELECT clock_timestamp() AS at)
             SELECT f.priority, f.turn, f.created_at, f.id, pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS since,
                    (extract(epoch FROM clock_timestamp() - begun.at) * 1000000)::bigint AS walk
             FROM begun CROSS JOIN LATERAL (
                 SELECT * FROM (",
            $($first)+,
            " LIMIT 1) first WHERE begun.at IS NOT NULL OFFSET 0) f"
        )
    };
}

/// Locked or not: who holds a job may leave it.
const LEARN: &str = learn!(concat!(
    "SELECT priority, turn, created_at, id FROM deploycore.jobs WHERE ",
    ready!(),
    " ORDER BY priority DESC, turn, created_at, id"
));
const LEARN_ON: &str = learn!(from_floor!("priority, turn, created_at, id", "LIMIT 1", "$1", "$2", "$3", "$4", "$5"));

#[cfg(test)]
mod tests;
