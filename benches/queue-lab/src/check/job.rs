//! The model of one job: the decisions that every backend shares, without their clock.

use std::time::Duration;

use deploycore::model::{
    Attempt, AttemptOutcome, ClaimId, Completion, Epoch, Failure, Job, JobStatus, Lease, NewJob, Timestamp, WorkerName,
};
use deploycore::port::queue::transition::{self, Standing};
use deploycore::port::queue::{Beat, ClaimRequest, Enqueued, Error, RescueRequest, bounds};

use crate::history::Word;

/// What a call asks of one job.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// To be added.
    Enqueue(NewJob),
    /// To be taken: a claim that did not get the job asks nothing of it.
    Claim(ClaimId, WorkerName),
    /// To live.
    Heartbeat(Lease),
    /// To end an attempt.
    Complete(Lease, Completion),
    /// To go back to the queue.
    Release(Lease, String),
    /// To be taken back, its lease being lost: a rescue that left the job alone asks nothing of it.
    Rescue,
    /// To be looked at.
    Look,
}

/// What the job answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To an enqueue.
    Enqueued(Enqueued),
    /// The same id with another body.
    Conflict,
    /// The lease that a claim or a rescue tells; `None` where it would not have got the job.
    Lease(Option<Lease>),
    /// To a heartbeat.
    Held(bool),
    /// To an end.
    Word(Word),
    /// To a look.
    View(Option<View>),
}

/// A job as far as it does not hang on the clock.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Where it stands.
    pub status: JobStatus,
    /// How often it was claimed.
    pub epoch: Epoch,
    /// Each attempt and how it ended.
    pub attempts: Vec<(Lease, Option<AttemptOutcome>)>,
}

impl View {
    /// Of what a queue tells.
    pub fn of(job: &Job, attempts: &[Attempt]) -> Self {
        let attempts = attempts.iter().map(|attempt| (attempt.lease, attempt.outcome.clone())).collect();
        Self { status: job.status, epoch: job.epoch, attempts }
    }
}

/// One job, or none yet.
#[derive(Debug, Clone, Default)]
pub(super) struct State(Option<(Job, Vec<Attempt>)>);

/// Time stands still: every delay is over, every silence long enough.
const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const RESCUE: RescueRequest =
    RescueRequest { lost_after: Duration::ZERO, backoff: Duration::ZERO, backoff_max: Duration::ZERO, limit: 1 };

impl State {
    /// What stands for this state in the memory of the search.
    pub(super) fn fingerprint(&self) -> String {
        format!("{:?}", self.view())
    }

    fn view(&self) -> Option<View> {
        self.0.as_ref().map(|(job, attempts)| View::of(job, attempts))
    }

    /// Takes a step, and gives the answer.
    pub(super) fn take(&mut self, step: &Step) -> Answer {
        match step {
            Step::Enqueue(spec) => self.enqueue(spec),
            Step::Claim(claim, worker) => Answer::Lease(self.claim(*claim, worker)),
            Step::Rescue => Answer::Lease(self.rescue()),
            Step::Heartbeat(lease) => Answer::Held(self.heartbeat(lease)),
            Step::Complete(lease, completion) => Answer::Word(self.complete(lease, completion)),
            Step::Release(lease, reason) => Answer::Word(self.release(lease, reason)),
            Step::Look => Answer::View(self.view()),
        }
    }

    fn enqueue(&mut self, spec: &NewJob) -> Answer {
        let job = spec.id;
        match &self.0 {
            None => {
                self.0 = Some((transition::enqueue(spec, 0, NOW), Vec::new()));
                Answer::Enqueued(Enqueued::Created { job })
            }
            Some((known, _)) if known.spec == *spec => Answer::Enqueued(Enqueued::Repeated { job }),
            Some(_) => Answer::Conflict,
        }
    }

    fn claim(&mut self, claim: ClaimId, worker: &WorkerName) -> Option<Lease> {
        let (job, attempts) = self.0.as_mut()?;
        // A repeated claim tells what it got and still holds, and gets nothing further.
        if attempts.iter().any(|attempt| attempt.lease.claim == claim) {
            return job.running.as_ref().map(|running| running.lease).filter(|lease| lease.claim == claim);
        }
        if job.status != JobStatus::Queued {
            return None;
        }
        let request = ClaimRequest { claim, worker: worker.clone(), limit: 1 };
        let attempt = transition::claim(job, &request, NOW);
        let lease = attempt.lease;
        attempts.push(attempt);
        Some(lease)
    }

    fn heartbeat(&mut self, lease: &Lease) -> bool {
        self.0.as_mut().is_some_and(|(job, _)| transition::heartbeat(job, lease, NOW) != Beat::Lost)
    }

    fn complete(&mut self, lease: &Lease, completion: &Completion) -> Word {
        let completion = bounds::cut_completion(completion);
        let outcome = AttemptOutcome::Completed { completion: completion.clone() };
        self.end(lease, outcome, |job| transition::complete(job, &completion, NOW))
    }

    fn release(&mut self, lease: &Lease, reason: &str) -> Word {
        let reason = Failure::cut(reason);
        self.end(lease, AttemptOutcome::Released { reason: reason.to_owned() }, |job| {
            transition::release(job, reason, Duration::ZERO, NOW);
            Ok(())
        })
    }

    fn end(&mut self, lease: &Lease, outcome: AttemptOutcome, end: impl Fn(&mut Job) -> Result<(), Error>) -> Word {
        let Some((job, attempts)) = self.0.as_mut() else {
            return Word::NotFound;
        };
        let attempt = attempts.iter().find(|attempt| attempt.lease.epoch == lease.epoch);
        match transition::standing(job, attempt, lease, &outcome) {
            Err(_) => return Word::LeaseLost,
            Ok(Standing::Repeated) => return Word::Done,
            Ok(Standing::Current) => {}
        }
        if end(job).is_err() {
            return Word::Invalid;
        }
        note_end(attempts, lease, outcome);
        Word::Done
    }

    fn rescue(&mut self) -> Option<Lease> {
        let (job, attempts) = self.0.as_mut()?;
        let (rescued, outcome) = transition::rescue(job, &RESCUE, NOW)?;
        note_end(attempts, &rescued.lease, outcome);
        Some(rescued.lease)
    }
}

fn note_end(attempts: &mut [Attempt], lease: &Lease, outcome: AttemptOutcome) {
    if let Some(attempt) = attempts.iter_mut().find(|attempt| attempt.lease == *lease) {
        attempt.outcome = Some(outcome);
    }
}
