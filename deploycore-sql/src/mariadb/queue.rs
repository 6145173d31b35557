//! The queue: each call is one statement or one short transaction. What follows from a call is decided by
//! [`deploycore::port::queue::transition`], or by a statement that a test holds against it.

mod claim;
mod enqueue;
mod lease;
mod prune;
mod read;
pub(super) mod row;
mod turns;

#[cfg(test)]
pub(super) use self::{
    claim::{DUE, KEYLESS, KEYS_WITH_ROOM, LOOK, OF_KEY},
    enqueue::{HOLDERS, QUEUED_OF_SERVICE},
    lease::OVERDUE,
    prune::OLD,
    read::{ALL, BY_COMMIT, BY_END, BY_QUEUED_SERVICE, BY_RARE_END, BY_SERVICE, BY_STATUS},
    turns::LINES,
};

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{Attempt, Completion, ConcurrencyKey, Job, JobId, JobStatus, Lease, NewJob, OlderJobs};
use deploycore::port::JobQueue;
use deploycore::port::queue::turn::TURNS_OF_AN_ORDER;
use deploycore::port::queue::{
    Beat, ClaimRequest, Claiming, Enqueued, Error, Fate, JobCursor, JobFilter, JobPage, Order, QueueStats,
    RescueRequest, Rescued, bounds,
};
use sqlx::{Connection as _, MySql, Transaction};

use super::database::{Database, NAME, failed};

/// The queue in a MariaDB or MySQL database.
#[derive(Debug, Clone)]
pub struct Queue {
    database: Database,
}

impl Queue {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Adds jobs in a transaction of the host's own, on any connection to this database: they are there when it commits, together with
    /// the host's rows, and never without them. Otherwise as [`JobQueue::enqueue`]. A call that fails adds nothing and leaves the
    /// transaction as it was, unless the connection broke or the server ended the whole transaction because of another one (a deadlock): the
    /// error of that is retryable, and the host begins again.
    ///
    /// Keep the transaction short: others who enqueue the same id or dedup key wait for its end. Where services take turns
    /// ([`Order::FairShare`]), what others enqueue meanwhile for the same service may share turns with these jobs.
    pub async fn enqueue_in(host: &mut Transaction<'_, MySql>, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        bounds::check_enqueue(jobs)?;
        let mut part = host.begin().await.map_err(failed)?;
        match enqueue::enqueue(&mut part, jobs).await {
            Ok(answers) => {
                part.commit().await.map_err(failed)?;
                count_enqueued(&answers);
                Ok(answers)
            }
            Err(error) => {
                if part.rollback().await.is_err() {
                    // The part is gone with the whole. The driver has asked again for its end, and this takes that answer.
                    let _ = host.ping().await;
                }
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
        let answers = self.database.call(|| self.add(jobs)).await?;
        count_enqueued(&answers);
        Ok(answers)
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error> {
        bounds::check_claim(request)?;
        let claimed = self.database.call(|| claim::claim(&self.database, request)).await?;
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
        let beats = self.database.call(|| lease::heartbeat(&self.database, leases)).await?;
        count_zombies("heartbeat", beats.iter().filter(|beat| **beat == Beat::Lost).count());
        Ok(beats)
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
        let completion = bounds::cut_completion(completion);
        let completed = self.database.call(|| lease::complete(&self.database, lease, &completion)).await;
        completed.inspect_err(|error| refused("complete", error))
    }

    async fn release(&self, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
        let released = self.database.call(|| lease::release(&self.database, lease, reason, delay)).await;
        released.inspect_err(|error| refused("release", error))
    }

    async fn cancel(&self, job: JobId) -> Result<Job, Error> {
        self.database.call(|| lease::cancel(&self.database, job)).await
    }

    async fn rescue(&self, request: &RescueRequest) -> Result<Vec<Rescued>, Error> {
        bounds::check_rescue(request)?;
        let rescued = self.database.call(|| lease::rescue(&self.database, request)).await?;
        count("deploycore_queue_leases_lost_total", rescued.lost);
        count("deploycore_queue_deadlines_passed_total", rescued.jobs.len() - rescued.lost);
        Ok(rescued.jobs)
    }

    async fn get(&self, job: JobId) -> Result<Option<Job>, Error> {
        let get = || async {
            let mut borrowed = self.database.borrow().await?;
            let job = row::find(borrowed.connection(), job).await?;
            borrowed.give_back();
            Ok(job)
        };
        self.database.call(get).await
    }

    async fn list(&self, filter: &JobFilter, after: Option<JobCursor>, limit: u32) -> Result<JobPage, Error> {
        bounds::check_page(limit)?;
        let list = || async {
            let mut moment = self.database.begin_reading().await?;
            let page = read::list(moment.connection(), filter, after, limit).await;
            Ok(moment.end(page).await?)
        };
        self.database.call(list).await
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        let stats = || async {
            let mut borrowed = self.database.borrow().await?;
            let stats = read::stats(borrowed.connection()).await?;
            borrowed.give_back();
            Ok(stats)
        };
        self.database.call(stats).await
    }

    async fn attempts(&self, job: JobId) -> Result<Vec<Attempt>, Error> {
        let attempts = || async {
            let mut borrowed = self.database.borrow().await?;
            let attempts = row::attempts(borrowed.connection(), job).await?;
            borrowed.give_back();
            Ok(attempts)
        };
        self.database.call(attempts).await
    }

    async fn prune(&self, age: Duration, limit: usize) -> Result<usize, Error> {
        bounds::check_prune(limit)?;
        let prune = || async {
            let mut moment = self.database.begin().await?;
            let pruned = prune::prune(moment.connection(), age, limit).await;
            Ok::<_, Error>(moment.end(pruned).await?)
        };
        let pruned = self.database.call(prune).await?;
        count("deploycore_queue_pruned_total", pruned);
        Ok(pruned)
    }

    async fn set_claiming(&self, claiming: Claiming) -> Result<(), Error> {
        const SET: &str = "UPDATE deploycore_queue_settings SET paused = ? WHERE one = 1";
        let paused = claiming == Claiming::Paused;
        self.database.call(|| self.execute(sqlx::query(SET).bind(paused))).await
    }

    async fn set_concurrency_limit(&self, key: &ConcurrencyKey, limit: NonZeroU32) -> Result<(), Error> {
        const SET: &str = "
            INSERT INTO deploycore_concurrency_limits (concurrency_key, max_running) VALUES (?, ?)
            ON DUPLICATE KEY UPDATE max_running = ?";
        let limit = i64::from(limit.get());
        self.database.call(|| self.execute(sqlx::query(SET).bind(key.as_str()).bind(limit).bind(limit))).await
    }

    async fn set_order(&self, order: Order) -> Result<(), Error> {
        const SET: &str = "
            UPDATE deploycore_queue_settings SET fair_share = ?, first_turn = first_turn + ?
            WHERE one = 1 AND fair_share <> ?";
        let (is_fair, turns) = (order == Order::FairShare, TURNS_OF_AN_ORDER as i64);
        self.database.call(|| self.execute(sqlx::query(SET).bind(is_fair).bind(turns).bind(is_fair))).await
    }
}

type Query<'q> = sqlx::query::Query<'q, MySql, sqlx::mysql::MySqlArguments>;

impl Queue {
    /// One statement that gives no rows.
    async fn execute(&self, query: Query<'_>) -> Result<(), Error> {
        let mut borrowed = self.database.borrow().await?;
        query.execute(borrowed.connection()).await.map_err(failed)?;
        borrowed.give_back();
        Ok(())
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
