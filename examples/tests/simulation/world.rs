//! A world: backends, and the nodes of every role around them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deploycore::deploy::{Deployer, DeployerSettings};
use deploycore::memory;
use deploycore::model::{Labels, RegionName};
use deploycore::port::{ArtifactStore, GoalStateStore, JobQueue, MachineDirectory, ManifestSource, ReplicationLedger};
use deploycore_p2p::net::MemoryFiles;
use tokio::task::JoinSet;

use super::check::{Backends, Checker, RegionBackends};
use super::fault::{Life, Place, Weather};
use super::machine::Machine;
use super::mutant::Mutant;
use super::node::{Node, Start};
use super::port::Far;
use super::region::Board;
use super::settings::Settings;
use super::swarm::SwarmParts;
use super::trace::Trace;

/// Everything of one run.
#[derive(Debug)]
pub struct World {
    pub settings: Arc<Settings>,
    pub mutant: Option<Mutant>,
    pub weather: Arc<Weather>,
    pub nodes: Vec<Arc<Node>>,
    pub machines: Vec<Arc<Machine>>,
    pub ports: Arc<Ports>,
    /// Scripts of people that have not come to their end.
    pub scripts: Arc<AtomicUsize>,
    timers: Mutex<JoinSet<()>>,
}

/// The backends as services see them: beneath the mishaps, above the mutants.
#[derive(Debug)]
pub struct Ports {
    queue: Arc<dyn JobQueue>,
    ledger: Arc<dyn ReplicationLedger>,
    main: Arc<dyn ArtifactStore>,
    goals: Arc<dyn GoalStateStore>,
    pub regions: BTreeMap<RegionName, RegionPorts>,
    clock: memory::Clock,
}

/// The same of a region.
#[derive(Debug)]
pub struct RegionPorts {
    pub store: Arc<dyn ArtifactStore>,
    pub goals: Arc<dyn GoalStateStore>,
    pub manifests: Arc<dyn ManifestSource>,
    pub board: Arc<Board>,
    pub swarm: Arc<SwarmParts>,
}

impl World {
    /// A world at rest.
    pub fn new(settings: Settings, mutant: Option<Mutant>, print: bool) -> Self {
        let settings = Arc::new(settings);
        let regions: Vec<RegionName> =
            (1..=settings.regions).map(|number| format!("r{number}").parse().expect("a valid name")).collect();
        let clock = memory::Clock::starting_at("2026-01-01T00:00:00Z".parse().expect("a valid instant"));
        let backends = Arc::new(Backends {
            queue: Arc::new(memory::Queue::new(clock.clone())),
            ledger: Arc::new(memory::Ledger::new(clock.clone())),
            main: memory::Store::new(),
            goals: memory::Goals::new(),
            regions: regions.iter().map(|region| (region.clone(), RegionBackends::default())).collect(),
        });
        let trace = Arc::new(Trace::new(print));
        let checker = Arc::new(Checker::new(backends.clone(), trace.clone()));
        let files = MemoryFiles::default();
        let machines = machines(&settings, &regions, &files, &checker);
        let weather = Weather::new(&settings, trace, checker);
        let region = |name: &RegionName, backends: &RegionBackends| RegionPorts {
            store: Arc::new(backends.store.clone()),
            goals: Mutant::region_goals(mutant, backends.goals.clone()),
            manifests: Arc::new(backends.store.clone()),
            board: Arc::default(),
            swarm: Arc::new(SwarmParts::new(name.clone(), weather.clone(), mutant)),
        };
        let ports = Arc::new(Ports {
            queue: Mutant::queue(mutant, backends.queue.clone()),
            ledger: Mutant::ledger(mutant, backends.ledger.clone()),
            main: Mutant::main(mutant, backends.main.clone()),
            goals: Mutant::goals(mutant, backends.goals.clone()),
            regions: backends.regions.iter().map(|(name, backends)| (name.clone(), region(name, backends))).collect(),
            clock,
        });
        let (nodes, scripts, timers) = (Vec::new(), Arc::default(), Mutex::default());
        let mut world = Self { settings, mutant, weather, nodes, machines, ports, scripts, timers };
        world.add_people();
        world.add_builds();
        world.add_copies();
        world.add_regions();
        world.add_agents();
        world
    }

    /// Its regions.
    pub fn regions(&self) -> Vec<RegionName> {
        self.ports.regions.keys().cloned().collect()
    }

    /// Whether people have nothing more in mind.
    pub fn is_ordered(&self) -> bool {
        self.scripts.load(Ordering::Relaxed) == 0
    }

    /// Does something after a while.
    pub fn later(&self, after: Duration, what: impl FnOnce() + Send + 'static) {
        let mut timers = self.timers.lock().unwrap_or_else(PoisonError::into_inner);
        timers.spawn(async move {
            tokio::time::sleep(after).await;
            what();
        });
    }

    /// Adds a node.
    pub fn add(&mut self, name: &str, place: Place, start: Start) {
        self.nodes.push(Node::new(name, place, self.weather.clone(), start));
    }
}

impl Ports {
    /// The queue, as a service sees it.
    pub fn queue(&self, life: &Arc<Life>) -> Arc<dyn JobQueue> {
        Far::new(self.queue.clone(), life.link(Place::Global))
    }

    /// The ledger, as a service sees it.
    pub fn ledger(&self, life: &Arc<Life>) -> Arc<dyn ReplicationLedger> {
        Far::new(self.ledger.clone(), life.link(Place::Global))
    }

    /// The main store, as a service sees it.
    pub fn main(&self, life: &Arc<Life>) -> Arc<dyn ArtifactStore> {
        Far::new(self.main.clone(), life.link(Place::Global))
    }

    /// The global goals, as a service sees them.
    pub fn goals(&self, life: &Arc<Life>) -> Arc<dyn GoalStateStore> {
        Far::new(self.goals.clone(), life.link(Place::Global))
    }

    /// A region's store, as a service sees it.
    pub fn region_store(&self, region: &RegionName, life: &Arc<Life>) -> Arc<dyn ArtifactStore> {
        Far::new(self.regions[region].store.clone(), life.link(Place::Region(region.clone())))
    }

    /// A region's goals, as a service sees them.
    pub fn region_goals(&self, region: &RegionName, life: &Arc<Life>) -> Arc<dyn GoalStateStore> {
        Far::new(self.regions[region].goals.clone(), life.link(Place::Region(region.clone())))
    }

    /// A deployer with all its backends far away.
    pub fn deployer(&self, life: &Arc<Life>) -> Deployer {
        let clock = self.clock.clone();
        let mut deployer = Deployer::new(DeployerSettings::default(), self.goals(life), self.ledger(life))
            .with_clock(move || clock.now())
            .with_seed(life.seed());
        for (region, ports) in &self.regions {
            let directory: Arc<dyn MachineDirectory> = ports.board.clone();
            let directory: Arc<dyn MachineDirectory> = Far::new(directory, life.link(Place::Region(region.clone())));
            deployer = deployer.with_directory(region.clone(), directory);
        }
        deployer
    }
}

fn machines(
    settings: &Settings,
    regions: &[RegionName],
    files: &MemoryFiles,
    checker: &Arc<Checker>,
) -> Vec<Arc<Machine>> {
    let all = regions.iter().flat_map(|region| (1..=settings.machines).map(move |number| (region.clone(), number)));
    let machine = |(region, number): (RegionName, usize)| {
        let name = format!("{region}-m{number}").parse().expect("a valid name");
        let labels = Labels([("half".to_owned(), (number % 2).to_string())].into());
        Machine::new(region, name, labels, files.clone(), checker.clone())
    };
    all.map(machine).collect()
}
