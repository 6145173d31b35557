//! The queue in memory.

mod turns;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::Clock;
use crate::model::{
    Attempt, AttemptOutcome, ClaimId, Completion, ConcurrencyKey, DedupKey, Epoch, Failure, Job, JobId, JobStatus,
    Lease, NewJob, OlderJobs, Timestamp, elapsed,
};
use crate::port::queue::transition::{self, Standing};
use crate::port::queue::turn::Turns;
use crate::port::queue::{
    Beat, ClaimRequest, Claiming, Enqueued, Error, Fate, JobCursor, JobFilter, JobPage, Order, QueueStats,
    RescueRequest, Rescued, bounds,
};
use crate::port::{BackendError, JobQueue};

/// The reference [`JobQueue`]: one lock, no index, every call a walk over the jobs. It forgets everything when it is dropped.
///
/// It is deterministic: what it answers depends on the calls, their order and the clock. A call never suspends.
#[derive(Debug)]
pub struct Queue {
    clock: Clock,
    capacity: usize,
    state: Mutex<State>,
}

/// All that a [`Queue`] knows, at one instant.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueSnapshot {
    /// The clock.
    pub now: Timestamp,
    /// Each job with its attempts, oldest first, by id.
    pub jobs: BTreeMap<JobId, (Job, Vec<Attempt>)>,
    /// Whether jobs are handed out.
    pub claiming: Claiming,
    /// The limits that were set.
    pub concurrency_limits: BTreeMap<ConcurrencyKey, NonZeroU32>,
    /// Which job goes first.
    pub turns: Turns,
}

#[derive(Debug)]
struct State {
    jobs: BTreeMap<JobId, Entry>,
    /// The jobs of each claim that got any, until the last of them is pruned.
    claims: HashMap<ClaimId, Vec<JobId>>,
    claiming: Claiming,
    limits: BTreeMap<ConcurrencyKey, NonZeroU32>,
    turns: Turns,
}

/// What a call of enqueue does, before it is done as a whole.
#[derive(Debug, Default)]
struct Staged {
    added: Vec<Job>,
    superseded: BTreeMap<JobId, Job>,
}

#[derive(Debug, Clone)]
struct Entry {
    job: Job,
    attempts: Vec<Attempt>,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new(Clock::default())
    }
}

impl Queue {
    /// How many jobs a queue holds by default, finished ones included.
    pub const DEFAULT_CAPACITY: usize = 1_000_000;

    /// An empty queue, open for claims.
    pub fn new(clock: Clock) -> Self {
        let state = State {
            jobs: BTreeMap::new(),
            claims: HashMap::new(),
            claiming: Claiming::Open,
            limits: BTreeMap::new(),
            turns: Turns::default(),
        };
        Self { clock, capacity: Self::DEFAULT_CAPACITY, state: Mutex::new(state) }
    }

    /// A queue that goes on from a snapshot, by a clock that should not show an earlier instant.
    pub fn from_snapshot(clock: Clock, snapshot: QueueSnapshot) -> Self {
        let mut claims: HashMap<_, Vec<_>> = HashMap::new();
        for attempt in snapshot.jobs.values().flat_map(|(_, attempts)| attempts) {
            claims.entry(attempt.lease.claim).or_default().push(attempt.lease.job);
        }
        let entries = snapshot.jobs.into_iter().map(|(id, (job, attempts))| (id, Entry { job, attempts }));
        let state = State {
            jobs: entries.collect(),
            claims,
            claiming: snapshot.claiming,
            limits: snapshot.concurrency_limits,
            turns: snapshot.turns,
        };
        Self { clock, capacity: Self::DEFAULT_CAPACITY, state: Mutex::new(state) }
    }

    /// Sets how many jobs it holds; a further enqueue fails, and may be tried again after a prune.
    #[must_use]
    pub fn with_capacity(mut self, jobs: usize) -> Self {
        self.capacity = jobs;
        self
    }

    /// Everything, for a simulation that checks invariants.
    pub fn snapshot(&self) -> QueueSnapshot {
        let (state, now) = self.locked();
        let jobs = state.jobs.iter().map(|(id, entry)| (*id, (entry.job.clone(), entry.attempts.clone())));
        QueueSnapshot {
            now,
            jobs: jobs.collect(),
            claiming: state.claiming,
            concurrency_limits: state.limits.clone(),
            turns: state.turns,
        }
    }

    /// The state and the instant of the call. No call panics while it holds the lock, so a poisoned one is sound.
    fn locked(&self) -> (MutexGuard<'_, State>, Timestamp) {
        (self.state.lock().unwrap_or_else(PoisonError::into_inner), self.clock.now())
    }
}

#[async_trait]
impl JobQueue for Queue {
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        bounds::check_enqueue(jobs)?;
        let (mut state, now) = self.locked();
        let mut staged = Staged::default();
        let answers = jobs.iter().map(|spec| {
            let answer = state.answer_enqueue(spec, &staged)?;
            if matches!(answer, Enqueued::Created { .. }) {
                state.stage(spec, &mut staged, now);
            }
            Ok(answer)
        });
        let answers = answers.collect::<Result<Vec<_>, Error>>()?;
        if state.jobs.len() + staged.added.len() > self.capacity {
            let full = format!("it holds {} jobs and takes no more than {}", state.jobs.len(), self.capacity);
            return Err(BackendError::retryable("memory", full).into());
        }
        for job in staged.superseded.into_values() {
            if let Some(entry) = state.jobs.get_mut(&job.spec.id) {
                entry.job = job;
            }
        }
        for job in staged.added {
            state.jobs.insert(job.spec.id, Entry { job, attempts: Vec::new() });
        }
        Ok(answers)
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error> {
        bounds::check_claim(request)?;
        let (mut state, now) = self.locked();
        if let Some(jobs) = state.claims.get(&request.claim) {
            let claimed = jobs.iter().map(|id| &state.jobs[id].job);
            return Ok(claimed.filter(|job| is_held_by(job, request.claim)).cloned().collect());
        }
        let picked = state.pick(request.limit, now);
        if !picked.is_empty() {
            state.claims.insert(request.claim, picked.clone());
        }
        let claimed = picked.iter().filter_map(|id| {
            let entry = state.jobs.get_mut(id)?;
            entry.attempts.push(transition::claim(&mut entry.job, request, now));
            Some(entry.job.clone())
        });
        Ok(claimed.collect())
    }

    async fn heartbeat(&self, leases: &[Lease]) -> Result<Vec<Beat>, Error> {
        bounds::check_batch("leases", leases.len())?;
        let (mut state, now) = self.locked();
        let beats = leases.iter().map(|lease| match state.jobs.get_mut(&lease.job) {
            Some(entry) => transition::heartbeat(&mut entry.job, lease, now),
            None => Beat::Lost,
        });
        Ok(beats.collect())
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
        let completion = bounds::cut_completion(completion);
        let outcome = AttemptOutcome::Completed { completion: completion.clone() };
        let (mut state, now) = self.locked();
        let entry = state.entry(lease.job)?;
        if entry.standing(lease, &outcome)? == Standing::Current {
            transition::complete(&mut entry.job, &completion, now)?;
            entry.end_attempt(lease, outcome, now);
        }
        Ok(entry.job.status)
    }

    async fn release(&self, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
        let reason = Failure::cut(reason);
        let outcome = AttemptOutcome::Released { reason: reason.to_owned() };
        let (mut state, now) = self.locked();
        let entry = state.entry(lease.job)?;
        if entry.standing(lease, &outcome)? == Standing::Repeated {
            return Ok(transition::released(&entry.job, lease.epoch));
        }
        let fate = transition::release(&mut entry.job, reason, delay, now);
        entry.end_attempt(lease, outcome, now);
        Ok(fate)
    }

    async fn cancel(&self, job: JobId) -> Result<Job, Error> {
        let (mut state, now) = self.locked();
        let entry = state.entry(job)?;
        transition::cancel(&mut entry.job, now);
        Ok(entry.job.clone())
    }

    async fn rescue(&self, request: &RescueRequest) -> Result<Vec<Rescued>, Error> {
        bounds::check_rescue(request)?;
        let (mut state, now) = self.locked();
        let rescued = state.jobs.values_mut().filter_map(|entry| {
            let (rescued, outcome) = transition::rescue(&mut entry.job, request, now)?;
            entry.end_attempt(&rescued.lease, outcome, now);
            Some(rescued)
        });
        Ok(rescued.take(request.limit).collect())
    }

    async fn get(&self, job: JobId) -> Result<Option<Job>, Error> {
        let (state, _) = self.locked();
        Ok(state.jobs.get(&job).map(|entry| entry.job.clone()))
    }

    async fn list(&self, filter: &JobFilter, after: Option<JobCursor>, limit: u32) -> Result<JobPage, Error> {
        bounds::check_page(limit)?;
        let (state, _) = self.locked();
        let place = |job: &Job| (job.created_at, job.spec.id);
        let is_past = |job: &Job| after.is_none_or(|cursor| place(job) < (cursor.created_at, cursor.job));
        let mut jobs: Vec<_> =
            state.jobs.values().map(|entry| &entry.job).filter(|job| is_past(job) && passes(job, filter)).collect();
        jobs.sort_by_key(|job| Reverse(place(job)));
        let more = jobs.len() > limit as usize;
        jobs.truncate(limit as usize);
        let last = jobs.last().filter(|_| more);
        let next = last.map(|job| JobCursor { created_at: job.created_at, job: job.spec.id });
        Ok(JobPage { jobs: jobs.into_iter().cloned().collect(), next })
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        let (state, now) = self.locked();
        let mut counts: BTreeMap<_, _> = JobStatus::ALL.map(|status| (status, 0)).into();
        for entry in state.jobs.values() {
            *counts.entry(entry.job.status).or_default() += 1;
        }
        let oldest =
            state.jobs.values().filter(|entry| entry.is_eligible(now)).map(|entry| entry.job.eligible_at).min();
        Ok(QueueStats {
            counts,
            oldest_queued_seconds: oldest.map(|since| elapsed(since, now).as_secs_f64()),
            paused: state.claiming == Claiming::Paused,
            order: state.turns.order,
        })
    }

    async fn attempts(&self, job: JobId) -> Result<Vec<Attempt>, Error> {
        let (state, _) = self.locked();
        Ok(state.jobs.get(&job).map(|entry| entry.attempts.clone()).unwrap_or_default())
    }

    async fn prune(&self, age: Duration, limit: usize) -> Result<usize, Error> {
        bounds::check_prune(limit)?;
        let (mut state, now) = self.locked();
        let finished = state.jobs.iter().filter_map(|(id, entry)| Some((entry.job.finished_at?, *id)));
        let mut old: Vec<_> = finished.filter(|(finished_at, _)| elapsed(*finished_at, now) >= age).collect();
        old.sort_unstable();
        old.truncate(limit);
        for (_, id) in &old {
            state.remove(*id);
        }
        Ok(old.len())
    }

    async fn set_claiming(&self, claiming: Claiming) -> Result<(), Error> {
        self.locked().0.claiming = claiming;
        Ok(())
    }

    async fn set_concurrency_limit(&self, key: &ConcurrencyKey, limit: NonZeroU32) -> Result<(), Error> {
        self.locked().0.limits.insert(key.clone(), limit);
        Ok(())
    }

    async fn set_order(&self, order: Order) -> Result<(), Error> {
        let mut state = self.locked().0;
        state.turns = state.turns.under(order);
        Ok(())
    }
}

impl State {
    /// What an enqueue does with a job, given what the same call does before it.
    fn answer_enqueue(&self, spec: &NewJob, staged: &Staged) -> Result<Enqueued, Error> {
        let id = spec.id;
        let is_staged = || staged.added.iter().find(|job| job.spec.id == id);
        let same_id = self.jobs.get(&id).map(|entry| &entry.job).or_else(is_staged);
        if let Some(job) = same_id {
            return if job.spec == *spec {
                Ok(Enqueued::Repeated { job: id })
            } else {
                Err(Error::Conflict { job: id })
            };
        }
        let has_key = |key: &DedupKey| {
            self.known(staged).find(|job| !job.status.is_finished() && job.spec.dedup_key.as_ref() == Some(key))
        };
        Ok(match spec.dedup_key.as_ref().and_then(has_key) {
            Some(job) => Enqueued::Deduplicated { existing: job.spec.id },
            None => Enqueued::Created { job: id },
        })
    }

    /// The jobs as they are after what a call has done so far.
    fn known<'s>(&'s self, staged: &'s Staged) -> impl Iterator<Item = &'s Job> {
        let kept = self.jobs.values().map(|entry| staged.superseded.get(&entry.job.spec.id).unwrap_or(&entry.job));
        kept.chain(&staged.added)
    }

    /// Adds a new job to what a call does, with the ends of those whose place it takes.
    fn stage(&self, spec: &NewJob, staged: &mut Staged, now: Timestamp) {
        let turn = self.turn_of_new(spec, staged, now);
        if spec.older_jobs == OlderJobs::CancelQueued {
            let of_service = |job: &Job| job.spec.service == spec.service;
            for job in staged.added.iter_mut().filter(|job| of_service(job)) {
                transition::supersede(job, spec.id, now);
            }
            for job in self.jobs.values().map(|entry| &entry.job).filter(|job| of_service(job)) {
                let mut job = job.clone();
                if !staged.superseded.contains_key(&job.spec.id) && transition::supersede(&mut job, spec.id, now) {
                    staged.superseded.insert(job.spec.id, job);
                }
            }
        }
        staged.added.push(transition::enqueue(spec, turn, now));
    }

    /// The next jobs in order, each within the limit of its concurrency key.
    fn pick(&mut self, limit: usize, now: Timestamp) -> Vec<JobId> {
        if self.claiming == Claiming::Paused {
            return Vec::new();
        }
        self.join_lines(now);
        let mut eligible: Vec<_> =
            self.jobs.values().filter(|entry| entry.is_eligible(now)).map(|entry| &entry.job).collect();
        eligible.sort_by_key(|job| turns::place(job));
        let mut running = self.running_by_key();
        let mut has_room = |job: &Job| {
            let Some(key) = &job.spec.concurrency_key else { return true };
            let count = running.entry(key.clone()).or_default();
            let room = *count < self.limits.get(key).map_or(1, |limit| limit.get());
            *count += u32::from(room);
            room
        };
        eligible.into_iter().filter(|job| has_room(job)).take(limit).map(|job| job.spec.id).collect()
    }

    fn running_by_key(&self) -> BTreeMap<ConcurrencyKey, u32> {
        let mut running = BTreeMap::new();
        let jobs = self.jobs.values().map(|entry| &entry.job).filter(|job| job.status == JobStatus::Running);
        for key in jobs.filter_map(|job| job.spec.concurrency_key.clone()) {
            *running.entry(key).or_default() += 1;
        }
        running
    }

    fn entry(&mut self, job: JobId) -> Result<&mut Entry, Error> {
        self.jobs.get_mut(&job).ok_or(Error::NotFound { job })
    }

    /// Forgets a job, and each claim that has no other.
    fn remove(&mut self, id: JobId) {
        let Some(entry) = self.jobs.remove(&id) else { return };
        for claim in entry.attempts.iter().map(|attempt| attempt.lease.claim) {
            if let Some(jobs) = self.claims.get_mut(&claim) {
                jobs.retain(|job| *job != id);
                if jobs.is_empty() {
                    self.claims.remove(&claim);
                }
            }
        }
    }
}

impl Entry {
    fn is_eligible(&self, now: Timestamp) -> bool {
        self.job.status == JobStatus::Queued && self.job.eligible_at <= now
    }

    fn standing(&self, lease: &Lease, outcome: &AttemptOutcome) -> Result<Standing, Error> {
        transition::standing(&self.job, self.attempt(lease.epoch), lease, outcome)
    }

    fn attempt(&self, epoch: Epoch) -> Option<&Attempt> {
        self.attempts.iter().find(|attempt| attempt.lease.epoch == epoch)
    }

    fn end_attempt(&mut self, lease: &Lease, outcome: AttemptOutcome, now: Timestamp) {
        if let Some(attempt) = self.attempts.iter_mut().find(|attempt| attempt.lease == *lease) {
            attempt.ended_at = Some(now);
            attempt.outcome = Some(outcome);
        }
    }
}

fn is_held_by(job: &Job, claim: ClaimId) -> bool {
    job.running.as_ref().is_some_and(|running| running.lease.claim == claim)
}

fn passes(job: &Job, filter: &JobFilter) -> bool {
    (filter.statuses.is_empty() || filter.statuses.contains(&job.status))
        && filter.service.as_ref().is_none_or(|service| job.spec.service == *service)
        && filter.commit.as_ref().is_none_or(|commit| job.spec.commit == *commit)
        && filter.finished_since.is_none_or(|since| job.finished_at.is_some_and(|at| at >= since))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> NewJob {
        NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_says_so_and_adds_nothing() {
        let queue = Queue::default().with_capacity(2);
        let kept = job();
        queue.enqueue(std::slice::from_ref(&kept)).await.unwrap();
        let error = queue.enqueue(&[job(), job()]).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert_eq!(queue.snapshot().jobs.keys().copied().collect::<Vec<_>>(), [kept.id]);
        queue.enqueue(&[kept, job()]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_pruned_job_takes_its_claims_along() {
        let queue = Queue::default();
        queue.enqueue(&[job(), job()]).await.unwrap();
        let request = ClaimRequest { claim: ClaimId::new(), worker: "w".parse().unwrap(), limit: 2 };
        for claimed in queue.claim(&request).await.unwrap() {
            let failure = Failure::new(crate::model::FailureKind::Build, "no");
            let lease = claimed.running.unwrap().lease;
            queue.complete(&lease, &Completion::Failed { failure }).await.unwrap();
        }
        assert_eq!(queue.prune(Duration::ZERO, 1).await.unwrap(), 1);
        assert_eq!(queue.locked().0.claims.len(), 1);
        assert_eq!(queue.prune(Duration::ZERO, 1).await.unwrap(), 1);
        assert!(queue.locked().0.claims.is_empty());
    }
}
