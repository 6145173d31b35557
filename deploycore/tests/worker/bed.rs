//! A worker with a builder that does what a test says, a queue whose line is bad, and a store that fails now and then.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::build::{BuildContext, BuildError, BuildOutput, Builder, Worker, WorkerSettings};
use deploycore::memory::{Clock, Queue, Store};
use deploycore::model::{
    CommitId, Completion, ConcurrencyKey, Digest, Job, JobId, JobStatus, Lease, LogName, Manifest, NewJob, ServiceName,
};
use deploycore::port::queue::{
    Beat, ClaimRequest, Claiming, Enqueued, Error, Fate, JobCursor, JobFilter, JobPage, Order, QueueStats, ReadyHint,
    ReadyHints, RescueRequest, Rescued,
};
use deploycore::port::store::{self, Chunks, Source};
use deploycore::port::{ArtifactStore, BackendError, JobQueue, JobQueueExt};
use futures::stream::{BoxStream, StreamExt};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn job() -> NewJob {
    NewJob::new(ServiceName::new("web").unwrap(), CommitId::new("abcdef0").unwrap())
}

/// What the next builds do.
#[derive(Debug, Clone)]
pub(crate) enum Plan {
    Yield(&'static str),
    /// Takes this long, then yields; stops when told.
    Take(Duration),
    /// Never ends, not even when told.
    Hang,
    Fail(&'static str),
    Around(&'static str),
    /// As `Around`, after this long.
    AroundAfter(Duration),
    Panic,
}

#[derive(Debug, Default)]
pub(crate) struct Scripted {
    pub(crate) plans: Mutex<VecDeque<Plan>>,
    pub(crate) started: AtomicUsize,
    /// Builds whose future is alive.
    pub(crate) alive: Arc<AtomicUsize>,
    pub(crate) most_alive: AtomicUsize,
    pub(crate) stopped: AtomicUsize,
    pub(crate) began: Notify,
}

pub(crate) struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Builder for Scripted {
    async fn build(&self, job: &Job, context: &BuildContext) -> Result<BuildOutput, BuildError> {
        let alive = self.alive.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_alive.fetch_max(alive, Ordering::SeqCst);
        let _alive = Alive(Arc::clone(&self.alive));
        self.started.fetch_add(1, Ordering::SeqCst);
        self.began.notify_one();
        context.log.line(format!("building {}", job.spec.commit));
        let plan = self.plans.lock().unwrap().pop_front().unwrap_or(Plan::Yield("bytes"));
        match plan {
            Plan::Yield(bytes) => Ok(BuildOutput::bytes(bytes)),
            Plan::Take(time) => {
                tokio::select! {
                    () = sleep(time) => Ok(BuildOutput::bytes("slow bytes")),
                    () = context.stop.cancelled() => {
                        self.stopped.fetch_add(1, Ordering::SeqCst);
                        Err(BuildError::Stopped)
                    }
                }
            }
            Plan::Hang => std::future::pending().await,
            Plan::Fail(why) => Err(BuildError::Build(why.to_owned())),
            Plan::Around(why) => Err(BuildError::infrastructure("no disk", why)),
            Plan::AroundAfter(time) => {
                sleep(time).await;
                Err(BuildError::infrastructure("no disk", "full"))
            }
            Plan::Panic => panic!("a bug in the builder"),
        }
    }
}

/// What happens to calls of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The call does not arrive.
    Lost,
    /// The call arrives, its answer does not.
    NoReply,
    /// The call never returns.
    Hang,
}

/// A queue with a bad line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) queue: Arc<Queue>,
    pub(crate) faults: Mutex<VecDeque<(&'static str, Fault)>>,
    /// Heartbeats do not arrive.
    pub(crate) mute: std::sync::atomic::AtomicBool,
    /// The time that a heartbeat takes to arrive.
    pub(crate) way: Duration,
    pub(crate) ready: ReadyHints,
}

impl Line {
    pub(crate) async fn through<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            let at = faults.iter().position(|(of, _)| *of == call);
            at.and_then(|at| faults.remove(at)).map(|(_, fault)| fault)
        };
        let broken = || Err(BackendError::retryable("line", "broken").into());
        match fault {
            None => work.await,
            Some(Fault::Lost) => broken(),
            Some(Fault::NoReply) => work.await.and_then(|_| broken()),
            Some(Fault::Hang) => std::future::pending().await,
        }
    }

    pub(crate) fn fault(&self, call: &'static str, fault: Fault) {
        self.faults.lock().unwrap().push_back((call, fault));
    }
}

#[async_trait]
impl JobQueue for Line {
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        self.queue.enqueue(jobs).await
    }
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error> {
        self.through("claim", self.queue.claim(request)).await
    }
    async fn heartbeat(&self, leases: &[Lease]) -> Result<Vec<Beat>, Error> {
        if self.mute.load(Ordering::SeqCst) {
            return Err(BackendError::retryable("line", "mute").into());
        }
        sleep(self.way).await;
        self.through("heartbeat", self.queue.heartbeat(leases)).await
    }
    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
        self.through("complete", self.queue.complete(lease, completion)).await
    }
    async fn release(&self, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
        self.through("release", self.queue.release(lease, reason, delay)).await
    }
    async fn cancel(&self, job: JobId) -> Result<Job, Error> {
        self.queue.cancel(job).await
    }
    async fn rescue(&self, request: &RescueRequest) -> Result<Vec<Rescued>, Error> {
        self.through("rescue", self.queue.rescue(request)).await
    }
    async fn get(&self, job: JobId) -> Result<Option<Job>, Error> {
        self.through("get", self.queue.get(job)).await
    }
    async fn list(&self, filter: &JobFilter, after: Option<JobCursor>, limit: u32) -> Result<JobPage, Error> {
        self.queue.list(filter, after, limit).await
    }
    async fn stats(&self) -> Result<QueueStats, Error> {
        self.queue.stats().await
    }
    async fn attempts(&self, job: JobId) -> Result<Vec<deploycore::model::Attempt>, Error> {
        self.queue.attempts(job).await
    }
    async fn prune(&self, age: Duration, limit: usize) -> Result<usize, Error> {
        self.through("prune", self.queue.prune(age, limit)).await
    }
    async fn set_claiming(&self, claiming: Claiming) -> Result<(), Error> {
        self.queue.set_claiming(claiming).await
    }
    async fn set_concurrency_limit(&self, key: &ConcurrencyKey, limit: NonZeroU32) -> Result<(), Error> {
        self.queue.set_concurrency_limit(key, limit).await
    }
    async fn set_order(&self, order: Order) -> Result<(), Error> {
        self.queue.set_order(order).await
    }
    fn ready(&self) -> ReadyHint {
        self.ready.subscribe()
    }
}

/// A store whose first puts fail in passing.
#[derive(Debug)]
pub(crate) struct Flaky {
    pub(crate) store: Store,
    pub(crate) failures: AtomicUsize,
    pub(crate) no_logs: bool,
}

#[async_trait]
impl ArtifactStore for Flaky {
    async fn put(&self, bytes: Source) -> Result<Manifest, store::Error> {
        let left = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_ok() {
            return Err(BackendError::retryable("flaky", "try again").into());
        }
        self.store.put(bytes).await
    }
    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, store::Error> {
        self.store.manifest(digest).await
    }
    async fn read(&self, digest: &Digest, range: std::ops::Range<u64>) -> Result<Chunks, store::Error> {
        self.store.read(digest, range).await
    }
    async fn exists(&self, digest: &Digest) -> Result<bool, store::Error> {
        self.store.exists(digest).await
    }
    async fn delete(&self, digest: &Digest) -> Result<(), store::Error> {
        self.store.delete(digest).await
    }
    fn list(&self) -> BoxStream<'_, Result<Digest, store::Error>> {
        self.store.list().boxed()
    }
    async fn put_log(&self, log: &LogName, bytes: Bytes) -> Result<(), store::Error> {
        if self.no_logs {
            return Err(BackendError::retryable("flaky", "no logs").into());
        }
        self.store.put_log(log, bytes).await
    }
    async fn log(&self, log: &LogName) -> Result<Option<Bytes>, store::Error> {
        self.store.log(log).await
    }
}

pub(crate) struct Yard {
    pub(crate) line: Arc<Line>,
    pub(crate) store: Arc<Flaky>,
    pub(crate) builder: Arc<Scripted>,
    pub(crate) shutdown: CancellationToken,
}

impl Yard {
    pub(crate) fn new(plans: impl IntoIterator<Item = Plan>) -> Self {
        let queue = Arc::new(Queue::new(Clock::default()));
        let line = Line {
            queue,
            faults: Mutex::default(),
            mute: false.into(),
            way: Duration::ZERO,
            ready: ReadyHints::default(),
        };
        let store = Flaky { store: Store::new(), failures: 0.into(), no_logs: false };
        let builder = Scripted { plans: Mutex::new(plans.into_iter().collect()), ..Scripted::default() };
        Self { line: line.into(), store: store.into(), builder: builder.into(), shutdown: CancellationToken::new() }
    }

    pub(crate) fn worker(&self, settings: WorkerSettings) -> Arc<Worker> {
        let worker = Worker::new(settings, self.line.clone(), self.store.clone(), self.builder.clone());
        Arc::new(worker.unwrap().with_seed(7))
    }

    pub(crate) fn run(&self, settings: WorkerSettings) -> AbortOnDropHandle<()> {
        let (worker, shutdown) = (self.worker(settings), self.shutdown.clone());
        AbortOnDropHandle::new(tokio::spawn(async move { worker.run(shutdown).await }))
    }

    pub(crate) async fn enqueue(&self, job: NewJob) -> JobId {
        self.line.enqueue_one(&job).await.unwrap().job()
    }

    pub(crate) async fn job(&self, id: JobId) -> Job {
        self.line.queue.require(id).await.unwrap()
    }

    pub(crate) async fn finished(&self, id: JobId) -> Job {
        self.until(id, |job| job.status.is_finished()).await
    }

    pub(crate) async fn until(&self, id: JobId, holds: impl Fn(&Job) -> bool) -> Job {
        let look = async {
            loop {
                let job = self.job(id).await;
                if holds(&job) {
                    return job;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(secs(3600), look).await.expect("the job never gets there")
    }

    pub(crate) async fn rescue(&self, lost_after: Duration) -> Vec<Rescued> {
        self.line.queue.rescue(&RescueRequest { lost_after, ..RescueRequest::default() }).await.unwrap()
    }
}
