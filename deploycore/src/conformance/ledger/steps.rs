//! The steps that cases are made of. Each panics when the backend refuses what it must take.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{
    ArtifactName, ArtifactRef, ClaimId, CopyLease, CopyPriority, CopyStatus, CopyTask, Digest, JobId, NewArtifact,
    PinHolder, RegionName,
};
use crate::port::ledger::{ClaimRequest, Error, MAX_BATCH, Registered};
use crate::port::{ReplicationLedger, ReplicationLedgerExt};

/// The backend under test.
pub(super) type Subject = Arc<dyn ReplicationLedger>;

pub(super) const HOUR: Duration = Duration::from_hours(1);
/// Long enough to be seen by a clock of milliseconds.
pub(super) const MOMENT: Duration = Duration::from_millis(20);
/// The size of each artifact.
pub(super) const SIZE: u64 = 1 << 40;

/// Lets the backend's clock run: virtual time where the backend follows tokio's paused clock, else real time.
pub(super) async fn pass(duration: Duration) {
    tokio::time::sleep(duration).await;
}

pub(super) fn region(name: &str) -> RegionName {
    name.parse().expect("a name")
}

pub(super) fn name(name: &str) -> ArtifactName {
    name.parse().expect("a name")
}

pub(super) fn holder(name: &str) -> PinHolder {
    name.parse().expect("a holder")
}

/// An artifact that `regions` must have.
pub(super) fn artifact(text: &str, regions: &[&str]) -> NewArtifact {
    NewArtifact {
        artifact: ArtifactRef { name: name(text), digest: Digest::of(text.as_bytes()), size: SIZE },
        service: "web".parse().expect("a name"),
        job: JobId::new(),
        required: regions.iter().map(|name| region(name)).collect(),
        priority: CopyPriority::Normal,
    }
}

/// Registers an artifact that is new.
pub(super) async fn register(ledger: &Subject, text: &str, regions: &[&str]) -> NewArtifact {
    let artifact = artifact(text, regions);
    let answer = ledger.register(&artifact).await.expect("the artifact is within all bounds");
    assert_eq!(answer, Registered::Created);
    artifact
}

pub(super) fn request(claim: ClaimId, to: &str, lease: Duration, limit: usize) -> ClaimRequest {
    ClaimRequest { claim, region: region(to), lease, limit, least: CopyPriority::Normal }
}

/// A claim with an id of its own.
pub(super) async fn claim(ledger: &Subject, to: &str, lease: Duration) -> Vec<CopyTask> {
    claim_as(ledger, ClaimId::new(), to, lease).await
}

pub(super) async fn claim_as(ledger: &Subject, id: ClaimId, to: &str, lease: Duration) -> Vec<CopyTask> {
    ledger.claim(&request(id, to, lease, MAX_BATCH)).await.expect("the claim is within all bounds")
}

/// Claims the one copy that there is.
pub(super) async fn claim_one(ledger: &Subject, to: &str, lease: Duration) -> CopyTask {
    let mut tasks = claim(ledger, to, lease).await;
    assert_eq!(tasks.len(), 1, "one copy is claimable: {tasks:?}");
    tasks.remove(0)
}

pub(super) fn names(tasks: &[CopyTask]) -> Vec<&str> {
    tasks.iter().map(|task| task.artifact.name.as_str()).collect()
}

pub(super) async fn copy(ledger: &Subject, text: &str, to: &str) -> CopyStatus {
    let status = ledger.require(&name(text)).await.expect("the artifact is registered");
    status.copies[&region(to)].clone()
}

/// Copies the one copy that there is.
pub(super) async fn finish(ledger: &Subject, to: &str) -> CopyLease {
    let task = claim_one(ledger, to, HOUR).await;
    ledger.complete(&task.lease).await.expect("the lease is the current one");
    task.lease
}

pub(super) fn assert_lost<T: Debug>(answer: Result<T, Error>, lease: &CopyLease) {
    match answer {
        Err(Error::LeaseLost { artifact, region }) => {
            assert_eq!((artifact, region), (lease.artifact.clone(), lease.region.clone()));
        }
        other => panic!("LeaseLost is wanted, not {other:?}"),
    }
}

pub(super) fn assert_not_found<T: Debug>(answer: Result<T, Error>, wanted: &ArtifactName) {
    match answer {
        Err(Error::NotFound { artifact }) => assert_eq!(artifact, *wanted),
        other => panic!("NotFound is wanted, not {other:?}"),
    }
}

pub(super) fn assert_invalid<T: Debug>(answer: Result<T, Error>) {
    match answer {
        Err(error @ Error::Invalid(_)) => assert!(!error.is_retryable()),
        other => panic!("Invalid is wanted, not {other:?}"),
    }
}

/// Every call under `lease` is refused, and the copy stays as it is.
pub(super) async fn assert_zombie(ledger: &Subject, lease: &CopyLease) {
    use crate::port::ledger::CopyRetry;
    let before = ledger.require(&lease.artifact).await.expect("the artifact is registered");
    assert_lost(ledger.progress(lease, 1, HOUR).await, lease);
    assert_lost(ledger.complete(lease).await, lease);
    assert_lost(ledger.fail(lease, "late", CopyRetry::GiveUp).await, lease);
    assert_lost(ledger.fail(lease, "late", CopyRetry::After(Duration::ZERO)).await, lease);
    assert_eq!(ledger.require(&lease.artifact).await.expect("it is still there"), before);
}
