//! Copies by parts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use bytesize::ByteSize;
use deploycore::memory::{Ledger, Store};
use deploycore::model::{
    ArtifactName, ArtifactRef, CopyPriority, CopyState, CopyStatus, JobId, NewArtifact, ServiceName,
};
use deploycore::pace::Backoff;
use deploycore::port::ledger::ReplicationLedgerExt;
use deploycore::port::store::ArtifactStoreExt;
use deploycore::port::{ArtifactStore, ReplicationLedger};
use deploycore::store::{Replicator, ReplicatorSettings};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::parted::{Answer, PART, Parted};
use super::probe::Plugged;
use super::region;

/// Parts of the artifact, the last of which is short.
const PARTS: usize = 17;
/// What may be sent twice: the parts on their way and those not journaled yet.
const TWICE: usize = 2 + 4;

/// Stores an artifact of [`PARTS`] parts in the main store and registers it.
async fn built(main: &Store, ledger: &Ledger, salt: u8, priority: CopyPriority) -> ArtifactRef {
    let bytes = (0..(PARTS - 1) * PART + 77).map(|at| (at % 251) as u8 ^ (at / 70_000) as u8 ^ salt);
    let manifest = main.put_bytes(Bytes::from(bytes.collect::<Vec<u8>>())).await.unwrap();
    let (service, job) = (ServiceName::new("web").unwrap(), JobId::new());
    let name = ArtifactName::for_job(&service, job);
    let artifact = ArtifactRef { name, digest: manifest.digest(), size: manifest.size() };
    let required = [region("a")].into();
    ledger.register(&NewArtifact { artifact: artifact.clone(), service, job, required, priority }).await.unwrap();
    artifact
}

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
        let artifact = built(&main, &ledger, 0, CopyPriority::Normal).await;
        let settings = ReplicatorSettings::default()
            .with_bytes_in_flight(ByteSize(2 * PART as u64))
            .with_parts(Duration::from_secs(20), 3);
        Self { ledger, main, region: Arc::new(Parted::new()), settings, artifact, seed: AtomicU64::new(1) }
    }

    fn replicator(&self) -> Replicator {
        self.replicator_with(self.ledger.clone())
    }

    fn replicator_with(&self, ledger: Arc<dyn ReplicationLedger>) -> Replicator {
        let regions = BTreeMap::from([(region("a"), self.region.clone() as _)]);
        Replicator::new(self.settings.clone(), ledger, Arc::new(self.main.clone()), regions)
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
async fn a_region_that_is_down_or_lets_nobody_in_when_the_parts_are_joined_costs_no_part() {
    for answer in [Answer::Fail, Answer::Refuse] {
        let world = World::new().await;
        let refused = AtomicU64::new(0);
        world.region.follow(move |call, _, _| match call {
            "finish" if refused.fetch_add(1, Ordering::SeqCst) < 10 => answer,
            _ => Answer::Well,
        });
        let _service = world.run();
        world.is_well().await;
        assert_eq!((world.region.parts(), world.region.begun()), (PARTS, 1), "{answer:?}");
    }
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

#[tokio::test(start_paused = true)]
async fn a_lane_on_which_a_part_takes_longer_than_its_time_gets_there() {
    let world = World::new().await;
    // A lone part takes 32 s, and 20 s are its time in any case.
    world.region.set_rate(PART / 32);
    let service = world.run();
    world.is_well().await;
    let parts = world.region.parts();
    assert_eq!(
        (parts, world.copy().await.attempts),
        (PARTS, 1),
        "two were given up once, and no part was stored twice"
    );
    drop(service);
}

#[tokio::test(start_paused = true)]
async fn a_far_ledger_holds_no_part_up() {
    let world = World::new().await;
    // Two at once take a second each.
    world.region.set_rate(2 * PART);
    let ledger = Arc::new(Plugged::far(world.ledger.clone(), Duration::from_millis(900)));
    let replicator = world.replicator_with(ledger);
    let _service = AbortOnDropHandle::new(tokio::spawn(async move { replicator.run(CancellationToken::new()).await }));
    let started = Instant::now();
    world.is_well().await;
    // Eight and a half seconds for the parts, at most two calls of the ledger at the end.
    assert!(started.elapsed() < Duration::from_millis(10_700), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_rollback_overtakes_the_copy_under_way() {
    let mut world = World::new().await;
    world.settings = world.settings.with_parallel(1);
    world.region.set_rate(2 * PART);
    let _service = world.run();
    while world.region.parts() < 4 {
        sleep(Duration::from_millis(10)).await;
    }
    let urgent = built(&world.main, &world.ledger, 0x55, CopyPriority::Rollback).await;
    let state = |name: &ArtifactName| {
        let (ledger, name) = (world.ledger.clone(), name.clone());
        async move { ledger.require(&name).await.unwrap().copies[&region("a")].state }
    };
    let started = Instant::now();
    while state(&urgent.name).await != CopyState::Complete {
        sleep(Duration::from_millis(10)).await;
    }
    // Two seconds until the lane looks, eight and a half for the bytes, and the parts on their way.
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    assert_eq!(world.copy().await.state, CopyState::Pending);
    assert!(world.region.parts() < PARTS + 10, "{} parts", world.region.parts());
    world.is_well().await;
    assert_eq!((world.region.parts(), world.copy().await.attempts), (2 * PARTS, 1), "it went on where it stood");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_made_urgent_overtakes_the_other_of_its_lane() {
    let world = World::new().await;
    world.region.set_rate(PART);
    let second = built(&world.main, &world.ledger, 0x55, CopyPriority::Normal).await;
    let _service = world.run();
    while world.region.parts() < 4 {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.ledger.prioritize(&second.name, CopyPriority::Emergency).await.unwrap(), 1);
    world.reaches(CopyState::Complete).await;
    let second = world.ledger.require(&second.name).await.unwrap().copies[&region("a")].clone();
    let ahead = world.copy().await.completed_at.unwrap().duration_since(second.completed_at.unwrap());
    // Two looks at the ledger later it had the lane for itself: the other has most of its parts to send yet.
    assert!(ahead.as_secs() > 8, "{ahead}");
}

#[tokio::test(start_paused = true)]
async fn all_lanes_together_hold_no_more_than_their_bytes() {
    let (main, ledger) = (Store::new(), Arc::new(Ledger::default()));
    let artifact = built(&main, &ledger, 0, CopyPriority::Normal).await;
    let names = ["a", "b", "c", "d"];
    let other = NewArtifact {
        required: names.map(region).into(),
        artifact: ArtifactRef { name: "web-2".parse().unwrap(), ..artifact },
        service: "web".parse().unwrap(),
        job: JobId::new(),
        priority: CopyPriority::Normal,
    };
    ledger.register(&other).await.unwrap();
    let regions = names.map(|name| (region(name), Arc::new(Parted::new())));
    for (_, store) in &regions {
        store.follow(|call, _, _| if call == "put_part" { Answer::Hang } else { Answer::Well });
    }
    let stores: BTreeMap<_, _> = regions.iter().map(|(name, store)| (name.clone(), store.clone() as _)).collect();
    let settings = ReplicatorSettings::default().with_bytes_in_flight(ByteSize(8 * PART as u64));
    let replicator = Replicator::new(settings, ledger, Arc::new(main), stores);
    let service = AbortOnDropHandle::new(tokio::spawn(async move { replicator.run(CancellationToken::new()).await }));
    sleep(Duration::from_secs(10)).await;
    let held: Vec<_> = regions.iter().map(|(_, store)| store.parts_now()).collect();
    assert_eq!(held.iter().sum::<usize>(), 8, "{held:?}");
    assert!(held.iter().all(|parts| *parts >= 1), "each has its share: {held:?}");
    drop(service);
}
