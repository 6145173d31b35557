//! Several gates in a region.

mod common;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::{OneArtifact, Region, Running, in_time, trace};
use deploycore::model::{Digest, Manifest};
use deploycore_p2p::core::gate::{Record, rendezvous};
use deploycore_p2p::core::message::{Contact, PeerId};
use deploycore_p2p::net::{Counts, MemoryCounts, Tcp};
use deploycore_p2p::{Gate, GateSettings, Security};
use tokio_util::sync::CancellationToken;

/// A disk that is full.
#[derive(Debug)]
struct FullDisk;

#[async_trait]
impl Counts for FullDisk {
    async fn load(&self, _: &Digest) -> io::Result<Option<Record>> {
        Ok(None)
    }

    async fn save(&self, _: &Digest, _: &Record) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }
}

async fn gate(region: &Region, name: &str, counts: Arc<dyn Counts>) -> Running<Gate> {
    let settings = GateSettings::new(name, region.name.clone(), region.folder.path(), Security::PlainTcp)
        .with_tracker(region.tracker_addr.clone());
    let store = Arc::clone(&region.store) as _;
    let service = Arc::new(Gate::bind_with(settings, store, counts, Arc::new(Tcp)).await.unwrap());
    let own = Arc::clone(&service);
    Running::spawn(service, async move { own.run(CancellationToken::new()).await })
}

/// Two names of gates, the first of which decides for an artifact.
fn names(manifest: &Manifest) -> [&'static str; 2] {
    let contact = |name: &str| Contact { peer: PeerId::of(name), addr: name.into() };
    let names = ["one", "other"];
    match rendezvous(&manifest.digest(), &names.map(contact)) {
        Some(first) if first.peer == PeerId::of("other") => ["other", "one"],
        _ => names,
    }
}

/// Nodes would ask it for ever, while the other has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_that_cannot_count_leaves_its_artifacts_to_another() {
    trace();
    let mut region = Region::new(OneArtifact::new(2 << 20, 1)).await;
    region.gate.take().unwrap().kill().await;
    let [sick, sound] = names(&region.store.manifest);
    let _sick = gate(&region, sick, Arc::new(FullDisk)).await;
    let _sound = gate(&region, sound, Arc::new(MemoryCounts::default())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let node = region.node("m").await;
    let fetch = region.fetch(&node, "m").await;
    in_time(fetch.done).await.unwrap();
    region.assert_whole("m");
}
