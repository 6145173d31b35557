//! A random run against the backend and, step by step, against the reference in memory.
//!
//! The two have clocks of their own, so every time is either far away or due, and instants are blanked before answers are compared.

use std::time::Duration;

use fastrand::Rng;
use uuid::Uuid;

use super::steps::*;
use crate::memory;
use crate::model::{
    Attempt, ClaimId, Completion, FailureKind, Job, JobId, JobStatus, Lease, NewJob, OlderJobs, Retry, Timestamp,
};
use crate::port::JobQueue;
use crate::port::queue::{
    AttemptEnd, Beat, Claiming, Error, Fate, JobFilter, MAX_BATCH, MAX_PAGE, Order, QueueStats, RescueRequest,
};

const SEEDS: [u64; 3] = [11, 12, 13];
const STEPS: usize = 250;

#[derive(Debug)]
enum Step {
    Enqueue(Vec<NewJob>),
    Claim(ClaimId, usize),
    Heartbeat(Vec<Lease>),
    Complete(Lease, Completion),
    CompleteBatch(Vec<AttemptEnd>),
    Release(Lease, &'static str, Duration),
    Cancel(JobId),
    Rescue(RescueRequest),
    Prune(Duration),
    SetClaiming(Claiming),
    SetLimit(&'static str, u32),
    SetOrder(Order),
    List(JobFilter),
    Stats,
}

/// What a run has at hand for its next step.
struct Run {
    random: Rng,
    /// Ids rise from one enqueue to the next, so that the order of jobs does not hang on the grain of a clock.
    next_id: u128,
    specs: Vec<NewJob>,
    leases: Vec<Lease>,
    claims: Vec<ClaimId>,
}

/// Each answer, and each job that a step touched, is as in the reference.
pub async fn a_random_run_is_as_in_the_reference(queue: Subject) {
    let reference = memory::Queue::default();
    for seed in SEEDS {
        let next_id = JobId::new().as_uuid().as_u128() & !0xffff_ffff;
        let mut run = Run { random: Rng::with_seed(seed), next_id, specs: vec![], leases: vec![], claims: vec![] };
        for index in 0..STEPS {
            let step = run.next_step();
            let context = || format!("seed {seed}, step {index}: {step:?}");
            let wanted = take(&reference, &step).await;
            assert_eq!(take(queue.as_ref(), &step).await, wanted, "{}", context());
            let claimed = run.note(&step, &reference);
            for job in claimed.iter().chain(touched(&step).iter()) {
                assert_eq!(look(queue.as_ref(), *job).await, look(&reference, *job).await, "{}", context());
            }
        }
        for step in [Step::List(JobFilter::default()), Step::Stats] {
            assert_eq!(take(queue.as_ref(), &step).await, take(&reference, &step).await, "seed {seed}, at the end");
        }
        for spec in &run.specs {
            assert_eq!(look(queue.as_ref(), spec.id).await, look(&reference, spec.id).await, "seed {seed}, at the end");
        }
    }
}

impl Run {
    fn next_step(&mut self) -> Step {
        match self.random.u8(..100) {
            0..15 => Step::Enqueue(self.batch()),
            15..38 => Step::Claim(self.claim_id(), self.random.usize(1..5)),
            38..43 => Step::Heartbeat((0..self.random.usize(..4)).map(|_| self.lease()).collect()),
            43..58 => Step::Complete(self.lease(), self.completion()),
            58..65 => Step::CompleteBatch((0..self.random.usize(..6)).map(|_| self.end()).collect()),
            65..73 => Step::Release(self.lease(), self.pick(&["drain", "full"]), self.delay()),
            73..78 => Step::Cancel(self.job()),
            78..85 => Step::Rescue(self.rescue()),
            85..87 => Step::Prune(self.delay()),
            87..90 => Step::SetClaiming(self.pick(&[Claiming::Open, Claiming::Open, Claiming::Paused])),
            90..92 => Step::SetLimit(self.pick(&["a", "b"]), self.random.u32(1..4)),
            92..94 => Step::SetOrder(self.pick(&[Order::Oldest, Order::FairShare, Order::FairShare])),
            94..97 => Step::List(self.filter()),
            _ => Step::Stats,
        }
    }

    /// Remembers what the step brought; the jobs that it claimed.
    fn note(&mut self, step: &Step, reference: &memory::Queue) -> Vec<JobId> {
        match step {
            Step::Enqueue(specs) => self.specs.extend(specs.iter().cloned()),
            Step::Claim(id, _) => {
                self.claims.push(*id);
                let snapshot = reference.snapshot();
                let running = snapshot.jobs.values().filter_map(|(job, _)| job.running.as_ref());
                let new: Vec<_> = running.map(|running| running.lease).filter(|lease| lease.claim == *id).collect();
                self.leases.extend(&new);
                return new.iter().map(|lease| lease.job).collect();
            }
            _ => {}
        }
        Vec::new()
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.random.usize(..choices.len())].clone()
    }

    fn batch(&mut self) -> Vec<NewJob> {
        let mut batch: Vec<_> = (0..self.random.usize(1..5)).map(|_| self.new_job()).collect();
        if self.random.u8(..4) == 0 && !self.specs.is_empty() {
            let old = self.pick(&self.specs.clone());
            batch.push(if self.random.u8(..4) == 0 { old.with_priority(99) } else { old });
        }
        self.random.shuffle(&mut batch);
        // By itself: of jobs that are added one after the other the database's clock shows which came first.
        if let [only] = &mut batch[..]
            && self.random.u8(..3) == 0
        {
            only.older_jobs = OlderJobs::CancelQueued;
        }
        batch
    }

    fn new_job(&mut self) -> NewJob {
        self.next_id += 1;
        let mut spec = job()
            .with_id(Uuid::from_u128(self.next_id).into())
            .with_priority(self.random.i16(0..3))
            .with_max_attempts(attempts(self.random.u32(1..4)))
            .with_max_releases(self.random.u32(0..3));
        spec.service = self.pick(&["web", "api"]).parse().expect("a name");
        spec.concurrency_key = self.pick(&[None, Some("a"), Some("b")]).map(key);
        spec.dedup_key = self.pick(&[None, None, Some("x"), Some("y")]).map(dedup);
        spec.not_before = self
            .pick(&[None, None, None, Some("2001-01-01T00:00:00Z"), Some("2200-01-01T00:00:00Z")])
            .map(|instant| instant.parse().expect("an instant"));
        spec
    }

    fn claim_id(&mut self) -> ClaimId {
        let id = ClaimId::from(Uuid::from_u128(self.random.u128(..)));
        if self.random.u8(..4) == 0 && !self.claims.is_empty() { self.pick(&self.claims.clone()) } else { id }
    }

    /// One of the leases there ever were, mostly a recent one, now and then a forged one.
    fn lease(&mut self) -> Lease {
        let recent = self.leases.len().saturating_sub(self.random.usize(1..12));
        let Some(lease) = self.leases.get(recent).copied() else {
            return Lease { job: self.job(), claim: self.claim_id(), epoch: crate::model::Epoch::new(1) };
        };
        match self.random.u8(..12) {
            0 => Lease { epoch: lease.epoch.next(), ..lease },
            1 => Lease { claim: self.claim_id(), ..lease },
            _ => lease,
        }
    }

    fn job(&mut self) -> JobId {
        let known: Vec<_> = self.specs.iter().map(|spec| spec.id).collect();
        if known.is_empty() { JobId::from(Uuid::from_u128(7)) } else { self.pick(&known) }
    }

    fn completion(&mut self) -> Completion {
        let job = self.job();
        self.pick(&[
            success(job),
            failure(Retry::Never),
            failure(Retry::After(Duration::ZERO)),
            failure(Retry::After(Duration::ZERO)),
            failure(Retry::After(HOUR)),
            Completion::Cancelled,
        ])
    }

    fn end(&mut self) -> AttemptEnd {
        AttemptEnd { lease: self.lease(), completion: self.completion() }
    }

    fn delay(&mut self) -> Duration {
        self.pick(&[Duration::ZERO, Duration::ZERO, HOUR])
    }

    fn rescue(&mut self) -> RescueRequest {
        let backoff = self.delay();
        RescueRequest { lost_after: self.delay(), backoff, backoff_max: backoff, limit: MAX_BATCH }
    }

    fn filter(&mut self) -> JobFilter {
        let statuses = JobStatus::ALL.into_iter().filter(|_| self.random.bool()).collect();
        JobFilter {
            statuses,
            service: self.pick(&[None, Some("api")]).map(|name| name.parse().expect("a name")),
            ..JobFilter::default()
        }
    }
}

fn touched(step: &Step) -> Vec<JobId> {
    match step {
        Step::Enqueue(specs) => specs.iter().map(|spec| spec.id).collect(),
        Step::Heartbeat(leases) => leases.iter().map(|lease| lease.job).collect(),
        Step::CompleteBatch(ends) => ends.iter().map(|end| end.lease.job).collect(),
        Step::Complete(lease, _) | Step::Release(lease, ..) => vec![lease.job],
        Step::Cancel(job) => vec![*job],
        _ => Vec::new(),
    }
}

/// Takes a step; the answer as text, without instants.
async fn take(queue: &dyn JobQueue, step: &Step) -> String {
    match step {
        Step::Enqueue(specs) => text(queue.enqueue(specs).await),
        Step::Claim(id, limit) => text(queue.claim(&request(*id, *limit)).await.map(|jobs| {
            let mut jobs: Vec<_> = jobs.into_iter().map(blank_job).collect();
            jobs.sort_by_key(|job| job.spec.id);
            jobs
        })),
        Step::Heartbeat(leases) => text(queue.heartbeat(leases).await.map(|beats| {
            let tell = |beat| match beat {
                Beat::Held { cancel_requested, .. } => Some(cancel_requested),
                Beat::Lost => None,
            };
            beats.into_iter().map(tell).collect::<Vec<_>>()
        })),
        Step::Complete(lease, completion) => text(queue.complete(lease, completion).await),
        Step::CompleteBatch(ends) => {
            text(queue.complete_batch(ends).await.map(|answers| answers.into_iter().map(text).collect::<Vec<_>>()))
        }
        Step::Release(lease, reason, delay) => text(queue.release(lease, reason, *delay).await.map(blank_fate)),
        Step::Cancel(job) => text(queue.cancel(*job).await.map(blank_job)),
        Step::Rescue(request) => text(queue.rescue(request).await.map(|mut rescued| {
            rescued.sort_by_key(|rescued| rescued.lease.job);
            rescued.into_iter().map(|rescued| (rescued.lease, blank_fate(rescued.fate))).collect::<Vec<_>>()
        })),
        Step::Prune(age) => text(queue.prune(*age, MAX_BATCH).await),
        Step::SetClaiming(claiming) => text(queue.set_claiming(*claiming).await),
        Step::SetLimit(name, limit) => text(queue.set_concurrency_limit(&key(name), attempts(*limit)).await),
        Step::SetOrder(order) => text(queue.set_order(*order).await),
        Step::List(filter) => text(
            queue
                .list(filter, None, MAX_PAGE)
                .await
                .map(|page| (page.jobs.into_iter().map(blank_job).collect::<Vec<_>>(), page.next.is_some())),
        ),
        Step::Stats => {
            let told =
                |stats: QueueStats| (stats.counts, stats.oldest_queued_seconds.is_some(), stats.paused, stats.order);
            text(queue.stats().await.map(told))
        }
    }
}

async fn look(queue: &dyn JobQueue, job: JobId) -> String {
    let found = queue.get(job).await.expect("a read").map(blank_job);
    let attempts = queue.attempts(job).await.expect("a read").into_iter().map(blank_attempt);
    format!("{found:#?} {:#?}", attempts.collect::<Vec<_>>())
}

fn text<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    match answer {
        Ok(value) => format!("{value:#?}"),
        Err(Error::Invalid(_)) => "Invalid".to_owned(),
        Err(Error::Backend(error)) => panic!("the backend failed: {}", crate::port::chain(&error)),
        Err(error) => format!("{error:?}"),
    }
}

fn blank_job(mut job: Job) -> Job {
    job.created_at = Timestamp::UNIX_EPOCH;
    job.eligible_at = Timestamp::UNIX_EPOCH;
    job.finished_at = job.finished_at.map(|_| Timestamp::UNIX_EPOCH);
    if let Some(running) = &mut job.running {
        running.claimed_at = Timestamp::UNIX_EPOCH;
        running.last_heartbeat = Timestamp::UNIX_EPOCH;
        running.deadline = Timestamp::UNIX_EPOCH;
    }
    job.failure = job.failure.map(blank_failure);
    job
}

fn blank_attempt(mut attempt: Attempt) -> Attempt {
    attempt.claimed_at = Timestamp::UNIX_EPOCH;
    attempt.ended_at = attempt.ended_at.map(|_| Timestamp::UNIX_EPOCH);
    attempt
}

fn blank_fate(fate: Fate) -> Fate {
    match fate {
        Fate::Requeued { .. } => Fate::Requeued { eligible_at: Timestamp::UNIX_EPOCH },
        Fate::Failed { failure } => Fate::Failed { failure: blank_failure(failure) },
        Fate::Cancelled => Fate::Cancelled,
    }
}

/// The message of a lost lease says how long the worker was silent.
fn blank_failure(mut failure: crate::model::Failure) -> crate::model::Failure {
    if failure.kind == FailureKind::LeaseLost {
        failure.message.clear();
    }
    failure
}
