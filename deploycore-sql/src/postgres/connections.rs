//! Connections of the queue's own.

use std::time::Duration;

use deploycore::port::BackendError;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use super::database::{NAME, failed};
use crate::connections::Connect;

/// What each connection is told once.
///
/// The plan of a statement must not follow statistics, which lag behind in a table that is empty now and holds a hundred thousand jobs a
/// minute later: every statement has an index that gives its rows in their order, or asks in words that lead to one index alone. So a plan is
/// made once a connection. Left to itself the server makes one for each call as soon as the values make it look cheaper by statistics,
/// and that costs more than the claim.
const PREPARE: &str = "
    SELECT set_config('statement_timeout', $1, false), set_config('lock_timeout', $1, false),
           set_config('idle_in_transaction_session_timeout', $1, false),
           set_config('default_transaction_isolation', 'read committed', false),
           set_config('default_transaction_read_only', 'off', false),
           set_config('synchronous_commit', CASE current_setting('synchronous_commit')
                          WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false),
           set_config('enable_seqscan', 'off', false), set_config('enable_bitmapscan', 'off', false),
           set_config('plan_cache_mode', 'force_generic_plan', false), set_config('jit', 'off', false)";

pub(super) struct Session {
    options: PgConnectOptions,
    /// How long a statement may take, as the server counts it.
    call_millis: String,
}

impl Session {
    pub(super) fn new(options: PgConnectOptions, call_timeout: Duration) -> Self {
        // 0 would mean no limit, and the server counts in 31 bits.
        let call_millis = call_timeout.as_millis().clamp(1, i32::MAX as u128).to_string();
        Self { options, call_millis }
    }
}

impl Connect for Session {
    const NAME: &'static str = NAME;
    type Connection = PgConnection;

    async fn connect(&self) -> Result<PgConnection, BackendError> {
        let mut connection = self.options.connect().await.map_err(failed)?;
        sqlx::query(PREPARE)
            .bind(&self.call_millis)
            .persistent(false)
            .execute(&mut connection)
            .await
            .map_err(failed)?;
        Ok(connection)
    }
}
