//! Statements that must walk neither over the history, nor over what waits: their plans, and how many rows the server reads for them, with
//! statistics that know of neither.

use deploycore::model::{ConcurrencyKey, NewJob};
use deploycore::port::JobQueue as _;
use sqlx::mysql::{MySqlArguments, MySqlRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection as _, MySql, MySqlConnection, Row as _};

use super::migrations::tests::server;
use super::{MariaDb, ledger, queue};

const HISTORY: &str = "
    INSERT INTO deploycore_jobs (id, created_at, commit, name, status, priority, max_attempts, max_releases, build_timeout,
                                 eligible_at, is_delayed, epoch, claim_id, worker, claimed_at, last_heartbeat,
                                 deadline, finished_at, artifact, digest, size)
    SELECT UNHEX(MD5(seq)), seq, 'abcdef0', 'web', 'SUCCEEDED', 0, 3, 10, 60000000, seq, FALSE, 1, UNHEX(MD5(-seq)), 'w', seq, seq,
           seq, seq, 'a', 'd', 1
    FROM seq_1_to_20000";
/// Behind a full key, and until a day that is far.
const WAITING: &str = "
    INSERT INTO deploycore_jobs (id, created_at, commit, name, status, priority, max_attempts, max_releases, build_timeout,
                                 eligible_at, is_delayed, concurrency_key)
    SELECT UNHEX(MD5(CONCAT('w', seq))), seq, 'abcdef0', 'web', 'QUEUED', 5, 3, 10, 60000000,
           IF(seq % 2 = 0, seq, 4000000000000000), seq % 2 = 1, IF(seq % 2 = 0, 'full', NULL)
    FROM seq_1_to_10000";

async fn open() -> (MariaDb, MySqlConnection) {
    let database = server().create_database().unwrap();
    let mariadb = MariaDb::open(&database.url()).await.unwrap();
    let mut connection = MySqlConnection::connect(&database.url()).await.unwrap();
    for table in ["deploycore_jobs", "deploycore_copies", "deploycore_artifacts"] {
        // As of the empty tables, whatever comes.
        let keep = format!("ALTER TABLE {table} STATS_AUTO_RECALC = 0; ANALYZE TABLE {table}");
        sqlx::raw_sql(AssertSqlSafe(keep)).execute(&mut connection).await.unwrap();
    }
    (mariadb, connection)
}

/// A step of a plan.
#[derive(Debug)]
struct Step {
    index: Option<String>,
    walk: Option<String>,
    extra: String,
}

async fn plan(connection: &mut MySqlConnection, statement: &str) -> Vec<Step> {
    // Numbers where only numbers may stand, and text that stands for anything else.
    let statement = statement.replace("LIMIT ?", "LIMIT 5").replace("- ?", "- 5");
    let parameters = statement.matches('?').count();
    let mut explain = sqlx::query::<MySql>(AssertSqlSafe(format!("EXPLAIN {statement}")));
    for _ in 0..parameters {
        explain = explain.bind("1");
    }
    let rows = explain.fetch_all(connection).await.unwrap();
    let text = |row: &MySqlRow, column| row.get::<Option<String>, _>(column);
    let step =
        |row| Step { index: text(row, "key"), walk: text(row, "type"), extra: text(row, "Extra").unwrap_or_default() };
    rows.iter().map(step).collect()
}

#[tokio::test]
async fn each_statement_follows_its_index() {
    let (_mariadb, mut connection) = open().await;
    for (statement, index, is_in_order) in [
        (queue::LOOK, "jobs_claim", true),
        (queue::LOOK, "jobs_delayed", true),
        (queue::LOOK, "jobs_queue", true),
        (queue::LOOK, "attempts_claim", true),
        (queue::KEYLESS, "jobs_queue", true),
        (queue::OF_KEY, "jobs_queue", true),
        (queue::KEYS_WITH_ROOM, "jobs_slot", false),
        (queue::DUE, "jobs_delayed", true),
        (queue::LINES, "jobs_claimed_turn", true),
        (queue::LINES, "jobs_queued_name", true),
        (queue::HOLDERS, "jobs_dedup", true),
        (queue::QUEUED_OF_SERVICE, "jobs_queued_name", false),
        (queue::OVERDUE, "jobs_queue", false),
        (queue::OLD, "jobs_finished", true),
        (queue::ALL, "jobs_created", true),
        (queue::BY_SERVICE, "jobs_name", true),
        (queue::BY_QUEUED_SERVICE, "jobs_queued_name", false),
        (queue::BY_COMMIT, "jobs_commit", true),
        (queue::BY_RARE_END, "jobs_rare_end", true),
        (queue::BY_STATUS, "jobs_queue", false),
        (queue::BY_END, "jobs_finished", false),
        (ledger::CLAIMABLE, "copies_turns", true),
        (ledger::ALL, "artifacts_registered", true),
        (ledger::BY_SERVICE, "artifacts_service", true),
        (ledger::BY_COPY, "copies_state", true),
        (ledger::UNFINISHED, "copies_unfinished", false),
        (ledger::COMPLETED, "copies_completed", false),
    ] {
        let plan = plan(&mut connection, statement).await;
        let step = plan.iter().find(|step| step.index.as_deref() == Some(index));
        let step = step.unwrap_or_else(|| panic!("{index} is not used for {statement}: {plan:#?}"));
        assert!(step.walk.as_deref() != Some("ALL"), "{statement}: {plan:#?}");
        assert!(!is_in_order || !step.extra.contains("filesort"), "{index} is sorted: {statement}: {plan:#?}");
    }
}

/// How many rows a statement gives, and how many the server reads for it.
async fn reads(connection: &mut MySqlConnection, query: Query<'_, MySql, MySqlArguments>) -> (usize, u64) {
    const READS: &str = "
        SELECT CAST(SUM(variable_value) AS SIGNED) FROM information_schema.session_status
        WHERE variable_name LIKE 'HANDLER_READ%' AND variable_name <> 'HANDLER_READ_RND_DELETED'";
    sqlx::raw_sql("FLUSH STATUS").execute(&mut *connection).await.unwrap();
    let rows = query.fetch_all(&mut *connection).await.unwrap().len();
    let reads: i64 = sqlx::query_scalar(READS).fetch_one(connection).await.unwrap();
    (rows, reads as u64)
}

#[tokio::test]
async fn a_claim_reads_neither_the_history_nor_what_waits() {
    let (mariadb, mut connection) = open().await;
    sqlx::raw_sql(HISTORY).execute(&mut connection).await.unwrap();
    sqlx::raw_sql(WAITING).execute(&mut connection).await.unwrap();
    let job = || NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap());
    let keyed = |key: &str| job().with_concurrency_key(ConcurrencyKey::new(key).unwrap());
    mariadb.queue().enqueue(&[job(), job(), keyed("free"), keyed("other")]).await.unwrap();

    let claim = uuid_of_nobody();
    let mut told = Vec::new();
    for (name, query, rows, most) in [
        ("look", sqlx::query(queue::LOOK).bind(claim).bind(claim), 1, 20),
        ("keyless", sqlx::query(queue::KEYLESS).bind(5_i64), 2, 20),
        ("keys", sqlx::query(queue::KEYS_WITH_ROOM).bind(5_i64), 3, 100),
        ("of a key", sqlx::query(queue::OF_KEY).bind("full").bind(1_i64), 1, 20),
        ("due", sqlx::query(queue::DUE).bind(1_000_i64), 0, 20),
        ("overdue", sqlx::query(queue::OVERDUE).bind(0_i64).bind(1_000_i64), 0, 20),
        ("old", sqlx::query(queue::OLD).bind(0_i64).bind(10_i64), 10, 40),
    ] {
        let (given, read) = reads(&mut connection, query).await;
        told.push((name, given, read));
        assert!(given == rows && read <= most, "{told:?}");
    }
    println!("{told:?}");
}

fn uuid_of_nobody() -> sqlx::types::Uuid {
    deploycore::model::ClaimId::new().as_uuid()
}
