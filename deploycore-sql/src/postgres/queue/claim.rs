//! Handing out jobs: one statement for what nearly every claim is, a function of the schema (`migrations/postgres/0008_outcomes.sql`) for all others.

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
    let claimed = by_function(connection, request).await?;
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

async fn by_function(connection: &mut PgConnection, request: &ClaimRequest) -> Result<Claimed, BackendError> {
    const CLAIM: &str = concat!(
        "SELECT c.is_new, ",
        job_columns!(),
        " FROM deploycore.claim_4($1, $2, $3) c CROSS JOIN LATERAL (SELECT (c.job).*) j"
    );
    let query = sqlx::query(CLAIM).bind(request.claim.as_uuid()).bind(request.worker.as_str());
    let rows = query.bind(request.limit as i64).fetch_all(connection).await.map_err(failed)?;
    let is_new = rows.first().map_or(Ok(true), |row| Columns(row).is_set("is_new"))?;
    Ok(Claimed { jobs: in_order(&rows)?, is_new })
}

/// Rows of an UPDATE come in no order.
fn in_order(rows: &[PgRow]) -> Result<Vec<Job>, BackendError> {
    let mut jobs = rows.iter().map(|row| Columns(row).job()).collect::<Result<Vec<_>, _>>()?;
    jobs.sort_unstable_by_key(|job| (Reverse(job.spec.priority), job.turn, job.created_at, job.spec.id));
    Ok(jobs)
}
