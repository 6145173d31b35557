//! One client: it adds jobs, claims some, lives or falls silent, and ends them one way or another, until it is killed or left alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use deploycore::model::{ClaimId, Job, NewJob, WorkerName};
use deploycore::port::JobQueue;
use deploycore::port::queue::{AttemptEnd, ClaimRequest, Error};
use fastrand::Rng;
use tokio::io::AsyncReadExt as _;
use tokio::time::sleep;

use crate::history::Recorder;
use crate::job::{job, lease, success};

/// How often one call is made again whose reply did not come, before it is left as it is.
const TRIES: u32 = 4;
/// Jobs that wait before a client adds no more.
const ENOUGH: u64 = 40;

/// Runs until its standard input ends: whoever started it is gone then.
///
/// Errors: of a queue that cannot be opened, or that answers what no queue may.
pub async fn run(url: &str, worker: &str, history: &Path, seed: u64) -> Result<()> {
    let queue = deploycore_sql::open_url(url).await.context("the queue could not be opened")?.queue;
    let recorder: Arc<dyn JobQueue> = Arc::new(Recorder::new(queue, history).context("the history")?);
    let client = Client { queue: recorder, worker: WorkerName::new(worker)?, random: Rng::with_seed(seed) };
    let mut nothing = [0];
    let mut left_alone = tokio::io::stdin();
    tokio::select! {
        result = client.work() => result,
        _ = left_alone.read(&mut nothing) => Ok(()),
    }
}

struct Client {
    queue: Arc<dyn JobQueue>,
    worker: WorkerName,
    random: Rng,
}

impl Client {
    async fn work(mut self) -> Result<()> {
        loop {
            self.add().await?;
            let request =
                ClaimRequest { claim: ClaimId::new(), worker: self.worker.clone(), limit: self.random.usize(1..4) };
            let queue = Arc::clone(&self.queue);
            let jobs = persistently(|| queue.claim(&request)).await?.unwrap_or_default();
            if self.random.u8(..8) == 0 {
                // As if the reply had been lost.
                persistently(|| queue.claim(&request)).await?;
            }
            if jobs.is_empty() {
                sleep(Duration::from_millis(self.random.u64(5..30))).await;
            }
            self.build(jobs).await?;
        }
    }

    async fn add(&mut self) -> Result<()> {
        let waiting =
            self.queue.stats().await.map_or(ENOUGH, |stats| stats.counts[&deploycore::model::JobStatus::Queued]);
        if waiting >= ENOUGH {
            return Ok(());
        }
        let many = std::num::NonZeroU32::MIN.saturating_add(99);
        let new = || job().with_max_attempts(many).with_max_releases(1_000);
        let jobs: Vec<NewJob> = (0..self.random.usize(1..4)).map(|_| new()).collect();
        let queue = Arc::clone(&self.queue);
        persistently(|| queue.enqueue(&jobs)).await?;
        if self.random.u8(..8) == 0 {
            persistently(|| queue.enqueue(&jobs)).await?;
        }
        Ok(())
    }

    /// It never gives up by its own clock: what came after its lease was lost is for the queue to refuse.
    async fn build(&mut self, jobs: Vec<Job>) -> Result<()> {
        let queue = Arc::clone(&self.queue);
        let leases: Vec<_> = jobs.iter().map(lease).collect();
        sleep(Duration::from_millis(self.random.u64(..80))).await;
        if !leases.is_empty() && self.random.bool() {
            persistently(|| queue.heartbeat(&leases)).await?;
        }
        if self.random.u8(..3) == 0 {
            let ends: Vec<_> =
                jobs.iter().map(|job| AttemptEnd { lease: lease(job), completion: success(job) }).collect();
            let times = if self.random.u8(..4) == 0 { 2 } else { 1 };
            for _ in 0..times {
                persistently(|| queue.complete_batch(&ends)).await?;
            }
            return Ok(());
        }
        for job in &jobs {
            self.end(job).await?;
        }
        Ok(())
    }

    async fn end(&mut self, job: &Job) -> Result<()> {
        let (queue, lease) = (Arc::clone(&self.queue), lease(job));
        sleep(Duration::from_millis(self.random.u64(..40))).await;
        let times = if self.random.u8(..4) == 0 { 2 } else { 1 };
        for _ in 0..times {
            if self.random.u8(..10) == 0 {
                persistently(|| queue.release(&lease, "drain", Duration::ZERO)).await?;
            } else {
                let completion = success(job);
                persistently(|| queue.complete(&lease, &completion)).await?;
            }
        }
        Ok(())
    }
}

/// Makes a call again while it fails in passing. `None` for a lost lease, and when it is left as it is.
async fn persistently<T, F>(mut call: impl FnMut() -> F) -> Result<Option<T>>
where
    F: Future<Output = Result<T, Error>>,
{
    for turn in 1..=TRIES {
        match call().await {
            Ok(answer) => return Ok(Some(answer)),
            Err(Error::LeaseLost { .. } | Error::NotFound { .. }) => return Ok(None),
            Err(error) if error.is_retryable() => sleep(Duration::from_millis(50) * turn).await,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
