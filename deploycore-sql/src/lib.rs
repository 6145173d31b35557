//! SQL backends of the deploycore queue and ledger.
//!
//! [`Sqlite`] is the embedded default: one file, shared by the processes of one host. [`Postgres`] (feature `postgres`) and
//! [`MariaDb`] (feature `mariadb`) are servers for any number of hosts. [`open_url`] opens any of them. Each database has its own module with its own plain SQL and its own migrations; what they have in common is how
//! values are stored.
//!
//! ```
//! use deploycore::model::{ClaimId, NewJob};
//! use deploycore::port::queue::ClaimRequest;
//! use deploycore::port::{JobQueue, JobQueueExt};
//! use deploycore_sql::Sqlite;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path().display();
//! let sqlite = Sqlite::open(&format!("sqlite://{folder}/queue.db")).await?;
//! let queue = sqlite.queue();
//!
//! let job = NewJob::new("web".parse()?, "3f786850e387550fdab836ed7e6dc881de23001b".parse()?);
//! queue.enqueue_one(&job).await?;
//!
//! let request = ClaimRequest { claim: ClaimId::new(), worker: "worker-1".parse()?, limit: 1 };
//! let claimed = queue.claim(&request).await?;
//! assert_eq!(claimed[0].spec, job);
//! // The reply was lost? The same call gives the same job, and never another one.
//! assert_eq!(queue.claim(&request).await?, claimed);
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mariadb"))]
mod columns;
#[cfg(any(feature = "postgres", feature = "mariadb"))]
mod connections;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mariadb"))]
mod figures;
mod open;
mod schema;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mariadb"))]
mod stored;

#[cfg(feature = "sqlite")]
pub mod sqlite;

#[cfg(feature = "postgres")]
pub mod postgres;

#[cfg(feature = "mariadb")]
pub mod mariadb;

#[cfg(feature = "mariadb")]
pub use mariadb::MariaDb;
pub use open::{Database, OpenUrlError, open_url, schema_of_url};
#[cfg(feature = "postgres")]
pub use postgres::Postgres;
pub use schema::Schema;
#[cfg(feature = "sqlite")]
pub use sqlite::Sqlite;
