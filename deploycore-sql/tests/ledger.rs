//! The way of a copy through the ledger, with two handles on one file as two processes have them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::{
    ArtifactName, ArtifactRef, ClaimId, CopyPriority, CopyState, CopyTask, Digest, JobId, NewArtifact, PinHolder,
    RegionName,
};
use deploycore::port::ledger::{ClaimRequest, CopyRetry, Error, LedgerFilter};
use deploycore::port::{ReplicationLedger, ReplicationLedgerExt};
use deploycore_sql::Sqlite;
use deploycore_sql::sqlite::Ledger;
use tokio::task::JoinSet;

const MINUTE: Duration = Duration::from_mins(1);

async fn two_handles() -> (Arc<Ledger>, Arc<Ledger>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/ledger.db", folder.path().display());
    let (one, other) = (Sqlite::open(&url).await.unwrap(), Sqlite::open(&url).await.unwrap());
    (one.ledger(), other.ledger(), folder)
}

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

fn artifact(regions: &[&str]) -> NewArtifact {
    let (service, job) = ("web".parse().unwrap(), JobId::new());
    let name = ArtifactName::for_job(&service, job);
    let artifact = ArtifactRef { digest: Digest::of(name.as_str().as_bytes()), size: 1_000, name };
    NewArtifact {
        artifact,
        service,
        job,
        required: regions.iter().copied().map(region).collect(),
        priority: CopyPriority::Normal,
    }
}

fn request(to: &str, limit: usize) -> ClaimRequest {
    ClaimRequest { claim: ClaimId::new(), region: region(to), lease: MINUTE, limit, least: CopyPriority::Normal }
}

async fn take(ledger: &Ledger, to: &str) -> CopyTask {
    ledger.claim(&request(to, 1)).await.unwrap().pop().expect("a copy to make")
}

#[tokio::test]
async fn an_artifact_is_pinned_only_once_it_is_complete_everywhere() {
    let (one, other, _folder) = two_handles().await;
    let new = artifact(&["east", "west"]);
    let name = &new.artifact.name;
    one.register(&new).await.unwrap();
    let holder = PinHolder::new("goal:web").unwrap();

    let east = take(&other, "east").await;
    other.progress(&east.lease, 400, MINUTE).await.unwrap();
    assert_eq!(one.require(name).await.unwrap().copies[&region("east")].bytes, 400);
    other.complete(&east.lease).await.unwrap();
    let error = one.pin(name, &holder, &[].into()).await.unwrap_err();
    assert!(
        matches!(&error, Error::NotDeployable { missing, .. } if missing.keys().eq([&region("west")])),
        "{error:?}"
    );

    let west = take(&one, "west").await;
    one.fail(&west.lease, "the link is down", CopyRetry::GiveUp).await.unwrap();
    assert_eq!(one.require(name).await.unwrap().missing()[&region("west")], CopyState::Failed);
    assert!(one.reopen(name, &region("west"), west.lease.epoch, "the link is up").await.unwrap());
    let again = take(&other, "west").await;
    assert!(again.lease.epoch > west.lease.epoch);
    assert!(matches!(one.complete(&west.lease).await, Err(Error::LeaseLost { .. })));
    other.complete(&again.lease).await.unwrap();

    one.pin(name, &holder, &[].into()).await.unwrap();
    let status = other.deployable(name).await.unwrap();
    assert_eq!((status.pins, status.registered), (BTreeSet::from([holder.clone()]), new.clone()));
    other.unpin(name, &holder).await.unwrap();
    assert!(one.require(name).await.unwrap().pins.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_at_once_from_two_handles_share_no_copy() {
    let (one, other, _folder) = two_handles().await;
    for _ in 0..40 {
        one.register(&artifact(&["east"])).await.unwrap();
    }
    let mut claims = JoinSet::new();
    for ledger in [&one, &other, &one, &other] {
        let ledger = Arc::clone(ledger);
        claims.spawn(async move {
            let mut taken = Vec::new();
            for _ in 0..6 {
                taken.extend(ledger.claim(&request("east", 2)).await.unwrap());
            }
            taken
        });
    }
    let taken = claims.join_all().await.concat();
    let names: BTreeSet<_> = taken.iter().map(|task| &task.artifact.name).collect();
    assert_eq!((taken.len(), names.len()), (40, 40));

    let walk = |filter: LedgerFilter| {
        let ledger = Arc::clone(&one);
        async move {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = ledger.list(&filter, after.as_ref(), 7).await.unwrap();
                seen.extend(page.artifacts.into_iter().map(|status| status.registered.artifact.name));
                match page.next {
                    Some(next) => after = Some(next),
                    None => return seen,
                }
            }
        }
    };
    let of_service = LedgerFilter { service: Some("web".parse().unwrap()), ..LedgerFilter::default() };
    let pending = LedgerFilter { copy: Some((region("east"), CopyState::Pending)), ..LedgerFilter::default() };
    let all = walk(LedgerFilter::default()).await;
    assert_eq!(all.len(), 40);
    assert_eq!(all.iter().collect::<BTreeSet<_>>(), names);
    assert_eq!(walk(of_service).await, all);
    assert_eq!(walk(pending).await, all);
    let complete = LedgerFilter { copy: Some((region("east"), CopyState::Complete)), ..LedgerFilter::default() };
    assert!(walk(complete).await.is_empty());
}
