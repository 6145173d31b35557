//! Adding jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deploycore::model::{DedupKey, JobId, NewJob, OlderJobs};
use deploycore::port::BackendError;
use deploycore::port::queue::{Enqueued, Error, transition};
use sqlx::postgres::PgConnection;
use sqlx::types::Uuid;

use super::row;
use crate::columns::Columns;
use crate::columns::job_columns;
use crate::postgres::database::{self, NAME, corrupt, failed};
use crate::stored;

/// Whom a job gave way to may be gone by the time it is looked for; each time it is, somebody else's job has ended.
const TRIES: usize = 10;

/// Adds jobs; in a transaction, unless it is one job that leaves the older ones alone.
pub(super) async fn enqueue(connection: &mut PgConnection, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
    let jobs = jobs.iter().map(as_stored).collect::<Result<Vec<_>, _>>()?;
    let ids: BTreeSet<_> = jobs.iter().map(|job| job.id).collect();
    // Of jobs with one id, a batch could not tell which one was added; and what a job cancels hangs on who came before it.
    let one_by_one = ids.len() < jobs.len() || jobs.iter().any(|job| job.older_jobs == OlderJobs::CancelQueued);
    let at_once = if one_by_one { 1 } else { jobs.len().max(1) };
    let mut answers = Vec::with_capacity(jobs.len());
    for batch in jobs.chunks(at_once) {
        let added = enqueue_distinct(&mut *connection, batch).await?;
        if let ([job], [Enqueued::Created { .. }]) = (batch, &added[..])
            && job.older_jobs == OlderJobs::CancelQueued
        {
            supersede(&mut *connection, job).await?;
        }
        answers.extend(added);
    }
    Ok(answers)
}

/// Ends what is queued of the service of a job that was just added. A job that is being claimed runs when its lock is free, and is left alone.
async fn supersede(connection: &mut PgConnection, newer: &NewJob) -> Result<(), BackendError> {
    const QUEUED: &str = concat!(
        "SELECT ",
        job_columns!(),
        " FROM deploycore.jobs j WHERE coalesce(j.status = 'QUEUED', false) AND j.name = $1 AND j.id <> $2
          ORDER BY j.id FOR UPDATE"
    );
    let query = sqlx::query(QUEUED).bind(newer.service.as_str()).bind(newer.id.as_uuid());
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

async fn enqueue_distinct(connection: &mut PgConnection, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
    let mut answers = BTreeMap::new();
    let mut open: Vec<&NewJob> = jobs.iter().collect();
    for _ in 0..TRIES {
        for id in insert(connection, &open).await? {
            answers.insert(id, Enqueued::Created { job: id });
        }
        open.retain(|job| !answers.contains_key(&job.id));
        if open.is_empty() {
            return Ok(jobs.iter().filter_map(|job| answers.get(&job.id).copied()).collect());
        }
        let known = known(connection, &open).await?;
        let holders = holders(connection, &open).await?;
        for job in &open {
            let answer = match (known.get(&job.id), job.dedup_key.as_ref().and_then(|key| holders.get(key))) {
                (Some(spec), _) if spec == *job => Enqueued::Repeated { job: job.id },
                (Some(_), _) => return Err(Error::Conflict { job: job.id }),
                (None, Some(existing)) => Enqueued::Deduplicated { existing: *existing },
                (None, None) => continue,
            };
            answers.insert(job.id, answer);
        }
        open.retain(|job| !answers.contains_key(&job.id));
        if open.is_empty() {
            return Ok(jobs.iter().filter_map(|job| answers.get(&job.id).copied()).collect());
        }
    }
    let job = open.first().map(|job| job.id.to_string()).unwrap_or_default();
    Err(BackendError::retryable(NAME, format!("job {job} could neither be added nor found, {TRIES} times")).into())
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

/// Adds those jobs whose id and dedup key are free; which ones. It decides as `transition::enqueue`, which a test compares it with, and `new_turns_1`
/// of the schema as `Turns`.
///
/// By dedup key, so that two batches do not wait for each other. Who listens is told once a statement how many jobs are ready, and only when
/// none was before: while there is one, nobody waits for another.
async fn insert(connection: &mut PgConnection, jobs: &[&NewJob]) -> Result<Vec<JobId>, BackendError> {
    const INSERT: &str = "
        WITH clock AS MATERIALIZED (SELECT deploycore.instant() AS now),
        idle AS MATERIALIZED (
            SELECT NOT EXISTS (SELECT FROM deploycore.jobs
                               WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NULL) AS is_idle
        ),
        turns AS MATERIALIZED (
            SELECT first_turn AS first,
                   CASE WHEN fair_share THEN deploycore.new_turns_1(clock.now, first_turn, $1, $3, $4, $5, $9, $11) END AS given
            FROM deploycore.queue_settings CROSS JOIN clock WHERE one = 1
        ),
        added AS (
            INSERT INTO deploycore.jobs (id, created_at, \"commit\", name, status, priority, not_before, max_attempts,
                                         max_releases, build_timeout, dedup_key, concurrency_key, cancels_older, eligible_at, delayed, turn)
            SELECT n.id, clock.now, n.commit, n.name, 'QUEUED', n.priority, n.not_before, n.max_attempts, n.max_releases,
                   n.build_timeout, n.dedup_key, n.concurrency_key, n.cancels_older, greatest(n.not_before, clock.now),
                   coalesce(n.not_before > clock.now, false), coalesce(turns.given[n.place::integer], turns.first)
            FROM clock CROSS JOIN turns CROSS JOIN unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[],
                                         $7::bigint[], $8::bigint[], $9::text[], $10::text[], $11::boolean[])
                WITH ORDINALITY
                AS n (id, commit, name, priority, not_before, max_attempts, max_releases, build_timeout, dedup_key,
                      concurrency_key, cancels_older, place)
            ORDER BY n.dedup_key COLLATE \"C\" NULLS FIRST, n.place
            ON CONFLICT DO NOTHING
            RETURNING id, delayed
        )
        SELECT added.id,
               CASE WHEN idle.is_idle AND NOT added.delayed THEN pg_notify('deploycore_jobs', ready.jobs::text) END
        FROM added CROSS JOIN idle CROSS JOIN (SELECT count(*) AS jobs FROM added WHERE NOT delayed) ready";
    let texts = |text: fn(&NewJob) -> Option<&str>| -> Vec<Option<String>> {
        jobs.iter().map(|job| text(job).map(str::to_owned)).collect()
    };
    let integers = |integer: fn(&NewJob) -> i64| -> Vec<i64> { jobs.iter().map(|job| integer(job)).collect() };
    let ids: Vec<Uuid> = jobs.iter().map(|job| job.id.as_uuid()).collect();
    let not_before: Vec<Option<i64>> = jobs.iter().map(|job| job.not_before.map(stored::micros)).collect();
    let rows = sqlx::query(INSERT)
        .bind(ids)
        .bind(texts(|job| Some(job.commit.as_str())))
        .bind(texts(|job| Some(job.service.as_str())))
        .bind(integers(|job| i64::from(job.priority)))
        .bind(not_before)
        .bind(integers(|job| i64::from(job.max_attempts.get())))
        .bind(integers(|job| i64::from(job.max_releases)))
        .bind(integers(|job| stored::micros_of(job.build_timeout)))
        .bind(texts(|job| job.dedup_key.as_ref().map(AsRef::as_ref)))
        .bind(texts(|job| job.concurrency_key.as_ref().map(AsRef::as_ref)))
        .bind(jobs.iter().map(|job| job.older_jobs == OlderJobs::CancelQueued).collect::<Vec<_>>())
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    rows.iter().map(|row| Columns(row).job_id("id")).collect()
}

/// What is kept under the ids of these jobs.
async fn known(connection: &mut PgConnection, jobs: &[&NewJob]) -> Result<BTreeMap<JobId, NewJob>, BackendError> {
    const KNOWN: &str = concat!("SELECT ", job_columns!(), " FROM deploycore.jobs j WHERE j.id = ANY ($1)");
    let ids: Vec<Uuid> = jobs.iter().map(|job| job.id.as_uuid()).collect();
    let rows = sqlx::query(KNOWN).bind(ids).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).job().map(|job| (job.spec.id, job.spec))).collect()
}

/// The unfinished jobs that have the dedup keys of these jobs.
async fn holders(connection: &mut PgConnection, jobs: &[&NewJob]) -> Result<BTreeMap<DedupKey, JobId>, BackendError> {
    const HOLDERS: &str =
        "SELECT dedup_key, id FROM deploycore.jobs WHERE dedup_key = ANY ($1) AND finished_at IS NULL";
    let keys: Vec<String> = jobs.iter().filter_map(|job| job.dedup_key.as_ref()).map(ToString::to_string).collect();
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = sqlx::query(HOLDERS).bind(keys).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Ok((Columns(row).parse("dedup_key")?, Columns(row).job_id("id")?))).collect()
}
