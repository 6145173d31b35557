//! Worker and reaper over the memory backends, in virtual time.

mod reaper;

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::build::{
    BuildContext, BuildError, BuildOutput, Builder, Reaper, ReaperSettings, Worker, WorkerSettings,
};
use deploycore::memory::{Clock, Queue, Store};
use deploycore::model::{
    AttemptOutcome, CommitId, Completion, ConcurrencyKey, Digest, FailureKind, Job, JobId, JobStatus, Lease, LogName,
    Manifest, NewJob, ServiceName,
};
use deploycore::port::queue::{
    Beat, ClaimRequest, Claiming, Enqueued, Error, Fate, JobCursor, JobFilter, JobPage, QueueStats, ReadyHint,
    ReadyHints, RescueRequest, Rescued,
};
use deploycore::port::store::{self, Chunks, Source};
use deploycore::port::{ArtifactStore, ArtifactStoreExt, BackendError, JobQueue, JobQueueExt};
use futures::stream::{BoxStream, StreamExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn job() -> NewJob {
    NewJob::new(ServiceName::new("web").unwrap(), CommitId::new("abcdef0").unwrap())
}

/// What the next builds do.
#[derive(Debug, Clone)]
enum Plan {
    Yield(&'static str),
    /// Takes this long, then yields; stops when told.
    Take(Duration),
    /// Never ends, not even when told.
    Hang,
    Fail(&'static str),
    Around(&'static str),
    Panic,
}

#[derive(Debug, Default)]
struct Scripted {
    plans: Mutex<VecDeque<Plan>>,
    started: AtomicUsize,
    /// Builds whose future is alive.
    alive: Arc<AtomicUsize>,
    most_alive: AtomicUsize,
    stopped: AtomicUsize,
    began: Notify,
}

struct Alive(Arc<AtomicUsize>);

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
            Plan::Panic => panic!("a bug in the builder"),
        }
    }
}

/// What happens to calls of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The call does not arrive.
    Lost,
    /// The call arrives, its answer does not.
    NoReply,
    /// The call never returns.
    Hang,
}

/// A queue with a bad line.
#[derive(Debug)]
struct Line {
    queue: Arc<Queue>,
    faults: Mutex<VecDeque<(&'static str, Fault)>>,
    /// Heartbeats do not arrive.
    mute: std::sync::atomic::AtomicBool,
    /// The time that a heartbeat takes to arrive.
    way: Duration,
    ready: ReadyHints,
}

impl Line {
    async fn through<T>(&self, call: &'static str, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
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

    fn fault(&self, call: &'static str, fault: Fault) {
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
    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<Job, Error> {
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
    fn ready(&self) -> ReadyHint {
        self.ready.subscribe()
    }
}

/// A store whose first puts fail in passing.
#[derive(Debug)]
struct Flaky {
    store: Store,
    failures: AtomicUsize,
    no_logs: bool,
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

struct Yard {
    line: Arc<Line>,
    store: Arc<Flaky>,
    builder: Arc<Scripted>,
    shutdown: CancellationToken,
}

impl Yard {
    fn new(plans: impl IntoIterator<Item = Plan>) -> Self {
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

    fn worker(&self, settings: WorkerSettings) -> Arc<Worker> {
        let worker = Worker::new(settings, self.line.clone(), self.store.clone(), self.builder.clone());
        Arc::new(worker.unwrap().with_seed(7))
    }

    fn run(&self, settings: WorkerSettings) -> AbortOnDropHandle<()> {
        let (worker, shutdown) = (self.worker(settings), self.shutdown.clone());
        AbortOnDropHandle::new(tokio::spawn(async move { worker.run(shutdown).await }))
    }

    async fn enqueue(&self, job: NewJob) -> JobId {
        self.line.enqueue_one(&job).await.unwrap().job()
    }

    async fn job(&self, id: JobId) -> Job {
        self.line.queue.require(id).await.unwrap()
    }

    async fn finished(&self, id: JobId) -> Job {
        self.until(id, |job| job.status.is_finished()).await
    }

    async fn until(&self, id: JobId, holds: impl Fn(&Job) -> bool) -> Job {
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

    async fn rescue(&self, lost_after: Duration) -> Vec<Rescued> {
        self.line.queue.rescue(&RescueRequest { lost_after, ..RescueRequest::default() }).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_succeeds_with_its_bytes_and_its_log_in_the_store() {
    let yard = Yard::new([Plan::Yield("the binary")]);
    let id = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    let done = yard.finished(id).await;
    assert_eq!(done.status, JobStatus::Succeeded);
    let artifact = done.artifact.unwrap();
    assert_eq!(artifact.name.as_str(), format!("web-{id}"));
    assert_eq!((artifact.digest, artifact.size), (Digest::of(b"the binary"), 10));
    assert_eq!(yard.store.read_all(&artifact.digest, 0..10).await.unwrap(), b"the binary");
    let log = yard.store.log(&LogName { job: id, epoch: done.epoch }).await.unwrap().unwrap();
    assert_eq!(log, "building abcdef0\n");
}

#[tokio::test(start_paused = true)]
async fn a_hint_starts_a_build_before_the_worker_would_look() {
    let yard = Yard::new([]);
    let _running = yard.run(WorkerSettings::default().with_poll(secs(3_600)));
    sleep(secs(1)).await;
    // The first look found nothing; the next is an hour away.
    let id = yard.enqueue(job()).await;
    sleep(secs(1_800)).await;
    assert_eq!(yard.job(id).await.status, JobStatus::Queued);
    yard.line.ready.give(1);
    sleep(secs(1)).await;
    assert_eq!(yard.job(id).await.status, JobStatus::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_fills_its_slots_passes_the_hint_on() {
    let yard = Yard::new(vec![Plan::Take(secs(60)); 3]);
    let _workers = [1, 2, 3].map(|seed| {
        let settings = WorkerSettings::default().with_poll(secs(3_600)).with_slots(NonZeroUsize::MIN);
        let worker = Worker::new(settings, yard.line.clone(), yard.store.clone(), yard.builder.clone());
        let (worker, shutdown) = (worker.unwrap().with_seed(seed), yard.shutdown.clone());
        AbortOnDropHandle::new(tokio::spawn(async move { worker.run(shutdown).await }))
    });
    sleep(secs(1)).await;
    for _ in 0..2 {
        yard.enqueue(job()).await;
    }
    // One is told of, the other is found by whom the first one wakes.
    yard.line.ready.give(1);
    sleep(secs(1)).await;
    assert_eq!(yard.line.queue.stats().await.unwrap().counts[&JobStatus::Running], 2);
}

#[tokio::test(start_paused = true)]
async fn all_slots_build_at_once_and_no_more() {
    let yard = Yard::new(vec![Plan::Take(secs(5)); 7]);
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.push(yard.enqueue(job()).await);
    }
    let started = Instant::now();
    let _worker = yard.run(WorkerSettings::default().with_slots(NonZeroUsize::new(3).unwrap()));
    for id in ids {
        assert_eq!(yard.finished(id).await.status, JobStatus::Succeeded);
    }
    assert_eq!(yard.builder.most_alive.load(Ordering::SeqCst), 3);
    // Three rounds of 5 s: a slot that becomes free is filled at once, without waiting for the poll.
    assert!(started.elapsed() < secs(17), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_failed_build_is_final_and_a_failure_around_it_is_tried_again() {
    let yard = Yard::new([Plan::Fail("no such type"), Plan::Around("full"), Plan::Panic, Plan::Yield("x")]);
    let _worker = yard.run(WorkerSettings::default());
    let failed = yard.finished(yard.enqueue(job()).await).await;
    let failure = failed.failure.unwrap();
    assert_eq!((failed.status, failure.kind, failed.attempts), (JobStatus::Failed, FailureKind::Build, 1));
    assert_eq!(failure.message, "no such type");
    assert!(yard.store.log(&failure.log.unwrap()).await.unwrap().unwrap().ends_with(b"no such type\n"));

    let id = yard.enqueue(job()).await;
    let done = yard.finished(id).await;
    assert_eq!((done.status, done.attempts), (JobStatus::Succeeded, 3));
    let attempts = yard.line.attempts(id).await.unwrap();
    let kinds = attempts.iter().map(|attempt| match &attempt.outcome {
        Some(AttemptOutcome::Completed { completion: Completion::Failed { failure } }) => failure.message.as_str(),
        _ => "",
    });
    assert_eq!(kinds.collect::<Vec<_>>(), ["no disk: full", "the builder panicked", ""]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_stops_the_build() {
    let yard = Yard::new([Plan::Take(secs(600))]);
    let id = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    yard.builder.began.notified().await;
    yard.line.cancel(id).await.unwrap();
    let asked = Instant::now();
    assert_eq!(yard.finished(id).await.status, JobStatus::Cancelled);
    assert!(asked.elapsed() <= secs(31), "{:?}", asked.elapsed());
    assert_eq!(yard.builder.stopped.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_hold_the_lease_of_a_long_build_and_a_build_past_its_time_fails() {
    let yard = Yard::new([Plan::Take(secs(800)), Plan::Hang]);
    let long = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    let done = async {
        while !yard.job(long).await.status.is_finished() {
            assert_eq!(yard.rescue(secs(40)).await, []);
            sleep(secs(1)).await;
        }
    };
    timeout(secs(900), done).await.unwrap();
    assert_eq!(yard.job(long).await.status, JobStatus::Succeeded);

    let hung = yard.enqueue(job().with_build_timeout(secs(100))).await;
    let started = Instant::now();
    let failed = yard.finished(hung).await;
    assert_eq!((failed.status, failed.failure.unwrap().kind), (JobStatus::Failed, FailureKind::Timeout));
    // The time, the grace for a builder that does not listen, and the poll.
    assert!(started.elapsed() < secs(100 + 15 + 4), "{:?}", started.elapsed());
    assert_eq!(yard.builder.alive.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_stops_the_build_and_drops_its_result() {
    let yard = Yard::new([Plan::Take(secs(500)), Plan::Yield("second")]);
    let id = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    yard.builder.began.notified().await;
    sleep(secs(1)).await;
    let rescued = yard.rescue(Duration::ZERO).await;
    assert_eq!(rescued.len(), 1);
    let done = yard.finished(id).await;
    assert_eq!((done.status, done.epoch.get()), (JobStatus::Succeeded, 2));
    assert_eq!(done.artifact.unwrap().digest, Digest::of(b"second"));
    assert_eq!(yard.builder.stopped.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_heartbeats_do_not_arrive_gives_up_by_itself() {
    let yard = Yard::new([Plan::Take(secs(500))]);
    let id = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    yard.builder.began.notified().await;
    let began = Instant::now();
    yard.line.mute.store(true, Ordering::SeqCst);
    while yard.builder.stopped.load(Ordering::SeqCst) == 0 {
        sleep(Duration::from_millis(100)).await;
    }
    assert!((secs(85)..secs(95)).contains(&began.elapsed()), "{:?}", began.elapsed());
    // It says nothing of the job: the reaper does.
    sleep(secs(5)).await;
    let left = yard.job(id).await;
    assert_eq!(left.status, JobStatus::Running);
    assert_eq!(yard.rescue(secs(90)).await.len(), 1);
    yard.line.mute.store(false, Ordering::SeqCst);
    assert_eq!(yard.finished(id).await.status, JobStatus::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn lost_calls_and_lost_replies_cost_no_attempt() {
    let yard = Yard::new([]);
    for call in ["claim", "complete"] {
        for fault in [Fault::NoReply, Fault::Lost, Fault::Hang] {
            yard.line.fault(call, fault);
        }
    }
    let id = yard.enqueue(job()).await;
    let _worker = yard.run(WorkerSettings::default());
    let done = yard.finished(id).await;
    sleep(secs(60)).await;
    assert_eq!((done.status, done.epoch.get(), done.attempts), (JobStatus::Succeeded, 1, 1));
    assert_eq!(yard.builder.started.load(Ordering::SeqCst), 1);
    assert!(yard.line.faults.lock().unwrap().is_empty(), "every fault was met");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_in_passing_costs_no_attempt_and_a_lost_log_no_result() {
    let mut yard = Yard::new([Plan::Yield("bytes")]);
    yard.store = Arc::new(Flaky { store: Store::new(), failures: 2.into(), no_logs: true });
    let id = yard.enqueue(job()).await;
    assert_eq!(yard.worker(WorkerSettings::default()).tick().await, 1);
    let done = yard.job(id).await;
    assert_eq!((done.status, done.attempts), (JobStatus::Succeeded, 1));
    assert_eq!(yard.builder.started.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_lets_short_builds_end_and_gives_long_ones_back() {
    let yard = Yard::new([Plan::Take(secs(20)), Plan::Take(secs(600)), Plan::Hang]);
    let ids = [yard.enqueue(job()).await, yard.enqueue(job()).await, yard.enqueue(job()).await];
    let later = yard.enqueue(job()).await;
    let worker = yard.run(WorkerSettings::default().with_slots(NonZeroUsize::new(3).unwrap()));
    while yard.builder.started.load(Ordering::SeqCst) < 3 {
        sleep(Duration::from_millis(100)).await;
    }
    yard.shutdown.cancel();
    timeout(secs(60 + 15 + 10), worker).await.expect("the drain is bounded").unwrap();
    let mut ends = Vec::new();
    for id in ids {
        let job = yard.job(id).await;
        ends.push((job.status, job.attempts, job.releases));
    }
    ends.sort();
    assert_eq!(
        ends,
        [(JobStatus::Queued, 0, 1), (JobStatus::Queued, 0, 1), (JobStatus::Succeeded, 1, 0)],
        "a release burns no attempt"
    );
    assert_eq!(yard.job(later).await.epoch.get(), 0, "nothing was claimed while draining");
    assert_eq!(yard.builder.alive.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_claimed_by_a_reply_that_was_lost_before_the_shutdown_is_given_back() {
    let yard = Yard::new([]);
    yard.line.fault("claim", Fault::NoReply);
    let id = yard.enqueue(job()).await;
    let worker = yard.run(WorkerSettings::default());
    yard.until(id, |job| job.status == JobStatus::Running).await;
    yard.shutdown.cancel();
    worker.await.unwrap();
    let job = yard.job(id).await;
    assert_eq!((job.status, job.releases), (JobStatus::Queued, 1));
    assert_eq!(yard.builder.started.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_worker_ends_its_builds_and_says_nothing() {
    let yard = Yard::new([Plan::Hang]);
    let id = yard.enqueue(job()).await;
    let worker = yard.run(WorkerSettings::default());
    yard.builder.began.notified().await;
    drop(worker);
    while yard.builder.alive.load(Ordering::SeqCst) > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(yard.job(id).await.status, JobStatus::Running);
}

/// Holds its thread until it is told to go on.
#[derive(Debug)]
struct Blocking(Mutex<std::sync::mpsc::Receiver<()>>);

#[async_trait]
impl Builder for Blocking {
    async fn build(&self, _: &Job, _: &BuildContext) -> Result<BuildOutput, BuildError> {
        self.0.lock().unwrap().recv().unwrap();
        Ok(BuildOutput::bytes("blocked"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_builder_that_holds_its_thread_on_a_runtime_of_its_own_does_not_hold_the_heartbeats() {
    let yard = Yard::new([]);
    let builds = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (go_on, told) = std::sync::mpsc::channel();
    let builder = Arc::new(Blocking(Mutex::new(told)));
    let worker = Worker::new(WorkerSettings::default(), yard.line.clone(), yard.store.clone(), builder).unwrap();
    let worker = worker.with_seed(7).with_builds_on(builds.handle().clone());
    let (work, shutdown) = (Arc::new(worker), yard.shutdown.clone());
    let _worker = AbortOnDropHandle::new(tokio::spawn(async move { work.run(shutdown).await }));
    let id = yard.enqueue(job()).await;
    yard.until(id, |job| job.status == JobStatus::Running).await;
    for _ in 0..300 {
        assert_eq!(yard.rescue(secs(40)).await, []);
        sleep(secs(1)).await;
    }
    go_on.send(()).unwrap();
    // The other runtime takes real time, in which virtual time must not pass: a runtime that is never idle does not advance it.
    let end = std::time::Instant::now() + secs(60);
    while yard.job(id).await.status == JobStatus::Running && std::time::Instant::now() < end {
        tokio::task::yield_now().await;
    }
    let done = yard.job(id).await;
    assert_eq!((done.status, done.epoch.get()), (JobStatus::Succeeded, 1));
    builds.shutdown_background();
}

#[tokio::test(start_paused = true)]
async fn a_panic_on_the_runtime_of_the_builds_is_a_failure_around_the_build() {
    let yard = Yard::new([Plan::Panic]);
    let worker = Worker::new(WorkerSettings::default(), yard.line.clone(), yard.store.clone(), yard.builder.clone());
    let worker = worker.unwrap().with_seed(7).with_builds_on(tokio::runtime::Handle::current());
    let id = yard.enqueue(job()).await;
    assert_eq!(worker.tick().await, 1);
    let attempts = yard.line.attempts(id).await.unwrap();
    let Some(AttemptOutcome::Completed { completion: Completion::Failed { failure } }) = &attempts[0].outcome else {
        panic!("{attempts:?}");
    };
    assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::Infrastructure, "the builder panicked"));
}

#[tokio::test]
async fn settings_with_which_no_lease_would_hold_are_refused_by_name() {
    let yard = Yard::new([]);
    let worker = |change: &dyn Fn(&mut WorkerSettings)| {
        let mut settings = WorkerSettings::default();
        change(&mut settings);
        let worker = Worker::new(settings, yard.line.clone(), yard.store.clone(), yard.builder.clone());
        worker.map(drop).map_err(|error| error.to_string())
    };
    let refused = worker(&|settings| settings.heartbeat = secs(46)).unwrap_err();
    assert_eq!(refused, "invalid settings of the worker: `lost_after` (90s) must be at least twice `heartbeat` (46s)");
    assert!(worker(&|settings| settings.heartbeat = Duration::ZERO).unwrap_err().contains("`heartbeat`"));
    assert!(worker(&|settings| settings.poll = Duration::ZERO).unwrap_err().contains("`poll`"));
    assert_eq!(worker(&|settings| settings.heartbeat = secs(45)), Ok(()));
    assert_eq!(worker(&|settings| *settings = WorkerSettings::relaxed()), Ok(()));

    let reaper = |settings| Reaper::new(settings, yard.line.clone()).map(drop).map_err(|error| error.to_string());
    let settings = ReaperSettings::default();
    assert!(reaper(settings.clone().with_period(Duration::ZERO)).unwrap_err().contains("reaper: `period`"));
    assert!(reaper(settings.clone().with_heartbeat(secs(6), secs(10))).unwrap_err().contains("`lost_after` (10s)"));
    assert_eq!(reaper(ReaperSettings::relaxed()), Ok(()));
    let (worker, reaper) = (WorkerSettings::relaxed(), ReaperSettings::relaxed());
    assert_eq!((worker.heartbeat, worker.lost_after), (reaper.heartbeat, reaper.lost_after));
}

#[test]
fn settings_are_read_as_people_write_them() {
    let text = r#"{"name": "w-1", "slots": 4, "heartbeat": "10s", "lost_after": "30s", "log_limit": "2 MiB"}"#;
    let settings: WorkerSettings = serde_json::from_str(text).unwrap();
    assert_eq!((settings.slots.get(), settings.heartbeat), (4, secs(10)));
    assert!(serde_json::from_str::<WorkerSettings>(r#"{"slot": 4}"#).is_err());
    assert!(serde_json::from_str::<ReaperSettings>(r#"{"prune_after": "720h", "period": "5s"}"#).is_ok());
}
