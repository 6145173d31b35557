//! Copies: claiming, progress and their ends.

use std::time::Duration;

use tokio::task::JoinSet;

use super::steps::*;
use crate::model::{ClaimId, CopyLease, CopyState, Epoch, Failure, later};
use crate::port::ledger::{CopyRetry, MAX_BATCH, bounds};

/// A claimed copy has a lease, an attempt and a time to show progress.
pub async fn a_claimed_copy_is_leased(ledger: Subject) {
    let registered = register(&ledger, "web-1", &["eu", "us"]).await;
    let id = ClaimId::new();
    let tasks = claim_as(&ledger, id, "eu", HOUR).await;
    let lease = CopyLease { artifact: name("web-1"), region: region("eu"), claim: id, epoch: Epoch::new(1) };
    assert_eq!(tasks.len(), 1);
    assert_eq!((&tasks[0].lease, &tasks[0].artifact, tasks[0].attempt), (&lease, &registered.artifact, 1));
    let taken = copy(&ledger, "web-1", "eu").await;
    assert_eq!((taken.state, taken.epoch, taken.attempts), (CopyState::Pending, Epoch::new(1), 1));
    assert_eq!(taken.leased_until, Some(later(taken.updated_at, HOUR)));
    assert_eq!(copy(&ledger, "web-1", "us").await.epoch, Epoch::ZERO, "the other region is untouched");
    assert!(claim(&ledger, "eu", HOUR).await.is_empty(), "a live lease holds it");
    assert!(claim(&ledger, "mars", HOUR).await.is_empty());
}

/// Oldest first, then by name, at most the limit.
pub async fn copies_come_oldest_first(ledger: Subject) {
    for text in ["c", "a", "d", "b"] {
        register(&ledger, text, &["eu"]).await;
        pass(MOMENT).await;
    }
    let first = ledger.claim(&request(ClaimId::new(), "eu", HOUR, 3)).await.expect("a claim");
    assert_eq!(names(&first), ["c", "a", "d"]);
    assert_eq!(names(&claim(&ledger, "eu", HOUR).await), ["b"]);
}

/// The bounds of a claim.
pub async fn a_claim_out_of_bounds_is_refused(ledger: Subject) {
    register(&ledger, "web-1", &["eu"]).await;
    let too_long = bounds::MAX_LEASE + Duration::from_millis(1);
    for (limit, lease) in [(0, HOUR), (MAX_BATCH + 1, HOUR), (1, too_long)] {
        assert_invalid(ledger.claim(&request(ClaimId::new(), "eu", lease, limit)).await);
    }
    let task = claim_one(&ledger, "eu", bounds::MAX_LEASE).await;
    assert_invalid(ledger.progress(&task.lease, 0, too_long).await);
}

/// A lost reply: the same claim gives the same tasks, and none in place of those that ended.
pub async fn repeating_gives_only_copies_whose_lease_holds(ledger: Subject) {
    for text in ["a", "b", "c", "d"] {
        register(&ledger, text, &["eu"]).await;
        pass(Duration::from_millis(2)).await;
    }
    let id = ClaimId::new();
    let first = ledger.claim(&request(id, "eu", HOUR, 3)).await.expect("a claim");
    let again = claim_as(&ledger, id, "eu", HOUR).await;
    assert_eq!(again, first, "the same, although it asks for more");
    assert_eq!(copy(&ledger, "a", "eu").await.attempts, 1, "no second attempt");
    ledger.complete(&first[0].lease).await.expect("the lease is current");
    ledger.fail(&first[1].lease, "no", CopyRetry::After(Duration::ZERO)).await.expect("the lease is current");
    assert_eq!(names(&claim_as(&ledger, id, "eu", HOUR).await), ["c"]);
    ledger.fail(&first[2].lease, "no", CopyRetry::GiveUp).await.expect("the lease is current");
    assert!(claim_as(&ledger, id, "eu", HOUR).await.is_empty());
    assert_eq!(names(&claim(&ledger, "eu", HOUR).await), ["b", "d"]);
    assert!(claim_as(&ledger, id, "eu", HOUR).await.is_empty());
}

/// A lease that ran out gives way to another claim, and its holder is refused from then on.
pub async fn a_lease_that_ran_out_gives_way(ledger: Subject) {
    register(&ledger, "web-1", &["eu"]).await;
    let id = ClaimId::new();
    let stale = claim_as(&ledger, id, "eu", Duration::ZERO).await.remove(0);
    assert!(claim_as(&ledger, id, "eu", HOUR).await.is_empty(), "its lease does not hold");
    let next = claim_one(&ledger, "eu", HOUR).await;
    assert_eq!((next.lease.epoch, next.attempt), (stale.lease.epoch.next(), 2));
    assert_zombie(&ledger, &stale.lease).await;
    ledger.complete(&next.lease).await.expect("the lease is current");
    assert_zombie(&ledger, &stale.lease).await;
    assert_eq!(copy(&ledger, "web-1", "eu").await.state, CopyState::Complete);
}

/// As long as nobody took the copy over, the work of a slow holder counts.
pub async fn a_lease_that_ran_out_is_good_until_taken_over(ledger: Subject) {
    for text in ["a", "b"] {
        register(&ledger, text, &["eu"]).await;
        let slow = claim_one(&ledger, "eu", Duration::ZERO).await;
        pass(MOMENT).await;
        if text == "a" {
            ledger.progress(&slow.lease, 5, HOUR).await.expect("nobody took it over");
            assert!(claim(&ledger, "eu", HOUR).await.is_empty(), "it is leased again");
        }
        ledger.complete(&slow.lease).await.expect("nobody took it over");
        assert_eq!(copy(&ledger, text, "eu").await.state, CopyState::Complete);
    }
}

/// Progress is kept, never past the size, and renews the lease from now.
pub async fn progress_renews_the_lease(ledger: Subject) {
    register(&ledger, "web-1", &["eu"]).await;
    let task = claim_one(&ledger, "eu", HOUR).await;
    let before = copy(&ledger, "web-1", "eu").await;
    pass(MOMENT).await;
    ledger.progress(&task.lease, 77, HOUR * 2).await.expect("the lease is current");
    let after = copy(&ledger, "web-1", "eu").await;
    assert!(after.updated_at > before.updated_at);
    assert_eq!((after.bytes, after.leased_until), (77, Some(later(after.updated_at, HOUR * 2))));
    assert_eq!((after.epoch, after.attempts, after.state), (Epoch::new(1), 1, CopyState::Pending));
    ledger.progress(&task.lease, SIZE + 1, Duration::ZERO).await.expect("the lease is current");
    assert_eq!(copy(&ledger, "web-1", "eu").await.bytes, SIZE);
    assert_eq!(claim(&ledger, "eu", HOUR).await.len(), 1, "a renewal may also shorten");
}

/// Complete: whole, with its time; the repeat changes nothing.
pub async fn a_complete_copy_stays_complete(ledger: Subject) {
    register(&ledger, "web-1", &["eu", "us"]).await;
    let task = claim_one(&ledger, "eu", HOUR).await;
    ledger.complete(&task.lease).await.expect("the lease is current");
    let done = copy(&ledger, "web-1", "eu").await;
    assert_eq!((done.state, done.bytes, done.leased_until), (CopyState::Complete, SIZE, None));
    assert_eq!(done.completed_at, Some(done.updated_at));
    pass(MOMENT).await;
    ledger.complete(&task.lease).await.expect("a repeat");
    assert_eq!(copy(&ledger, "web-1", "eu").await, done);
    assert_lost(ledger.fail(&task.lease, "no", CopyRetry::GiveUp).await, &task.lease);
    assert_lost(ledger.progress(&task.lease, 1, HOUR).await, &task.lease);
    assert_eq!(copy(&ledger, "web-1", "eu").await, done);
    assert!(claim(&ledger, "eu", HOUR).await.is_empty());
    assert_eq!(copy(&ledger, "web-1", "us").await.state, CopyState::Pending);
}

/// A failed attempt waits exactly its delay; the repeat changes nothing, whatever it says.
pub async fn a_failed_attempt_waits_for_its_delay(ledger: Subject) {
    register(&ledger, "web-1", &["eu"]).await;
    let task = claim_one(&ledger, "eu", HOUR).await;
    ledger.fail(&task.lease, "disk full", CopyRetry::After(HOUR)).await.expect("the lease is current");
    let waiting = copy(&ledger, "web-1", "eu").await;
    assert_eq!((waiting.state, waiting.leased_until, waiting.attempts), (CopyState::Pending, None, 1));
    assert_eq!(waiting.eligible_at, later(waiting.updated_at, HOUR));
    assert_eq!(waiting.last_error.as_deref(), Some("disk full"));
    assert!(claim(&ledger, "eu", HOUR).await.is_empty(), "not before its delay");
    pass(MOMENT).await;
    ledger.fail(&task.lease, "disk full", CopyRetry::After(HOUR)).await.expect("a repeat");
    ledger.fail(&task.lease, "another word", CopyRetry::GiveUp).await.expect("a repeat");
    assert_eq!(copy(&ledger, "web-1", "eu").await, waiting);
    assert_lost(ledger.complete(&task.lease).await, &task.lease);
    assert_lost(ledger.progress(&task.lease, 1, HOUR).await, &task.lease);
}

/// Attempts go on with no delay, each with the next epoch; a late repeat of an older one is refused.
pub async fn attempts_and_epochs_grow(ledger: Subject) {
    register(&ledger, "web-1", &["eu"]).await;
    let mut older: Option<CopyLease> = None;
    for round in 1..=4 {
        let task = claim_one(&ledger, "eu", HOUR).await;
        assert_eq!((task.attempt, task.lease.epoch), (round, Epoch::new(round.into())));
        if let Some(lease) = &older {
            assert_zombie(&ledger, lease).await;
        }
        ledger.fail(&task.lease, "no", CopyRetry::After(Duration::ZERO)).await.expect("the lease is current");
        older = Some(task.lease);
    }
}

/// Given up: failed, and claimed by nobody. Long reasons and delays are cut.
pub async fn a_copy_may_be_given_up(ledger: Subject) {
    register(&ledger, "web-1", &["eu"]).await;
    let task = claim_one(&ledger, "eu", HOUR).await;
    let reason = "\u{e9}".repeat(Failure::MAX_MESSAGE);
    ledger.fail(&task.lease, &reason, CopyRetry::After(bounds::MAX_LEASE * 3)).await.expect("the lease is current");
    let waiting = copy(&ledger, "web-1", "eu").await;
    assert_eq!(waiting.last_error.as_deref(), Some(Failure::cut(&reason)));
    assert_eq!(waiting.eligible_at, later(waiting.updated_at, bounds::MAX_LEASE));
    register(&ledger, "web-2", &["eu"]).await;
    let task = claim_one(&ledger, "eu", HOUR).await;
    ledger.fail(&task.lease, "gone", CopyRetry::GiveUp).await.expect("the lease is current");
    let failed = copy(&ledger, "web-2", "eu").await;
    assert_eq!((failed.state, failed.last_error.as_deref()), (CopyState::Failed, Some("gone")));
    ledger.fail(&task.lease, "gone", CopyRetry::GiveUp).await.expect("a repeat");
    assert_eq!(copy(&ledger, "web-2", "eu").await, failed);
    assert!(claim(&ledger, "eu", HOUR).await.is_empty());
}

/// Both the epoch and the claim id must be right, of an artifact and a region that exist.
pub async fn a_forged_lease_is_refused(ledger: Subject) {
    register(&ledger, "web-1", &["eu"]).await;
    let never = CopyLease { artifact: name("web-1"), region: region("eu"), claim: ClaimId::new(), epoch: Epoch::ZERO };
    assert_zombie(&ledger, &never).await;
    let current = claim_one(&ledger, "eu", HOUR).await.lease;
    let forged = [
        CopyLease { epoch: current.epoch.next(), ..current.clone() },
        CopyLease { epoch: Epoch::ZERO, ..current.clone() },
        CopyLease { claim: ClaimId::new(), ..current.clone() },
    ];
    for lease in &forged {
        assert_zombie(&ledger, lease).await;
    }
    for unknown in [
        CopyLease { artifact: name("web-9"), ..current.clone() },
        CopyLease { region: region("mars"), ..current.clone() },
    ] {
        assert_not_found(ledger.progress(&unknown, 1, HOUR).await, &unknown.artifact);
        assert_not_found(ledger.complete(&unknown).await, &unknown.artifact);
        assert_not_found(ledger.fail(&unknown, "no", CopyRetry::GiveUp).await, &unknown.artifact);
    }
    ledger.complete(&current).await.expect("the lease is current");
}

/// Many replicators at once: each copy goes to one of them.
pub async fn claims_at_once_share_no_copy(ledger: Subject) {
    for round in 0..3 {
        for n in 0..20 {
            register(&ledger, &format!("web-{round}-{n}"), &["eu", "us"]).await;
        }
        let mut calls = JoinSet::new();
        for index in 0..8 {
            let ledger = ledger.clone();
            calls.spawn(async move {
                let (to, mut taken) = (["eu", "us"][index % 2], Vec::new());
                loop {
                    tokio::task::yield_now().await;
                    let tasks = ledger.claim(&request(ClaimId::new(), to, HOUR, 1 + index / 2)).await.expect("a claim");
                    if tasks.is_empty() {
                        return taken;
                    }
                    for task in tasks {
                        ledger.complete(&task.lease).await.expect("the lease is current");
                        taken.push((task.lease.artifact, task.lease.region));
                    }
                }
            });
        }
        let mut taken = calls.join_all().await.concat();
        taken.sort_unstable();
        let total = taken.len();
        taken.dedup();
        assert_eq!((taken.len(), total), (40, 40));
    }
}
