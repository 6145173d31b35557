//! The schema, version by version. A version that was released is never edited: the next one adds to it.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

const VERSIONS: [(i64, &str, &str); 2] = [
    (1, "queue", include_str!("../../migrations/postgres/0001_queue.sql")),
    (2, "ledger", include_str!("../../migrations/postgres/0002_ledger.sql")),
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
