//! Looking at the queue.

use std::collections::BTreeSet;

use deploycore::model::{Job, JobStatus};
use deploycore::port::BackendError;
use deploycore::port::queue::{JobCursor, JobFilter, JobPage, QueueStats};
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

/// Each status is counted along an index of its own. Of those only the index of what finished is as long as the history, and it is read without
/// the rows.
const STATS: &str = "
    WITH clock AS MATERIALIZED (SELECT deploycore.instant() AS now),
    queued AS MATERIALIZED (
        SELECT eligible_at FROM deploycore.jobs WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NULL
        UNION ALL
        SELECT eligible_at FROM deploycore.jobs WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NOT NULL
        UNION ALL
        SELECT eligible_at FROM deploycore.jobs WHERE status = 'QUEUED' AND delayed
    ),
    rare AS MATERIALIZED (
        SELECT count(*) FILTER (WHERE status = 'FAILED') AS failed, count(*) FILTER (WHERE status = 'CANCELLED') AS cancelled
        FROM deploycore.jobs WHERE status IN ('FAILED', 'CANCELLED')
    )
    SELECT q.paused, q.fair_share, clock.now, rare.failed, rare.cancelled,
           (SELECT count(*) FROM queued) AS queued,
           (SELECT min(eligible_at) FROM queued WHERE eligible_at <= clock.now) AS oldest,
           (SELECT count(*) FROM deploycore.jobs WHERE status = 'RUNNING') AS running,
           (SELECT count(finished_at) FROM deploycore.jobs WHERE finished_at IS NOT NULL) - rare.failed - rare.cancelled AS succeeded
    FROM deploycore.queue_settings q CROSS JOIN clock CROSS JOIN rare WHERE q.one = 1";

pub(super) async fn stats(connection: &mut PgConnection) -> Result<QueueStats, BackendError> {
    let row = sqlx::query(STATS).fetch_one(connection).await.map_err(failed)?;
    let columns = Columns(&row);
    let count = |status| {
        let column = match status {
            JobStatus::Queued => "queued",
            JobStatus::Running => "running",
            JobStatus::Succeeded => "succeeded",
            JobStatus::Failed => "failed",
            JobStatus::Cancelled => "cancelled",
        };
        Ok((status, columns.number(column)?))
    };
    let now = columns.integer("now")?;
    let waits = columns.optional_time("oldest")?.map(|since| stored::between(stored::micros(since), now));
    Ok(QueueStats {
        counts: JobStatus::ALL.into_iter().map(count).collect::<Result<_, BackendError>>()?,
        oldest_queued_seconds: waits.map(|waits| waits.as_secs_f64()),
        paused: columns.is_set("paused")?,
        order: columns.order()?,
    })
}

#[cfg(test)]
mod tests {
    use deploycore::model::{JobStatus, NewJob};
    use deploycore::port::JobQueue as _;

    use super::super::bed;
    use super::STATS;

    const END_ALL: &str = "
        UPDATE deploycore.jobs SET status = 'SUCCEEDED', epoch = 1, claim_id = gen_random_uuid(), finished_at = 1, artifact = 'a',
                                   digest = 'd', size = 1";

    #[tokio::test]
    async fn a_count_does_not_read_the_rows_of_the_history() {
        let (postgres, _database, mut connection) = bed::open().await;
        let jobs: Vec<_> =
            (0..1_000).map(|_| NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap())).collect();
        postgres.queue().enqueue(&jobs).await.unwrap();
        let off = "ALTER TABLE deploycore.jobs SET (autovacuum_enabled = false)";
        for sql in [off, END_ALL, "VACUUM deploycore.jobs"] {
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        }
        let mut own = postgres.database.borrow().await.unwrap();
        bed::pages(own.connection(), STATS, &[]).await;
        let pages = bed::pages(own.connection(), STATS, &[]).await;
        let whole = "SELECT pg_relation_size('deploycore.jobs') / current_setting('block_size')::bigint";
        let whole: i64 = sqlx::query_scalar(whole).fetch_one(&mut connection).await.unwrap();
        println!("{pages} pages; the table has {whole}");
        let stats = postgres.queue().stats().await.unwrap();
        assert_eq!(stats.counts[&JobStatus::Succeeded], 1_000);
        assert!(pages * 3 < whole as u64, "{pages} pages; the table has {whole}");
    }
}
