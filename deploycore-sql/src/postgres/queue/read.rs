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
    ($along:expr) => {
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

/// Not in the order of the page, but as much as waits of one service or commit.
macro_rules! queued_of {
    ($which:literal) => {
        page!(concat!(
            "j.id = ANY (ARRAY(SELECT id FROM deploycore.jobs WHERE coalesce(status = 'QUEUED', false) AND ",
            $which,
            "))"
        ))
    };
}

const QUEUED: &str = page!("coalesce(j.status = 'QUEUED', false)");
const QUEUED_OF_SERVICE: &str = queued_of!("name = $2");
const QUEUED_OF_COMMIT: &str = queued_of!("\"commit\" = $3");
/// Not in the order of the page, but as many as builds run.
const RUNNING: &str = page!("j.status = 'RUNNING'");
const ENDED: &str = page!("coalesce(j.finished_at IS NOT NULL, false)");
const ENDED_OF_SERVICE: &str = page!("coalesce(j.finished_at IS NOT NULL, false) AND j.name = $2");
const ENDED_OF_COMMIT: &str = page!("coalesce(j.finished_at IS NOT NULL, false) AND j.\"commit\" = $3");
/// Not in the order of the page, but what ended lately is little.
const ENDED_SINCE: &str = page!("j.finished_at >= $4");
const ENDED_RARELY_OF_SERVICE: &str =
    page!("coalesce(j.status IN ('FAILED', 'CANCELLED'), false) AND j.name = $2 AND j.status = $1");
const ENDED_RARELY: &str = page!("j.status IN ('FAILED', 'CANCELLED') AND j.status = $1");

/// Jobs that have indexes of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Queued,
    Running,
    /// All that have, or those that ended so.
    Ended(Option<JobStatus>),
}

impl Part {
    const ALL: [Self; 3] = [Self::Queued, Self::Running, Self::Ended(None)];

    fn of(status: JobStatus) -> Self {
        match status {
            JobStatus::Queued => Self::Queued,
            JobStatus::Running => Self::Running,
            JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled => Self::Ended(Some(status)),
        }
    }

    fn has_ended(self) -> bool {
        matches!(self, Self::Ended(_))
    }

    fn page(self, filter: &JobFilter) -> &'static str {
        match (self, filter) {
            (Self::Queued, JobFilter { commit: Some(_), .. }) => QUEUED_OF_COMMIT,
            (Self::Queued, JobFilter { service: Some(_), .. }) => QUEUED_OF_SERVICE,
            (Self::Queued, _) => QUEUED,
            (Self::Running, _) => RUNNING,
            (Self::Ended(_), JobFilter { commit: Some(_), .. }) => ENDED_OF_COMMIT,
            (Self::Ended(_), JobFilter { finished_since: Some(_), .. }) => ENDED_SINCE,
            (Self::Ended(Some(JobStatus::Failed | JobStatus::Cancelled)), JobFilter { service: Some(_), .. }) => {
                ENDED_RARELY_OF_SERVICE
            }
            (Self::Ended(Some(JobStatus::Failed | JobStatus::Cancelled)), _) => ENDED_RARELY,
            (Self::Ended(_), JobFilter { service: Some(_), .. }) => ENDED_OF_SERVICE,
            (Self::Ended(_), _) => ENDED,
        }
    }
}

/// Several walks, merged: each follows an index, whatever the share of its part. All are of one snapshot, so that a job is in one part.
pub(super) async fn list(
    connection: &mut PgConnection,
    filter: &JobFilter,
    after: Option<JobCursor>,
    limit: u32,
) -> Result<JobPage, BackendError> {
    let parts: BTreeSet<_> = match &filter.statuses[..] {
        [] => Part::ALL.into(),
        statuses => statuses.iter().map(|status| Part::of(*status)).collect(),
    };
    let mut jobs = Vec::new();
    for part in parts.into_iter().filter(|part| part.has_ended() || filter.finished_since.is_none()) {
        jobs.extend(walk(connection, filter, part, after, limit).await?);
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
    part: Part,
    after: Option<JobCursor>,
    limit: u32,
) -> Result<Vec<Job>, BackendError> {
    let status = if let Part::Ended(status) = part { status } else { None };
    let rows = sqlx::query(part.page(filter))
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
    use deploycore::port::queue::JobFilter;

    use super::super::bed;
    use super::{
        ENDED, ENDED_OF_COMMIT, ENDED_OF_SERVICE, ENDED_RARELY, ENDED_RARELY_OF_SERVICE, ENDED_SINCE, Part, QUEUED,
        QUEUED_OF_COMMIT, QUEUED_OF_SERVICE, RUNNING, STATS,
    };

    const END_ALL: &str = "
        UPDATE deploycore.jobs SET status = 'SUCCEEDED', epoch = 1, claim_id = gen_random_uuid(), finished_at = 1, artifact = 'a',
                                   digest = 'd', size = 1";

    /// Behind a long history and a long queue, with statistics that know of neither.
    #[tokio::test]
    async fn a_page_looks_at_little() {
        const MANY: &str = "
            INSERT INTO deploycore.jobs (id, created_at, \"commit\", name, status, priority, max_attempts, max_releases, build_timeout,
                                         eligible_at, delayed, epoch, claim_id, finished_at, artifact, digest, size)
            SELECT gen_random_uuid(), n, 'abcdef0', 'web', 'SUCCEEDED', 0, 3, 10, 60000000, n, false, 1, gen_random_uuid(), n, 'a', 'd', 1
            FROM generate_series(1, 20000) n;
            INSERT INTO deploycore.jobs (id, created_at, \"commit\", name, status, priority, max_attempts, max_releases, build_timeout,
                                         eligible_at, delayed)
            SELECT gen_random_uuid(), n, 'abcdef0', 'web', 'QUEUED', 0, 3, 10, 60000000, n, false FROM generate_series(1, 10000) n";
        const OTHERS: &str = "
            INSERT INTO deploycore.jobs (id, created_at, \"commit\", name, status, priority, max_attempts, max_releases, build_timeout,
                                         eligible_at, delayed, epoch, claim_id, finished_at)
            SELECT gen_random_uuid(), n, '1234567', 'api', 'FAILED', 0, 3, 10, 60000000, n, false, 1, gen_random_uuid(), 30000 + n
            FROM generate_series(1, 5) n;
            INSERT INTO deploycore.jobs (id, created_at, \"commit\", name, status, priority, max_attempts, max_releases, build_timeout,
                                         eligible_at, delayed)
            SELECT gen_random_uuid(), n, '1234567', 'api', 'QUEUED', 0, 3, 10, 60000000, n, false FROM generate_series(1, 5) n";
        let (postgres, _database, mut connection) = bed::open().await;
        for sql in ["ALTER TABLE deploycore.jobs SET (autovacuum_enabled = false)", MANY, OTHERS] {
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        }
        let mut own = postgres.database.borrow().await.unwrap();
        let web = JobFilter { service: Some("web".parse().unwrap()), ..JobFilter::default() };
        let [any, service, commit, since, failed] = ["NULL", "'api'", "'1234567'", "30000", "'FAILED'"];
        for (name, page, [status, service, commit, since]) in [
            ("queued", QUEUED, [any; 4]),
            ("queued of a service", QUEUED_OF_SERVICE, [any, service, any, any]),
            ("queued of a commit", QUEUED_OF_COMMIT, [any, any, commit, any]),
            ("running", RUNNING, [any; 4]),
            ("ended", ENDED, [any; 4]),
            ("ended of a service", ENDED_OF_SERVICE, [any, service, any, any]),
            ("ended of a commit", ENDED_OF_COMMIT, [any, any, commit, any]),
            ("ended since", ENDED_SINCE, [any, any, any, since]),
            ("failed", ENDED_RARELY, [failed, any, any, any]),
            ("failed of a service", ENDED_RARELY_OF_SERVICE, [failed, service, any, any]),
            // Of one that has a long history, of which nothing failed.
            ("failed of another service", Part::Ended(Some(JobStatus::Failed)).page(&web), [failed, "'web'", any, any]),
        ] {
            let start = [i64::MAX.to_string(), "'ffffffff-ffff-ffff-ffff-ffffffffffff'".to_owned(), "11".to_owned()];
            let arguments: Vec<_> =
                [status, service, commit, since].map(str::to_owned).into_iter().chain(start).collect();
            // The first call reads the server's catalogue.
            bed::pages(own.connection(), page, &arguments).await;
            let pages = bed::pages(own.connection(), page, &arguments).await;
            println!("{name}: {pages} pages");
            assert!(pages < 60, "{name}: {pages} pages");
        }
    }

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
