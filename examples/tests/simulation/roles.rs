//! The nodes of a world: which service runs where, over which links.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deploycore::build::{Reaper, ReaperSettings, Worker, WorkerSettings};
use deploycore::deploy::{Mirror, MirrorSettings};
use deploycore::machine::{Agent, AgentDeps, AgentSettings};
use deploycore::model::RegionName;
use deploycore::port::{ArtifactStore, ManifestSource, ReportSink};
use deploycore::store::{Registrar, RegistrarSettings, Replicator, ReplicatorSettings};

use super::builder::SimulatedBuilder;
use super::fault::Place;
use super::machine::disk::VirtualDisk;
use super::machine::runner::VirtualRunner;
use super::mutant::Mutant;
use super::operator;
use super::port::Far;
use super::port::gate::GateStore;
use super::world::World;

/// Lowers the count of scripts once, whatever number of lives a script needs.
macro_rules! script {
    ($world:expr) => {{
        $world.scripts.fetch_add(1, Ordering::Relaxed);
        let (scripts, open) = ($world.scripts.clone(), Arc::new(std::sync::atomic::AtomicBool::new(true)));
        move || {
            if open.swap(false, Ordering::Relaxed) {
                scripts.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }};
}

impl World {
    /// Those who enqueue, and those who deploy.
    pub fn add_people(&mut self) {
        let (orders, ports, trace) = (operator::orders(&self.settings), self.ports.clone(), self.weather.trace.clone());
        let done = script!(self);
        self.add(
            "developer",
            Place::Global,
            Box::new(move |life, shutdown| {
                let (orders, queue, trace, done) = (orders.clone(), ports.queue(&life), trace.clone(), done.clone());
                Box::pin(async move {
                    let work = async {
                        operator::enqueue(orders, || trace.elapsed(), queue).await;
                        done();
                        pending::<()>().await;
                    };
                    shutdown.run_until_cancelled(work).await;
                })
            }),
        );
        let (changes, ports, trace) =
            (operator::changes(&self.settings), self.ports.clone(), self.weather.trace.clone());
        let done = script!(self);
        self.add(
            "deployer",
            Place::Global,
            Box::new(move |life, shutdown| {
                let (changes, trace, done) = (changes.clone(), trace.clone(), done.clone());
                let (deployer, ledger) = (ports.deployer(&life), ports.ledger(&life));
                Box::pin(async move {
                    let work = async {
                        operator::change(changes, &trace, &deployer, ledger).await;
                        done();
                        pending::<()>().await;
                    };
                    tokio::join!(deployer.run(shutdown.clone()), shutdown.run_until_cancelled(work));
                })
            }),
        );
    }

    /// Workers and reapers.
    pub fn add_builds(&mut self) {
        for number in 1..=self.settings.workers {
            let (settings, ports) = (self.settings.clone(), self.ports.clone());
            let name = format!("worker-{number}");
            let mut worker = WorkerSettings::default()
                .with_name(name.parse().expect("a valid name"))
                .with_slots(settings.slots.try_into().expect("at least one slot"))
                .with_poll(Duration::from_secs(8));
            if settings.slow_clocks {
                worker = worker.with_heartbeat(Duration::from_secs(30), Duration::from_mins(20));
            }
            self.add(
                &name,
                Place::Global,
                Box::new(move |life, shutdown| {
                    let builder = Arc::new(SimulatedBuilder::new(settings.clone(), life.clone()));
                    let service = Worker::new(worker.clone(), ports.queue(&life), ports.main(&life), builder);
                    let service = service.expect("valid settings").with_seed(life.seed());
                    Box::pin(async move { service.run(shutdown).await })
                }),
            );
        }
        for number in 1..=2 {
            let ports = self.ports.clone();
            self.add(
                &format!("reaper-{number}"),
                Place::Global,
                Box::new(move |life, shutdown| {
                    let service = Reaper::new(ReaperSettings::default(), ports.queue(&life));
                    let service = service.expect("valid settings").with_seed(life.seed());
                    Box::pin(async move { service.run(shutdown).await })
                }),
            );
        }
    }

    /// The registrar, and a replicator for each region.
    pub fn add_copies(&mut self) {
        let (ports, regions) = (self.ports.clone(), self.regions());
        let required = RegistrarSettings::default().with_required(regions.clone()).with_period(Duration::from_secs(10));
        self.add(
            "registrar",
            Place::Global,
            Box::new(move |life, shutdown| {
                let service = Registrar::new(required.clone(), ports.queue(&life), ports.ledger(&life));
                let service = service.with_seed(life.seed());
                Box::pin(async move { service.run(shutdown).await })
            }),
        );
        for region in regions {
            let ports = self.ports.clone();
            let settings = ReplicatorSettings::default()
                .with_period(Duration::from_secs(10))
                .with_audit_period(Duration::from_mins(2));
            self.add(
                &format!("replicator-{region}"),
                Place::Region(region.clone()),
                Box::new(move |life, shutdown| {
                    let stores = [(region.clone(), ports.region_store(&region, &life))].into();
                    let service = Replicator::new(settings.clone(), ports.ledger(&life), ports.main(&life), stores);
                    let service = service.with_seed(life.seed());
                    Box::pin(async move { service.run(shutdown).await })
                }),
            );
        }
    }

    /// A mirror and a board for each region.
    pub fn add_regions(&mut self) {
        for region in self.regions() {
            let (ports, watch, mutant) = (self.ports.clone(), self.settings.watch, self.mutant);
            let here = region.clone();
            self.add(
                &format!("mirror-{region}"),
                Place::Region(region.clone()),
                Box::new(move |life, shutdown| {
                    let (source, target) = (ports.goals(&life), ports.region_goals(&here, &life));
                    if mutant == Some(Mutant::MirrorGoesBack) {
                        return Box::pin(super::mutant::goals::mirror_backwards(source, target));
                    }
                    let settings = MirrorSettings::default().with_watch(watch);
                    let service = Mirror::new(settings, source, target).with_seed(life.seed());
                    Box::pin(async move { service.run(shutdown).await })
                }),
            );
            self.add_swarm(&region);
            let ports = self.ports.clone();
            self.add(
                &format!("board-{region}"),
                Place::Region(region.clone()),
                Box::new(move |_, shutdown| {
                    let board = ports.regions[&region].board.clone();
                    board.open();
                    let closes = Closes(board);
                    Box::pin(async move {
                        shutdown.cancelled().await;
                        drop(closes);
                    })
                }),
            );
        }
    }

    /// A gate and a tracker.
    fn add_swarm(&mut self, region: &RegionName) {
        let (ports, checker, here) = (self.ports.clone(), self.weather.checker.clone(), region.clone());
        self.add(
            &format!("gate-{region}"),
            Place::Region(region.clone()),
            Box::new(move |life, shutdown| {
                let region = &ports.regions[&here];
                let (inner, swarm, checker) = (region.store.clone(), region.swarm.clone(), checker.clone());
                let counted: Arc<dyn ArtifactStore> = Arc::new(GateStore { inner, parts: swarm.clone(), checker });
                let store: Arc<dyn ArtifactStore> = Far::new(counted, life.link(Place::Region(here.clone())));
                Box::pin(async move { swarm.gate(&life, store).await.run(shutdown).await })
            }),
        );
        let (ports, here) = (self.ports.clone(), region.clone());
        self.add(
            &format!("tracker-{region}"),
            Place::Region(region.clone()),
            Box::new(move |life, shutdown| {
                let swarm = ports.regions[&here].swarm.clone();
                Box::pin(async move { swarm.tracker(&life).await.run(shutdown).await })
            }),
        );
    }

    /// An agent on each machine.
    pub fn add_agents(&mut self) {
        for machine in self.machines.clone() {
            let (ports, watch, mutant) = (self.ports.clone(), self.settings.watch, self.mutant);
            let place = Place::Region(machine.region.clone());
            let here = place.clone();
            self.add(
                &format!("agent-{}", machine.name),
                place,
                Box::new(move |life, shutdown| {
                    let region = &ports.regions[&machine.region];
                    let manifests: Arc<dyn ManifestSource> =
                        Far::new(region.manifests.clone(), life.link(here.clone()));
                    let board: Arc<dyn ReportSink> = region.board.clone();
                    let reports: Arc<dyn ReportSink> = Far::new(board, life.link(here.clone()));
                    let (swarm, machine) = (region.swarm.clone(), machine.clone());
                    let goals = Mutant::agent_goals(mutant, ports.region_goals(&machine.region, &life));
                    let mut settings = AgentSettings::new(machine.name.clone(), machine.region.clone())
                        .with_labels(machine.labels.clone());
                    settings.rhythm.watch = watch;
                    settings.rhythm.poll = Duration::from_secs(20);
                    settings.rhythm.report = Duration::from_secs(30);
                    Box::pin(async move {
                        let node = Arc::new(swarm.node(&life, &machine.files).await);
                        let deps = AgentDeps {
                            goals,
                            manifests,
                            swarm: node.clone(),
                            runner: Arc::new(VirtualRunner::new(machine.clone(), life.local())),
                            reports,
                            disk: Arc::new(VirtualDisk::new(machine.clone(), life.local(), mutant)),
                        };
                        let agent = Agent::new(settings, deps).with_seed(life.seed());
                        let (ran, ()) = tokio::join!(agent.run(shutdown.clone()), node.run(shutdown));
                        ran.expect("the disk can be read");
                    })
                }),
            );
        }
    }
}

/// The board is gone when its node is.
struct Closes(Arc<super::region::Board>);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.close();
    }
}
