//! Listening for enqueued jobs, on a connection of its own that is made again whenever it ends.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deploycore::port::queue::{ReadyHint, ReadyHints};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::Instrument as _;

const CHANNEL: &str = "deploycore_jobs";
/// A connection that was silent for so long is asked whether it lives: one whose server is gone without a word would be silent for ever.
const SILENT: Duration = Duration::from_secs(30);
/// Between two tries to connect: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// Gives hints to any number of workers of this process from one connection, which is made once somebody asks for them.
#[derive(Debug)]
pub(super) struct Hints {
    options: PgConnectOptions,
    connect_timeout: Duration,
    giver: ReadyHints,
    /// Dropped, it ends.
    listener: Mutex<JoinSet<()>>,
}

impl Hints {
    pub(super) fn new(options: PgConnectOptions, connect_timeout: Duration) -> Self {
        Self { options, connect_timeout, giver: ReadyHints::default(), listener: Mutex::default() }
    }

    /// Outside of a runtime there is nobody who could wait for one.
    pub(super) fn subscribe(&self) -> ReadyHint {
        let Ok(runtime) = Handle::try_current() else {
            return ReadyHint::never();
        };
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        // One that ended did so with the runtime that it ran on.
        while listener.try_join_next().is_some() {}
        if listener.is_empty() {
            let (options, limit, giver) = (self.options.clone(), self.connect_timeout, self.giver.clone());
            let span = tracing::info_span!("listener", channel = CHANNEL);
            listener.spawn_on(listen(options, limit, giver).instrument(span), &runtime);
        }
        self.giver.subscribe()
    }
}

/// Without end. What was told while nobody listened is unknown, so each new connection begins with a hint.
async fn listen(options: PgConnectOptions, connect_timeout: Duration, giver: ReadyHints) {
    let mut delay = RETRY.0;
    loop {
        match timeout(connect_timeout, connect(&options, connect_timeout)).await {
            Ok(Ok(mut listener)) => {
                delay = RETRY.0;
                giver.give(1);
                let error = hear(&mut listener, &giver, connect_timeout).await;
                tracing::debug!(%error, "the connection ended; polling goes on meanwhile");
            }
            Ok(Err(error)) => tracing::debug!(%error, "cannot listen; polling goes on meanwhile"),
            Err(_) => tracing::debug!("cannot listen within {connect_timeout:?}; polling goes on meanwhile"),
        }
        sleep(delay).await;
        delay = (delay * 2).min(RETRY.1);
    }
}

/// The pool is how a listener is made: it has this one connection, and goes with it.
async fn connect(options: &PgConnectOptions, limit: Duration) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(limit)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// Until the connection ends, and why it did.
async fn hear(listener: &mut PgListener, giver: &ReadyHints, limit: Duration) -> sqlx::Error {
    loop {
        match timeout(SILENT, listener.try_recv()).await {
            // An earlier program does not tell how many.
            Ok(Ok(Some(told))) => giver.give(told.payload().parse().unwrap_or(1)),
            Ok(Ok(None)) => return sqlx::Error::PoolClosed,
            Ok(Err(error)) => return error,
            Err(_) => match timeout(limit, sqlx::query("SELECT 1").execute(&mut *listener)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error,
                Err(_) => return sqlx::Error::PoolTimedOut,
            },
        }
    }
}
