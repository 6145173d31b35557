//! Deployable, pins, and copies that disappear.

use std::collections::BTreeMap;

use tokio::task::JoinSet;

use super::steps::*;
use crate::model::{CopyState, Epoch, RegionName};
use crate::port::ReplicationLedgerExt;
use crate::port::ledger::{CopyRetry, Error};

async fn assert_not_deployable(ledger: &Subject, text: &str, wanted: &[(&str, CopyState)]) {
    let wanted: BTreeMap<RegionName, CopyState> = wanted.iter().map(|(to, state)| (region(to), *state)).collect();
    let pins = ledger.require(&name(text)).await.expect("it is registered").pins;
    let pinned = ledger.pin(&name(text), &holder("goal:web"), &[].into()).await;
    for answer in [pinned.map(|()| None), ledger.deployable(&name(text)).await.map(Some)] {
        match answer {
            Err(Error::NotDeployable { artifact, missing }) => {
                assert_eq!((artifact, missing), (name(text), wanted.clone()));
            }
            other => panic!("NotDeployable is wanted, not {other:?}"),
        }
    }
    assert_eq!(ledger.require(&name(text)).await.expect("it is registered").pins, pins, "a refusal changes nothing");
}

/// Deployable when complete in each required region, and only then; the error names the missing ones.
pub async fn a_pin_wants_every_region(ledger: Subject) {
    register(&ledger, "web-1", &["eu", "us", "ap"]).await;
    let (pending, failed) = (CopyState::Pending, CopyState::Failed);
    assert_not_deployable(&ledger, "web-1", &[("ap", pending), ("eu", pending), ("us", pending)]).await;
    finish(&ledger, "eu").await;
    let task = claim_one(&ledger, "us", HOUR).await;
    ledger.fail(&task.lease, "no", CopyRetry::GiveUp).await.expect("the lease is current");
    assert_not_deployable(&ledger, "web-1", &[("ap", pending), ("us", failed)]).await;
    finish(&ledger, "ap").await;
    assert_not_deployable(&ledger, "web-1", &[("us", failed)]).await;
    assert!(ledger.reopen(&name("web-1"), &region("us"), Epoch::new(1), "again").await.expect("it exists"));
    assert_not_deployable(&ledger, "web-1", &[("us", pending)]).await;
    finish(&ledger, "us").await;
    for _ in 0..2 {
        ledger.pin(&name("web-1"), &holder("goal:web"), &[].into()).await.expect("it is complete everywhere");
    }
    let status = ledger.deployable(&name("web-1")).await.expect("it is complete everywhere");
    assert_eq!(status.pins, [holder("goal:web")].into());
}

/// A waived region may lack the artifact; the error names the others. Waiving all of them waives none, and the next pin is checked as ever.
pub async fn a_pin_may_do_without_waived_regions_but_not_without_all(ledger: Subject) {
    register(&ledger, "web-1", &["eu", "us", "ap"]).await;
    let pin = async |waived: &[&str]| {
        let waived = waived.iter().map(|name| region(name)).collect();
        let before = ledger.require(&name("web-1")).await.expect("it is registered");
        match ledger.pin(&name("web-1"), &holder("goal:web"), &waived).await {
            Ok(()) => BTreeMap::new(),
            Err(Error::NotDeployable { missing, .. }) => {
                let after = ledger.require(&name("web-1")).await.expect("it is registered");
                assert_eq!(after, before, "a refusal changes nothing");
                missing
            }
            Err(other) => panic!("{other:?}"),
        }
    };
    let pending = |names: &[&str]| names.iter().map(|to| (region(to), CopyState::Pending)).collect::<BTreeMap<_, _>>();
    assert_eq!(pin(&["eu", "us"]).await, pending(&["ap"]));
    assert_eq!(pin(&["eu", "us", "ap", "mars"]).await, pending(&["ap", "eu", "us"]));
    finish(&ledger, "ap").await;
    assert_eq!(pin(&["eu"]).await, pending(&["us"]));
    assert_eq!(pin(&["mars"]).await, pending(&["eu", "us"]));
    assert_eq!(pin(&["ap", "eu", "us"]).await, pending(&["eu", "us"]));
    assert_eq!(pin(&["eu", "us"]).await, pending(&[]));
    assert_eq!(ledger.require(&name("web-1")).await.expect("it is registered").pins, [holder("goal:web")].into());
    assert_not_deployable(&ledger, "web-1", &[("eu", CopyState::Pending), ("us", CopyState::Pending)]).await;
    for to in ["eu", "us"] {
        finish(&ledger, to).await;
    }
    assert_eq!(pin(&["ap", "eu", "us"]).await, pending(&[]), "nothing is missing");
}

/// Each holder has a pin of its own on each artifact.
pub async fn pins_are_kept_by_holder(ledger: Subject) {
    for text in ["web-1", "web-2"] {
        register(&ledger, text, &["eu"]).await;
        finish(&ledger, "eu").await;
        for pin in ["goal:web", "goal:api"] {
            ledger.pin(&name(text), &holder(pin), &[].into()).await.expect("it is complete everywhere");
        }
    }
    for _ in 0..2 {
        ledger.unpin(&name("web-1"), &holder("goal:web")).await.expect("an unpin");
        ledger.unpin(&name("web-1"), &holder("nobody")).await.expect("an unpin");
    }
    let pins = async |text| ledger.require(&name(text)).await.expect("it is registered").pins;
    assert_eq!(pins("web-1").await, [holder("goal:api")].into());
    assert_eq!(pins("web-2").await, [holder("goal:api"), holder("goal:web")].into());
}

/// An unknown artifact cannot be pinned, and has no pins to take away.
pub async fn an_unknown_artifact_has_no_pins(ledger: Subject) {
    assert_not_found(ledger.pin(&name("web-9"), &holder("goal:web"), &[].into()).await, &name("web-9"));
    ledger.unpin(&name("web-9"), &holder("goal:web")).await.expect("an unpin");
    assert_eq!(ledger.status(&name("web-9")).await.expect("a read"), None);
}

/// A copy that disappeared is copied anew: pending at once, from nothing, with the next epoch; the old lease is void.
pub async fn a_lost_copy_is_reopened(ledger: Subject) {
    register(&ledger, "web-1", &["eu", "us"]).await;
    let old = finish(&ledger, "eu").await;
    finish(&ledger, "us").await;
    ledger.pin(&name("web-1"), &holder("goal:web"), &[].into()).await.expect("it is complete everywhere");
    let us = copy(&ledger, "web-1", "us").await;
    let reason = format!("blob gone{}", " ".repeat(crate::model::Failure::MAX_MESSAGE));
    assert!(ledger.reopen(&name("web-1"), &region("eu"), old.epoch, &reason).await.expect("it exists"));
    let again = copy(&ledger, "web-1", "eu").await;
    assert_eq!((again.state, again.epoch), (CopyState::Pending, old.epoch.next()));
    assert_eq!((again.attempts, again.bytes, again.completed_at, again.leased_until), (0, 0, None, None));
    assert_eq!(again.eligible_at, again.updated_at);
    assert_eq!(again.last_error.as_deref(), Some(crate::model::Failure::cut(&reason)));
    assert_eq!(copy(&ledger, "web-1", "us").await, us, "the other region is untouched");
    assert_not_deployable(&ledger, "web-1", &[("eu", CopyState::Pending)]).await;
    assert_eq!(ledger.require(&name("web-1")).await.expect("it is registered").pins.len(), 1, "pins stay");
    assert_zombie(&ledger, &old).await;
    assert!(claim_as(&ledger, old.claim, "eu", HOUR).await.is_empty(), "nor is its claim taken up again");
    let task = claim_one(&ledger, "eu", HOUR).await;
    assert_eq!((task.lease.epoch, task.attempt), (old.epoch.next().next(), 1));
}

/// Nothing happens to a copy that has moved on, that is pending, or that was reopened by this very call.
pub async fn a_reopening_of_what_moved_on_does_nothing(ledger: Subject) {
    register(&ledger, "web-1", &["eu"]).await;
    let reopen = async |seen| {
        let before = copy(&ledger, "web-1", "eu").await;
        let done = ledger.reopen(&name("web-1"), &region("eu"), seen, "gone").await.expect("it exists");
        assert_eq!(done, copy(&ledger, "web-1", "eu").await != before, "it changes what it says it changes");
        done
    };
    assert!(!reopen(Epoch::ZERO).await, "never copied");
    let task = claim_one(&ledger, "eu", HOUR).await;
    assert!(!reopen(task.lease.epoch).await, "being copied");
    ledger.complete(&task.lease).await.expect("the lease is current");
    assert!(!reopen(Epoch::ZERO).await, "seen too early");
    assert!(!reopen(task.lease.epoch.next()).await, "seen never");
    assert!(reopen(task.lease.epoch).await);
    assert!(!reopen(task.lease.epoch).await, "the repeat");
    let task = claim_one(&ledger, "eu", HOUR).await;
    ledger.fail(&task.lease, "no", CopyRetry::GiveUp).await.expect("the lease is current");
    assert!(reopen(task.lease.epoch).await, "a failed copy too");
    for (text, to) in [("web-9", "eu"), ("web-1", "mars")] {
        assert_not_found(ledger.reopen(&name(text), &region(to), Epoch::ZERO, "gone").await, &name(text));
    }
}

/// A person reopens what was given up, and only that.
pub async fn failed_copies_are_reopened_together(ledger: Subject) {
    register(&ledger, "web-1", &["eu", "us", "ap"]).await;
    for to in ["us", "ap"] {
        let task = claim_one(&ledger, to, HOUR).await;
        ledger.fail(&task.lease, "no", CopyRetry::GiveUp).await.expect("the lease is current");
    }
    finish(&ledger, "eu").await;
    let reopened = ledger.reopen_failed(&name("web-1"), "the disk has room again").await.expect("it is registered");
    assert_eq!(reopened, [region("us"), region("ap")].into());
    assert_eq!(ledger.reopen_failed(&name("web-1"), "twice").await.expect("it is registered"), [].into());
    for to in ["us", "ap"] {
        finish(&ledger, to).await;
    }
    ledger.deployable(&name("web-1")).await.expect("it is complete everywhere");
    assert_not_found(ledger.reopen_failed(&name("web-9"), "no").await, &name("web-9"));
}

/// Many who saw the same loss: one of them reopens the copy.
pub async fn concurrent_reopenings_count_once(ledger: Subject) {
    register(&ledger, "web-1", &["eu"]).await;
    for _ in 0..5 {
        let lease = finish(&ledger, "eu").await;
        let mut calls = JoinSet::new();
        for _ in 0..6 {
            let (ledger, seen) = (ledger.clone(), lease.epoch);
            calls.spawn(
                async move { ledger.reopen(&name("web-1"), &region("eu"), seen, "gone").await.expect("it exists") },
            );
        }
        assert_eq!(calls.join_all().await.into_iter().filter(|done| *done).count(), 1);
        assert_eq!(copy(&ledger, "web-1", "eu").await.epoch, lease.epoch.next());
    }
}

/// A pin and a reopening at once: once the copy is gone no pin comes any more, and who was told yes before it has one.
pub async fn a_pin_is_decided_in_one_step(ledger: Subject) {
    for round in 0..10 {
        let text = format!("web-{round}");
        register(&ledger, &text, &["eu", "us"]).await;
        let (lease, _) = (finish(&ledger, "eu").await, finish(&ledger, "us").await);
        let mut calls = JoinSet::new();
        for caller in 0..4 {
            let (ledger, artifact) = (ledger.clone(), lease.artifact.clone());
            calls.spawn(async move {
                let pin = holder(&format!("holder:{caller}"));
                let told = ledger.pin(&artifact, &pin, &[].into()).await.is_ok();
                (pin, told)
            });
        }
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        ledger.reopen(&lease.artifact, &lease.region, lease.epoch, "gone").await.expect("it exists");
        let pins = async || ledger.require(&lease.artifact).await.expect("it is registered").pins;
        let before = pins().await;
        assert_not_deployable(&ledger, &text, &[("eu", CopyState::Pending)]).await;
        let told = calls.join_all().await;
        assert_eq!(pins().await, before, "a pin came although the copy was gone");
        for (pin, yes) in told {
            assert_eq!(before.contains(&pin), yes, "{pin}");
        }
        finish(&ledger, "eu").await;
    }
}
