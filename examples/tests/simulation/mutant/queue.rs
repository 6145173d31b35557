//! Broken queues.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{Attempt, Completion, ConcurrencyKey, Job, JobId, JobStatus, Lease, NewJob};
use deploycore::port::JobQueue;
use deploycore::port::queue::{
    Beat, ClaimRequest, Claiming, Enqueued, Error, Fate, JobCursor, JobFilter, JobPage, Order, QueueStats,
    RescueRequest, Rescued,
};

use super::Mutant;

/// A queue with one flaw.
#[derive(Debug)]
pub struct Queue {
    pub inner: Arc<dyn JobQueue>,
    pub flaw: Mutant,
}

impl Queue {
    /// As if the lease were the current one.
    async fn usurp(&self, lease: &Lease) -> Result<Lease, Error> {
        let job = self.inner.get(lease.job).await?;
        Ok(job.and_then(|job| job.running).map_or(*lease, |running| running.lease))
    }
}

#[async_trait]
impl JobQueue for Queue {
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        if self.flaw == Mutant::EnqueueIsLost && jobs.len() == 1 && jobs[0].id.as_uuid().as_u128().is_multiple_of(2) {
            return Ok(jobs.iter().map(|job| Enqueued::Created { job: job.id }).collect());
        }
        self.inner.enqueue(jobs).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error> {
        self.inner.claim(request).await
    }

    async fn heartbeat(&self, leases: &[Lease]) -> Result<Vec<Beat>, Error> {
        let beats = self.inner.heartbeat(leases).await?;
        let time_left = Duration::from_mins(10);
        let hear = |beat| match beat {
            Beat::Lost if self.flaw == Mutant::ZombiesComplete => Beat::Held { cancel_requested: false, time_left },
            beat => beat,
        };
        Ok(beats.into_iter().map(hear).collect())
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
        match self.inner.complete(lease, completion).await {
            Err(Error::LeaseLost { .. }) if self.flaw == Mutant::ZombiesComplete => {
                self.inner.complete(&self.usurp(lease).await?, completion).await
            }
            answer => answer,
        }
    }

    async fn release(&self, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
        self.inner.release(lease, reason, delay).await
    }

    async fn cancel(&self, job: JobId) -> Result<Job, Error> {
        self.inner.cancel(job).await
    }

    async fn rescue(&self, request: &RescueRequest) -> Result<Vec<Rescued>, Error> {
        if self.flaw == Mutant::NothingIsRescued {
            return Ok(Vec::new());
        }
        self.inner.rescue(request).await
    }

    async fn get(&self, job: JobId) -> Result<Option<Job>, Error> {
        self.inner.get(job).await
    }

    async fn list(&self, filter: &JobFilter, after: Option<JobCursor>, limit: u32) -> Result<JobPage, Error> {
        self.inner.list(filter, after, limit).await
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        self.inner.stats().await
    }

    async fn attempts(&self, job: JobId) -> Result<Vec<Attempt>, Error> {
        self.inner.attempts(job).await
    }

    async fn prune(&self, age: Duration, limit: usize) -> Result<usize, Error> {
        self.inner.prune(age, limit).await
    }

    async fn set_claiming(&self, claiming: Claiming) -> Result<(), Error> {
        self.inner.set_claiming(claiming).await
    }

    async fn set_concurrency_limit(&self, key: &ConcurrencyKey, limit: NonZeroU32) -> Result<(), Error> {
        self.inner.set_concurrency_limit(key, limit).await
    }

    async fn set_order(&self, order: Order) -> Result<(), Error> {
        self.inner.set_order(order).await
    }
}
