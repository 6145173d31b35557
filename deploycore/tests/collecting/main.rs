//! The collector over memory backends, in virtual time.

mod shut;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use deploycore::deploy::{DeployRequest, Deployer, DeployerSettings, Error, ReportBoard};
use deploycore::memory::{Clock, Goals, Ledger, Store};
use deploycore::model::{
    ArtifactName, ArtifactRef, ClaimId, CopyPriority, Digest, Goal, GoalPosition, JobId, Labels, MachineName,
    MachineReport, NewArtifact, PinHolder, RegionName, ServiceName, ServicePhase, ServiceReport, TombstoneStage,
};
use deploycore::port::goals::Expect;
use deploycore::port::ledger::{self, ClaimRequest};
use deploycore::port::store::ArtifactStoreExt;
use deploycore::port::{ArtifactStore, GoalStateStore, ReplicationLedger, ReplicationLedgerExt, ReportSink};
use deploycore::store::{CollectedRegion, Collector, CollectorSettings, CollectorTick, Kept};
use shut::Shut;
use tokio::time::sleep;

const DAY: Duration = Duration::from_hours(24);
const REGIONS: [&str; 2] = ["eu", "us"];

struct Yard {
    clock: Clock,
    ledger: Arc<Ledger>,
    goals: Arc<Goals>,
    main: Store,
    stores: BTreeMap<RegionName, Store>,
    board: Arc<ReportBoard>,
    deployer: Deployer,
}

fn web() -> ServiceName {
    ServiceName::new("web").unwrap()
}

fn name(number: u8) -> ArtifactName {
    ArtifactName::new(format!("web-{number:03}")).unwrap()
}

fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

impl Yard {
    /// Its regions have listened for long enough.
    async fn new() -> Self {
        let clock = Clock::default();
        let (ledger, goals) = (Arc::new(Ledger::new(clock.clone())), Arc::<Goals>::default());
        let deployer = Deployer::new(DeployerSettings::default(), goals.clone(), ledger.clone());
        let stores = REGIONS.map(|name| (region(name), Store::new())).into();
        let yard = Self { clock, ledger, goals, main: Store::new(), stores, board: Arc::default(), deployer };
        sleep(Duration::from_mins(1)).await;
        yard
    }

    /// Builds an artifact and copies it everywhere. Each is of other bytes.
    async fn build(&self, number: u8) -> ArtifactRef {
        self.build_of(number, &[number]).await
    }

    async fn build_of(&self, number: u8, bytes: &[u8]) -> ArtifactRef {
        let artifact = self.register(number, bytes).await.unwrap();
        for store in self.stores.values() {
            store.put_bytes(bytes.to_vec().into()).await.unwrap();
        }
        for name in REGIONS {
            let claim = ClaimRequest {
                claim: ClaimId::new(),
                region: region(name),
                lease: Duration::from_mins(1),
                limit: 1,
                least: CopyPriority::Normal,
            };
            self.ledger.complete(&self.ledger.claim(&claim).await.unwrap()[0].lease).await.unwrap();
        }
        artifact
    }

    async fn register(&self, number: u8, bytes: &[u8]) -> Result<ArtifactRef, ledger::Error> {
        let manifest = self.main.put_bytes(bytes.to_vec().into()).await.unwrap();
        let artifact = ArtifactRef { name: name(number), digest: manifest.digest(), size: manifest.size() };
        let required = REGIONS.map(region).into();
        let (service, job, priority) = (web(), JobId::new(), CopyPriority::Normal);
        self.ledger.register(&NewArtifact { artifact: artifact.clone(), service, job, required, priority }).await?;
        Ok(artifact)
    }

    async fn builds(&self, numbers: impl IntoIterator<Item = u8>) {
        for number in numbers {
            self.build(number).await;
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn deploy(&self, number: u8) -> Result<Goal, Error> {
        self.deployer.deploy(&DeployRequest::new(web(), name(number))).await
    }

    fn regions(&self) -> BTreeMap<RegionName, CollectedRegion> {
        let region = |(name, store): (&RegionName, &Store)| {
            (name.clone(), CollectedRegion { store: Arc::new(store.clone()), machines: self.board.clone() })
        };
        self.stores.iter().map(region).collect()
    }

    fn collector(&self, settings: CollectorSettings) -> Collector {
        self.collector_of(settings, self.regions())
    }

    fn collector_of(&self, settings: CollectorSettings, regions: BTreeMap<RegionName, CollectedRegion>) -> Collector {
        let clock = self.clock.clone();
        let main = Arc::new(self.main.clone());
        Collector::new(settings, self.ledger.clone(), self.goals.clone(), main, regions)
            .unwrap()
            .with_clock(move || clock.now())
    }

    /// Keeps the two newest.
    async fn tick(&self) -> CollectorTick {
        self.collector(CollectorSettings::default().with_keep(2)).tick().await.unwrap()
    }

    async fn stage(&self, number: u8) -> Option<TombstoneStage> {
        self.ledger.require(&name(number)).await.unwrap().tombstone.map(|tombstone| tombstone.stage)
    }

    /// The artifacts of one byte that each store has.
    async fn stored(&self) -> Vec<BTreeSet<u8>> {
        let mut found = Vec::new();
        for store in [&self.main].into_iter().chain(self.stores.values()) {
            let mut numbers = BTreeSet::new();
            for number in 0..20 {
                if store.exists(&Digest::of(&[number])).await.unwrap() {
                    numbers.insert(number);
                }
            }
            found.push(numbers);
        }
        found
    }

    async fn report(&self, current: Option<(GoalPosition, ArtifactRef)>, at: GoalPosition) {
        let service = ServiceReport {
            service: web(),
            goal: at,
            phase: ServicePhase::Good,
            current,
            pid: None,
            port: None,
            bytes_fetched: 0,
            message: None,
        };
        let report = MachineReport {
            machine: MachineName::new("m1").unwrap(),
            region: region("eu"),
            labels: Labels(BTreeMap::new()),
            agent_pid: 1,
            services: vec![service],
        };
        self.board.report(&report).await.unwrap();
    }

    /// The machine runs what the ledger need not know.
    async fn runs(&self, number: u8) {
        let artifact = ArtifactRef { name: name(number), digest: Digest::of(&[number]), size: 1 };
        self.report(Some((GoalPosition::default(), artifact)), GoalPosition::default()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_nothing_needs_is_marked_then_deleted() {
    let yard = Yard::new().await;
    yard.builds(1..=4).await;
    assert_eq!(yard.tick().await, CollectorTick::default(), "nothing is old");
    sleep(30 * DAY).await;
    assert_eq!(yard.tick().await, CollectorTick { marked: 2, ..CollectorTick::default() });
    let error = yard.deploy(1).await.unwrap_err();
    assert!(matches!(error, Error::Ledger(ledger::Error::Collected { .. })), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("artifact web-001 is marked since 20") && text.ends_with("build it anew"), "{text}");
    assert_eq!(yard.tick().await, CollectorTick { waiting: 2, ..CollectorTick::default() });
    let all: BTreeSet<u8> = (1..=4).collect();
    assert_eq!(yard.stored().await, [all.clone(), all.clone(), all]);

    sleep(Duration::from_hours(1)).await;
    assert_eq!(yard.tick().await, CollectorTick { deleted: 2, bytes: 2, ..CollectorTick::default() });
    let left: BTreeSet<u8> = [3, 4].into();
    assert_eq!(yard.stored().await, [left.clone(), left.clone(), left]);
    let status = yard.ledger.require(&name(1)).await.unwrap();
    assert_eq!(status.tombstone.unwrap().stage, TombstoneStage::Deleted);
    assert!(status.copies.is_empty());
    assert_eq!(yard.tick().await, CollectorTick::default());
    yard.deploy(3).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_plan_says_what_keeps_each_and_changes_nothing() {
    let yard = Yard::new().await;
    yard.builds(1..=7).await;
    // Two of them are the same bytes.
    yard.build_of(8, &[2]).await;
    for number in [3, 4] {
        yard.deploy(number).await.unwrap();
    }
    // What the goal of a lost pin names is kept all the same.
    yard.ledger.unpin(&name(3), &PinHolder::goal(&web())).await.unwrap();
    yard.ledger.pin(&name(5), &"person".parse().unwrap(), &[].into()).await.unwrap();
    sleep(31 * DAY).await;
    let running = yard.ledger.require(&name(6)).await.unwrap().registered.artifact;
    let position = yard.deployer.current(&web()).await.unwrap().unwrap().goal.position;
    yard.report(Some((position, running)), position).await;

    let before = yard.ledger.snapshot();
    let plan = yard.collector(CollectorSettings::default().with_keep(1)).plan().await.unwrap();
    assert_eq!(yard.ledger.snapshot(), before);
    let collected: Vec<_> = plan.collect.iter().flat_map(|bytes| &bytes.artifacts).cloned().collect();
    assert_eq!(collected, [name(1), name(7)]);
    let kept = |number| plan.kept[&name(number)].clone();
    assert_eq!(kept(2), Kept::SameBytes { artifact: name(8) });
    assert!(matches!(kept(3), Kept::Goal { position, .. } if position.generation.0 == 1));
    assert!(matches!(kept(4), Kept::Goal { position, .. } if position.generation.0 == 2));
    assert_eq!(kept(5), Kept::Pin { holder: "person".parse().unwrap() });
    assert_eq!(kept(6), Kept::Machine { region: region("eu"), machine: "m1".parse().unwrap() });
    assert_eq!(kept(8), Kept::Newest);
    assert_eq!(plan.kept.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_region_that_does_not_tell_what_it_runs_keeps_what_it_has() {
    let mut yard = Yard::new().await;
    yard.builds(1..=3).await;
    sleep(30 * DAY).await;
    // It was started again just now.
    yard.board = Arc::default();
    assert_eq!(yard.tick().await, CollectorTick::default());
    let plan = yard.collector(CollectorSettings::default().with_keep(2)).plan().await.unwrap();
    assert!(matches!(&plan.kept[&name(1)], Kept::Silent { .. }), "{plan:?}");
    sleep(Duration::from_mins(1)).await;
    // A machine is at a goal that nobody knows any more.
    yard.report(None, GoalPosition::default()).await;
    let plan = yard.collector(CollectorSettings::default().with_keep(2)).plan().await.unwrap();
    assert!(matches!(&plan.kept[&name(1)], Kept::UnknownGoal { .. }), "{plan:?}");
    // A region that has a copy and no store here.
    yard.board = Arc::default();
    yard.stores.remove(&region("us"));
    sleep(Duration::from_mins(1)).await;
    let plan = yard.collector(CollectorSettings::default().with_keep(2)).plan().await.unwrap();
    assert_eq!(plan.kept[&name(1)], Kept::NoStore { region: region("us") });
    assert_eq!(yard.tick().await, CollectorTick::default());
}

#[tokio::test(start_paused = true)]
async fn a_goal_that_came_in_spite_of_the_mark_lifts_it() {
    let yard = Yard::new().await;
    yard.builds(1..=3).await;
    let first = yard.deploy(2).await.unwrap();
    sleep(30 * DAY).await;
    assert_eq!(yard.tick().await.marked, 1);
    // A deployer whose write was held up for a month.
    let artifact = yard.ledger.require(&name(1)).await.unwrap().registered.artifact;
    let mut late = Goal { artifact, ..first };
    late.position.generation.0 += 1;
    let revision = yard.deployer.current(&web()).await.unwrap().unwrap().revision;
    yard.goals.put(&late, Expect::At(revision)).await.unwrap();
    sleep(Duration::from_hours(1)).await;
    assert_eq!(yard.tick().await, CollectorTick { lifted: 1, ..CollectorTick::default() });
    assert_eq!(yard.stage(1).await, None);
    assert!(yard.main.exists(&late.artifact.digest).await.unwrap());
    // The deployer puts its pin back, and it is never marked again.
    yard.deployer.tick().await.unwrap();
    assert_eq!(yard.tick().await, CollectorTick::default());
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_built_anew_stay() {
    let yard = Yard::new().await;
    yard.builds(1..=3).await;
    sleep(30 * DAY).await;
    assert_eq!(yard.tick().await.marked, 1);
    // Before the deletion: the new artifact lifts the mark.
    yard.build_of(4, &[1]).await;
    assert_eq!(yard.stage(1).await, None);
    sleep(Duration::from_hours(1)).await;
    // The plan sees old artifacts alone, the ledger all: 1 is refused, 2 is the next.
    let refused = CollectorTick { refused: 1, ..CollectorTick::default() };
    assert_eq!(yard.tick().await, CollectorTick { marked: 1, ..refused });

    // Put anew but not registered yet when they are deleted: the main store keeps them, and the new artifact gets its copies anew.
    yard.main.put_bytes(vec![2].into()).await.unwrap();
    sleep(Duration::from_hours(1)).await;
    assert_eq!(yard.tick().await, CollectorTick { deleted: 1, ..refused });
    assert_eq!(yard.stored().await, [[1, 2, 3].into(), [1, 3].into(), BTreeSet::from([1, 3])]);
    yard.build_of(5, &[2]).await;
    yard.deploy(5).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_is_come_back_to_and_holds_up_what_is_not_begun() {
    let yard = Yard::new().await;
    yard.builds(1..=9).await;
    sleep(30 * DAY).await;
    assert_eq!(yard.tick().await.marked, 7);
    sleep(Duration::from_hours(1)).await;
    let settings = CollectorSettings { parallel: 1, ..CollectorSettings::default().with_keep(2) };
    let shut = Arc::new(Shut::new(&yard.stores[&region("us")]));
    let mut regions = yard.regions();
    regions.get_mut(&region("us")).unwrap().store = shut.clone();
    let collector = yard.collector_of(settings, regions);
    for _ in 0..2 {
        let tick = collector.tick().await.unwrap();
        assert_eq!(tick, CollectorTick { failed: 1, waiting: 6, ..CollectorTick::default() });
    }
    let mut begun = Vec::new();
    for number in 1..=7 {
        if yard.stage(number).await == Some(TombstoneStage::Deleting) {
            begun.push(number);
        }
    }
    assert_eq!(begun.len(), 1);
    assert!(yard.main.exists(&Digest::of(&begun)).await.unwrap(), "the main store is the last");
    let error = yard.register(10, &begun).await.unwrap_err();
    assert!(matches!(error, ledger::Error::BeingDeleted { .. }), "{error}");
    shut.open();
    let tick = collector.tick().await.unwrap();
    assert_eq!((tick.deleted, tick.failed, tick.waiting), (7, 0, 0));
    // Whoever was told to wait comes again: its bytes were put meanwhile.
    yard.build_of(10, &begun).await;
    yard.deploy(10).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn bytes_that_no_artifact_has_go_when_they_are_old_unless_a_machine_runs_them() {
    let yard = Yard::new().await;
    yard.builds(1..=8).await;
    for number in [11, 12] {
        yard.main.put_bytes(vec![number].into()).await.unwrap();
        yard.stores[&region("us")].put_bytes(vec![number].into()).await.unwrap();
    }
    yard.runs(12).await;
    let collector = yard.collector(CollectorSettings::default());
    assert_eq!(collector.plan().await.unwrap().unneeded, [Digest::of(&[11])].into());
    sleep(29 * DAY).await;
    yard.runs(12).await;
    assert_eq!(collector.tick().await.unwrap(), CollectorTick::default());
    // One is young again.
    yard.main.put_bytes(vec![11].into()).await.unwrap();
    sleep(2 * DAY).await;
    yard.runs(12).await;
    assert_eq!(collector.tick().await.unwrap(), CollectorTick { unneeded: 1, ..CollectorTick::default() });
    let all: BTreeSet<u8> = (1..=8).collect();
    let with = |more: &[u8]| all.iter().copied().chain(more.iter().copied()).collect::<BTreeSet<u8>>();
    assert_eq!(yard.stored().await, [with(&[11, 12]), all.clone(), with(&[12])]);
    sleep(29 * DAY).await;
    yard.runs(12).await;
    assert_eq!(collector.tick().await.unwrap(), CollectorTick { unneeded: 1, ..CollectorTick::default() });
    assert_eq!(yard.stored().await, [with(&[12]), all.clone(), with(&[12])]);
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_knows_little_of_what_a_store_has_is_not_believed() {
    let yard = Yard::new().await;
    yard.builds(1..=2).await;
    for number in 10..13 {
        yard.main.put_bytes(vec![number].into()).await.unwrap();
    }
    sleep(60 * DAY).await;
    let collector = yard.collector(CollectorSettings::default());
    assert_eq!(collector.plan().await.unwrap().unneeded, BTreeSet::new());
    assert_eq!(collector.tick().await.unwrap(), CollectorTick::default());
    assert_eq!(yard.stored().await[0], [1, 2, 10, 11, 12].into());
}

#[tokio::test(start_paused = true)]
async fn many_collectors_at_once_do_the_same_work_once() {
    let yard = Yard::new().await;
    yard.builds(1..=6).await;
    sleep(30 * DAY).await;
    for _ in 0..2 {
        let ticks = futures::future::join_all((0..3).map(|_| yard.tick())).await;
        assert!(ticks.iter().all(|tick| tick.failed + tick.lifted == 0), "{ticks:?}");
        sleep(Duration::from_hours(1)).await;
    }
    let left: BTreeSet<u8> = [5, 6].into();
    assert_eq!(yard.stored().await, [left.clone(), left.clone(), left]);
}

#[tokio::test(start_paused = true)]
async fn a_mark_is_left_to_the_collector_for_which_less_is_old() {
    for pinned in [false, true] {
        let yard = Yard::new().await;
        yard.builds(1..=3).await;
        if pinned {
            sleep(31 * DAY).await;
            let person: PinHolder = "person".parse().unwrap();
            yard.ledger.pin(&name(1), &person, &[].into()).await.unwrap();
            yard.ledger.unpin(&name(1), &person).await.unwrap();
        }
        sleep(2 * DAY).await;
        let eager = yard.collector(CollectorSettings::default().with_older_than(DAY).with_keep(2));
        assert_eq!(eager.tick().await.unwrap(), CollectorTick { marked: 1, ..CollectorTick::default() });
        for _ in 0..3 {
            sleep(Duration::from_hours(1)).await;
            assert_eq!(yard.tick().await, CollectorTick { waiting: 1, ..CollectorTick::default() });
        }
        assert_eq!(eager.tick().await.unwrap(), CollectorTick { deleted: 1, bytes: 1, ..CollectorTick::default() });
    }
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_its_collector_does_not_come_back_to_is_lifted() {
    let yard = Yard::new().await;
    yard.builds(1..=3).await;
    sleep(2 * DAY).await;
    let eager = yard.collector(CollectorSettings::default().with_older_than(DAY).with_keep(2));
    assert_eq!(eager.tick().await.unwrap().marked, 1);
    sleep(DAY).await;
    assert_eq!(yard.tick().await, CollectorTick { waiting: 1, ..CollectorTick::default() });
    sleep(Duration::from_hours(1)).await;
    assert_eq!(yard.tick().await, CollectorTick { lifted: 1, ..CollectorTick::default() });
    yard.deploy(1).await.unwrap();
}

#[test]
fn settings_that_leave_no_time_are_refused() {
    let build = |settings| {
        let (ledger, goals, main) = (Arc::<Ledger>::default(), Arc::<Goals>::default(), Arc::new(Store::new()));
        Collector::new(settings, ledger, goals, main, BTreeMap::new()).map(drop)
    };
    build(CollectorSettings::default().with_older_than(DAY)).unwrap();
    let error = build(CollectorSettings::default().with_older_than(Duration::from_secs(86_399))).unwrap_err();
    assert_eq!(error.to_string(), "older_than is 86399s: 86400s is the least");
    build(CollectorSettings::default().with_grace(Duration::ZERO)).unwrap_err();
}
