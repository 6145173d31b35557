//! Opening a database: its URL, its connections, its schema.

use std::str::FromStr as _;
use std::time::{Duration, Instant};

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

use super::database::{Database, may_pass};
use super::{Settings, migrations};
use crate::Schema;

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The URL is for something else, or names no database. It is not shown whole: it may hold a password.
    #[error(
        "the URL of a PostgreSQL database is postgres://user:password@host:port/database, and this is not one: {why}"
    )]
    Url {
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answers there.
    #[error("cannot reach the PostgreSQL server at {place}: look at its address and port, and whether it runs")]
    Unreachable {
        /// Where: `host:port/database`.
        place: String,
        /// Why.
        source: sqlx::Error,
    },
    /// The server answers, and is not ready: it starts, stops, or has too many connections.
    #[error("the PostgreSQL server at {place} is not ready")]
    NotReady {
        /// Where.
        place: String,
        /// What it says.
        source: sqlx::Error,
    },
    /// The server does not know the user, or not with this password, or not from here.
    #[error("the PostgreSQL server at {place} refuses user {user:?}: look at user, password and pg_hba.conf")]
    Refused {
        /// Where.
        place: String,
        /// Who.
        user: String,
        /// What it says.
        source: sqlx::Error,
    },
    /// The server has no such database.
    #[error(
        "the PostgreSQL server of {place} has no such database: create it (CREATE DATABASE), or name another in the URL"
    )]
    MissingDatabase {
        /// Where.
        place: String,
    },
    /// The database holds text in another encoding.
    #[error("the database {place} is encoded as {encoding}: create one with ENCODING 'UTF8'")]
    Encoding {
        /// Where.
        place: String,
        /// As what.
        encoding: String,
    },
    /// The server is too old.
    #[error("the PostgreSQL server at {place} is of version {version}: 13 is the oldest that is known to do")]
    OldServer {
        /// Where.
        place: String,
        /// Its version.
        version: String,
    },
    /// The schema was written by a newer version of this crate.
    #[error("{place} has schema version {found}, and this program knows {known} at most: upgrade the program")]
    NewerSchema {
        /// Where.
        place: String,
        /// Its version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The role may not make or change the schema, or not use it.
    #[error(
        "the role of {user:?} lacks a right in {place}: it must own the schema deploycore to bring it to version {known}"
    )]
    Forbidden {
        /// Where.
        place: String,
        /// Who.
        user: String,
        /// The newest version that this program knows.
        known: i64,
        /// What the server says.
        source: sqlx::Error,
    },
    /// Others held the tables all the time that a migration waits for them.
    #[error(
        "cannot bring the schema deploycore of {place} to version {known}: a transaction holds its tables; look for the oldest in \
         pg_stat_activity (a dump, or one that a program left open), end it, and start again"
    )]
    TablesHeld {
        /// Where.
        place: String,
        /// The newest version that this program knows.
        known: i64,
        /// What the server says.
        source: sqlx::Error,
    },
    /// The schema could not be brought to the newest version.
    #[error("cannot bring the schema deploycore of {place} to version {known}; it is as it was")]
    Migration {
        /// Where.
        place: String,
        /// The newest version that this program knows.
        known: i64,
        /// Why.
        source: MigrateError,
    },
    /// Anything else that the server reports.
    #[error("cannot open {place}")]
    Failed {
        /// Where.
        place: String,
        /// What it says.
        source: sqlx::Error,
    },
}

impl OpenError {
    /// Whether opening may succeed later without anyone's doing.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NotReady { .. } | Self::TablesHeld { .. })
    }
}

/// Who migrates a large database takes its time; those who wait for it give up after this.
const MIGRATE_WITHIN: Duration = Duration::from_mins(10);
/// How long a migration stands in line for a table. Everybody else stands behind it meanwhile, heartbeats too: far below the time after which
/// a build counts as lost.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
/// In which everybody else goes on before a migration stands in line again.
const PAUSE: Duration = Duration::from_secs(5);
/// The lock of those who migrate: "deploy" and "m" in ASCII.
const LOCK: i64 = 0x6465_706c_6f79_006d;

pub(super) async fn open(url: &str, settings: &Settings) -> Result<Database, OpenError> {
    let options = parse(url)?;
    let place = Place::of(&options);
    let mut connection = connect(&place, &options, settings).await?;
    match timeout(MIGRATE_WITHIN, prepare(&place, &mut connection)).await {
        Ok(prepared) => prepared?,
        Err(late) => return Err(OpenError::NotReady { place: place.name, source: too_late(late) }),
    }
    // It has done its work either way.
    let _ = timeout(settings.connect_timeout, connection.close()).await;
    Ok(Database::new(&place.name, &options, settings))
}

/// Connects and looks, and changes nothing.
pub(super) async fn look(url: &str, settings: &Settings) -> Result<Schema, OpenError> {
    let options = parse(url)?;
    let place = Place::of(&options);
    let mut connection = connect(&place, &options, settings).await?;
    let looked = timeout(settings.call_timeout, inspect(&place, &mut connection)).await;
    let _ = timeout(settings.connect_timeout, connection.close()).await;
    looked.unwrap_or_else(|late| Err(OpenError::NotReady { place: place.name, source: too_late(late) }))
}

async fn connect(place: &Place, options: &PgConnectOptions, settings: &Settings) -> Result<PgConnection, OpenError> {
    match timeout(settings.connect_timeout, options.connect()).await {
        Ok(connected) => connected.map_err(|error| place.explain(error)),
        Err(late) => Err(OpenError::Unreachable { place: place.name.clone(), source: too_late(late) }),
    }
}

fn too_late(late: Elapsed) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, late))
}

fn parse(url: &str) -> Result<PgConnectOptions, OpenError> {
    let refuse = |why: &str| OpenError::Url { why: why.to_owned() };
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    match scheme {
        Some("postgres" | "postgresql") => {}
        Some(other) => return Err(refuse(&format!("its scheme is {other}"))),
        None => return Err(refuse("it does not start with postgres://")),
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| match error {
        sqlx::Error::Configuration(why) => refuse(&why.to_string()),
        error => refuse(&error.to_string()),
    })?;
    if options.get_database().is_none_or(str::is_empty) {
        return Err(refuse("it names no database"));
    }
    let options = match options.get_application_name() {
        Some(_) => options,
        None => options.application_name("deploycore"),
    };
    Ok(options.disable_statement_logging())
}

/// What an error tells of where it happened.
struct Place {
    name: String,
    user: String,
}

impl Place {
    fn of(options: &PgConnectOptions) -> Self {
        let (host, port) = (options.get_host(), options.get_port());
        let database = options.get_database().unwrap_or_default();
        let name = match options.get_socket() {
            Some(socket) => format!("{}:{port}/{database}", socket.display()),
            None => format!("{host}:{port}/{database}"),
        };
        Self { name, user: options.get_username().to_owned() }
    }

    fn explain(&self, source: sqlx::Error) -> OpenError {
        let (place, user) = (self.name.clone(), self.user.clone());
        if matches!(source, sqlx::Error::Io(_)) {
            return OpenError::Unreachable { place, source };
        }
        let code = source.as_database_error().and_then(DatabaseError::code).unwrap_or_default().into_owned();
        match code.as_str() {
            "3D000" => OpenError::MissingDatabase { place },
            "28P01" | "28000" => OpenError::Refused { place, user, source },
            "42501" => OpenError::Forbidden { place, user, known: migrations::NEWEST, source },
            // A lock that did not come in time, a deadlock.
            "55P03" | "40P01" => self.held(source),
            _ if may_pass(&source) => OpenError::NotReady { place, source },
            _ => OpenError::Failed { place, source },
        }
    }

    fn held(&self, source: sqlx::Error) -> OpenError {
        OpenError::TablesHeld { place: self.name.clone(), known: migrations::NEWEST, source }
    }

    fn explain_migration(&self, error: MigrateError) -> OpenError {
        let (place, known) = (self.name.clone(), migrations::NEWEST);
        match error {
            MigrateError::VersionMissing(found) => OpenError::NewerSchema { place, found, known },
            MigrateError::Execute(source) => self.explain(source),
            MigrateError::ExecuteMigration(source, version) => match self.explain(source) {
                // The version says more than that the database does not open.
                OpenError::Failed { source, .. } => {
                    OpenError::Migration { place, known, source: MigrateError::ExecuteMigration(source, version) }
                }
                told => told,
            },
            source => OpenError::Migration { place, known, source },
        }
    }
}

/// Looks at the server, and migrates if need be: a role that may not does not have to when there is nothing to do.
async fn prepare(place: &Place, connection: &mut PgConnection) -> Result<(), OpenError> {
    if inspect(place, connection).await?.is_current() {
        return Ok(());
    }
    migrate(place, connection, MIGRATE_WITHIN).await
}

/// Looks at the server and at the version of its tables.
async fn inspect(place: &Place, connection: &mut PgConnection) -> Result<Schema, OpenError> {
    const SERVER: &str = "
        SELECT current_setting('server_version') AS version, current_setting('server_version_num')::bigint AS number,
               current_setting('server_encoding') AS encoding";
    let server: (String, i64, String) =
        sqlx::query_as(SERVER).fetch_one(&mut *connection).await.map_err(|error| place.explain(error))?;
    let (version, number, encoding) = server;
    if number < 13_00_00 {
        return Err(OpenError::OldServer { place: place.name.clone(), version });
    }
    if encoding != "UTF8" {
        return Err(OpenError::Encoding { place: place.name.clone(), encoding });
    }
    let (found, known) = (found(connection).await.map_err(|error| place.explain(error))?, migrations::NEWEST);
    match found {
        Some(found) if found > known => Err(OpenError::NewerSchema { place: place.name.clone(), found, known }),
        found => Ok(Schema { found, known }),
    }
}

/// The version of the schema, if there is one.
async fn found(connection: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    const HAS_TABLE: &str = "SELECT to_regclass('deploycore.migrations') IS NOT NULL";
    const NEWEST: &str = "SELECT max(version) FROM deploycore.migrations";
    if !sqlx::query_scalar::<_, bool>(HAS_TABLE).fetch_one(&mut *connection).await? {
        return Ok(None);
    }
    sqlx::query_scalar(NEWEST).fetch_one(connection).await
}

/// Under a lock: of several processes that open a database at once, one does the work. It tries again while others hold the tables.
async fn migrate(place: &Place, connection: &mut PgConnection, within: Duration) -> Result<(), OpenError> {
    const SETTINGS: &str = "SET statement_timeout = 0; SET lock_timeout = 0; SET client_min_messages = warning";
    // It is the connection's and ends with it: between two tries nobody else stands in line for the tables.
    const LOCK_ALONE: &str = "SELECT pg_advisory_lock($1)";
    let begun = Instant::now();
    sqlx::raw_sql(SETTINGS).execute(&mut *connection).await.map_err(|error| place.explain(error))?;
    let lock = sqlx::query(LOCK_ALONE).bind(LOCK);
    lock.execute(&mut *connection).await.map_err(|error| place.explain(error))?;
    // Who had the lock before may have done it.
    while !inspect(place, connection).await?.is_current() {
        match migrate_once(place, connection).await {
            Err(OpenError::TablesHeld { place, known, source }) => {
                if begun.elapsed() + PAUSE + LOCK_WITHIN >= within {
                    return Err(OpenError::TablesHeld { place, known, source });
                }
                tracing::warn!(place, error = %source, "a migration waits for transactions that hold the tables");
                sleep(PAUSE).await;
            }
            done => return done,
        }
    }
    Ok(())
}

async fn migrate_once(place: &Place, connection: &mut PgConnection) -> Result<(), OpenError> {
    let explain = |error| place.explain(error);
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(explain)?;
    match bring_up(place, &mut transaction).await {
        Ok(()) => transaction.commit().await.map_err(explain),
        Err(error) => {
            // Now, and not with the next statement: it may hold locks.
            let _ = transaction.rollback().await;
            Err(error)
        }
    }
}

/// In a transaction, which has the tables to itself before it changes one: once it holds what others need, it waits for nobody.
async fn bring_up(place: &Place, connection: &mut PgConnection) -> Result<(), OpenError> {
    const HAS_SCHEMA: &str = "SELECT to_regnamespace('deploycore') IS NOT NULL";
    // Not the table of migrations, which those who open the database read meanwhile, nor what belongs to somebody else.
    const TABLES: &str = "
        SELECT string_agg(format('deploycore.%I', tablename), ', ' ORDER BY tablename) FROM pg_tables
        WHERE schemaname = 'deploycore' AND tablename <> 'migrations' AND pg_has_role(tableowner, 'USAGE')";
    let explain = |error| place.explain(error);
    let limit = AssertSqlSafe(format!("SET LOCAL lock_timeout = {}", LOCK_WITHIN.as_millis()));
    sqlx::raw_sql(limit).execute(&mut *connection).await.map_err(explain)?;
    if !sqlx::query_scalar::<_, bool>(HAS_SCHEMA).fetch_one(&mut *connection).await.map_err(explain)? {
        sqlx::raw_sql("CREATE SCHEMA deploycore").execute(&mut *connection).await.map_err(explain)?;
    }
    let tables: Option<String> = sqlx::query_scalar(TABLES).fetch_one(&mut *connection).await.map_err(explain)?;
    if let Some(tables) = tables {
        lock(place, connection, &tables).await?;
    }
    let migrated = migrations::migrator().run_direct(None, connection, false).await;
    migrated.map_err(|error| place.explain_migration(error))
}

/// Takes tables. While it waits for one it holds those before, so the time is for all of them.
async fn lock(place: &Place, connection: &mut PgConnection, tables: &str) -> Result<(), OpenError> {
    const QUERY_CANCELED: &str = "57014";
    let limit = AssertSqlSafe(format!("SET LOCAL statement_timeout = {}", LOCK_WITHIN.as_millis()));
    sqlx::raw_sql(limit).execute(&mut *connection).await.map_err(|error| place.explain(error))?;
    let lock = AssertSqlSafe(format!("LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE"));
    if let Err(source) = sqlx::raw_sql(lock).execute(&mut *connection).await {
        let code = source.as_database_error().and_then(DatabaseError::code);
        let is_late = code.is_some_and(|code| code == QUERY_CANCELED);
        return Err(if is_late { place.held(source) } else { place.explain(source) });
    }
    // What follows takes the time that it needs.
    let no_limit = sqlx::raw_sql("SET LOCAL statement_timeout = 0").execute(connection).await;
    no_limit.map(drop).map_err(|error| place.explain(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::migrations::tests::at_version;

    #[tokio::test]
    async fn who_holds_the_tables_for_too_long_is_asked_for() {
        let (database, mut reader) = at_version(migrations::NEWEST - 1).await;
        sqlx::raw_sql("BEGIN; SELECT count(*) FROM deploycore.jobs").execute(&mut reader).await.unwrap();
        let options = parse(&database.url()).unwrap();
        let place = Place::of(&options);
        let mut connection = options.connect().await.unwrap();
        let error = migrate(&place, &mut connection, Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, OpenError::TablesHeld { .. }) && error.is_retryable(), "{error:?}");
        assert!(
            error.to_string().contains(database.name()) && error.to_string().contains("pg_stat_activity"),
            "{error}"
        );
        assert_eq!(inspect(&place, &mut connection).await.unwrap().found, Some(migrations::NEWEST - 1));
        sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
        migrate(&place, &mut connection, Duration::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn a_migration_of_a_role_that_does_not_own_the_tables_is_told_as_that() {
        let (database, mut owner) = at_version(migrations::NEWEST - 1).await;
        let role = format!("guest_of_{}", database.name());
        let make = format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'secret';
             GRANT USAGE, CREATE ON SCHEMA deploycore TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA deploycore TO {role}"
        );
        sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut owner).await.unwrap();
        let url = database.url().replace("deploycore:of-a-test@", &format!("{role}:secret@"));
        let error = open(&url, &Settings::default()).await.unwrap_err();
        let drop = format!("DROP OWNED BY {role}; DROP ROLE {role}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut owner).await.unwrap();
        assert!(matches!(error, OpenError::Forbidden { .. }), "{error:?}");
    }
}
