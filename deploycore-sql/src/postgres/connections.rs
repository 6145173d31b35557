//! A bounded number of connections, each with one call at a time.
//!
//! A call that ended well gives its connection back. A connection whose call failed or was dropped is closed, so nobody waits for
//! what is still under way on it, nor for a server that is gone without a word; its transaction has no effect.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deploycore::port::BackendError;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::database::{NAME, failed};

/// What each connection is told once.
///
/// The plan of a statement must not follow statistics, which lag behind in a table that is empty now and holds a hundred thousand jobs a
/// minute later: every statement has an index that gives its rows in their order.
const PREPARE: &str = "
    SELECT set_config('statement_timeout', $1, false), set_config('lock_timeout', $1, false),
           set_config('idle_in_transaction_session_timeout', $1, false),
           set_config('default_transaction_isolation', 'read committed', false),
           set_config('default_transaction_read_only', 'off', false),
           set_config('synchronous_commit', CASE current_setting('synchronous_commit')
                          WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false),
           set_config('enable_seqscan', 'off', false), set_config('enable_bitmapscan', 'off', false),
           set_config('jit', 'off', false)";

#[derive(Debug, Clone)]
pub(super) struct Connections {
    shared: Arc<Shared>,
}

struct Shared {
    options: PgConnectOptions,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<PgConnection>>,
    connect_timeout: Duration,
    /// As the server counts it.
    call_millis: String,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let free = self.permits.available_permits();
        f.debug_struct("Shared").field("free", &free).field("idle", &self.idle().len()).finish_non_exhaustive()
    }
}

impl Shared {
    fn idle(&self) -> MutexGuard<'_, Vec<PgConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        sqlx::query(PREPARE).bind(&self.call_millis).execute(&mut connection).await?;
        Ok(connection)
    }
}

impl Connections {
    pub(super) fn new(options: PgConnectOptions, most: u32, connect_timeout: Duration, call_timeout: Duration) -> Self {
        let most = usize::try_from(most.max(1)).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        // 0 would mean no limit, and the server counts in 31 bits.
        let call_millis = call_timeout.as_millis().clamp(1, i32::MAX as u128).to_string();
        let permits = Arc::new(Semaphore::new(most));
        let shared = Shared { options, permits, idle: Mutex::default(), connect_timeout, call_millis };
        Self { shared: Arc::new(shared) }
    }

    /// A connection for one call.
    pub(super) async fn borrow(&self) -> Result<Borrowed, BackendError> {
        let limit = self.shared.connect_timeout;
        timeout(limit, self.take()).await.unwrap_or_else(|_| Err(too_late("no connection", limit)))
    }

    async fn take(&self) -> Result<Borrowed, BackendError> {
        let permit = Arc::clone(&self.shared.permits).acquire_owned().await;
        let permit = permit.map_err(|closed| BackendError::permanent(NAME, closed))?;
        let idle = self.shared.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.shared.connect().await.map_err(failed)?,
        };
        Ok(Borrowed { connection: Some(connection), home: Arc::clone(&self.shared), _permit: permit })
    }
}

/// What did not come in time may come later.
pub(super) fn too_late(what: &str, limit: Duration) -> BackendError {
    BackendError::retryable(NAME, format!("{what} within {limit:?}"))
}

/// A connection that is closed unless it is given back.
#[derive(Debug)]
pub(super) struct Borrowed {
    connection: Option<PgConnection>,
    home: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Borrowed {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("it is there until it is given back")
    }

    /// After a call that ended well: nothing is under way.
    pub(super) fn give_back(mut self) {
        let connection = self.connection.take();
        self.home.idle().extend(connection);
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if self.connection.is_some() {
            // What ended this one, a restart of the server for instance, has most likely ended the others too.
            self.home.idle().clear();
        }
    }
}
