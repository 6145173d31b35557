//! Looking at the queue.

use std::collections::{BTreeMap, BTreeSet};

use deploycore::model::{Job, JobStatus};
use deploycore::port::BackendError;
use deploycore::port::queue::{JobCursor, JobFilter, JobPage, Order, QueueStats};
use sqlx::mysql::MySqlConnection;
use sqlx::types::Uuid;

use crate::columns::{Columns, job_columns};
use crate::mariadb::database::{failed, instant};
use crate::stored;

/// A page along one index. First comes the value by which it goes along, if there is one. Then each has all parameters: a status, a service, a
/// commit, the earliest end (each may be NULL for any, and stands there twice), where the page starts, which is an instant twice and an id,
/// and its length. The server seeks by the instant alone.
macro_rules! page {
    ($index:literal, $along:literal) => {
        concat!(
            "SELECT ",
            job_columns!("`"),
            " FROM deploycore_jobs j FORCE INDEX (",
            $index,
            ") WHERE ",
            $along,
            " AND (? IS NULL OR j.status = ?) AND (? IS NULL OR j.name = ?) AND (? IS NULL OR j.`commit` = ?)
              AND (? IS NULL OR j.finished_at >= ?)
              AND j.created_at <= ? AND (j.created_at < ? OR j.id < ?)
              ORDER BY j.created_at DESC, j.id DESC LIMIT ?"
        )
    };
}

pub(in crate::mariadb) const ALL: &str = page!("jobs_created", "TRUE");
pub(in crate::mariadb) const BY_SERVICE: &str = page!("jobs_name", "j.name = ?");
/// Not in the order of the page, but as much as waits of one service.
pub(in crate::mariadb) const BY_QUEUED_SERVICE: &str = page!("jobs_queued_name", "j.queued_name = ?");
pub(in crate::mariadb) const BY_COMMIT: &str = page!("jobs_commit", "j.`commit` = ?");
pub(in crate::mariadb) const BY_RARE_END: &str = page!("jobs_rare_end", "j.rare_end = ?");
/// Not in the order of the page, but as many as wait or run.
pub(in crate::mariadb) const BY_STATUS: &str = page!("jobs_queue", "j.status = ?");
/// Not in the order of the page, but what ended lately is little.
pub(in crate::mariadb) const BY_END: &str = page!("jobs_finished", "j.finished_at >= ?");

/// Several statuses are several walks, merged: each follows an index, whatever the share of its status.
pub(super) async fn list(
    connection: &mut MySqlConnection,
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
    connection: &mut MySqlConnection,
    filter: &JobFilter,
    status: Option<JobStatus>,
    after: Option<JobCursor>,
    limit: u32,
) -> Result<Vec<Job>, BackendError> {
    let service = filter.service.as_ref().map(AsRef::<str>::as_ref);
    let commit = filter.commit.as_ref().map(AsRef::<str>::as_ref);
    let finished_since = filter.finished_since.map(stored::micros);
    let by_status = sqlx::query(BY_STATUS).bind(status.map(JobStatus::as_str));
    let page = match filter {
        _ if status == Some(JobStatus::Running) => by_status,
        JobFilter { commit: Some(_), .. } => sqlx::query(BY_COMMIT).bind(commit),
        JobFilter { finished_since: Some(_), .. } => sqlx::query(BY_END).bind(finished_since),
        JobFilter { service: Some(_), .. } if status == Some(JobStatus::Queued) => {
            sqlx::query(BY_QUEUED_SERVICE).bind(service)
        }
        JobFilter { service: Some(_), .. } => sqlx::query(BY_SERVICE).bind(service),
        _ => match status {
            Some(JobStatus::Queued) => by_status,
            Some(JobStatus::Failed | JobStatus::Cancelled) => {
                sqlx::query(BY_RARE_END).bind(status.map(JobStatus::as_str))
            }
            Some(JobStatus::Running | JobStatus::Succeeded) | None => sqlx::query(ALL),
        },
    };
    let page = page.bind(status.map(JobStatus::as_str)).bind(status.map(JobStatus::as_str));
    let page = page.bind(service).bind(service).bind(commit).bind(commit).bind(finished_since).bind(finished_since);
    let since = after.map_or(i64::MAX, |cursor| stored::micros(cursor.created_at));
    let id = after.map_or_else(Uuid::nil, |cursor| cursor.job.as_uuid());
    let page = page.bind(since).bind(since).bind(id).bind(i64::from(limit) + 1);
    let rows = page.fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Columns(row).job()).collect()
}

pub(super) async fn stats(connection: &mut MySqlConnection) -> Result<QueueStats, BackendError> {
    // A row without a status where there is no job. What waits is counted in its index, and so is the rest.
    const STATS: &str = concat!(
        "SELECT q.paused, q.fair_share, c.instant, j.status, j.jobs,
                (SELECT MIN(w.eligible_at) FROM deploycore_jobs w FORCE INDEX (jobs_queue)
                 WHERE w.status = 'QUEUED' AND w.eligible_at <= c.instant) AS oldest
         FROM deploycore_queue_settings q
         CROSS JOIN (SELECT ",
        instant!(),
        " AS instant) c
         LEFT JOIN (SELECT status, COUNT(*) AS jobs FROM deploycore_jobs FORCE INDEX (jobs_queue) GROUP BY status) j ON TRUE
         WHERE q.one = 1"
    );
    let mut stats = QueueStats {
        counts: JobStatus::ALL.into_iter().map(|status| (status, 0)).collect::<BTreeMap<_, _>>(),
        oldest_queued_seconds: None,
        paused: false,
        order: Order::default(),
    };
    for row in &sqlx::query(STATS).fetch_all(connection).await.map_err(failed)? {
        let columns = Columns(row);
        stats.paused = columns.is_set("paused")?;
        stats.order = columns.order()?;
        if columns.optional_text("status")?.is_some() {
            stats.counts.insert(columns.word("status", JobStatus::parse)?, columns.number("jobs")?);
        }
        if let Some(since) = columns.optional_time("oldest")? {
            let waits = stored::between(stored::micros(since), columns.integer("instant")?);
            stats.oldest_queued_seconds = Some(waits.as_secs_f64());
        }
    }
    Ok(stats)
}
