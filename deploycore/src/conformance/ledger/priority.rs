//! Which copies go first.

use super::steps::*;
use crate::model::{ClaimId, CopyPriority, CopyState, NewArtifact};
use crate::port::ledger::{ClaimRequest, Error, MAX_BATCH, Registered};

use CopyPriority::{Emergency, Normal, Rollback};

async fn register_as(ledger: &Subject, text: &str, priority: CopyPriority) -> NewArtifact {
    let new = NewArtifact { priority, ..artifact(text, &["eu", "us"]) };
    assert_eq!(ledger.register(&new).await.expect("within all bounds"), Registered::Created);
    new
}

fn at_least(least: CopyPriority, limit: usize) -> ClaimRequest {
    ClaimRequest { least, ..request(ClaimId::new(), "eu", HOUR, limit) }
}

/// Rollbacks before emergencies before the rest, and of the same urgency the oldest; a task tells which it is.
pub async fn the_most_urgent_come_first_then_the_oldest(ledger: Subject) {
    for (text, priority) in
        [("a", Normal), ("b", Emergency), ("c", Rollback), ("d", Normal), ("e", Rollback), ("f", Emergency)]
    {
        register_as(&ledger, text, priority).await;
        pass(MOMENT).await;
    }
    let first = ledger.claim(&at_least(Normal, 3)).await.expect("a claim");
    assert_eq!(names(&first), ["c", "e", "b"]);
    assert!(first.iter().map(|task| task.priority).eq([Rollback, Rollback, Emergency]));
    let rest = claim(&ledger, "eu", HOUR).await;
    assert_eq!(names(&rest), ["f", "a", "d"]);
}

/// A claim of what is urgent takes nothing else, and a repeat gives the same.
pub async fn a_claim_may_leave_what_is_less_urgent(ledger: Subject) {
    for (text, priority) in [("a", Normal), ("b", Emergency), ("c", Rollback)] {
        register_as(&ledger, text, priority).await;
    }
    let rollbacks = at_least(Rollback, MAX_BATCH);
    let taken = ledger.claim(&rollbacks).await.expect("a claim");
    assert_eq!(names(&taken), ["c"]);
    assert_eq!(ledger.claim(&rollbacks).await.expect("a repeat"), taken);
    assert_eq!(names(&ledger.claim(&at_least(Emergency, MAX_BATCH)).await.expect("a claim")), ["b"]);
    assert!(ledger.claim(&at_least(Emergency, MAX_BATCH)).await.expect("a claim").is_empty());
    assert_eq!(names(&claim(&ledger, "eu", HOUR).await), ["a"]);
}

/// A raise counts the copies that it changed, in every region; a repeat, or a lower priority, changes none.
pub async fn a_copy_is_made_more_urgent_and_never_less(ledger: Subject) {
    register_as(&ledger, "a", Normal).await;
    pass(MOMENT).await;
    let b = register_as(&ledger, "b", Normal).await;
    for (priority, raised) in [(Emergency, 2), (Emergency, 0), (Normal, 0), (Rollback, 2), (Emergency, 0)] {
        assert_eq!(ledger.prioritize(&name("b"), priority).await.expect("it is registered"), raised, "{priority}");
    }
    for to in ["eu", "us"] {
        assert_eq!(copy(&ledger, "b", to).await.priority, Rollback);
        assert_eq!(copy(&ledger, "a", to).await.priority, Normal);
    }
    assert_eq!(names(&claim(&ledger, "eu", HOUR).await), ["b", "a"]);
    // What was registered stays what it is: registering it again is a repeat.
    assert_eq!(ledger.register(&b).await.expect("the same body"), Registered::Repeated);
    let other = NewArtifact { priority: Emergency, ..b };
    let answer = ledger.register(&other).await;
    assert!(matches!(answer, Err(Error::Conflict { .. })), "another body, instead of {answer:?}");
    let unknown = ledger.prioritize(&name("nobody"), Rollback).await;
    assert!(matches!(unknown, Err(Error::NotFound { .. })), "an unknown artifact, instead of {unknown:?}");
}

/// A copy that is being made goes on under its lease, and hears of the raise with its next report.
pub async fn a_raise_keeps_all_else(ledger: Subject) {
    register_as(&ledger, "a", Normal).await;
    let task = claim_one(&ledger, "eu", HOUR).await;
    assert_eq!(ledger.progress(&task.lease, 7, HOUR).await.expect("the lease is current"), Normal);
    let before = copy(&ledger, "a", "eu").await;
    ledger.prioritize(&name("a"), Emergency).await.expect("it is registered");
    let mut after = copy(&ledger, "a", "eu").await;
    assert_eq!(std::mem::replace(&mut after.priority, Normal), Emergency);
    assert_eq!(after, before);
    assert_eq!(ledger.progress(&task.lease, 8, HOUR).await.expect("the lease is current"), Emergency);
    ledger.complete(&task.lease).await.expect("the lease is current");
    assert_eq!(copy(&ledger, "a", "eu").await.priority, Emergency);
}

/// Pending since it was registered, then since it was reopened; attempts in between count from the same instant.
pub async fn a_reopened_copy_is_as_urgent_and_pending_anew(ledger: Subject) {
    register_as(&ledger, "a", Emergency).await;
    let registered_at = copy(&ledger, "a", "eu").await.pending_since;
    assert_eq!(registered_at, copy(&ledger, "a", "eu").await.updated_at);
    pass(MOMENT).await;
    let lease = finish(&ledger, "eu").await;
    assert_eq!(copy(&ledger, "a", "eu").await.pending_since, registered_at);
    pass(MOMENT).await;
    assert!(ledger.reopen(&lease.artifact, &lease.region, lease.epoch, "lost").await.expect("it is registered"));
    let reopened = copy(&ledger, "a", "eu").await;
    assert_eq!((reopened.state, reopened.priority), (CopyState::Pending, Emergency));
    assert!(reopened.pending_since > registered_at);
    assert_eq!(reopened.pending_since, reopened.updated_at);
}
