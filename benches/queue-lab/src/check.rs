//! Whether a history of calls is linearizable: whether there is one order of the calls, true to their times, in which the reference model
//! gives every answer that was given.
//!
//! Jobs are independent but for who claims which, and a claim says which jobs it got; so each job has a history of its own, and all are
//! linearizable when each is (Herlihy and Wing's locality). The search for one job is Wing and Gong's, with Lowe's memory of
//! what was tried. The model of a job is what the memory backend is made of: [`deploycore::port::queue::transition`].
//!
//! That a claim took its jobs once, however often it was made, is about several jobs and is checked apart too.
//!
//! Times are not in the model: a delay may have passed and a lease may be lost at any instant. What depends on the clock is checked apart.

mod claims;
mod job;
mod split;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};

use deploycore::model::JobId;

pub use self::job::{Answer, Step, View};
pub use self::split::{Op, split};

use crate::history::Event;

/// States tried for one job before the search gives up.
const MOST_STATES: usize = 2_000_000;

/// What the search found for one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none: the queue broke its contract.
    Violation,
    /// Too many orders to try.
    Undecided,
}

/// Checks the history of each job, the last look at it included; those that are not linearizable, with their history. So is one that a
/// repeated claim took besides those of the first.
///
/// `looks` holds each job as it stood when all callers had ended, at `looked_at`.
pub fn check(
    events: &[Event],
    looks: &BTreeMap<JobId, Option<View>>,
    looked_at: u64,
) -> Vec<(JobId, Verdict, Vec<Op>)> {
    let histories = split(events, looks, looked_at);
    let strays = claims::strays(events, looks);
    let judged = histories.into_iter().map(|(job, ops)| {
        let verdict = if strays.contains(&job) { Verdict::Violation } else { linearize(&ops) };
        (job, verdict, ops)
    });
    judged.filter(|(_, verdict, _)| *verdict != Verdict::Linearizable).collect()
}

/// Searches an order for the calls about one job.
pub fn linearize(ops: &[Op]) -> Verdict {
    let mut ops: Vec<&Op> = ops.iter().collect();
    // Those with an answer first among equals: only they must take place.
    ops.sort_by_key(|op| (op.start, op.answer.is_none()));
    let mut search = Search { ops, seen: HashSet::new(), path: Vec::new() };
    search.run()
}

struct Search<'h> {
    ops: Vec<&'h Op>,
    /// Which calls took place, and what the job became.
    seen: HashSet<(Vec<u64>, String)>,
    path: Vec<Place>,
}

/// A point of the search: what took place so far, and which call is tried next.
struct Place {
    done: Vec<u64>,
    state: job::State,
    next: usize,
}

impl Search<'_> {
    fn run(&mut self) -> Verdict {
        self.path.push(self.place(vec![0; self.ops.len().div_ceil(64)], job::State::default()));
        while let Some(place) = self.path.last_mut() {
            if (0..self.ops.len()).all(|index| is_done(&place.done, index) || self.ops[index].answer.is_none()) {
                return Verdict::Linearizable;
            }
            let Some(index) = candidate(&self.ops, &place.done, place.next) else {
                self.path.pop();
                continue;
            };
            place.next = index + 1;
            let op = self.ops[index];
            let mut state = place.state.clone();
            let answer = state.take(&op.step);
            if op.answer.as_ref().is_some_and(|given| *given != answer) {
                continue;
            }
            let mut done = place.done.clone();
            note_done(&mut done, index);
            let next = self.place(done, state);
            if self.seen.insert((next.done.clone(), next.state.fingerprint())) {
                if self.seen.len() > MOST_STATES {
                    return Verdict::Undecided;
                }
                self.path.push(next);
            }
        }
        Verdict::Violation
    }

    /// Where the search stands after a step. Calls that change nothing and are answered rightly here take place here: whatever order there
    /// is, they may be moved to this point of it.
    fn place(&self, mut done: Vec<u64>, state: job::State) -> Place {
        let fingerprint = state.fingerprint();
        let mut from = 0;
        while let Some(index) = candidate(&self.ops, &done, from) {
            from = index + 1;
            let op = self.ops[index];
            let mut after = state.clone();
            if op.answer.as_ref().is_some_and(|given| *given == after.take(&op.step))
                && after.fingerprint() == fingerprint
            {
                note_done(&mut done, index);
                // Its end may have kept others from beginning.
                from = 0;
            }
        }
        Place { done, state, next: 0 }
    }
}

fn is_done(done: &[u64], index: usize) -> bool {
    done[index / 64] & (1 << (index % 64)) != 0
}

fn note_done(done: &mut [u64], index: usize) {
    done[index / 64] |= 1 << (index % 64);
}

/// The next call, from place `from` on, that may be the first of those that did not take place: none of the others had ended before it began.
fn candidate(ops: &[&Op], done: &[u64], from: usize) -> Option<usize> {
    let open = |index: &usize| !is_done(done, *index);
    let first_end = (0..ops.len()).filter(open).filter_map(|index| ops[index].end).min();
    (from..ops.len()).filter(open).find(|index| first_end.is_none_or(|end| ops[*index].start <= end))
}
