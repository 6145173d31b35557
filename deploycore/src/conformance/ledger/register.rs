//! Registering artifacts, and reading them.

use tokio::task::JoinSet;

use super::steps::*;
use crate::model::{ArtifactName, ArtifactRef, CopyState, Digest, Epoch, JobId, NewArtifact};
use crate::port::ReplicationLedgerExt;
use crate::port::ledger::{CopyRetry, Error, LedgerCursor, LedgerFilter, MAX_BATCH, Registered, bounds};

/// Each required region starts with a pending copy that may be claimed at once.
pub async fn a_new_artifact_is_pending_everywhere(ledger: Subject) {
    let registered = register(&ledger, "web-1", &["eu", "us", "ap"]).await;
    let status = ledger.require(&registered.artifact.name).await.expect("it is registered");
    assert_eq!(status.registered, registered);
    assert_eq!(status.copies.keys().cloned().collect::<std::collections::BTreeSet<_>>(), registered.required);
    assert!(status.pins.is_empty() && !status.is_deployable());
    for copy in status.copies.values() {
        assert_eq!((copy.state, copy.epoch, copy.attempts, copy.bytes), (CopyState::Pending, Epoch::ZERO, 0, 0));
        assert_eq!((copy.eligible_at, copy.updated_at), (status.registered_at, status.registered_at));
        assert_eq!((copy.leased_until, copy.completed_at, &copy.last_error), (None, None, &None));
    }
}

/// A lost reply: the same artifact again changes nothing, wherever its copies stand.
pub async fn repeating_changes_nothing(ledger: Subject) {
    let registered = register(&ledger, "web-1", &["eu", "us"]).await;
    assert_eq!(ledger.register(&registered).await.expect("a repeat"), Registered::Repeated);
    finish(&ledger, "eu").await;
    let before = ledger.require(&registered.artifact.name).await.expect("it is registered");
    assert_eq!(ledger.register(&registered).await.expect("a repeat"), Registered::Repeated);
    assert_eq!(ledger.require(&registered.artifact.name).await.expect("it is registered"), before);
}

/// Each field of the body counts, the set of regions included.
pub async fn another_body_is_a_conflict(ledger: Subject) {
    let registered = register(&ledger, "web-1", &["eu", "us"]).await;
    let with = |change: fn(&mut NewArtifact)| {
        let mut other = registered.clone();
        change(&mut other);
        other
    };
    let others = [
        with(|other| other.artifact.digest = Digest::of(b"other")),
        with(|other| other.artifact.size += 1),
        with(|other| other.service = "api".parse().expect("a name")),
        with(|other| other.job = JobId::new()),
        with(|other| drop(other.required.pop_first())),
        with(|other| other.required.extend([region("ap")])),
    ];
    for other in others {
        match ledger.register(&other).await {
            Err(error @ Error::Conflict { .. }) => assert!(!error.is_retryable()),
            answer => panic!("Conflict is wanted for {other:?}, not {answer:?}"),
        }
    }
    assert_eq!(ledger.require(&registered.artifact.name).await.expect("it is registered").registered, registered);
}

/// No region, or too many.
pub async fn regions_out_of_bounds_are_refused(ledger: Subject) {
    let regions: Vec<_> = (0..=bounds::MAX_REGIONS).map(|n| format!("r{n}")).collect();
    let regions: Vec<_> = regions.iter().map(String::as_str).collect();
    assert_invalid(ledger.register(&artifact("none", &[])).await);
    assert_invalid(ledger.register(&artifact("many", &regions)).await);
    register(&ledger, "most", &regions[1..]).await;
    assert_eq!(ledger.status(&name("none")).await.expect("a read"), None);
}

/// Two artifacts may have the same bytes.
pub async fn a_digest_may_stand_under_two_names(ledger: Subject) {
    let first = register(&ledger, "web-1", &["eu"]).await;
    let mut second = artifact("web-2", &["eu"]);
    second.artifact.digest = first.artifact.digest;
    assert_eq!(ledger.register(&second).await.expect("within bounds"), Registered::Created);
    assert_eq!(names(&claim(&ledger, "eu", HOUR).await).len(), 2);
}

/// The largest size is kept to the byte.
pub async fn sizes_are_kept_whole(ledger: Subject) {
    for (index, size) in [0, u64::from(u32::MAX) + 1, crate::model::MAX_ARTIFACT_SIZE].into_iter().enumerate() {
        let mut spec = artifact(&format!("web-{index}"), &["eu"]);
        spec.artifact = ArtifactRef { size, ..spec.artifact };
        ledger.register(&spec).await.expect("within bounds");
        assert_eq!(finish(&ledger, "eu").await.artifact, spec.artifact.name);
        assert_eq!(copy(&ledger, spec.artifact.name.as_str(), "eu").await.bytes, size);
    }
}

/// Exactly those that are not there.
pub async fn the_unregistered_are_those_that_are_missing(ledger: Subject) {
    register(&ledger, "web-1", &["eu"]).await;
    register(&ledger, "web-3", &["eu"]).await;
    let wanted = ["web-1", "web-2", "web-3", "web-4", "web-2"].map(name);
    assert_eq!(ledger.unregistered(&wanted).await.expect("a read"), [name("web-2"), name("web-4")].into());
    assert!(ledger.unregistered(&[]).await.expect("a read").is_empty());
    let many: Vec<ArtifactName> = (0..=MAX_BATCH).map(|n| name(&format!("n{n}"))).collect();
    assert_invalid(ledger.unregistered(&many).await);
    assert_eq!(ledger.unregistered(&many[1..]).await.expect("a read").len(), MAX_BATCH);
}

/// What does not exist is `None`, or not found where it must exist.
pub async fn an_unknown_artifact_is_none(ledger: Subject) {
    assert_eq!(ledger.status(&name("web-9")).await.expect("a read"), None);
    assert_not_found(ledger.require(&name("web-9")).await, &name("web-9"));
    assert_not_found(ledger.deployable(&name("web-9")).await, &name("web-9"));
}

/// Many registrars at once: one creates the rows.
pub async fn concurrent_repeats_register_once(ledger: Subject) {
    for round in 0..10 {
        let spec = artifact(&format!("web-{round}"), &["eu", "us"]);
        let mut calls = JoinSet::new();
        for _ in 0..6 {
            let (ledger, spec) = (ledger.clone(), spec.clone());
            calls.spawn(async move { ledger.register(&spec).await.expect("the same artifact") });
        }
        let answers = calls.join_all().await;
        assert_eq!(answers.iter().filter(|answer| **answer == Registered::Created).count(), 1);
    }
    assert_eq!(claim(&ledger, "us", HOUR).await.len(), 10);
}

/// Newest first, then the greatest name; each once, whatever the size of the page, also while others come.
pub async fn pages_show_each_artifact_once_newest_first(ledger: Subject) {
    let mut wanted = Vec::new();
    for n in [3, 1, 4, 0, 5, 2] {
        wanted.insert(0, register(&ledger, &format!("web-{n}"), &["eu"]).await.artifact.name);
        pass(MOMENT).await;
    }
    for size in [1, 2, 4, 6, 7, MAX_BATCH] {
        assert_eq!(walk(&ledger, &LedgerFilter::default(), size).await, wanted, "pages of {size}");
    }
    let first = ledger.list(&LedgerFilter::default(), None, 2).await.expect("a page");
    assert_eq!(Some(&first.artifacts[0]), ledger.status(&wanted[0]).await.expect("a read").as_ref());
    register(&ledger, "web-9", &["eu"]).await;
    let rest = ledger.list(&LedgerFilter::default(), first.next.as_ref(), 9).await.expect("a page");
    let rest: Vec<_> = rest.artifacts.into_iter().map(|status| status.registered.artifact.name).collect();
    assert_eq!(rest, wanted[2..]);
    for size in [0, MAX_BATCH + 1] {
        assert_invalid(ledger.list(&LedgerFilter::default(), None, size).await);
    }
}

/// By service, by the state of a copy in a region, and by both.
pub async fn filters_narrow_the_list(ledger: Subject) {
    let mut api = artifact("api-1", &["eu", "us"]);
    api.service = "api".parse().expect("a name");
    ledger.register(&api).await.expect("within bounds");
    finish(&ledger, "us").await;
    register(&ledger, "web-1", &["eu"]).await;
    register(&ledger, "web-2", &["us"]).await;
    let task = claim_one(&ledger, "us", HOUR).await;
    ledger.fail(&task.lease, "no", CopyRetry::GiveUp).await.expect("the lease is current");
    register(&ledger, "web-3", &["ap"]).await;
    finish(&ledger, "ap").await;
    ledger.pin(&name("web-3"), &holder("goal:web"), &[].into()).await.expect("it is complete everywhere");
    let service = Some(api.service.clone());
    let cases = [
        (None, None, None, vec!["api-1", "web-1", "web-2", "web-3"]),
        (service.clone(), None, None, vec!["api-1"]),
        (None, Some(("eu", CopyState::Pending)), None, vec!["api-1", "web-1"]),
        (None, Some(("us", CopyState::Complete)), None, vec!["api-1"]),
        (None, Some(("us", CopyState::Failed)), None, vec!["web-2"]),
        (None, Some(("us", CopyState::Pending)), None, vec![]),
        (None, Some(("mars", CopyState::Pending)), None, vec![]),
        (service.clone(), Some(("eu", CopyState::Pending)), None, vec!["api-1"]),
        (service.clone(), Some(("us", CopyState::Failed)), None, vec![]),
        (None, None, Some("goal:web"), vec!["web-3"]),
        (None, None, Some("goal:api"), vec![]),
        (service, None, Some("goal:web"), vec![]),
        (None, Some(("ap", CopyState::Complete)), Some("goal:web"), vec!["web-3"]),
        (None, Some(("us", CopyState::Complete)), Some("goal:web"), vec![]),
    ];
    for (service, copy, pinned_by, wanted) in cases {
        let copy = copy.map(|(to, state)| (region(to), state));
        let filter = LedgerFilter { service, copy, pinned_by: pinned_by.map(holder) };
        for size in [1, 10] {
            let mut shown = walk(&ledger, &filter, size).await;
            shown.sort_unstable();
            assert_eq!(shown, wanted.iter().map(|text| name(text)).collect::<Vec<_>>(), "{filter:?}");
        }
    }
}

async fn walk(ledger: &Subject, filter: &LedgerFilter, size: usize) -> Vec<ArtifactName> {
    let (mut shown, mut after) = (Vec::new(), None::<LedgerCursor>);
    loop {
        let page = ledger.list(filter, after.as_ref(), size).await.expect("a page");
        assert!(page.artifacts.len() <= size);
        shown.extend(page.artifacts.into_iter().map(|status| status.registered.artifact.name));
        let Some(next) = page.next else { return shown };
        assert_eq!(Some(&next.artifact), shown.last());
        after = Some(next);
    }
}
