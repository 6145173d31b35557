//! The queue: each call is one transaction, and what follows from it is decided by [`deploycore::port::queue::transition`].

mod claim;
mod enqueue;
mod lease;
mod read;
mod row;
mod turns;

#[cfg(test)]
pub(super) use self::{
    claim::{ANY_READY, CLAIMABLE, END_DELAYS},
    lease::OVERDUE,
    read::{ALL, BY_COMMIT, BY_SERVICE, BY_STATUS, QUEUED_OF_SERVICE, RARE_ENDS_OF_SERVICE, READY_AND_DUE},
    turns::{DUE, FIRST, LINE},
};

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{Attempt, Completion, ConcurrencyKey, Job, JobId, JobStatus, Lease, NewJob};
use deploycore::port::JobQueue;
use deploycore::port::queue::turn::TURNS_OF_AN_ORDER;
use deploycore::port::queue::{
    AttemptEnd, Beat, ClaimRequest, Claiming, Enqueued, Error, Fate, JobCursor, JobFilter, JobPage, Order, QueueStats,
    RescueRequest, Rescued, bounds,
};

use super::database::{Database, failed};
use crate::stored;

pub(super) const PRUNE: &str = "
    DELETE FROM jobs WHERE id IN (
        SELECT id FROM jobs INDEXED BY jobs_finished WHERE finished_at <= ?1 ORDER BY finished_at, id LIMIT ?2
    )";

/// The queue in an SQLite file.
#[derive(Debug, Clone)]
pub struct Queue {
    database: Database,
}

impl Queue {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }
}

#[async_trait]
impl JobQueue for Queue {
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        bounds::check_enqueue(jobs)?;
        let mut moment = self.database.write().await?;
        let answers = enqueue::enqueue(&mut moment, jobs).await?;
        moment.commit().await?;
        let created = answers.iter().filter(|answer| matches!(answer, Enqueued::Created { .. })).count();
        count("deploycore_queue_enqueued_total", created);
        Ok(answers)
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error> {
        bounds::check_claim(request)?;
        // Many workers look often and find nothing: they must not stand in the way of those that write.
        if let Some(claimed) = claim::settled(&mut self.database.read().await?, request).await? {
            return Ok(claimed.jobs);
        }
        let mut moment = self.database.write().await?;
        while claim::end_delays(&mut moment).await? == claim::Delays::More {
            // Others write between two batches. Each batch is work done, also for other claims, so that this ends.
            moment.commit().await?;
            moment = self.database.write().await?;
        }
        let claimed = claim::claim(&mut moment, request).await?;
        moment.commit().await?;
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
        let mut moment = self.database.write().await?;
        let beats = lease::heartbeat(&mut moment, leases).await?;
        moment.commit().await?;
        count_zombies("heartbeat", beats.iter().filter(|beat| **beat == Beat::Lost).count());
        Ok(beats)
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
        let completion = bounds::cut_completion(completion);
        let mut moment = self.database.write().await?;
        let completed = lease::complete(&mut moment, lease, completion).await;
        let status = completed.inspect_err(|error| refused("complete", error))?;
        moment.commit().await?;
        Ok(status)
    }

    async fn complete_batch(&self, ends: &[AttemptEnd]) -> Result<Vec<Result<JobStatus, Error>>, Error> {
        bounds::check_batch("attempts to end", ends.len())?;
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        let mut moment = self.database.write().await?;
        let mut answers = Vec::with_capacity(ends.len());
        for AttemptEnd { lease, completion } in ends {
            // What the domain refuses has written nothing.
            match lease::complete(&mut moment, lease, bounds::cut_completion(completion)).await {
                Err(error @ Error::Backend(_)) => return Err(error),
                answer => answers.push(answer),
            }
        }
        moment.commit().await?;
        answers.iter().filter_map(|answer| answer.as_ref().err()).for_each(|error| refused("complete", error));
        Ok(answers)
    }

    async fn release(&self, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
        let mut moment = self.database.write().await?;
        let released = lease::release(&mut moment, lease, reason, delay).await;
        let fate = released.inspect_err(|error| refused("release", error))?;
        moment.commit().await?;
        Ok(fate)
    }

    async fn cancel(&self, job: JobId) -> Result<Job, Error> {
        let mut moment = self.database.write().await?;
        let job = lease::cancel(&mut moment, job).await?;
        moment.commit().await?;
        Ok(job)
    }

    async fn rescue(&self, request: &RescueRequest) -> Result<Vec<Rescued>, Error> {
        bounds::check_rescue(request)?;
        let mut moment = self.database.write().await?;
        let rescued = lease::rescue(&mut moment, request).await?;
        moment.commit().await?;
        count("deploycore_queue_leases_lost_total", rescued.lost);
        count("deploycore_queue_deadlines_passed_total", rescued.jobs.len() - rescued.lost);
        Ok(rescued.jobs)
    }

    async fn get(&self, job: JobId) -> Result<Option<Job>, Error> {
        let mut moment = self.database.read().await?;
        Ok(row::find(moment.connection(), job).await?)
    }

    async fn list(&self, filter: &JobFilter, after: Option<JobCursor>, limit: u32) -> Result<JobPage, Error> {
        bounds::check_page(limit)?;
        let mut moment = self.database.read().await?;
        Ok(read::list(moment.connection(), filter, after, limit).await?)
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        let mut moment = self.database.read().await?;
        Ok(read::stats(&mut moment).await?)
    }

    async fn attempts(&self, job: JobId) -> Result<Vec<Attempt>, Error> {
        let mut moment = self.database.read().await?;
        Ok(row::attempts(moment.connection(), job).await?)
    }

    async fn prune(&self, age: Duration, limit: usize) -> Result<usize, Error> {
        bounds::check_prune(limit)?;
        let mut moment = self.database.write().await?;
        let before = stored::before(stored::micros(moment.now), age);
        let pruned = sqlx::query(PRUNE).bind(before).bind(limit as i64).execute(moment.connection()).await;
        let pruned = pruned.map_err(failed)?.rows_affected() as usize;
        moment.commit().await?;
        count("deploycore_queue_pruned_total", pruned);
        Ok(pruned)
    }

    async fn set_claiming(&self, claiming: Claiming) -> Result<(), Error> {
        const SET: &str = "UPDATE queue_settings SET paused = ?1 WHERE one = 1";
        let mut moment = self.database.write().await?;
        let paused = i64::from(claiming == Claiming::Paused);
        sqlx::query(SET).bind(paused).execute(moment.connection()).await.map_err(failed)?;
        Ok(moment.commit().await?)
    }

    async fn set_concurrency_limit(&self, key: &ConcurrencyKey, limit: NonZeroU32) -> Result<(), Error> {
        const SET: &str = "
            INSERT INTO concurrency_limits (concurrency_key, max_running) VALUES (?1, ?2)
            ON CONFLICT (concurrency_key) DO UPDATE SET max_running = excluded.max_running";
        let mut moment = self.database.write().await?;
        let set = sqlx::query(SET).bind(key.as_str()).bind(i64::from(limit.get()));
        set.execute(moment.connection()).await.map_err(failed)?;
        Ok(moment.commit().await?)
    }

    async fn set_order(&self, order: Order) -> Result<(), Error> {
        const SET: &str = "
            UPDATE queue_settings SET fair_share = ?1, first_turn = first_turn + ?2 WHERE one = 1 AND fair_share <> ?1";
        let mut moment = self.database.write().await?;
        let set = sqlx::query(SET).bind(i64::from(order == Order::FairShare)).bind(TURNS_OF_AN_ORDER as i64);
        set.execute(moment.connection()).await.map_err(failed)?;
        Ok(moment.commit().await?)
    }
}

fn count(name: &'static str, n: usize) {
    if n > 0 {
        metrics::counter!(name, "backend" => super::database::NAME).increment(n as u64);
    }
}

fn count_zombies(call: &'static str, n: usize) {
    const NAME: &str = "deploycore_queue_zombies_refused_total";
    if n > 0 {
        metrics::counter!(NAME, "backend" => super::database::NAME, "call" => call).increment(n as u64);
    }
}

fn refused(call: &'static str, error: &Error) {
    if matches!(error, Error::LeaseLost { .. }) {
        count_zombies(call, 1);
    }
}
