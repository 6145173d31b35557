//! Handing out jobs: one call of the function in `migrations/postgres/0001_queue.sql`.

use std::cmp::Reverse;

use deploycore::model::Job;
use deploycore::port::BackendError;
use deploycore::port::queue::ClaimRequest;

use crate::columns::Columns;
use crate::columns::job_columns;
use crate::postgres::database::{Database, failed};

/// What a claim gives.
pub(super) struct Claimed {
    pub(super) jobs: Vec<Job>,
    /// False for a repeated call.
    pub(super) is_new: bool,
}

pub(super) async fn claim(database: &Database, request: &ClaimRequest) -> Result<Claimed, BackendError> {
    const CLAIM: &str = concat!(
        "SELECT c.is_new, ",
        job_columns!(),
        " FROM deploycore.claim_1($1, $2, $3) c CROSS JOIN LATERAL (SELECT (c.job).*) j"
    );
    let mut borrowed = database.borrow().await?;
    let query = sqlx::query(CLAIM).bind(request.claim.as_uuid()).bind(request.worker.as_str());
    let rows = query.bind(request.limit as i64).fetch_all(borrowed.connection()).await.map_err(failed)?;
    borrowed.give_back();
    let is_new = rows.first().map_or(Ok(true), |row| Columns(row).is_set("is_new"))?;
    let mut jobs = rows.iter().map(|row| Columns(row).job()).collect::<Result<Vec<_>, _>>()?;
    // Rows of an UPDATE come in no order.
    jobs.sort_unstable_by_key(|job| (Reverse(job.spec.priority), job.created_at, job.spec.id));
    Ok(Claimed { jobs, is_new })
}
