//! A database chosen by URL.

use std::sync::Arc;

use deploycore::port::{JobQueue, ReplicationLedger};

use crate::Schema;

/// The queue and the ledger of one database, whatever its engine. Cloning shares its connections.
#[derive(Debug, Clone)]
pub struct Database {
    /// The queue.
    pub queue: Arc<dyn JobQueue>,
    /// The ledger.
    pub ledger: Arc<dyn ReplicationLedger>,
}

/// Why a database could not be opened by its URL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenUrlError {
    /// The URL names no database of this build. It is not shown whole: it may hold a password.
    #[error(
        "the database cannot be opened by this URL: {why}; use sqlite:///path/file.db, \
         postgres://user:password@host:port/database or mysql://user:password@host:port/database"
    )]
    Url {
        /// What is wrong with it.
        why: String,
    },
    /// The file could not be opened.
    #[cfg(feature = "sqlite")]
    #[error(transparent)]
    Sqlite(#[from] crate::sqlite::OpenError),
    /// The server's database could not be opened.
    #[cfg(feature = "postgres")]
    #[error(transparent)]
    Postgres(#[from] crate::postgres::OpenError),
    /// The server's database could not be opened.
    #[cfg(feature = "mariadb")]
    #[error(transparent)]
    MariaDb(#[from] crate::mariadb::OpenError),
}

/// Opens the database of a URL, with the engine's default settings:
///
/// | URL | database | feature |
/// |---|---|---|
/// | `sqlite:///absolute/path.db`, `sqlite://relative/path.db` | a file, shared by the processes of one host | `sqlite` |
/// | `postgres://user:password@host:port/database`, `postgresql://...` | a PostgreSQL server | `postgres` |
/// | `mysql://user:password@host:port/database`, `mariadb://...` | a MariaDB or MySQL server | `mariadb` |
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path().display();
/// let database = deploycore_sql::open_url(&format!("sqlite://{folder}/queue.db")).await?;
/// assert_eq!(database.queue.stats().await?.oldest_queued_seconds, None);
/// # Ok(())
/// # }
/// ```
///
/// Errors: [`OpenUrlError::Url`] for a URL that names no database of this build; otherwise as the engine's own.
pub async fn open_url(url: &str) -> Result<Database, OpenUrlError> {
    match url.split_once("://") {
        #[cfg(feature = "sqlite")]
        Some(("sqlite", _)) => {
            let sqlite = crate::Sqlite::open(url).await?;
            Ok(Database { queue: sqlite.queue(), ledger: sqlite.ledger() })
        }
        #[cfg(feature = "postgres")]
        Some(("postgres" | "postgresql", _)) => {
            let postgres = crate::Postgres::open(url).await?;
            Ok(Database { queue: postgres.queue(), ledger: postgres.ledger() })
        }
        #[cfg(feature = "mariadb")]
        Some(("mysql" | "mariadb", _)) => {
            let mariadb = crate::MariaDb::open(url).await?;
            Ok(Database { queue: mariadb.queue(), ledger: mariadb.ledger() })
        }
        other => Err(none(other.map(|(scheme, _)| scheme))),
    }
}

/// Looks at the database of a URL, and changes nothing: whether it can be reached with these credentials, whether the server does, and which
/// version its tables have. A file that is missing has none.
///
/// Errors: as [`open_url`]'s, but for those of a migration.
pub async fn schema_of_url(url: &str) -> Result<Schema, OpenUrlError> {
    match url.split_once("://") {
        #[cfg(feature = "sqlite")]
        Some(("sqlite", _)) => Ok(crate::Sqlite::schema(url).await?),
        #[cfg(feature = "postgres")]
        Some(("postgres" | "postgresql", _)) => Ok(crate::Postgres::schema(url).await?),
        #[cfg(feature = "mariadb")]
        Some(("mysql" | "mariadb", _)) => Ok(crate::MariaDb::schema(url).await?),
        other => Err(none(other.map(|(scheme, _)| scheme))),
    }
}

/// What there is to say of a scheme that no engine of this build has.
fn none(scheme: Option<&str>) -> OpenUrlError {
    let why = match scheme {
        #[cfg(not(feature = "sqlite"))]
        Some("sqlite") => left_out("sqlite"),
        #[cfg(not(feature = "postgres"))]
        Some("postgres" | "postgresql") => left_out("postgres"),
        #[cfg(not(feature = "mariadb"))]
        Some("mysql" | "mariadb") => left_out("mariadb"),
        Some(scheme) => format!("{scheme}:// is none of sqlite, postgres, mysql"),
        None => "it has no scheme".to_owned(),
    };
    OpenUrlError::Url { why }
}

#[cfg(not(all(feature = "sqlite", feature = "postgres", feature = "mariadb")))]
fn left_out(feature: &str) -> String {
    format!("this build has no such database; it is the feature {feature:?} of deploycore-sql")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_that_names_no_database_is_refused_on_one_line_without_a_password() {
        let servers = ["oracle://u:s3cret@h/d", "postgres://u:s3cret@", "mysql://u:s3cret@h", "mariadb://u:s3cret@"];
        for url in ["", "queue.db", "/var/queue.db", "sqlite://"].into_iter().chain(servers) {
            let text = open_url(url).await.unwrap_err().to_string();
            assert!(!text.contains("s3cret") && !text.contains('\n'), "{url}: {text}");
            assert!(["sqlite:///", "postgres://", "mysql://"].iter().any(|form| text.contains(form)), "{url}: {text}");
        }
    }
}
