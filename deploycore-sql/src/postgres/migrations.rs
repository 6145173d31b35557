//! The schema, version by version. A version that was released is never edited: the next one adds to it.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

const VERSIONS: [(i64, &str, &str); 12] = [
    (1, "queue", include_str!("../../migrations/postgres/0001_queue.sql")),
    (2, "ledger", include_str!("../../migrations/postgres/0002_ledger.sql")),
    (3, "journal", include_str!("../../migrations/postgres/0003_journal.sql")),
    (4, "claims", include_str!("../../migrations/postgres/0004_claims.sql")),
    (5, "replication", include_str!("../../migrations/postgres/0005_replication.sql")),
    (6, "queue_turns", include_str!("../../migrations/postgres/0006_queue_turns.sql")),
    (7, "tombstones", include_str!("../../migrations/postgres/0007_tombstones.sql")),
    (8, "outcomes", include_str!("../../migrations/postgres/0008_outcomes.sql")),
    (9, "history", include_str!("../../migrations/postgres/0009_history.sql")),
    (10, "delays", include_str!("../../migrations/postgres/0010_delays.sql")),
    (11, "rare_ends", include_str!("../../migrations/postgres/0011_rare_ends.sql")),
    (12, "fewer_checks", include_str!("../../migrations/postgres/0012_fewer_checks.sql")),
];

/// The newest version that this crate knows.
pub(super) const NEWEST: i64 = VERSIONS[VERSIONS.len() - 1].0;

/// For a connection that holds the lock of migrations, in a transaction, in a database that has the schema.
pub(super) fn migrator() -> Migrator {
    let migrations = VERSIONS.map(|(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.into());
    migrator.dangerous_set_table_name("deploycore.migrations");
    migrator.set_locking(false);
    migrator
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::OnceLock;
    use std::time::Duration;

    use deploycore::model::{
        ArtifactName, ArtifactRef, AttemptOutcome, ClaimId, Completion, Digest, Epoch, JobId, JobStatus, Lease, NewJob,
        Timings,
    };
    use deploycore::port::queue::{Beat, ClaimRequest};
    use deploycore::port::{JobQueue as _, JobQueueExt as _, ReplicationLedger as _};
    use servers::postgres::{Database, Options, Postgres as Server};
    use sqlx::{Connection as _, PgConnection};
    use tokio::time::{sleep, timeout};

    use super::{NEWEST, migrator};
    use crate::postgres::{self, OpenError, Postgres, Queue, Settings};
    use crate::{Schema, stored};

    /// A database of an earlier version.
    pub(in crate::postgres) async fn at_version(version: i64) -> (Database<'static>, PgConnection) {
        static SERVER: OnceLock<Server> = OnceLock::new();
        let server = SERVER.get_or_init(|| Server::start(&Options::default()).unwrap());
        let database = server.create_database().unwrap();
        let mut connection = PgConnection::connect(&database.url()).await.unwrap();
        sqlx::raw_sql("CREATE SCHEMA deploycore").execute(&mut connection).await.unwrap();
        migrator().run_direct(Some(version), &mut connection, false).await.unwrap();
        (database, connection)
    }

    #[tokio::test]
    async fn a_database_of_an_earlier_version_keeps_its_jobs() {
        const INSERT: &str = "
            INSERT INTO deploycore.jobs (id, created_at, \"commit\", name, status, priority, max_attempts, max_releases,
                                         build_timeout, eligible_at, delayed)
            VALUES ($1, 1, 'abcdef0', 'web', 'QUEUED', 0, 3, 10, 60000000, 1, false)";
        let (database, mut connection) = at_version(1).await;
        let job = JobId::new();
        sqlx::query(INSERT).bind(job.as_uuid()).execute(&mut connection).await.unwrap();
        let no_ledger = sqlx::query("SELECT FROM deploycore.artifacts").execute(&mut connection).await.unwrap_err();
        assert!(no_ledger.to_string().contains("does not exist"), "{no_ledger}");

        let url = database.url();
        // A look changes nothing.
        for _ in 0..2 {
            let schema = Postgres::schema(&url).await.unwrap();
            assert_eq!(schema, Schema { found: Some(1), known: NEWEST });
        }

        // Two at once: one migrates.
        let (one, other) = tokio::join!(Postgres::open(&url), Postgres::open(&url));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!(one.queue().require(job).await.unwrap().status, JobStatus::Queued);
        let name = ArtifactName::new("web-1").unwrap();
        assert_eq!(other.ledger().status(&name).await.unwrap(), None);
        assert!(Postgres::schema(&url).await.unwrap().is_current());
    }

    /// Also one whose time came before the new program did.
    #[tokio::test]
    async fn jobs_of_each_earlier_version_are_claimed() {
        const INSERT: &str = "
            INSERT INTO deploycore.jobs (id, created_at, \"commit\", name, status, priority, max_attempts, max_releases,
                                         build_timeout, eligible_at, delayed)
            VALUES ($1, 1, 'abcdef0', 'web', 'QUEUED', $2, 3, 10, 60000000, 1, $3)";
        for version in 1..NEWEST {
            let (database, mut connection) = at_version(version).await;
            let jobs = [JobId::new(), JobId::new()];
            for (job, (priority, delayed)) in jobs.iter().zip([(1_i64, true), (0, false)]) {
                let insert = sqlx::query(INSERT).bind(job.as_uuid()).bind(priority).bind(delayed);
                insert.execute(&mut connection).await.unwrap();
            }
            let queue = Postgres::open(&database.url()).await.unwrap().queue();
            let request = ClaimRequest { claim: ClaimId::new(), worker: "w".parse().unwrap(), limit: 2 };
            let claimed: Vec<_> = queue.claim(&request).await.unwrap().into_iter().map(|job| job.spec.id).collect();
            assert_eq!(claimed, jobs, "version {version}");
        }
    }

    #[tokio::test]
    async fn what_succeeded_under_an_earlier_version_is_known() {
        const JOB: &str = "
            INSERT INTO deploycore.jobs (id, created_at, \"commit\", name, status, priority, max_attempts, max_releases, build_timeout,
                                         eligible_at, delayed, epoch, attempts, claim_id, worker, claimed_at, last_heartbeat,
                                         deadline, finished_at, artifact, digest, size)
            VALUES ($1, 1, 'abcdef0', 'web', 'SUCCEEDED', 0, 3, 10, 60000000, 1, false, 1, 1, $2, 'w', 2, 2, 60000002, 3, $3, $4, $5)";
        const ATTEMPT: &str = "
            INSERT INTO deploycore.attempts (job, epoch, claim_id, worker, claimed_at, ended_at, outcome)
            VALUES ($1, 1, $2, 'w', 2, 3, $3)";
        let (database, mut connection) = at_version(7).await;
        let lease = Lease { job: JobId::new(), claim: ClaimId::new(), epoch: Epoch::new(1) };
        let name = ArtifactName::new("web-1").unwrap();
        let artifact = ArtifactRef { name, digest: Digest::of(b"web"), size: 3 };
        let completion = Completion::Succeeded {
            artifact: artifact.clone(),
            log: None,
            timings: Timings { build_ms: 1, store_ms: 0 },
        };
        let outcome = AttemptOutcome::Completed { completion: completion.clone() };
        let (job, claim) = (lease.job.as_uuid(), lease.claim.as_uuid());
        let insert = sqlx::query(JOB).bind(job).bind(claim).bind(artifact.name.as_str());
        let insert = insert.bind(artifact.digest.to_string()).bind(artifact.size as i64);
        insert.execute(&mut connection).await.unwrap();
        let insert = sqlx::query(ATTEMPT).bind(job).bind(claim).bind(stored::json(&outcome));
        insert.execute(&mut connection).await.unwrap();

        let queue = Postgres::open(&database.url()).await.unwrap().queue();
        let attempts = queue.attempts(lease.job).await.unwrap();
        assert_eq!(attempts.len(), 1, "{attempts:?}");
        assert_eq!((attempts[0].lease, attempts[0].outcome.as_ref()), (lease, Some(&outcome)));
        assert_eq!(queue.complete(&lease, &completion).await.unwrap(), JobStatus::Succeeded, "a repeated call");
        assert_eq!(queue.require(lease.job).await.unwrap().artifact, Some(artifact));
        queue.enqueue_one(&NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap())).await.unwrap();
        let again = ClaimRequest { claim: lease.claim, worker: "w".parse().unwrap(), limit: 1 };
        assert_eq!(queue.claim(&again).await.unwrap(), [], "a claim that was answered");
    }

    #[tokio::test]
    async fn a_database_of_a_newer_version_is_refused_and_left_alone() {
        const NEWER: &str = "
            INSERT INTO deploycore.migrations (version, description, success, checksum, execution_time)
            VALUES ($1, 'later', true, '', 0)";
        let (database, mut connection) = at_version(NEWEST).await;
        sqlx::query(NEWER).bind(NEWEST + 1).execute(&mut connection).await.unwrap();
        let error = Postgres::open(&database.url()).await.unwrap_err();
        assert!(matches!(error, OpenError::NewerSchema { found, known, .. } if found == known + 1), "{error:?}");
        assert!(error.to_string().contains(database.name()) && error.to_string().contains("upgrade"), "{error}");
        assert!(!error.is_retryable());
        let told = Postgres::schema(&database.url()).await.unwrap_err();
        assert!(matches!(told, OpenError::NewerSchema { .. }), "{told:?}");
    }

    /// A dump, for instance, or a transaction that a program left open.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_migration_that_waits_for_a_reader_lets_those_of_the_version_before_go_on() {
        const WAITS: &str = "
            SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
        const SOON: Duration = Duration::from_secs(10);
        let (database, mut watcher) = at_version(NEWEST - 1).await;
        let url = database.url();
        let earlier = postgres::database::Database::new("", &url.parse().unwrap(), &Settings::default());
        let queue = Queue::new(earlier);
        let job = || NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap());
        let request = || ClaimRequest { claim: ClaimId::new(), worker: "w".parse().unwrap(), limit: 1 };
        queue.enqueue(&[job(), job()]).await.unwrap();
        let lease = queue.claim(&request()).await.unwrap()[0].running.as_ref().unwrap().lease;

        let mut reader = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql("BEGIN; SELECT count(*) FROM deploycore.jobs").execute(&mut reader).await.unwrap();
        let migration = tokio::spawn(async move { Postgres::open(&url).await });
        while !sqlx::query_scalar::<_, bool>(WAITS).fetch_one(&mut watcher).await.unwrap() {
            assert!(!migration.is_finished(), "it waits for the reader");
            sleep(Duration::from_millis(20)).await;
        }
        let beats = timeout(SOON, queue.heartbeat(&[lease])).await.expect("a heartbeat goes through").unwrap();
        assert!(matches!(beats[..], [Beat::Held { .. }]), "{beats:?}");
        let claimed = timeout(SOON, queue.claim(&request())).await.expect("a claim goes through").unwrap();
        assert_eq!(claimed.len(), 1);
        assert!(!migration.is_finished(), "it waits for the reader");

        sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
        migration.await.unwrap().unwrap();
        assert!(Postgres::schema(&database.url()).await.unwrap().is_current());
        assert!(matches!(queue.heartbeat(&[lease]).await.unwrap()[..], [Beat::Held { .. }]));
    }

    #[tokio::test]
    async fn a_failed_migration_leaves_nothing_behind() {
        const TABLES: &str =
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'deploycore' AND tablename IN ('artifacts', 'copies')";
        let (database, mut connection) = at_version(1).await;
        // A table of somebody is in the way of one in the middle of version 2.
        sqlx::raw_sql("CREATE TABLE deploycore.pins (own text)").execute(&mut connection).await.unwrap();
        let error = Postgres::open(&database.url()).await.unwrap_err();
        assert!(matches!(error, OpenError::Migration { .. }), "{error:?}");
        assert_eq!(sqlx::query_scalar::<_, i64>(TABLES).fetch_one(&mut connection).await.unwrap(), 0);

        sqlx::raw_sql("DROP TABLE deploycore.pins").execute(&mut connection).await.unwrap();
        Postgres::open(&database.url()).await.unwrap();
    }
}
