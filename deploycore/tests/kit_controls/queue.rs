//! A queue over snapshots of the memory queue, with one fault.
//!
//! Each call takes a snapshot, lets a memory queue go on from it, and writes the changed jobs back. Without a fault that is one step under
//! a lock. A fault bends the snapshot, the request or what is written back, or lets other calls in between.

mod misplaced;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::conformance::queue::cases;
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

use crate::failures;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    EnqueueOverwrites,
    EnqueueIsNoTransaction,
    EnqueueRaces,
    DedupSeesOnlyQueuedJobs,
    ClaimTrustsWhatItRead,
    ClaimCountsBeforeItTakes,
    ClaimIsNotIdempotent,
    ClaimForgetsEndedJobs,
    ClaimIgnoresPriority,
    ClaimIgnoresTurns,
    NewJobsGoBehindAll,
    IdleServicesSaveUp,
    LinesAdvanceAsOne,
    NextJobsDoNotWait,
    PrioritiesShareTurns,
    DelayedJobsStandInLine,
    ReplacementsGoToTheEnd,
    VainEnqueuesTakeTurns,
    ReturnedJobsLoseTheirTurn,
    OrderIsForAllThatWaits,
    FairShareByDefault,
    PauseIsForgotten,
    NoEpochGuard,
    NoClaimGuard,
    StateOnlyGuard,
    RepeatIsRefused,
    ReaperKeepsTheEpoch,
    RescueTrustsWhatItRead,
    RescueSparesWhatHeartbeats,
    RescueNeverBacksOff,
    RescueLooksAtTheFirst,
    HeartbeatMovesTheDeadline,
    ReleaseBurnsAnAttempt,
    ReleaseIsUnbounded,
    AttemptsAreUnbounded,
    BatchEndsWithTheFirstRefusal,
    BatchAnswersInOrderOfJobs,
    BatchRepeatIsRefused,
    CancelEndsRunningJobs,
    NewerCancelsRunningJobs,
    RepeatCancelsWhatCameAfter,
    CursorIsAnInstant,
}

/// Each fault with the cases that must catch it.
const CONTROLS: &[(Fault, &[&str])] = &[
    (
        Fault::EnqueueOverwrites,
        &["enqueue::repeating_adds_nothing_at_any_stage", "enqueue::concurrent_repeats_create_a_job_once"],
    ),
    (Fault::EnqueueIsNoTransaction, &["enqueue::a_conflict_refuses_the_whole_batch"]),
    (Fault::EnqueueRaces, &["enqueue::concurrent_jobs_with_one_dedup_key_add_one"]),
    (Fault::DedupSeesOnlyQueuedJobs, &["enqueue::a_dedup_key_is_unique_among_unfinished_jobs"]),
    (
        Fault::ClaimTrustsWhatItRead,
        &["concurrency::claims_at_once_share_no_job", "concurrency::a_busy_queue_keeps_its_invariants"],
    ),
    (Fault::ClaimCountsBeforeItTakes, &["concurrency::claims_at_once_pass_no_limit"]),
    (Fault::ClaimIsNotIdempotent, &["claim::repeating_gives_the_same_jobs", "claim::repeating_gives_no_further_jobs"]),
    (Fault::ClaimForgetsEndedJobs, &["claim::repeating_gives_only_jobs_whose_lease_holds"]),
    (Fault::ClaimIgnoresPriority, &["claim::jobs_come_in_order"]),
    (
        Fault::ClaimIgnoresTurns,
        &[
            "order::a_burst_of_one_service_holds_up_no_other",
            "order::services_that_wait_take_turns",
            "order::the_first_of_a_service_waits_for_two_of_each_other",
            "order::jobs_with_a_key_take_turns",
        ],
    ),
    (Fault::NewJobsGoBehindAll, &["order::a_burst_of_one_service_holds_up_no_other"]),
    (
        Fault::IdleServicesSaveUp,
        &[
            "order::an_idle_service_saves_nothing_up",
            "order::one_job_at_a_time_is_in_order_of_age",
            "order::the_first_of_a_service_waits_for_two_of_each_other",
        ],
    ),
    (
        Fault::LinesAdvanceAsOne,
        &["order::services_that_wait_take_turns", "order::a_service_keeps_the_order_of_its_jobs"],
    ),
    (Fault::NextJobsDoNotWait, &["order::a_job_after_another_waits_its_turn"]),
    (Fault::PrioritiesShareTurns, &["order::each_priority_has_turns_of_its_own"]),
    (Fault::DelayedJobsStandInLine, &["order::an_earliest_start_that_passes_takes_a_turn"]),
    (Fault::ReplacementsGoToTheEnd, &["order::a_job_in_the_place_of_others_has_their_turn"]),
    (Fault::VainEnqueuesTakeTurns, &["order::what_is_not_added_takes_no_turn"]),
    (Fault::ReturnedJobsLoseTheirTurn, &["order::a_job_that_comes_back_keeps_its_turn"]),
    (Fault::OrderIsForAllThatWaits, &["order::another_order_is_for_what_comes_after"]),
    (Fault::FairShareByDefault, &["order::the_oldest_job_goes_first_by_default"]),
    (Fault::PauseIsForgotten, &["claim::a_pause_stops_claims_and_nothing_else"]),
    (
        Fault::NoEpochGuard,
        &["complete::a_forged_lease_is_refused", "heartbeat::a_lease_that_is_not_the_current_one_is_lost"],
    ),
    (
        Fault::NoClaimGuard,
        &["complete::a_forged_lease_is_refused", "heartbeat::a_lease_that_is_not_the_current_one_is_lost"],
    ),
    (
        Fault::StateOnlyGuard,
        &[
            "complete::a_rescued_lease_is_void",
            "complete::a_late_repeat_leaves_the_next_run_alone",
            "concurrency::a_busy_queue_keeps_its_invariants",
        ],
    ),
    (Fault::RepeatIsRefused, &["complete::repeating_changes_nothing", "release::repeating_changes_nothing"]),
    (
        Fault::ReaperKeepsTheEpoch,
        &["claim::the_epoch_grows_with_each_claim", "rescue::the_first_rescue_queues_the_job_at_once"],
    ),
    (
        Fault::RescueTrustsWhatItRead,
        &["rescue::concurrent_reapers_rescue_each_lease_once", "rescue::a_completion_and_a_rescue_do_not_both_win"],
    ),
    (Fault::RescueSparesWhatHeartbeats, &["rescue::a_passed_deadline_fails_the_job_although_it_heartbeats"]),
    (Fault::RescueNeverBacksOff, &["rescue::later_rescues_back_off"]),
    (Fault::RescueLooksAtTheFirst, &["rescue::a_small_rescue_finds_the_one_among_many_that_live"]),
    (Fault::HeartbeatMovesTheDeadline, &["heartbeat::a_heartbeat_moves_no_deadline"]),
    (Fault::ReleaseBurnsAnAttempt, &["release::a_released_job_burns_no_attempt"]),
    (Fault::ReleaseIsUnbounded, &["release::releases_are_bounded"]),
    (
        Fault::AttemptsAreUnbounded,
        &["rescue::a_lost_last_attempt_fails_the_job", "complete::the_last_attempt_ends_the_job"],
    ),
    (Fault::BatchEndsWithTheFirstRefusal, &["complete_batch::a_refused_end_leaves_the_others_alone"]),
    (Fault::BatchAnswersInOrderOfJobs, &["complete_batch::each_attempt_ends_by_its_own_word"]),
    (
        Fault::BatchRepeatIsRefused,
        &["complete_batch::repeating_changes_nothing", "complete_batch::a_lease_twice_in_a_batch_ends_once"],
    ),
    (Fault::CancelEndsRunningJobs, &["cancel::a_running_job_is_only_marked"]),
    (Fault::NewerCancelsRunningJobs, &["supersede::what_runs_is_left_alone_until_it_is_queued_again"]),
    (Fault::RepeatCancelsWhatCameAfter, &["supersede::a_repeated_or_deduplicated_job_cancels_nothing"]),
    (Fault::CursorIsAnInstant, &["list::pages_show_each_job_once_newest_first"]),
];

#[tokio::test(start_paused = true)]
async fn without_a_fault_every_case_passes() {
    let failed = failures(&cases(), |_| true, || Broken::make(Fault::None)).await;
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn each_fault_fails_the_cases_that_are_about_it() {
    for (fault, wanted) in CONTROLS {
        let failed = failures(&cases(), |name| wanted.contains(&name), || Broken::make(*fault)).await;
        assert_eq!(failed.len(), wanted.len(), "{fault:?}: of {wanted:?} only {failed:?} fail");
    }
}

/// A fault is one fault: most of the contract still holds.
#[tokio::test(start_paused = true)]
async fn each_fault_passes_what_is_about_something_else() {
    let elsewhere = [
        "enqueue::a_new_job_is_queued_as_it_was_asked_for",
        "complete::a_success_is_kept",
        "upkeep::each_status_is_counted",
    ];
    for (fault, _) in CONTROLS {
        let failed = failures(&cases(), |name| elsewhere.contains(&name), || Broken::make(*fault)).await;
        assert!(failed.is_empty(), "{fault:?}: {failed:?}");
    }
}

#[derive(Debug)]
struct Broken {
    fault: Fault,
    clock: Clock,
    state: Mutex<QueueSnapshot>,
}

type Jobs = BTreeMap<JobId, (Job, Vec<Attempt>)>;

impl Broken {
    fn make(fault: Fault) -> Arc<dyn JobQueue> {
        let clock = Clock::default();
        let mut state = Queue::new(clock.clone()).snapshot();
        if fault == Fault::FairShareByDefault {
            state.turns = state.turns.under(Order::FairShare);
        }
        Arc::new(Self { fault, clock, state: Mutex::new(state) })
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn locked(&self) -> MutexGuard<'_, QueueSnapshot> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        answer
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

fn cancels_older(job: &NewJob) -> bool {
    job.older_jobs == OlderJobs::CancelQueued
}

#[async_trait]
impl JobQueue for Broken {
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        match self.fault {
            Fault::EnqueueRaces => self.racy_step(async |queue| queue.enqueue(jobs).await).await,
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
        if self.is(Fault::ClaimTrustsWhatItRead) {
            return self.racy_step(async |queue| queue.claim(request).await).await;
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

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<Job, Error> {
        let lease = self.guarded(lease)?;
        let bend = |known: &mut Jobs| match known.get_mut(&lease.job) {
            Some((job, _)) if self.is(Fault::AttemptsAreUnbounded) => job.attempts = job.attempts.min(1),
            _ => {}
        };
        self.step(bend, async |queue| queue.complete(&lease, completion).await)
    }

    async fn complete_batch(&self, ends: &[AttemptEnd]) -> Result<Vec<Result<Job, Error>>, Error> {
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
