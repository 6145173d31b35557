//! Faults of turns: what was enqueued gets another one.

use std::collections::BTreeSet;

use deploycore::memory::QueueSnapshot;
use deploycore::model::{Epoch, Job, JobId, JobStatus, NewJob};
use deploycore::port::queue::turn::Line;
use deploycore::port::queue::{Enqueued, Order};

use super::Fault;

pub(super) fn is_of_turns(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::NewJobsGoBehindAll
            | Fault::IdleServicesSaveUp
            | Fault::LinesAdvanceAsOne
            | Fault::NextJobsDoNotWait
            | Fault::PrioritiesShareTurns
            | Fault::DelayedJobsStandInLine
            | Fault::ReplacementsGoToTheEnd
            | Fault::VainEnqueuesTakeTurns
    )
}

/// Gives wrong turns to the jobs that a call added.
pub(super) fn misplace(state: &mut QueueSnapshot, fault: Fault, jobs: &[NewJob], answers: &[Enqueued]) {
    if state.turns.order == Order::Oldest {
        return;
    }
    let created = |job: &JobId| answers.contains(&Enqueued::Created { job: *job });
    let mut open: BTreeSet<JobId> = jobs.iter().map(|job| job.id).filter(created).collect();
    let mut vain = 0;
    for spec in jobs {
        if !open.remove(&spec.id) {
            vain += 1;
            continue;
        }
        let others = state.jobs.values().map(|(job, _)| job).filter(|job| job.spec.id != spec.id);
        let turn =
            wrong_turn(state, fault, spec, &others.filter(|job| !open.contains(&job.spec.id)).collect::<Vec<_>>());
        if let Some((job, _)) = state.jobs.get_mut(&spec.id)
            && (job.eligible_at <= job.created_at || fault == Fault::DelayedJobsStandInLine)
        {
            job.turn = turn + if fault == Fault::VainEnqueuesTakeTurns { vain } else { 0 };
        }
    }
}

fn wrong_turn(state: &QueueSnapshot, fault: Fault, spec: &NewJob, others: &[&Job]) -> u64 {
    let greatest = |wanted: &dyn Fn(&Job) -> bool| {
        others.iter().filter(|job| wanted(job)).map(|job| job.turn).max().unwrap_or_default()
    };
    let is_like = |job: &Job| job.spec.priority == spec.priority;
    let is_in_line = |job: &Job| is_like(job) && job.spec.service == spec.service;
    let claimed = greatest(&|job| is_like(job) && job.epoch > Epoch::ZERO);
    let last = greatest(&|job| is_in_line(job) && job.status == JobStatus::Queued);
    let line = match fault {
        Fault::NextJobsDoNotWait => return state.turns.first.max(claimed).max(last + 1),
        Fault::NewJobsGoBehindAll => Line { claimed: greatest(&|_| true), last },
        Fault::IdleServicesSaveUp => Line { claimed: 0, last: greatest(&is_in_line) },
        Fault::LinesAdvanceAsOne => Line { claimed, last: 0 },
        Fault::PrioritiesShareTurns => Line { claimed: greatest(&|job| job.epoch > Epoch::ZERO), last },
        Fault::ReplacementsGoToTheEnd => Line { claimed, last: greatest(&is_in_line) },
        _ => Line { claimed, last },
    };
    state.turns.last_in(line)
}
