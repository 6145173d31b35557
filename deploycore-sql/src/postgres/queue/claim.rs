//! Handing out jobs: one statement for what nearly every claim is, a function of the schema (`migrations/postgres/0010_delays.sql`) for all others.

use std::cmp::Reverse;

use deploycore::model::Job;
use deploycore::port::BackendError;
use deploycore::port::queue::ClaimRequest;
use sqlx::postgres::{PgConnection, PgRow};
use tokio::sync::Mutex;

use super::floor::{Floor, Floors, Way, from_floor, ready};
use crate::columns::{Columns, job_columns};
use crate::postgres::database::{Database, failed};

/// A claim of so many jobs waits for others like it of this process. Side by side each passes over all that the others have locked and not yet
/// committed; one after the other none does.
const MANY: usize = 16;

/// What the claims of a process share.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pub(super) floors: Floors,
    pub(super) many: Mutex<()>,
}

/// What a claim gives.
pub(super) struct Claimed {
    pub(super) jobs: Vec<Job>,
    /// False for a repeated call.
    pub(super) is_new: bool,
}

pub(super) async fn claim(
    database: &Database,
    claims: &Claims,
    request: &ClaimRequest,
) -> Result<Claimed, BackendError> {
    let _turn = if request.limit >= MANY { Some(claims.many.lock().await) } else { None };
    let mut borrowed = database.borrow().await?;
    let claimed = claim_on(borrowed.connection(), &claims.floors, request).await?;
    borrowed.give_back();
    Ok(claimed)
}

async fn claim_on(
    connection: &mut PgConnection,
    floors: &Floors,
    request: &ClaimRequest,
) -> Result<Claimed, BackendError> {
    if let Way::Plain(kept) = floors.way() {
        let floor = kept.as_ref().map(|kept| &kept.floor);
        let jobs = plain(&mut *connection, floor, request).await?;
        if !jobs.is_empty() {
            if floors.is_due(floor, &jobs) {
                let (learnt, walk) = Floor::learn(connection, floor).await?;
                floors.put(kept.as_ref(), learnt, walk);
            }
            return Ok(Claimed { jobs, is_new: true });
        }
    }
    let claimed = in_steps(connection, request).await?;
    if !claimed.jobs.is_empty() {
        floors.note_function();
    }
    Ok(claimed)
}

/// Takes jobs as they were found, if the claim is a plain one: claim, worker and limit are parameters 1 to 3. The statement's snapshot is earlier
/// than the look of the gate, which does no harm: what was picked is looked at again when its lock is held. It decides as
/// `transition::claim`, which a test compares it with.
macro_rules! plain_claim {
    ($($picked:tt)+) => {
        concat!(
            "WITH clock AS MATERIALIZED (SELECT deploycore.instant() AS now),
             picked AS MATERIALIZED (",
            $($picked)+,
            ")
             UPDATE deploycore.jobs j SET
                 status = 'RUNNING', epoch = j.epoch + 1, attempts = j.attempts + 1, claim_id = $1, worker = $2,
                 claimed_at = clock.now, last_heartbeat = clock.now, deadline = clock.now + j.build_timeout
             FROM clock
             WHERE j.id = ANY (ARRAY(SELECT id FROM picked)) AND coalesce(j.status = 'QUEUED' AND NOT j.delayed, false)
             RETURNING ",
            job_columns!()
        )
    };
}

pub(super) const PLAIN: &str = plain_claim!(concat!(
    "SELECT id FROM deploycore.jobs WHERE (SELECT deploycore.is_plain_claim_2($1)) AND ",
    ready!(),
    " ORDER BY priority DESC, turn, created_at, id LIMIT $3 FOR UPDATE SKIP LOCKED"
));
pub(super) const PLAIN_FROM_FLOOR: &str = plain_claim!(concat!(
    "SELECT id FROM (",
    from_floor!("id", "LIMIT $3 FOR UPDATE SKIP LOCKED", "$4", "$5", "$6", "$7", "$8"),
    ") p WHERE (SELECT deploycore.is_plain_claim_2($1)) LIMIT $3"
));

/// None where there is none, and where the claim is not plain.
async fn plain(
    connection: &mut PgConnection,
    floor: Option<&Floor>,
    request: &ClaimRequest,
) -> Result<Vec<Job>, BackendError> {
    let query = sqlx::query(if floor.is_some() { PLAIN_FROM_FLOOR } else { PLAIN });
    let query = query.bind(request.claim.as_uuid()).bind(request.worker.as_str()).bind(request.limit as i64);
    let query = match floor {
        Some(floor) => floor.bind(query),
        None => query,
    };
    in_order(&query.fetch_all(connection).await.map_err(failed)?)
}

/// Any number of delays may end at one instant. Each step ends 1,000 at most and is committed by itself, so that it is work done for other claims
/// too, if this one comes to its end in time or not. After so many a claim takes the most urgent of what is ready by then.
const STEPS: usize = 50;

async fn in_steps(connection: &mut PgConnection, request: &ClaimRequest) -> Result<Claimed, BackendError> {
    for _ in 1..STEPS {
        if let Step::Claimed(claimed) = step(connection, request, Delays::First).await? {
            return Ok(claimed);
        }
    }
    match step(connection, request, Delays::MayWait).await? {
        Step::Claimed(claimed) => Ok(claimed),
        Step::MoreAreDue => Ok(Claimed { jobs: Vec::new(), is_new: true }),
    }
}

/// Whether jobs are taken while delays wait to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delays {
    First,
    MayWait,
}

enum Step {
    Claimed(Claimed),
    /// 1,000 delays ended, and more are due.
    MoreAreDue,
}

async fn step(connection: &mut PgConnection, request: &ClaimRequest, delays: Delays) -> Result<Step, BackendError> {
    const CLAIM: &str = concat!(
        "SELECT c.are_more_due, c.is_new, ",
        job_columns!(),
        " FROM deploycore.claim_5($1, $2, $3, $4) c CROSS JOIN LATERAL (SELECT (c.job).*) j"
    );
    let query = sqlx::query(CLAIM).bind(request.claim.as_uuid()).bind(request.worker.as_str());
    let query = query.bind(request.limit as i64).bind(delays == Delays::MayWait);
    let rows = query.fetch_all(connection).await.map_err(failed)?;
    let Some(first) = rows.first().map(Columns) else {
        return Ok(Step::Claimed(Claimed { jobs: Vec::new(), is_new: true }));
    };
    if first.is_set("are_more_due")? {
        return Ok(Step::MoreAreDue);
    }
    Ok(Step::Claimed(Claimed { is_new: first.is_set("is_new")?, jobs: in_order(&rows)? }))
}

/// Rows of an UPDATE come in no order.
fn in_order(rows: &[PgRow]) -> Result<Vec<Job>, BackendError> {
    let mut jobs = rows.iter().map(|row| Columns(row).job()).collect::<Result<Vec<_>, _>>()?;
    jobs.sort_unstable_by_key(|job| (Reverse(job.spec.priority), job.turn, job.created_at, job.spec.id));
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use deploycore::model::{ClaimId, JobId, NewJob, WorkerName};
    use deploycore::port::JobQueue as _;
    use deploycore::port::queue::MAX_BATCH;

    use super::super::bed;
    use super::*;
    use crate::postgres::Postgres;

    /// How many jobs each transaction made ready, the greatest first.
    const READY: &str = "
        SELECT count(*) FROM deploycore.jobs WHERE NOT delayed GROUP BY ready_xid ORDER BY 1 DESC";

    fn claim_of(limit: usize) -> ClaimRequest {
        ClaimRequest { claim: ClaimId::new(), worker: WorkerName::new("w").unwrap(), limit }
    }

    /// 2,500 jobs that are due, of which the most urgent became so last: the first and the last.
    async fn many_that_are_due(postgres: &Postgres, connection: &mut PgConnection) -> [JobId; 2] {
        let later = "2200-01-01T00:00:00Z".parse().unwrap();
        let job = || NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap()).with_not_before(later);
        let mut jobs: Vec<_> = (1..2_500).map(|_| job()).collect();
        jobs.push(job().with_priority(1));
        for batch in jobs.chunks(MAX_BATCH) {
            postgres.queue().enqueue(batch).await.unwrap();
        }
        let due = "UPDATE deploycore.jobs SET eligible_at = 1 + priority";
        sqlx::raw_sql(due).execute(connection).await.unwrap();
        [jobs[0].id, jobs[jobs.len() - 1].id]
    }

    #[tokio::test]
    async fn many_jobs_due_at_once_are_made_ready_bit_by_bit_and_claimed_in_order() {
        let (postgres, _database, mut connection) = bed::open().await;
        let [oldest, most_urgent] = many_that_are_due(&postgres, &mut connection).await;
        let claimed = postgres.queue().claim(&claim_of(2)).await.unwrap();
        let ids: Vec<_> = claimed.iter().map(|job| job.spec.id).collect();
        assert_eq!(ids, [most_urgent, oldest]);
        let ready: Vec<i64> = sqlx::query_scalar(READY).fetch_all(&mut connection).await.unwrap();
        assert_eq!(ready, [1_000, 1_000, 500]);
    }

    #[tokio::test]
    async fn a_claim_that_ended_many_delays_takes_what_is_ready() {
        let (postgres, _database, mut connection) = bed::open().await;
        let [_, most_urgent] = many_that_are_due(&postgres, &mut connection).await;
        let request = claim_of(1);
        let first = step(&mut connection, &request, Delays::First).await.unwrap();
        assert!(matches!(first, Step::MoreAreDue), "more are due, and it takes none");
        let Step::Claimed(claimed) = step(&mut connection, &request, Delays::MayWait).await.unwrap() else {
            panic!("it takes what is ready")
        };
        assert_eq!(claimed.jobs.len(), 1);
        assert_ne!(claimed.jobs[0].spec.id, most_urgent, "its delay has not ended yet");
        let ready: Vec<i64> = sqlx::query_scalar(READY).fetch_all(&mut connection).await.unwrap();
        assert_eq!(ready, [1_000, 1_000]);
        // Repeated, it gives the same and ends no delays.
        let Step::Claimed(again) = step(&mut connection, &request, Delays::First).await.unwrap() else {
            panic!("it was answered before")
        };
        assert!(!again.is_new && again.jobs == claimed.jobs, "{:?}", again.jobs);
    }
}
