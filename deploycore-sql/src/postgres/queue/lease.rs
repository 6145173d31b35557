//! What is done under a lease, and to one: heartbeats, releases, cancels and rescues.

use std::collections::HashMap;
use std::time::Duration;

use deploycore::model::{AttemptOutcome, Epoch, Failure, Job, JobId, Lease};
use deploycore::port::BackendError;
use deploycore::port::queue::transition::{self, Standing};
use deploycore::port::queue::{Beat, Error, Fate, RescueRequest, Rescued, bounds};
use sqlx::postgres::PgConnection;
use sqlx::types::Uuid;

use super::row::{self, Ended};
use crate::columns::Columns;
use crate::columns::job_columns;
use crate::postgres::database::{self, Database, failed};
use crate::stored;

/// The status is asked for in words that lead to no index: that of what runs would be walked over for each call, with the entries that claims left.
const BEAT: &str = "
    WITH clock AS MATERIALIZED (SELECT deploycore.instant() AS now)
    UPDATE deploycore.jobs j SET last_heartbeat = greatest(j.last_heartbeat, clock.now)
    FROM clock CROSS JOIN unnest($1::uuid[], $2::bigint[], $3::uuid[]) AS b (job, epoch, claim)
    WHERE j.id = b.job AND coalesce(j.status = 'RUNNING', false) AND j.epoch = b.epoch AND j.claim_id = b.claim
    RETURNING j.id, j.epoch, j.claim_id, j.cancel_requested, j.deadline, clock.now";

/// One statement, on a connection that no other call has. Each lease is guarded by epoch and claim, and nothing indexed is written. It
/// decides as [`transition::heartbeat`], which a test compares it with.
pub(super) async fn heartbeat(database: &Database, leases: &[Lease]) -> Result<Vec<Beat>, Error> {
    // In one order, so that two batches do not wait for each other.
    let mut sorted = leases.to_vec();
    sorted.sort_unstable_by_key(|lease| lease.job);
    let jobs: Vec<Uuid> = sorted.iter().map(|lease| lease.job.as_uuid()).collect();
    let epochs: Vec<i64> = sorted.iter().map(epoch).collect();
    let claims: Vec<Uuid> = sorted.iter().map(|lease| lease.claim.as_uuid()).collect();
    let mut borrowed = database.borrow_for_beat().await?;
    let query = sqlx::query(BEAT).bind(jobs).bind(epochs).bind(claims);
    let rows = query.fetch_all(borrowed.connection()).await.map_err(failed)?;
    borrowed.give_back();
    let mut held = HashMap::with_capacity(rows.len());
    for row in &rows {
        let columns = Columns(row);
        let lease = Lease {
            job: columns.job_id("id")?,
            claim: columns.claim_id("claim_id")?,
            epoch: Epoch::new(columns.number("epoch")?),
        };
        let time_left = stored::between(columns.integer("now")?, columns.integer("deadline")?);
        held.insert(lease, Beat::Held { cancel_requested: columns.is_set("cancel_requested")?, time_left });
    }
    Ok(leases.iter().map(|lease| held.get(lease).copied().unwrap_or(Beat::Lost)).collect())
}

/// No lease that was handed out has an epoch beyond what a column holds; -1 matches none.
pub(super) fn epoch(lease: &Lease) -> i64 {
    i64::try_from(lease.epoch.get()).unwrap_or(-1)
}

pub(super) async fn release(database: &Database, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
    let mut moment = database.begin().await?;
    let released = give_back(moment.connection(), lease, Failure::cut(reason), as_stored(delay)).await;
    moment.end(released).await
}

async fn give_back(connection: &mut PgConnection, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
    let before = lock(connection, lease.job).await?;
    let outcome = AttemptOutcome::Released { reason: reason.to_owned() };
    if standing(connection, &before, lease, &outcome).await? == Standing::Repeated {
        return Ok(transition::released(&before, lease.epoch));
    }
    let now = database::now(connection).await?;
    let mut job = before.clone();
    let fate = transition::release(&mut job, reason, delay, now);
    row::end(connection, &mut [Ended { before, after: job, outcome }], now).await?;
    Ok(fate)
}

pub(super) async fn cancel(database: &Database, id: JobId) -> Result<Job, Error> {
    let mut moment = database.begin().await?;
    let cancelled = ask_to_end(moment.connection(), id).await;
    moment.end(cancelled).await
}

async fn ask_to_end(connection: &mut PgConnection, id: JobId) -> Result<Job, Error> {
    let before = lock(connection, id).await?;
    let now = database::now(connection).await?;
    let mut job = before.clone();
    transition::cancel(&mut job, now);
    if job != before {
        row::update(connection, &mut [(&before, &mut job)], now).await?;
    }
    Ok(job)
}

/// What a rescue took back.
pub(super) struct Taken {
    pub(super) jobs: Vec<Rescued>,
    /// How many of them were silent; the others were out of time.
    pub(super) lost: usize,
}

pub(super) async fn rescue(database: &Database, request: &RescueRequest) -> Result<Taken, Error> {
    let request =
        RescueRequest { backoff: as_stored(request.backoff), backoff_max: as_stored(request.backoff_max), ..*request };
    let mut moment = database.begin().await?;
    let taken = take_back(moment.connection(), &request).await;
    Ok(moment.end(taken).await?)
}

/// It walks over as many rows as builds run. A job that another call holds is left to that: it beats, ends or is rescued there.
async fn take_back(connection: &mut PgConnection, request: &RescueRequest) -> Result<Taken, BackendError> {
    const OVERDUE: &str = concat!(
        "WITH clock AS MATERIALIZED (SELECT deploycore.instant() AS now)
         SELECT clock.now, ",
        job_columns!(),
        " FROM deploycore.jobs j CROSS JOIN clock
          WHERE j.status = 'RUNNING' AND (j.deadline <= clock.now OR j.last_heartbeat <= clock.now - $1)
          ORDER BY j.last_heartbeat, j.id LIMIT $2 FOR UPDATE OF j SKIP LOCKED"
    );
    let query = sqlx::query(OVERDUE).bind(stored::micros_of(request.lost_after)).bind(request.limit as i64);
    let rows = query.fetch_all(&mut *connection).await.map_err(failed)?;
    let mut taken = Taken { jobs: Vec::with_capacity(rows.len()), lost: 0 };
    let Some(first) = rows.first() else {
        return Ok(taken);
    };
    let now = Columns(first).time("now")?;
    let mut ended = Vec::with_capacity(rows.len());
    for row in &rows {
        let before = Columns(row).job()?;
        let mut job = before.clone();
        let Some((rescued, outcome)) = transition::rescue(&mut job, request, now) else {
            continue;
        };
        taken.lost += usize::from(outcome == AttemptOutcome::LeaseLost);
        taken.jobs.push(rescued);
        ended.push(Ended { before, after: job, outcome });
    }
    row::end(connection, &mut ended, now).await?;
    Ok(taken)
}

/// See [`transition::standing`]; the history is asked only when the lease is not the current one.
async fn standing(
    connection: &mut PgConnection,
    job: &Job,
    lease: &Lease,
    outcome: &AttemptOutcome,
) -> Result<Standing, Error> {
    let is_current = job.running.as_ref().is_some_and(|running| running.lease == *lease);
    let attempt = if is_current { None } else { row::attempt(connection, lease).await? };
    transition::standing(job, attempt.as_ref(), lease, outcome)
}

async fn lock(connection: &mut PgConnection, job: JobId) -> Result<Job, Error> {
    row::lock(connection, job).await?.ok_or(Error::NotFound { job })
}

/// A delay cut as instants are stored, so that an answer and a later look agree.
fn as_stored(delay: Duration) -> Duration {
    Duration::from_micros(stored::micros_of(bounds::cut_delay(delay)) as u64)
}

#[cfg(test)]
mod tests {
    use deploycore::model::{ClaimId, Lease, NewJob};
    use deploycore::port::JobQueue as _;
    use deploycore::port::queue::ClaimRequest;

    use super::super::bed;
    use super::super::complete::{SUCCEED, SUCCEED_ALL};
    use super::{BEAT, heartbeat};

    /// The index of what runs lies by claims: a heartbeat of one job walked over all that ran, and a completion over all of its claim.
    #[tokio::test]
    async fn what_is_done_under_a_lease_does_not_look_at_what_else_runs() {
        let (postgres, _database, _connection) = bed::open().await;
        let queue = postgres.queue();
        let job = || NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap());
        queue.enqueue(&(0..1_000).map(|_| job()).collect::<Vec<_>>()).await.unwrap();
        let request = ClaimRequest { claim: ClaimId::new(), worker: "w".parse().unwrap(), limit: 1_000 };
        let jobs = queue.claim(&request).await.unwrap();
        let lease = |at: usize| jobs[at].running.as_ref().unwrap().lease;
        heartbeat(&postgres.database, &[lease(500)]).await.unwrap();
        let mut own = postgres.database.borrow().await.unwrap();
        let under = |at: usize, [open, close]: [&str; 2]| {
            let Lease { job, epoch, claim } = lease(at);
            [job.to_string(), epoch.to_string(), claim.to_string()].map(|part| format!("'{open}{part}{close}'"))
        };
        let end = |of: [String; 3], [open, close]: [&str; 2]| {
            let values = ["a", "d", "1", "true", "1", "1"].map(|value| format!("'{open}{value}{close}'"));
            of.into_iter().chain(values).collect::<Vec<_>>()
        };
        let (one, array) = (["", ""], ["{", "}"]);
        let beaten = bed::pages(own.connection(), BEAT, &under(500, array)).await;
        let ended = bed::pages(own.connection(), SUCCEED, &end(under(500, one), one)).await;
        let all_ended = bed::pages(own.connection(), SUCCEED_ALL, &end(under(501, array), array)).await;
        assert!(beaten < 20 && ended < 40 && all_ended < 40, "{beaten}, {ended} and {all_ended} pages");
    }
}
