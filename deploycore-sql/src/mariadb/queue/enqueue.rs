//! Adding jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deploycore::model::{DedupKey, JobId, NewJob, OlderJobs};
use deploycore::port::BackendError;
use deploycore::port::queue::turn::Turns;
use deploycore::port::queue::{Enqueued, Error, Order, transition};
use serde::Serialize;
use sqlx::mysql::MySqlConnection;

use super::{row, turns};
use crate::columns::{Columns, job_columns};
use crate::mariadb::database::{self, NAME, corrupt, failed, instant, is_duplicate};
use crate::mariadb::row::Hex;
use crate::stored;

/// Whom a job gave way to may be gone by the time it is looked for; each time it is, somebody else's job has ended. Of jobs of one call that
/// stand in each other's way, one is added or answered each time.
const TRIES: usize = 10;

/// Adds jobs; in a transaction, unless it is one job that leaves the older ones alone.
pub(super) async fn enqueue(connection: &mut MySqlConnection, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
    let jobs = jobs.iter().map(as_stored).collect::<Result<Vec<_>, _>>()?;
    if jobs.iter().all(|job| job.older_jobs == OlderJobs::Keep) {
        return enqueue_all(connection, &jobs).await;
    }
    // What a job cancels hangs on who came before it.
    let mut answers = Vec::with_capacity(jobs.len());
    for job in &jobs {
        let added = enqueue_all(&mut *connection, std::slice::from_ref(job)).await?;
        if job.older_jobs == OlderJobs::CancelQueued && matches!(added[..], [Enqueued::Created { .. }]) {
            supersede(&mut *connection, job).await?;
        }
        answers.extend(added);
    }
    Ok(answers)
}

pub(in crate::mariadb) const QUEUED_OF_SERVICE: &str = concat!(
    "SELECT ",
    job_columns!("`"),
    " FROM deploycore_jobs j FORCE INDEX (jobs_queued_name)
      WHERE j.queued_name = ? AND j.id <> ? ORDER BY j.id FOR UPDATE"
);

/// Ends what is queued of the service of a job that was just added. A job that is being claimed runs when its lock is free, and is left alone.
async fn supersede(connection: &mut MySqlConnection, newer: &NewJob) -> Result<(), BackendError> {
    let query = sqlx::query(QUEUED_OF_SERVICE).bind(newer.service.as_str()).bind(newer.id.as_uuid());
    let rows = query.fetch_all(&mut *connection).await.map_err(failed)?;
    let before = rows.iter().map(|row| Columns(row).job()).collect::<Result<Vec<_>, _>>()?;
    if before.is_empty() {
        return Ok(());
    }
    let now = database::now(&mut *connection).await?;
    let mut after = before.clone();
    for job in &mut after {
        transition::supersede(job, newer.id, now);
    }
    row::update(connection, &mut before.iter().zip(&mut after).collect::<Vec<_>>(), now).await
}

/// All are added in one statement, or none: nearly always no id and no dedup key is taken. If one is, that is found out, and the others are tried
/// again. So what was added is known to be new.
async fn enqueue_all(connection: &mut MySqlConnection, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
    let mut answers: Vec<Option<Enqueued>> = vec![None; jobs.len()];
    let mut vain = 0;
    while vain < TRIES {
        let open: Vec<usize> = (0..jobs.len()).filter(|index| answers[*index].is_none()).collect();
        if open.is_empty() {
            return Ok(answers.into_iter().flatten().collect());
        }
        let before = open.len();
        let new = without_rivals(jobs, &open);
        if insert(connection, new.iter().map(|index| &jobs[*index])).await? {
            for index in new {
                answers[index] = Some(Enqueued::Created { job: jobs[index].id });
            }
        } else {
            let rivals: Vec<&NewJob> = open.iter().map(|index| &jobs[*index]).collect();
            let known = known(connection, &rivals).await?;
            let holders = holders(connection, &rivals).await?;
            for index in open {
                answers[index] = answer(&jobs[index], &known, &holders)?;
            }
        }
        let after = answers.iter().filter(|answer| answer.is_none()).count();
        vain = if after < before { 0 } else { vain + 1 };
    }
    let open = jobs.iter().zip(&answers).find(|(_, answer)| answer.is_none());
    let job = open.map(|(job, _)| job.id.to_string()).unwrap_or_default();
    Err(BackendError::retryable(NAME, format!("job {job} could neither be added nor found, {TRIES} times")).into())
}

/// The first job of each id and of each dedup key.
fn without_rivals(jobs: &[NewJob], open: &[usize]) -> Vec<usize> {
    let (mut ids, mut keys) = (BTreeSet::new(), BTreeSet::new());
    let mut first = Vec::with_capacity(open.len());
    for index in open {
        let job = &jobs[*index];
        let is_first = ids.insert(job.id) & job.dedup_key.as_ref().is_none_or(|key| keys.insert(key));
        first.extend(is_first.then_some(*index));
    }
    first
}

/// What is to be said of a job whose id or dedup key may be taken; `None` while neither is.
fn answer(
    job: &NewJob,
    known: &BTreeMap<JobId, NewJob>,
    holders: &BTreeMap<DedupKey, JobId>,
) -> Result<Option<Enqueued>, Error> {
    match (known.get(&job.id), job.dedup_key.as_ref().and_then(|key| holders.get(key))) {
        (Some(spec), _) if spec == job => Ok(Some(Enqueued::Repeated { job: job.id })),
        (Some(_), _) => Err(Error::Conflict { job: job.id }),
        (None, Some(existing)) => Ok(Some(Enqueued::Deduplicated { existing: *existing })),
        (None, None) => Ok(None),
    }
}

/// Columns count microseconds; what is finer is cut.
fn as_stored(spec: &NewJob) -> Result<NewJob, BackendError> {
    let cut = |instant| stored::timestamp("not_before", stored::micros(instant)).map_err(corrupt);
    Ok(NewJob {
        not_before: spec.not_before.map(cut).transpose()?,
        build_timeout: Duration::from_micros(stored::micros_of(spec.build_timeout) as u64),
        ..spec.clone()
    })
}

/// A job to be added, for the statement.
#[derive(Serialize)]
struct Row<'j> {
    id: Hex,
    commit: &'j str,
    name: &'j str,
    priority: i64,
    not_before: Option<i64>,
    max_attempts: u32,
    max_releases: u32,
    build_timeout: i64,
    dedup_key: Option<&'j str>,
    concurrency_key: Option<&'j str>,
    cancels_older: u8,
    turn: u64,
}

impl<'j> Row<'j> {
    fn of(job: &'j NewJob, turn: u64) -> Self {
        Self {
            id: job.id.into(),
            commit: job.commit.as_str(),
            name: job.service.as_str(),
            priority: i64::from(job.priority),
            not_before: job.not_before.map(stored::micros),
            max_attempts: job.max_attempts.get(),
            max_releases: job.max_releases,
            build_timeout: stored::micros_of(job.build_timeout),
            dedup_key: job.dedup_key.as_ref().map(AsRef::as_ref),
            concurrency_key: job.concurrency_key.as_ref().map(AsRef::as_ref),
            cancels_older: u8::from(job.older_jobs == OlderJobs::CancelQueued),
            turn,
        }
    }
}

/// Adds all of these jobs, or none when an id or a dedup key is taken; whether it did. It decides as `transition::enqueue`, which a test
/// compares it with.
///
/// Tried first is the order that nothing has to be asked for: where the oldest goes first, all have the turn that the statement reads itself.
async fn insert<'j>(
    connection: &mut MySqlConnection,
    jobs: impl Iterator<Item = &'j NewJob>,
) -> Result<bool, BackendError> {
    let jobs: Vec<_> = jobs.collect();
    let (mut turns, mut given) = (Turns::default(), vec![0; jobs.len()]);
    for _ in 0..TRIES {
        let mut rows: Vec<_> = jobs.iter().zip(&given).map(|(job, turn)| Row::of(job, *turn)).collect();
        // So that two calls do not wait for each other.
        rows.sort_by_key(|row| row.dedup_key);
        match insert_under(connection, turns, &rows).await? {
            Inserted::All => return Ok(true),
            Inserted::None => return Ok(false),
            Inserted::OtherOrder => {
                turns = turns::setting(connection).await?;
                given = turns::of_new(connection, turns, &jobs).await?;
            }
        }
    }
    Err(BackendError::retryable(NAME, format!("the order of claims changed {TRIES} times meanwhile")))
}

enum Inserted {
    All,
    /// An id or a dedup key is taken.
    None,
    /// The order is another one, or began anew.
    OtherOrder,
}

/// Adds rows if the order is this one: with their turns, or with the turn of all where the oldest goes first.
async fn insert_under(
    connection: &mut MySqlConnection,
    turns: Turns,
    rows: &[Row<'_>],
) -> Result<Inserted, BackendError> {
    const INSERT: &str = concat!(
        "INSERT INTO deploycore_jobs (id, created_at, `commit`, name, status, priority, not_before, max_attempts, max_releases,
                                      build_timeout, dedup_key, concurrency_key, cancels_older, eligible_at, is_delayed, turn)
         SELECT UNHEX(n.id), c.instant, n.`commit`, n.name, 'QUEUED', n.priority, n.not_before, n.max_attempts, n.max_releases,
                n.build_timeout, n.dedup_key, n.concurrency_key, n.cancels_older, GREATEST(COALESCE(n.not_before, c.instant), c.instant),
                COALESCE(n.not_before > c.instant, FALSE), IF(s.fair_share, n.turn, s.first_turn)
         FROM (SELECT ",
        instant!(),
        " AS instant) c STRAIGHT_JOIN deploycore_queue_settings s ON s.one = 1 AND s.fair_share = ? AND (NOT s.fair_share OR s.first_turn = ?)
         STRAIGHT_JOIN JSON_TABLE(?, '$[*]' COLUMNS (
             id CHAR(32) PATH '$.id', `commit` VARCHAR(64) PATH '$.commit', name VARCHAR(63) PATH '$.name',
             priority BIGINT PATH '$.priority', not_before BIGINT PATH '$.not_before',
             max_attempts BIGINT PATH '$.max_attempts', max_releases BIGINT PATH '$.max_releases',
             build_timeout BIGINT PATH '$.build_timeout', dedup_key VARCHAR(200) CHARACTER SET utf8mb4 PATH '$.dedup_key',
             concurrency_key VARCHAR(200) CHARACTER SET utf8mb4 PATH '$.concurrency_key',
             cancels_older BIGINT PATH '$.cancels_older', turn BIGINT PATH '$.turn')) n"
    );
    let insert = sqlx::query(INSERT).bind(turns.order == Order::FairShare).bind(turns.first as i64);
    match insert.bind(stored::json(&rows)).execute(connection).await {
        Ok(done) if done.rows_affected() == 0 => Ok(Inserted::OtherOrder),
        Ok(_) => Ok(Inserted::All),
        Err(error) if is_duplicate(&error) => Ok(Inserted::None),
        Err(error) => Err(failed(error)),
    }
}

/// What is kept under the ids of these jobs, as committed by now: a host's transaction may see an earlier state.
async fn known(connection: &mut MySqlConnection, jobs: &[&NewJob]) -> Result<BTreeMap<JobId, NewJob>, BackendError> {
    const KNOWN: &str = concat!(
        "SELECT ",
        job_columns!("`"),
        " FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) n
          STRAIGHT_JOIN deploycore_jobs j FORCE INDEX (PRIMARY) ON j.id = UNHEX(n.id) LOCK IN SHARE MODE"
    );
    let ids: Vec<Hex> = jobs.iter().map(|job| job.id.into()).collect();
    let rows = sqlx::query(KNOWN).bind(stored::json(&ids)).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).job().map(|job| (job.spec.id, job.spec))).collect()
}

/// Of nothing but the index, so that nothing but its entry is locked. In a host's transaction a lock stays until that ends, and in the row of a
/// job its worker's heartbeats would wait for it.
pub(in crate::mariadb) const HOLDERS: &str = "
    SELECT j.open_dedup_key AS dedup_key, j.id FROM JSON_TABLE(?, '$[*]' COLUMNS (dedup_key VARCHAR(200) CHARACTER SET utf8mb4 PATH '$')) n
    STRAIGHT_JOIN deploycore_jobs j FORCE INDEX (jobs_dedup) ON j.open_dedup_key = n.dedup_key LOCK IN SHARE MODE";

/// The unfinished jobs that have the dedup keys of these jobs.
async fn holders(
    connection: &mut MySqlConnection,
    jobs: &[&NewJob],
) -> Result<BTreeMap<DedupKey, JobId>, BackendError> {
    let keys: BTreeSet<&str> = jobs.iter().filter_map(|job| job.dedup_key.as_ref()).map(AsRef::as_ref).collect();
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    // Prepared anew each time: at its second execution the server would read the row of the job too, and lock it.
    let query = sqlx::query(HOLDERS).persistent(false).bind(stored::json(&keys));
    let rows = query.fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Ok((Columns(row).parse("dedup_key")?, Columns(row).job_id("id")?))).collect()
}
