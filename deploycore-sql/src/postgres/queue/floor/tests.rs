use std::sync::Arc;
use std::time::Duration;

use deploycore::model::{ClaimId, Completion, Failure, FailureKind, JobId, Lease, NewJob, Retry, Timestamp};
use deploycore::port::JobQueue;
use deploycore::port::queue::turn::TURNS_OF_AN_ORDER;
use deploycore::port::queue::{ClaimRequest, MAX_BATCH, Order};
use servers::postgres::Database;
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;

use super::super::bed;
use super::super::claim::{Claims, PLAIN, PLAIN_FROM_FLOOR};
use super::{Floor, Floors, JOBS_OF_FLOOR, JOBS_WITHOUT_FLOOR, Kept, State, Way};
use crate::postgres::Queue;

async fn open() -> (Arc<Queue>, Database<'static>, PgConnection) {
    // Each floor is worth it, and none is dear. The first is learnt as soon as those after it.
    let state = State { claimed: JOBS_WITHOUT_FLOOR - JOBS_OF_FLOOR, ..State::default() };
    open_with(Floors { state: state.into(), worth: Duration::ZERO, dear: Duration::MAX }).await
}

async fn open_with(floors: Floors) -> (Arc<Queue>, Database<'static>, PgConnection) {
    let (opened, database, connection) = bed::open().await;
    let claims = Arc::new(Claims { floors, ..Claims::default() });
    let queue = Arc::new(Queue { claims, ..Queue::new(opened.database) });
    (queue, database, connection)
}

/// Of a claim of one job, from a floor or from the beginning. It takes effect.
async fn pages(connection: &mut PgConnection, statement: &str, floor: Option<&Floor>) -> u64 {
    let mut arguments = vec![format!("'{}'", ClaimId::new()), "'w'".to_owned(), "1".to_owned()];
    if let Some(floor) = floor {
        let (created_at, job) = (crate::stored::micros(floor.created_at), floor.job);
        let place = [floor.priority.to_string(), floor.turn.to_string(), created_at.to_string(), format!("'{job}'")];
        arguments.extend(place.into_iter().chain([floor.since.to_string()]));
    }
    bed::pages(connection, statement, &arguments).await
}

fn job() -> NewJob {
    NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap())
}

async fn fill(queue: &Queue, jobs: usize) -> Vec<NewJob> {
    let jobs: Vec<_> = (0..jobs).map(|_| job()).collect();
    for batch in jobs.chunks(MAX_BATCH) {
        queue.enqueue(batch).await.unwrap();
    }
    jobs
}

async fn claim(queue: &Queue, limit: usize) -> Vec<Lease> {
    let request = ClaimRequest { claim: ClaimId::new(), worker: "w".parse().unwrap(), limit };
    queue.claim(&request).await.unwrap().into_iter().map(|job| job.running.unwrap().lease).collect()
}

fn floor(queue: &Queue) -> Option<Floor> {
    match queue.claims.floors.way() {
        Way::Plain(kept) => kept.map(|kept| kept.floor),
        Way::Function => None,
    }
}

/// Whatever the server knows of the table: nothing, that it was full of what is ready, that it was empty, or that it was half done. Looked at while half
/// was done, it took the order of claims for the way to what became ready lately.
#[tokio::test]
async fn a_claim_does_not_walk_over_what_was_claimed_while_a_transaction_is_open() {
    for analyzed_at in [None, Some(0), Some(1), Some(30), Some(58)] {
        let (queue, database, mut connection) = open().await;
        let off = "ALTER TABLE deploycore.jobs SET (autovacuum_enabled = false)";
        sqlx::raw_sql(off).execute(&mut connection).await.unwrap();
        if analyzed_at == Some(0) {
            fill(&queue, 3_000).await;
            while !claim(&queue, 1_000).await.is_empty() {}
            sqlx::raw_sql("VACUUM ANALYZE deploycore.jobs").execute(&mut connection).await.unwrap();
        }
        fill(&queue, 6_000).await;
        let mut pin = PgConnection::connect(&database.url()).await.unwrap();
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM deploycore.queue_settings";
        sqlx::raw_sql(begin).execute(&mut pin).await.unwrap();
        for done in 1..=59 {
            if analyzed_at == Some(done) {
                sqlx::raw_sql("ANALYZE deploycore.jobs").execute(&mut connection).await.unwrap();
            }
            assert_eq!(claim(&queue, 100).await.len(), 100);
        }
        let floor = floor(&queue).expect("so many claims teach it");
        let mut own = queue.database.borrow().await.unwrap();
        // The first call on a connection reads the server's catalogue to make its plans.
        pages(own.connection(), PLAIN, None).await;
        pages(own.connection(), PLAIN_FROM_FLOOR, Some(&floor)).await;
        let from_floor = pages(own.connection(), PLAIN_FROM_FLOOR, Some(&floor)).await;
        let plain = pages(own.connection(), PLAIN, None).await;
        println!("{analyzed_at:?}: {from_floor} pages from the floor, {plain} from the beginning");
        // Neighbours in the index lie on one page of the table as a rule.
        assert!(plain > 150, "{plain} pages: the test shows little");
        assert!(
            from_floor * 2 < plain,
            "{analyzed_at:?}: {from_floor} pages from the floor, {plain} from the beginning"
        );
    }
}

/// What became ready since an open transaction wrote first is looked through by each claim from a floor: all of the queue, where it is older.
#[tokio::test]
async fn a_floor_is_given_up_while_a_transaction_that_wrote_is_older_than_the_queue() {
    let floors = Floors { worth: Duration::ZERO, dear: Duration::ZERO, ..Floors::default() };
    let (queue, database, _connection) = open_with(floors).await;
    let mut writer = PgConnection::connect(&database.url()).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT pg_current_xact_id()").execute(&mut writer).await.unwrap();
    fill(&queue, 6_000).await;
    // A server that is held up once may take long from the beginning too.
    for _ in 0..5 {
        *queue.claims.floors.lock() = State::default();
        for _ in 0..10 {
            assert_eq!(claim(&queue, 100).await.len(), 100);
        }
        if floor(&queue).is_none() {
            return;
        }
    }
    panic!("the way from the beginning is shorter");
}

/// A claim that began with a floor makes none younger that others have given up meanwhile.
#[test]
fn a_floor_ends_in_time_whoever_learns_on_from_it() {
    let floors = Floors { worth: Duration::ZERO, ..Floors::default() };
    let floor = Floor { priority: 0, turn: 0, created_at: Timestamp::UNIX_EPOCH, job: JobId::new(), since: 1 };
    floors.put(None, Some(floor), Duration::ZERO);
    let Way::Plain(Some(kept)) = floors.way() else { panic!("it was put") };
    floors.put(Some(&Kept { until: Instant::now(), ..kept }), Some(floor), Duration::ZERO);
    assert!(matches!(floors.way(), Way::Plain(None)), "it is as old as before");
}

/// The statistics of a table with a history and an empty queue say that next to nothing is ready, and that a sort of it costs nothing. Claims
/// sorted all that was ready: 11 times the server's time with 8,000 jobs.
#[tokio::test]
async fn a_claim_follows_the_order_of_the_queue_whatever_the_statistics_say() {
    let (queue, _database, mut connection) = open().await;
    fill(&queue, 3_000).await;
    while !claim(&queue, 1_000).await.is_empty() {}
    sqlx::raw_sql("VACUUM ANALYZE deploycore.jobs").execute(&mut connection).await.unwrap();
    fill(&queue, 3_000).await;
    let mut own = queue.database.borrow().await.unwrap();
    pages(own.connection(), PLAIN, None).await;
    let pages = pages(own.connection(), PLAIN, None).await;
    assert!(pages < 60, "{pages} pages for one job of 3,000");
}

/// With a long history the server took each call's own values for a way to a cheaper plan, and made one for every claim and completion.
#[tokio::test]
async fn a_statement_is_planned_once() {
    const PLANS_OF_CALLS: &str =
        "SELECT coalesce(sum(custom_plans), 0)::bigint, sum(generic_plans)::bigint FROM pg_prepared_statements";
    let (queue, _database, _connection) = open().await;
    fill(&queue, 20).await;
    for _ in 0..20 {
        for lease in claim(&queue, 1).await {
            queue
                .complete(&lease, &Completion::Failed { failure: Failure::new(FailureKind::Build, "no") })
                .await
                .unwrap();
        }
    }
    let mut own = queue.database.borrow().await.unwrap();
    let (of_a_call, of_all): (i64, i64) = sqlx::query_as(PLANS_OF_CALLS).fetch_one(own.connection()).await.unwrap();
    assert!(of_all >= 20, "{of_all} runs on this connection: the test shows little");
    assert_eq!(of_a_call, 0);
}

/// The turn of a new job is behind all that was claimed, so its service's dead entries are not walked over.
#[tokio::test]
async fn a_turn_is_found_without_a_walk_while_a_transaction_is_open() {
    const LAST_TURN: &str = "SELECT deploycore.last_turn_1('web', 0, 0)";
    let (queue, database, mut connection) = open().await;
    queue.set_order(Order::FairShare).await.unwrap();
    fill(&queue, 3_000).await;
    let mut pin = PgConnection::connect(&database.url()).await.unwrap();
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM deploycore.queue_settings";
    sqlx::raw_sql(begin).execute(&mut pin).await.unwrap();
    while !claim(&queue, 1_000).await.is_empty() {}
    let mut own = queue.database.borrow().await.unwrap();
    bed::pages(own.connection(), LAST_TURN, &[]).await;
    let pages = bed::pages(own.connection(), LAST_TURN, &[]).await;
    assert!(pages < 40, "{pages} pages");
    let last: i64 = sqlx::query_scalar(LAST_TURN).fetch_one(&mut connection).await.unwrap();
    assert_eq!(last as u64, TURNS_OF_AN_ORDER + 3_000);
}

/// A line that lost its next jobs stands far behind where claims are, and another one begins before it.
#[tokio::test]
async fn a_turn_before_the_floor_is_not_passed_over() {
    let (queue, _database, _connection) = open().await;
    queue.set_order(Order::FairShare).await.unwrap();
    let jobs = fill(&queue, 90).await;
    for job in &jobs[40..70] {
        queue.cancel(job.id).await.unwrap();
    }
    assert_eq!(claim(&queue, 40).await.len(), 40);
    assert_eq!(floor(&queue).map(|floor| floor.job), Some(jobs[70].id), "so many claims teach it");
    let api = NewJob::new("api".parse().unwrap(), "abcdef0".parse().unwrap());
    queue.enqueue(std::slice::from_ref(&api)).await.unwrap();
    let next: Vec<_> = claim(&queue, 2).await.iter().map(|lease| lease.job).collect();
    assert_eq!(next, [api.id, jobs[70].id]);
}

#[tokio::test]
async fn a_floor_passes_over_no_job() {
    let (queue, _database, mut host) = open().await;
    let first = fill(&queue, 40).await;
    // It begins before the floor is learnt, and its job is older than it.
    let mut slow = host.begin().await.unwrap();
    let hidden = job();
    Queue::enqueue_in(&mut slow, std::slice::from_ref(&hidden)).await.unwrap();
    let jobs = fill(&queue, 40).await;
    let leases = claim(&queue, 70).await;
    assert_eq!(leases.len(), 70);
    let learnt = floor(&queue).expect("so many claims teach it");
    assert_eq!(learnt.job, jobs[30].id);
    let one = |leases: Vec<Lease>| leases.first().map(|lease| lease.job);
    assert_eq!(one(claim(&queue, 1).await), Some(jobs[30].id));

    // Those that come back, by release or by a failure, and what is more urgent.
    queue.release(&leases[7], "again", Duration::ZERO).await.unwrap();
    let failure = Failure::new(FailureKind::Build, "no").with_retry(Retry::After(Duration::ZERO));
    queue.complete(&leases[5], &Completion::Failed { failure }).await.unwrap();
    let urgent = job().with_priority(3);
    queue.enqueue(std::slice::from_ref(&urgent)).await.unwrap();
    let less = job().with_priority(-3);
    queue.enqueue(std::slice::from_ref(&less)).await.unwrap();
    assert_eq!(one(claim(&queue, 1).await), Some(urgent.id));
    slow.commit().await.unwrap();
    let expected = [first[5].id, first[7].id, hidden.id, jobs[31].id];
    let taken: Vec<_> = claim(&queue, 4).await.iter().map(|lease| lease.job).collect();
    assert_eq!(taken, expected);
    // Behind all others.
    let rest: Vec<_> = claim(&queue, 20).await.iter().map(|lease| lease.job).collect();
    assert_eq!((rest.len(), rest.last()), (9, Some(&less.id)));
    assert!(claim(&queue, 1).await.is_empty());
}

#[tokio::test]
async fn a_delay_that_passes_leads_before_the_floor() {
    let (queue, _database, mut connection) = open().await;
    let delayed: Vec<_> = (0..2).map(|_| job().with_not_before("2200-01-01T00:00:00Z".parse().unwrap())).collect();
    queue.enqueue(&delayed).await.unwrap();
    let jobs = fill(&queue, 40).await;
    claim(&queue, 33).await;
    let learnt = floor(&queue).expect("so many claims teach it");
    assert_eq!(learnt.job, jobs[33].id);
    sqlx::raw_sql("UPDATE deploycore.jobs SET eligible_at = 1 WHERE delayed").execute(&mut connection).await.unwrap();
    // The function ends both delays and takes one of the two; the other is found from the floor.
    assert_eq!(claim(&queue, 1).await[0].job, delayed[0].id);
    queue.claims.floors.lock().function_until = None;
    assert_eq!(floor(&queue), Some(learnt));
    assert_eq!(claim(&queue, 1).await[0].job, delayed[1].id);
    assert_eq!(claim(&queue, 1).await[0].job, jobs[33].id);
}
