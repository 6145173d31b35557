//! The real swarm of a region on a network in memory: gate, tracker, and a node in each agent.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::model::{Digest, Manifest, RegionName};
use deploycore_p2p::core::bitfield::Bitfield;
use deploycore_p2p::core::gate::Record;
use deploycore_p2p::net::{
    Connection, Counts, Files, Listener, MemoryCounts, MemoryFiles, MemoryNetwork, Open, PieceFile, Stored, Transport,
};
use deploycore_p2p::{Gate, GateSettings, Node, NodeSettings, Security, Tracker, TrackerSettings};
use tokio::io::{AsyncRead, ReadBuf};

use super::check::Checker;
use super::fault::{Life, Weather};
use super::mutant::Mutant;
use super::settings::stream;

/// What the members of a region's swarm share.
#[derive(Debug)]
pub struct SwarmParts {
    pub region: RegionName,
    pub network: MemoryNetwork,
    pub counts: MemoryCounts,
    weather: Arc<Weather>,
    mutant: Option<Mutant>,
}

impl SwarmParts {
    /// A region without members.
    pub fn new(region: RegionName, weather: Arc<Weather>, mutant: Option<Mutant>) -> Self {
        let network = MemoryNetwork::new(Duration::from_millis(2), 50 << 20);
        Self { region, network, counts: MemoryCounts::default(), weather, mutant }
    }

    /// The network as a life of a node sees it; what an earlier life had open is broken.
    fn host(&self, life: &Life) -> Arc<dyn Transport> {
        self.network.crash(&life.node);
        let random = Arc::new(Mutex::new(stream(life.seed(), "wire")));
        Arc::new(Noisy { inner: self.network.host(&*life.node), weather: self.weather.clone(), random })
    }

    fn tracker_addr(&self) -> String {
        format!("tracker-{}:7000", self.region)
    }

    /// A tracker.
    pub async fn tracker(&self, life: &Life) -> Tracker {
        let mut settings =
            TrackerSettings::new(&*life.node, self.region.clone(), Security::PlainTcp).with_listen(self.tracker_addr());
        settings.seed = Some(life.seed());
        Tracker::bind_with(settings, self.host(life)).await.expect("the port is free")
    }

    /// A gate over a store.
    pub async fn gate(&self, life: &Life, store: Arc<dyn deploycore::port::ArtifactStore>) -> Gate {
        let mut settings = GateSettings::new(&*life.node, self.region.clone(), "/counts", Security::PlainTcp)
            .with_listen(format!("{}:7000", life.node))
            .with_tracker(self.tracker_addr());
        settings.leasing.tick = TICK;
        let counts: Arc<dyn Counts> = match self.mutant {
            Some(Mutant::GateForgets) => Arc::new(Forgetful(self.counts.clone())),
            _ => Arc::new(self.counts.clone()),
        };
        Gate::bind_with(settings, store, counts, self.host(life)).await.expect("the port is free")
    }

    /// A machine's node on its files.
    pub async fn node(&self, life: &Life, files: &MemoryFiles) -> Node {
        let mut settings = NodeSettings::new(&*life.node, self.region.clone(), Security::PlainTcp)
            .with_listen(format!("{}:0", life.node))
            .with_tracker(self.tracker_addr())
            .with_seed(life.seed());
        settings.swarm.tick = TICK;
        let (checker, mutant) = (self.weather.checker.clone(), self.mutant);
        let files = Arc::new(CheckedFiles { inner: files.clone(), checker, mutant });
        Node::bind_with(settings, self.host(life), files).await.expect("the port is free")
    }

    /// What the gates say that they granted of an artifact.
    pub async fn granted(&self, digest: &Digest) -> Option<Record> {
        self.counts.load(digest).await.expect("memory never fails")
    }
}

/// Counts that a gate never finds again, though they are there for the checker.
#[derive(Debug)]
struct Forgetful(MemoryCounts);

#[async_trait]
impl Counts for Forgetful {
    async fn load(&self, _: &Digest) -> io::Result<Option<Record>> {
        Ok(None)
    }

    async fn save(&self, digest: &Digest, record: &Record) -> io::Result<()> {
        self.0.save(digest, record).await
    }
}

/// How often members look for what got lost: seldom, because most of a run is waiting.
const TICK: Duration = Duration::from_secs(1);
/// What is longer holds bytes of a block.
const MIN_NOISY: usize = 4 << 10;

/// A network that changes a byte of a block now and then.
#[derive(Debug)]
struct Noisy {
    inner: Arc<dyn Transport>,
    weather: Arc<Weather>,
    random: Arc<Mutex<fastrand::Rng>>,
}

fn noisy(connection: Connection, weather: &Arc<Weather>, random: &Arc<Mutex<fastrand::Rng>>) -> Connection {
    let Connection { read, write, host, names } = connection;
    let read = Box::new(NoisyRead { inner: read, weather: weather.clone(), random: random.clone() });
    Connection { read, write, host, names }
}

#[async_trait]
impl Transport for Noisy {
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let inner = self.inner.listen(addr).await?;
        Ok(Box::new(NoisyListener { inner, weather: self.weather.clone(), random: self.random.clone() }))
    }

    async fn connect(&self, addr: &str) -> io::Result<Connection> {
        Ok(noisy(self.inner.connect(addr).await?, &self.weather, &self.random))
    }
}

#[derive(Debug)]
struct NoisyListener {
    inner: Box<dyn Listener>,
    weather: Arc<Weather>,
    random: Arc<Mutex<fastrand::Rng>>,
}

#[async_trait]
impl Listener for NoisyListener {
    async fn accept(&mut self) -> io::Result<Connection> {
        Ok(noisy(self.inner.accept().await?, &self.weather, &self.random))
    }

    fn local_addr(&self) -> io::Result<String> {
        self.inner.local_addr()
    }
}

struct NoisyRead {
    inner: Box<dyn AsyncRead + Send + Unpin>,
    weather: Arc<Weather>,
    random: Arc<Mutex<fastrand::Rng>>,
}

impl AsyncRead for NoisyRead {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        let new = &mut buf.filled_mut()[before..];
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        // Only in the bytes of blocks: who lies in control messages lies about itself, and keys of members come later.
        if new.len() > MIN_NOISY && random.u32(0..1000) < self.weather.noise() {
            let at = random.usize(64..new.len());
            new[at] ^= 1 << random.u32(0..8);
        }
        polled
    }
}

/// Files whose reads are compared with what was built: a node reads them to share them.
#[derive(Debug)]
struct CheckedFiles {
    inner: MemoryFiles,
    checker: Arc<Checker>,
    mutant: Option<Mutant>,
}

#[async_trait]
impl Files for CheckedFiles {
    async fn open(&self, manifest: Arc<Manifest>, path: &Path, open: Open) -> io::Result<Arc<dyn PieceFile>> {
        let inner = self.inner.open(manifest.clone(), path, open).await?;
        let (files, path) = (self.inner.clone(), path.to_owned());
        Ok(Arc::new(CheckedFile { inner, files, path, manifest, checker: self.checker.clone(), mutant: self.mutant }))
    }
}

#[derive(Debug)]
struct CheckedFile {
    inner: Arc<dyn PieceFile>,
    files: MemoryFiles,
    path: std::path::PathBuf,
    manifest: Arc<Manifest>,
    checker: Arc<Checker>,
    mutant: Option<Mutant>,
}

impl CheckedFile {
    /// Writes a piece without a look at it.
    fn trust(&self, piece: u32, blocks: &[Bytes]) -> Stored {
        let range = self.manifest.piece_range(piece).unwrap_or_default();
        if let Some(mut bytes) = self.files.read(&self.path) {
            let piece = blocks.concat();
            bytes[range.start as usize..range.start as usize + piece.len()].copy_from_slice(&piece);
            self.files.write(self.path.clone(), bytes);
        }
        Stored { verified: true, blocks: Vec::new() }
    }
}

#[async_trait]
impl PieceFile for CheckedFile {
    async fn verify(&self) -> io::Result<Bitfield> {
        self.inner.verify().await
    }

    async fn store(&self, piece: u32, blocks: Vec<Bytes>, hash_blocks: bool) -> io::Result<Stored> {
        if self.mutant == Some(Mutant::TrustsPeers) {
            return Ok(self.trust(piece, &blocks));
        }
        let stored = self.inner.store(piece, blocks, hash_blocks).await?;
        if !stored.verified {
            self.checker.bad_piece(&self.manifest.digest());
        }
        Ok(stored)
    }

    async fn read(&self, offset: u64, len: u32) -> io::Result<Bytes> {
        let bytes = self.inner.read(offset, len).await?;
        self.checker.shared(&self.manifest.digest(), offset, &bytes);
        Ok(bytes)
    }

    async fn checkpoint(&self, have: &Bitfield) -> io::Result<()> {
        self.inner.checkpoint(have).await
    }

    async fn finish(&self) -> io::Result<()> {
        self.inner.finish().await
    }
}
