//! Opening a file: its URL, its connections, its schema.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::time::Instant;

use super::database::{Database, code, primary_code};
use super::{Settings, migrations};
use crate::Schema;

/// Why a file could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The URL is for something else, or names no file.
    #[error(
        "{url:?} is not the URL of an SQLite file: {why}; write sqlite:///absolute/path.db or sqlite://relative/path.db"
    )]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The folder of the file does not exist.
    #[error("the folder {} does not exist: make it, or name another in the URL", .folder.display())]
    MissingFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// The file may not be read or written, or is a folder.
    #[error("cannot open {} for reading and writing: look at its permissions and those of its folder", .path.display())]
    CannotOpen {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
    /// The file has other content.
    #[error("{} is not an SQLite database: move it away, or name another file in the URL", .path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a newer version of this crate.
    #[error("{} has schema version {found}, and this program knows {known} at most: upgrade the program", .path.display())]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The schema of the file could not be brought to the newest version.
    #[error("cannot bring the schema of {} to version {known}; the file is as it was", .path.display())]
    Migration {
        /// The file.
        path: PathBuf,
        /// The newest version that this program knows.
        known: i64,
        /// Why.
        source: MigrateError,
    },
    /// Other processes kept the file locked for the whole of [`Settings::busy_timeout`].
    #[error("{} was locked by another process for {waited:?}: try again, or end that process", .path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// How long.
        waited: Duration,
    },
    /// Anything else that SQLite reports.
    #[error("cannot open {}", .path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
}

impl OpenError {
    /// Whether opening may succeed later without anyone's doing.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

const SCHEME: &str = "sqlite://";
/// A write-ahead log larger than this is cut when it starts anew.
const WAL_KEPT: &str = "67108864";
/// Between two tries to open a file that another process is setting up.
const RETRY: Duration = Duration::from_millis(20);

pub(super) async fn open(url: &str, settings: &Settings) -> Result<Database, OpenError> {
    let path = parse(url)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
        && !folder.is_dir()
    {
        return Err(OpenError::MissingFolder { folder: folder.to_owned() });
    }
    let options = options(&path, settings);
    // Turning a new file to WAL mode and recovering a WAL take locks that SQLite does not wait for.
    let start = Instant::now();
    loop {
        match connect(&path, &options, settings).await {
            Err(OpenError::Busy { path, .. }) if start.elapsed() < settings.busy_timeout => {
                tracing::debug!(path = %path.display(), "waits for another process that is opening the file");
                tokio::time::sleep(RETRY).await;
            }
            Err(OpenError::Busy { path, .. }) => return Err(OpenError::Busy { path, waited: start.elapsed() }),
            other => return other,
        }
    }
}

/// Reads the version of the tables, and neither makes nor changes the file.
pub(super) async fn look(url: &str, settings: &Settings) -> Result<Schema, OpenError> {
    let path = parse(url)?;
    let known = migrations::NEWEST;
    if !path.exists() {
        return Ok(Schema { found: None, known });
    }
    let options = SqliteConnectOptions::new().filename(&path).read_only(true).busy_timeout(settings.busy_timeout);
    let found = async {
        let mut connection = options.connect().await?;
        let has_table = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?)";
        let has_table = sqlx::query_scalar(has_table).bind(migrations::TABLE).fetch_one(&mut connection).await?;
        let newest = "SELECT max(version) FROM deploycore_migrations";
        let found: Option<i64> =
            if has_table { sqlx::query_scalar(newest).fetch_one(&mut connection).await? } else { None };
        connection.close().await?;
        Ok(found)
    };
    match found.await.map_err(|error| refused(&path, error))? {
        Some(found) if found > known => Err(OpenError::NewerSchema { path, found, known }),
        found => Ok(Schema { found, known }),
    }
}

fn parse(url: &str) -> Result<PathBuf, OpenError> {
    let refuse = |why: &str| OpenError::Url { url: url.to_owned(), why: why.to_owned() };
    let Some(place) = url.strip_prefix(SCHEME) else {
        return Err(match url.split_once(':') {
            Some((scheme, _)) if scheme != "sqlite" => refuse(&format!("its scheme is {scheme}")),
            _ => refuse("it does not start with sqlite://"),
        });
    };
    if place.is_empty() || place.ends_with('/') || place == ":memory:" {
        return Err(refuse("it names no file"));
    }
    if place.contains('?') {
        return Err(refuse("it has parameters, and there are none (write ? in a name as %3F)"));
    }
    let options = SqliteConnectOptions::from_str(url).map_err(|error| refuse(&error.to_string()))?;
    Ok(options.get_filename().to_owned())
}

fn options(path: &Path, settings: &Settings) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(settings.busy_timeout)
        .pragma("journal_size_limit", WAL_KEPT)
        .disable_statement_logging()
}

/// The pools hand out no connection that believes to be in a transaction: when the disk is full or fails, SQLite rolls back by itself,
/// the rollback that follows finds nothing and fails, and sqlx never counts the transaction as over. Such a connection refuses
/// every further transaction; the pool closes it and opens another. Only before it is handed out is that seen for sure: when it
/// comes back, its rollback may still be under way.
async fn connect(path: &Path, options: &SqliteConnectOptions, settings: &Settings) -> Result<Database, OpenError> {
    let pool = |connections| {
        SqlitePoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(settings.busy_timeout)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
    };
    let writer = pool(1).connect_with(options.clone()).await.map_err(|error| refused(path, error))?;
    migrate(path, &writer).await?;
    let readers = pool(settings.readers.max(1)).connect_lazy_with(options.clone().pragma("query_only", "ON"));
    Ok(Database::new(path, writer, readers))
}

/// Under the write lock, in one transaction: of several processes that open a file at once, one does the work.
async fn migrate(path: &Path, writer: &SqlitePool) -> Result<(), OpenError> {
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await.map_err(|error| refused(path, error))?;
    let migrated = migrations::migrator().run_direct(None, &mut *transaction, false).await;
    migrated.map_err(|error| match error {
        MigrateError::VersionMissing(found) => {
            OpenError::NewerSchema { path: path.to_owned(), found, known: migrations::NEWEST }
        }
        MigrateError::Execute(error) => refused(path, error),
        source => OpenError::Migration { path: path.to_owned(), known: migrations::NEWEST, source },
    })?;
    transaction.commit().await.map_err(|error| refused(path, error))
}

fn refused(path: &Path, source: sqlx::Error) -> OpenError {
    let path = path.to_owned();
    match primary_code(&source) {
        None if matches!(source, sqlx::Error::PoolTimedOut) => OpenError::Busy { path, waited: Duration::ZERO },
        Some(code::BUSY | code::LOCKED) => OpenError::Busy { path, waited: Duration::ZERO },
        Some(code::CANNOT_OPEN) => OpenError::CannotOpen { path, source },
        Some(code::NOT_A_DATABASE) => OpenError::NotADatabase { path },
        _ => OpenError::Failed { path, source },
    }
}
