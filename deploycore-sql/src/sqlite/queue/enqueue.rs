//! Adding jobs.

use std::time::Duration;

use deploycore::model::{JobId, NewJob, OlderJobs};
use deploycore::port::BackendError;
use deploycore::port::queue::turn::Turns;
use deploycore::port::queue::{Enqueued, Error, transition};
use sqlx::sqlite::SqliteConnection;

use super::{row, turns};
use crate::columns::{Columns, job_columns};
use crate::sqlite::database::{Moment, NAME, corrupt, failed};
use crate::stored;

pub(super) async fn enqueue(moment: &mut Moment, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
    let mut answers = Vec::with_capacity(jobs.len());
    let turns = turns::setting(moment.connection()).await?;
    for spec in jobs {
        answers.push(enqueue_one(moment, turns, &as_stored(spec)?).await?);
    }
    Ok(answers)
}

async fn enqueue_one(moment: &mut Moment, turns: Turns, spec: &NewJob) -> Result<Enqueued, Error> {
    if insert(moment, turns, spec).await? {
        if spec.older_jobs == OlderJobs::CancelQueued {
            supersede(moment, spec).await?;
        }
        return Ok(Enqueued::Created { job: spec.id });
    }
    if let Some(known) = row::find(moment.connection(), spec.id).await? {
        if known.spec == *spec {
            return Ok(Enqueued::Repeated { job: spec.id });
        }
        return Err(Error::Conflict { job: spec.id });
    }
    match with_dedup_key(moment.connection(), spec).await? {
        Some(existing) => Ok(Enqueued::Deduplicated { existing }),
        None => Err(BackendError::permanent(NAME, format!("job {} can neither be added nor found", spec.id)).into()),
    }
}

pub(in crate::sqlite) const QUEUED_OF_SERVICE: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM jobs j INDEXED BY jobs_queued_name WHERE j.status = 'QUEUED' AND j.name = ?1 AND j.id <> ?2"
);

/// Ends what is queued of the service of a job that was just added.
async fn supersede(moment: &mut Moment, newer: &NewJob) -> Result<(), BackendError> {
    let now = moment.now;
    let queued = sqlx::query(QUEUED_OF_SERVICE).bind(newer.service.as_str()).bind(newer.id.to_string());
    for row in &queued.fetch_all(moment.connection()).await.map_err(failed)? {
        let before = Columns(row).job()?;
        let mut job = before.clone();
        transition::supersede(&mut job, newer.id, now);
        row::update(moment.connection(), &before, &mut job, now).await?;
    }
    Ok(())
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

/// Adds the job unless its id or its dedup key is taken; whether it did.
async fn insert(moment: &mut Moment, turns: Turns, spec: &NewJob) -> Result<bool, BackendError> {
    const INSERT: &str = "
        INSERT INTO jobs (id, created_at, \"commit\", name, status, priority, not_before, max_attempts, max_releases,
                          build_timeout, dedup_key, concurrency_key, eligible_at, delayed, cancels_older, turn)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
        ON CONFLICT DO NOTHING";
    let turn = turns::of_new(moment, turns, spec).await?;
    let job = transition::enqueue(spec, turn, moment.now);
    let inserted = sqlx::query(INSERT)
        .bind(spec.id.to_string())
        .bind(stored::micros(job.created_at))
        .bind(spec.commit.as_str())
        .bind(spec.service.as_str())
        .bind(job.status.as_str())
        .bind(i64::from(spec.priority))
        .bind(spec.not_before.map(stored::micros))
        .bind(i64::from(spec.max_attempts.get()))
        .bind(i64::from(spec.max_releases))
        .bind(stored::micros_of(spec.build_timeout))
        .bind(spec.dedup_key.as_ref().map(AsRef::<str>::as_ref))
        .bind(spec.concurrency_key.as_ref().map(AsRef::<str>::as_ref))
        .bind(stored::micros(job.eligible_at))
        .bind(i64::from(job.eligible_at > moment.now))
        .bind(i64::from(spec.older_jobs == OlderJobs::CancelQueued))
        .bind(job.turn as i64)
        .execute(moment.connection())
        .await
        .map_err(failed)?;
    Ok(inserted.rows_affected() == 1)
}

async fn with_dedup_key(connection: &mut SqliteConnection, spec: &NewJob) -> Result<Option<JobId>, BackendError> {
    const FIND: &str = "SELECT id FROM jobs WHERE dedup_key = ?1 AND finished_at IS NULL";
    let Some(key) = &spec.dedup_key else {
        return Ok(None);
    };
    let row = sqlx::query(FIND).bind(key.as_str()).fetch_optional(connection).await.map_err(failed)?;
    row.map(|row| Columns(&row).parse("id")).transpose()
}
