//! The worker: claims jobs, builds them, stores the bytes, completes the jobs.
//!
//! ```text
//! claim ─► build ─► put into the main store ─► complete (fenced by the lease)
//!            ▲
//!            └ stopped by: cancel, deadline, lost lease, shutdown
//! ```
//!
//! A job is completed only after the store's put returned: SUCCEEDED implies stored. A worker that dies at any instruction leaves a
//! lease that goes silent; the reaper takes the job back. What it stored meanwhile is content-addressed and harms nobody.

mod attempt;
mod hold_off;
mod leases;
mod settings;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use self::settings::WorkerSettings;

use self::attempt::Attempt;
use self::hold_off::{HoldOff, Sign};
use self::leases::{Held, Leases, Verdict, beats, keep_leases};
use super::{Builder, InvalidSettings};
use crate::model::{ClaimId, CommitId, Job, Lease, ServiceName, elapsed};
use crate::pace::{Pace, Wake};
use crate::port::queue::{ClaimRequest, MAX_BATCH, ReadyHint};
use crate::port::{ArtifactStore, JobQueue, chain};

/// Claims jobs and builds them in its slots.
///
/// Heartbeats come from a task of their own, on the runtime that the worker runs on. Builds run there too, and one that holds its
/// thread may hold the heartbeats, whatever the number of threads. Give such a builder a runtime of its own:
/// [`Worker::with_builds_on`].
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    builds_on: Option<Handle>,
    /// A claim whose reply may be lost: it is repeated before any other is made.
    unanswered: Mutex<Option<ClaimRequest>>,
    random: Mutex<Option<fastrand::Rng>>,
}

/// What the worker's tasks share.
#[derive(Debug)]
struct Shared {
    settings: WorkerSettings,
    queue: Arc<dyn JobQueue>,
    store: Arc<dyn ArtifactStore>,
    builder: Arc<dyn Builder>,
    leases: Leases,
    /// Asks for a heartbeat now.
    beat_now: Notify,
}

/// A build that a worker has under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningBuild {
    /// The right under which it runs.
    pub lease: Lease,
    /// What is built.
    pub service: ServiceName,
    /// From which commit.
    pub commit: CommitId,
}

impl Worker {
    /// A worker that takes jobs from `queue`, builds them with `builder` and stores the bytes in `store`, the main store.
    /// Times of zero, and a `lost_after` shorter than two heartbeats, are refused.
    pub fn new(
        settings: WorkerSettings,
        queue: Arc<dyn JobQueue>,
        store: Arc<dyn ArtifactStore>,
        builder: Arc<dyn Builder>,
    ) -> Result<Self, InvalidSettings> {
        settings.check()?;
        let (leases, beat_now) = (Leases::default(), Notify::new());
        let shared = Arc::new(Shared { settings, queue, store, builder, leases, beat_now });
        Ok(Self { shared, builds_on: None, unanswered: Mutex::default(), random: Mutex::default() })
    }

    /// Builds on another runtime, which must have its drivers enabled and live as long as the worker. For builders that hold their
    /// thread for long in spite of their contract: heartbeats, claims and the store's traffic stay where the worker runs, and so do
    /// the connections of queue and store. Such a build still ends only when it lets go of the thread, and a worker that stopped it does
    /// not wait for that longer than its grace.
    #[must_use]
    pub fn with_builds_on(mut self, runtime: Handle) -> Self {
        self.builds_on = Some(runtime);
        self
    }

    /// Seeds the claim ids and the jitter, so that a simulated run repeats. Never use one seed for two workers on one queue.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        *lock(&self.random) = Some(fastrand::Rng::with_seed(seed));
        self
    }

    /// The builds under way.
    pub fn builds(&self) -> Vec<RunningBuild> {
        let describe = |held: Arc<Held>| RunningBuild {
            lease: held.lease,
            service: held.job.spec.service.clone(),
            commit: held.job.spec.commit.clone(),
        };
        self.shared.leases.all().into_iter().map(describe).collect()
    }

    /// Works until `shutdown`, then drains: it claims nothing more, lets builds end for [`WorkerSettings::drain`], then stops those
    /// that are left and gives their jobs back. One run at a time.
    ///
    /// Dropping the future ends every build at once without a word to the queue, as a kill would.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut session = Session::new(self);
        while !shutdown.is_cancelled() {
            session.refill(self).await;
            if session.rest(&shutdown).await == Wake::Shutdown {
                break;
            }
        }
        session.drain(self).await;
    }

    /// Claims once, up to all slots, and works until each of these jobs has ended; how many there were. When to claim again is the caller's
    /// to decide: only [`run`](Self::run) holds off where builds fail in a row.
    pub async fn tick(&self) -> usize {
        let mut session = Session::new(self);
        session.refill(self).await;
        let jobs = session.builds.len();
        session.wait_all().await;
        jobs
    }

    fn seeded(&self, pace: Pace) -> Pace {
        match &mut *lock(&self.random) {
            Some(random) => pace.with_seed(random.u64(..)),
            None => pace,
        }
    }

    /// The claim to make: the unanswered one, or a fresh one for `free` slots.
    fn next_claim(&self, free: usize) -> (ClaimRequest, Try) {
        if let Some(request) = lock(&self.unanswered).clone() {
            return (request, Try::Again);
        }
        let claim = match &mut *lock(&self.random) {
            Some(random) => uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes()).into_uuid().into(),
            None => ClaimId::new(),
        };
        let request = ClaimRequest { claim, worker: self.shared.settings.name.clone(), limit: free.min(MAX_BATCH) };
        *lock(&self.unanswered) = Some(request.clone());
        (request, Try::First)
    }

    /// Claims once. An error leaves the claim unanswered.
    async fn claim(&self, free: usize) -> Result<(Try, Vec<Arc<Held>>), ()> {
        let (request, attempt) = self.next_claim(free);
        let shared = &self.shared;
        // The times of the leases count from before the call, so that this worker errs to the early side.
        let asked_at = Instant::now();
        let answer = timeout(shared.settings.call_limit, shared.queue.claim(&request)).await;
        let jobs = match answer {
            Ok(Ok(jobs)) => jobs,
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "claiming failed; the same claim is repeated");
                return Err(());
            }
            Err(_) => {
                tracing::warn!(limit = ?shared.settings.call_limit, "a claim took too long; it is repeated");
                return Err(());
            }
        };
        *lock(&self.unanswered) = None;
        Ok((attempt, jobs.into_iter().filter_map(|job| shared.hold(job, asked_at)).collect()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Try {
    First,
    Again,
}

impl Shared {
    fn hold(&self, job: Job, asked_at: Instant) -> Option<Arc<Held>> {
        let Some(running) = &job.running else {
            tracing::error!(job = %job.spec.id, "the queue handed out a job without a lease; it is left alone");
            return None;
        };
        let lease = running.lease;
        let deadline = asked_at + elapsed(running.claimed_at, running.deadline);
        Some(Held::new(job, lease, deadline, asked_at + self.settings.lost_after))
    }
}

/// One run: the tasks, which end when it is dropped.
struct Session {
    shared: Arc<Shared>,
    builds_on: Option<Handle>,
    builds: JoinSet<Sign>,
    keeper: JoinSet<()>,
    pace: Pace,
    beats: Pace,
    hold_off: HoldOff,
    ready: ReadyHint,
}

impl Session {
    fn new(worker: &Worker) -> Self {
        let shared = Arc::clone(&worker.shared);
        let pace = worker.seeded(Pace::new(shared.settings.poll, shared.settings.backoff));
        let beats = worker.seeded(beats(&shared.settings));
        let hold_off = HoldOff::new(worker.seeded(Pace::new(Duration::ZERO, shared.settings.hold_off)));
        let builds_on = worker.builds_on.clone();
        // Before the first claim: what becomes ready after it is not missed.
        let ready = shared.queue.ready();
        let (builds, keeper) = (JoinSet::new(), JoinSet::new());
        let mut session = Self { shared, builds_on, builds, keeper, pace, beats, hold_off, ready };
        session.start_keeper();
        session
    }

    fn start_keeper(&mut self) {
        let (shared, beats) = (Arc::clone(&self.shared), self.beats.clone());
        self.keeper.spawn(async move { keep_leases(&shared, beats).await }.in_current_span());
    }

    fn free(&self) -> usize {
        self.shared.settings.slots.get().saturating_sub(self.builds.len())
    }

    /// Claims for the free slots and starts what it got.
    async fn refill(&mut self, worker: &Worker) {
        // A claim whose reply was lost may hold jobs: nobody beats for them until it is answered.
        let is_unanswered = lock(&worker.unanswered).is_some();
        let free = self.free();
        let room = if is_unanswered { free } else { self.hold_off.room(free, Instant::now()) };
        if room == 0 {
            return;
        }
        let answer = worker.claim(room).await;
        self.pace.note(answer.is_ok());
        if answer.as_ref().is_ok_and(|(_, jobs)| jobs.len() == room) {
            // There may be more than this worker has slots for.
            self.ready.pass_on();
        }
        let (attempt, jobs) = answer.unwrap_or((Try::First, Vec::new()));
        let old = attempt == Try::Again && !jobs.is_empty();
        for held in jobs {
            self.start(held);
        }
        if old {
            // The first call may be long ago: learn what is left of these leases, which are listed since their start.
            self.shared.beat_now.notify_one();
        }
    }

    fn start(&mut self, held: Arc<Held>) {
        let (lease, spec) = (held.lease, &held.job.spec);
        let span = tracing::info_span!("build", job = %lease.job, epoch = %lease.epoch, service = %spec.service, commit = %spec.commit);
        let attempt = Attempt::new(Arc::clone(&self.shared), held, self.builds_on.clone());
        let build = self.builds.spawn(attempt.run().instrument(span));
        self.hold_off.started(build.id());
    }

    /// Waits for the next claim: the period, or sooner when a slot becomes free, when one is free and the queue has a hint, or when the
    /// worker has held off for long enough.
    async fn rest(&mut self, shutdown: &CancellationToken) -> Wake {
        let now = Instant::now();
        let has_room = self.hold_off.room(self.free(), now) > 0;
        let Self { builds, keeper, pace, hold_off, ready, .. } = self;
        let held_until = hold_off.ends_at(now);
        let slot_free = async {
            match builds.join_next_with_id().await {
                Some(end) => note_build(hold_off, end),
                None => std::future::pending().await,
            }
        };
        let held_off = async {
            match held_until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let sooner = async {
            tokio::select! {
                biased;
                () = slot_free => {}
                () = ready.given(), if has_room => {}
                () = held_off => {}
            }
        };
        tokio::select! {
            biased;
            wake = pace.wait(sooner, shutdown) => {
                while let Some(end) = builds.join_next_with_id().now_or_never().flatten() {
                    note_build(hold_off, end);
                }
                wake
            }
            end = keeper.join_next() => {
                note_end("heartbeat", end.unwrap_or(Ok(())));
                self.start_keeper();
                Wake::Hint
            }
        }
    }

    async fn drain(&mut self, worker: &Worker) {
        let settings = &self.shared.settings.clone();
        if timeout(settings.drain, self.wait_all()).await.is_ok() && lock(&worker.unanswered).is_none() {
            return;
        }
        // A claim whose reply was lost may hold jobs: ask once more, to give them back.
        let unanswered = lock(&worker.unanswered).is_some();
        if unanswered {
            for held in worker.claim(1).await.map(|(_, jobs)| jobs).unwrap_or_default() {
                held.judge(Verdict::Drained);
                self.start(held);
            }
            *lock(&worker.unanswered) = None;
        }
        for held in self.shared.leases.all() {
            held.judge(Verdict::Drained);
        }
        if timeout(settings.end_limit(), self.wait_all()).await.is_err() {
            tracing::error!(builds = self.builds.len(), "builds did not end in time; their leases go silent");
            self.builds.shutdown().await;
        }
    }

    async fn wait_all(&mut self) {
        while !self.builds.is_empty() {
            tokio::select! {
                biased;
                Some(end) = self.builds.join_next() => note_end("build", end),
                Some(end) = self.keeper.join_next() => {
                    note_end("heartbeat", end);
                    self.start_keeper();
                }
            }
        }
    }
}

fn note_build(hold_off: &mut HoldOff, end: Result<(Id, Sign), JoinError>) {
    let (build, sign) = end.as_ref().map_or_else(|error| (error.id(), Sign::Mute), |end| *end);
    hold_off.ended(build, sign, Instant::now());
    note_end("build", end);
}

/// A task must not die in silence.
fn note_end<T>(what: &'static str, end: Result<T, JoinError>) {
    if let Err(error) = end {
        tracing::error!(error = chain(&error), what, "a task of the worker died");
        metrics::counter!("deploycore_worker_task_deaths_total", "task" => what).increment(1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
