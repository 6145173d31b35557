//! A world: backends, and the nodes of every role around them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deploycore::build::{Reaper, ReaperSettings, Worker, WorkerSettings};
use deploycore::memory;
use deploycore::model::RegionName;
use deploycore::port::{ArtifactStore, GoalStateStore, JobQueue, ReplicationLedger};
use tokio::task::JoinSet;

use super::builder::SimulatedBuilder;
use super::check::{Backends, Checker, RegionBackends};
use super::fault::{Place, Weather};
use super::mutant::Mutant;
use super::node::Node;
use super::operator;
use super::port::Far;
use super::settings::Settings;
use super::trace::Trace;

/// Everything of one run.
#[derive(Debug)]
pub struct World {
    pub settings: Arc<Settings>,
    pub weather: Arc<Weather>,
    pub nodes: Vec<Arc<Node>>,
    pub regions: Vec<RegionName>,
    ports: Arc<Ports>,
    ordered: Arc<AtomicBool>,
    timers: Mutex<JoinSet<()>>,
}

/// The backends as services see them: beneath the mishaps, above the mutants.
#[derive(Debug)]
pub struct Ports {
    pub queue: Arc<dyn JobQueue>,
    pub ledger: Arc<dyn ReplicationLedger>,
    pub main: Arc<dyn ArtifactStore>,
    pub goals: Arc<dyn GoalStateStore>,
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
            ledger: Arc::new(memory::Ledger::new(clock)),
            main: memory::Store::new(),
            goals: memory::Goals::new(),
            regions: regions.iter().map(|region| (region.clone(), RegionBackends::default())).collect(),
        });
        let trace = Arc::new(Trace::new(print));
        let checker = Arc::new(Checker::new(backends.clone(), trace.clone()));
        let weather = Weather::new(&settings, trace, checker);
        let ports = Arc::new(Ports {
            queue: Mutant::queue(mutant, backends.queue.clone()),
            ledger: Mutant::ledger(mutant, backends.ledger.clone()),
            main: Mutant::main(mutant, backends.main.clone()),
            goals: Mutant::goals(mutant, backends.goals.clone()),
        });
        let mut world = Self {
            settings,
            weather,
            nodes: Vec::new(),
            regions,
            ports,
            ordered: Arc::default(),
            timers: Mutex::default(),
        };
        world.add_operator();
        world.add_workers();
        world.add_reapers();
        world
    }

    /// Whether all orders were given.
    pub fn ordered(&self) -> bool {
        self.ordered.load(Ordering::Relaxed)
    }

    /// Does something after a while.
    pub fn later(&self, after: Duration, what: impl FnOnce() + Send + 'static) {
        let mut timers = self.timers.lock().unwrap_or_else(PoisonError::into_inner);
        timers.spawn(async move {
            tokio::time::sleep(after).await;
            what();
        });
    }

    fn add_operator(&mut self) {
        let (orders, ports) = (operator::orders(&self.settings), self.ports.clone());
        let (trace, ordered) = (self.weather.trace.clone(), self.ordered.clone());
        self.add(
            "operator",
            Place::Global,
            Box::new(move |life, shutdown| {
                let queue: Arc<dyn JobQueue> = Far::new(ports.queue.clone(), life.link(Place::Global));
                let (orders, trace, ordered) = (orders.clone(), trace.clone(), ordered.clone());
                Box::pin(async move {
                    let work = async {
                        operator::enqueue(orders, || trace.elapsed(), queue).await;
                        ordered.store(true, Ordering::Relaxed);
                        std::future::pending::<()>().await
                    };
                    shutdown.run_until_cancelled(work).await;
                })
            }),
        );
    }

    fn add(&mut self, name: &str, place: Place, start: super::node::Start) {
        self.nodes.push(Node::new(name, place, self.weather.clone(), start));
    }

    fn add_workers(&mut self) {
        for number in 1..=self.settings.workers {
            let (settings, ports) = (self.settings.clone(), self.ports.clone());
            let name = format!("worker-{number}");
            let mut worker = WorkerSettings::default()
                .with_poll(Duration::from_secs(8))
                .with_name(name.parse().expect("a valid name"))
                .with_slots(settings.slots.try_into().expect("at least one slot"));
            if settings.slow_clocks {
                worker = worker.with_heartbeat(Duration::from_secs(30), Duration::from_mins(20));
            }
            self.add(
                &name,
                Place::Global,
                Box::new(move |life, shutdown| {
                    let queue: Arc<dyn JobQueue> = Far::new(ports.queue.clone(), life.link(Place::Global));
                    let main: Arc<dyn ArtifactStore> = Far::new(ports.main.clone(), life.link(Place::Global));
                    let builder = Arc::new(SimulatedBuilder::new(settings.clone(), life.clone()));
                    let service = Worker::new(worker.clone(), queue, main, builder).with_seed(life.seed());
                    Box::pin(async move { service.run(shutdown).await })
                }),
            );
        }
    }

    fn add_reapers(&mut self) {
        for number in 1..=2 {
            let ports = self.ports.clone();
            self.add(
                &format!("reaper-{number}"),
                Place::Global,
                Box::new(move |life, shutdown| {
                    let queue: Arc<dyn JobQueue> = Far::new(ports.queue.clone(), life.link(Place::Global));
                    let service = Reaper::new(ReaperSettings::default(), queue).with_seed(life.seed());
                    Box::pin(async move { service.run(shutdown).await })
                }),
            );
        }
    }
}
