//! Statements that must not walk over the history: their plans seek in the index that was made for them.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};

use super::{Sqlite, ledger, queue};

/// A step of a plan, with the step that it is a part of.
#[derive(Debug)]
struct Step {
    parent: i64,
    detail: String,
}

async fn plan(statement: &str) -> Vec<Step> {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::open(&format!("sqlite://{}/plan.db", folder.path().display())).await.unwrap();
    let mut connection = SqliteConnectOptions::new().filename(sqlite.path()).connect().await.unwrap();
    let explain = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}")));
    let rows = explain.fetch_all(&mut connection).await.unwrap();
    rows.iter().map(|row| Step { parent: row.get("parent"), detail: row.get("detail") }).collect()
}

/// The step that uses an index.
#[track_caller]
fn using<'a>(plan: &'a [Step], index: &str) -> &'a Step {
    plan.iter().find(|step| step.detail.contains(index)).unwrap_or_else(|| panic!("{index} is not used: {plan:#?}"))
}

/// That no step walks over a whole table or index, but for this index.
#[track_caller]
fn assert_no_walk_but(plan: &[Step], allowed: &str) {
    let tables = ["jobs", "j", "k", "h", "attempts", "artifacts", "a", "copies", "c", "pins", "p"];
    for step in plan {
        if let Some(scan) = step.detail.strip_prefix("SCAN ") {
            let table = scan.split(' ').next().unwrap_or_default();
            assert!(!tables.contains(&table) || scan.contains(allowed), "{}: {plan:#?}", step.detail);
        }
    }
}

/// That rows come out of an index in the wanted order, so that a limit ends the walk.
#[track_caller]
fn assert_in_order(plan: &[Step], index: &str) {
    let parent = using(plan, index).parent;
    let sort = plan.iter().find(|step| step.parent == parent && step.detail.contains("TEMP B-TREE FOR ORDER BY"));
    assert!(sort.is_none(), "{index} is sorted: {plan:#?}");
}

#[tokio::test]
async fn a_claim_sees_neither_history_nor_what_waits_behind_a_full_key() {
    let plan = plan(queue::CLAIMABLE).await;
    assert_no_walk_but(&plan, "USING INDEX jobs_ready");
    assert_in_order(&plan, "SCAN jobs USING INDEX jobs_ready");
    assert_in_order(&plan, "SEARCH h USING INDEX jobs_ready_keyed (concurrency_key=?)");
    using(&plan, "SEARCH jobs USING INDEX jobs_ready_keyed (concurrency_key>?)");
    using(&plan, "SEARCH jobs USING COVERING INDEX jobs_running (concurrency_key=?)");
}

#[tokio::test]
async fn a_claim_of_copies_follows_its_index() {
    let plan = plan(ledger::CLAIMABLE).await;
    assert_no_walk_but(&plan, "nothing");
    assert_in_order(&plan, "copies_pending (region=? AND precedence<?)");
}

#[tokio::test]
async fn figures_of_copies_see_no_history() {
    let unfinished = plan(ledger::UNFINISHED).await;
    assert_no_walk_but(&unfinished, "copies_unfinished");
    using(&unfinished, "copies_unfinished");
    let completed = plan(ledger::COMPLETED).await;
    assert_no_walk_but(&completed, "nothing");
    using(&completed, "copies_completed (completed_at>?)");
}

#[tokio::test]
async fn a_turn_is_found_at_the_end_of_its_line() {
    for (statement, indexes) in [
        (queue::LINE, &["jobs_claimed_turn (priority=?", "jobs_queued_name (name=? AND priority=?)"][..]),
        (queue::FIRST, &["jobs_queued_name (name=? AND priority=?)"][..]),
    ] {
        let plan = plan(statement).await;
        assert_no_walk_but(&plan, "nothing");
        for index in indexes {
            assert_in_order(&plan, index);
        }
    }
}

#[tokio::test]
async fn maintenance_follows_its_indexes() {
    for (statement, index) in [
        (queue::ANY_READY, "jobs_eligible (delayed=? AND eligible_at<?)"),
        (queue::END_DELAYS, "jobs_eligible (delayed=? AND eligible_at<?)"),
        (queue::DUE, "jobs_eligible (delayed=? AND eligible_at<?)"),
        (queue::OVERDUE, "jobs_running"),
        (queue::PRUNE, "jobs_finished (finished_at<?)"),
        (queue::READY_AND_DUE, "jobs_eligible"),
        (queue::QUEUED_OF_SERVICE, "jobs_queued_name (name=?"),
    ] {
        let plan = plan(statement).await;
        assert_no_walk_but(&plan, "jobs_running");
        using(&plan, index);
    }
}

#[tokio::test]
async fn pages_follow_their_indexes_in_order() {
    for (statement, index) in [
        (queue::ALL, "jobs_created"),
        (queue::BY_STATUS, "jobs_status (status=?"),
        (queue::BY_SERVICE, "jobs_name (name=?"),
        (queue::RARE_ENDS_OF_SERVICE, "jobs_rare_end_name (name=? AND status=?"),
        (queue::BY_COMMIT, "jobs_commit (commit=?"),
        (ledger::ALL, "artifacts_registered"),
        (ledger::BY_SERVICE, "artifacts_service (service=?"),
        (ledger::BY_COPY, "copies_state (region=? AND state=?"),
    ] {
        let plan = plan(statement).await;
        assert_no_walk_but(&plan, "nothing");
        assert_in_order(&plan, index);
    }
}
