//! The schema, version by version. A version that was released is never edited: the next one adds to it.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Beside a host's own tables in one file, and beside a host's own migrations.
pub(super) const TABLE: &str = "deploycore_migrations";

const VERSIONS: [(i64, &str, &str); 2] = [
    (1, "queue", include_str!("../../migrations/sqlite/0001_queue.sql")),
    (2, "ledger", include_str!("../../migrations/sqlite/0002_ledger.sql")),
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
