//! The whole road in one process: queue, worker, two regions with three machines each, a real swarm over TCP, a deploy, a
//! second deploy, a rollback. The same parts that the reference cluster spreads over processes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use deploycore::build::{BuildContext, BuildError, BuildOutput, Builder, Worker, WorkerSettings};
use deploycore::deploy::{DeployRequest, Deployer, DeployerSettings, Mirror, MirrorSettings, ReportBoard};
use deploycore::machine::{
    Agent, AgentDeps, AgentSettings, LocalDisk, LocalDiskSettings, ProcessRunner, ProcessRunnerSettings,
};
use deploycore::model::{ArtifactName, Goal, Job, NewJob, Readiness, RegionName, RunSpec, ServiceName};
use deploycore::port::{ArtifactStore, GoalStateStore, JobQueue, JobQueueExt, ReplicationLedger, ReplicationLedgerExt};
use deploycore::store::{BlobStore, Registrar, RegistrarSettings, Replicator, ReplicatorSettings};
use deploycore_kv::RedbGoals;
use deploycore_p2p::{Gate, GateSettings, Node, NodeSettings, Security, Tracker, TrackerSettings};
use deploycore_sql::Sqlite;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const MACHINES: usize = 3;
const PATIENCE: Duration = Duration::from_mins(1);

/// Each artifact is a script that says which commit it was built from.
#[derive(Debug)]
struct Greeter;

#[async_trait::async_trait]
impl Builder for Greeter {
    async fn build(&self, job: &Job, _: &BuildContext) -> Result<BuildOutput, BuildError> {
        Ok(BuildOutput::bytes(format!("#!/bin/sh\necho hello from {}\n", job.spec.commit)))
    }
}

/// The services of the process: all end when the token is cancelled.
struct Platform {
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Platform {
    fn start<F: Future<Output = ()> + Send + 'static>(&mut self, service: impl FnOnce(CancellationToken) -> F) {
        self.tasks.spawn(service(self.shutdown.clone()));
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    let mut platform = Platform { tasks: JoinSet::new(), shutdown: CancellationToken::new() };

    // The main side: queue, ledger, main store, global goals.
    let sqlite = Sqlite::open(&format!("sqlite://{}/main.db", root.display())).await?;
    let queue: Arc<dyn JobQueue> = sqlite.queue();
    let ledger: Arc<dyn ReplicationLedger> = sqlite.ledger();
    let main: Arc<dyn ArtifactStore> = Arc::new(open_store(&root.join("main"))?);
    let goals: Arc<dyn GoalStateStore> = Arc::new(RedbGoals::open(root.join("goals.redb")).await?);

    // Two regions, each with a store, goals, gate, tracker and machines.
    let mut deployer = Deployer::new(DeployerSettings::default(), goals.clone(), ledger.clone());
    let mut stores = BTreeMap::new();
    for name in ["north", "south"] {
        let name = RegionName::new(name)?;
        let store = Arc::new(open_store(&root.join(name.as_str()).join("store"))?);
        let board = Arc::new(ReportBoard::default());
        start_region(&mut platform, root, &name, &goals, &store, &board).await?;
        deployer = deployer.with_directory(name.clone(), board);
        stores.insert(name, store as Arc<dyn ArtifactStore>);
    }

    // What moves bytes and rows between them.
    let worker = Worker::new(WorkerSettings::default(), queue.clone(), main.clone(), Arc::new(Greeter))?;
    let replicator = Replicator::new(ReplicatorSettings::default(), ledger.clone(), main, stores.clone());
    let settings = RegistrarSettings::default().with_required(stores.into_keys());
    let registrar = Registrar::new(settings, queue.clone(), ledger.clone());
    platform.start(|stop| async move { worker.run(stop).await });
    platform.start(|stop| async move { replicator.run(stop).await });
    platform.start(|stop| async move { registrar.run(stop).await });

    // The road: two commits, forward, forward, back.
    let service: ServiceName = "greeter".parse()?;
    let run = RunSpec { readiness: Readiness::Exit, ..RunSpec::default() };
    for commit in ["1111111", "2222222"] {
        let job = NewJob::new(service.clone(), commit.parse()?);
        queue.enqueue_one(&job).await?;
        let artifact = ArtifactName::for_job(&service, job.id);
        deployable(&*ledger, &artifact).await?;
        let goal = deployer.deploy(&DeployRequest::new(service.clone(), artifact).with_run(run.clone())).await?;
        println!("generation {}: {} ({commit})", goal.position.generation, goal.artifact.name);
        converged(&deployer, &goal).await?;
    }
    let goal = deployer.rollback(&service, None).await?;
    println!("generation {}: back to {}", goal.position.generation, goal.artifact.name);
    converged(&deployer, &goal).await?;

    platform.shutdown.cancel();
    while let Some(ended) = platform.tasks.join_next().await {
        ended?;
    }
    Ok(())
}

async fn start_region(
    platform: &mut Platform,
    root: &Path,
    name: &RegionName,
    global: &Arc<dyn GoalStateStore>,
    store: &Arc<BlobStore>,
    board: &Arc<ReportBoard>,
) -> Result<()> {
    let folder = root.join(name.as_str());
    let goals: Arc<dyn GoalStateStore> = Arc::new(RedbGoals::open(folder.join("goals.redb")).await?);
    let mirror = Mirror::new(MirrorSettings::default(), global.clone(), goals.clone());
    // One process and one loopback: nobody else is on this network.
    let security = || Security::PlainTcp;
    let tracker = Tracker::bind(TrackerSettings::new("tracker", name.clone(), security())).await?;
    let tracker_addr = tracker.local_addr().to_owned();
    let settings = GateSettings::new("gate", name.clone(), folder.join("gate"), security()).with_tracker(&tracker_addr);
    let gate = Gate::bind(settings, store.clone()).await?;
    platform.start(|stop| async move { mirror.run(stop).await });
    platform.start(|stop| async move { tracker.run(stop).await });
    platform.start(|stop| async move { gate.run(stop).await });

    for number in 1..=MACHINES {
        let machine = format!("{name}-{number}");
        let settings = NodeSettings::new(&machine, name.clone(), security()).with_tracker(&tracker_addr);
        let node = Arc::new(Node::bind(settings).await?);
        let deps = AgentDeps {
            goals: goals.clone(),
            manifests: store.clone(),
            swarm: node.clone(),
            runner: Arc::new(ProcessRunner::new(ProcessRunnerSettings::default())?),
            reports: board.clone(),
            disk: Arc::new(LocalDisk::open(folder.join(&machine), LocalDiskSettings::default())?),
        };
        let agent = Agent::new(AgentSettings::new(machine.parse()?, name.clone()), deps);
        platform.start(|stop| async move { node.run(stop).await });
        platform.start(|stop| async move {
            if let Err(error) = agent.run(stop).await {
                eprintln!("agent: {error}");
            }
        });
    }
    Ok(())
}

fn open_store(path: &Path) -> Result<BlobStore> {
    let url =
        url::Url::from_directory_path(path).map_err(|()| anyhow::anyhow!("{} is not absolute", path.display()))?;
    Ok(BlobStore::open(&url)?)
}

async fn deployable(ledger: &dyn ReplicationLedger, artifact: &ArtifactName) -> Result<()> {
    let wait = async {
        while ledger.deployable(artifact).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("{artifact} is still not deployable"))
}

async fn converged(deployer: &Deployer, goal: &Goal) -> Result<()> {
    let all = 2 * MACHINES as u64;
    let state = deployer.wait_converged(&goal.service, goal.position, all, PATIENCE, |_| {}).await?;
    println!("  runs on {} machines", state.converged());
    Ok(())
}
