//! SQLite: one file, shared by the processes of one host.
//!
//! The file is in WAL mode with `synchronous = FULL`, so what a call acknowledged survives the loss of any process and of power. A
//! process writes through one connection, in transactions that take the write lock at their start (`BEGIN IMMEDIATE`) and touch at most
//! a batch of rows; reads go through connections of their own, so a heartbeat never waits behind a list. Processes wait for each
//! other's write lock up to [`Settings::busy_timeout`]; after that a call fails with a retryable error and has had no effect. A claim
//! that finds no job ready takes no write lock.
//!
//! The write lock belongs to a process. The kernel takes it from one that dies, but not from one that stands still (SIGSTOP, a
//! frozen container) in the middle of a write: until that process goes on or is killed, nobody writes. A server does not have this
//! limit.
//!
//! Every instant is of SQLite's own clock, read once a transaction after the lock was taken. It counts milliseconds.
//!
//! WAL needs memory that the processes share, so the file must be on a disk of the host and not on a network filesystem. Tables of a
//! host program may live in the same file.
//!
//! # Metrics
//!
//! Counters, each with the label `backend` = `sqlite`:
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

mod database;
mod ledger;
mod migrations;
mod open;
#[cfg(test)]
mod plans;
mod queue;
mod row;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use deploycore::model::friendly;

pub use self::ledger::Ledger;
pub use self::open::OpenError;
pub use self::queue::Queue;

use self::database::Database;
use crate::Schema;

/// How a file is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How long a call waits for the write lock of another process, or for a connection of this one, before it fails with a retryable
    /// error; 10 s by default.
    #[serde(with = "friendly")]
    pub busy_timeout: Duration,
    /// Connections that read; 4 by default, at least 1.
    pub readers: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { busy_timeout: Duration::from_secs(10), readers: 4 }
    }
}

impl Settings {
    /// Sets how long a call waits for a lock or a connection.
    #[must_use]
    pub fn with_busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// Sets how many connections read.
    #[must_use]
    pub fn with_readers(mut self, readers: u32) -> Self {
        self.readers = readers;
        self
    }
}

/// An open SQLite file that holds a queue and a ledger. Cloning shares its connections.
#[derive(Debug, Clone)]
pub struct Sqlite {
    database: Database,
}

impl Sqlite {
    /// Opens `sqlite:///absolute/path` or `sqlite://relative/path`, with the default [`Settings`]. Percent codes of URLs are decoded.
    ///
    /// The file is made when it is missing (its folder is not), and brought to the newest schema. Several processes may do so at once.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        Self::open_with(url, &Settings::default()).await
    }

    /// Opens a file with settings.
    pub async fn open_with(url: &str, settings: &Settings) -> Result<Self, OpenError> {
        let database = open::open(url, settings).await?;
        Ok(Self { database })
    }

    /// Looks at the version of the tables of a file; nothing is made or changed, and a missing file has none.
    pub async fn schema(url: &str) -> Result<Schema, OpenError> {
        open::look(url, &Settings::default()).await
    }

    /// The queue in the file.
    pub fn queue(&self) -> Arc<Queue> {
        Arc::new(Queue::new(self.database.clone()))
    }

    /// The ledger in the file.
    pub fn ledger(&self) -> Arc<Ledger> {
        Arc::new(Ledger::new(self.database.clone()))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.database.path()
    }

    /// Closes the connections after the calls under way; later calls fail. Not needed for durability.
    pub async fn close(&self) {
        self.database.close().await;
    }
}
