//! One history a job, out of the history of all calls.

use std::collections::BTreeMap;

use deploycore::model::{AttemptOutcome, ClaimId, JobId, Lease};

use super::job::{Answer, Step, View};
use crate::history::{Call, Event, Reply};

/// What one call asked of one job.
#[derive(Debug, Clone, PartialEq)]
pub struct Op {
    /// Not before this instant.
    pub start: u64,
    /// Not after this instant, where there was a reply.
    pub end: Option<u64>,
    /// What was asked.
    pub step: Step,
    /// What was answered; `None` where nobody knows whether it took place.
    pub answer: Option<Answer>,
}

/// What the calls asked of each job, and the last look at it.
///
/// A claim or a rescue without an answer may have got any job. It is tried for those alone whose last look shows an attempt that it may have
/// begun or ended: attempts are never forgotten, so it left no other.
pub fn split(events: &[Event], looks: &BTreeMap<JobId, Option<View>>, looked_at: u64) -> BTreeMap<JobId, Vec<Op>> {
    let mut histories: BTreeMap<JobId, Vec<Op>> = BTreeMap::new();
    for event in events {
        for (job, step, answer) in steps(event) {
            let op = Op { start: event.start, end: event.end.filter(|_| answer.is_some()), step, answer };
            histories.entry(job).or_default().push(op);
        }
        if event.reply.is_none() {
            for (job, step) in possible(event, looks) {
                histories.entry(job).or_default().push(Op { start: event.start, end: None, step, answer: None });
            }
        }
    }
    for (job, view) in looks {
        let answer = Some(Answer::View(view.clone()));
        let op = Op { start: looked_at, end: Some(looked_at), step: Step::Look, answer };
        histories.entry(*job).or_default().push(op);
    }
    histories
}

/// The steps whose job the call or its reply names.
fn steps(event: &Event) -> Vec<(JobId, Step, Option<Answer>)> {
    let reply = event.reply.as_ref();
    match &event.call {
        Call::Enqueue(specs) => {
            let answer = |place: usize| match reply {
                Some(Reply::Enqueued(answers)) => answers.get(place).copied().map(Answer::Enqueued),
                _ => None,
            };
            let step = |(place, spec): (usize, &deploycore::model::NewJob)| {
                (spec.id, Step::Enqueue(spec.clone()), answer(place))
            };
            specs.iter().enumerate().map(step).collect()
        }
        Call::Claim(claim, worker) => leases(reply)
            .map(|lease| (lease.job, Step::Claim(*claim, worker.clone()), Some(Answer::Lease(Some(*lease)))))
            .collect(),
        Call::Rescue => {
            leases(reply).map(|lease| (lease.job, Step::Rescue, Some(Answer::Lease(Some(*lease))))).collect()
        }
        Call::Heartbeat(leases) => {
            let answer = |place: usize| match reply {
                Some(Reply::Held(held)) => held.get(place).copied().map(Answer::Held),
                _ => None,
            };
            let step = |(place, lease): (usize, &Lease)| (lease.job, Step::Heartbeat(*lease), answer(place));
            leases.iter().enumerate().map(step).collect()
        }
        Call::Complete(ends) => ends
            .iter()
            .enumerate()
            .map(|(place, (lease, completion))| {
                (lease.job, Step::Complete(*lease, completion.clone()), word(reply, place))
            })
            .collect(),
        Call::Release(lease, reason) => vec![(lease.job, Step::Release(*lease, reason.clone()), word(reply, 0))],
    }
}

fn leases(reply: Option<&Reply>) -> impl Iterator<Item = &Lease> {
    match reply {
        Some(Reply::Claimed(leases) | Reply::Rescued(leases)) => leases.iter(),
        _ => [].iter(),
    }
}

fn word(reply: Option<&Reply>, place: usize) -> Option<Answer> {
    match reply {
        Some(Reply::Ended(words)) => words.get(place).copied().map(Answer::Word),
        _ => None,
    }
}

/// What a call without an answer may have done to jobs that it does not name.
fn possible(event: &Event, looks: &BTreeMap<JobId, Option<View>>) -> Vec<(JobId, Step)> {
    let shown = looks.iter().filter_map(|(job, view)| Some((*job, view.as_ref()?)));
    match &event.call {
        Call::Claim(claim, worker) => shown
            .filter(|(_, view)| was_claimed_by(view, *claim))
            .map(|(job, _)| (job, Step::Claim(*claim, worker.clone())))
            .collect(),
        Call::Rescue => shown.filter(|(_, view)| was_rescued(view)).map(|(job, _)| (job, Step::Rescue)).collect(),
        _ => Vec::new(),
    }
}

fn was_claimed_by(view: &View, claim: ClaimId) -> bool {
    view.attempts.iter().any(|(lease, _)| lease.claim == claim)
}

fn was_rescued(view: &View) -> bool {
    let by_reaper = |outcome: &Option<AttemptOutcome>| {
        matches!(outcome, Some(AttemptOutcome::LeaseLost | AttemptOutcome::DeadlinePassed))
    };
    view.attempts.iter().any(|(_, outcome)| by_reaper(outcome))
}
