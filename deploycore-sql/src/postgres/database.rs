//! A database on a server, and the ways to use it: one statement, or a transaction.

use std::sync::Arc;
use std::time::Duration;

use deploycore::model::Timestamp;
use deploycore::port::{BackendError, ledger, queue};
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::timeout;

use super::Settings;
use super::connections::Session;
use super::hints::Hints;
use crate::columns::Columns;
use crate::connections::{self, Connections, too_late};
use crate::stored::Corrupt;

pub(super) const NAME: &str = "postgres";

pub(super) type Borrowed = connections::Borrowed<Session>;

#[derive(Debug, Clone)]
pub(super) struct Database {
    place: Arc<str>,
    calls: Connections<Session>,
    beats: Connections<Session>,
    hints: Arc<Hints>,
    call_timeout: Duration,
}

impl Database {
    pub(super) fn new(place: &str, options: &PgConnectOptions, settings: &Settings) -> Self {
        let session = || Session::new(options.clone(), settings.call_timeout);
        let connections = |most| Connections::new(session(), most, settings.connect_timeout);
        Self {
            place: place.into(),
            calls: connections(settings.connections),
            beats: connections(1),
            hints: Arc::new(Hints::new(options.clone(), settings.connect_timeout)),
            call_timeout: settings.call_timeout,
        }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// A connection for one statement.
    pub(super) async fn borrow(&self) -> Result<Borrowed, BackendError> {
        self.calls.borrow().await
    }

    /// A connection for a heartbeat.
    pub(super) async fn borrow_for_beat(&self) -> Result<Borrowed, BackendError> {
        self.beats.borrow().await
    }

    pub(super) fn hints(&self) -> &Hints {
        &self.hints
    }

    pub(super) async fn begin(&self) -> Result<Moment, BackendError> {
        Moment::begin(self.borrow().await?, "BEGIN").await
    }

    /// Reads the database as it stands at the first statement, whatever is written meanwhile.
    pub(super) async fn begin_reading(&self) -> Result<Moment, BackendError> {
        Moment::begin(self.borrow().await?, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
    }

    /// Bounds a call: a server may be gone without a word. The call may have had its effect, as with a lost reply.
    pub(super) async fn bounded<T, E: From<BackendError>>(
        &self,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let limit = self.call_timeout;
        timeout(limit, call).await.unwrap_or_else(|_| Err(too_late(NAME, "no answer", limit).into()))
    }
}

/// What a transaction may end with.
pub(super) trait Failure: From<BackendError> {
    /// Whether the database failed, and did not merely answer no.
    fn is_of_backend(&self) -> bool;
}

impl Failure for BackendError {
    fn is_of_backend(&self) -> bool {
        true
    }
}

impl Failure for queue::Error {
    fn is_of_backend(&self) -> bool {
        matches!(self, Self::Backend(_))
    }
}

impl Failure for ledger::Error {
    fn is_of_backend(&self) -> bool {
        matches!(self, Self::Backend(_))
    }
}

/// A transaction. Dropped, it has had no effect.
#[derive(Debug)]
pub(super) struct Moment {
    borrowed: Borrowed,
}

impl Moment {
    async fn begin(mut borrowed: Borrowed, statement: &'static str) -> Result<Self, BackendError> {
        sqlx::raw_sql(statement).execute(borrowed.connection()).await.map_err(failed)?;
        Ok(Self { borrowed })
    }

    pub(super) fn connection(&mut self) -> &mut PgConnection {
        self.borrowed.connection()
    }

    /// Makes the effect durable if there was success; else there is none. A connection on which a statement failed is closed, as after a call
    /// without a transaction: it may keep what failed, a plan for instance, and fail again with each call.
    pub(super) async fn end<T, E: Failure>(mut self, outcome: Result<T, E>) -> Result<T, E> {
        match outcome {
            Ok(value) => {
                sqlx::raw_sql("COMMIT").execute(self.connection()).await.map_err(failed)?;
                self.borrowed.give_back();
                Ok(value)
            }
            Err(error) => {
                let is_rolled_back = sqlx::raw_sql("ROLLBACK").execute(self.connection()).await.is_ok();
                if is_rolled_back && !error.is_of_backend() {
                    self.borrowed.give_back();
                }
                Err(error)
            }
        }
    }
}

/// The server's clock. What was locked by an earlier statement of the transaction was locked before this instant.
pub(super) async fn now(connection: &mut PgConnection) -> Result<Timestamp, BackendError> {
    const NOW: &str = "SELECT deploycore.instant() AS now";
    let row = sqlx::query(NOW).fetch_one(connection).await.map_err(failed)?;
    Columns(&row).time("now")
}

/// What a failed statement means to the caller.
pub(super) fn failed(error: sqlx::Error) -> BackendError {
    let is_retryable = may_pass(&error) || is_stale(&error);
    if is_retryable { BackendError::retryable(NAME, error) } else { BackendError::permanent(NAME, error) }
}

/// "cached plan must not change result type": the connection prepared the statement before a table was changed. Another one does not know it yet.
fn is_stale(error: &sqlx::Error) -> bool {
    const FEATURE_NOT_SUPPORTED: &str = "0A000";
    error.as_database_error().and_then(DatabaseError::code).is_some_and(|code| code == FEATURE_NOT_SUPPORTED)
}

/// A server that is away, starts, stops, is a standby or has no room for a connection, a lock that did not come in time, a
/// transaction that lost against another: all of these may be otherwise at the next try.
pub(super) fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_code_that_may_pass(&code)),
        _ => false,
    }
}

fn is_code_that_may_pass(code: &str) -> bool {
    // Connection, transaction rolled back, operator's intervention; too many connections, lock not available, idle in a transaction,
    // a standby.
    matches!(code.get(..2), Some("08" | "40" | "57")) || matches!(code, "53300" | "55P03" | "25P03" | "25006")
}

pub(super) fn corrupt(error: Corrupt) -> BackendError {
    BackendError::permanent(NAME, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_retried() {
        for code in ["40001", "40P01", "57P01", "57P03", "57014", "08006", "53300", "55P03", "25006"] {
            assert!(is_code_that_may_pass(code), "{code}");
        }
        for code in ["42P01", "28P01", "3D000", "23505", "53100", "22021", "42501", "", "4"] {
            assert!(!is_code_that_may_pass(code), "{code}");
        }
    }
}
