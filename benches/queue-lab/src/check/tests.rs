//! Histories that are linearizable, and mutations of them that must be refused.

use deploycore::model::{AttemptOutcome, ClaimId, Epoch, JobStatus, Lease};
use deploycore::port::queue::Enqueued;

use super::*;
use crate::history::{Call, Reply, Word};
use crate::job::{job, success_of};

/// A history under construction: each event takes the next ten ticks.
struct Script {
    events: Vec<Event>,
    spec: deploycore::model::NewJob,
    view: Option<View>,
    clock: u64,
}

impl Script {
    /// One job was added.
    fn new() -> Self {
        let mut script = Self { events: Vec::new(), spec: job(), view: None, clock: 0 };
        let job = script.spec.id;
        script.says(Call::Enqueue(vec![script.spec.clone()]), Reply::Enqueued(vec![Enqueued::Created { job }]));
        script
    }

    fn push(&mut self, call: Call, reply: Option<Reply>) -> &mut Event {
        self.clock += 10;
        let end = reply.as_ref().map(|_| self.clock + 5);
        self.events.push(Event { start: self.clock, end, call, reply });
        self.events.last_mut().unwrap()
    }

    fn says(&mut self, call: Call, reply: Reply) -> &mut Event {
        self.push(call, Some(reply))
    }

    /// The lease of the n-th claim.
    fn lease(&self, epoch: u64) -> Lease {
        let claim = ClaimId::from(sqlx::types::Uuid::from_u128(u128::from(epoch)));
        Lease { job: self.spec.id, claim, epoch: Epoch::new(epoch) }
    }

    fn claim(&mut self, epoch: u64) -> &mut Event {
        let lease = self.lease(epoch);
        self.says(Call::Claim(lease.claim, "w".parse().unwrap()), Reply::Claimed(vec![lease]))
    }

    fn complete(&mut self, epoch: u64, word: Word) -> &mut Event {
        let lease = self.lease(epoch);
        self.says(Call::Complete(vec![(lease, success_of(&lease))]), Reply::Ended(vec![word]))
    }

    fn rescue(&mut self, epoch: u64) -> &mut Event {
        let lease = self.lease(epoch);
        self.says(Call::Rescue, Reply::Rescued(vec![lease]))
    }

    /// The job ends with these attempts: rescued, rescued, ..., succeeded.
    fn ends_after(&mut self, rescued: u64) {
        let lost = (1..=rescued).map(|epoch| (self.lease(epoch), Some(AttemptOutcome::LeaseLost)));
        let winner = self.lease(rescued + 1);
        let done = AttemptOutcome::Completed { completion: success_of(&winner) };
        let attempts = lost.chain([(winner, Some(done))]).collect();
        self.view = Some(View { status: JobStatus::Succeeded, epoch: Epoch::new(rescued + 1), attempts });
    }

    fn verdict(&self) -> Verdict {
        let looks = BTreeMap::from([(self.spec.id, self.view.clone())]);
        check(&self.events, &looks, self.clock + 100).first().map_or(Verdict::Linearizable, |(_, verdict, _)| *verdict)
    }
}

/// Claimed, lost, claimed again and done; the zombie is refused and the repeat is not.
fn good() -> Script {
    let mut script = Script::new();
    script.claim(1);
    script.rescue(1);
    script.claim(2);
    script.complete(1, Word::LeaseLost);
    script.complete(2, Word::Done);
    script.complete(2, Word::Done);
    script.ends_after(1);
    script
}

#[test]
fn a_history_as_it_should_be_is_accepted() {
    assert_eq!(good().verdict(), Verdict::Linearizable);
}

#[test]
fn a_doubled_completion_is_refused() {
    let mut script = good();
    // The zombie's word counted too.
    script.complete(1, Word::Done);
    assert_eq!(script.verdict(), Verdict::Violation);
}

#[test]
fn an_accepted_zombie_is_refused() {
    let mut script = Script::new();
    script.claim(1);
    script.rescue(1);
    script.claim(2);
    script.complete(1, Word::Done);
    script.complete(2, Word::LeaseLost);
    script.view = Some(View {
        status: JobStatus::Succeeded,
        epoch: Epoch::new(2),
        attempts: vec![
            (script.lease(1), Some(AttemptOutcome::Completed { completion: success_of(&script.lease(1)) })),
            (script.lease(2), None),
        ],
    });
    assert_eq!(script.verdict(), Verdict::Violation);
}

#[test]
fn a_lost_job_is_refused() {
    let mut script = Script::new();
    script.view = None;
    assert_eq!(script.verdict(), Verdict::Violation);
    // Nobody was told that it was there.
    let event = script.events.first_mut().unwrap();
    (event.end, event.reply) = (None, None);
    assert_eq!(script.verdict(), Verdict::Linearizable);
}

#[test]
fn a_lost_completion_is_refused() {
    let mut script = good();
    script.view = Some(View {
        status: JobStatus::Running,
        epoch: Epoch::new(2),
        attempts: vec![(script.lease(1), Some(AttemptOutcome::LeaseLost)), (script.lease(2), None)],
    });
    assert_eq!(script.verdict(), Verdict::Violation);
}

#[test]
fn a_job_that_two_claims_hold_is_refused() {
    let mut script = good();
    // No rescue between them.
    script.events.remove(2);
    assert_eq!(script.verdict(), Verdict::Violation);
}

#[test]
fn a_repeated_claim_that_takes_another_job_is_refused() {
    // Each job by itself is added, claimed and done.
    let two_jobs = |second_claim: u64| {
        let (mut one, mut other) = (Script::new(), Script::new());
        one.claim(1);
        one.complete(1, Word::Done);
        one.ends_after(0);
        other.clock = one.clock;
        let lease = Lease { claim: one.lease(second_claim).claim, ..other.lease(1) };
        other.says(Call::Claim(lease.claim, "w".parse().unwrap()), Reply::Claimed(vec![lease]));
        other.says(Call::Complete(vec![(lease, success_of(&lease))]), Reply::Ended(vec![Word::Done]));
        let done = AttemptOutcome::Completed { completion: success_of(&lease) };
        let attempts = vec![(lease, Some(done))];
        let view = View { status: JobStatus::Succeeded, epoch: Epoch::new(1), attempts };
        let looks = BTreeMap::from([(one.spec.id, one.view.clone()), (other.spec.id, Some(view))]);
        let refused = check(&[one.events, other.events].concat(), &looks, other.clock + 100);
        (other.spec.id, refused)
    };
    let (other, refused) = two_jobs(1);
    assert!(matches!(refused[..], [(job, Verdict::Violation, _)] if job == other), "{refused:?}");
    let (_, refused) = two_jobs(2);
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
fn an_epoch_that_does_not_grow_is_refused() {
    let mut script = good();
    let stale = Lease { epoch: Epoch::new(1), ..script.lease(2) };
    script.events[3].reply = Some(Reply::Claimed(vec![stale]));
    assert_eq!(script.verdict(), Verdict::Violation);
}

#[test]
fn a_refused_worker_that_was_right_is_refused() {
    let mut script = good();
    script.events[5].reply = Some(Reply::Ended(vec![Word::LeaseLost]));
    assert_eq!(script.verdict(), Verdict::Violation);
}

#[test]
fn an_answer_from_before_its_cause_is_refused() {
    let mut script = good();
    // The zombie was told that it is one before anybody took its job.
    let refused = &mut script.events[4];
    (refused.start, refused.end) = (26, Some(28));
    assert_eq!(script.verdict(), Verdict::Violation);
    // Had the call been under way when the reaper came, that would be right.
    let rescue = script.events[2].end;
    script.events[4].end = rescue.map(|end| end + 1);
    assert_eq!(script.verdict(), Verdict::Linearizable);
}

#[test]
fn calls_without_an_answer_may_have_taken_place_or_not() {
    for (unanswered, is_needed) in [(1, true), (2, true), (3, true), (4, false), (5, true), (6, false)] {
        let mut script = good();
        if unanswered == 5 {
            // The repeat, which says that it is done, would stand for it.
            script.events.remove(6);
        }
        let event = &mut script.events[unanswered];
        (event.end, event.reply) = (None, None);
        assert_eq!(script.verdict(), Verdict::Linearizable, "without the answer of call {unanswered}");
        script.events.remove(unanswered);
        let without = if is_needed { Verdict::Violation } else { Verdict::Linearizable };
        assert_eq!(script.verdict(), without, "without call {unanswered}");
    }
}

#[test]
fn a_call_without_an_answer_does_not_take_place_before_it_was_made() {
    let mut script = good();
    let event = &mut script.events[2];
    (event.start, event.end, event.reply) = (1_000, None, None);
    assert_eq!(script.verdict(), Verdict::Violation);
}

#[test]
fn many_calls_at_once_are_searched_in_time() {
    let mut script = Script::new();
    script.claim(1);
    let lease = script.lease(1);
    for _ in 0..40 {
        let beat = script.says(Call::Heartbeat(vec![lease]), Reply::Held(vec![true]));
        (beat.start, beat.end) = (30, Some(900));
    }
    script.complete(1, Word::Done);
    script.ends_after(0);
    script.clock = 1_000;
    assert_eq!(script.verdict(), Verdict::Linearizable);
    // One that says that the lease was lost, and nobody took it.
    let beat = script.says(Call::Heartbeat(vec![lease]), Reply::Held(vec![false]));
    (beat.start, beat.end) = (30, Some(35));
    assert_eq!(script.verdict(), Verdict::Violation);
}
