//! Copies by parts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use bytesize::ByteSize;
use deploycore::memory::{Ledger, Store};
use deploycore::model::{ArtifactName, ArtifactRef, CopyState, CopyStatus, JobId, NewArtifact, ServiceName};
use deploycore::pace::Backoff;
use deploycore::port::ledger::ReplicationLedgerExt;
use deploycore::port::store::ArtifactStoreExt;
use deploycore::port::{ArtifactStore, ReplicationLedger};
use deploycore::store::{Replicator, ReplicatorSettings};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::parted::{Answer, PART, Parted};
use super::region;

/// Parts of the artifact, the last of which is short.
const PARTS: usize = 17;
/// What may be sent twice: the parts on their way and those not journaled yet.
const TWICE: usize = 2 + 4;

struct World {
    ledger: Arc<Ledger>,
    main: Store,
    region: Arc<Parted>,
    settings: ReplicatorSettings,
    artifact: ArtifactRef,
    seed: AtomicU64,
}

impl World {
    async fn new() -> Self {
        let (main, ledger) = (Store::new(), Arc::new(Ledger::default()));
        let bytes: Vec<u8> = (0..(PARTS - 1) * PART + 77).map(|at| (at % 251) as u8 ^ (at / 70_000) as u8).collect();
        let manifest = main.put_bytes(Bytes::from(bytes)).await.unwrap();
        let (service, job) = (ServiceName::new("web").unwrap(), JobId::new());
        let name = ArtifactName::for_job(&service, job);
        let artifact = ArtifactRef { name, digest: manifest.digest(), size: manifest.size() };
        let new = NewArtifact { artifact: artifact.clone(), service, job, required: [region("a")].into() };
        ledger.register(&new).await.unwrap();
        let settings = ReplicatorSettings::default()
            .with_bytes_in_flight(ByteSize(2 * PART as u64))
            .with_parts(Duration::from_secs(20), 3);
        Self { ledger, main, region: Arc::new(Parted::new()), settings, artifact, seed: AtomicU64::new(1) }
    }

    fn replicator(&self) -> Replicator {
        let regions = BTreeMap::from([(region("a"), self.region.clone() as _)]);
        Replicator::new(self.settings.clone(), self.ledger.clone(), Arc::new(self.main.clone()), regions)
            .with_seed(self.seed.fetch_add(1, Ordering::Relaxed))
    }

    fn run(&self) -> AbortOnDropHandle<()> {
        let replicator = self.replicator();
        AbortOnDropHandle::new(tokio::spawn(async move { replicator.run(CancellationToken::new()).await }))
    }

    async fn copy(&self) -> CopyStatus {
        self.ledger.require(&self.artifact.name).await.unwrap().copies[&region("a")].clone()
    }

    async fn reaches(&self, state: CopyState) {
        let reached = async {
            while self.copy().await.state != state {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_mins(30), reached).await.expect("the copy gets there");
    }

    /// Whole, and no upload left.
    async fn is_well(&self) {
        self.reaches(CopyState::Complete).await;
        self.region.inner.verify(&self.artifact.digest).await.unwrap();
        assert_eq!(self.region.open(), 0, "no upload is left");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_goes_over_in_parts_within_its_bytes() {
    let world = World::new().await;
    let _service = world.run();
    world.is_well().await;
    assert_eq!((world.region.parts(), world.region.begun(), world.copy().await.attempts), (PARTS, 1, 1));
    assert_eq!(world.region.most_parts_at_once(), 2, "as many parts as the bytes allow, and no fewer");
}

#[tokio::test(start_paused = true)]
async fn a_killed_copy_goes_on_with_the_parts_that_are_missing() {
    let world = World::new().await;
    world.region.follow(|_, number, _| if number <= 10 { Answer::Well } else { Answer::Hang });
    let service = world.run();
    while world.region.calls() < 13 {
        sleep(Duration::from_millis(10)).await;
    }
    drop(service);
    let before = world.region.parts();
    world.region.follow(|_, _, _| Answer::Well);
    let _next = world.run();
    world.is_well().await;
    let again = world.region.parts() - PARTS;
    assert!(before >= 10 && again <= TWICE, "{before} parts before, {again} sent again");
    assert_eq!((world.region.begun(), world.copy().await.attempts), (1, 2));
}

/// The walk stops the store at each of its calls in turn, kills the replicator there, and lets another finish.
#[tokio::test(start_paused = true)]
async fn a_replicator_that_dies_at_any_call_is_taken_up_by_the_next() {
    for stop in 0.. {
        let world = World::new().await;
        world.region.follow(move |_, number, _| if number < stop { Answer::Well } else { Answer::Hang });
        let service = world.run();
        sleep(Duration::from_secs(5)).await;
        drop(service);
        if world.region.calls() <= stop {
            world.is_well().await;
            // begin, parts, finish.
            assert_eq!(stop, PARTS + 2, "the walk met every call");
            return;
        }
        world.region.follow(|_, _, _| Answer::Well);
        let _next = world.run();
        world.is_well().await;
        assert!(world.region.parts() <= PARTS + TWICE, "killed at call {stop}: {} parts", world.region.parts());
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_or_hangs_is_sent_again_alone() {
    for bad in [Answer::Fail, Answer::Hang] {
        let world = World::new().await;
        // Every third call of the first twelve.
        world.region.follow(move |_, number, _| if number < 12 && number % 3 == 2 { bad } else { Answer::Well });
        let _service = world.run();
        world.is_well().await;
        assert_eq!((world.region.parts(), world.copy().await.attempts), (PARTS, 1), "{bad:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_that_is_down_for_long_costs_no_part() {
    let world = World::new().await;
    world.region.follow(|_, number, _| if number <= 10 { Answer::Well } else { Answer::Fail });
    let _service = world.run();
    sleep(Duration::from_mins(20)).await;
    let attempts = world.copy().await.attempts;
    assert!(attempts > 3, "{attempts}");
    world.region.follow(|_, _, _| Answer::Well);
    world.is_well().await;
    assert_eq!((world.region.parts(), world.region.begun()), (PARTS, 1));
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_the_store_has_lost_starts_over() {
    let world = World::new().await;
    world.region.follow(|call, number, _| match call {
        "put_part" if number > 10 => Answer::Hang,
        _ => Answer::Well,
    });
    let service = world.run();
    sleep(Duration::from_secs(5)).await;
    drop(service);
    world.region.lose_uploads();
    world.region.follow(|_, _, _| Answer::Well);
    let _next = world.run();
    world.is_well().await;
    assert!(world.region.parts() > PARTS + TWICE, "all parts were sent anew");
}

#[tokio::test(start_paused = true)]
async fn an_upload_of_which_no_part_came_and_that_the_store_has_lost_starts_over() {
    let world = World::new().await;
    world.region.follow(|call, _, _| if call == "put_part" { Answer::Hang } else { Answer::Well });
    let service = world.run();
    sleep(Duration::from_secs(5)).await;
    drop(service);
    world.region.lose_uploads();
    world.region.follow(|_, _, _| Answer::Well);
    let _next = world.run();
    world.is_well().await;
}

#[tokio::test(start_paused = true)]
async fn a_region_that_is_up_again_while_its_upload_is_in_doubt_costs_no_part() {
    let world = World::new().await;
    world.region.follow(|_, number, _| if number <= 10 { Answer::Well } else { Answer::Hang });
    let service = world.run();
    sleep(Duration::from_secs(5)).await;
    drop(service);
    let begun = AtomicBool::new(false);
    world.region.follow(move |call, _, _| match call {
        "begin" => {
            begun.store(true, Ordering::SeqCst);
            Answer::Well
        }
        "put_part" if !begun.load(Ordering::SeqCst) => Answer::Fail,
        _ => Answer::Well,
    });
    let _next = world.run();
    world.is_well().await;
    assert_eq!(world.region.begun(), 2, "it was in doubt");
    assert!(world.region.parts() <= PARTS + TWICE, "{} parts", world.region.parts());
}

#[tokio::test(start_paused = true)]
async fn a_region_that_is_down_when_the_parts_are_joined_costs_no_part() {
    let world = World::new().await;
    let refused = AtomicU64::new(0);
    world.region.follow(move |call, _, _| match call {
        "finish" if refused.fetch_add(1, Ordering::SeqCst) < 10 => Answer::Fail,
        _ => Answer::Well,
    });
    let _service = world.run();
    world.is_well().await;
    assert_eq!((world.region.parts(), world.region.begun()), (PARTS, 1));
}

#[tokio::test(start_paused = true)]
async fn parts_that_the_store_refuses_to_join_are_sent_anew() {
    let world = World::new().await;
    let refused = AtomicU64::new(0);
    world.region.follow(move |call, _, _| match call {
        "finish" if refused.fetch_add(1, Ordering::SeqCst) == 0 => Answer::Forgotten,
        _ => Answer::Well,
    });
    let _service = world.run();
    world.is_well().await;
    assert_eq!((world.region.parts(), world.copy().await.attempts), (2 * PARTS, 2));
}

#[tokio::test(start_paused = true)]
async fn the_upload_of_a_copy_that_is_given_up_is_aborted() {
    let mut world = World::new().await;
    world.settings = world.settings.with_retry(Backoff::default(), 3);
    world.region.follow(|call, number, _| if call == "put_part" && number > 10 { Answer::Fail } else { Answer::Well });
    let _service = world.run();
    world.reaches(CopyState::Failed).await;
    assert_eq!((world.region.open(), world.copy().await.attempts), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn the_upload_of_a_copy_that_came_another_way_is_aborted() {
    let world = World::new().await;
    world.region.follow(|_, number, _| if number <= 10 { Answer::Well } else { Answer::Hang });
    let service = world.run();
    sleep(Duration::from_secs(5)).await;
    drop(service);
    assert_eq!(world.region.open(), 1);
    let bytes = world.main.read_all(&world.artifact.digest, 0..world.artifact.size).await.unwrap();
    world.region.inner.put_bytes(bytes.into()).await.unwrap();
    let parts = world.region.parts();
    world.region.follow(|_, _, _| Answer::Well);
    let _next = world.run();
    world.is_well().await;
    assert_eq!(world.region.parts(), parts);
}

#[tokio::test(start_paused = true)]
async fn damage_in_main_is_never_sent() {
    let world = World::new().await;
    assert!(world.main.damage(&world.artifact.digest, 5 * PART as u64 + 3));
    world.replicator().tick().await;
    let copy = world.copy().await;
    assert_eq!(copy.state, CopyState::Pending);
    let error = copy.last_error.unwrap();
    assert!(error.contains("main store's copy is damaged") && error.contains("piece 5 of 17"), "{error}");
    assert!(!world.region.inner.exists(&world.artifact.digest).await.unwrap());
    assert!(world.region.parts() < PARTS);
}
