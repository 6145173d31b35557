//! Opening a database: its URL, its server, its tables.

use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use sqlx::ConnectOptions as _;
use sqlx::Connection as _;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

use super::database::{Database, may_pass, number};
use super::{Settings, migrations};
use crate::Schema;

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The URL is for something else, or names no database. It is not shown whole: it may hold a password.
    #[error(
        "the URL of a MariaDB or MySQL database is mysql://user:password@host:port/database, and this is not one: {why}"
    )]
    Url {
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answers there.
    #[error("cannot reach the MariaDB server at {place}: look at its address and port, and whether it runs")]
    Unreachable {
        /// Where: `host:port/database`.
        place: String,
        /// Why.
        source: sqlx::Error,
    },
    /// The server answers, and is not ready: it starts, stops, is read-only, or has too many connections.
    #[error("the MariaDB server at {place} is not ready")]
    NotReady {
        /// Where.
        place: String,
        /// What it says.
        source: sqlx::Error,
    },
    /// The server does not know the user, or not with this password, or not from here.
    #[error(
        "the MariaDB server at {place} refuses user {user:?}: look at user, password, the host that the user may come \
         from, and whether it must be by TLS"
    )]
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
        "the MariaDB server of {place} has no such database: create it (CREATE DATABASE), or name another in the URL"
    )]
    MissingDatabase {
        /// Where.
        place: String,
    },
    /// The server is too old.
    #[error(
        "the server at {place} is of version {version}: MariaDB 10.6 and MySQL 8.0.19 are the oldest that are known to do"
    )]
    OldServer {
        /// Where.
        place: String,
        /// Its version.
        version: String,
    },
    /// A setting of the server does not do.
    #[error("the server at {place} has {name} = {value}: {why}; set it to {wanted}")]
    Setting {
        /// Where.
        place: String,
        /// Of which setting.
        name: &'static str,
        /// What it is set to.
        value: String,
        /// What it should be set to.
        wanted: &'static str,
        /// What would go wrong.
        why: &'static str,
    },
    /// The tables were written by a newer version of this crate.
    #[error("{place} has schema version {found}, and this program knows {known} at most: upgrade the program")]
    NewerSchema {
        /// Where.
        place: String,
        /// Its version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The user may not make or change the tables, or not use them.
    #[error(
        "user {user:?} lacks a right on {place}: SELECT, INSERT, UPDATE and DELETE for use, and CREATE, ALTER, INDEX and \
         REFERENCES to bring the tables to version {known}"
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
        "cannot bring the tables of {place} to version {known}: a transaction holds them; look for the oldest in \
         information_schema.innodb_trx (a dump, or one that a program left open), end it, and start again"
    )]
    TablesHeld {
        /// Where.
        place: String,
        /// The newest version that this program knows.
        known: i64,
        /// What the server says.
        source: sqlx::Error,
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

pub(super) async fn open(url: &str, settings: &Settings) -> Result<Database, OpenError> {
    let options = parse(url)?;
    let place = Place::of(&options);
    let mut connection = connect(&place, &options, settings).await?;
    match timeout(MIGRATE_WITHIN, prepare(&place, &mut connection, settings)).await {
        Ok(prepared) => prepared?,
        Err(late) => return Err(OpenError::NotReady { place: place.name, source: too_late(late) }),
    }
    // It has done its work either way; a lock that it holds ends with it.
    let _ = timeout(settings.connect_timeout, connection.close()).await;
    Ok(Database::new(&place.name, &options, settings))
}

/// Connects and looks, and changes nothing.
pub(super) async fn look(url: &str, settings: &Settings) -> Result<Schema, OpenError> {
    let options = parse(url)?;
    let place = Place::of(&options);
    let mut connection = connect(&place, &options, settings).await?;
    let looked = timeout(settings.call_timeout, inspect(&place, &mut connection, settings)).await;
    let _ = timeout(settings.connect_timeout, connection.close()).await;
    looked.unwrap_or_else(|late| Err(OpenError::NotReady { place: place.name, source: too_late(late) }))
}

async fn connect(
    place: &Place,
    options: &MySqlConnectOptions,
    settings: &Settings,
) -> Result<MySqlConnection, OpenError> {
    match timeout(settings.connect_timeout, options.connect()).await {
        Ok(connected) => connected.map_err(|error| place.explain(error)),
        Err(late) => Err(OpenError::Unreachable { place: place.name.clone(), source: too_late(late) }),
    }
}

fn too_late(late: Elapsed) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, late))
}

/// The parameters that a URL may have.
const PARAMETERS: [&str; 5] = ["ssl-mode", "ssl-ca", "ssl-cert", "ssl-key", "socket"];

fn parse(url: &str) -> Result<MySqlConnectOptions, OpenError> {
    let refuse = |why: &str| OpenError::Url { why: why.to_owned() };
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    match scheme {
        Some("mysql" | "mariadb") => {}
        Some(other) => return Err(refuse(&format!("its scheme is {other}"))),
        None => return Err(refuse("it does not start with mysql://")),
    }
    // The driver would pass over what it does not know.
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    if parameters.contains('@') {
        // What stands there is part of a password: it is not shown.
        return Err(refuse("in a password, a question mark is written %3F"));
    }
    let names = parameters.split('&').filter_map(|parameter| parameter.split('=').next());
    if let Some(unknown) = names.filter(|name| !name.is_empty()).find(|name| !PARAMETERS.contains(name)) {
        return Err(refuse(&format!("{unknown:?} is none of its parameters: {}", PARAMETERS.join(", "))));
    }
    let options = MySqlConnectOptions::from_str(url).map_err(|error| match error {
        sqlx::Error::Configuration(why) => refuse(&why.to_string()),
        error => refuse(&error.to_string()),
    })?;
    if options.get_database().is_none_or(str::is_empty) {
        return Err(refuse("it names no database"));
    }
    Ok(options.disable_statement_logging())
}

/// What an error tells of where it happened.
struct Place {
    name: String,
    user: String,
}

impl Place {
    fn of(options: &MySqlConnectOptions) -> Self {
        let database = options.get_database().unwrap_or_default();
        let name = match options.get_socket() {
            Some(socket) => format!("{}/{database}", socket.display()),
            None => format!("{}:{}/{database}", options.get_host(), options.get_port()),
        };
        Self { name, user: options.get_username().to_owned() }
    }

    fn explain(&self, source: sqlx::Error) -> OpenError {
        let (place, user) = (self.name.clone(), self.user.clone());
        if matches!(source, sqlx::Error::Io(_)) {
            return OpenError::Unreachable { place, source };
        }
        match number(&source) {
            Some(1049) => OpenError::MissingDatabase { place },
            // A wrong password or plugin, a host that is unknown or blocked, an account that is locked or whose password has expired.
            Some(1045 | 1251 | 1524 | 1698 | 1129 | 1130 | 3118 | 4151 | 1820 | 1862) => {
                OpenError::Refused { place, user, source }
            }
            // On the database, a table, a column, a statement.
            Some(1044 | 1142 | 1143 | 1227) => OpenError::Forbidden { place, user, known: migrations::NEWEST, source },
            _ if may_pass(&source) => OpenError::NotReady { place, source },
            _ => OpenError::Failed { place, source },
        }
    }
}

/// Looks at the server, and migrates if need be: a user who may not does not have to when there is nothing to do.
async fn prepare(place: &Place, connection: &mut MySqlConnection, settings: &Settings) -> Result<(), OpenError> {
    if inspect(place, connection, settings).await?.is_current() {
        return Ok(());
    }
    migrate(place, connection, MIGRATE_WITHIN).await
}

/// Looks at the server and at the version of its tables.
async fn inspect(place: &Place, connection: &mut MySqlConnection, settings: &Settings) -> Result<Schema, OpenError> {
    let explain = |error| place.explain(error);
    let version: String = sqlx::query_scalar("SELECT VERSION()").fetch_one(&mut *connection).await.map_err(explain)?;
    if !is_new_enough(&version) {
        return Err(OpenError::OldServer { place: place.name.clone(), version });
    }
    check(place, &variables(connection).await.map_err(explain)?, settings.lossy)?;
    let (found, known) = (migrations::found(connection).await.map_err(explain)?, migrations::NEWEST);
    if found > known {
        return Err(OpenError::NewerSchema { place: place.name.clone(), found, known });
    }
    Ok(Schema { found: (found > 0).then_some(found), known })
}

/// `SKIP LOCKED` and `JSON_TABLE` came with MariaDB 10.6. MySQL had both before it had checks, with 8.0.16, and some more mending after.
fn is_new_enough(version: &str) -> bool {
    // MariaDB's own version may stand behind one that old programs can live with: 5.5.5-10.6.1-MariaDB.
    let own = version.strip_prefix("5.5.5-").unwrap_or(version);
    let numbers = own.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let numbers: Vec<u32> = numbers.take(3).collect();
    let oldest = if version.contains("MariaDB") { [10, 6, 0] } else { [8, 0, 19] };
    numbers.as_slice() >= oldest.as_slice()
}

async fn variables(connection: &mut MySqlConnection) -> Result<BTreeMap<String, String>, sqlx::Error> {
    const VARIABLES: &str = "
        SHOW GLOBAL VARIABLES
        WHERE Variable_name IN ('innodb_flush_log_at_trx_commit', 'log_bin', 'sync_binlog', 'binlog_format')";
    let rows: Vec<(String, String)> = sqlx::query_as(VARIABLES).fetch_all(connection).await?;
    Ok(rows.into_iter().collect())
}

/// Refuses a server that cannot keep what it acknowledges, or cannot replicate what it is told.
fn check(place: &Place, variables: &BTreeMap<String, String>, lossy: bool) -> Result<(), OpenError> {
    const LOSES: &str = "it loses acknowledged work when its machine loses power";
    const NO_STATEMENTS: &str = "its log of statements cannot hold what is done at READ COMMITTED";
    let value = |name| variables.get(name).map(String::as_str);
    let refuse = |name, wanted, why| {
        let (place, value) = (place.name.clone(), value(name).unwrap_or_default().to_owned());
        Err(OpenError::Setting { place, name, value, wanted, why })
    };
    let has_log = value("log_bin").is_some_and(|value| value != "OFF");
    if has_log && value("binlog_format") == Some("STATEMENT") {
        return refuse("binlog_format", "ROW or MIXED", NO_STATEMENTS);
    }
    if lossy {
        return Ok(());
    }
    // 3 is MariaDB's 1 with one more sync.
    if !matches!(value("innodb_flush_log_at_trx_commit"), None | Some("1" | "3")) {
        return refuse("innodb_flush_log_at_trx_commit", "1", LOSES);
    }
    // What is prepared in the tables and not in the log is undone at the next start.
    if has_log && value("sync_binlog").is_some_and(|value| value == "0") {
        return refuse("sync_binlog", "1", LOSES);
    }
    Ok(())
}

/// Under a lock: of several processes that open a database at once, one does the work. It goes on from where it was while others hold a table.
async fn migrate(place: &Place, connection: &mut MySqlConnection, within: Duration) -> Result<(), OpenError> {
    let begun = Instant::now();
    lock(connection).await.map_err(|error| place.explain(error))?;
    loop {
        let found = migrations::found(connection).await.map_err(|error| place.explain(error))?;
        let error = match migrations::migrate(connection, found, migrations::NEWEST).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // A lock that did not come in time, a deadlock.
        if !matches!(number(&error), Some(1205 | 1213)) {
            return Err(place.explain(error));
        }
        if begun.elapsed() + PAUSE + LOCK_WITHIN >= within {
            let (place, known) = (place.name.clone(), migrations::NEWEST);
            return Err(OpenError::TablesHeld { place, known, source: error });
        }
        tracing::warn!(place = place.name, %error, "a migration waits for transactions that hold the tables");
        sleep(PAUSE).await;
    }
}

/// Takes the lock of those who migrate.
async fn lock(connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    // The name of a lock is the whole server's, and has 64 characters at most. It ends with the connection.
    const LOCK: &str = "SELECT GET_LOCK(CONCAT('deploycore ', MD5(DATABASE())), 600)";
    const SETTINGS: &str = "
        SET SESSION sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION',
            autocommit = 1, unique_checks = 1, foreign_key_checks = 1";
    const LOCK_WAIT: &str = "SET SESSION lock_wait_timeout = ?";
    sqlx::raw_sql(SETTINGS).execute(&mut *connection).await?;
    sqlx::query(LOCK_WAIT).bind(LOCK_WITHIN.as_secs()).execute(&mut *connection).await?;
    let locked: Option<i64> = sqlx::query_scalar(LOCK).fetch_one(&mut *connection).await?;
    if locked != Some(1) {
        let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "another program still migrates the tables");
        return Err(sqlx::Error::Io(late));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mariadb::migrations::tests::at_version;

    #[tokio::test]
    async fn who_holds_a_table_for_too_long_is_asked_for() {
        let (database, mut reader) = at_version(migrations::NEWEST - 1).await;
        sqlx::raw_sql("START TRANSACTION").execute(&mut reader).await.unwrap();
        sqlx::raw_sql("SELECT name FROM deploycore_artifacts").execute(&mut reader).await.unwrap();
        let options = parse(&database.url()).unwrap();
        let place = Place::of(&options);
        let mut connection = options.connect().await.unwrap();
        let error = migrate(&place, &mut connection, Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, OpenError::TablesHeld { .. }) && error.is_retryable(), "{error:?}");
        assert!(error.to_string().contains(database.name()) && error.to_string().contains("innodb_trx"), "{error}");
        sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
        migrate(&place, &mut connection, Duration::ZERO).await.unwrap();
    }

    #[test]
    fn versions_of_both_servers_are_told_apart() {
        for version in
            ["10.6.0-MariaDB", "10.11.14-MariaDB-0+deb12u2", "5.5.5-10.6.1-MariaDB-log", "8.0.19", "8.4.3-log", "9.1.0"]
        {
            assert!(is_new_enough(version), "{version}");
        }
        for version in ["10.5.29-MariaDB", "5.5.5-10.3.39-MariaDB", "5.7.44-log", "8.0.18", "8.0", "unknown", ""] {
            assert!(!is_new_enough(version), "{version}");
        }
    }

    #[test]
    fn no_part_of_a_password_is_told() {
        for url in ["mysql://u:pa?s3cret@host/db", "mysql://u:pa?s3cret=1@host/db", "mysql://u:s3cret@host"] {
            let said = parse(url).unwrap_err().to_string();
            assert!(!said.contains("s3cret"), "{said}");
        }
        let said = parse("mysql://u:p@host/db?ssl-mod=required").unwrap_err().to_string();
        assert!(said.contains("ssl-mod") && said.contains("ssl-mode"), "{said}");
    }

    #[test]
    fn a_server_that_forgets_is_refused_unless_that_is_wanted() {
        let place = Place { name: "db:3306/builds".to_owned(), user: "builds".to_owned() };
        let told = |pairs: &[(&str, &str)], lossy| {
            let variables = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            check(&place, &variables, lossy).map_err(|error| error.to_string())
        };
        let flush = |value| ("innodb_flush_log_at_trx_commit", value);
        assert_eq!(told(&[flush("1"), ("log_bin", "OFF"), ("sync_binlog", "0")], false), Ok(()));
        assert_eq!(
            told(&[flush("1"), ("log_bin", "ON"), ("sync_binlog", "1"), ("binlog_format", "MIXED")], false),
            Ok(())
        );
        let lossy = [flush("2"), ("log_bin", "OFF")];
        let said = told(&lossy, false).unwrap_err();
        assert!(said.contains("db:3306/builds") && said.contains("innodb_flush_log_at_trx_commit = 2"), "{said}");
        assert_eq!(told(&lossy, true), Ok(()));
        let said = told(&[flush("1"), ("log_bin", "ON"), ("sync_binlog", "0")], false).unwrap_err();
        assert!(said.contains("sync_binlog = 0"), "{said}");
        let said = told(&[flush("1"), ("log_bin", "ON"), ("binlog_format", "STATEMENT")], true).unwrap_err();
        assert!(said.contains("binlog_format"), "{said}");
    }
}
