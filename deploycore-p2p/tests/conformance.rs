//! The kit for swarms over real nodes, a gate and a tracker on loopback.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use deploycore::conformance::swarm::{Region, Regions};
use deploycore::model::{Digest, Manifest, RegionName};
use deploycore::port::swarm::{Error, Fetch, FetchRequest, Limits, Priority, SwarmStats};
use deploycore::port::{ArtifactStore, PeerSwarm};
use deploycore_p2p::{Gate, GateSettings, Node, NodeSettings, Security, Tracker, TrackerSettings};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[allow(clippy::unused_async, reason = "other regions have to be started")]
async fn regions() -> (Arc<dyn Regions>, impl Sized) {
    (Arc::new(Loopback), ())
}

deploycore::swarm_conformance!(regions, flavor = "multi_thread", worker_threads = 2);

#[derive(Debug)]
struct Loopback;

#[async_trait]
impl Regions for Loopback {
    async fn open(&self, store: Arc<dyn ArtifactStore>) -> Arc<dyn Region> {
        let (name, folder) = (RegionName::new("eu").unwrap(), tempfile::tempdir().unwrap());
        let settings = TrackerSettings::new("tracker", name.clone(), Security::PlainTcp);
        let tracker = Tracker::bind(settings).await.unwrap();
        let tracker_addr = tracker.local_addr().to_owned();
        let settings = GateSettings::new("gate", name.clone(), folder.path().join("gate"), Security::PlainTcp)
            .with_tracker(tracker_addr.clone());
        let gate = Gate::bind(settings, store).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { tracker.run(CancellationToken::new()).await });
        tasks.spawn(async move { gate.run(CancellationToken::new()).await });
        Arc::new(OneRegion { name, tracker_addr, joined: AtomicU32::new(0), _tasks: tasks, _folder: folder })
    }
}

#[derive(Debug)]
struct OneRegion {
    name: RegionName,
    tracker_addr: String,
    joined: AtomicU32,
    _tasks: JoinSet<()>,
    _folder: TempDir,
}

#[async_trait]
impl Region for OneRegion {
    async fn join(&self) -> Arc<dyn PeerSwarm> {
        let name = format!("m{}", self.joined.fetch_add(1, Ordering::SeqCst));
        let settings =
            NodeSettings::new(name, self.name.clone(), Security::PlainTcp).with_tracker(self.tracker_addr.clone());
        let node = Arc::new(Node::bind(settings).await.unwrap());
        let (own, mut task) = (Arc::clone(&node), JoinSet::new());
        task.spawn(async move { own.run(CancellationToken::new()).await });
        Arc::new(Machine { node, _task: task })
    }
}

/// A node and its task, which is aborted, as by a crash, when this is dropped.
#[derive(Debug)]
struct Machine {
    node: Arc<Node>,
    _task: JoinSet<()>,
}

#[async_trait]
impl PeerSwarm for Machine {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetch, Error> {
        self.node.fetch(request).await
    }

    async fn seed(&self, manifest: Arc<Manifest>, file: PathBuf) -> Result<(), Error> {
        self.node.seed(manifest, file).await
    }

    async fn leave(&self, digest: &Digest) -> Result<(), Error> {
        self.node.leave(digest).await
    }

    async fn adjust(&self, digest: &Digest, priority: Priority, limits: Limits) -> Result<(), Error> {
        self.node.adjust(digest, priority, limits).await
    }

    async fn limit(&self, limits: Limits) -> Result<(), Error> {
        self.node.limit(limits).await
    }

    async fn stats(&self) -> Result<SwarmStats, Error> {
        self.node.stats().await
    }
}
