//! The queue: each call is one statement or one short transaction. What follows from a call is decided by
//! [`deploycore::port::queue::transition`], or by a statement that a test holds against it.

#[cfg(test)]
mod bed;
mod claim;
mod complete;
mod enqueue;
mod floor;
mod lease;
mod read;
mod row;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{Attempt, Completion, ConcurrencyKey, Job, JobId, JobStatus, Lease, NewJob, OlderJobs};
use deploycore::port::JobQueue;
use deploycore::port::queue::turn::TURNS_OF_AN_ORDER;
use deploycore::port::queue::{
    AttemptEnd, Beat, ClaimRequest, Claiming, Enqueued, Error, Fate, JobCursor, JobFilter, JobPage, Order, QueueStats,
    ReadyHint, RescueRequest, Rescued, bounds,
};
use sqlx::{Connection as _, Transaction};

use super::database::{Database, NAME, failed};
use crate::stored;

/// The queue in a PostgreSQL database.
#[derive(Debug, Clone)]
pub struct Queue {
    database: Database,
    claims: Arc<claim::Claims>,
}

impl Queue {
    pub(super) fn new(database: Database) -> Self {
        Self { database, claims: Arc::default() }
    }

    /// Adds jobs in a transaction of the host's own, on any connection to this database: they are there when it commits, together with
    /// the host's rows, and never without them. Otherwise as [`JobQueue::enqueue`]; a call that fails adds nothing and leaves the
    /// transaction as it was, unless the connection broke.
    ///
    /// Keep the transaction short: others who enqueue the same id or dedup key wait for its end. Where services take turns
    /// ([`Order::FairShare`]), what others enqueue meanwhile for the same service may share turns with these jobs.
    pub async fn enqueue_in(
        transaction: &mut Transaction<'_, sqlx::Postgres>,
        jobs: &[NewJob],
    ) -> Result<Vec<Enqueued>, Error> {
        bounds::check_enqueue(jobs)?;
        let mut own = transaction.begin().await.map_err(failed)?;
        match enqueue::enqueue(&mut own, jobs).await {
            Ok(answers) => {
                own.commit().await.map_err(failed)?;
                count_enqueued(&answers);
                Ok(answers)
            }
            Err(error) => {
                own.rollback().await.map_err(failed)?;
                Err(error)
            }
        }
    }

    async fn add(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        match jobs {
            [] => Ok(Vec::new()),
            // One job is one statement, which adds it whole or not at all.
            [job] if job.older_jobs == OlderJobs::Keep => {
                let mut borrowed = self.database.borrow().await?;
                let answers = enqueue::enqueue(borrowed.connection(), jobs).await;
                // What the domain refuses leaves the connection sound.
                if !matches!(answers, Err(Error::Backend(_))) {
                    borrowed.give_back();
                }
                answers
            }
            _ => {
                let mut moment = self.database.begin().await?;
                let answers = enqueue::enqueue(moment.connection(), jobs).await;
                moment.end(answers).await
            }
        }
    }
}

#[async_trait]
impl JobQueue for Queue {
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        bounds::check_enqueue(jobs)?;
        let answers = self.database.bounded(self.add(jobs)).await?;
        count_enqueued(&answers);
        Ok(answers)
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error> {
        bounds::check_claim(request)?;
        let claimed = self.database.bounded(claim::claim(&self.database, &self.claims, request)).await?;
        if claimed.is_new {
            count("deploycore_queue_claims_total", claimed.jobs.len());
        }
        Ok(claimed.jobs)
    }

    async fn heartbeat(&self, leases: &[Lease]) -> Result<Vec<Beat>, Error> {
        bounds::check_batch("leases to beat for", leases.len())?;
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let beats = self.database.bounded(lease::heartbeat(&self.database, leases)).await?;
        count_zombies("heartbeat", beats.iter().filter(|beat| **beat == Beat::Lost).count());
        Ok(beats)
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
        let completion = bounds::cut_completion(completion);
        let completed = self.database.bounded(complete::complete(&self.database, lease, &completion)).await;
        completed.inspect_err(|error| refused("complete", error))
    }

    async fn complete_batch(&self, ends: &[AttemptEnd]) -> Result<Vec<Result<JobStatus, Error>>, Error> {
        bounds::check_batch("attempts to end", ends.len())?;
        let answers = self.database.bounded(complete::complete_batch(&self.database, ends)).await?;
        answers.iter().filter_map(|answer| answer.as_ref().err()).for_each(|error| refused("complete", error));
        Ok(answers)
    }

    async fn release(&self, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
        let released = self.database.bounded(lease::release(&self.database, lease, reason, delay)).await;
        released.inspect_err(|error| refused("release", error))
    }

    async fn cancel(&self, job: JobId) -> Result<Job, Error> {
        self.database.bounded(lease::cancel(&self.database, job)).await
    }

    async fn rescue(&self, request: &RescueRequest) -> Result<Vec<Rescued>, Error> {
        bounds::check_rescue(request)?;
        let rescued = self.database.bounded(lease::rescue(&self.database, request)).await?;
        count("deploycore_queue_leases_lost_total", rescued.lost);
        count("deploycore_queue_deadlines_passed_total", rescued.jobs.len() - rescued.lost);
        Ok(rescued.jobs)
    }

    async fn get(&self, job: JobId) -> Result<Option<Job>, Error> {
        let get = async {
            let mut borrowed = self.database.borrow().await?;
            let job = row::find(borrowed.connection(), job).await?;
            borrowed.give_back();
            Ok(job)
        };
        self.database.bounded(get).await
    }

    async fn list(&self, filter: &JobFilter, after: Option<JobCursor>, limit: u32) -> Result<JobPage, Error> {
        bounds::check_page(limit)?;
        let list = async {
            let mut moment = self.database.begin_reading().await?;
            let page = read::list(moment.connection(), filter, after, limit).await;
            Ok(moment.end(page).await?)
        };
        self.database.bounded(list).await
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        let stats = async {
            let mut borrowed = self.database.borrow().await?;
            let stats = read::stats(borrowed.connection()).await?;
            borrowed.give_back();
            Ok(stats)
        };
        self.database.bounded(stats).await
    }

    async fn attempts(&self, job: JobId) -> Result<Vec<Attempt>, Error> {
        let attempts = async {
            let mut borrowed = self.database.borrow().await?;
            let attempts = row::attempts(borrowed.connection(), job).await?;
            borrowed.give_back();
            Ok(attempts)
        };
        self.database.bounded(attempts).await
    }

    async fn prune(&self, age: Duration, limit: usize) -> Result<usize, Error> {
        // Jobs that another prune holds are its own.
        const PRUNE: &str = "
            WITH old AS MATERIALIZED (
                SELECT id FROM deploycore.jobs WHERE finished_at <= (SELECT deploycore.instant() - $1)
                ORDER BY finished_at, id LIMIT $2 FOR UPDATE SKIP LOCKED
            ),
            history AS (DELETE FROM deploycore.attempts WHERE job = ANY (ARRAY(SELECT id FROM old)))
            DELETE FROM deploycore.jobs WHERE id = ANY (ARRAY(SELECT id FROM old))";
        bounds::check_prune(limit)?;
        let prune = sqlx::query(PRUNE).bind(stored::micros_of(age)).bind(limit as i64);
        let pruned = self.database.bounded(self.execute(prune)).await? as usize;
        count("deploycore_queue_pruned_total", pruned);
        Ok(pruned)
    }

    async fn set_claiming(&self, claiming: Claiming) -> Result<(), Error> {
        const SET: &str = "UPDATE deploycore.queue_settings SET paused = $1 WHERE one = 1";
        let set = sqlx::query(SET).bind(claiming == Claiming::Paused);
        self.database.bounded(self.execute(set)).await?;
        Ok(())
    }

    async fn set_concurrency_limit(&self, key: &ConcurrencyKey, limit: NonZeroU32) -> Result<(), Error> {
        const SET: &str = "
            INSERT INTO deploycore.concurrency_limits (concurrency_key, max_running) VALUES ($1, $2)
            ON CONFLICT (concurrency_key) DO UPDATE SET max_running = excluded.max_running";
        let set = sqlx::query(SET).bind(key.as_str()).bind(i64::from(limit.get()));
        self.database.bounded(self.execute(set)).await?;
        Ok(())
    }

    async fn set_order(&self, order: Order) -> Result<(), Error> {
        const SET: &str = "
            UPDATE deploycore.queue_settings SET fair_share = $1, first_turn = first_turn + $2
            WHERE one = 1 AND fair_share <> $1";
        let set = sqlx::query(SET).bind(order == Order::FairShare).bind(TURNS_OF_AN_ORDER as i64);
        self.database.bounded(self.execute(set)).await?;
        Ok(())
    }

    fn ready(&self) -> ReadyHint {
        self.database.hints().subscribe()
    }
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

impl Queue {
    /// One statement that gives no rows; how many it touched.
    async fn execute(&self, query: Query<'_>) -> Result<u64, Error> {
        let mut borrowed = self.database.borrow().await?;
        let done = query.execute(borrowed.connection()).await.map_err(failed)?;
        borrowed.give_back();
        Ok(done.rows_affected())
    }
}

fn count_enqueued(answers: &[Enqueued]) {
    let created = answers.iter().filter(|answer| matches!(answer, Enqueued::Created { .. })).count();
    count("deploycore_queue_enqueued_total", created);
}

fn count(name: &'static str, n: usize) {
    if n > 0 {
        metrics::counter!(name, "backend" => NAME).increment(n as u64);
    }
}

fn count_zombies(call: &'static str, n: usize) {
    const ZOMBIES: &str = "deploycore_queue_zombies_refused_total";
    if n > 0 {
        metrics::counter!(ZOMBIES, "backend" => NAME, "call" => call).increment(n as u64);
    }
}

fn refused(call: &'static str, error: &Error) {
    if matches!(error, Error::LeaseLost { .. }) {
        count_zombies(call, 1);
    }
}
