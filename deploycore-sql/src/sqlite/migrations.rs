//! The schema, version by version. A version that was released is never edited: the next one adds to it.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Beside a host's own tables in one file, and beside a host's own migrations.
pub(super) const TABLE: &str = "deploycore_migrations";

const VERSIONS: [(i64, &str, &str); 8] = [
    (1, "queue", include_str!("../../migrations/sqlite/0001_queue.sql")),
    (2, "ledger", include_str!("../../migrations/sqlite/0002_ledger.sql")),
    (3, "journal", include_str!("../../migrations/sqlite/0003_journal.sql")),
    (4, "older_jobs", include_str!("../../migrations/sqlite/0004_older_jobs.sql")),
    (5, "replication", include_str!("../../migrations/sqlite/0005_replication.sql")),
    (6, "queue_turns", include_str!("../../migrations/sqlite/0006_queue_turns.sql")),
    (7, "tombstones", include_str!("../../migrations/sqlite/0007_tombstones.sql")),
    (8, "rare_ends", include_str!("../../migrations/sqlite/0008_rare_ends.sql")),
];

/// The newest version that this crate knows.
pub(super) const NEWEST: i64 = VERSIONS[VERSIONS.len() - 1].0;

pub(super) fn migrator() -> Migrator {
    let migrations = VERSIONS.map(|(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.into());
    migrator.dangerous_set_table_name(TABLE);
    migrator
}

#[cfg(test)]
mod tests {
    use deploycore::model::{ArtifactName, JobId, JobStatus};
    use deploycore::port::{JobQueueExt as _, ReplicationLedger as _};
    use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
    use sqlx::{ConnectOptions as _, Connection as _};
    use tempfile::TempDir;

    use super::{NEWEST, migrator};
    use crate::Schema;
    use crate::sqlite::{OpenError, Sqlite};

    /// A file of an earlier version.
    async fn at_version(folder: &TempDir, version: i64) -> (String, SqliteConnection) {
        let path = folder.path().join("old.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        migrator().run_direct(Some(version), &mut connection, false).await.unwrap();
        (format!("sqlite://{}", path.display()), connection)
    }

    #[tokio::test]
    async fn a_file_of_an_earlier_version_keeps_its_jobs() {
        let folder = tempfile::tempdir().unwrap();
        let (url, mut connection) = at_version(&folder, 1).await;
        let job = JobId::new();
        let insert = "
            INSERT INTO jobs (id, created_at, \"commit\", name, status, priority, max_attempts, max_releases, build_timeout,
                              eligible_at, delayed)
            VALUES (?1, 1, 'abcdef0', 'web', 'QUEUED', 0, 3, 10, 60000000, 1, 0)";
        sqlx::query(insert).bind(job.to_string()).execute(&mut connection).await.unwrap();
        let no_ledger = sqlx::query("SELECT * FROM artifacts").execute(&mut connection).await.unwrap_err();
        assert!(no_ledger.to_string().contains("no such table"), "{no_ledger}");
        connection.close().await.unwrap();

        // A look changes nothing.
        for _ in 0..2 {
            let schema = Sqlite::schema(&url).await.unwrap();
            assert_eq!(schema, Schema { found: Some(1), known: NEWEST });
        }
        let sqlite = Sqlite::open(&url).await.unwrap();
        assert!(Sqlite::schema(&url).await.unwrap().is_current());
        assert_eq!(sqlite.queue().require(job).await.unwrap().status, JobStatus::Queued);
        let name = ArtifactName::new("web-1").unwrap();
        assert_eq!(sqlite.ledger().status(&name).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_file_of_a_newer_version_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (url, mut connection) = at_version(&folder, NEWEST).await;
        let newer = "INSERT INTO deploycore_migrations SELECT ?1, 'later', installed_on, TRUE, checksum, 0
                     FROM deploycore_migrations WHERE version = 1";
        sqlx::query(newer).bind(NEWEST + 1).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();

        let error = Sqlite::open(&url).await.unwrap_err();
        assert!(matches!(error, OpenError::NewerSchema { found, known, .. } if found == known + 1), "{error:?}");
        assert!(error.to_string().contains("old.db") && error.to_string().contains("upgrade"), "{error}");
        assert!(!error.is_retryable());
        let told = Sqlite::schema(&url).await.unwrap_err();
        assert!(matches!(told, OpenError::NewerSchema { .. }), "{told:?}");
    }

    #[tokio::test]
    async fn a_look_at_a_file_that_is_not_there_makes_none() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/none.db", folder.path().display());
        assert_eq!(Sqlite::schema(&url).await.unwrap(), Schema { found: None, known: NEWEST });
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_failed_migration_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let (url, mut connection) = at_version(&folder, 1).await;
        // A host's own table is in the way of one in the middle of version 2.
        sqlx::query("CREATE TABLE pins (own TEXT)").execute(&mut connection).await.unwrap();
        let error = Sqlite::open(&url).await.unwrap_err();
        assert!(matches!(error, OpenError::Migration { .. }), "{error:?}");
        let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('artifacts', 'copies')";
        assert_eq!(sqlx::query_scalar::<_, i64>(tables).fetch_one(&mut connection).await.unwrap(), 0);

        sqlx::query("DROP TABLE pins").execute(&mut connection).await.unwrap();
        Sqlite::open(&url).await.unwrap();
    }
}
