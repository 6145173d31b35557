//! The turns of jobs that become ready.

use std::cmp::Reverse;

use super::{Staged, State};
use crate::model::{Epoch, Job, JobStatus, NewJob, OlderJobs, Timestamp};
use crate::port::queue::Order;
use crate::port::queue::turn::{Line, Turns};

impl State {
    /// The turn of a new job, given what the same call does before it and before it cancels anything itself. One with an earliest start
    /// stands in no line yet.
    pub(super) fn turn_of_new(&self, spec: &NewJob, staged: &Staged, now: Timestamp) -> u64 {
        let is_delayed = spec.not_before.is_some_and(|start| start > now);
        if self.turns.order == Order::Oldest || is_delayed {
            return self.turns.first;
        }
        let line = line(self.known(staged), spec);
        if spec.older_jobs == OlderJobs::Keep {
            return self.turns.last_in(line);
        }
        let waiting = self.known(staged).filter(|job| is_queued_like(job, spec) && job.eligible_at <= now);
        self.turns.in_place_of(line, waiting.map(|job| job.turn).min())
    }

    /// Gives turns to the jobs whose earliest start has passed meanwhile.
    pub(super) fn join_lines(&mut self, now: Timestamp) {
        let turns = self.turns;
        let mut due: Vec<_> =
            self.jobs.values().map(|entry| &entry.job).filter(|job| has_become_due(job, turns, now)).cloned().collect();
        due.sort_by_key(|job| (job.eligible_at, job.created_at, job.spec.id));
        for job in due {
            let turn = turns.last_in(line(self.known(&Staged::default()), &job.spec));
            if let Some(entry) = self.jobs.get_mut(&job.spec.id) {
                entry.job.turn = turn;
            }
        }
    }
}

/// The order of claims.
pub(super) fn place(job: &Job) -> impl Ord + use<> {
    (Reverse(job.spec.priority), job.turn, job.created_at, job.spec.id)
}

fn line<'j>(jobs: impl Iterator<Item = &'j Job>, spec: &NewJob) -> Line {
    let mut line = Line::default();
    for job in jobs.filter(|job| job.spec.priority == spec.priority) {
        if job.epoch > Epoch::ZERO {
            line.claimed = line.claimed.max(job.turn);
        }
        if is_queued_like(job, spec) {
            line.last = line.last.max(job.turn);
        }
    }
    line
}

fn is_queued_like(job: &Job, spec: &NewJob) -> bool {
    job.status == JobStatus::Queued && job.spec.priority == spec.priority && job.spec.service == spec.service
}

fn has_become_due(job: &Job, turns: Turns, now: Timestamp) -> bool {
    let waited = job.epoch == Epoch::ZERO && job.eligible_at > job.created_at && job.turn <= turns.first;
    turns.order == Order::FairShare && job.status == JobStatus::Queued && waited && job.eligible_at <= now
}
