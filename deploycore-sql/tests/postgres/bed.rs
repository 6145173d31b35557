//! What the tests stand on.

use std::sync::OnceLock;

pub(crate) use deploycore_sql::Postgres as Sql;
pub(crate) use deploycore_sql::postgres::Queue;
use deploycore_sql::postgres::Settings;
use servers::postgres::{Database, Options};
pub(crate) use sqlx::PgConnection as Connection;

pub(crate) use crate::jobs::{PATIENCE, job, lease, request, success};

/// Holds the row of a job until the transaction ends.
pub(crate) const HOLD: &str = "SELECT 1 FROM deploycore.jobs WHERE id = $1 FOR UPDATE";
/// How many connections wait for a lock.
pub(crate) const WAITERS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// The server of this binary. It dies with the process.
pub(crate) fn server() -> &'static servers::postgres::Postgres {
    static SERVER: OnceLock<servers::postgres::Postgres> = OnceLock::new();
    SERVER.get_or_init(|| servers::postgres::Postgres::start(&Options::default()).expect("PostgreSQL starts"))
}

pub(crate) fn empty() -> Database<'static> {
    server().create_database().expect("a database is created")
}

pub(crate) async fn open() -> (Sql, Database<'static>) {
    let database = empty();
    (open_at(&database.url()).await, database)
}

/// With a few connections: many tests share the server.
pub(crate) async fn open_at(url: &str) -> Sql {
    Sql::open_with(url, &settings()).await.expect("the database opens")
}

pub(crate) fn settings() -> Settings {
    Settings::default().with_connections(4)
}

/// A server to be killed, and the URL of a database on it.
pub(crate) fn own_server() -> (servers::postgres::Postgres, String) {
    let server = servers::postgres::Postgres::start(&Options::default()).expect("it starts");
    let url = server.url("postgres");
    (server, url)
}
