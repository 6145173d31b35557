//! What a history of one job cannot show: that a claim, however often it was made, took its jobs once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use deploycore::model::{ClaimId, JobId};

use super::View;
use crate::history::{Call, Event, Reply};

/// An answered call of a claim.
struct Told {
    start: u64,
    end: u64,
    jobs: BTreeSet<JobId>,
}

/// Jobs that a claim took besides those that it had taken before.
///
/// The jobs of a claim only become fewer. So a call tells of no job that an earlier one, which told of any, did not tell of; of two calls at once
/// either may have been the earlier. Where the first call of all had ended before any other began, its answer is all that was
/// ever taken, and no look shows an attempt of that claim at another job, though nobody was told of it.
pub(super) fn strays(events: &[Event], looks: &BTreeMap<JobId, Option<View>>) -> BTreeSet<JobId> {
    let mut calls: HashMap<ClaimId, Vec<&Event>> = HashMap::new();
    for event in events {
        if let Call::Claim(claim, _) = event.call {
            calls.entry(claim).or_default().push(event);
        }
    }
    let mut taken: HashMap<ClaimId, BTreeSet<JobId>> = HashMap::new();
    for (job, view) in looks {
        for (lease, _) in view.iter().flat_map(|view| &view.attempts) {
            taken.entry(lease.claim).or_default().insert(*job);
        }
    }
    let mut strays = BTreeSet::new();
    for (claim, calls) in calls {
        let told: Vec<Told> =
            calls.iter().filter_map(|event| told(event)).filter(|told| !told.jobs.is_empty()).collect();
        for (place, one) in told.iter().enumerate() {
            for other in &told[place + 1..] {
                strays.extend(further(one, other));
            }
        }
        if let Some(all) = all_taken(&calls) {
            let seen = taken.get(&claim).into_iter().flatten().chain(told.iter().flat_map(|told| &told.jobs));
            strays.extend(seen.filter(|job| !all.contains(job)));
        }
    }
    strays
}

fn told(event: &Event) -> Option<Told> {
    match (&event.reply, event.end) {
        (Some(Reply::Claimed(leases)), Some(end)) => {
            Some(Told { start: event.start, end, jobs: leases.iter().map(|lease| lease.job).collect() })
        }
        _ => None,
    }
}

/// What only the later of two calls tells of; of two at once the order that leaves less.
fn further(one: &Told, other: &Told) -> BTreeSet<JobId> {
    let of_other: BTreeSet<JobId> = &other.jobs - &one.jobs;
    let of_one: BTreeSet<JobId> = &one.jobs - &other.jobs;
    let is_one_later = one.end >= other.start && (other.end < one.start || of_one.len() < of_other.len());
    if is_one_later { of_one } else { of_other }
}

/// What a claim took in all, where that is known: the answer of its first call, if that was alone and not empty.
fn all_taken(calls: &[&Event]) -> Option<BTreeSet<JobId>> {
    let first = calls.iter().min_by_key(|event| event.start)?;
    let told = told(first)?;
    let is_alone = calls.iter().all(|event| event.start == first.start || event.start > told.end);
    Some(told.jobs).filter(|jobs| is_alone && !jobs.is_empty())
}

#[cfg(test)]
mod tests {
    use deploycore::model::{Epoch, JobStatus, Lease};

    use super::*;

    const JOBS: [u128; 3] = [1, 2, 3];

    fn id(number: u128) -> JobId {
        JobId::from(sqlx::types::Uuid::from_u128(number))
    }

    fn lease(number: u128) -> Lease {
        Lease { job: id(number), claim: ClaimId::from(sqlx::types::Uuid::from_u128(9)), epoch: Epoch::new(1) }
    }

    /// A call of the one claim from `start` for ten ticks, with these jobs for an answer.
    fn call(start: u64, jobs: Option<&[u128]>) -> Event {
        let reply = jobs.map(|jobs| Reply::Claimed(jobs.iter().copied().map(lease).collect()));
        let end = reply.as_ref().map(|_| start + 10);
        Event { start, end, call: Call::Claim(lease(1).claim, "w".parse().unwrap()), reply }
    }

    fn looks(claimed: &[u128]) -> BTreeMap<JobId, Option<View>> {
        let attempts = |job: u128| if claimed.contains(&job) { vec![(lease(job), None)] } else { Vec::new() };
        let view = |job| View { status: JobStatus::Running, epoch: Epoch::new(1), attempts: attempts(job) };
        JOBS.into_iter().map(|job| (id(job), Some(view(job)))).collect()
    }

    fn found(events: &[Event], claimed: &[u128]) -> Vec<JobId> {
        strays(events, &looks(claimed)).into_iter().collect()
    }

    #[test]
    fn a_repeat_may_tell_of_the_same_and_of_less() {
        assert_eq!(found(&[call(0, Some(&[1, 2])), call(20, Some(&[1, 2])), call(40, Some(&[2]))], &[1, 2]), []);
        // The first one got nothing and left no trace, or nobody knows what it got.
        assert_eq!(found(&[call(0, Some(&[])), call(20, Some(&[1, 2]))], &[1, 2]), []);
        assert_eq!(found(&[call(0, None), call(20, Some(&[2]))], &[1, 2]), []);
        // Of two at once the second one was the first.
        assert_eq!(found(&[call(0, Some(&[2])), call(5, Some(&[1, 2]))], &[1, 2]), []);
    }

    #[test]
    fn a_repeat_that_takes_further_jobs_is_found() {
        assert_eq!(found(&[call(0, Some(&[1])), call(20, Some(&[1, 2]))], &[1, 2]), [id(2)]);
        assert_eq!(found(&[call(0, Some(&[1])), call(20, Some(&[2]))], &[1, 2]), [id(2)]);
        assert_eq!(found(&[call(0, None), call(20, Some(&[1])), call(40, Some(&[3]))], &[1, 3]), [id(3)]);
        // Nobody was told, and there it is.
        assert_eq!(found(&[call(0, Some(&[1])), call(20, None)], &[1, 3]), [id(3)]);
        // Two at once that share nothing took twice.
        assert_eq!(found(&[call(0, Some(&[1])), call(5, Some(&[2]))], &[1, 2]).len(), 1);
    }
}
