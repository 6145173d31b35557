//! The connections of one process to a file, and the two ways to use them: a write transaction and a read transaction.

use std::path::Path;
use std::sync::Arc;

use deploycore::model::Timestamp;
use deploycore::port::BackendError;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{Sqlite, Transaction};

use crate::columns::Columns;
use crate::stored::Corrupt;

pub(super) const NAME: &str = "sqlite";

/// SQLite's clock in microseconds. It has millisecond steps, and stands still within a statement.
const NOW: &str = "SELECT CAST(round(unixepoch('now', 'subsec') * 1000) AS INTEGER) * 1000 AS now";

/// Primary result codes of SQLite.
pub(super) mod code {
    pub(crate) const BUSY: i32 = 5;
    pub(crate) const LOCKED: i32 = 6;
    pub(crate) const CANNOT_OPEN: i32 = 14;
    pub(crate) const NOT_A_DATABASE: i32 = 26;
}

#[derive(Debug, Clone)]
pub(super) struct Database {
    path: Arc<Path>,
    writer: SqlitePool,
    readers: SqlitePool,
}

/// A transaction at one instant of the database's clock. Dropped, it has had no effect.
#[derive(Debug)]
pub(super) struct Moment {
    transaction: Transaction<'static, Sqlite>,
    pub(super) now: Timestamp,
}

impl Database {
    pub(super) fn new(path: &Path, writer: SqlitePool, readers: SqlitePool) -> Self {
        Self { path: path.into(), writer, readers }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the write lock of the file.
    pub(super) async fn write(&self) -> Result<Moment, BackendError> {
        begin(&self.writer, "BEGIN IMMEDIATE").await
    }

    /// Reads the file as it stands now, whatever is written meanwhile.
    pub(super) async fn read(&self) -> Result<Moment, BackendError> {
        begin(&self.readers, "BEGIN").await
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

async fn begin(pool: &SqlitePool, statement: &'static str) -> Result<Moment, BackendError> {
    let mut transaction = pool.begin_with(statement).await.map_err(failed)?;
    let row = sqlx::query(NOW).fetch_one(&mut *transaction).await.map_err(failed)?;
    let now = Columns(&row).time("now")?;
    Ok(Moment { transaction, now })
}

impl Moment {
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }

    /// Makes the effect durable.
    pub(super) async fn commit(self) -> Result<(), BackendError> {
        self.transaction.commit().await.map_err(failed)
    }
}

/// What a failed statement means to the caller: a lock or a connection that did not come in time may come later.
pub(super) fn failed(error: sqlx::Error) -> BackendError {
    let later =
        matches!(error, sqlx::Error::PoolTimedOut) || matches!(primary_code(&error), Some(code::BUSY | code::LOCKED));
    if later { BackendError::retryable(NAME, error) } else { BackendError::permanent(NAME, error) }
}

pub(super) fn corrupt(error: Corrupt) -> BackendError {
    BackendError::permanent(NAME, error)
}

/// SQLite's result code without its extension.
pub(super) fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::{Settings, open};

    /// The bound on the file's pages stands for the disk. It belongs to the one connection that writes.
    async fn set_full(pool: &SqlitePool, full: bool) {
        let pages = if full { "PRAGMA max_page_count = 1" } else { "PRAGMA max_page_count = 1000000" };
        sqlx::query(pages).execute(pool).await.unwrap();
    }

    async fn insert(database: &Database) -> Result<(), BackendError> {
        let mut moment = database.write().await?;
        let insert = sqlx::query("INSERT INTO filler VALUES (zeroblob(100000))");
        insert.execute(moment.connection()).await.map_err(failed)?;
        moment.commit().await
    }

    #[tokio::test]
    async fn a_disk_that_was_full_is_written_to_once_it_has_room() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/full.db", folder.path().display());
        let database = open::open(&url, &Settings::default()).await.unwrap();
        sqlx::query("CREATE TABLE filler (bytes BLOB)").execute(&database.writer).await.unwrap();
        for _ in 0..3 {
            set_full(&database.writer, true).await;
            insert(&database).await.unwrap_err();
            set_full(&database.writer, false).await;
            insert(&database).await.unwrap();
        }
        let mut moment = database.read().await.unwrap();
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM filler").fetch_one(moment.connection()).await.unwrap();
        assert_eq!(count, 3);
    }
}
