//! The journal of uploads. A ledger without one passes.

use super::steps::*;
use crate::model::CopyLease;
use crate::port::ledger::{CopyJournal, Error, JournaledUpload, bounds};
use crate::port::store::multipart::{MAX_PART_TAG, MAX_PARTS, MAX_UPLOAD_ID};
use crate::port::store::{PartTag, UploadId};

const PART: u64 = 8 << 20;

async fn lease(ledger: &Subject, text: &str, to: &str) -> CopyLease {
    register(ledger, text, &[to]).await;
    claim_one(ledger, to, HOUR).await.lease
}

fn parts(numbers: impl IntoIterator<Item = u32>, tag: &str) -> Vec<(u32, PartTag)> {
    numbers.into_iter().map(|number| (number, PartTag::new(format!("\"{tag}'{number}\"")))).collect()
}

fn upload(id: &str, parts: Vec<(u32, PartTag)>) -> JournaledUpload {
    JournaledUpload { upload: UploadId::new(id), part_size: PART, parts: parts.into_iter().collect() }
}

async fn begin(journal: &dyn CopyJournal, lease: &CopyLease, id: &str) {
    journal.begin(lease, &UploadId::new(id), PART).await.expect("the lease is current");
}

async fn found(journal: &dyn CopyJournal, lease: &CopyLease) -> Option<JournaledUpload> {
    journal.upload(lease).await.expect("the lease is current")
}

fn assert_lost<T: std::fmt::Debug>(answer: &Result<T, Error>) {
    assert!(matches!(answer, Err(Error::LeaseLost { .. })), "a lost lease, instead of {answer:?}");
}

/// Whoever claims the copy next finds what the last one noted.
pub async fn the_next_claim_finds_the_upload(ledger: Subject) {
    let Some(journal) = ledger.journal() else { return };
    register(&ledger, "web-1", &["eu"]).await;
    let first = claim_one(&ledger, "eu", MOMENT).await.lease;
    assert_eq!(found(journal, &first).await, None);
    begin(journal, &first, "{\"id\": \"a/b+c=\"}").await;
    assert_eq!(found(journal, &first).await, Some(upload("{\"id\": \"a/b+c=\"}", vec![])));
    journal.add(&first, &parts([0, 7, 9_999], "x")).await.expect("the lease is current");
    pass(3 * MOMENT).await;
    let second = claim_one(&ledger, "eu", HOUR).await.lease;
    assert_eq!(found(journal, &second).await, Some(upload("{\"id\": \"a/b+c=\"}", parts([0, 7, 9_999], "x"))));
}

/// Parts come in any number and order; of one that comes twice the newest tag counts.
pub async fn parts_add_up(ledger: Subject) {
    let Some(journal) = ledger.journal() else { return };
    let lease = lease(&ledger, "web-1", "eu").await;
    begin(journal, &lease, "a").await;
    for numbers in [vec![5], vec![1, 0], (6..600).collect()] {
        journal.add(&lease, &parts(numbers, "x")).await.expect("the lease is current");
    }
    journal.add(&lease, &parts([5, 2], "y")).await.expect("the lease is current");
    let mut expected = upload("a", parts([0, 1].into_iter().chain(6..600), "x"));
    expected.parts.extend(parts([2, 5], "y"));
    assert_eq!(found(journal, &lease).await, Some(expected));
}

/// Nothing of the old one is left, and no other copy is touched.
pub async fn a_new_upload_takes_the_place_of_the_old(ledger: Subject) {
    let Some(journal) = ledger.journal() else { return };
    let (eu, us) = (lease(&ledger, "web-1", "eu").await, lease(&ledger, "web-2", "us").await);
    for (lease, id) in [(&us, "other"), (&eu, "old")] {
        begin(journal, lease, id).await;
        journal.add(lease, &parts([0, 1], id)).await.expect("the lease is current");
    }
    begin(journal, &eu, "new").await;
    assert_eq!(found(journal, &eu).await, Some(upload("new", vec![])));
    assert_eq!(found(journal, &us).await, Some(upload("other", parts([0, 1], "other"))));
}

/// A cleared journal is empty, also when it was before, and takes no parts.
pub async fn a_cleared_upload_is_gone(ledger: Subject) {
    let Some(journal) = ledger.journal() else { return };
    let lease = lease(&ledger, "web-1", "eu").await;
    assert_invalid(journal.add(&lease, &parts([0], "x")).await);
    begin(journal, &lease, "a").await;
    journal.add(&lease, &parts([0], "x")).await.expect("the lease is current");
    for _ in 0..2 {
        journal.clear(&lease).await.expect("the lease is current");
        assert_eq!(found(journal, &lease).await, None);
    }
    assert_invalid(journal.add(&lease, &parts([0], "x")).await);
    begin(journal, &lease, "b").await;
    assert_eq!(found(journal, &lease).await, Some(upload("b", vec![])));
}

/// Completing a copy forgets its upload, and no other: should the copy be lost, the next attempt begins a new one.
pub async fn a_complete_copy_has_no_upload(ledger: Subject) {
    let Some(journal) = ledger.journal() else { return };
    register(&ledger, "web-1", &["eu", "us"]).await;
    let (eu, us) = (claim_one(&ledger, "eu", HOUR).await.lease, claim_one(&ledger, "us", HOUR).await.lease);
    for lease in [&eu, &us] {
        begin(journal, lease, "a").await;
        journal.add(lease, &parts([0, 1], "x")).await.expect("the lease is current");
    }
    ledger.complete(&eu).await.expect("the lease is current");
    assert!(ledger.reopen(&eu.artifact, &eu.region, eu.epoch, "lost").await.expect("it is registered"));
    let again = claim_one(&ledger, "eu", HOUR).await.lease;
    assert_eq!(found(journal, &again).await, None);
    assert_eq!(found(journal, &us).await, Some(upload("a", parts([0, 1], "x"))));
    // Nor may the parts of the old come back with a new one.
    begin(journal, &again, "b").await;
    assert_eq!(found(journal, &again).await, Some(upload("b", vec![])));
}

/// A replicator that lost its copy neither reads nor changes the journal; nor does one whose attempt has ended.
pub async fn a_lost_lease_changes_nothing(ledger: Subject) {
    let Some(journal) = ledger.journal() else { return };
    register(&ledger, "web-1", &["eu"]).await;
    let zombie = claim_one(&ledger, "eu", MOMENT).await.lease;
    begin(journal, &zombie, "a").await;
    pass(3 * MOMENT).await;
    let current = claim_one(&ledger, "eu", HOUR).await.lease;
    journal.add(&current, &parts([0], "x")).await.expect("the lease is current");
    assert_lost(&journal.upload(&zombie).await);
    assert_lost(&journal.begin(&zombie, &UploadId::new("b"), PART).await);
    assert_lost(&journal.add(&zombie, &parts([0, 1], "y")).await);
    assert_lost(&journal.clear(&zombie).await);
    assert_eq!(found(journal, &current).await, Some(upload("a", parts([0], "x"))));
    ledger.complete(&current).await.expect("the lease is current");
    assert_lost(&journal.begin(&current, &UploadId::new("c"), PART).await);
    let unknown = CopyLease { artifact: name("web-9"), ..current };
    let answer = journal.upload(&unknown).await;
    assert!(matches!(answer, Err(Error::NotFound { .. })), "an unknown artifact, instead of {answer:?}");
}

/// What no store can mean is refused, what is just within the bounds comes back.
pub async fn a_journal_has_bounds(ledger: Subject) {
    let Some(journal) = ledger.journal() else { return };
    let lease = lease(&ledger, "web-1", "eu").await;
    let long = UploadId::new("i".repeat(MAX_UPLOAD_ID));
    journal.begin(&lease, &long, PART).await.expect("within the bounds");
    for (id, part_size) in [("i".repeat(MAX_UPLOAD_ID + 1), PART), ("a".to_owned(), 0), ("a".to_owned(), u64::MAX)] {
        assert_invalid(journal.begin(&lease, &UploadId::new(id), part_size).await);
    }
    let last = (MAX_PARTS - 1, PartTag::new("t".repeat(MAX_PART_TAG)));
    journal.add(&lease, std::slice::from_ref(&last)).await.expect("within the bounds");
    assert_invalid(journal.add(&lease, &[]).await);
    assert_invalid(journal.add(&lease, &[(MAX_PARTS, PartTag::new("t"))]).await);
    assert_invalid(journal.add(&lease, &[(0, PartTag::new("t".repeat(MAX_PART_TAG + 1)))]).await);
    assert!(bounds::check_parts(&parts(0..1_001, "x")).is_err());
    let found = found(journal, &lease).await.expect("an upload");
    assert_eq!((found.upload, found.parts.into_iter().collect::<Vec<_>>()), (long, vec![last]));
}
