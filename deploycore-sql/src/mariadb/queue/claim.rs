//! Handing out jobs.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use deploycore::model::{ClaimId, ConcurrencyKey, Job, Timestamp};
use deploycore::port::BackendError;
use deploycore::port::queue::{ClaimRequest, Order, transition};
use serde::Serialize;
use sqlx::mysql::{MySqlConnection, MySqlRow};

use super::row;
use super::turns::{self, Lines};
use crate::columns::{Columns, job_columns};
use crate::mariadb::database::{self, Database, failed, instant};
use crate::mariadb::row::Hex;
use crate::stored;

/// What a claim gives.
pub(super) struct Claimed {
    pub(super) jobs: Vec<Job>,
    /// False for a repeated call.
    pub(super) is_new: bool,
}

impl Claimed {
    const NOTHING: Self = Self { jobs: Vec::new(), is_new: true };
}

/// Many workers look often and find nothing: that is one statement, which locks nothing.
pub(super) async fn claim(database: &Database, request: &ClaimRequest) -> Result<Claimed, BackendError> {
    let mut borrowed = database.borrow().await?;
    let sight = look(borrowed.connection(), request.claim).await?;
    let repeated = match sight {
        Sight::Answered => Some(held(borrowed.connection(), request.claim).await?),
        Sight::Nothing | Sight::Jobs { .. } => None,
    };
    borrowed.give_back();
    if let Some(jobs) = repeated {
        return Ok(Claimed { jobs, is_new: false });
    }
    let Sight::Jobs { are_due, have_keys } = sight else {
        return Ok(Claimed::NOTHING);
    };
    if are_due {
        while end_delays(database).await? == Delays::More {}
    }
    let mut moment = database.begin().await?;
    // What was due may have a key.
    let claimed = take_once(moment.connection(), request, have_keys || are_due).await;
    moment.end(claimed).await
}

/// A repeated call waits until the first has ended, though the first caller is gone.
async fn take_once(
    connection: &mut MySqlConnection,
    request: &ClaimRequest,
    with_keys: bool,
) -> Result<Claimed, BackendError> {
    database::hold(connection, &format!("deploycore claim {}", request.claim)).await?;
    if is_answered(connection, request.claim).await? {
        return Ok(Claimed { jobs: held(connection, request.claim).await?, is_new: false });
    }
    take(connection, request, with_keys).await
}

/// What a claim sees before it takes anything.
enum Sight {
    /// The same claim was answered before.
    Answered,
    /// No job waits whose time has come, or claiming is paused.
    Nothing,
    /// Jobs wait, of which some may be delayed and due, and some have a concurrency key.
    Jobs { are_due: bool, have_keys: bool },
}

pub(in crate::mariadb) const LOOK: &str = concat!(
    "SELECT EXISTS (SELECT 1 FROM deploycore_jobs FORCE INDEX (jobs_claim) WHERE claim_id = ?)
         OR EXISTS (SELECT 1 FROM deploycore_attempts WHERE claim_id = ?) AS is_answered,
         EXISTS (SELECT 1 FROM deploycore_queue_settings WHERE one = 1 AND paused) AS is_paused,
         EXISTS (SELECT 1 FROM deploycore_jobs FORCE INDEX (jobs_delayed)
                 WHERE delayed_until <= ",
    instant!(),
    ") AS has_due,
         EXISTS (SELECT 1 FROM deploycore_jobs FORCE INDEX (jobs_queue)
                 WHERE status = 'QUEUED' AND is_delayed = FALSE AND concurrency_key IS NULL) AS has_keyless,
         EXISTS (SELECT 1 FROM deploycore_jobs FORCE INDEX (jobs_queue)
                 WHERE status = 'QUEUED' AND is_delayed = FALSE AND concurrency_key > '') AS has_keyed"
);

async fn look(connection: &mut MySqlConnection, claim: ClaimId) -> Result<Sight, BackendError> {
    let look = sqlx::query(LOOK).bind(claim.as_uuid()).bind(claim.as_uuid());
    let row = look.fetch_one(connection).await.map_err(failed)?;
    let columns = Columns(&row);
    if columns.is_set("is_answered")? {
        return Ok(Sight::Answered);
    }
    let (are_due, have_keys) = (columns.is_set("has_due")?, columns.is_set("has_keyed")?);
    let is_any_ready = are_due || have_keys || columns.is_set("has_keyless")?;
    if columns.is_set("is_paused")? || !is_any_ready {
        return Ok(Sight::Nothing);
    }
    Ok(Sight::Jobs { are_due, have_keys })
}

/// The jobs whose current lease is of this claim, in the order of claims.
async fn held(connection: &mut MySqlConnection, claim: ClaimId) -> Result<Vec<Job>, BackendError> {
    const HELD: &str = concat!(
        "SELECT ",
        job_columns!("`"),
        " FROM deploycore_jobs j FORCE INDEX (jobs_claim)
          WHERE j.claim_id = ? AND j.status = 'RUNNING' ORDER BY j.urgency, j.turn, j.created_at, j.id"
    );
    let rows = sqlx::query(HELD).bind(claim.as_uuid()).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).job()).collect()
}

/// Waits until no other claim ends delays or takes jobs with a key, and holds them off until the end of the transaction.
async fn take_turn(connection: &mut MySqlConnection) -> Result<(), BackendError> {
    const TURN: &str = "SELECT one FROM deploycore_claim_turn WHERE one = 1 FOR UPDATE";
    sqlx::query(TURN).execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Jobs made ready in one transaction. Any number may become due at one instant; heartbeats and other calls must not wait for all of them.
const READY_AT_ONCE: usize = 1_000;

/// Whether jobs still wait for [`end_delays`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delays {
    Ended,
    More,
}

pub(in crate::mariadb) const DUE: &str = concat!(
    "SELECT id, name, priority, epoch, turn FROM deploycore_jobs FORCE INDEX (jobs_delayed)
     WHERE delayed_until <= ",
    instant!(),
    " ORDER BY delayed_until LIMIT ? FOR UPDATE SKIP LOCKED"
);

/// Makes jobs ready whose time has come, in a transaction of its own. Each job passes here at most once a delay. The order of claims holds once
/// the delays are [`Delays::Ended`]: the most urgent job may be the last that became due.
async fn end_delays(database: &Database) -> Result<Delays, BackendError> {
    let mut moment = database.begin().await?;
    let ended = end_some_delays(moment.connection()).await;
    moment.end(ended).await
}

async fn end_some_delays(connection: &mut MySqlConnection) -> Result<Delays, BackendError> {
    const END: &str = "
        UPDATE JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$.id', turn BIGINT PATH '$.turn')) n
        STRAIGHT_JOIN deploycore_jobs j ON j.id = UNHEX(n.id)
        SET j.is_delayed = FALSE, j.turn = n.turn WHERE j.status = 'QUEUED'";
    take_turn(connection).await?;
    let due = sqlx::query(DUE).bind(READY_AT_ONCE as i64);
    let rows = due.fetch_all(&mut *connection).await.map_err(failed)?;
    let due = rows.iter().map(Due::read).collect::<Result<Vec<_>, _>>()?;
    let ended = with_turns(&mut *connection, due).await?;
    sqlx::query(END).bind(stored::json(&ended)).execute(&mut *connection).await.map_err(failed)?;
    Ok(if rows.len() < READY_AT_ONCE { Delays::Ended } else { Delays::More })
}

/// A job whose time has come.
#[derive(Serialize)]
struct Due {
    id: Hex,
    turn: u64,
    /// Where it takes its turn; one that comes back has it.
    #[serde(skip)]
    line: Option<turns::Key>,
}

impl Due {
    fn read(row: &MySqlRow) -> Result<Self, BackendError> {
        let columns = Columns(row);
        let line = turns::key(&columns.parse::<String>("name")?, columns.number("priority")?);
        Ok(Self {
            id: columns.job_id("id")?.into(),
            turn: columns.number("turn")?,
            line: (columns.integer("epoch")? == 0).then_some(line),
        })
    }
}

/// Gives turns to those whose earliest start has passed.
async fn with_turns(connection: &mut MySqlConnection, mut due: Vec<Due>) -> Result<Vec<Due>, BackendError> {
    let turns = turns::setting(&mut *connection).await?;
    if turns.order == Order::Oldest {
        return Ok(due);
    }
    let mut lines = Lines::of(connection, due.iter().filter_map(|job| job.line.clone())).await?;
    for job in &mut due {
        if let Some(line) = &job.line {
            job.turn = lines.join(turns, line);
        }
    }
    Ok(due)
}

/// Takes jobs. Those with a key get a slot of it that no other running job has, which the schema holds every claim to.
async fn take(
    connection: &mut MySqlConnection,
    request: &ClaimRequest,
    with_keys: bool,
) -> Result<Claimed, BackendError> {
    let mut slots = BTreeMap::new();
    let mut jobs = Vec::new();
    if with_keys {
        // From here on no other claim changes what runs of a key; the end of an attempt only makes room.
        take_turn(connection).await?;
        for key in keys_with_room(connection, request.limit).await? {
            let keyed = of_key(connection, &key, request.limit).await?;
            if !keyed.is_empty() {
                slots.insert(key.name.clone(), free_slots(connection, &key).await?);
                jobs.extend(keyed);
            }
        }
    }
    jobs.extend(keyless(connection, request.limit).await?);
    jobs.sort_unstable_by_key(|job| (Reverse(job.spec.priority), job.turn, job.created_at, job.spec.id));
    jobs.truncate(request.limit);
    if jobs.is_empty() {
        return Ok(Claimed::NOTHING);
    }
    // What was seen above ended before this instant.
    let now = database::now(connection).await?;
    let mut rows = Vec::with_capacity(jobs.len());
    for job in &mut jobs {
        let slot = job.spec.concurrency_key.as_ref().and_then(|key| slots.get_mut(key)?.next());
        transition::claim(job, request, now);
        rows.push(Row::of(job, slot));
    }
    write(connection, request, &rows, now).await?;
    Ok(Claimed { jobs, is_new: true })
}

/// The first jobs without a concurrency key. Those that another call holds are left to that.
pub(in crate::mariadb) const KEYLESS: &str = concat!(
    "SELECT ",
    job_columns!("`"),
    " FROM deploycore_jobs j FORCE INDEX (jobs_queue)
      WHERE j.status = 'QUEUED' AND j.is_delayed = FALSE AND j.concurrency_key IS NULL
      ORDER BY j.urgency, j.turn, j.created_at, j.id LIMIT ? FOR UPDATE SKIP LOCKED"
);

async fn keyless(connection: &mut MySqlConnection, limit: usize) -> Result<Vec<Job>, BackendError> {
    let rows = sqlx::query(KEYLESS).bind(limit as i64).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).job()).collect()
}

/// A key of which a job waits and more may run.
struct Key {
    name: ConcurrencyKey,
    room: usize,
}

/// Steps through the distinct keys that wait, and looks at the first job of each: what waits behind a full key is never walked over. The first
/// `limit` keys in the order of these jobs hold all jobs that a claim of `limit` can take.
///
/// The limit that limits nothing keeps the server from merging the inner query into the outer one: MariaDB 10.11.19 does not find the columns of a merged
/// one when a statement is executed a second time.
pub(in crate::mariadb) const KEYS_WITH_ROOM: &str = "
    SELECT h.name, h.room FROM (
        SELECT k.concurrency_key AS name,
               COALESCE((SELECT l.max_running FROM deploycore_concurrency_limits l
                         WHERE l.concurrency_key = k.concurrency_key), 1)
               - (SELECT COUNT(*) FROM deploycore_jobs r FORCE INDEX (jobs_slot)
                  WHERE r.running_key = k.concurrency_key) AS room,
               (SELECT f.id FROM deploycore_jobs f FORCE INDEX (jobs_queue)
                WHERE f.status = 'QUEUED' AND f.is_delayed = FALSE AND f.concurrency_key = k.concurrency_key
                ORDER BY f.urgency, f.turn, f.created_at, f.id LIMIT 1) AS first_job
        FROM (SELECT status, is_delayed, concurrency_key FROM deploycore_jobs FORCE INDEX (jobs_queue)
              WHERE status = 'QUEUED' AND is_delayed = FALSE AND concurrency_key > ''
              GROUP BY status, is_delayed, concurrency_key) k
        LIMIT 18446744073709551615
    ) h STRAIGHT_JOIN deploycore_jobs j ON j.id = h.first_job
    WHERE h.room > 0
    ORDER BY j.urgency, j.turn, j.created_at, j.id LIMIT ?";

async fn keys_with_room(connection: &mut MySqlConnection, limit: usize) -> Result<Vec<Key>, BackendError> {
    let rows = sqlx::query(KEYS_WITH_ROOM).bind(limit as i64).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Ok(Key { name: Columns(row).parse("name")?, room: Columns(row).number("room")? })).collect()
}

pub(in crate::mariadb) const OF_KEY: &str = concat!(
    "SELECT ",
    job_columns!("`"),
    " FROM deploycore_jobs j FORCE INDEX (jobs_queue)
      WHERE j.status = 'QUEUED' AND j.is_delayed = FALSE AND j.concurrency_key = ?
      ORDER BY j.urgency, j.turn, j.created_at, j.id LIMIT ? FOR UPDATE SKIP LOCKED"
);

/// The first jobs of a key, no more than it has room for.
async fn of_key(connection: &mut MySqlConnection, key: &Key, limit: usize) -> Result<Vec<Job>, BackendError> {
    let query = sqlx::query(OF_KEY).bind(key.name.as_str()).bind(limit.min(key.room) as i64);
    let rows = query.fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).job()).collect()
}

/// The numbers that no running job of a key has, the smallest first. Claims that would pass the limit of a key, each because it does not see the
/// other, want the same number.
async fn free_slots(
    connection: &mut MySqlConnection,
    key: &Key,
) -> Result<impl Iterator<Item = i64> + use<>, BackendError> {
    const TAKEN: &str = "
        SELECT slot FROM deploycore_jobs FORCE INDEX (jobs_slot) WHERE running_key = ? ORDER BY slot";
    let taken: Vec<i64> =
        sqlx::query_scalar(TAKEN).bind(key.name.as_str()).fetch_all(connection).await.map_err(failed)?;
    Ok((1..).filter(move |slot| taken.binary_search(slot).is_err()))
}

/// A job that is taken, for the statement.
#[derive(Serialize)]
struct Row {
    id: Hex,
    epoch: u64,
    attempts: u32,
    deadline: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<i64>,
}

impl Row {
    fn of(job: &Job, slot: Option<i64>) -> Self {
        let deadline = job.running.as_ref().map(|running| stored::micros(running.deadline)).unwrap_or_default();
        Self { id: job.spec.id.into(), epoch: job.epoch.get(), attempts: job.attempts, deadline, slot }
    }
}

async fn write(
    connection: &mut MySqlConnection,
    request: &ClaimRequest,
    rows: &[Row],
    now: Timestamp,
) -> Result<(), BackendError> {
    const CLAIM: &str = "
        UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
            id CHAR(32) PATH '$.id', epoch BIGINT PATH '$.epoch',
            attempts BIGINT PATH '$.attempts', deadline BIGINT PATH '$.deadline', slot BIGINT PATH '$.slot')) n
        STRAIGHT_JOIN deploycore_jobs j ON j.id = UNHEX(n.id)
        SET j.status = 'RUNNING', j.epoch = n.epoch, j.attempts = n.attempts, j.claim_id = ?,
            j.worker = ?, j.claimed_at = ?, j.last_heartbeat = ?, j.deadline = n.deadline, j.slot = n.slot
        WHERE j.status = 'QUEUED' AND j.is_delayed = FALSE AND j.epoch = n.epoch - 1";
    let claim = sqlx::query(CLAIM).bind(stored::json(&rows)).bind(request.claim.as_uuid());
    let claim = claim.bind(request.worker.as_str()).bind(stored::micros(now)).bind(stored::micros(now));
    let claimed = claim.execute(connection).await.map_err(failed)?.rows_affected();
    row::all_were_as_locked("jobs", claimed, rows.len())
}

async fn is_answered(connection: &mut MySqlConnection, claim: ClaimId) -> Result<bool, BackendError> {
    const ANSWERED: &str = "
        SELECT EXISTS (SELECT 1 FROM deploycore_jobs FORCE INDEX (jobs_claim) WHERE claim_id = ?)
            OR EXISTS (SELECT 1 FROM deploycore_attempts WHERE claim_id = ?) AS is_answered";
    let answered = sqlx::query(ANSWERED).bind(claim.as_uuid()).bind(claim.as_uuid());
    let row = answered.fetch_one(connection).await.map_err(failed)?;
    Columns(&row).is_set("is_answered")
}

#[cfg(test)]
mod tests {
    use deploycore::model::{NewJob, WorkerName};
    use deploycore::port::JobQueue as _;
    use deploycore::port::queue::MAX_BATCH;

    use super::*;
    use crate::mariadb::MariaDb;
    use crate::mariadb::migrations::tests::server;

    #[tokio::test]
    async fn many_jobs_due_at_once_are_made_ready_bit_by_bit_and_claimed_in_order() {
        const READY: &str = "SELECT COUNT(*) FROM deploycore_jobs WHERE NOT is_delayed";
        let database = server().create_database().unwrap();
        let queue = MariaDb::open(&database.url()).await.unwrap().queue();
        let later = "2200-01-01T00:00:00Z".parse().unwrap();
        let job = || NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap()).with_not_before(later);
        let mut jobs: Vec<_> = (0..2 * READY_AT_ONCE).map(|_| job()).collect();
        // The most urgent one becomes due last.
        jobs.push(job().with_priority(1));
        for batch in jobs.chunks(MAX_BATCH) {
            queue.enqueue(batch).await.unwrap();
        }
        let mut borrowed = queue.database.borrow().await.unwrap();
        let due = "UPDATE deploycore_jobs SET eligible_at = 1 + priority";
        sqlx::raw_sql(due).execute(borrowed.connection()).await.unwrap();
        assert_eq!(end_delays(&queue.database).await.unwrap(), Delays::More);
        let ready: i64 = sqlx::query_scalar(READY).fetch_one(borrowed.connection()).await.unwrap();
        assert_eq!(ready as usize, READY_AT_ONCE);

        let claim = ClaimRequest { claim: ClaimId::new(), worker: WorkerName::new("w").unwrap(), limit: 2 };
        let claimed = queue.claim(&claim).await.unwrap();
        let ids: Vec<_> = claimed.iter().map(|job| job.spec.id).collect();
        assert_eq!(ids, [jobs[jobs.len() - 1].id, jobs[0].id]);
    }
}
