//! Opening a database, and what is said when it cannot be opened.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use deploycore::port::{JobQueue, JobQueueExt, chain};
use deploycore_sql::Postgres;
use deploycore_sql::postgres::OpenError;
use futures::future::join_all;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::bed::{self, job, request};

async fn refused(url: &str) -> OpenError {
    let settings = bed::settings().with_connect_timeout(Duration::from_secs(3));
    Postgres::open_with(url, &settings).await.expect_err("it does not open")
}

/// One line that names the place, and never the password.
#[track_caller]
fn assert_says(error: &OpenError, words: &[&str]) {
    let said = chain(error);
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    assert!(!said.contains('\n') && !said.contains("of-a-test") && !said.contains("secret"), "{said:?}");
}

#[tokio::test]
async fn many_that_open_an_empty_database_at_once_all_find_it_ready() {
    let database = bed::empty();
    let url = database.url();
    let opened = join_all((0..8).map(|_| bed::open_at(&url))).await;
    let job = job();
    opened[0].queue().enqueue_one(&job).await.unwrap();
    for postgres in &opened {
        assert_eq!(postgres.queue().require(job.id).await.unwrap().spec, job);
    }
    assert!(opened[0].place().ends_with(database.name()) && !opened[0].place().contains("of-a-test"));
}

#[tokio::test]
async fn a_url_of_something_else_is_refused() {
    for (url, why) in [
        ("sqlite:///tmp/queue.db", "sqlite"),
        ("queue.db", "postgres://"),
        ("postgres://user:secret@host", "no database"),
        ("postgres://user:secret@host:port/db", "port"),
        ("postgres://user:secret@host/db?sslmode=perhaps", "perhaps"),
    ] {
        let error = refused(url).await;
        assert!(matches!(error, OpenError::Url { .. }), "{url}: {error:?}");
        assert_says(&error, &[why]);
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_named() {
    let held = servers::Port::take().unwrap();
    let port = held.number();
    let error = refused(&format!("postgres://user:secret@127.0.0.1:{port}/db")).await;
    assert!(matches!(error, OpenError::Unreachable { .. }) && error.is_retryable(), "{error:?}");
    assert_says(&error, &[&format!("127.0.0.1:{port}/db")]);

    // One that takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let start = Instant::now();
    let error = refused(&format!("postgres://user:secret@127.0.0.1:{port}/db")).await;
    assert!(matches!(error, OpenError::Unreachable { .. }) && error.is_retryable(), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_database_are_told() {
    let database = bed::empty();
    let wrong = database.url().replace(":of-a-test@", ":secret@");
    let error = refused(&wrong).await;
    assert!(matches!(error, OpenError::Refused { .. }), "{error:?}");
    assert_says(&error, &["deploycore", "password"]);
    assert!(!error.is_retryable());

    let error = refused(&bed::server().url("no_such_database")).await;
    assert!(matches!(error, OpenError::MissingDatabase { .. }), "{error:?}");
    assert_says(&error, &["no_such_database", "CREATE DATABASE"]);
}

#[tokio::test]
async fn a_database_in_another_encoding_is_refused() {
    let mut admin = PgConnection::connect(&bed::server().url("postgres")).await.unwrap();
    let create = "CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'";
    sqlx::raw_sql(create).execute(&mut admin).await.unwrap();
    let error = refused(&bed::server().url("ascii")).await;
    assert!(matches!(error, OpenError::Encoding { .. }), "{error:?}");
    assert_says(&error, &["SQL_ASCII", "UTF8"]);
}

#[tokio::test]
async fn a_role_needs_the_schema_only_once_it_is_made() {
    let database = bed::empty();
    let mut owner = PgConnection::connect(&database.url()).await.unwrap();
    let role = format!("app_of_{}", database.name());
    let run = async |connection: &mut PgConnection, sql: String| {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
    };
    run(&mut owner, format!("CREATE ROLE {role} LOGIN PASSWORD 'secret'")).await;
    let url = database.url().replace("deploycore:of-a-test@", &format!("{role}:secret@"));
    let error = refused(&url).await;
    assert!(matches!(error, OpenError::Forbidden { .. }), "{error:?}");
    assert_says(&error, &[&role, "deploycore"]);

    bed::open_at(&database.url()).await;
    let error = refused(&url).await;
    assert!(matches!(error, OpenError::Forbidden { .. }), "{error:?}");
    let grant = format!(
        "GRANT USAGE ON SCHEMA deploycore TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA deploycore TO {role}"
    );
    run(&mut owner, grant).await;
    let queue = bed::open_at(&url).await.queue();
    queue.enqueue_one(&job()).await.unwrap();
    assert_eq!(queue.claim(&request(1)).await.unwrap().len(), 1);
    drop(queue);
    run(&mut owner, format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_missing_table_is_a_permanent_error() {
    let (postgres, database) = bed::open().await;
    let mut owner = PgConnection::connect(&database.url()).await.unwrap();
    sqlx::raw_sql("DROP TABLE deploycore.attempts CASCADE").execute(&mut owner).await.unwrap();
    let error = postgres.queue().claim(&request(1)).await.unwrap_err();
    assert!(!error.is_retryable(), "{}", chain(&error));
    assert!(chain(&error).contains("deploycore.attempts"), "{}", chain(&error));
}

#[tokio::test]
async fn durability_that_the_database_turned_off_is_turned_on() {
    let database = bed::empty();
    let mut owner = PgConnection::connect(&database.url()).await.unwrap();
    let off = format!("ALTER DATABASE {} SET synchronous_commit = off", database.name());
    sqlx::raw_sql(AssertSqlSafe(off)).execute(&mut owner).await.unwrap();
    let postgres = bed::open_at(&database.url()).await;
    // Told by a trigger, since the connections are the queue's own.
    let watch = "
        CREATE TABLE public.seen (setting text);
        CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
        CREATE TRIGGER see AFTER INSERT ON deploycore.jobs EXECUTE FUNCTION public.see()";
    sqlx::raw_sql(watch).execute(&mut owner).await.unwrap();
    postgres.queue().enqueue_one(&job()).await.unwrap();
    let seen: Vec<String> = sqlx::query_scalar("SELECT setting FROM public.seen").fetch_all(&mut owner).await.unwrap();
    assert_eq!(seen, ["on"]);
}
