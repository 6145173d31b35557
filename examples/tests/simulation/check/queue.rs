//! Jobs: one effective run, stored before succeeded, every job ends, nothing is lost.

use std::collections::BTreeMap;

use deploycore::model::{
    ArtifactRef, Attempt, AttemptOutcome, Completion, Job, JobId, JobStatus, Lease, NewJob, elapsed,
};
use deploycore::port::queue::{ClaimRequest, Enqueued, Error, RescueRequest, Rescued};
use deploycore::port::{ArtifactStore, ArtifactStoreExt};
use futures::FutureExt;

use super::{Checker, Invariant, Met};

/// What the queue acknowledged.
#[derive(Debug, Default)]
pub struct Model {
    enqueued: BTreeMap<JobId, NewJob>,
    ended: BTreeMap<JobId, (JobStatus, Option<ArtifactRef>)>,
}

/// A use of a lease, as the queue stood before it.
#[derive(Debug)]
pub struct Use {
    lease: Lease,
    /// Whether the lease is the current one, or has ended with this very outcome.
    rightful: bool,
}

impl Checker {
    /// Jobs were enqueued.
    pub fn enqueued(&self, jobs: &[NewJob], answers: &[Enqueued]) {
        self.effect();
        for (job, answer) in jobs.iter().zip(answers) {
            if !matches!(answer, Enqueued::Deduplicated { .. }) {
                self.lock().queue.enqueued.insert(job.id, job.clone());
            }
        }
        self.queue_changed();
    }

    /// Jobs were claimed.
    pub fn claimed(&self, request: &ClaimRequest, answer: &Result<Vec<Job>, Error>) {
        let Ok(jobs) = answer else { return };
        for job in jobs {
            self.trace.event(request.worker.as_str(), format_args!("runs {} at epoch {}", job.spec.commit, job.epoch));
        }
        if !jobs.is_empty() {
            self.effect();
            self.queue_changed();
        }
    }

    /// What a lease is worth right now; `outcome` is what its attempt would end with.
    pub fn use_of(&self, lease: &Lease, outcome: Option<&AttemptOutcome>) -> Use {
        let snapshot = self.backends.queue.snapshot();
        let rightful = snapshot.jobs.get(&lease.job).is_some_and(|(job, attempts)| {
            let current = job.running.as_ref().is_some_and(|running| running.lease == *lease);
            let repeated = outcome.is_some_and(|outcome| {
                attempts.iter().any(|attempt| attempt.lease == *lease && attempt.outcome.as_ref() == Some(outcome))
            });
            current || repeated
        });
        Use { lease: *lease, rightful }
    }

    /// The queue took a lease's word, or refused it.
    pub fn used(&self, usage: &Use, accepted: bool, call: &str) {
        self.effect();
        if !accepted {
            self.trace.met(Met::Zombies);
        }
        self.require(Invariant::OneEffectiveRun, usage.rightful || !accepted, || {
            format!("{call} was taken from {:?}, which is not the current lease", usage.lease)
        });
        self.queue_changed();
    }

    /// Lost leases were taken back.
    pub fn rescued(&self, request: &RescueRequest, rescued: &[Rescued]) {
        for _ in rescued {
            self.trace.met(Met::Rescues);
            self.effect();
        }
        self.queue_changed();
        if rescued.len() >= request.limit {
            return;
        }
        let snapshot = self.backends.queue.snapshot();
        for (job, _) in snapshot.jobs.values() {
            let Some(running) = &job.running else { continue };
            let late = snapshot.now >= running.deadline;
            let silent = elapsed(running.last_heartbeat, snapshot.now) >= request.lost_after;
            self.require(Invariant::EveryJobEnds, !late && !silent, || {
                format!("job {} is past its deadline or silent, and the rescue left it", job.spec.id)
            });
        }
    }

    /// Something may have changed in the queue.
    pub fn queue_changed(&self) {
        let snapshot = self.backends.queue.snapshot();
        for (job, attempts) in snapshot.jobs.values() {
            self.one_effective_run(job, attempts);
            self.bounded(job);
        }
        for (job, _) in snapshot.jobs.values().filter(|(job, _)| job.status.is_finished()) {
            self.ended(job);
        }
        let enqueued = self.lock().queue.enqueued.clone();
        for (id, spec) in enqueued {
            let kept = snapshot.jobs.get(&id).is_some_and(|(job, _)| job.spec == spec);
            self.require(Invariant::NothingIsLost, kept, || format!("job {id} was acknowledged and is gone"));
        }
    }

    fn one_effective_run(&self, job: &Job, attempts: &[Attempt]) {
        let open: Vec<_> = attempts.iter().filter(|attempt| attempt.outcome.is_none()).collect();
        let running = job.running.as_ref().map(|running| running.lease);
        let alone = match (&open[..], running) {
            ([], None) => true,
            ([attempt], Some(lease)) => attempt.lease == lease && lease.epoch == job.epoch,
            _ => false,
        };
        let rising = attempts.windows(2).all(|pair| pair[0].lease.epoch < pair[1].lease.epoch);
        let wins = attempts.iter().filter(|attempt| succeeded(attempt)).count();
        let won = usize::from(job.status == JobStatus::Succeeded);
        self.require(Invariant::OneEffectiveRun, alone && rising && wins == won, || {
            format!("job {}: {open:?} are open, {running:?} runs, {wins} succeeded", job.spec.id)
        });
    }

    fn bounded(&self, job: &Job) {
        let within = job.attempts <= job.spec.max_attempts.get() && job.releases <= job.spec.max_releases + 1;
        self.require(Invariant::EveryJobEnds, within, || {
            format!("job {} has {} attempts and {} releases", job.spec.id, job.attempts, job.releases)
        });
    }

    fn ended(&self, job: &Job) {
        let end = (job.status, job.artifact.clone());
        let known = self.lock().queue.ended.insert(job.spec.id, end.clone());
        if let Some(known) = known {
            return self.require(Invariant::NothingIsLost, known == end, || {
                format!("job {} had ended with {known:?} and is now at {end:?}", job.spec.id)
            });
        }
        self.trace.event("queue", format_args!("{} is {}", job.spec.commit, job.status));
        if job.status == JobStatus::Succeeded {
            self.trace.met(Met::Builds);
            self.stored(job);
        }
    }

    fn stored(&self, job: &Job) {
        let stored = job.artifact.as_ref().is_some_and(|artifact| {
            let ours = self.truth(&artifact.digest).is_some_and(|built| built.job == job.spec.id);
            let verified = self.backends.main.verify(&artifact.digest).now_or_never().expect("memory never suspends");
            ours && verified.is_ok_and(|manifest| manifest.size() == artifact.size)
        });
        self.require(Invariant::StoredBeforeSucceeded, stored, || {
            format!("job {} succeeded with {:?}, which is not stored whole", job.spec.id, job.artifact)
        });
    }

    /// The main store still has each artifact that a job made.
    pub fn everything_stored(&self) {
        let ended = self.lock().queue.ended.clone();
        for artifact in ended.into_values().filter_map(|(_, artifact)| artifact) {
            let there = self.backends.main.exists(&artifact.digest).now_or_never();
            let there = there.is_some_and(|there| there.unwrap_or(false));
            self.require(Invariant::NothingIsLost, there, || format!("{} is gone from the main store", artifact.name));
        }
    }

    /// Each job that was acknowledged has reached its end, some time after healing.
    pub fn every_job_ended(&self) {
        for (job, _) in self.unfinished() {
            self.violated(
                Invariant::EveryJobEnds,
                format!("job {} is {} long after healing: {job:?}", job.spec.id, job.status),
            );
        }
    }

    /// Jobs that have not ended.
    pub fn unfinished(&self) -> Vec<(Job, Vec<Attempt>)> {
        let jobs = self.backends.queue.snapshot().jobs;
        jobs.into_values().filter(|(job, _)| !job.status.is_finished()).collect()
    }
}

fn succeeded(attempt: &Attempt) -> bool {
    matches!(&attempt.outcome, Some(AttemptOutcome::Completed { completion: Completion::Succeeded { .. } }))
}
