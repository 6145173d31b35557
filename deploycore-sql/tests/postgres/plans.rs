//! Statements that must not walk over the history, nor over what waits: counted in pages of the table, with statistics that know of neither.

use deploycore::model::{ClaimId, ConcurrencyKey};
use deploycore::port::{JobQueue, JobQueueExt};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::bed::{self, job};

/// As the queue's own connections are told.
const SESSION: &str =
    "SET enable_seqscan = off; SET enable_bitmapscan = off; SET plan_cache_mode = force_generic_plan; SET jit = off";
const HISTORY: &str = "
    INSERT INTO deploycore.jobs (id, created_at, \"commit\", name, status, priority, max_attempts, max_releases, build_timeout,
                                 eligible_at, delayed, epoch, claim_id, worker, claimed_at, last_heartbeat, deadline,
                                 finished_at, artifact, digest, size)
    SELECT gen_random_uuid(), n, 'abcdef0', 'web', 'SUCCEEDED', 0, 3, 10, 60000000, n, false, 1, gen_random_uuid(), 'w', n, n, n,
           n, 'a', 'd', 1
    FROM generate_series(1, 30000) n";
/// Behind a full key, and until a day that is far.
const WAITING: &str = "
    INSERT INTO deploycore.jobs (id, created_at, \"commit\", name, status, priority, max_attempts, max_releases, build_timeout,
                                 eligible_at, delayed, concurrency_key)
    SELECT gen_random_uuid(), n, 'abcdef0', 'web', 'QUEUED', 5, 3, 10, 60000000, CASE WHEN n % 2 = 0 THEN n ELSE 4000000000000000 END,
           n % 2 = 1, CASE WHEN n % 2 = 0 THEN 'full' END
    FROM generate_series(1, 10000) n";

async fn run(connection: &mut PgConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(connection).await.unwrap();
}

/// How many jobs a statement gave or touched, and how many pages it looked at. The statement takes effect.
async fn pages(connection: &mut PgConnection, sql: String) -> (u64, u64) {
    let explain = AssertSqlSafe(format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {sql}"));
    let row = sqlx::raw_sql(explain).fetch_one(connection).await.unwrap();
    let text = sqlx::Row::try_get_unchecked::<String, _>(&row, 0).unwrap();
    let number = |name: &str| -> u64 {
        let found = text.split(&format!("\"{name}\": ")).nth(1).expect("the plan tells it");
        let digits: String = found.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    (number("Actual Rows"), number("Shared Hit Blocks") + number("Shared Read Blocks"))
}

fn claim(limit: usize) -> String {
    format!("SELECT * FROM deploycore.claim_5('{}', 'w', {limit}, false)", ClaimId::new())
}

#[tokio::test]
async fn a_new_turn_looks_neither_at_the_history_nor_at_what_waits() {
    const NEW_TURNS: &str = "
        SELECT deploycore.new_turns_1(1, 0, ARRAY[gen_random_uuid(), gen_random_uuid()], ARRAY['web', 'web'], ARRAY[5, 5]::bigint[],
                                      ARRAY[NULL, NULL]::bigint[], ARRAY['nightly', NULL], ARRAY[false, false])";
    let (_postgres, database) = bed::open().await;
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    run(&mut connection, SESSION).await;
    run(&mut connection, "ALTER TABLE deploycore.jobs SET (autovacuum_enabled = false)").await;
    run(&mut connection, HISTORY).await;
    run(&mut connection, WAITING).await;
    run(&mut connection, "UPDATE deploycore.jobs SET turn = created_at").await;
    pages(&mut connection, NEW_TURNS.to_owned()).await;
    let (_, pages) = pages(&mut connection, NEW_TURNS.to_owned()).await;
    println!("{pages} pages");
    assert!(pages < 60, "{pages} pages");
    let turns: Vec<i64> = sqlx::query_scalar(NEW_TURNS).fetch_one(&mut connection).await.unwrap();
    assert_eq!(turns, [10_001, 10_002], "behind the last that waits at this priority");
}

/// Programs of earlier versions go on beside this one.
#[tokio::test]
async fn the_claims_of_earlier_versions_take_jobs() {
    let (postgres, database) = bed::open().await;
    let queue = postgres.queue();
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    queue.enqueue(&[job(), job(), job(), job(), job().with_priority(1)]).await.unwrap();
    for function in ["claim_1", "claim_2", "claim_3", "claim_4"] {
        let claim = format!("SELECT (job).priority FROM deploycore.{function}('{}', 'w', 1)", ClaimId::new());
        let claimed: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(claim)).fetch_all(&mut connection).await.unwrap();
        assert_eq!(claimed, [i64::from(function == "claim_1")], "{function}");
    }
}

#[tokio::test]
async fn a_claim_looks_neither_at_the_history_nor_at_what_waits() {
    let (postgres, database) = bed::open().await;
    let queue = postgres.queue();
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    run(&mut connection, SESSION).await;
    // A server that looks after its statistics meanwhile would only make it easier.
    run(&mut connection, "ALTER TABLE deploycore.jobs SET (autovacuum_enabled = false)").await;
    run(&mut connection, HISTORY).await;
    queue.enqueue(&[job(), job(), job()]).await.unwrap();
    // The first call on a connection reads the server's catalogue to make its plans.
    assert_eq!(pages(&mut connection, claim(1)).await.0, 1);
    let (claimed, alone) = pages(&mut connection, claim(2)).await;
    assert_eq!(claimed, 2);

    let key = |name: &str| ConcurrencyKey::new(name).unwrap();
    queue.enqueue_one(&job().with_concurrency_key(key("full")).with_priority(9)).await.unwrap();
    assert_eq!(pages(&mut connection, claim(1)).await.0, 1);
    run(&mut connection, WAITING).await;
    queue.enqueue(&[job().with_concurrency_key(key("free")), job()]).await.unwrap();
    let (claimed, keyed) = pages(&mut connection, claim(2)).await;
    assert_eq!(claimed, 2);

    let whole = "SELECT pg_relation_size('deploycore.jobs') / current_setting('block_size')::bigint";
    let whole: i64 = sqlx::query_scalar(whole).fetch_one(&mut connection).await.unwrap();
    println!("{alone} and {keyed} pages; the table has {whole}");
    assert!(whole > 1_400, "the table has {whole} pages: the test shows little");
    assert!(alone < 150 && keyed < 300, "{alone} and {keyed} pages");
}
