//! Handing out jobs.

use deploycore::model::{ClaimId, Job};
use deploycore::port::BackendError;
use deploycore::port::queue::{ClaimRequest, Order, transition};
use sqlx::sqlite::SqliteConnection;

use super::{row, turns};
use crate::columns::Columns;
use crate::columns::job_columns;
use crate::sqlite::database::{Moment, failed};
use crate::stored;

/// What a claim gives.
pub(super) struct Claimed {
    pub(super) jobs: Vec<Job>,
    /// False for a repeated call.
    pub(super) is_new: bool,
}

/// What a claim gives that changes nothing: a repeated one, one while claiming is paused, one when no job is ready. `None`
/// where only a write can tell.
pub(super) async fn settled(moment: &mut Moment, request: &ClaimRequest) -> Result<Option<Claimed>, BackendError> {
    if is_known(moment.connection(), request.claim).await? {
        let jobs = held(moment.connection(), request.claim).await?;
        return Ok(Some(Claimed { jobs, is_new: false }));
    }
    let nothing_to_do = is_paused(moment.connection()).await? || !is_any_ready(moment).await?;
    Ok(nothing_to_do.then(|| Claimed { jobs: Vec::new(), is_new: true }))
}

/// Hands out jobs; in a write transaction in which [`end_delays`] left none.
pub(super) async fn claim(moment: &mut Moment, request: &ClaimRequest) -> Result<Claimed, BackendError> {
    if let Some(claimed) = settled(moment, request).await? {
        return Ok(claimed);
    }
    let now = moment.now;
    let mut jobs = claimable(moment.connection(), request.limit).await?;
    for job in &mut jobs {
        let before = job.clone();
        let attempt = transition::claim(job, request, now);
        row::update(moment.connection(), &before, job, now).await?;
        row::start_attempt(moment.connection(), &attempt).await?;
    }
    Ok(Claimed { jobs, is_new: true })
}

async fn is_known(connection: &mut SqliteConnection, claim: ClaimId) -> Result<bool, BackendError> {
    const KNOWN: &str = "SELECT 1 FROM attempts WHERE claim_id = ?1 LIMIT 1";
    let row = sqlx::query(KNOWN).bind(claim.to_string()).fetch_optional(connection).await.map_err(failed)?;
    Ok(row.is_some())
}

/// The jobs whose current lease is of this claim, in the order of claims.
async fn held(connection: &mut SqliteConnection, claim: ClaimId) -> Result<Vec<Job>, BackendError> {
    const HELD: &str = concat!(
        "SELECT ",
        job_columns!(),
        " FROM attempts a CROSS JOIN jobs j ON j.id = a.job AND j.epoch = a.epoch
          WHERE a.claim_id = ?1 AND j.claim_id = ?1 AND j.status = 'RUNNING'
          ORDER BY j.priority DESC, j.turn, j.created_at, j.id"
    );
    let rows = sqlx::query(HELD).bind(claim.to_string()).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).job()).collect()
}

async fn is_paused(connection: &mut SqliteConnection) -> Result<bool, BackendError> {
    const PAUSED: &str = "SELECT 1 FROM queue_settings WHERE one = 1 AND paused = 1";
    Ok(sqlx::query(PAUSED).fetch_optional(connection).await.map_err(failed)?.is_some())
}

pub(in crate::sqlite) const ANY_READY: &str = "
    SELECT EXISTS (SELECT 1 FROM jobs INDEXED BY jobs_eligible WHERE status = 'QUEUED' AND delayed = 0)
        OR EXISTS (SELECT 1 FROM jobs INDEXED BY jobs_eligible
                   WHERE status = 'QUEUED' AND delayed = 1 AND eligible_at <= ?1) AS any_ready";

/// Whether a job waits whose time has come; its key may still be full.
async fn is_any_ready(moment: &mut Moment) -> Result<bool, BackendError> {
    let now = stored::micros(moment.now);
    let row = sqlx::query(ANY_READY).bind(now).fetch_one(moment.connection()).await.map_err(failed)?;
    Columns(&row).is_set("any_ready")
}

pub(in crate::sqlite) const END_DELAYS: &str = "
    UPDATE jobs SET delayed = 0 WHERE rowid IN (
        SELECT rowid FROM jobs INDEXED BY jobs_eligible
        WHERE status = 'QUEUED' AND delayed = 1 AND eligible_at <= ?1 LIMIT ?2
    )";

/// Whether jobs still wait for [`end_delays`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delays {
    Ended,
    More,
}

/// Jobs made ready in one write transaction. Any number may become due at one instant; heartbeats must not wait for all of them.
const READY_AT_ONCE: u64 = 1000;

/// Makes jobs ready whose time has come, in a write transaction. Each job passes here at most once a delay, so the price is one look at an
/// index. The order of claims holds once the delays are [`Delays::Ended`]: the most urgent job may be the last that became due.
pub(super) async fn end_delays(moment: &mut Moment) -> Result<Delays, BackendError> {
    let turns = turns::setting(moment.connection()).await?;
    if turns.order == Order::FairShare {
        let ended = turns::join_lines(moment, turns, READY_AT_ONCE).await?;
        return Ok(if ended < READY_AT_ONCE { Delays::Ended } else { Delays::More });
    }
    let now = stored::micros(moment.now);
    let end = sqlx::query(END_DELAYS).bind(now).bind(READY_AT_ONCE as i64);
    let ended = end.execute(moment.connection()).await.map_err(failed)?.rows_affected();
    Ok(if ended < READY_AT_ONCE { Delays::Ended } else { Delays::More })
}

/// The first `limit` ready jobs in the order of claims whose keys have room for them.
///
/// It looks at `limit` jobs without a key, steps through the distinct keys that wait by index seeks, and looks at `limit` jobs of each
/// key that has room: what waits behind a full key is never walked over.
pub(in crate::sqlite) const CLAIMABLE: &str = concat!(
    "
    WITH RECURSIVE
    waiting (name) AS (
        SELECT (SELECT concurrency_key FROM jobs INDEXED BY jobs_ready_keyed
                WHERE status = 'QUEUED' AND delayed = 0 AND concurrency_key IS NOT NULL
                ORDER BY concurrency_key LIMIT 1)
        UNION ALL
        SELECT (SELECT concurrency_key FROM jobs INDEXED BY jobs_ready_keyed
                WHERE status = 'QUEUED' AND delayed = 0 AND concurrency_key > waiting.name
                ORDER BY concurrency_key LIMIT 1)
        FROM waiting WHERE waiting.name IS NOT NULL
    ),
    counted (name, room) AS MATERIALIZED (
        SELECT waiting.name,
               coalesce((SELECT max_running FROM concurrency_limits WHERE concurrency_key = waiting.name), 1)
               - (SELECT count(*) FROM jobs INDEXED BY jobs_running
                  WHERE status = 'RUNNING' AND concurrency_key = waiting.name)
        FROM waiting WHERE waiting.name IS NOT NULL
    ),
    candidate (place_in_file) AS (
        SELECT * FROM (
            SELECT rowid FROM jobs INDEXED BY jobs_ready
            WHERE status = 'QUEUED' AND delayed = 0 AND concurrency_key IS NULL
            ORDER BY priority DESC, turn, created_at, id LIMIT ?1
        )
        UNION ALL
        SELECT place_in_file FROM (
            SELECT k.rowid AS place_in_file, counted.room,
                   row_number() OVER (PARTITION BY counted.name ORDER BY k.priority DESC, k.turn, k.created_at, k.id) AS place
            FROM counted CROSS JOIN jobs k ON k.rowid IN (
                SELECT h.rowid FROM jobs h INDEXED BY jobs_ready_keyed
                WHERE h.status = 'QUEUED' AND h.delayed = 0 AND h.concurrency_key = counted.name
                ORDER BY h.priority DESC, h.turn, h.created_at, h.id LIMIT ?1
            )
            WHERE counted.room > 0
        )
        WHERE place <= room
    )
    SELECT ",
    job_columns!(),
    " FROM candidate CROSS JOIN jobs j ON j.rowid = candidate.place_in_file
      ORDER BY j.priority DESC, j.turn, j.created_at, j.id LIMIT ?1"
);

async fn claimable(connection: &mut SqliteConnection, limit: usize) -> Result<Vec<Job>, BackendError> {
    let rows = sqlx::query(CLAIMABLE).bind(limit as i64).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).job()).collect()
}

#[cfg(test)]
mod tests {
    use deploycore::model::{CommitId, NewJob, ServiceName, WorkerName};
    use deploycore::port::JobQueue;
    use deploycore::port::queue::MAX_BATCH;

    use super::*;
    use crate::sqlite::{Sqlite, queue::Queue};

    const READY: &str = "SELECT count(*) FROM jobs WHERE delayed = 0";

    #[tokio::test]
    async fn many_jobs_due_at_once_are_made_ready_bit_by_bit_and_claimed_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::open(&format!("sqlite://{}/due.db", folder.path().display())).await.unwrap();
        let queue = Queue::new(sqlite.database.clone());
        let later = "2200-01-01T00:00:00Z".parse().unwrap();
        let (service, commit) = (ServiceName::new("web").unwrap(), CommitId::new("abcdef0").unwrap());
        let job = || NewJob::new(service.clone(), commit.clone()).with_not_before(later);
        let mut jobs: Vec<_> = (0..2 * READY_AT_ONCE).map(|_| job()).collect();
        // The most urgent one becomes due last.
        jobs.push(job().with_priority(1));
        for batch in jobs.chunks(MAX_BATCH) {
            queue.enqueue(batch).await.unwrap();
        }
        let mut moment = queue.database.write().await.unwrap();
        sqlx::query("UPDATE jobs SET eligible_at = 1 + priority").execute(moment.connection()).await.unwrap();
        assert_eq!(end_delays(&mut moment).await.unwrap(), Delays::More);
        let ready: i64 = sqlx::query_scalar(READY).fetch_one(moment.connection()).await.unwrap();
        assert_eq!(ready as u64, READY_AT_ONCE);
        moment.commit().await.unwrap();

        let claim = ClaimRequest { claim: ClaimId::new(), worker: WorkerName::new("w").unwrap(), limit: 2 };
        let claimed = queue.claim(&claim).await.unwrap();
        let ids: Vec<_> = claimed.iter().map(|job| job.spec.id).collect();
        assert_eq!(ids, [jobs[jobs.len() - 1].id, jobs[0].id]);
    }
}
