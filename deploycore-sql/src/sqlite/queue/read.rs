//! Looking at the queue.

use std::collections::{BTreeMap, BTreeSet};

use deploycore::model::{Job, JobStatus};
use deploycore::port::BackendError;
use deploycore::port::queue::{JobCursor, JobFilter, JobPage, QueueStats};
use sqlx::sqlite::SqliteConnection;

use crate::columns::Columns;
use crate::columns::job_columns;
use crate::sqlite::database::{Moment, failed};
use crate::stored;

/// A page along one index. Each has all parameters: 1 a status, 2 a service, 3 a commit, 4 the earliest end (each may be NULL for
/// any), 5 and 6 where the page starts, 7 its length.
macro_rules! page {
    ($index:literal, $along:literal) => {
        concat!(
            "SELECT ",
            job_columns!(),
            " FROM jobs j INDEXED BY ",
            $index,
            " WHERE ",
            $along,
            " AND (?1 IS NULL OR j.status = ?1) AND (?2 IS NULL OR j.name = ?2) AND (?3 IS NULL OR j.\"commit\" = ?3)
              AND (?4 IS NULL OR j.finished_at >= ?4) AND (j.created_at, j.id) < (?5, ?6)
              ORDER BY j.created_at DESC, j.id DESC LIMIT ?7"
        )
    };
}

pub(in crate::sqlite) const ALL: &str = page!("jobs_created", "TRUE");
pub(in crate::sqlite) const BY_STATUS: &str = page!("jobs_status", "j.status = ?1");
pub(in crate::sqlite) const BY_SERVICE: &str = page!("jobs_name", "j.name = ?2");
pub(in crate::sqlite) const RARE_ENDS_OF_SERVICE: &str = page!(
    "jobs_rare_end_name",
    "j.finished_at IS NOT NULL AND j.status <> 'SUCCEEDED' AND j.name = ?2 AND j.status = ?1"
);
/// Not in the order of the page, but as much as waits of one service.
pub(in crate::sqlite) const QUEUED_OF_SERVICE: &str = page!("jobs_queued_name", "j.status = 'QUEUED' AND j.name = ?2");
pub(in crate::sqlite) const BY_COMMIT: &str = page!("jobs_commit", "j.\"commit\" = ?3");
/// Not in the order of the page, but what ended lately is little.
const BY_END: &str = page!("jobs_finished", "j.finished_at >= ?4");

/// Several statuses are several walks, merged: each follows an index, whatever the share of its status.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    filter: &JobFilter,
    after: Option<JobCursor>,
    limit: u32,
) -> Result<JobPage, BackendError> {
    let statuses: BTreeSet<_> = filter.statuses.iter().copied().collect();
    let statuses: Vec<_> = if statuses.is_empty() { vec![None] } else { statuses.into_iter().map(Some).collect() };
    let mut jobs = Vec::new();
    for status in statuses {
        jobs.extend(walk(connection, filter, status, after, limit).await?);
    }
    jobs.sort_unstable_by_key(|job| std::cmp::Reverse((job.created_at, job.spec.id)));
    let is_last = jobs.len() <= limit as usize;
    jobs.truncate(limit as usize);
    let next = jobs.last().filter(|_| !is_last).map(|job| JobCursor { created_at: job.created_at, job: job.spec.id });
    Ok(JobPage { jobs, next })
}

/// One job more than `limit`, if there is one.
async fn walk(
    connection: &mut SqliteConnection,
    filter: &JobFilter,
    status: Option<JobStatus>,
    after: Option<JobCursor>,
    limit: u32,
) -> Result<Vec<Job>, BackendError> {
    let page = match filter {
        JobFilter { commit: Some(_), .. } => BY_COMMIT,
        JobFilter { finished_since: Some(_), .. } => BY_END,
        JobFilter { service: Some(_), .. } => match status {
            Some(JobStatus::Queued) => QUEUED_OF_SERVICE,
            // As many as builds run.
            Some(JobStatus::Running) => BY_STATUS,
            Some(JobStatus::Failed | JobStatus::Cancelled) => RARE_ENDS_OF_SERVICE,
            Some(JobStatus::Succeeded) | None => BY_SERVICE,
        },
        _ if status.is_some() => BY_STATUS,
        _ => ALL,
    };
    let rows = sqlx::query(page)
        .bind(status.map(JobStatus::as_str))
        .bind(filter.service.as_ref().map(AsRef::<str>::as_ref))
        .bind(filter.commit.as_ref().map(AsRef::<str>::as_ref))
        .bind(filter.finished_since.map(stored::micros))
        .bind(after.map_or(i64::MAX, |cursor| stored::micros(cursor.created_at)))
        .bind(after.map_or_else(String::new, |cursor| cursor.job.to_string()))
        .bind(i64::from(limit) + 1)
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    rows.iter().map(|row| Columns(row).job()).collect()
}

pub(in crate::sqlite) const READY_AND_DUE: &str = "
    SELECT paused, fair_share,
           (SELECT min(eligible_at) FROM jobs WHERE status = 'QUEUED' AND delayed = 0) AS ready,
           (SELECT min(eligible_at) FROM jobs WHERE status = 'QUEUED' AND delayed = 1 AND eligible_at <= ?1) AS due
    FROM queue_settings WHERE one = 1";

pub(super) async fn stats(moment: &mut Moment) -> Result<QueueStats, BackendError> {
    const COUNTS: &str = "SELECT status, count(*) AS jobs FROM jobs GROUP BY status";
    let mut counts: BTreeMap<_, _> = JobStatus::ALL.into_iter().map(|status| (status, 0)).collect();
    for row in sqlx::query(COUNTS).fetch_all(moment.connection()).await.map_err(failed)? {
        let columns = Columns(&row);
        counts.insert(columns.word("status", JobStatus::parse)?, columns.number("jobs")?);
    }
    let now = stored::micros(moment.now);
    let row = sqlx::query(READY_AND_DUE).bind(now).fetch_one(moment.connection()).await.map_err(failed)?;
    let columns = Columns(&row);
    let oldest = [columns.optional_time("ready")?, columns.optional_time("due")?].into_iter().flatten().min();
    Ok(QueueStats {
        counts,
        oldest_queued_seconds: oldest.map(|since| stored::between(stored::micros(since), now).as_secs_f64()),
        paused: columns.is_set("paused")?,
        order: columns.order()?,
    })
}
