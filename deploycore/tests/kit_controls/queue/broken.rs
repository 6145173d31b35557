//! A queue over snapshots of the memory queue, with one fault.
//!
//! Each call takes a snapshot, lets a memory queue go on from it, and writes the changed jobs back. Without a fault that is one step under
//! a lock. A fault bends the snapshot, the request or what is written back, or lets other calls in between.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::memory::{Clock, Queue, QueueSnapshot};
use deploycore::model::{
    Attempt, ClaimId, Completion, ConcurrencyKey, Epoch, Job, JobId, JobStatus, Lease, NewJob, OlderJobs, Timestamp,
    elapsed, later,
};
use deploycore::port::JobQueue;
use deploycore::port::queue::{
    AttemptEnd, Beat, ClaimRequest, Claiming, Enqueued, Error, Fate, JobCursor, JobFilter, JobPage, Order, QueueStats,
    RescueRequest, Rescued, bounds, transition,
};
use futures::FutureExt;
use uuid::Uuid;

use super::{Fault, misplaced};

#[derive(Debug)]
pub(super) struct Broken {
    fault: Fault,
    clock: Clock,
    state: Arc<Mutex<QueueSnapshot>>,
    /// What another handle finds: the same as `state`, but for [`Fault::WritesLater`].
    kept: Arc<Mutex<QueueSnapshot>>,
    turn: tokio::sync::Mutex<()>,
    claiming: Mutex<Claiming>,
}

type Jobs = BTreeMap<JobId, (Job, Vec<Attempt>)>;

impl Broken {
    pub(super) fn make(fault: Fault) -> Arc<dyn JobQueue> {
        Arc::new(Self::new(fault))
    }

    pub(super) fn new(fault: Fault) -> Self {
        let clock = Clock::default();
        let mut state = Queue::new(clock.clone()).snapshot();
        if fault == Fault::FairShareByDefault {
            state.turns = state.turns.under(Order::FairShare);
        }
        let state = Arc::new(Mutex::new(state));
        let (kept, claiming) = (Arc::clone(&state), Mutex::new(Claiming::Open));
        Self { fault, clock, state, kept, turn: tokio::sync::Mutex::default(), claiming }.another()
    }

    /// A handle on the same queue, as another process has it.
    pub(super) fn another(&self) -> Self {
        let kept = Arc::clone(&self.kept);
        let state = match self.fault {
            Fault::WritesLater => Arc::new(Mutex::new(lock(&kept).clone())),
            _ => Arc::clone(&kept),
        };
        let (turn, claiming) = (tokio::sync::Mutex::default(), Mutex::new(Claiming::Open));
        Self { fault: self.fault, clock: self.clock.clone(), state, kept, turn, claiming }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn locked(&self) -> MutexGuard<'_, QueueSnapshot> {
        lock(&self.state)
    }

    /// Reads, bends what was read, takes the step, writes back.
    fn step<T>(
        &self,
        bend: impl FnOnce(&mut Jobs),
        call: impl AsyncFnOnce(&Queue) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut state = self.locked();
        let read = state.clone();
        self.go_on(&mut state, read, bend, call)
    }

    /// The same, but others come between the reading and the writing, and what they wrote is written over.
    async fn racy_step<T>(&self, call: impl AsyncFnOnce(&Queue) -> Result<T, Error>) -> Result<T, Error> {
        let read = self.locked().clone();
        tokio::task::yield_now().await;
        self.go_on(&mut self.locked(), read, |_| (), call)
    }

    fn go_on<T>(
        &self,
        state: &mut QueueSnapshot,
        mut read: QueueSnapshot,
        bend: impl FnOnce(&mut Jobs),
        call: impl AsyncFnOnce(&Queue) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.is(Fault::WritesLater) {
            *lock(&self.kept) = state.clone();
        }
        if self.is(Fault::PausesItsProcess) {
            read.claiming = *lock(&self.claiming);
        }
        bend(&mut read.jobs);
        let queue = Queue::from_snapshot(self.clock.clone(), read.clone());
        let answer = call(&queue).now_or_never().expect("a memory queue never suspends");
        let after = queue.snapshot();
        for id in read.jobs.keys().filter(|id| !after.jobs.contains_key(id)) {
            state.jobs.remove(id);
        }
        state.jobs.extend(after.jobs.into_iter().filter(|(id, entry)| read.jobs.get(id) != Some(entry)));
        (state.claiming, state.concurrency_limits, state.turns) =
            (after.claiming, after.concurrency_limits, after.turns);
        *lock(&self.claiming) = after.claiming;
        answer
    }

    /// A step of which the history is written when the jobs are.
    async fn two_steps<T>(&self, call: impl AsyncFnOnce(&Queue) -> Result<T, Error>) -> Result<T, Error> {
        let histories = |state: &QueueSnapshot| -> BTreeMap<JobId, Vec<Attempt>> {
            state.jobs.iter().map(|(id, (_, attempts))| (*id, attempts.clone())).collect()
        };
        let before = histories(&self.locked());
        let answer = self.step(|_| (), call)?;
        let after = histories(&self.locked());
        for histories in [before, after] {
            for (id, (_, attempts)) in &mut self.locked().jobs {
                if let Some(history) = histories.get(id) {
                    attempts.clone_from(history);
                }
            }
            tokio::task::yield_now().await;
        }
        Ok(answer)
    }

    fn knows(&self, claim: ClaimId) -> bool {
        self.locked().jobs.values().flat_map(|(_, attempts)| attempts).any(|attempt| attempt.lease.claim == claim)
    }

    /// Takes jobs under another id, and writes down the caller's in a second step.
    async fn claim_and_record(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error> {
        let first = ClaimRequest { claim: ClaimId::new(), ..request.clone() };
        let mut taken = self.step(|_| (), async |queue| queue.claim(&first).await)?;
        tokio::task::yield_now().await;
        for (job, attempts) in self.locked().jobs.values_mut() {
            let running = job.running.iter_mut().map(|running| &mut running.lease);
            for lease in running.chain(attempts.iter_mut().map(|attempt| &mut attempt.lease)) {
                lease.claim = if lease.claim == first.claim { request.claim } else { lease.claim };
            }
        }
        for running in taken.iter_mut().filter_map(|job| job.running.as_mut()) {
            running.lease.claim = request.claim;
        }
        Ok(taken)
    }

    /// The lease that is checked in place of the given one.
    fn guarded(&self, lease: &Lease) -> Result<Lease, Error> {
        let state = self.locked();
        let running = state.jobs.get(&lease.job).and_then(|(job, _)| job.running.as_ref());
        Ok(match running.map(|running| running.lease) {
            Some(current) if self.is(Fault::StateOnlyGuard) => current,
            Some(current) if self.is(Fault::NoEpochGuard) && current.claim == lease.claim => current,
            Some(current) if self.is(Fault::NoClaimGuard) && current.epoch == lease.epoch => current,
            current
                if self.is(Fault::RepeatIsRefused)
                    && current != Some(*lease)
                    && state.jobs.contains_key(&lease.job) =>
            {
                return Err(Error::LeaseLost { job: lease.job, epoch: lease.epoch });
            }
            _ => *lease,
        })
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cancels_older(job: &NewJob) -> bool {
    job.older_jobs == OlderJobs::CancelQueued
}

#[async_trait]
impl JobQueue for Broken {
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        match self.fault {
            Fault::EnqueueRaces => self.racy_step(async |queue| queue.enqueue(jobs).await).await,
            Fault::LocksItsProcess => {
                let _turn = self.turn.lock().await;
                self.racy_step(async |queue| queue.enqueue(jobs).await).await
            }
            Fault::EnqueueStopsHalfway => {
                let mut answers = Vec::new();
                for job in jobs {
                    answers.extend(self.step(|_| (), async |queue| queue.enqueue(std::slice::from_ref(job)).await)?);
                    tokio::task::yield_now().await;
                }
                Ok(answers)
            }
            Fault::EnqueueIsNoTransaction => {
                let one = |job| self.step(|_| (), async |queue| queue.enqueue(std::slice::from_ref(job)).await);
                jobs.iter().map(one).collect::<Result<Vec<_>, _>>().map(|answers| answers.concat())
            }
            Fault::RepeatCancelsWhatCameAfter => {
                let answers = self.step(|_| (), async |queue| queue.enqueue(jobs).await)?;
                let (mut state, now) = (self.locked(), self.clock.now());
                for newer in jobs.iter().filter(|job| cancels_older(job)) {
                    let others = state.jobs.values_mut().map(|(job, _)| job);
                    for job in others.filter(|job| job.spec.service == newer.service && job.spec.id != newer.id) {
                        transition::supersede(job, newer.id, now);
                    }
                }
                Ok(answers)
            }
            fault if misplaced::is_of_turns(fault) => {
                let answers = self.step(|_| (), async |queue| queue.enqueue(jobs).await)?;
                misplaced::misplace(&mut self.locked(), fault, jobs, &answers);
                Ok(answers)
            }
            _ => self.step(
                |known| match self.fault {
                    Fault::EnqueueOverwrites => known.retain(|id, _| jobs.iter().all(|job| job.id != *id)),
                    Fault::DedupSeesOnlyQueuedJobs => {
                        let running = known.values_mut().filter(|(job, _)| job.status == JobStatus::Running);
                        running.for_each(|(job, _)| job.spec.dedup_key = None);
                    }
                    Fault::NewerCancelsRunningJobs if jobs.iter().any(cancels_older) => {
                        let running = known.values_mut().filter(|(job, _)| job.status == JobStatus::Running);
                        running.for_each(|(job, _)| (job.status, job.running) = (JobStatus::Queued, None));
                    }
                    _ => {}
                },
                async |queue| queue.enqueue(jobs).await,
            ),
        }
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error> {
        match self.fault {
            Fault::ClaimTrustsWhatItRead => return self.racy_step(async |queue| queue.claim(request).await).await,
            Fault::LocksItsProcess => {
                let _turn = self.turn.lock().await;
                return self.racy_step(async |queue| queue.claim(request).await).await;
            }
            Fault::ClaimIsRecordedLater if !self.knows(request.claim) => return self.claim_and_record(request).await,
            _ => {}
        }
        let read = self.locked().clone();
        if self.is(Fault::ClaimCountsBeforeItTakes) {
            tokio::task::yield_now().await;
        }
        let bend = |known: &mut Jobs| match self.fault {
            // Whoever began to run since the count is not counted, and not taken again.
            Fault::ClaimCountsBeforeItTakes => known.retain(|id, (job, _)| {
                job.status != JobStatus::Running
                    || read.jobs.get(id).is_some_and(|(job, _)| job.status == JobStatus::Running)
            }),
            Fault::ClaimIsNotIdempotent => known.values_mut().flat_map(|(_, attempts)| attempts).for_each(|attempt| {
                attempt.lease.claim = ClaimId::from(Uuid::nil());
            }),
            Fault::ClaimForgetsEndedJobs => {
                for (_, attempts) in known.values_mut() {
                    attempts.retain(|attempt| attempt.outcome.is_none());
                }
            }
            Fault::ClaimIgnoresTurns => known.values_mut().for_each(|(job, _)| job.turn = 0),
            Fault::ClaimIgnoresPriority => known.values_mut().for_each(|(job, _)| job.spec.priority = 0),
            _ => {}
        };
        self.step(bend, async |queue| queue.claim(request).await)
    }

    async fn heartbeat(&self, leases: &[Lease]) -> Result<Vec<Beat>, Error> {
        let guarded = leases.iter().map(|lease| self.guarded(lease).unwrap_or(*lease)).collect::<Vec<_>>();
        let beats = self.step(|_| (), async |queue| queue.heartbeat(&guarded).await)?;
        if self.is(Fault::HeartbeatMovesTheDeadline) {
            let mut state = self.locked();
            for lease in leases {
                if let Some((job, _)) = state.jobs.get_mut(&lease.job)
                    && let Some(running) = &mut job.running
                {
                    running.deadline = later(running.last_heartbeat, job.spec.build_timeout);
                }
            }
        }
        Ok(beats)
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
        let lease = self.guarded(lease)?;
        if self.is(Fault::EndsInTwoSteps) {
            return self.two_steps(async |queue| queue.complete(&lease, completion).await).await;
        }
        let bend = |known: &mut Jobs| match known.get_mut(&lease.job) {
            Some((job, _)) if self.is(Fault::AttemptsAreUnbounded) => job.attempts = job.attempts.min(1),
            _ => {}
        };
        self.step(bend, async |queue| queue.complete(&lease, completion).await)
    }

    async fn complete_batch(&self, ends: &[AttemptEnd]) -> Result<Vec<Result<JobStatus, Error>>, Error> {
        bounds::check_batch("attempts to end", ends.len())?;
        let mut ends = ends.to_vec();
        if self.is(Fault::BatchAnswersInOrderOfJobs) {
            ends.sort_by_key(|end| end.lease.job);
        }
        let current = |lease: &Lease| {
            let state = self.locked();
            state.jobs.get(&lease.job).and_then(|(job, _)| job.running.as_ref()).is_some_and(|run| run.lease == *lease)
        };
        let mut answers = Vec::new();
        for AttemptEnd { lease, completion } in &ends {
            if self.is(Fault::BatchRepeatIsRefused) && !current(lease) {
                answers.push(Err(Error::LeaseLost { job: lease.job, epoch: lease.epoch }));
                continue;
            }
            match self.complete(lease, completion).await {
                Err(error) if self.is(Fault::BatchEndsWithTheFirstRefusal) => return Err(error),
                answer => answers.push(answer),
            }
        }
        Ok(answers)
    }

    async fn release(&self, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
        let lease = self.guarded(lease)?;
        let bend = |known: &mut Jobs| match known.get_mut(&lease.job) {
            Some((job, _)) if self.is(Fault::ReleaseBurnsAnAttempt) => job.attempts += 1,
            Some((job, _)) if self.is(Fault::ReleaseIsUnbounded) => job.spec.max_releases = u32::MAX,
            _ => {}
        };
        let fate = self.step(bend, async |queue| queue.release(&lease, reason, delay).await)?;
        if self.is(Fault::ReturnedJobsLoseTheirTurn) {
            let mut state = self.locked();
            let last = state.jobs.values().map(|(job, _)| job.turn).max().unwrap_or_default();
            if let Some((job, _)) = state.jobs.get_mut(&lease.job) {
                job.turn = last + 1;
            }
        }
        Ok(fate)
    }

    async fn cancel(&self, job: JobId) -> Result<Job, Error> {
        let bend = |known: &mut Jobs| match known.get_mut(&job) {
            Some((job, _)) if self.is(Fault::CancelEndsRunningJobs) && job.status == JobStatus::Running => {
                (job.status, job.running) = (JobStatus::Queued, None);
            }
            _ => {}
        };
        self.step(bend, async |queue| queue.cancel(job).await)
    }

    async fn rescue(&self, request: &RescueRequest) -> Result<Vec<Rescued>, Error> {
        if self.is(Fault::RescueTrustsWhatItRead) {
            return self.racy_step(async |queue| queue.rescue(request).await).await;
        }
        if self.is(Fault::EndsInTwoSteps) {
            return self.two_steps(async |queue| queue.rescue(request).await).await;
        }
        let mut request = request.clone();
        if self.is(Fault::RescueNeverBacksOff) {
            request.backoff = Duration::ZERO;
        }
        let now = self.clock.now();
        let bend = |known: &mut Jobs| {
            let mut left = if self.is(Fault::RescueLooksAtTheFirst) { request.limit } else { usize::MAX };
            known.retain(|_, (job, _)| {
                let is_seen = job.running.is_none() || left > 0;
                left -= usize::from(job.running.is_some() && left > 0);
                is_seen
            });
            for (job, _) in known.values_mut() {
                match (self.fault, &mut job.running) {
                    (Fault::RescueSparesWhatHeartbeats, Some(running))
                        if elapsed(running.last_heartbeat, now) < request.lost_after =>
                    {
                        running.deadline = Timestamp::MAX;
                    }
                    (Fault::AttemptsAreUnbounded, Some(_)) => job.attempts = job.attempts.min(1),
                    _ => {}
                }
            }
        };
        let rescued = self.step(bend, async |queue| queue.rescue(&request).await)?;
        if self.is(Fault::ReaperKeepsTheEpoch) {
            let mut state = self.locked();
            for Rescued { lease, .. } in &rescued {
                if let Some((job, _)) = state.jobs.get_mut(&lease.job) {
                    job.epoch = Epoch::new(lease.epoch.get() - 1);
                }
            }
        }
        Ok(rescued)
    }

    async fn get(&self, job: JobId) -> Result<Option<Job>, Error> {
        self.step(|_| (), async |queue| queue.get(job).await)
    }

    async fn list(&self, filter: &JobFilter, after: Option<JobCursor>, limit: u32) -> Result<JobPage, Error> {
        let nil = JobId::from(Uuid::nil());
        let after = after
            .map(|cursor| if self.is(Fault::CursorIsAnInstant) { JobCursor { job: nil, ..cursor } } else { cursor });
        self.step(|_| (), async |queue| queue.list(filter, after, limit).await)
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        self.step(|_| (), async |queue| queue.stats().await)
    }

    async fn attempts(&self, job: JobId) -> Result<Vec<Attempt>, Error> {
        self.step(|_| (), async |queue| queue.attempts(job).await)
    }

    async fn prune(&self, age: Duration, limit: usize) -> Result<usize, Error> {
        self.step(|_| (), async |queue| queue.prune(age, limit).await)
    }

    async fn set_claiming(&self, claiming: Claiming) -> Result<(), Error> {
        let claiming = if self.is(Fault::PauseIsForgotten) { Claiming::Open } else { claiming };
        self.step(|_| (), async |queue| queue.set_claiming(claiming).await)
    }

    async fn set_concurrency_limit(&self, key: &ConcurrencyKey, limit: NonZeroU32) -> Result<(), Error> {
        self.step(|_| (), async |queue| queue.set_concurrency_limit(key, limit).await)
    }

    async fn set_order(&self, order: Order) -> Result<(), Error> {
        self.step(|_| (), async |queue| queue.set_order(order).await)?;
        if self.is(Fault::OrderIsForAllThatWaits) {
            self.locked().turns.first = 0;
        }
        Ok(())
    }
}
