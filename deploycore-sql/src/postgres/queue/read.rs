//! Looking at the queue.

use std::collections::{BTreeMap, BTreeSet};

use deploycore::model::{Job, JobStatus};
use deploycore::port::BackendError;
use deploycore::port::queue::{JobCursor, JobFilter, JobPage, Order, QueueStats};
use sqlx::postgres::PgConnection;
use sqlx::types::Uuid;

use crate::columns::Columns;
use crate::columns::job_columns;
use crate::postgres::database::failed;
use crate::stored;

/// A page along one index. Each has all parameters: 1 a status, 2 a service, 3 a commit, 4 the earliest end (each may be NULL for
/// any), 5 and 6 where the page starts, 7 its length.
macro_rules! page {
    ($along:literal) => {
        concat!(
            "SELECT ",
            job_columns!(),
            " FROM deploycore.jobs j WHERE ",
            $along,
            " AND ($1::text IS NULL OR j.status = $1) AND ($2::text IS NULL OR j.name = $2)
              AND ($3::text IS NULL OR j.\"commit\" = $3) AND ($4::bigint IS NULL OR j.finished_at >= $4)
              AND (j.created_at, j.id) < ($5::bigint, $6::uuid)
              ORDER BY j.created_at DESC, j.id DESC LIMIT $7"
        )
    };
}

const ALL: &str = page!("TRUE");
const BY_SERVICE: &str = page!("j.name = $2");
const BY_COMMIT: &str = page!("j.\"commit\" = $3");
/// Not in the order of the page, but what ended lately is little.
const BY_END: &str = page!("j.finished_at >= $4");
const BY_RARE_END: &str = page!("j.status IN ('FAILED', 'CANCELLED') AND j.status = $1");
/// Not in the order of the page, but as many as builds run.
const RUNNING: &str = page!("j.status = 'RUNNING'");
/// Not in the order of the page: what waits is found in the three indexes of what waits.
const QUEUED: &str = page!(
    "j.id = ANY (ARRAY(
         SELECT id FROM deploycore.jobs WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NULL
         UNION ALL
         SELECT id FROM deploycore.jobs WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NOT NULL
         UNION ALL
         SELECT id FROM deploycore.jobs WHERE status = 'QUEUED' AND delayed
     ))"
);

/// Several statuses are several walks, merged: each follows an index, whatever the share of its status.
pub(super) async fn list(
    connection: &mut PgConnection,
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
    connection: &mut PgConnection,
    filter: &JobFilter,
    status: Option<JobStatus>,
    after: Option<JobCursor>,
    limit: u32,
) -> Result<Vec<Job>, BackendError> {
    let page = match filter {
        _ if status == Some(JobStatus::Running) => RUNNING,
        JobFilter { commit: Some(_), .. } => BY_COMMIT,
        JobFilter { finished_since: Some(_), .. } => BY_END,
        JobFilter { service: Some(_), .. } => BY_SERVICE,
        _ => match status {
            Some(JobStatus::Queued) => QUEUED,
            Some(JobStatus::Failed | JobStatus::Cancelled) => BY_RARE_END,
            Some(JobStatus::Running | JobStatus::Succeeded) | None => ALL,
        },
    };
    let rows = sqlx::query(page)
        .bind(status.map(JobStatus::as_str))
        .bind(filter.service.as_ref().map(AsRef::<str>::as_ref))
        .bind(filter.commit.as_ref().map(AsRef::<str>::as_ref))
        .bind(filter.finished_since.map(stored::micros))
        .bind(after.map_or(i64::MAX, |cursor| stored::micros(cursor.created_at)))
        .bind(after.map_or_else(Uuid::nil, |cursor| cursor.job.as_uuid()))
        .bind(i64::from(limit) + 1)
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    rows.iter().map(|row| Columns(row).job()).collect()
}

pub(super) async fn stats(connection: &mut PgConnection) -> Result<QueueStats, BackendError> {
    // A row without a status where there is no job.
    const STATS: &str = "
        WITH clock AS MATERIALIZED (SELECT deploycore.instant() AS now)
        SELECT q.paused, q.fair_share, clock.now, j.status, count(j.id) AS jobs,
               min(j.eligible_at) FILTER (WHERE j.status = 'QUEUED' AND j.eligible_at <= clock.now) AS oldest
        FROM deploycore.queue_settings q CROSS JOIN clock LEFT JOIN deploycore.jobs j ON TRUE
        WHERE q.one = 1 GROUP BY q.paused, q.fair_share, clock.now, j.status";
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
            let waits = stored::between(stored::micros(since), columns.integer("now")?);
            stats.oldest_queued_seconds = Some(waits.as_secs_f64());
        }
    }
    Ok(stats)
}
