//! A node as a service: the machine's part in the swarm.

mod running;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{Digest, Manifest, RegionName, friendly};
use deploycore::port::swarm::{Error, Fetch, FetchProgress, FetchRequest, FetchSummary, Limits, Priority, SwarmStats};
use deploycore::port::{BackendError, PeerSwarm};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::running::Running;
use super::files::{DiskFiles, Files};
use super::transport::{Listener, Transport};
use super::{Security, Timeouts};
use crate::core::peer;

/// How a node is set up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeSettings {
    /// Its name, unique in the region and kept over restarts: the machine's.
    pub name: String,
    /// The region.
    pub region: RegionName,
    /// Where it is within the region: a data centre, a room, a rack, by any name that the nodes there share. What another node of the
    /// zone has is fetched from there, and each piece comes into a zone about once.
    #[serde(default)]
    pub zone: Option<String>,
    /// Where to listen, as `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Where others reach it, if not where it listens. A node that listens on `0.0.0.0` is found at the host that it connects from.
    #[serde(default)]
    pub advertise: Option<String>,
    /// The region's trackers, as `host:port`. Names are resolved at each connection.
    pub trackers: Vec<String>,
    /// How connections are protected.
    pub security: Security,
    /// Time limits of connections.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Neighbours, slots, limits.
    #[serde(default)]
    pub swarm: peer::Settings,
    /// Verified bytes are made durable, and noted for a later fetch, at least this often.
    #[serde(with = "friendly", default = "default_checkpoint")]
    pub checkpoint: Duration,
    /// Seeds its choices; drawn anew at each start if not given.
    #[serde(default)]
    pub seed: Option<u64>,
}

fn default_checkpoint() -> Duration {
    Duration::from_secs(2)
}

impl NodeSettings {
    /// Settings of a node that listens on a free port of this host.
    pub fn new(name: impl Into<String>, region: RegionName, security: Security) -> Self {
        Self {
            name: name.into(),
            region,
            zone: None,
            listen: "127.0.0.1:0".to_owned(),
            advertise: None,
            trackers: Vec::new(),
            security,
            timeouts: Timeouts::default(),
            swarm: peer::Settings::default(),
            checkpoint: default_checkpoint(),
            seed: None,
        }
    }

    /// Listens there.
    #[must_use]
    pub fn with_listen(mut self, addr: impl Into<String>) -> Self {
        self.listen = addr.into();
        self
    }

    /// Is in this zone.
    #[must_use]
    pub fn with_zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Announces itself to one more tracker.
    #[must_use]
    pub fn with_tracker(mut self, addr: impl Into<String>) -> Self {
        self.trackers.push(addr.into());
        self
    }

    /// Seeds its choices, so that a simulation repeats.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

/// A machine's part in its region's swarm. Calls wait until [`run`](Self::run) runs.
#[derive(Debug)]
pub struct Node {
    settings: NodeSettings,
    transport: Arc<dyn Transport>,
    files: Arc<dyn Files>,
    local_addr: String,
    commands: mpsc::Sender<Command>,
    start: Mutex<Option<Start>>,
}

/// What a run takes over.
#[derive(Debug)]
struct Start {
    listener: Box<dyn Listener>,
    commands: mpsc::Receiver<Command>,
}

#[derive(Debug)]
enum Command {
    Fetch(FetchRequest, oneshot::Sender<Result<Joined, Error>>),
    Seed(Arc<Manifest>, PathBuf, oneshot::Sender<Result<(), Error>>),
    Leave(Digest, oneshot::Sender<()>),
    Adjust(Digest, Priority, Limits, oneshot::Sender<Result<(), Error>>),
    Limit(Limits, oneshot::Sender<()>),
    Stats(oneshot::Sender<SwarmStats>),
    Account(Digest, oneshot::Sender<Option<Account>>),
}

impl Command {
    /// Answers what waits to begin a stay of an artifact that it will not begin.
    fn stopped(self, digest: Digest) {
        match self {
            Self::Fetch(_, reply) => drop(reply.send(Err(Error::Stopped { digest }))),
            Self::Seed(_, _, reply) => drop(reply.send(Err(Error::Stopped { digest }))),
            _ => {}
        }
    }
}

/// Where the bytes of one artifact came from, since its fetch began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Bytes taken from the region's store through its gates, in verified pieces.
    pub from_store: u64,
    /// Bytes taken from each peer, by its name, in verified pieces.
    pub from_peers: BTreeMap<String, u64>,
    /// Of that, from peers in other zones. 0 for a node without a zone.
    pub from_elsewhere: u64,
    /// Requests that were not answered by a block: the neighbour was busy, slow or gone. They were made again, perhaps elsewhere.
    pub retries: u32,
    /// Pieces that did not verify and were fetched again.
    pub bad_pieces: u32,
    /// Bytes received for nothing: twice, or too late.
    pub wasted: u64,
}

/// A caller's view of a fetch.
#[derive(Debug)]
struct Joined {
    progress: watch::Receiver<FetchProgress>,
    done: oneshot::Receiver<Result<FetchSummary, Error>>,
    /// When the last of a fetch's guards is dropped, the fetch stops.
    guard: Arc<Guard>,
}

/// Tells the node when nobody waits for a fetch any more.
#[derive(Debug)]
struct Guard(CancellationToken);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Node {
    /// Opens the port of a node over TCP and real files.
    ///
    /// Errors name the address, or the certificate that does not serve.
    pub async fn bind(settings: NodeSettings) -> io::Result<Self> {
        let transport = settings.security.transport(&settings.name)?;
        Self::bind_with(settings, transport, Arc::new(DiskFiles::default())).await
    }

    /// As [`bind`](Self::bind), over another transport and other files.
    pub async fn bind_with(
        settings: NodeSettings,
        transport: Arc<dyn Transport>,
        files: Arc<dyn Files>,
    ) -> io::Result<Self> {
        let listener = transport.listen(&settings.listen).await?;
        let local_addr = listener.local_addr()?;
        let (sender, commands) = mpsc::channel(64);
        let start = Mutex::new(Some(Start { listener, commands }));
        Ok(Self { settings, transport, files, local_addr, commands: sender, start })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> &str {
        &self.local_addr
    }

    /// Takes part until told to end. It can run once. When it ends, fetches end as stopped; what was verified stays on disk.
    ///
    /// # Panics
    ///
    /// When called a second time.
    #[tracing::instrument(name = "node", skip_all, fields(node = %self.settings.name))]
    pub async fn run(&self, shutdown: CancellationToken) {
        let start = self.start.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Start { listener, commands } = start.expect("a node runs once");
        Running::new(self, listener).run(commands, shutdown).await;
    }

    /// Where the bytes of an artifact came from; `None` if it is neither fetched nor offered here.
    pub async fn account(&self, digest: &Digest) -> Result<Option<Account>, Error> {
        let (sender, answer) = oneshot::channel();
        self.call(Command::Account(*digest, sender), answer).await
    }

    async fn call<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Result<T, Error> {
        let gone = || BackendError::permanent("swarm", "the node has ended");
        self.commands.send(command).await.map_err(|_| gone())?;
        Ok(answer.await.map_err(|_| gone())?)
    }
}

#[async_trait]
impl PeerSwarm for Node {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetch, Error> {
        let digest = request.manifest.digest();
        let (sender, answer) = oneshot::channel();
        let Joined { progress, done, guard } = self.call(Command::Fetch(request, sender), answer).await??;
        let done = async move {
            let _guard = guard;
            done.await.unwrap_or(Err(Error::Stopped { digest }))
        };
        Ok(Fetch { progress, done: Box::pin(done) })
    }

    async fn seed(&self, manifest: Arc<Manifest>, file: PathBuf) -> Result<(), Error> {
        let (sender, answer) = oneshot::channel();
        self.call(Command::Seed(manifest, file, sender), answer).await?
    }

    async fn leave(&self, digest: &Digest) -> Result<(), Error> {
        let (sender, answer) = oneshot::channel();
        self.call(Command::Leave(*digest, sender), answer).await
    }

    async fn adjust(&self, digest: &Digest, priority: Priority, limits: Limits) -> Result<(), Error> {
        let (sender, answer) = oneshot::channel();
        self.call(Command::Adjust(*digest, priority, limits, sender), answer).await?
    }

    async fn limit(&self, limits: Limits) -> Result<(), Error> {
        let (sender, answer) = oneshot::channel();
        self.call(Command::Limit(limits, sender), answer).await
    }

    async fn stats(&self) -> Result<SwarmStats, Error> {
        let (sender, answer) = oneshot::channel();
        self.call(Command::Stats(sender), answer).await
    }
}
