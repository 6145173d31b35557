//! A database on a server, and the ways to use it: one statement, or a transaction.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::Timestamp;
use deploycore::port::BackendError;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError};
use tokio::time::{sleep, timeout};

use super::Settings;
use super::connections::Session;
use crate::columns::Columns;
use crate::connections::{self, Connections, too_late};
use crate::stored::Corrupt;

pub(super) const NAME: &str = "mariadb";

pub(super) type Borrowed = connections::Borrowed<Session>;

/// This instant, as instants are stored: of the server's clock when the statement began, whatever the time zone of the session.
macro_rules! instant {
    () => {
        "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
    };
}
pub(super) use instant;

/// A call that lost against another is made so many times in all. Of calls that stand in each other's way one goes on each time.
const TRIES: u32 = 20;
/// Between two of them, times their number.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, Clone)]
pub(super) struct Database {
    place: Arc<str>,
    calls: Connections<Session>,
    beats: Connections<Session>,
    call_timeout: Duration,
}

impl Database {
    pub(super) fn new(place: &str, options: &MySqlConnectOptions, settings: &Settings) -> Self {
        let session = || Session::new(options.clone(), settings.call_timeout);
        let connections = |most| Connections::new(session(), most, settings.connect_timeout);
        Self {
            place: place.into(),
            calls: connections(settings.connections),
            beats: connections(1),
            call_timeout: settings.call_timeout,
        }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// A connection for statements that are each a call's whole work.
    pub(super) async fn borrow(&self) -> Result<Borrowed, BackendError> {
        self.calls.borrow().await
    }

    /// A connection for a heartbeat.
    pub(super) async fn borrow_for_beat(&self) -> Result<Borrowed, BackendError> {
        self.beats.borrow().await
    }

    pub(super) async fn begin(&self) -> Result<Moment, BackendError> {
        Moment::begin(self.borrow().await?, "SET SESSION wait_timeout = @deploycore_call_seconds; START TRANSACTION")
            .await
    }

    /// Reads the database as it stands at the first statement, whatever is written meanwhile.
    pub(super) async fn begin_reading(&self) -> Result<Moment, BackendError> {
        const BEGIN: &str = "
            SET SESSION wait_timeout = @deploycore_call_seconds;
            SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
            START TRANSACTION READ ONLY";
        Moment::begin(self.borrow().await?, BEGIN).await
    }

    /// Makes a call, again when it lost against another one, within the time of a call: a server may be gone without a word. A call that was
    /// too late may have had its effect, as with a lost reply.
    pub(super) async fn call<T, E, F>(&self, call: impl Fn() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: From<BackendError> + Error + 'static,
    {
        let tries = async {
            for lost in 1..TRIES {
                match call().await {
                    Err(error) if has_lost(&error) => {
                        tracing::debug!(%error, "the server ended the call for the sake of another; it is made again");
                    }
                    done => return done,
                }
                sleep(lost * PAUSE).await;
            }
            call().await
        };
        let limit = self.call_timeout;
        timeout(limit, tries).await.unwrap_or_else(|_| Err(too_late(NAME, "no answer", limit).into()))
    }
}

/// A transaction. Dropped, it has had no effect. One that nobody goes on with is ended by the server after the time of a call.
#[derive(Debug)]
pub(super) struct Moment {
    borrowed: Borrowed,
}

impl Moment {
    async fn begin(mut borrowed: Borrowed, statements: &'static str) -> Result<Self, BackendError> {
        sqlx::raw_sql(statements).execute(borrowed.connection()).await.map_err(failed)?;
        Ok(Self { borrowed })
    }

    pub(super) fn connection(&mut self) -> &mut MySqlConnection {
        self.borrowed.connection()
    }

    /// Makes the effect durable if there was success; else there is none.
    pub(super) async fn end<T, E: From<BackendError>>(mut self, outcome: Result<T, E>) -> Result<T, E> {
        const COMMIT: &str = "COMMIT; SET SESSION wait_timeout = 86400; DO RELEASE_ALL_LOCKS()";
        const ROLLBACK: &str = "ROLLBACK; SET SESSION wait_timeout = 86400; DO RELEASE_ALL_LOCKS()";
        match outcome {
            Ok(value) => {
                sqlx::raw_sql(COMMIT).execute(self.connection()).await.map_err(failed)?;
                self.borrowed.give_back();
                Ok(value)
            }
            Err(error) => {
                if sqlx::raw_sql(ROLLBACK).execute(self.connection()).await.is_ok() {
                    self.borrowed.give_back();
                }
                Err(error)
            }
        }
    }
}

/// The server's clock. What an earlier statement saw or locked was so before this instant.
pub(super) async fn now(connection: &mut MySqlConnection) -> Result<Timestamp, BackendError> {
    const NOW: &str = concat!("SELECT ", instant!(), " AS instant");
    let row = sqlx::query(NOW).fetch_one(connection).await.map_err(failed)?;
    Columns(&row).time("instant")
}

/// Takes a name, and waits while another call on the server has it. The end of the [`Moment`] gives it back, and so does that of the
/// connection.
pub(super) async fn hold(connection: &mut MySqlConnection, name: &str) -> Result<(), BackendError> {
    const HOLD: &str = "SELECT GET_LOCK(?, @deploycore_call_seconds)";
    let held: Option<i64> = sqlx::query_scalar(HOLD).bind(name).fetch_one(connection).await.map_err(failed)?;
    match held {
        Some(1) => Ok(()),
        _ => Err(BackendError::retryable(NAME, format!("another call holds {name:?}"))),
    }
}

/// What a failed statement means to the caller.
pub(super) fn failed(error: sqlx::Error) -> BackendError {
    if may_pass(&error) { BackendError::retryable(NAME, error) } else { BackendError::permanent(NAME, error) }
}

/// A server that is away, starts, stops, is a replica or has no room for a connection, a lock that did not come in time, a
/// transaction that lost against another: all of these may be otherwise at the next try.
pub(super) fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        error => number(error).is_some_and(|number| LOST.contains(&number) || PASSING.contains(&number)),
    }
}

/// A deadlock, a lock that did not come in time, a row that changed since this transaction's snapshot, a unique key that another call took
/// meanwhile.
const LOST: [u16; 4] = [1213, 1205, 1020, DUPLICATE];
/// Too many connections (of all, of one user); a shutdown; a connection or statement that was killed, or took too long; a replica, or a
/// server that is read-only for now; a cluster that has no quorum or refused a commit.
const PASSING: [u16; 16] =
    [1040, 1203, 1226, 1053, 1927, 4031, 1317, 1969, 3024, 1290, 1792, 1836, 1047, 3101, 1158, 1159];
/// A row whose unique key exists.
const DUPLICATE: u16 = 1062;

/// Whether the server undid a call because of another one, so that it may be made again at once.
fn has_lost(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(number) = error.downcast_ref().and_then(number) {
            return LOST.contains(&number);
        }
        cause = error.source();
    }
    false
}

pub(super) fn is_duplicate(error: &sqlx::Error) -> bool {
    number(error) == Some(DUPLICATE)
}

/// The server's number of an error.
pub(super) fn number(error: &sqlx::Error) -> Option<u16> {
    Some(error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?.number())
}

pub(super) fn corrupt(error: Corrupt) -> BackendError {
    BackendError::permanent(NAME, error)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use deploycore::model::NewJob;
    use deploycore::port::JobQueue as _;
    use deploycore::port::queue::ClaimRequest;

    use super::*;
    use crate::mariadb::MariaDb;
    use crate::mariadb::migrations::tests::server;

    #[tokio::test]
    async fn who_stands_still_in_a_transaction_loses_it() {
        let database = server().create_database().unwrap();
        let settings = Settings::default().with_call_timeout(Duration::from_secs(2));
        let (still, other) = (
            MariaDb::open_with(&database.url(), &settings).await.unwrap(),
            MariaDb::open(&database.url()).await.unwrap().queue(),
        );
        let job = NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap());
        other.enqueue(std::slice::from_ref(&job)).await.unwrap();
        let mut moment = still.database.begin().await.unwrap();
        hold(moment.connection(), "deploycore of a test").await.unwrap();
        let lock = "SELECT id FROM deploycore_jobs FOR UPDATE";
        sqlx::raw_sql(lock).execute(moment.connection()).await.unwrap();
        let request = || ClaimRequest { claim: job.id.as_uuid().into(), worker: "w".parse().unwrap(), limit: 1 };
        assert_eq!(other.claim(&request()).await.unwrap(), [], "nobody holds it: the test shows nothing");
        let start = Instant::now();
        while other.claim(&request()).await.unwrap().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(30), "it holds the job for ever");
            sleep(Duration::from_millis(50)).await;
        }
        let ended = moment.end(Ok::<_, BackendError>(())).await.unwrap_err();
        assert!(ended.is_retryable(), "{ended:?}");
    }

    #[test]
    fn only_what_may_pass_is_retried() {
        assert!(may_pass(&sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into())));
        assert!(!may_pass(&sqlx::Error::RowNotFound));
        let lost: BackendError = BackendError::retryable(NAME, sqlx::Error::RowNotFound);
        assert!(!has_lost(&lost) && !has_lost(&deploycore::port::queue::Error::from(lost)));
    }
}
