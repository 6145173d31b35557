//! MariaDB 10.6 and newer, and MySQL 8: a server, shared by the processes of any number of hosts.
//!
//! All lives in tables whose names begin with `deploycore_`, in one database, beside the tables of a host program. Every instant is of the
//! server's own clock. What a call acknowledged survives the loss of power: a server whose settings would lose it is refused unless
//! [`Settings::lossy`] says otherwise.
//!
//! Each call is one statement or one short transaction at READ COMMITTED, made again when the server ended it because of another one. No
//! claim waits for another one, but for those that take jobs with a concurrency key, or end delays: they go one after the other.
//!
//! # Connections
//!
//! A process has up to [`Settings::connections`] for its calls and one more for heartbeats, which so never wait behind other calls. A connection
//! belongs to a call until the call has ended well; else it is closed. They need a session of their own: a proxy between must not share one
//! connection to the server between clients.
//!
//! # Rights
//!
//! The first program that opens a database makes the tables, for which its user needs `CREATE`, `ALTER`, `INDEX` and `REFERENCES` on the
//! database, and so does the one that brings them to a newer version. All need `SELECT, INSERT, UPDATE, DELETE`.
//!
//! # Metrics
//!
//! Counters, each with the label `backend` = `mariadb`: the same as those of SQLite.
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
mod ledger;
mod migrations;
mod open;
#[cfg(test)]
mod plans;
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
    /// The most connections for calls; 10 by default, at least 1. One more is for heartbeats.
    pub connections: u32,
    /// How long a call waits for a connection to be free, or to be made, before it fails with a retryable error; 10 s by default.
    #[serde(with = "friendly")]
    pub connect_timeout: Duration,
    /// How long a call may take in all before it fails with a retryable error, as one whose reply was lost; 30 s by default.
    #[serde(with = "friendly")]
    pub call_timeout: Duration,
    /// Whether a server is taken that forgets acknowledged calls when its machine loses power; false by default.
    pub lossy: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections: 10,
            connect_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(30),
            lossy: false,
        }
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

    /// Sets whether a server is taken that forgets acknowledged calls when its machine loses power.
    #[must_use]
    pub fn with_lossy(mut self, lossy: bool) -> Self {
        self.lossy = lossy;
        self
    }
}

/// A database on a MariaDB or MySQL server that holds a queue and a ledger. Cloning shares its connections.
#[derive(Debug, Clone)]
pub struct MariaDb {
    database: Database,
}

impl MariaDb {
    /// Opens `mysql://user:password@host:port/database`, or the same with `mariadb://`, with the default [`Settings`]. The parameters
    /// `ssl-mode`, `ssl-ca`, `ssl-cert`, `ssl-key` and `socket` are those of the server's own programs.
    ///
    /// The database must exist. Its tables are brought to the newest version; several processes may do so at once.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        Self::open_with(url, &Settings::default()).await
    }

    /// Opens a database with settings.
    pub async fn open_with(url: &str, settings: &Settings) -> Result<Self, OpenError> {
        let database = open::open(url, settings).await?;
        Ok(Self { database })
    }

    /// Connects, and looks at the server and at the version of its tables; nothing is changed.
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
