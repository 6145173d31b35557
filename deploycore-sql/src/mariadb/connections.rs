//! Connections of the queue's own.

use std::time::Duration;

use deploycore::port::BackendError;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _};

use super::database::{NAME, failed};
use crate::connections::Connect;

pub(super) struct Session {
    options: MySqlConnectOptions,
    /// What each connection is told once.
    prepare: String,
}

impl Session {
    pub(super) fn new(options: MySqlConnectOptions, call_timeout: Duration) -> Self {
        // The server counts in seconds. A lock that is not there after a third of a call's time is asked for again.
        let call = call_timeout.as_secs().clamp(1, 86_400);
        let lock = (call / 3).max(1);
        // A value that does not fit is an error and never cut; and what the server or the host's other programs have set does not count.
        // What stands in a comment with an M is for MariaDB alone: a statement of a caller that is gone ends by itself.
        let prepare = format!(
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE;
             SET SESSION sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION',
                 autocommit = 1, unique_checks = 1, foreign_key_checks = 1,
                 innodb_lock_wait_timeout = {lock}, wait_timeout = 86400 /*M!100600 , max_statement_time = {call} */;
             SET @deploycore_call_seconds = {call}"
        );
        Self { options, prepare }
    }
}

impl Connect for Session {
    const NAME: &'static str = NAME;
    type Connection = MySqlConnection;

    async fn connect(&self) -> Result<MySqlConnection, BackendError> {
        let mut connection = self.options.connect().await.map_err(failed)?;
        let prepare = AssertSqlSafe(self.prepare.clone());
        sqlx::raw_sql(prepare).execute(&mut connection).await.map_err(failed)?;
        Ok(connection)
    }
}
