//! A region on loopback: a tracker, a gate and nodes, each of which can be stopped and started again.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::model::{Digest, LogName, Manifest, RegionName};
use deploycore::port::ArtifactStore;
use deploycore::port::store::{Chunks, Error, Source};
use deploycore::port::swarm::{Fetch, FetchRequest, Limits, PeerSwarm, Priority};
use deploycore_p2p::{Gate, GateSettings, Node, NodeSettings, Security, Tracker, TrackerSettings};
use futures::stream::{self, BoxStream, StreamExt};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// One artifact in memory that counts what is read of it.
#[derive(Debug)]
pub struct OneArtifact {
    pub bytes: Bytes,
    pub manifest: Manifest,
    pub read: AtomicU64,
}

impl OneArtifact {
    pub fn new(len: usize, seed: u64) -> Arc<Self> {
        let mut bytes = vec![0; len];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        let manifest = Manifest::of(&bytes);
        Arc::new(Self { bytes: bytes.into(), manifest, read: AtomicU64::new(0) })
    }

    pub fn read_ratio(&self) -> f64 {
        self.read.load(Ordering::SeqCst) as f64 / self.bytes.len() as f64
    }
}

#[async_trait]
impl ArtifactStore for OneArtifact {
    async fn put(&self, _: Source) -> Result<Manifest, Error> {
        Err(Error::Invalid("read-only".into()))
    }
    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        Ok((*digest == self.manifest.digest()).then(|| self.manifest.clone()))
    }
    async fn read(&self, _: &Digest, range: std::ops::Range<u64>) -> Result<Chunks, Error> {
        self.read.fetch_add(range.end - range.start, Ordering::SeqCst);
        let bytes = self.bytes.slice(range.start as usize..range.end as usize);
        Ok(stream::iter([Ok(bytes)]).boxed())
    }
    async fn exists(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(*digest == self.manifest.digest())
    }
    async fn delete(&self, _: &Digest) -> Result<(), Error> {
        Err(Error::Invalid("read-only".into()))
    }
    fn list(&self) -> BoxStream<'_, Result<Digest, Error>> {
        stream::iter([Ok(self.manifest.digest())]).boxed()
    }
    async fn put_log(&self, _: &LogName, _: Bytes) -> Result<(), Error> {
        Err(Error::Invalid("read-only".into()))
    }
    async fn log(&self, _: &LogName) -> Result<Option<Bytes>, Error> {
        Ok(None)
    }
}

/// A service that runs. Dropping or killing it drops its future, as a crash would.
pub struct Running<T> {
    pub service: Arc<T>,
    task: JoinHandle<()>,
}

impl<T> Running<T> {
    pub fn spawn(service: Arc<T>, run: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { service, task: tokio::spawn(run) }
    }

    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub struct Region {
    pub name: RegionName,
    pub folder: TempDir,
    pub store: Arc<OneArtifact>,
    pub tracker_addr: String,
    pub tracker: Option<Running<Tracker>>,
    pub gate_addr: String,
    pub gate: Option<Running<Gate>>,
    /// Changes a node's settings before it starts.
    pub tune: fn(&mut NodeSettings),
}

impl Region {
    pub async fn new(store: Arc<OneArtifact>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut region = Self {
            name: RegionName::new("eu").unwrap(),
            folder,
            store,
            tracker_addr: "127.0.0.1:0".into(),
            tracker: None,
            gate_addr: "127.0.0.1:0".into(),
            gate: None,
            tune: |_| {},
        };
        region.start_tracker().await;
        region.start_gate().await;
        region
    }

    pub async fn start_tracker(&mut self) {
        let settings = TrackerSettings::new("tracker", self.name.clone(), Security::PlainTcp)
            .with_listen(self.tracker_addr.clone());
        let service = Arc::new(rebind(|| Tracker::bind(settings.clone())).await);
        service.local_addr().clone_into(&mut self.tracker_addr);
        let own = Arc::clone(&service);
        let task = tokio::spawn(async move { own.run(CancellationToken::new()).await });
        self.tracker = Some(Running { service, task });
    }

    pub async fn start_gate(&mut self) {
        let data = self.folder.path().join("gate");
        let settings = GateSettings::new("gate", self.name.clone(), data, Security::PlainTcp)
            .with_listen(self.gate_addr.clone())
            .with_tracker(self.tracker_addr.clone());
        let service = Arc::new(rebind(|| Gate::bind(settings.clone(), Arc::clone(&self.store) as _)).await);
        service.local_addr().clone_into(&mut self.gate_addr);
        let own = Arc::clone(&service);
        let task = tokio::spawn(async move { own.run(CancellationToken::new()).await });
        self.gate = Some(Running { service, task });
    }

    pub async fn node(&self, name: &str) -> Running<Node> {
        let mut settings =
            NodeSettings::new(name, self.name.clone(), Security::PlainTcp).with_tracker(self.tracker_addr.clone());
        (self.tune)(&mut settings);
        let service = Arc::new(Node::bind(settings).await.unwrap());
        let own = Arc::clone(&service);
        let task = tokio::spawn(async move { own.run(CancellationToken::new()).await });
        Running { service, task }
    }

    pub fn destination(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.bin"))
    }

    pub async fn fetch(&self, node: &Running<Node>, name: &str) -> Fetch {
        self.fetch_limited(node, name, Limits::default()).await
    }

    pub async fn fetch_limited(&self, node: &Running<Node>, name: &str, limits: Limits) -> Fetch {
        let manifest = Arc::new(self.store.manifest.clone());
        let destination = self.destination(name);
        let request = FetchRequest { manifest, destination, priority: Priority::Normal, limits };
        node.service.fetch(request).await.unwrap()
    }

    pub fn assert_whole(&self, name: &str) {
        let bytes = std::fs::read(self.destination(name)).unwrap();
        assert!(bytes == self.store.bytes, "{name} has other bytes");
    }

    pub async fn usage(&self) -> deploycore_p2p::core::gate::Usage {
        self.gate.as_ref().unwrap().service.usage(&self.store.manifest.digest()).await.unwrap()
    }
}

/// Binds once the port and the folder are free: the tasks of a service that was killed in this process end a moment after it.
async fn rebind<T, F: Future<Output = std::io::Result<T>>>(bind: impl Fn() -> F) -> T {
    in_time(async {
        loop {
            match bind().await {
                Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::ResourceBusy) => {
                    tokio::task::yield_now().await;
                }
                bound => return bound.unwrap(),
            }
        }
    })
    .await
}

/// A test ends in this time, or it hangs.
pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(1), work).await.expect("it hangs")
}

pub fn trace() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}
