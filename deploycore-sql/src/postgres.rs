//! PostgreSQL 13 and newer: a server, shared by the processes of any number of hosts.
//!
//! All lives in the schema `deploycore` of one database, beside the tables of a host program. Every instant is of the server's own clock,
//! read in the statement that uses it. What a call acknowledged survives what the server's commits survive: where `synchronous_commit` is
//! off, these connections turn it on.
//!
//! Claims, heartbeats and successful completions, one or a batch, are one statement each, so a caller that stands still in the middle of a call holds no
//! lock; other calls are short transactions at READ COMMITTED. Now and then a claim makes a second statement, to learn where the next ones begin. No claim waits for another one, but for those that take jobs with a
//! concurrency key: they go one after the other, since each counts what runs.
//!
//! # Connections
//!
//! A process has up to [`Settings::connections`] for its calls and one more for heartbeats, which so never wait behind other calls. Once a worker
//! asks to be told of [ready jobs](deploycore::port::JobQueue::ready), one more listens for all workers of the process. A connection belongs to
//! a call until the call has ended well; else it is closed. They need a session of their own: a pooler between must not pool by transaction or
//! statement.
//!
//! # Rights
//!
//! The first program that opens a database makes the schema, for which its role needs `CREATE` on the database; or the owner of the database
//! runs `CREATE SCHEMA deploycore AUTHORIZATION role` before. The role that owns the schema also brings it to a newer version. Other
//! roles need `USAGE` on the schema, `SELECT, INSERT, UPDATE, DELETE` on its tables, and `EXECUTE` on its functions, which everyone has by
//! default.
//!
//! # Metrics
//!
//! Counters, each with the label `backend` = `postgres`: the same as those of SQLite.
//!
//! | name | counts |
//! |---|---|
//! | `deploycore_queue_enqueued_total` | jobs added |
//! | `deploycore_queue_claims_total` | jobs handed out; a repeated claim does not count again |
//! | `deploycore_queue_leases_lost_total` | jobs rescued from silent workers |
//! | `deploycore_queue_deadlines_passed_total` | jobs rescued because they were out of time |
//! | `deploycore_queue_zombies_refused_total` | heartbeats, completions and releases under a lost lease, by label `call` |
//! | `deploycore_queue_pruned_total` | jobs pruned |
//! | `deploycore_ledger_claims_total` | copies handed out |
//! | `deploycore_ledger_leases_lost_total` | copies handed out again because their lease ran out |
//! | `deploycore_ledger_zombies_refused_total` | reports under a lost lease |

mod connections;
mod database;
mod hints;
mod ledger;
mod migrations;
mod open;
mod queue;
mod row;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use deploycore::model::friendly;

pub use self::ledger::Ledger;
pub use self::open::OpenError;
pub use self::queue::Queue;

use self::database::Database;
use crate::Schema;

/// How a server is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The most connections for calls; 10 by default, at least 1. One more is for heartbeats, and one may listen.
    pub connections: u32,
    /// How long a call waits for a connection to be free, or to be made, before it fails with a retryable error; 10 s by default.
    #[serde(with = "friendly")]
    pub connect_timeout: Duration,
    /// How long a call may take in all before it fails with a retryable error, as one whose reply was lost; 30 s by default.
    #[serde(with = "friendly")]
    pub call_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { connections: 10, connect_timeout: Duration::from_secs(10), call_timeout: Duration::from_secs(30) }
    }
}

impl Settings {
    /// Sets how many connections there may be for calls.
    #[must_use]
    pub fn with_connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// Sets how long a call waits for a connection.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long a call may take.
    #[must_use]
    pub fn with_call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }
}

/// A database on a PostgreSQL server that holds a queue and a ledger. Cloning shares its connections.
#[derive(Debug, Clone)]
pub struct Postgres {
    database: Database,
}

impl Postgres {
    /// Opens `postgres://user:password@host:port/database`, with the default [`Settings`]. The parameters `sslmode`, `sslrootcert`,
    /// `sslcert`, `sslkey`, `application_name` and `options` are those of libpq, and a password may stand in `PGPASSWORD` or `~/.pgpass`.
    ///
    /// The database must exist. Its schema is brought to the newest version; several processes may do so at once.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        Self::open_with(url, &Settings::default()).await
    }

    /// Opens a database with settings.
    pub async fn open_with(url: &str, settings: &Settings) -> Result<Self, OpenError> {
        let database = open::open(url, settings).await?;
        Ok(Self { database })
    }

    /// Connects, and looks at the server and at the version of its schema; nothing is changed.
    pub async fn schema(url: &str) -> Result<Schema, OpenError> {
        open::look(url, &Settings::default()).await
    }

    /// The queue in the database.
    pub fn queue(&self) -> Arc<Queue> {
        Arc::new(Queue::new(self.database.clone()))
    }

    /// The ledger in the database.
    pub fn ledger(&self) -> Arc<Ledger> {
        Arc::new(Ledger::new(self.database.clone()))
    }

    /// The server and the database, without a password: `host:port/database`.
    pub fn place(&self) -> &str {
        self.database.place()
    }
}
