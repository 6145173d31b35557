//! What the callers were told, held against what the queue kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use deploycore::model::{AttemptOutcome, Completion, JobId, JobStatus, Lease};
use deploycore::port::queue::Enqueued;
use serde::Serialize;

use crate::check::View;
use crate::history::{Call, Event, Reply, Word};

/// Counts over a whole history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Calls made.
    pub calls: usize,
    /// Those that nobody was answered.
    pub unanswered: usize,
    /// Acknowledged jobs that are gone, and jobs that did not succeed although all were worked off.
    pub lost: usize,
    /// Jobs with more than one effective run.
    pub doubled: usize,
    /// Ends under a lease that a reaper had taken, which were refused.
    pub zombies_refused: usize,
    /// Those that were not.
    pub zombies_accepted: usize,
}

/// Counts what was told and what was kept, when the queue had been worked off.
pub fn count(events: &[Event], looks: &BTreeMap<JobId, Option<View>>) -> Counts {
    let mut counts = Counts { calls: events.len(), ..Counts::default() };
    counts.unanswered = events.iter().filter(|event| event.reply.is_none()).count();
    counts.lost = acknowledged(events).iter().filter(|job| !has_succeeded(looks, **job)).count();
    let mut told: BTreeMap<JobId, BTreeSet<u64>> = BTreeMap::new();
    for (lease, completion, word) in ends(events) {
        let is_zombie = looks.get(&lease.job).and_then(Option::as_ref).is_some_and(|view| was_rescued(view, &lease));
        match word {
            Word::LeaseLost => counts.zombies_refused += usize::from(is_zombie),
            Word::Done => {
                counts.zombies_accepted += usize::from(is_zombie);
                if matches!(completion, Some(Completion::Succeeded { .. })) {
                    told.entry(lease.job).or_default().insert(lease.epoch.get());
                }
            }
            Word::NotFound | Word::Invalid => {}
        }
    }
    for (job, view) in looks {
        let kept = view.iter().flat_map(|view| &view.attempts).filter(|(_, outcome)| is_success(outcome.as_ref()));
        let epochs = told.entry(*job).or_default();
        epochs.extend(kept.map(|(lease, _)| lease.epoch.get()));
    }
    counts.doubled = told.values().filter(|epochs| epochs.len() > 1).count();
    counts
}

/// The jobs of which somebody was told that they are in the queue.
pub fn acknowledged(events: &[Event]) -> BTreeSet<JobId> {
    let answers = events.iter().filter_map(|event| match &event.reply {
        Some(Reply::Enqueued(answers)) => Some(answers),
        _ => None,
    });
    answers.flatten().map(|answer| Enqueued::job(*answer)).collect()
}

/// All jobs that anybody tried to add.
pub fn asked_for(events: &[Event]) -> BTreeSet<JobId> {
    let specs = events.iter().filter_map(|event| match &event.call {
        Call::Enqueue(specs) => Some(specs),
        _ => None,
    });
    specs.flatten().map(|spec| spec.id).collect()
}

fn has_succeeded(looks: &BTreeMap<JobId, Option<View>>, job: JobId) -> bool {
    looks.get(&job).and_then(Option::as_ref).is_some_and(|view| view.status == JobStatus::Succeeded)
}

fn was_rescued(view: &View, lease: &Lease) -> bool {
    view.attempts.iter().any(|(other, outcome)| other == lease && *outcome == Some(AttemptOutcome::LeaseLost))
}

fn is_success(outcome: Option<&AttemptOutcome>) -> bool {
    matches!(outcome, Some(AttemptOutcome::Completed { completion: Completion::Succeeded { .. } }))
}

/// Each answered end of an attempt.
fn ends(events: &[Event]) -> Vec<(Lease, Option<&Completion>, Word)> {
    let mut all = Vec::new();
    for event in events {
        let Some(Reply::Ended(words)) = &event.reply else { continue };
        match &event.call {
            Call::Complete(ends) => {
                all.extend(ends.iter().zip(words).map(|((lease, completion), word)| (*lease, Some(completion), *word)));
            }
            Call::Release(lease, _) => all.extend(words.first().map(|word| (*lease, None, *word))),
            _ => {}
        }
    }
    all
}

/// A caller was killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// Its name, which the next one has too.
    pub worker: String,
    /// When, by the clock of the history.
    pub at: u64,
}

/// For each lease that a caller held when it was killed, in nanoseconds: from then until somebody was handed the job again.
pub fn recoveries(events: &[Event], looks: &BTreeMap<JobId, Option<View>>, kills: &[Kill]) -> Vec<u64> {
    let claims = claims(events);
    let recovered = claims.iter().filter_map(|(lease, again)| {
        let view = looks.get(&lease.job)?.as_ref()?;
        let (lost, _) = view.attempts.iter().find(|(other, _)| other.epoch.next() == lease.epoch)?;
        let held = claims.get(lost).filter(|_| was_rescued(view, lost))?;
        let killed = kills.iter().filter(|kill| kill.worker == held.worker);
        let at = killed.map(|kill| kill.at).filter(|at| (held.end..=again.start).contains(at)).min()?;
        Some(again.end - at)
    });
    recovered.collect()
}

/// An answered claim.
struct Handed<'h> {
    worker: &'h str,
    start: u64,
    end: u64,
}

fn claims(events: &[Event]) -> HashMap<Lease, Handed<'_>> {
    let mut claims = HashMap::new();
    for event in events {
        if let (Call::Claim(_, worker), Some(Reply::Claimed(leases)), Some(end)) =
            (&event.call, &event.reply, event.end)
        {
            for lease in leases {
                // The first answer: a repeated claim is told the same again.
                claims.entry(*lease).or_insert(Handed { worker: worker.as_str(), start: event.start, end });
            }
        }
    }
    claims
}

#[cfg(test)]
mod tests {
    use deploycore::model::{ClaimId, Epoch};

    use super::*;
    use crate::job::{job, success_of};

    #[test]
    fn zombies_losses_and_doubles_are_counted() {
        let (spec, claims) = (job(), [ClaimId::new(), ClaimId::new()]);
        let lease = |epoch: u64| Lease { job: spec.id, claim: claims[epoch as usize - 1], epoch: Epoch::new(epoch) };
        let claim = |epoch: u64, at: u64| Event {
            start: at,
            end: Some(at + 1),
            call: Call::Claim(claims[epoch as usize - 1], format!("w{epoch}").parse().unwrap()),
            reply: Some(Reply::Claimed(vec![lease(epoch)])),
        };
        let end = |epoch: u64, word: Word| Event {
            start: 500,
            end: Some(501),
            call: Call::Complete(vec![(lease(epoch), success_of(&lease(epoch)))]),
            reply: Some(Reply::Ended(vec![word])),
        };
        let added = Event {
            start: 0,
            end: Some(1),
            call: Call::Enqueue(vec![spec.clone()]),
            reply: Some(Reply::Enqueued(vec![Enqueued::Created { job: spec.id }])),
        };
        let mut events = vec![added, claim(1, 10), claim(2, 90), end(1, Word::LeaseLost), end(2, Word::Done)];
        let done = AttemptOutcome::Completed { completion: success_of(&lease(2)) };
        let attempts = vec![(lease(1), Some(AttemptOutcome::LeaseLost)), (lease(2), Some(done))];
        let view = View { status: JobStatus::Succeeded, epoch: Epoch::new(2), attempts };
        let looks = BTreeMap::from([(spec.id, Some(view))]);
        let good = Counts { calls: 5, zombies_refused: 1, ..Counts::default() };
        assert_eq!(count(&events, &looks), good);
        let kills = [5, 30, 200].map(|at| Kill { worker: "w1".to_owned(), at });
        assert_eq!(recoveries(&events, &looks, &kills), [61]);

        events[3] = end(1, Word::Done);
        let bad = Counts { calls: 5, zombies_accepted: 1, doubled: 1, ..Counts::default() };
        assert_eq!(count(&events, &looks), bad);
        assert_eq!(count(&events, &BTreeMap::from([(spec.id, None)])).lost, 1);
        events[0].reply = None;
        assert_eq!(count(&events, &BTreeMap::from([(spec.id, None)])).lost, 0);
    }
}
