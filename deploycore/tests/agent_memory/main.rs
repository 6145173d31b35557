//! The agent in virtual time, on a machine in memory: its region goes away, its disk is full, and it is lost at any await.

mod missing;
mod tended;
mod watching;

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::machine::memory::{MemoryDisk, MemoryRunner, Program};
use deploycore::machine::runner::{self, Launch};
use deploycore::machine::{Agent, AgentDeps, AgentSettings, Disk, Instance, Journal, Runner};
use deploycore::memory::{Goals, Store, Swarm, SwarmRegion};
use deploycore::model::{
    ArtifactName, ArtifactRef, Digest, Generation, Goal, GoalEpoch, GoalPosition, MachineName, MachineReport, Manifest,
    Origin, Port, Readiness, RegionName, Revision, RunSpec, Selector, ServiceName, ServicePhase, ServiceReport,
};
use deploycore::port::goals::{self, Changes, Expect, Snapshot, Stored};
use deploycore::port::swarm::{self, Fetch, FetchProgress, FetchRequest, FetchSummary, Limits, Priority, SwarmStats};
use deploycore::port::{ArtifactStoreExt, BackendError, GoalStateStore, ManifestSource, PeerSwarm, ReportSink};
use futures::stream::{BoxStream, StreamExt};
use futures::{FutureExt, TryFutureExt};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A swarm that believes to have what it fetched until it is left. While it is told so it lets go of nothing, or takes its time to fetch.
#[derive(Debug)]
struct Clinging {
    inner: Swarm,
    fetched: Arc<Mutex<BTreeSet<Digest>>>,
    clings: Arc<AtomicBool>,
    crawls: Arc<AtomicBool>,
}

/// How long a fetch of a swarm takes that crawls, and between two words of it.
const CRAWL: (Duration, Duration) = (Duration::from_mins(1), Duration::from_millis(50));

/// A fetch that gets on by a byte at a time before it begins in earnest.
fn crawl(fetch: Fetch) -> Fetch {
    let (sender, progress) = watch::channel(FetchProgress::default());
    let done = async move {
        let end = Instant::now() + CRAWL.0;
        while Instant::now() < end {
            tokio::time::sleep(CRAWL.1).await;
            sender.send_modify(|progress| progress.bytes += 1);
        }
        fetch.done.await
    };
    Fetch { progress, done: done.boxed() }
}

#[async_trait]
impl PeerSwarm for Clinging {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetch, swarm::Error> {
        let (digest, fetched) = (request.manifest.digest(), Arc::clone(&self.fetched));
        if fetched.lock().unwrap().contains(&digest) {
            let progress = watch::channel(FetchProgress::default()).1;
            return Ok(Fetch { progress, done: futures::future::ready(Ok(FetchSummary::default())).boxed() });
        }
        let fetch = self.inner.fetch(request).await?;
        let Fetch { progress, done } = if self.crawls.load(Ordering::SeqCst) { crawl(fetch) } else { fetch };
        let note = move |_: &FetchSummary| {
            fetched.lock().unwrap().insert(digest);
        };
        let done = done.inspect_ok(note).boxed();
        Ok(Fetch { progress, done })
    }

    async fn seed(&self, manifest: Arc<Manifest>, file: PathBuf) -> Result<(), swarm::Error> {
        self.inner.seed(manifest, file).await
    }

    async fn leave(&self, digest: &Digest) -> Result<(), swarm::Error> {
        if self.clings.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.fetched.lock().unwrap().remove(digest);
        self.inner.leave(digest).await
    }

    async fn adjust(&self, digest: &Digest, priority: Priority, limits: Limits) -> Result<(), swarm::Error> {
        self.inner.adjust(digest, priority, limits).await
    }

    async fn limit(&self, limits: Limits) -> Result<(), swarm::Error> {
        self.inner.limit(limits).await
    }

    async fn stats(&self) -> Result<SwarmStats, swarm::Error> {
        self.inner.stats().await
    }
}

#[derive(Debug, Default)]
struct Sink {
    away: AtomicBool,
    taken: AtomicU64,
    /// The services of each report, and when it came.
    said: Mutex<Vec<(Instant, Vec<ServiceReport>)>>,
}

#[async_trait]
impl ReportSink for Sink {
    async fn report(&self, report: &MachineReport) -> Result<(), BackendError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(BackendError::retryable("sink", "away"));
        }
        self.taken.fetch_add(1, Ordering::SeqCst);
        self.said.lock().unwrap().push((Instant::now(), report.services.clone()));
        Ok(())
    }
}

struct World {
    disk: MemoryDisk,
    runner: MemoryRunner,
    store: Store,
    swarm: SwarmRegion,
    goals: Goals,
    sink: Arc<Sink>,
    clings: Arc<AtomicBool>,
    crawls: Arc<AtomicBool>,
}

impl World {
    fn new(capacity: u64) -> Self {
        let (disk, store) = (MemoryDisk::new("/m1", capacity), Store::new());
        let swarm = SwarmRegion::with_files(Arc::new(store.clone()), Arc::new(disk.clone()));
        let runner = MemoryRunner::new(|_| Program { answers_after: Some(Duration::from_secs(1)), ends_after: None });
        let (sink, clings, crawls) = Default::default();
        Self { disk, runner, store, swarm, goals: Goals::new(), sink, clings, crawls }
    }

    fn agent(&self) -> Agent {
        let settings = AgentSettings::new(MachineName::new("m1").unwrap(), RegionName::new("r1").unwrap());
        Agent::new(settings, self.deps())
    }

    fn deps(&self) -> AgentDeps {
        AgentDeps {
            goals: Arc::new(self.goals.clone()),
            manifests: Arc::new(self.store.clone()),
            swarm: Arc::new(Clinging {
                inner: self.swarm.join(),
                fetched: Arc::default(),
                clings: Arc::clone(&self.clings),
                crawls: Arc::clone(&self.crawls),
            }),
            runner: Arc::new(self.runner.clone()),
            reports: Arc::clone(&self.sink) as Arc<dyn ReportSink>,
            disk: Arc::new(self.disk.clone()),
        }
    }

    async fn deploy(&self, generation: u64, bytes: &[u8]) -> ArtifactRef {
        let manifest = self.store.put_bytes(Bytes::copy_from_slice(bytes)).await.unwrap();
        let name = ArtifactName::new(format!("web-{}", manifest.digest().short())).unwrap();
        let artifact = ArtifactRef { name, digest: manifest.digest(), size: manifest.size() };
        let goal = Goal {
            service: service(),
            position: GoalPosition { epoch: GoalEpoch(1), generation: Generation(generation) },
            artifact: artifact.clone(),
            run: RunSpec { port: Port::Free, readiness: Readiness::Http("/".to_owned()), ..RunSpec::default() },
            selector: Selector::all(),
            origin: Origin::Deploy,
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            waivers: Vec::new(),
        };
        let stored = self.goals.get(&service()).await.unwrap();
        let expect = stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
        self.goals.put(&goal, expect).await.unwrap();
        artifact
    }

    /// What executes now, with the promise that it is one build at most and a whole one.
    fn running(&self) -> Option<String> {
        let mut running = self.runner.running();
        assert!(running.len() <= 1, "{running:?}");
        let (instance, launch) = running.pop()?;
        let digest = launch.executable.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(self.disk.whole().contains(&digest.parse().unwrap()));
        let (journal, _) = self.disk.service(&service()).unwrap();
        assert_eq!(journal.process.unwrap().instance, instance, "nobody would find it again");
        Some(digest)
    }
}

fn service() -> ServiceName {
    ServiceName::new("web").unwrap()
}

async fn run_for(agent: &Agent, span: Duration) {
    let run = agent.run(CancellationToken::new());
    assert!(tokio::time::timeout(span, run).await.is_err(), "the agent does not end by itself");
}

/// Drives what happens while the agent runs.
async fn beside(agent: &Agent, drive: impl Future<Output = ()>) {
    tokio::select! {
        ended = agent.run(CancellationToken::new()) => panic!("{ended:?}"),
        () = drive => {}
    }
}

fn phase(agent: &Agent) -> ServicePhase {
    agent.status().borrow().services[0].phase
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_lost_at_any_await_leaves_one_build_and_its_successor_reaches_the_goal() {
    let mut polls = 1_u32;
    loop {
        let world = World::new(1 << 30);
        let old = world.deploy(1, b"old").await;
        run_for(&world.agent(), Duration::from_mins(1)).await;
        assert_eq!(world.running(), Some(old.digest.to_string()));
        let new = world.deploy(2, b"new").await;

        // The agent is driven so many steps towards the new goal, then dropped.
        let agent = world.agent();
        let mut lost = Box::pin(agent.run(CancellationToken::new()));
        for _ in 0..polls {
            assert!((&mut lost).now_or_never().is_none());
            tokio::time::sleep(Duration::from_millis(20)).await;
            world.running();
        }
        let reached = agent
            .status()
            .borrow()
            .services
            .first()
            .is_some_and(|service| service.phase == ServicePhase::Good && service.goal.generation == Generation(2));
        drop(lost);
        drop(agent);
        world.runner.lose_agent();
        if polls.is_multiple_of(3) {
            world.disk.lose_power();
            world.runner.reboot();
        }
        // Its tasks are gone once the runtime has looked at them.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let before = world.running();
        let allowed = [Some(old.digest.to_string()), Some(new.digest.to_string()), None];
        assert!(allowed.contains(&before));

        let next = world.agent();
        run_for(&next, Duration::from_mins(1)).await;
        assert_eq!((world.running(), phase(&next)), (Some(new.digest.to_string()), ServicePhase::Good), "{polls}");
        if reached {
            break;
        }
        polls += 1;
        assert!(polls < 500, "the goal is never reached");
    }
    assert!(polls > 5, "only {polls} places to be lost at");
}

#[tokio::test(start_paused = true)]
async fn an_agent_goes_on_without_its_region() {
    let world = World::new(1 << 30);
    world.deploy(1, b"one").await;
    run_for(&world.agent(), Duration::from_mins(1)).await;
    let pid = world.runner.running()[0].0.pid;
    let taken = world.sink.taken.load(Ordering::SeqCst);
    assert!((4..20).contains(&taken), "one report each ten seconds and at each change: {taken}");

    // A region that forgot everything, and takes no report.
    world.sink.away.store(true, Ordering::SeqCst);
    let world = World { goals: Goals::new(), store: Store::new(), ..world };
    let agent = world.agent();
    run_for(&agent, Duration::from_hours(1)).await;
    assert_eq!(world.runner.running()[0].0.pid, pid);
    assert_eq!(phase(&agent), ServicePhase::Good);
    assert_eq!(world.sink.taken.load(Ordering::SeqCst), taken);
}

#[tokio::test(start_paused = true)]
async fn how_far_a_fetch_is_comes_with_the_reports_of_the_rhythm_and_each_phase_at_once() {
    let world = World::new(1 << 30);
    world.crawls.store(true, Ordering::SeqCst);
    world.deploy(1, b"one").await;
    let begun = Instant::now();
    run_for(&world.agent(), CRAWL.0 + Duration::from_secs(5)).await;
    let said = world.sink.said.lock().unwrap();
    let services = said.iter().filter_map(|(at, services)| Some((*at - begun, services.first()?)));
    let (fetching, later): (Vec<_>, Vec<_>) =
        services.partition(|(_, service)| service.phase == ServicePhase::Fetching);
    assert!((6..9).contains(&fetching.len()), "{} reports", fetching.len());
    assert!(fetching.is_sorted_by(|(_, a), (_, b)| a.bytes_fetched < b.bytes_fetched), "{fetching:?}");
    let (at, first) = later[0];
    assert!(at < CRAWL.0 + Duration::from_secs(1) && first.bytes_fetched == 3, "{later:?}");
    let good = later.iter().find(|(_, service)| service.phase == ServicePhase::Good);
    assert!(good.is_some_and(|(at, _)| *at < CRAWL.0 + Duration::from_secs(2)), "{later:?}");
}

/// A region that has no manifest, and notes when it is asked for one.
#[derive(Debug, Default)]
struct Without {
    asked: Mutex<Vec<Instant>>,
}

#[async_trait]
impl ManifestSource for Without {
    async fn region_manifest(&self, _: &Digest) -> Result<Option<Manifest>, BackendError> {
        self.asked.lock().unwrap().push(Instant::now());
        Ok(None)
    }
}

#[tokio::test(start_paused = true)]
async fn machines_that_found_no_manifest_together_come_back_at_different_times() {
    const MACHINES: u64 = 10;
    let machines = (0..MACHINES).map(|seed| async move {
        let world = World::new(1 << 30);
        world.deploy(1, b"one").await;
        let manifests = Arc::<Without>::default();
        let settings = AgentSettings::new(MachineName::new("m1").unwrap(), RegionName::new("r1").unwrap());
        let agent = Agent::new(settings, AgentDeps { manifests: manifests.clone(), ..world.deps() }).with_seed(seed);
        run_for(&agent, Duration::from_mins(10)).await;
        manifests.asked.lock().unwrap().clone()
    });
    let asked = futures::future::join_all(machines).await;
    for (nth, longest) in [(1, 500), (2, 1_000), (8, 30_000)] {
        let gaps: BTreeSet<_> = asked.iter().map(|asked| (asked[nth] - asked[nth - 1]).as_millis()).collect();
        assert!(gaps.len() as u64 > MACHINES / 2, "they march in step: {gaps:?}");
        assert!(gaps.iter().all(|gap| (longest / 2..=longest + 2).contains(gap)), "{gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_reported_with_its_numbers_and_the_old_build_runs_on() {
    let world = World::new(1000);
    let old = world.deploy(1, &[1; 600]).await;
    run_for(&world.agent(), Duration::from_mins(1)).await;
    world.deploy(2, &[2; 600]).await;
    let agent = world.agent();
    run_for(&agent, Duration::from_mins(1)).await;
    assert_eq!(phase(&agent), ServicePhase::Fetching);
    let message = agent.status().borrow().services[0].message.clone().unwrap();
    assert!(message.contains("400 bytes free") && message.contains("needs 600"), "{message}");
    assert_eq!(world.running(), Some(old.digest.to_string()));
}

#[tokio::test(start_paused = true)]
async fn a_swarm_that_does_not_let_go_holds_up_nothing_else() {
    let world = World::new(1 << 30);
    let first = world.deploy(1, b"1").await;
    let agent = world.agent();
    let drive = async {
        for generation in 2..=5_u8 {
            tokio::time::sleep(Duration::from_secs(20)).await;
            world.deploy(u64::from(generation), &[generation]).await;
        }
        // The first is one more than is kept. While it is being removed, the next goal is reached...
        world.clings.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(world.disk.whole().contains(&first.digest), "it clings");
        let next = world.deploy(6, b"6").await;
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(world.running(), Some(next.digest.to_string()));
        // ...one that names what is being removed waits...
        world.deploy(7, b"1").await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(phase(&agent), ServicePhase::Fetching);
        assert_eq!(world.running(), Some(next.digest.to_string()));
        // ...until it is gone.
        world.clings.store(false, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_mins(2)).await;
        assert_eq!((world.running(), phase(&agent)), (Some(first.digest.to_string()), ServicePhase::Good));
    };
    beside(&agent, drive).await;
}

/// An earlier program took such goals, and journals have them.
#[tokio::test(start_paused = true)]
async fn a_span_without_end_is_never_over() {
    let world = World::new(1 << 30);
    let artifact = world.deploy(1, b"1").await;
    let mut goal = world.goals.get(&service()).await.unwrap().unwrap().goal;
    goal.position.generation = Generation(2);
    goal.run.readiness = Readiness::Alive(Duration::MAX);
    goal.run.ready_timeout = Duration::MAX;
    let journal = Journal { goal: Some(goal), ..Journal::new(service()) };
    world.disk.write_journal(&journal).await.unwrap();
    let agent = world.agent();
    run_for(&agent, Duration::from_hours(1)).await;
    assert_eq!((world.running(), phase(&agent)), (Some(artifact.digest.to_string()), ServicePhase::Running));
}
