//! What the tests stand on.

use std::sync::OnceLock;

pub(crate) use deploycore_sql::MariaDb as Sql;
pub(crate) use deploycore_sql::mariadb::Queue;
use deploycore_sql::mariadb::Settings;
use servers::mariadb::{Database, Options};
pub(crate) use sqlx::MySqlConnection as Connection;

pub(crate) use crate::jobs::{PATIENCE, job, lease, request, success};

/// Holds the row of a job until the transaction ends.
pub(crate) const HOLD: &str = "SELECT 1 FROM deploycore_jobs WHERE id = ? FOR UPDATE";
/// How many connections wait for a lock.
pub(crate) const WAITERS: &str = "
    SELECT COUNT(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id
    WHERE t.trx_state = 'LOCK WAIT' AND p.db = DATABASE()";

/// The server of this binary. It dies with the process. What a machine's loss of power would do is no matter here.
pub(crate) fn server() -> &'static servers::mariadb::MariaDb {
    static SERVER: OnceLock<servers::mariadb::MariaDb> = OnceLock::new();
    SERVER.get_or_init(|| {
        servers::mariadb::MariaDb::start(&Options::default().with_fsync(false)).expect("MariaDB starts")
    })
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
pub(crate) fn own_server() -> (servers::mariadb::MariaDb, String) {
    let server = servers::mariadb::MariaDb::start(&Options::default()).expect("it starts");
    let url = server.url(server.create_database().expect("a database is created").name());
    (server, url)
}
