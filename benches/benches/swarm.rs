//! The swarm over loopback: a gate, and nodes that fetch one artifact into files. All in one process, so the figure is the
//! time of the last node with everybody on the same cores.

use std::sync::Arc;

use deploycore::model::Manifest;
use deploycore::port::swarm::{FetchRequest, Limits, Priority};
use deploycore::port::{ArtifactStore, ArtifactStoreExt, PeerSwarm};
use deploycore::store::BlobStore;
use deploycore_benches::{folder, noise, runtime};
use deploycore_p2p::{Gate, GateSettings, Node, NodeSettings, Security, Tracker, TrackerSettings};
use divan::counter::BytesCount;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

fn main() {
    divan::main();
}

const SIZE: usize = 64 << 20;

struct Bed {
    runtime: Runtime,
    tracker: String,
    shutdown: CancellationToken,
    folder: TempDir,
}

impl Bed {
    /// A region with a tracker and a gate to a store that has one artifact.
    fn new() -> (Self, Arc<Manifest>) {
        let (runtime, (folder, path), shutdown) = (runtime(), folder(), CancellationToken::new());
        let (tracker, manifest) = runtime.block_on(async {
            let store = Arc::new(BlobStore::open(&Url::from_directory_path(path.join("store")).unwrap()).unwrap());
            let manifest = store.put_bytes(noise(SIZE, 1)).await.unwrap();
            let region = "bench".parse().unwrap();
            let settings = TrackerSettings::new("tracker", region, Security::PlainTcp);
            let tracker = Tracker::bind(settings).await.unwrap();
            let address = tracker.local_addr().to_owned();
            let settings = GateSettings::new("gate", "bench".parse().unwrap(), path.join("gate"), Security::PlainTcp);
            let store: Arc<dyn ArtifactStore> = store;
            let gate = Gate::bind(settings.with_tracker(&address), store).await.unwrap();
            let (stop, stopped) = (shutdown.clone(), shutdown.clone());
            tokio::spawn(async move { tracker.run(stop).await });
            tokio::spawn(async move { gate.run(stopped).await });
            (address, Arc::new(manifest))
        });
        (Self { runtime, tracker, shutdown, folder }, manifest)
    }

    /// Nodes fetch the artifact all at once.
    fn fetch(&self, manifest: &Arc<Manifest>, nodes: usize) {
        self.runtime.block_on(async {
            let mut fetches = JoinSet::new();
            for number in 0..nodes {
                let name = format!("node-{number}");
                let destination = self.folder.path().join(&name);
                let settings = NodeSettings::new(name, "bench".parse().unwrap(), Security::PlainTcp);
                let node = Arc::new(Node::bind(settings.with_tracker(&self.tracker)).await.unwrap());
                let (running, manifest, stop) = (node.clone(), manifest.clone(), self.shutdown.child_token());
                let stopped = stop.clone();
                fetches.spawn(async move {
                    let service = tokio::spawn(async move { running.run(stopped).await });
                    let (priority, limits) = (Priority::Normal, Limits::default());
                    let fetch = node.fetch(FetchRequest { manifest, destination, priority, limits }).await.unwrap();
                    fetch.done.await.unwrap();
                    (stop, service)
                });
            }
            let ended = fetches.join_all().await;
            for (stop, service) in ended {
                stop.cancel();
                service.await.unwrap();
            }
        });
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A fresh region each time: a gate that has given its bytes out gives them again only when no machine holds them. Bytes count once for
/// each node that gets them.
#[divan::bench(args = [1, 4, 16], sample_count = 5, sample_size = 1)]
fn last_of_nodes_64_mib(bencher: divan::Bencher<'_, '_>, nodes: usize) {
    let bench = bencher.counter(BytesCount::new(SIZE * nodes)).with_inputs(Bed::new);
    bench.bench_local_refs(|(bed, manifest)| bed.fetch(manifest, nodes));
}
