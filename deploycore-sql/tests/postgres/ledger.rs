//! The ledger while a program of a later version changes its tables.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::{
    ArtifactName, ArtifactRef, ClaimId, CopyPriority, CopyState, Digest, JobId, NewArtifact, PinHolder, RegionName,
};
use deploycore::port::ledger::{ClaimRequest, Error, LedgerFilter};
use deploycore::port::{ReplicationLedger, ReplicationLedgerExt};
use deploycore_sql::Postgres;
use deploycore_sql::postgres::Ledger;
use sqlx::{Connection, PgConnection};

use crate::bed;

const MINUTE: Duration = Duration::from_mins(1);

fn east() -> RegionName {
    "east".parse().unwrap()
}

fn artifact() -> NewArtifact {
    let (service, job) = ("web".parse().unwrap(), JobId::new());
    let name = ArtifactName::for_job(&service, job);
    let artifact = ArtifactRef { digest: Digest::of(name.as_str().as_bytes()), size: 1_000, name };
    NewArtifact { artifact, service, job, required: [east()].into(), priority: CopyPriority::Normal }
}

/// A ledger with one connection for calls: each has what the calls before have prepared.
async fn open(url: &str) -> Arc<Ledger> {
    Postgres::open_with(url, &bed::settings().with_connections(1)).await.unwrap().ledger()
}

/// Takes an artifact along all of its way.
async fn follow(ledger: &Ledger) -> Result<(), Error> {
    let new = artifact();
    let (name, digest) = (&new.artifact.name, &new.artifact.digest);
    ledger.register(&new).await?;
    ledger.register(&new).await?;
    let claim =
        ClaimRequest { claim: ClaimId::new(), region: east(), lease: MINUTE, limit: 9, least: CopyPriority::Normal };
    let tasks = ledger.claim(&claim).await?;
    assert_eq!(tasks.iter().map(|task| &task.artifact).collect::<Vec<_>>(), [&new.artifact]);
    assert_eq!(ledger.claim(&claim).await?, tasks, "a repeated call");
    ledger.progress(&tasks[0].lease, 400, MINUTE).await?;
    ledger.complete(&tasks[0].lease).await?;
    let holder = PinHolder::new("goal:web").unwrap();
    ledger.pin(name, &holder, &BTreeSet::new()).await?;
    let status = ledger.deployable(name).await?;
    assert_eq!((&status.registered, status.last_pinned_at.is_some()), (&new, true));
    ledger.unpin(name, &holder).await?;
    for filter in [
        LedgerFilter::default(),
        LedgerFilter { service: Some(new.service.clone()), ..LedgerFilter::default() },
        LedgerFilter { copy: Some((east(), CopyState::Complete)), ..LedgerFilter::default() },
    ] {
        assert_eq!(ledger.list(&filter, None, 1).await?.artifacts[0].registered, new);
    }
    let tombstones = ledger.tombstones().unwrap();
    tombstones.set(digest, Duration::ZERO, "nobody needs it").await?;
    assert_eq!(tombstones.unfinished(9).await?.len(), 1);
    assert!(ledger.require(name).await?.tombstone.is_some());
    assert!(tombstones.begin_deletion(digest, Duration::ZERO, Duration::ZERO).await?);
    tombstones.end_deletion(digest).await?;
    Ok(())
}

#[tokio::test]
async fn columns_of_a_later_version_disturb_no_program_that_runs() {
    const LATER: &str = "
        ALTER TABLE deploycore.artifacts ADD COLUMN later bigint NOT NULL DEFAULT 7;
        ALTER TABLE deploycore.copies ADD COLUMN later bigint NOT NULL DEFAULT 7;
        ALTER TABLE deploycore.tombstones ADD COLUMN later bigint NOT NULL DEFAULT 7";
    let database = bed::empty();
    let ledger = open(&database.url()).await;
    follow(&ledger).await.unwrap();
    let mut later = PgConnection::connect(&database.url()).await.unwrap();
    sqlx::raw_sql(LATER).execute(&mut later).await.unwrap();
    follow(&ledger).await.unwrap();
}

/// No migration does this; it shows what happens to a plan that the server gives up.
#[tokio::test]
async fn a_plan_that_the_server_gave_up_fails_one_call_at_most() {
    let database = bed::empty();
    let ledger = open(&database.url()).await;
    let new = artifact();
    ledger.register(&new).await.unwrap();
    ledger.require(&new.artifact.name).await.unwrap();
    let mut other = PgConnection::connect(&database.url()).await.unwrap();
    let change = "ALTER TABLE deploycore.artifacts ALTER COLUMN service TYPE varchar COLLATE \"C\"";
    sqlx::raw_sql(change).execute(&mut other).await.unwrap();
    let error = ledger.require(&new.artifact.name).await.unwrap_err();
    assert!(error.is_retryable(), "{}", deploycore::port::chain(&error));
    assert_eq!(ledger.require(&new.artifact.name).await.unwrap().registered, new);
}
