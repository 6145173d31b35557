//! The tables, version by version. A version that was released is never edited: the next one adds to it.
//!
//! The server commits each statement that makes a table by itself, so a version cannot be made in one transaction. Each statement of a version
//! does nothing where it was done before, and the version is written down when all are done: one that was cut off is taken up again.

use sqlx::mysql::MySqlConnection;

/// Number, name, statements.
type Version = (i64, &'static str, &'static str);

const VERSIONS: [Version; 6] = [
    (1, "queue", include_str!("../../migrations/mariadb/0001_queue.sql")),
    (2, "ledger", include_str!("../../migrations/mariadb/0002_ledger.sql")),
    (3, "older_jobs", include_str!("../../migrations/mariadb/0003_older_jobs.sql")),
    (4, "replication", include_str!("../../migrations/mariadb/0004_replication.sql")),
    (5, "queue_turns", include_str!("../../migrations/mariadb/0005_queue_turns.sql")),
    (6, "tombstones", include_str!("../../migrations/mariadb/0006_tombstones.sql")),
];

/// The newest version that this crate knows.
pub(super) const NEWEST: i64 = VERSIONS[VERSIONS.len() - 1].0;

/// The version of the tables, 0 where there are none.
pub(super) async fn found(connection: &mut MySqlConnection) -> Result<i64, sqlx::Error> {
    const HAS_TABLE: &str = "
        SELECT EXISTS (SELECT 1 FROM information_schema.tables
                       WHERE table_schema = DATABASE() AND table_name = 'deploycore_migrations')";
    const FOUND: &str = "SELECT COALESCE(MAX(version), 0) FROM deploycore_migrations";
    if !sqlx::query_scalar::<_, bool>(HAS_TABLE).fetch_one(&mut *connection).await? {
        return Ok(0);
    }
    sqlx::query_scalar(FOUND).fetch_one(connection).await
}

/// Brings the tables from the version that was `found` to `wanted`; on a connection that holds the lock of migrations.
pub(super) async fn migrate(connection: &mut MySqlConnection, found: i64, wanted: i64) -> Result<(), sqlx::Error> {
    const TABLE: &str = "
        CREATE TABLE IF NOT EXISTS deploycore_migrations (
            version BIGINT NOT NULL PRIMARY KEY, name VARCHAR(63) NOT NULL, migrated_at BIGINT NOT NULL
        ) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";
    const DONE: &str = concat!(
        "INSERT INTO deploycore_migrations (version, name, migrated_at) VALUES (?, ?, ",
        super::database::instant!(),
        ")"
    );
    sqlx::raw_sql(TABLE).execute(&mut *connection).await?;
    for (version, name, statements) in VERSIONS {
        if version > found && version <= wanted {
            sqlx::raw_sql(statements).execute(&mut *connection).await?;
            sqlx::query(DONE).bind(version).bind(name).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::OnceLock;
    use std::time::Duration;

    use deploycore::model::{ArtifactName, JobId, JobStatus};
    use deploycore::port::{JobQueueExt as _, ReplicationLedger as _};
    use servers::mariadb::{Database, MariaDb as Server, Options};
    use sqlx::{Connection as _, MySqlConnection};
    use tokio::time::{sleep, timeout};

    use super::{NEWEST, migrate};
    use crate::Schema;
    use crate::mariadb::{MariaDb, OpenError};

    pub(in crate::mariadb) fn server() -> &'static Server {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Server::start(&Options::default().with_fsync(false)).unwrap())
    }

    /// A database of an earlier version.
    pub(in crate::mariadb) async fn at_version(version: i64) -> (Database<'static>, MySqlConnection) {
        let database = server().create_database().unwrap();
        let mut connection = MySqlConnection::connect(&database.url()).await.unwrap();
        migrate(&mut connection, 0, version).await.unwrap();
        (database, connection)
    }

    #[tokio::test]
    async fn a_database_of_an_earlier_version_keeps_its_jobs() {
        const INSERT: &str = "
            INSERT INTO deploycore_jobs (id, created_at, commit, name, status, priority, max_attempts, max_releases,
                                         build_timeout, eligible_at, is_delayed)
            VALUES (?, 1, 'abcdef0', 'web', 'QUEUED', 0, 3, 10, 60000000, 1, FALSE)";
        let (database, mut connection) = at_version(1).await;
        let job = JobId::new();
        sqlx::query(INSERT).bind(job.as_uuid()).execute(&mut connection).await.unwrap();
        let no_ledger = sqlx::query("SELECT 1 FROM deploycore_artifacts").execute(&mut connection).await.unwrap_err();
        assert!(no_ledger.to_string().contains("doesn't exist"), "{no_ledger}");

        let url = database.url();
        // A look changes nothing.
        for _ in 0..2 {
            let schema = MariaDb::schema(&url).await.unwrap();
            assert_eq!(schema, Schema { found: Some(1), known: NEWEST });
        }

        // Two at once: one migrates.
        let (one, other) = tokio::join!(MariaDb::open(&url), MariaDb::open(&url));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!(one.queue().require(job).await.unwrap().status, JobStatus::Queued);
        let name = ArtifactName::new("web-1").unwrap();
        assert_eq!(other.ledger().status(&name).await.unwrap(), None);
        assert!(MariaDb::schema(&url).await.unwrap().is_current());
    }

    #[tokio::test]
    async fn a_database_of_a_newer_version_is_refused_and_left_alone() {
        const NEWER: &str = "INSERT INTO deploycore_migrations (version, name, migrated_at) VALUES (?, 'later', 0)";
        let (database, mut connection) = at_version(NEWEST).await;
        sqlx::query(NEWER).bind(NEWEST + 1).execute(&mut connection).await.unwrap();
        let error = MariaDb::open(&database.url()).await.unwrap_err();
        assert!(matches!(error, OpenError::NewerSchema { found, known, .. } if found == known + 1), "{error:?}");
        assert!(error.to_string().contains(database.name()) && error.to_string().contains("upgrade"), "{error}");
        assert!(!error.is_retryable());
        let told = MariaDb::schema(&database.url()).await.unwrap_err();
        assert!(matches!(told, OpenError::NewerSchema { .. }), "{told:?}");
    }

    /// A dump, for instance, or a transaction that a program left open.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_migration_that_waits_for_a_reader_lets_others_go_on() {
        const WAITS: &str = "
            SELECT EXISTS (SELECT 1 FROM information_schema.processlist
                           WHERE db = DATABASE() AND state = 'Waiting for table metadata lock')";
        const CHANGE: &str = "UPDATE deploycore_artifacts SET size = size WHERE name = 'web-1'";
        let (database, mut other) = at_version(NEWEST - 1).await;
        let url = database.url();
        let mut reader = MySqlConnection::connect(&url).await.unwrap();
        sqlx::raw_sql("START TRANSACTION").execute(&mut reader).await.unwrap();
        sqlx::raw_sql("SELECT name FROM deploycore_artifacts").execute(&mut reader).await.unwrap();
        let migration = tokio::spawn(async move { MariaDb::open(&url).await });
        while !sqlx::query_scalar::<_, bool>(WAITS).fetch_one(&mut other).await.unwrap() {
            assert!(!migration.is_finished(), "it waits for the reader");
            sleep(Duration::from_millis(20)).await;
        }
        let changed = timeout(Duration::from_secs(10), sqlx::raw_sql(CHANGE).execute(&mut other)).await;
        changed.expect("a change goes through").unwrap();
        assert!(!migration.is_finished(), "it waits for the reader");
        sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
        migration.await.unwrap().unwrap();
        assert!(MariaDb::schema(&database.url()).await.unwrap().is_current());
    }

    #[tokio::test]
    async fn a_migration_that_was_cut_off_is_taken_up_again() {
        const VERSIONS: &str = "SELECT COUNT(*) FROM deploycore_migrations";
        let (database, mut connection) = at_version(1).await;
        // Its first table was made, and no more.
        let cut = super::VERSIONS[1].2.split_inclusive(';').next().unwrap();
        sqlx::raw_sql(cut).execute(&mut connection).await.unwrap();
        assert_eq!(sqlx::query_scalar::<_, i64>(VERSIONS).fetch_one(&mut connection).await.unwrap(), 1);
        // Of another version all was made, but that was not written down.
        sqlx::raw_sql(super::VERSIONS[2].2).execute(&mut connection).await.unwrap();
        let opened = MariaDb::open(&database.url()).await.unwrap();
        let name = ArtifactName::new("web-1").unwrap();
        assert_eq!(opened.ledger().status(&name).await.unwrap(), None);
        assert_eq!(sqlx::query_scalar::<_, i64>(VERSIONS).fetch_one(&mut connection).await.unwrap(), NEWEST);
    }
}
