//! What tests of plans stand on.

use std::sync::OnceLock;

use servers::postgres::{Database, Options, Postgres as Server};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::postgres::Postgres;

/// An empty database, and a connection that is not told how to plan.
pub(super) async fn open() -> (Postgres, Database<'static>, PgConnection) {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER.get_or_init(|| Server::start(&Options::default()).unwrap());
    let database = server.create_database().unwrap();
    let opened = Postgres::open(&database.url()).await.unwrap();
    let connection = PgConnection::connect(&database.url()).await.unwrap();
    (opened, database, connection)
}

/// How many pages a statement looks at on a connection of the queue's own, by the plan that this makes once. It takes effect.
pub(super) async fn pages(connection: &mut PgConnection, statement: &str, arguments: &[String]) -> u64 {
    let arguments = if arguments.is_empty() { String::new() } else { format!("({})", arguments.join(", ")) };
    let prepare = format!("PREPARE look AS {statement}");
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *connection).await.unwrap();
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE look {arguments}");
    let row = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut *connection).await.unwrap();
    sqlx::raw_sql("DEALLOCATE look").execute(connection).await.unwrap();
    let text = row.try_get_unchecked::<String, _>(0).unwrap();
    let number = |name: &str| -> u64 {
        let found = text.split(&format!("\"{name}\": ")).nth(1).expect("the plan tells it");
        found.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    number("Shared Hit Blocks") + number("Shared Read Blocks")
}
