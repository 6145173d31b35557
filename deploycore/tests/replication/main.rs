//! The registrar and the replicator over memory backends, in virtual time.

mod parted;
mod parts;
mod probe;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use bytesize::ByteSize;
use deploycore::memory::{Clock, Ledger, Queue};
use deploycore::model::{
    ArtifactName, ArtifactRef, ClaimId, CommitId, Completion, CopyPriority, CopyState, Digest, Job, JobId, NewArtifact,
    NewJob, RegionName, ServiceName, Timings,
};
use deploycore::pace::Backoff;
use deploycore::port::ledger::ReplicationLedgerExt;
use deploycore::port::queue::JobQueueExt;
use deploycore::port::store::ArtifactStoreExt;
use deploycore::port::{ArtifactStore, JobQueue, ReplicationLedger, queue};
use deploycore::store::{Registrar, RegistrarError, RegistrarSettings, Replicator, ReplicatorSettings};
use probe::{Mode, Plug, Plugged, Probe};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const SIZE: usize = 1_000_000;

/// A main store, regions behind probes, and a ledger.
struct World {
    ledger: Arc<Ledger>,
    main: Arc<Probe>,
    regions: BTreeMap<RegionName, Arc<Probe>>,
    settings: ReplicatorSettings,
    /// Each replicator has its own.
    seed: AtomicU64,
}

impl World {
    fn new(regions: &[&str]) -> Self {
        let regions = regions.iter().map(|name| (region(name), Arc::new(Probe::new()))).collect();
        let ledger = Arc::new(Ledger::new(Clock::default()));
        Self {
            ledger,
            main: Arc::new(Probe::new()),
            regions,
            settings: ReplicatorSettings::default(),
            seed: AtomicU64::new(7),
        }
    }

    /// Stores an artifact in the main store and registers it for each region.
    async fn build(&self, seed: u8) -> ArtifactRef {
        let manifest = self.main.inner.put_bytes(bytes(seed)).await.unwrap();
        let (service, job) = (ServiceName::new("web").unwrap(), JobId::new());
        let artifact = ArtifactRef {
            name: ArtifactName::for_job(&service, job),
            digest: manifest.digest(),
            size: manifest.size(),
        };
        let required = self.regions.keys().cloned().collect();
        let new = NewArtifact { artifact: artifact.clone(), service, job, required, priority: CopyPriority::Normal };
        self.ledger.register(&new).await.unwrap();
        artifact
    }

    fn replicator(&self) -> Replicator {
        self.replicator_with(self.ledger.clone())
    }

    fn replicator_with(&self, ledger: Arc<dyn ReplicationLedger>) -> Replicator {
        let regions = self.regions.iter().map(|(name, store)| (name.clone(), store.clone() as Arc<dyn ArtifactStore>));
        Replicator::new(self.settings.clone(), ledger, self.main.clone(), regions.collect())
            .with_seed(self.seed.fetch_add(1, Ordering::Relaxed))
    }

    fn run(&self) -> AbortOnDropHandle<()> {
        let replicator = self.replicator();
        AbortOnDropHandle::new(tokio::spawn(async move { replicator.run(CancellationToken::new()).await }))
    }

    async fn state(&self, artifact: &ArtifactRef, name: &str) -> (CopyState, Option<String>) {
        let copy = self.ledger.require(&artifact.name).await.unwrap().copies[&region(name)].clone();
        (copy.state, copy.last_error)
    }

    /// Waits until the copy is in `state`; the time that took.
    async fn reaches(&self, artifact: &ArtifactRef, name: &str, state: CopyState) -> Duration {
        let started = Instant::now();
        while self.state(artifact, name).await.0 != state {
            sleep(Duration::from_millis(50)).await;
        }
        started.elapsed()
    }

    fn region(&self, name: &str) -> &Probe {
        &self.regions[&region(name)]
    }
}

fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

fn bytes(seed: u8) -> Bytes {
    (0..SIZE).map(|at| (at % 251) as u8 ^ seed).collect::<Vec<_>>().into()
}

#[tokio::test(start_paused = true)]
async fn a_region_that_hangs_holds_no_other() {
    let world = World::new(&["fast", "hung", "slow"]);
    world.region("hung").set(Mode::Hang);
    world.region("slow").set(Mode::Slow(Duration::from_mins(2)));
    let artifacts = [world.build(1).await, world.build(2).await, world.build(3).await];
    let _service = world.run();

    for artifact in &artifacts {
        assert!(world.reaches(artifact, "fast", CopyState::Complete).await < Duration::from_secs(5));
        world.region("fast").inner.verify(&artifact.digest).await.unwrap();
    }
    for artifact in &artifacts {
        world.reaches(artifact, "slow", CopyState::Complete).await;
    }
    // The hung copies are given up after a while, not held for ever, and go well once the region does.
    sleep(Duration::from_mins(10)).await;
    let (state, error) = world.state(&artifacts[0], "hung").await;
    assert_eq!(state, CopyState::Pending);
    assert!(error.unwrap().contains("no byte moved"));
    world.region("hung").set(Mode::Well);
    for artifact in &artifacts {
        timeout(Duration::from_mins(20), world.reaches(artifact, "hung", CopyState::Complete)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_region_is_tried_less_and_less_and_then_given_up() {
    let mut world = World::new(&["a"]);
    world.settings =
        world.settings.with_retry(Backoff { initial: Duration::from_secs(10), max: Duration::from_mins(5) }, 7);
    world.region("a").set(Mode::Fail);
    let artifact = world.build(1).await;
    let _service = world.run();

    // 10, 20, 40, 80, 160, 300 seconds lie between the seven attempts, less the jitter, plus the looks.
    let took = world.reaches(&artifact, "a", CopyState::Failed).await;
    assert!((Duration::from_secs(549)..Duration::from_secs(640)).contains(&took), "{took:?}");
    assert_eq!(world.region("a").puts(), 7);
    let error = world.state(&artifact, "a").await.1.unwrap();
    assert!(error.contains("the region's store failed") && error.contains("503"), "{error}");

    // Nobody tries again until it is reopened.
    sleep(Duration::from_hours(1)).await;
    assert_eq!(world.region("a").puts(), 7);
    world.region("a").set(Mode::Well);
    let epoch = world.ledger.require(&artifact.name).await.unwrap().copies[&region("a")].epoch;
    assert!(world.ledger.reopen(&artifact.name, &region("a"), epoch, "the operator says so").await.unwrap());
    assert!(world.reaches(&artifact, "a", CopyState::Complete).await < Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_region_that_lets_nobody_in_costs_few_attempts_and_is_found_out_to_be_well_again() {
    let world = World::new(&["a"]);
    world.region("a").set(Mode::Fail);
    let mut artifacts = Vec::new();
    for seed in 0..50 {
        artifacts.push(world.build(seed).await);
    }
    let _service = world.run();
    sleep(Duration::from_hours(2)).await;
    // One each half a minute, once it is known: each of the 50 would have had some 28 attempts by itself.
    let attempts = world.region("a").puts();
    assert!((200..300).contains(&attempts), "{attempts} attempts");
    world.region("a").set(Mode::Well);
    let healed = Instant::now();
    for artifact in &artifacts {
        world.reaches(artifact, "a", CopyState::Complete).await;
    }
    assert!(healed.elapsed() < Duration::from_mins(6), "{:?}", healed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lane_makes_no_more_copies_at_once_than_it_may() {
    let mut world = World::new(&["a"]);
    world.settings = world.settings.with_parallel(3).with_bytes_in_flight(ByteSize::mib(1));
    world.region("a").set(Mode::Slow(Duration::from_secs(10)));
    let mut artifacts = Vec::new();
    for seed in 0..10 {
        artifacts.push(world.build(seed).await);
    }
    let _service = world.run();
    for artifact in &artifacts {
        world.reaches(artifact, "a", CopyState::Complete).await;
    }
    assert_eq!(world.region("a").most_puts_at_once(), 3);
    assert_eq!(world.region("a").puts(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_copy_whose_lease_is_lost_is_stopped_and_the_other_one_counts() {
    let world = World::new(&["a"]);
    world.region("a").set(Mode::Hang);
    let artifact = world.build(1).await;

    // The first cannot report for longer than its lease while its copy hangs.
    let ledger = Arc::new(Plugged::new(world.ledger.clone(), Plug::never()));
    ledger.set_deaf(true);
    let first = world.replicator_with(ledger.clone());
    let _first = AbortOnDropHandle::new(tokio::spawn(async move { first.run(CancellationToken::new()).await }));
    while world.region("a").puts() == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    world.region("a").set(Mode::Well);
    let _second = world.run();
    let took = world.reaches(&artifact, "a", CopyState::Complete).await;
    assert!((Duration::from_secs(55)..Duration::from_secs(65)).contains(&took), "{took:?}");
    assert_eq!(world.region("a").dropped_puts(), 0);

    ledger.set_deaf(false);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.region("a").dropped_puts(), 1, "the copy without a lease is stopped");
    assert_eq!(world.state(&artifact, "a").await, (CopyState::Complete, None));
}

#[tokio::test(start_paused = true)]
async fn copies_end_with_their_replicator_and_start_again_after_the_lease() {
    let world = World::new(&["a"]);
    world.region("a").set(Mode::Hang);
    let artifact = world.build(1).await;
    let service = world.run();
    while world.region("a").puts() == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    drop(service);
    tokio::task::yield_now().await;
    assert_eq!(world.region("a").dropped_puts(), 1);

    world.region("a").set(Mode::Well);
    let _next = world.run();
    let took = world.reaches(&artifact, "a", CopyState::Complete).await;
    assert!((Duration::from_secs(55)..Duration::from_secs(65)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_replicator_that_dies_at_any_point_is_taken_up_by_the_next() {
    let mut points = 0;
    for point in 0.. {
        let world = World::new(&["a"]);
        let artifact = world.build(1).await;
        let plug = Plug::at(point);
        let store = world.region("a").inner.clone();
        let ledger = Arc::new(Plugged::new(world.ledger.clone(), plug.clone()));
        let main = Arc::new(Probe::on(world.main.inner.clone(), plug.clone()));
        let regions = BTreeMap::from([(region("a"), Arc::new(Probe::on(store.clone(), plug.clone())) as _)]);
        let dying = Replicator::new(world.settings.clone(), ledger, main, regions);
        tokio::select! {
            biased;
            () = plug.reached() => points += 1,
            ticked = dying.tick() => {
                assert_eq!(ticked[&region("a")].as_ref().unwrap().completed, 1);
                break;
            }
        }
        let before = store.exists(&artifact.digest).await.unwrap();
        let complete = world.state(&artifact, "a").await.0 == CopyState::Complete;
        assert!(before || !complete, "complete without its bytes after a crash at point {point}");

        let _next = world.run();
        timeout(Duration::from_mins(3), world.reaches(&artifact, "a", CopyState::Complete)).await.unwrap();
        store.verify(&artifact.digest).await.unwrap();
    }
    // claim, exists, manifest of main, reads of four pieces, put, complete: before and after each.
    assert_eq!(points, 18, "the walk met every call");
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_a_claim_costs_no_lease() {
    let world = World::new(&["a"]);
    let artifact = world.build(1).await;
    // Point 1 is the reply to the first claim.
    let plug = Plug::at(1);
    let ledger = Arc::new(Plugged::new(world.ledger.clone(), plug));
    let replicator = world.replicator_with(ledger);
    let _service = AbortOnDropHandle::new(tokio::spawn(async move { replicator.run(CancellationToken::new()).await }));
    let took = world.reaches(&artifact, "a", CopyState::Complete).await;
    // The call's limit of 30 s, not the lease of 60 s.
    assert!(took < Duration::from_secs(35), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_region_has_already_is_not_copied() {
    let world = World::new(&["a"]);
    let artifact = world.build(1).await;
    world.region("a").inner.put_bytes(bytes(1)).await.unwrap();
    let ticked = world.replicator().tick().await;
    assert_eq!(ticked[&region("a")].as_ref().unwrap().completed, 1);
    assert_eq!(world.state(&artifact, "a").await.0, CopyState::Complete);
    assert_eq!((world.main.reads(), world.region("a").puts()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn damage_in_main_is_named_and_never_copied() {
    let world = World::new(&["a"]);
    let artifact = world.build(1).await;
    assert!(world.main.inner.damage(&artifact.digest, 700_000));
    world.replicator().tick().await;
    let (state, error) = world.state(&artifact, "a").await;
    assert_eq!(state, CopyState::Pending);
    let error = error.unwrap();
    assert!(error.contains("main store's copy is damaged") && error.contains("piece 2 of 4"), "{error}");
    assert!(!world.region("a").inner.exists(&artifact.digest).await.unwrap());

    world.main.inner.delete(&artifact.digest).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    world.replicator().tick().await;
    assert!(world.state(&artifact, "a").await.1.unwrap().contains("main store does not have"));

    world.main.inner.put_bytes(bytes(1)).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    world.replicator().tick().await;
    assert_eq!(world.state(&artifact, "a").await.0, CopyState::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_region_that_stores_other_bytes_or_panics_is_not_believed() {
    for (mode, told) in [(Mode::Lie, true), (Mode::Panic, false)] {
        let world = World::new(&["a", "b"]);
        world.region("a").set(mode);
        let artifact = world.build(1).await;
        let ticked = world.replicator().tick().await;
        let expected = if told { (1, 0) } else { (0, 1) };
        let tick = ticked[&region("a")].as_ref().unwrap();
        assert_eq!((tick.failed, tick.lost), expected, "{mode:?}");
        assert_eq!(world.state(&artifact, "a").await.0, CopyState::Pending, "{mode:?}");
        assert_eq!(world.state(&artifact, "b").await.0, CopyState::Complete, "{mode:?}");
        if told {
            assert!(world.state(&artifact, "a").await.1.unwrap().contains("other bytes"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_disappears_comes_back() {
    let world = World::new(&["a", "b"]);
    let artifacts = [world.build(1).await, world.build(2).await];
    let _service = world.run();
    for artifact in &artifacts {
        world.reaches(artifact, "a", CopyState::Complete).await;
        world.reaches(artifact, "b", CopyState::Complete).await;
    }
    world.region("a").inner.delete(&artifacts[0].digest).await.unwrap();
    // The first audit comes after at most ten minutes and hints to the lane.
    sleep(Duration::from_mins(10)).await;
    assert_eq!(world.state(&artifacts[0], "a").await.0, CopyState::Complete);
    assert!(world.state(&artifacts[0], "a").await.1.unwrap().contains("disappeared"));
    world.region("a").inner.verify(&artifacts[0].digest).await.unwrap();
    assert_eq!((world.region("a").puts(), world.region("b").puts()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn copies_stay_as_they_are_while_something_else_answers_for_their_store() {
    let world = World::new(&["a"]);
    let artifact = world.build(1).await;
    let _service = world.run();
    world.reaches(&artifact, "a", CopyState::Complete).await;
    world.region("a").set(Mode::Elsewhere);
    for _ in 0..60 {
        sleep(Duration::from_mins(1)).await;
        assert_eq!(world.state(&artifact, "a").await, (CopyState::Complete, None));
    }
}

/// A queue with a job in it that a worker completed with `artifact`.
async fn finish_job(jobs: &Queue, artifact: &ArtifactRef) -> Job {
    let service = ServiceName::new("web").unwrap();
    let job = NewJob::new(service, CommitId::new("abcdef0").unwrap()).with_max_attempts(NonZeroU32::MIN);
    jobs.enqueue_one(&job).await.unwrap();
    let worker = deploycore::model::WorkerName::new("w").unwrap();
    let request = queue::ClaimRequest { claim: ClaimId::new(), worker, limit: 1 };
    let claimed = jobs.claim(&request).await.unwrap().remove(0);
    let lease = claimed.running.unwrap().lease;
    let artifact = ArtifactRef { name: ArtifactName::for_job(&job.service, job.id), ..artifact.clone() };
    let completion = Completion::Succeeded { artifact, log: None, timings: Timings::default() };
    jobs.complete(&lease, &completion).await.unwrap();
    jobs.require(lease.job).await.unwrap()
}

fn some_artifact() -> ArtifactRef {
    ArtifactRef { name: ArtifactName::new("any").unwrap(), digest: Digest::of(b"bytes"), size: 5 }
}

fn registrar_settings() -> RegistrarSettings {
    RegistrarSettings::default().with_required([region("a"), region("b")])
}

#[tokio::test(start_paused = true)]
async fn each_succeeded_job_is_registered_once_by_many_registrars() {
    let (jobs, ledger) = (Arc::new(Queue::new(Clock::default())), Arc::new(Ledger::new(Clock::default())));
    let mut finished = Vec::new();
    for _ in 0..20 {
        finished.push(finish_job(&jobs, &some_artifact()).await);
    }
    let registrar = || Registrar::new(registrar_settings(), jobs.clone(), ledger.clone());
    let (first, second) = (registrar(), registrar());
    let (a, b) = tokio::join!(first.tick(), second.tick());
    assert_eq!(a.unwrap().registered + b.unwrap().registered, 20);
    for job in finished {
        let status = ledger.require(&job.artifact.unwrap().name).await.unwrap();
        assert_eq!(status.registered.job, job.spec.id);
        assert_eq!(status.registered.required, [region("a"), region("b")].into());
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_reaches_back_by_the_overlap_and_a_full_sweep_to_the_start() {
    let clock = Clock::default();
    let (jobs, ledger) = (Arc::new(Queue::new(clock.clone())), Arc::new(Ledger::new(clock)));
    let registrar = Registrar::new(registrar_settings(), jobs.clone(), ledger.clone());
    finish_job(&jobs, &some_artifact()).await;
    assert_eq!(registrar.tick().await.unwrap().looked_at, 1);
    sleep(Duration::from_mins(4)).await;
    finish_job(&jobs, &some_artifact()).await;
    assert_eq!(registrar.tick().await.unwrap(), tick(2, 1));
    sleep(Duration::from_mins(4)).await;
    finish_job(&jobs, &some_artifact()).await;
    // Back to the second job's finish less five minutes: all three.
    assert_eq!(registrar.tick().await.unwrap(), tick(3, 1));
    // From the third's: without the first.
    assert_eq!(registrar.tick().await.unwrap(), tick(2, 0));
    sleep(Duration::from_hours(1)).await;
    assert_eq!(registrar.tick().await.unwrap(), tick(3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_registrar_that_requires_no_region_says_so_and_registers_nothing() {
    let (jobs, ledger) = (Arc::new(Queue::new(Clock::default())), Arc::new(Ledger::new(Clock::default())));
    let name = finish_job(&jobs, &some_artifact()).await.artifact.unwrap().name;
    let error = Registrar::new(RegistrarSettings::default(), jobs, ledger.clone()).tick().await.unwrap_err();
    assert!(matches!(error, RegistrarError::NoRegions), "{error}");
    assert_eq!(ledger.status(&name).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_build_whose_bytes_are_being_deleted_is_registered_after_that() {
    let world = World::new(&["a"]);
    let old = world.build(1).await;
    let jobs = Arc::new(Queue::new(Clock::default()));
    let registrar = Registrar::new(registrar_settings(), jobs.clone(), world.ledger.clone());
    world.replicator().tick().await;
    let tombstones = world.ledger.tombstones().unwrap();
    tombstones.set(&old.digest, Duration::ZERO, "old").await.unwrap();
    assert!(tombstones.begin_deletion(&old.digest, Duration::ZERO, Duration::ZERO).await.unwrap());
    let held = finish_job(&jobs, &old).await.artifact.unwrap();
    let other = finish_job(&jobs, &some_artifact()).await.artifact.unwrap();
    let first = registrar.tick().await.unwrap();
    assert_eq!((first.registered, first.held_back, first.refused), (1, 1, 0), "it holds no other back");
    assert_eq!(registrar.horizon().age(), None, "the queue must keep what is held back");
    world.ledger.require(&other.name).await.unwrap();
    // Long before all jobs are looked at again, and further than an ordinary look reaches back.
    let later = async || {
        sleep(Duration::from_mins(10)).await;
        finish_job(&jobs, &some_artifact()).await;
        registrar.tick().await.unwrap()
    };
    let second = later().await;
    assert_eq!((second.registered, second.held_back), (1, 1));
    tombstones.end_deletion(&old.digest).await.unwrap();
    assert_eq!(later().await.registered, 2);
    assert_eq!(registrar.horizon().age(), Some(registrar_settings().overlap));
    world.ledger.require(&held.name).await.unwrap();
}

fn tick(looked_at: u64, registered: u64) -> deploycore::store::RegistrarTick {
    deploycore::store::RegistrarTick { looked_at, registered, refused: 0, held_back: 0 }
}

#[tokio::test(start_paused = true)]
async fn a_registrar_that_dies_at_any_point_is_taken_up_by_the_next() {
    for point in 0.. {
        let clock = Clock::default();
        let (jobs, ledger) = (Arc::new(Queue::new(clock.clone())), Arc::new(Ledger::new(clock)));
        let names = [finish_job(&jobs, &some_artifact()).await, finish_job(&jobs, &some_artifact()).await]
            .map(|job| job.artifact.unwrap().name);
        let plug = Plug::at(point);
        let plugged = Arc::new(Plugged::new(ledger.clone(), plug.clone()));
        let dying = Registrar::new(registrar_settings(), jobs.clone(), plugged);
        tokio::select! {
            biased;
            () = plug.reached() => {}
            ticked = dying.tick() => {
                assert_eq!(ticked.unwrap().registered, 2);
                assert_eq!(point, 6, "unregistered and two registrations, before and after each");
                break;
            }
        }
        // The same one goes on as well as a new one would: the watermark did not move.
        dying.tick().await.unwrap();
        for name in &names {
            ledger.require(name).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nudges_carry_a_build_through_without_waiting_for_a_period() {
    let mut world = World::new(&["a", "b"]);
    world.settings = world.settings.with_period(Duration::from_hours(1));
    let jobs = Arc::new(Queue::new(Clock::default()));
    let replicator = world.replicator();
    let settings = registrar_settings().with_period(Duration::from_hours(1));
    let registrar = replicator
        .nudges()
        .into_iter()
        .fold(Registrar::new(settings, jobs.clone(), world.ledger.clone()), Registrar::with_hint_to);
    let nudge = registrar.nudge();
    let _services = [
        AbortOnDropHandle::new(tokio::spawn(async move { replicator.run(CancellationToken::new()).await })),
        AbortOnDropHandle::new(tokio::spawn(async move { registrar.run(CancellationToken::new()).await })),
    ];
    sleep(Duration::from_mins(10)).await;
    let manifest = world.main.inner.put_bytes(bytes(9)).await.unwrap();
    let stored = ArtifactRef { digest: manifest.digest(), size: manifest.size(), ..some_artifact() };
    let artifact = finish_job(&jobs, &stored).await.artifact.unwrap();
    nudge.nudge();
    let deployable = async {
        while world.ledger.deployable(&artifact.name).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(1), deployable).await.unwrap();
}
