//! A bounded number of connections to a server, each with one call at a time.
//!
//! A call that ended well gives its connection back. A connection whose call failed or was dropped is closed, so nobody waits for
//! what is still under way on it, nor for a server that is gone without a word; its transaction has no effect.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deploycore::port::BackendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How a connection is made.
pub(crate) trait Connect: Send + Sync + 'static {
    /// The name of the engine in errors.
    const NAME: &'static str;
    type Connection: Send;

    /// Makes one, and tells it what each is told once.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, BackendError>> + Send;
}

pub(crate) struct Connections<C: Connect> {
    shared: Arc<Shared<C>>,
}

impl<C: Connect> Clone for Connections<C> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<C: Connect> fmt::Debug for Connections<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, idle) = (self.shared.permits.available_permits(), self.shared.idle().len());
        f.debug_struct("Connections").field("free", &free).field("idle", &idle).finish_non_exhaustive()
    }
}

struct Shared<C: Connect> {
    how: C,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<C::Connection>>,
    connect_timeout: Duration,
}

impl<C: Connect> Shared<C> {
    fn idle(&self) -> MutexGuard<'_, Vec<C::Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Connect> Connections<C> {
    /// At most `most` connections, and at least one.
    pub(crate) fn new(how: C, most: u32, connect_timeout: Duration) -> Self {
        let most = usize::try_from(most.max(1)).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(most));
        Self { shared: Arc::new(Shared { how, permits, idle: Mutex::default(), connect_timeout }) }
    }

    /// A connection for one call.
    pub(crate) async fn borrow(&self) -> Result<Borrowed<C>, BackendError> {
        let limit = self.shared.connect_timeout;
        timeout(limit, self.take()).await.unwrap_or_else(|_| Err(too_late(C::NAME, "no connection", limit)))
    }

    async fn take(&self) -> Result<Borrowed<C>, BackendError> {
        let permit = Arc::clone(&self.shared.permits).acquire_owned().await;
        let permit = permit.map_err(|closed| BackendError::permanent(C::NAME, closed))?;
        let idle = self.shared.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.shared.how.connect().await?,
        };
        Ok(Borrowed { connection: Some(connection), home: Arc::clone(&self.shared), _permit: permit })
    }
}

/// What did not come in time may come later.
pub(crate) fn too_late(backend: &'static str, what: &str, limit: Duration) -> BackendError {
    BackendError::retryable(backend, format!("{what} within {limit:?}"))
}

/// A connection that is closed unless it is given back.
pub(crate) struct Borrowed<C: Connect> {
    connection: Option<C::Connection>,
    home: Arc<Shared<C>>,
    _permit: OwnedSemaphorePermit,
}

impl<C: Connect> fmt::Debug for Borrowed<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Borrowed").finish_non_exhaustive()
    }
}

impl<C: Connect> Borrowed<C> {
    pub(crate) fn connection(&mut self) -> &mut C::Connection {
        self.connection.as_mut().expect("it is there until it is given back")
    }

    /// After a call that ended well: nothing is under way.
    pub(crate) fn give_back(mut self) {
        let connection = self.connection.take();
        self.home.idle().extend(connection);
    }
}

impl<C: Connect> Drop for Borrowed<C> {
    fn drop(&mut self) {
        if self.connection.is_some() {
            // What ended this one, a restart of the server for instance, has most likely ended the others too.
            self.home.idle().clear();
        }
    }
}
