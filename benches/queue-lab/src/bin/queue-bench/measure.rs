//! The measurements, each on the queue as the one before left it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use deploycore::model::{ClaimId, Job, JobId, WorkerName};
use deploycore::port::queue::{AttemptEnd, ClaimRequest};
use deploycore::port::{JobQueue, JobQueueExt};
use queue_lab::cpu;
use queue_lab::figures::{Spread, per_second};
use queue_lab::job::{job, lease, success};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::bed::Bed;
use crate::cli::Cli;

/// Jobs that are left for [`claim_alone`].
const LEFT: u32 = 200;
/// A worker that waits for a job looks again after this, hint or not: the default of the real worker.
const POLL: Duration = Duration::from_secs(2);
/// Between two enqueues on an idle queue.
const PAUSE: Duration = Duration::from_millis(25);
/// How long the measurement of latency may take on a queue without hints.
const LATENCY_LIMIT: Duration = Duration::from_secs(20);

/// Fills the queue, from as many callers as there are workers; jobs a second.
pub(crate) async fn enqueue(bed: &Bed, cli: &Cli) -> Result<f64> {
    let (at_once, left) = (cli.at_once() as u32, Arc::new(AtomicU32::new(cli.jobs)));
    let start = Instant::now();
    at_once_by(cli.workers, |number| {
        let (queue, left) = (bed.queue(number), Arc::clone(&left));
        async move {
            loop {
                let taken = take(&left, at_once);
                if taken == 0 {
                    return Ok(());
                }
                let jobs: Vec<_> = (0..taken).map(|_| job()).collect();
                queue.enqueue(&jobs).await?;
            }
        }
    })
    .await?;
    Ok(per_second(cli.jobs as usize, start.elapsed()))
}

/// Takes up to `most` of what is left.
fn take(left: &AtomicU32, most: u32) -> u32 {
    let taken = |left: u32| left.min(most);
    let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left - taken(left)));
    before.map_or(0, taken)
}

pub(crate) struct Drained {
    pub(crate) jobs: u32,
    pub(crate) time: Duration,
    pub(crate) client_cpu: Duration,
    pub(crate) server_cpu: Option<Duration>,
    pub(crate) claim: Option<Spread>,
    pub(crate) complete: Option<Spread>,
}

/// Claims and completes jobs, but for the last few.
pub(crate) async fn drain(bed: &Bed, cli: &Cli) -> Result<Drained> {
    let jobs = cli.jobs - LEFT;
    let left = Arc::new(AtomicU32::new(jobs));
    let (client, server) = (cpu::own().own, bed.server_cpu());
    let start = Instant::now();
    let at_once = cli.at_once() as u32;
    let times = at_once_by(cli.workers, |number| {
        let (queue, left) = (bed.queue(number), Arc::clone(&left));
        async move {
            let mut times = Times::default();
            loop {
                let limit = take(&left, at_once);
                if limit == 0 {
                    return Ok(times);
                }
                let claimed = times.claim(&*queue, number, limit as usize).await?;
                // Others hold what they claimed meanwhile, so a claim near the end may find less than is left.
                left.fetch_add(limit - claimed.len() as u32, Ordering::SeqCst);
                times.complete(&*queue, &claimed).await?;
            }
        }
    })
    .await?;
    let time = start.elapsed();
    let (claims, completions) = times.into_iter().map(|times| (times.claims, times.completions)).unzip();
    let (claims, completions): (Vec<_>, Vec<_>) = (claims, completions);
    Ok(Drained {
        jobs,
        time,
        client_cpu: cpu::own().own.saturating_sub(client),
        server_cpu: bed.server_cpu().zip(server).map(|(after, before)| after.saturating_sub(before)),
        claim: Spread::of(claims.concat()),
        complete: Spread::of(completions.concat()),
    })
}

/// How long the calls of a worker took.
#[derive(Default)]
struct Times {
    claims: Vec<Duration>,
    completions: Vec<Duration>,
}

impl Times {
    async fn claim(&mut self, queue: &dyn JobQueue, number: u16, limit: usize) -> Result<Vec<Job>> {
        let start = Instant::now();
        let jobs = queue.claim(&request(number, limit)).await?;
        self.claims.push(start.elapsed());
        Ok(jobs)
    }

    async fn complete(&mut self, queue: &dyn JobQueue, jobs: &[Job]) -> Result<()> {
        let ends: Vec<_> = jobs.iter().map(|job| AttemptEnd { lease: lease(job), completion: success(job) }).collect();
        let start = Instant::now();
        match ends.as_slice() {
            [] => return Ok(()),
            [AttemptEnd { lease, completion }] => drop(queue.complete(lease, completion).await?),
            ends => drop(queue.complete_batch(ends).await?.into_iter().collect::<Result<Vec<_>, _>>()?),
        }
        self.completions.push(start.elapsed());
        Ok(())
    }
}

fn request(number: u16, limit: usize) -> ClaimRequest {
    let worker = WorkerName::new(format!("lab-{number}")).expect("a name");
    ClaimRequest { claim: ClaimId::new(), worker, limit }
}

/// Claims the last jobs one by one with no other caller beside: how long a claim takes behind all that was claimed before.
pub(crate) async fn claim_alone(bed: &Bed) -> Result<Option<Spread>> {
    let (queue, mut times) = (bed.queue(0), Times::default());
    for _ in 0..LEFT {
        let jobs = times.claim(&*queue, 0, 1).await?;
        if jobs.is_empty() {
            bail!("a job is missing: does somebody else use this queue?");
        }
        times.complete(&*queue, &jobs).await?;
    }
    Ok(Spread::of(times.claims))
}

/// From the start of an enqueue to the reply of the claim that got the job, with all workers waiting as the real one does: for a hint, or
/// until it is time to look again.
pub(crate) async fn latency(bed: &Bed, cli: &Cli) -> Result<Option<Spread>> {
    let (sender, mut started) = mpsc::channel::<(JobId, Instant)>(1_000);
    let mut workers = JoinSet::new();
    for number in 0..cli.workers {
        workers.spawn(wait_for_jobs(bed.queue(number), number, sender.clone()));
    }
    // The workers have looked once, and the connection that listens is there.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (queue, begin, mut times) = (bed.queue(0), Instant::now(), Vec::new());
    for _ in 0..cli.latency_jobs {
        if begin.elapsed() > LATENCY_LIMIT {
            break;
        }
        let job = job();
        let start = Instant::now();
        queue.enqueue_one(&job).await?;
        let next = tokio::time::timeout(POLL * 5, started.recv()).await;
        let (id, at) = next.context("no worker started a job")?.context("the workers ended")?;
        if id != job.id {
            bail!("job {id} is not of this run: does somebody else use this queue?");
        }
        times.push(at.duration_since(start));
        tokio::time::sleep(PAUSE).await;
    }
    Ok(Spread::of(times))
}

async fn wait_for_jobs(queue: Arc<dyn JobQueue>, number: u16, started: mpsc::Sender<(JobId, Instant)>) -> Result<()> {
    let mut ready = queue.ready();
    loop {
        let jobs = queue.claim(&request(number, 1)).await?;
        let now = Instant::now();
        if !jobs.is_empty() {
            ready.pass_on();
        }
        for job in &jobs {
            started.send((job.spec.id, now)).await?;
            queue.complete(&lease(job), &success(job)).await?;
        }
        if jobs.is_empty() {
            let jitter = 0.9 + 0.2 * fastrand::f64();
            let _ = tokio::time::timeout(POLL.mul_f64(jitter), ready.given()).await;
        }
    }
}

/// Runs one task a caller, and gives what they gave.
async fn at_once_by<T, F>(callers: u16, task: impl Fn(u16) -> F) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for number in 0..callers {
        tasks.spawn(task(number));
    }
    tasks.join_all().await.into_iter().collect()
}
