//! Tombstones. A ledger without them passes.

use std::time::Duration;

use tokio::task::JoinSet;

use super::steps::*;
use crate::model::{ArtifactName, CopyPriority, CopyState, Digest, NewArtifact, TombstoneStage};
use crate::port::ReplicationLedgerExt;
use crate::port::ledger::{CopyRetry, Error, Registered, Tombstones};

const NO_TIME: Duration = Duration::ZERO;

/// An artifact that is complete in each region.
async fn stored(ledger: &Subject, text: &str, regions: &[&str]) -> NewArtifact {
    let artifact = register(ledger, text, regions).await;
    for to in regions {
        finish(ledger, to).await;
    }
    artifact
}

async fn stage(ledger: &Subject, text: &str) -> Option<TombstoneStage> {
    let status = ledger.require(&name(text)).await.expect("it is registered");
    status.tombstone.map(|tombstone| tombstone.stage)
}

async fn delete(tombstones: &dyn Tombstones, digest: &Digest) {
    tombstones.set(digest, NO_TIME, "nobody needs it").await.expect("nothing speaks against it");
    assert!(tombstones.begin_deletion(digest, NO_TIME, NO_TIME).await.expect("nothing speaks against it"));
    tombstones.end_deletion(digest).await.expect("it is being deleted");
}

fn assert_in_use<T: std::fmt::Debug>(answer: Result<T, Error>, digest: &Digest, because: &str) {
    match answer {
        Err(Error::InUse { digest: told, why }) => {
            assert_eq!(told, *digest);
            assert!(why.contains(because), "{why:?} says nothing of {because:?}");
        }
        other => panic!("InUse is wanted, not {other:?}"),
    }
}

async fn assert_collected(ledger: &Subject, text: &str, wanted: TombstoneStage) {
    let before = ledger.require(&name(text)).await.expect("it is registered");
    let tombstone = before.tombstone.clone().expect("it has a tombstone");
    assert_eq!(tombstone.stage, wanted);
    assert!(!before.is_deployable());
    let pinned = ledger.pin(&name(text), &holder("goal:web"), &[].into()).await;
    for answer in [pinned, ledger.deployable(&name(text)).await.map(drop)] {
        match answer {
            Err(error @ Error::Collected { .. }) => {
                assert!(error.to_string().contains(&tombstone.reason), "{error}");
                assert!(!error.is_retryable());
            }
            other => panic!("Collected is wanted, not {other:?}"),
        }
    }
    assert_eq!(ledger.require(&name(text)).await.expect("it is registered"), before, "a refusal changes nothing");
}

/// From its mark on an artifact is not deployed; once its bytes are deleted it has no copies. Each step may be repeated.
pub async fn a_collected_artifact_is_not_deployed_any_more(ledger: Subject) {
    let Some(tombstones) = ledger.tombstones() else { return };
    let digest = stored(&ledger, "web-1", &["eu", "us"]).await.artifact.digest;
    for _ in 0..2 {
        tombstones.set(&digest, NO_TIME, "it's old").await.expect("nothing speaks against it");
        assert_collected(&ledger, "web-1", TombstoneStage::Marked).await;
    }
    tombstones.set(&digest, NO_TIME, "another reason").await.expect("it has one already");
    assert_eq!(tombstones.unfinished(10).await.expect("a read")[0].tombstone.reason, "it's old");
    tombstones.end_deletion(&digest).await.expect("nothing is being deleted: nothing happens");
    assert_collected(&ledger, "web-1", TombstoneStage::Marked).await;
    for _ in 0..2 {
        assert!(tombstones.begin_deletion(&digest, NO_TIME, NO_TIME).await.expect("nothing speaks against it"));
        assert_collected(&ledger, "web-1", TombstoneStage::Deleting).await;
    }
    assert!(!tombstones.lift(&digest).await.expect("a lift"), "bytes may be gone");
    for _ in 0..2 {
        tombstones.end_deletion(&digest).await.expect("it is being deleted");
        assert_collected(&ledger, "web-1", TombstoneStage::Deleted).await;
        assert!(tombstones.unfinished(10).await.expect("a read").is_empty());
    }
    let status = ledger.require(&name("web-1")).await.expect("it is registered");
    assert!(status.copies.is_empty() && status.pins.is_empty());
    assert_eq!(status.tombstone.expect("it has one").reason, "it's old");
    assert!(!tombstones.begin_deletion(&digest, NO_TIME, NO_TIME).await.expect("there is no mark"));
    assert_in_use(tombstones.set(&digest, NO_TIME, "again").await, &digest, "no artifact");
}

/// A collected artifact is registered, and has no copy that could be made more urgent.
pub async fn a_collected_artifact_has_nothing_to_raise(ledger: Subject) {
    let Some(tombstones) = ledger.tombstones() else { return };
    let digest = stored(&ledger, "web-1", &["eu"]).await.artifact.digest;
    tombstones.set(&digest, NO_TIME, "old").await.expect("nothing speaks against it");
    let raise = async |priority| ledger.prioritize(&name("web-1"), priority).await.expect("it is registered");
    assert_eq!(raise(CopyPriority::Emergency).await, 1, "a mark may be lifted");
    delete(tombstones, &digest).await;
    assert_eq!(raise(CopyPriority::Rollback).await, 0);
}

/// A mark that is lifted leaves no trace.
pub async fn a_mark_may_be_lifted(ledger: Subject) {
    let Some(tombstones) = ledger.tombstones() else { return };
    let digest = stored(&ledger, "web-1", &["eu"]).await.artifact.digest;
    assert!(!tombstones.lift(&digest).await.expect("there is none"));
    tombstones.set(&digest, NO_TIME, "old").await.expect("nothing speaks against it");
    assert!(tombstones.lift(&digest).await.expect("a lift"));
    assert!(!tombstones.lift(&digest).await.expect("there is none any more"));
    assert!(!tombstones.begin_deletion(&digest, NO_TIME, NO_TIME).await.expect("there is none any more"));
    ledger.pin(&name("web-1"), &holder("goal:web"), &[].into()).await.expect("it is complete everywhere");
}

/// Pins, copies under way and those that wait, and what was needed lately speak against it, at the mark and at the deletion.
pub async fn what_is_in_use_is_not_collected(ledger: Subject) {
    let Some(tombstones) = ledger.tombstones() else { return };
    let artifact = register(&ledger, "web-1", &["eu"]).await;
    let digest = artifact.artifact.digest;
    let set = async |idle| tombstones.set(&digest, idle, "old").await;
    assert_in_use(set(NO_TIME).await, &digest, "eu");
    let task = claim_one(&ledger, "eu", HOUR).await;
    assert_in_use(set(NO_TIME).await, &digest, "eu");
    ledger.complete(&task.lease).await.expect("the lease is current");
    assert_in_use(set(HOUR).await, &digest, "within");
    ledger.pin(&name("web-1"), &holder("goal:web"), &[].into()).await.expect("it is complete");
    assert_in_use(set(NO_TIME).await, &digest, "goal:web");
    ledger.unpin(&name("web-1"), &holder("goal:web")).await.expect("an unpin");
    set(NO_TIME).await.expect("nothing speaks against it");
    assert_in_use(tombstones.begin_deletion(&digest, HOUR, NO_TIME).await, &digest, "within");
    assert_eq!(stage(&ledger, "web-1").await, Some(TombstoneStage::Marked), "the mark stays");
    assert!(!tombstones.begin_deletion(&digest, NO_TIME, HOUR).await.expect("the mark is young"));
    assert_in_use(tombstones.set(&Digest::of(b"nobody"), NO_TIME, "old").await, &Digest::of(b"nobody"), "no artifact");
}

/// Also a pin that is gone makes an artifact young, as its registration does.
pub async fn a_pin_makes_young(ledger: Subject) {
    let Some(tombstones) = ledger.tombstones() else { return };
    let digest = stored(&ledger, "web-1", &["eu"]).await.artifact.digest;
    assert_eq!(ledger.require(&name("web-1")).await.expect("it is registered").last_pinned_at, None);
    pass(10 * MOMENT).await;
    ledger.pin(&name("web-1"), &holder("goal:web"), &[].into()).await.expect("it is complete");
    ledger.unpin(&name("web-1"), &holder("goal:web")).await.expect("an unpin");
    let status = ledger.require(&name("web-1")).await.expect("it is registered");
    let pinned = status.last_pinned_at.expect("it was pinned");
    assert!(pinned >= crate::model::later(status.registered_at, 9 * MOMENT), "{status:?}");
    assert_eq!(status.last_needed_at(), pinned);
    assert_in_use(tombstones.set(&digest, HOUR, "old").await, &digest, "within");
    pass(3 * MOMENT).await;
    tombstones.set(&digest, MOMENT, "old").await.expect("it was pinned longer ago");
}

/// Copies that were given up do not keep an artifact, and none is reopened under a tombstone.
pub async fn nothing_is_copied_under_a_tombstone(ledger: Subject) {
    let Some(tombstones) = ledger.tombstones() else { return };
    let digest = register(&ledger, "web-1", &["eu", "us"]).await.artifact.digest;
    let lease = finish(&ledger, "eu").await;
    let task = claim_one(&ledger, "us", HOUR).await;
    ledger.fail(&task.lease, "no", CopyRetry::GiveUp).await.expect("the lease is current");
    tombstones.set(&digest, NO_TIME, "old").await.expect("nothing speaks against it");
    for lease in [&lease, &task.lease] {
        let reopened = ledger.reopen(&name("web-1"), &lease.region, lease.epoch, "gone").await;
        assert!(!reopened.expect("it exists"), "{lease:?}");
    }
    assert!(claim(&ledger, "us", HOUR).await.is_empty());
    assert!(tombstones.lift(&digest).await.expect("a lift"));
    assert!(ledger.reopen(&name("web-1"), &region("eu"), lease.epoch, "gone").await.expect("it exists"));
    assert_eq!(copy(&ledger, "web-1", "eu").await.state, CopyState::Pending);
}

/// Artifacts of two jobs with the same bytes are collected together, or neither.
pub async fn all_artifacts_of_a_digest_are_collected_together(ledger: Subject) {
    let Some(tombstones) = ledger.tombstones() else { return };
    let first = stored(&ledger, "web-1", &["eu"]).await;
    let digest = first.artifact.digest;
    let mut second = artifact("web-2", &["eu"]);
    second.artifact.digest = digest;
    ledger.register(&second).await.expect("a digest may stand under two names");
    assert_in_use(tombstones.set(&digest, NO_TIME, "old").await, &digest, "web-2");
    finish(&ledger, "eu").await;
    ledger.pin(&name("web-2"), &holder("goal:web"), &[].into()).await.expect("it is complete");
    assert_in_use(tombstones.set(&digest, NO_TIME, "old").await, &digest, "web-2");
    ledger.unpin(&name("web-2"), &holder("goal:web")).await.expect("an unpin");
    let other = stored(&ledger, "web-3", &["eu"]).await;
    delete(tombstones, &digest).await;
    for text in ["web-1", "web-2"] {
        assert_collected(&ledger, text, TombstoneStage::Deleted).await;
    }
    assert_eq!(ledger.deployable(&name("web-3")).await.expect("it has other bytes").registered, other);
}

/// The same bytes, built anew: they lift a mark, wait for a deletion, and are no longer those that were deleted.
pub async fn bytes_that_are_built_anew_are_kept(ledger: Subject) {
    let Some(tombstones) = ledger.tombstones() else { return };
    let digest = stored(&ledger, "web-1", &["eu"]).await.artifact.digest;
    let again = |text: &str| {
        let mut again = artifact(text, &["eu"]);
        again.artifact.digest = digest;
        again
    };
    tombstones.set(&digest, NO_TIME, "old").await.expect("nothing speaks against it");
    let second = again("web-2");
    assert_eq!(ledger.register(&second).await.expect("a new artifact"), Registered::Created);
    assert_eq!((stage(&ledger, "web-1").await, stage(&ledger, "web-2").await), (None, None));
    finish(&ledger, "eu").await;

    tombstones.set(&digest, NO_TIME, "old").await.expect("nothing speaks against it");
    assert!(tombstones.begin_deletion(&digest, NO_TIME, NO_TIME).await.expect("nothing speaks against it"));
    let third = again("web-3");
    match ledger.register(&third).await {
        Err(error @ Error::BeingDeleted { .. }) => assert!(error.is_retryable()),
        other => panic!("BeingDeleted is wanted, not {other:?}"),
    }
    assert_eq!(ledger.status(&name("web-3")).await.expect("a read"), None);
    assert_eq!(ledger.register(&second).await.expect("it is known"), Registered::Repeated);
    tombstones.end_deletion(&digest).await.expect("it is being deleted");
    assert_eq!(ledger.register(&third).await.expect("it is over"), Registered::Created);
    finish(&ledger, "eu").await;
    ledger.deployable(&name("web-3")).await.expect("it is complete");
    assert_collected(&ledger, "web-1", TombstoneStage::Deleted).await;
    assert!(matches!(ledger.register(&second).await, Err(Error::Conflict { .. })), "a name is not given again");
}

/// Those that are marked or being deleted, the longest so first.
pub async fn unfinished_collections_are_listed(ledger: Subject) {
    let Some(tombstones) = ledger.tombstones() else { return };
    let mut digests = Vec::new();
    for text in ["web-1", "web-2", "web-3", "web-4"] {
        let digest = stored(&ledger, text, &["eu"]).await.artifact.digest;
        tombstones.set(&digest, NO_TIME, text).await.expect("nothing speaks against it");
        digests.push(digest);
        pass(MOMENT).await;
    }
    let listed = async |limit| {
        let page = tombstones.unfinished(limit).await.expect("a read");
        page.into_iter().map(|one| (one.digest, one.tombstone.stage)).collect::<Vec<_>>()
    };
    assert!(tombstones.lift(&digests[1]).await.expect("a lift"));
    assert!(tombstones.begin_deletion(&digests[0], NO_TIME, NO_TIME).await.expect("nothing speaks against it"));
    delete(tombstones, &digests[2]).await;
    let (marked, deleting) = (TombstoneStage::Marked, TombstoneStage::Deleting);
    assert_eq!(listed(10).await, [(digests[3], marked), (digests[0], deleting)]);
    assert_eq!(listed(1).await, [(digests[3], marked)]);
    assert_invalid(tombstones.unfinished(0).await);
    assert_invalid(tombstones.unfinished(crate::port::ledger::MAX_BATCH + 1).await);
}

/// Of bytes that are collected and built anew it is told by the newer artifact.
pub async fn bytes_that_no_artifact_has_are_told(ledger: Subject) {
    let Some(tombstones) = ledger.tombstones() else { return };
    let unknown = Digest::of(b"nobody's");
    let mut digests = vec![unknown];
    for text in ["web-1", "web-2", "web-3"] {
        digests.push(stored(&ledger, text, &["eu"]).await.artifact.digest);
    }
    let unneeded = async || tombstones.unneeded(&digests).await.expect("a read");
    assert_eq!(unneeded().await, [unknown].into());
    assert!(tombstones.unneeded(&[]).await.expect("a read").is_empty());
    tombstones.set(&digests[1], NO_TIME, "it is old").await.expect("nothing speaks against it");
    assert_eq!(unneeded().await, [unknown].into(), "it may yet be needed");
    delete(tombstones, &digests[2]).await;
    assert_eq!(unneeded().await, [unknown, digests[2]].into());
    let mut anew = artifact("web-4", &["eu"]);
    anew.artifact.digest = digests[2];
    ledger.register(&anew).await.expect("its bytes are not being deleted");
    assert_eq!(unneeded().await, [unknown].into());
    assert_invalid(tombstones.unneeded(&vec![unknown; crate::port::ledger::MAX_BATCH + 1]).await);
}

/// A pin and a mark at once: one of them is refused.
pub async fn a_pin_and_a_mark_exclude_each_other(ledger: Subject) {
    if ledger.tombstones().is_none() {
        return;
    }
    for round in 0..20 {
        let text = format!("web-{round}");
        let artifact = stored(&ledger, &text, &["eu", "us"]).await.artifact;
        let mut pins = JoinSet::new();
        for caller in 0..3 {
            let (ledger, artifact): (_, ArtifactName) = (ledger.clone(), artifact.name.clone());
            pins.spawn(async move {
                let pin = holder(&format!("holder:{caller}"));
                ledger.pin(&artifact, &pin, &[].into()).await.is_ok()
            });
        }
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let tombstones = ledger.tombstones().expect("it had some before");
        let is_marked = tombstones.set(&artifact.digest, NO_TIME, "old").await.is_ok();
        let is_pinned = pins.join_all().await.contains(&true);
        assert!(is_marked != is_pinned, "round {round}: marked {is_marked}, pinned {is_pinned}");
        assert_eq!(stage(&ledger, &text).await.is_some(), is_marked);
    }
}

/// Another artifact of the same bytes.
fn twin(artifact: &NewArtifact, text: &str) -> NewArtifact {
    let mut twin = self::artifact(text, &["eu"]);
    twin.artifact.digest = artifact.artifact.digest;
    twin
}

/// Whoever sees the new copy sets no mark, and the registration lifts the mark that is there.
pub async fn a_registration_and_a_mark_do_not_both_stand(ledger: Subject) {
    for round in 0..20 {
        let Some(tombstones) = ledger.tombstones() else { return };
        let old = stored(&ledger, &format!("web-{round}"), &["eu"]).await;
        let text = format!("api-{round}");
        let new = twin(&old, &text);
        let registrar = ledger.clone();
        let register = tokio::spawn(async move { registrar.register(&new).await });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        match tombstones.set(&old.artifact.digest, NO_TIME, "old").await {
            Ok(()) | Err(Error::InUse { .. }) => {}
            Err(error) => panic!("round {round}: {error}"),
        }
        register.await.expect("it ends").expect("its bytes are not being deleted");
        assert_eq!(stage(&ledger, &text).await, None, "round {round}");
        finish(&ledger, "eu").await;
    }
}

/// Either the registration lifts the mark, or it is told that the bytes go.
pub async fn a_registration_and_a_deletion_do_not_both_begin(ledger: Subject) {
    for round in 0..20 {
        let Some(tombstones) = ledger.tombstones() else { return };
        let old = stored(&ledger, &format!("web-{round}"), &["eu"]).await;
        let digest = old.artifact.digest;
        tombstones.set(&digest, NO_TIME, "old").await.expect("nothing speaks against it");
        let new = twin(&old, &format!("api-{round}"));
        let registrar = ledger.clone();
        let register = tokio::spawn(async move { registrar.register(&new).await });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let begun = tombstones.begin_deletion(&digest, NO_TIME, NO_TIME).await;
        let registered = register.await.expect("it ends");
        match (&begun, &registered) {
            (Ok(true), Err(Error::BeingDeleted { .. })) => {
                tombstones.end_deletion(&digest).await.expect("its end");
            }
            (Ok(false) | Err(Error::InUse { .. }), Ok(_)) => {
                finish(&ledger, "eu").await;
            }
            both => panic!("round {round}: {both:?}"),
        }
    }
}
