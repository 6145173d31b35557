//! Opening a database, and what is said when it cannot be opened.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use deploycore::port::ledger::LedgerFilter;
use deploycore::port::{JobQueue, JobQueueExt, chain};
use deploycore_sql::mariadb::OpenError;
use futures::future::join_all;
use servers::mariadb::{MariaDb, Options};
use sqlx::{Connection, MySqlConnection};

use crate::bed::{self, job, request};

async fn refused(url: &str) -> OpenError {
    let settings = bed::settings().with_connect_timeout(Duration::from_secs(3));
    deploycore_sql::MariaDb::open_with(url, &settings).await.expect_err("it does not open")
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
    for mariadb in &opened {
        assert_eq!(mariadb.queue().require(job.id).await.unwrap().spec, job);
    }
    assert!(opened[0].place().ends_with(database.name()) && !opened[0].place().contains("of-a-test"));
}

#[tokio::test]
async fn a_url_chooses_it() {
    let database = bed::empty();
    for url in [database.url(), database.url().replace("mysql://", "mariadb://")] {
        let opened = deploycore_sql::open_url(&url).await.unwrap();
        opened.queue.enqueue_one(&job()).await.unwrap();
        assert_eq!(opened.ledger.list(&LedgerFilter::default(), None, 1).await.unwrap().artifacts, []);
    }
    let queue = deploycore_sql::open_url(&database.url()).await.unwrap().queue;
    assert_eq!(queue.claim(&request(9)).await.unwrap().len(), 2);
}

#[cfg(feature = "mariadb-tls")]
#[tokio::test]
async fn a_certificate_is_checked_where_the_url_says_so() {
    let options = Options::default().with_fsync(false).with_tls().with_setting("require-secure-transport", "ON");
    let server = MariaDb::start(&options).unwrap();
    let url = server.url(server.create_database().unwrap().name());
    let (certificates, other) = (server.certificates().unwrap(), servers::Folder::new("test").unwrap());
    let other = servers::etcd::Certificates::new(other.path()).unwrap().ca;

    let error = refused(&format!("{url}?ssl-mode=DISABLED")).await;
    assert_says(&error, &["TLS"]);
    let error = refused(&format!("{url}?ssl-mode=VERIFY_IDENTITY&ssl-ca={}", other.display())).await;
    assert_says(&error, &["certificate"]);
    let queue =
        bed::open_at(&format!("{url}?ssl-mode=VERIFY_IDENTITY&ssl-ca={}", certificates.ca.display())).await.queue();
    queue.enqueue_one(&job()).await.unwrap();
    // By default it encrypts where it can.
    assert_eq!(bed::open_at(&url).await.queue().claim(&request(9)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_url_of_something_else_is_refused() {
    for (url, why) in [
        ("sqlite:///tmp/queue.db", "sqlite"),
        ("queue.db", "mysql://"),
        ("mysql://user:secret@host", "no database"),
        ("mysql://user:secret@host:port/db", "port"),
        ("mysql://user:secret@host/db?ssl-mode=perhaps", "perhaps"),
        ("mariadb://user:secret@host/db?sslMode=REQUIRED", "sslMode"),
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
    let error = refused(&format!("mysql://user:secret@127.0.0.1:{port}/db")).await;
    assert!(matches!(error, OpenError::Unreachable { .. }) && error.is_retryable(), "{error:?}");
    assert_says(&error, &[&format!("127.0.0.1:{port}/db")]);

    // One that takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let start = Instant::now();
    let error = refused(&format!("mysql://user:secret@127.0.0.1:{port}/db")).await;
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
async fn a_user_needs_rights_on_the_tables_only_once_they_are_made() {
    let database = bed::empty();
    let (name, user) = (database.name(), format!("app_{}", database.name()));
    let admin = |sql: String| bed::server().run_sql(&sql).unwrap();
    admin(format!("CREATE USER {user} IDENTIFIED BY 'secret'; GRANT SELECT ON {name}.* TO {user}"));
    let url = database.url().replace("deploycore:of-a-test@", &format!("{user}:secret@"));
    let error = refused(&url).await;
    assert!(matches!(error, OpenError::Forbidden { .. }), "{error:?}");
    assert_says(&error, &[&user, "CREATE"]);
    assert!(!error.is_retryable());

    bed::open_at(&database.url()).await;
    admin(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {name}.* TO {user}"));
    let queue = bed::open_at(&url).await.queue();
    queue.enqueue_one(&job()).await.unwrap();
    assert_eq!(queue.claim(&request(1)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_missing_table_is_a_permanent_error() {
    let (mariadb, database) = bed::open().await;
    let mut owner = MySqlConnection::connect(&database.url()).await.unwrap();
    sqlx::raw_sql("DROP TABLE deploycore_attempts").execute(&mut owner).await.unwrap();
    let error = mariadb.queue().claim(&request(1)).await.unwrap_err();
    assert!(!error.is_retryable(), "{}", chain(&error));
    assert!(chain(&error).contains("deploycore_attempts"), "{}", chain(&error));
}

#[tokio::test]
async fn a_server_that_forgets_is_refused_unless_that_is_wanted() {
    let options = Options::default().with_fsync(false).with_setting("innodb-flush-log-at-trx-commit", "2");
    let server = MariaDb::start(&options).unwrap();
    let name = server.create_database().unwrap().name().to_owned();
    let error = refused(&server.url(&name)).await;
    assert!(matches!(error, OpenError::Setting { .. }) && !error.is_retryable(), "{error:?}");
    assert_says(&error, &[&name, "innodb_flush_log_at_trx_commit = 2", "set it to 1"]);
    let lossy = bed::settings().with_lossy(true);
    let mariadb = deploycore_sql::MariaDb::open_with(&server.url(&name), &lossy).await.unwrap();
    mariadb.queue().enqueue_one(&job()).await.unwrap();
}

#[tokio::test]
async fn what_the_server_or_the_host_has_set_does_not_count() {
    let database = bed::empty();
    let queue = bed::open_at(&database.url()).await.queue();
    // Told by a trigger, since the connections are the queue's own.
    let watch = "
        CREATE TABLE seen (isolation TEXT);
        CREATE TRIGGER see AFTER INSERT ON deploycore_jobs FOR EACH ROW INSERT INTO seen VALUES (@@tx_isolation)";
    let mut owner = MySqlConnection::connect(&database.url()).await.unwrap();
    sqlx::raw_sql(watch).execute(&mut owner).await.unwrap();
    queue.enqueue(&[job(), job()]).await.unwrap();
    let seen: Vec<String> = sqlx::query_scalar("SELECT isolation FROM seen").fetch_all(&mut owner).await.unwrap();
    assert_eq!(seen, ["READ-COMMITTED", "READ-COMMITTED"]);

    // A host's session as old programs have it: neither strict nor in UTC, and all quotes are of names.
    let session = "SET SESSION sql_mode = 'ANSI_QUOTES', time_zone = '-11:00'";
    sqlx::raw_sql(session).execute(&mut owner).await.unwrap();
    let spec = job();
    let mut transaction = owner.begin().await.unwrap();
    deploycore_sql::mariadb::Queue::enqueue_in(&mut transaction, std::slice::from_ref(&spec)).await.unwrap();
    transaction.commit().await.unwrap();
    let (queued, other) = (queue.require(spec.id).await.unwrap(), job());
    queue.enqueue_one(&other).await.unwrap();
    let after = queue.require(other.id).await.unwrap().created_at;
    assert!(queued.created_at <= after && after.duration_since(queued.created_at).as_secs() < 60, "{queued:?}");
}
