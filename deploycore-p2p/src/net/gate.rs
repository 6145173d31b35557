//! The store gate as a service.

mod health;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use deploycore::model::{Digest, RegionName};
use deploycore::port::{ArtifactStore, chain};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant as Clock, sleep_until};
use tokio_util::sync::CancellationToken;

use self::health::Health;
use super::connection::{Event, Hub};
use super::counts::{Counts, DiskCounts};
use super::outgoing::{BlockSource, Broken, OutgoingBlock};
use super::transport::{Listener, Transport};
use super::{Security, Timeouts};
use crate::core::gate::{self, Record, Usage};
use crate::core::message::{Addr, Hello, PeerId, Role};
use crate::core::shape::Shape;
use crate::core::time::Instant;
use crate::core::wire::Frame;

/// How a gate is set up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateSettings {
    /// Its name, unique in the region and kept over restarts.
    pub name: String,
    /// The region.
    pub region: RegionName,
    /// Where to listen, as `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Where nodes reach it, if not where it listens.
    #[serde(default)]
    pub advertise: Option<String>,
    /// The region's trackers, as `host:port`.
    pub trackers: Vec<String>,
    /// The folder of the durable counts.
    pub data: PathBuf,
    /// How connections are protected.
    pub security: Security,
    /// Time limits of connections.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Leases and budget.
    #[serde(default)]
    pub leasing: gate::Settings,
}

impl GateSettings {
    /// Settings of a gate that listens on a free port of this host.
    pub fn new(name: impl Into<String>, region: RegionName, data: impl Into<PathBuf>, security: Security) -> Self {
        Self {
            name: name.into(),
            region,
            listen: "127.0.0.1:0".to_owned(),
            advertise: None,
            trackers: Vec::new(),
            data: data.into(),
            security,
            timeouts: Timeouts::default(),
            leasing: gate::Settings::default(),
        }
    }

    /// Listens there.
    #[must_use]
    pub fn with_listen(mut self, addr: impl Into<String>) -> Self {
        self.listen = addr.into();
        self
    }

    /// Makes itself known to one more tracker.
    #[must_use]
    pub fn with_tracker(mut self, addr: impl Into<String>) -> Self {
        self.trackers.push(addr.into());
        self
    }
}

/// The only door from the swarm to the region's store: see [`core::gate`](crate::core::gate). It may be killed and started again
/// at any time; its counts are durable before what they count is served.
#[derive(Debug)]
pub struct Gate {
    settings: GateSettings,
    store: Arc<dyn ArtifactStore>,
    counts: Arc<dyn Counts>,
    transport: Arc<dyn Transport>,
    local_addr: String,
    listener: Mutex<Option<Box<dyn Listener>>>,
}

/// What a task of the gate has done.
#[derive(Debug)]
enum Done {
    /// The store or the disk of the counts failed where there is an error.
    Loaded(Digest, Result<Option<(u64, Record)>, ()>),
    Persisted(Digest, u64),
    /// To be tried again, after this time if it fails once more.
    NotPersisted(Digest, u64, Record, Duration),
}

/// Trackers are dialed again after this time.
const REDIAL: Duration = Duration::from_millis(250);

impl Gate {
    /// Opens the port and the folder of counts. Connections are answered once [`run`](Self::run) runs.
    ///
    /// Errors: `ResourceBusy` when another gate uses the folder.
    pub async fn bind(settings: GateSettings, store: Arc<dyn ArtifactStore>) -> io::Result<Self> {
        let counts = Arc::new(DiskCounts::open(&settings.data)?);
        let transport = settings.security.transport(&settings.name)?;
        Self::bind_with(settings, store, counts, transport).await
    }

    /// As [`bind`](Self::bind), over another transport, and with counts kept elsewhere.
    pub async fn bind_with(
        settings: GateSettings,
        store: Arc<dyn ArtifactStore>,
        counts: Arc<dyn Counts>,
        transport: Arc<dyn Transport>,
    ) -> io::Result<Self> {
        let listener = transport.listen(&settings.listen).await?;
        let local_addr = listener.local_addr()?;
        Ok(Self { settings, store, counts, transport, local_addr, listener: Mutex::new(Some(listener)) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> &str {
        &self.local_addr
    }

    /// What was granted of an artifact since the gate's folder was made: at least what was read.
    pub async fn usage(&self, digest: &Digest) -> io::Result<Usage> {
        Ok(self.counts.load(digest).await?.map(|record| record.usage()).unwrap_or_default())
    }

    /// Serves until told to end. It can run once.
    ///
    /// # Panics
    ///
    /// When called a second time.
    #[tracing::instrument(name = "gate", skip_all, fields(region = %self.settings.region, gate = %self.settings.name))]
    pub async fn run(&self, shutdown: CancellationToken) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let listener = listener.expect("a gate runs once");
        let (sender, mut events) = mpsc::channel(64);
        let start = Clock::now();
        let mut running = Running {
            gate: self,
            core: gate::Gate::new(
                self.settings.leasing.clone(),
                PeerId::of(&self.settings.name),
                Addr::from(self.settings.advertise.as_deref().unwrap_or(&self.local_addr)),
                Instant::ZERO,
            ),
            hub: Hub::new(self.hello(), Arc::clone(&self.transport), self.settings.timeouts.clone(), sender),
            tasks: JoinSet::new(),
            health: Health::default(),
            redial: self.settings.trackers.iter().map(|addr| (Addr::from(addr.as_str()), start)).collect(),
            dialed: BTreeMap::new(),
        };
        running.hub.accept(listener);
        loop {
            running.come_or_go();
            running.execute();
            let timer = start + running.core.poll_timeout().since_start();
            let input = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(done) = running.tasks.join_next() => match done {
                    Ok(done) => running.done(done),
                    Err(error) => {
                        tracing::error!(%error, "a task of the gate failed");
                        gate::Input::Timeout
                    }
                },
                Some(event) = events.recv() => running.event(event),
                () = sleep_until(timer) => gate::Input::Timeout,
            };
            running.core.handle(input, Instant::at(start.elapsed()));
        }
        drop(events);
        running.hub.end().await;
    }

    fn hello(&self) -> Hello {
        Hello {
            region: self.settings.region.clone(),
            name: self.settings.name.clone(),
            incarnation: fastrand::u64(..),
            role: Role::Gate,
            zone: None,
        }
    }
}

struct Running<'a> {
    gate: &'a Gate,
    core: gate::Gate,
    hub: Hub,
    tasks: JoinSet<Done>,
    health: Health,
    /// Trackers that are not connected, and when to dial them.
    redial: BTreeMap<Addr, Clock>,
    dialed: BTreeMap<crate::core::message::ConnId, Addr>,
}

impl Running<'_> {
    /// A gate that cannot do its work leaves it to the others, if there are any: trackers forget one that is not connected.
    fn come_or_go(&mut self) {
        let now = Clock::now();
        if self.health.is_away(now) {
            return;
        }
        if self.core.has_company() && self.health.leaves(now) {
            tracing::error!("this gate's store or counts have failed for long: other gates take its artifacts over");
            for conn in self.dialed.keys() {
                self.hub.close(*conn, "the gate leaves its artifacts to others");
            }
            return;
        }
        let due: Vec<Addr> = self.redial.iter().filter(|(_, at)| **at <= now).map(|(addr, _)| addr.clone()).collect();
        for addr in due {
            self.redial.remove(&addr);
            self.hub.connect(addr);
        }
    }

    fn done(&mut self, done: Done) -> gate::Input {
        let now = Clock::now();
        match done {
            Done::Loaded(digest, loaded) => {
                self.health.store.note(loaded.is_ok(), now);
                gate::Input::Loaded(digest, loaded.ok().flatten())
            }
            Done::Persisted(digest, version) => {
                self.health.counts.note(true, now);
                gate::Input::Persisted(digest, version)
            }
            Done::NotPersisted(digest, version, record, delay) => {
                self.health.counts.note(false, now);
                self.persist(digest, version, record, Some(delay));
                gate::Input::Timeout
            }
        }
    }

    /// After a while, if it failed before. No lease goes out that is not counted.
    fn persist(&mut self, digest: Digest, version: u64, record: Record, delay: Option<Duration>) {
        let counts = Arc::clone(&self.gate.counts);
        self.tasks.spawn(async move {
            tokio::time::sleep(delay.unwrap_or_default()).await;
            let Err(error) = counts.save(&digest, &record).await else {
                return Done::Persisted(digest, version);
            };
            tracing::error!(digest = %digest.short(), %error, "the counts cannot be written: no leases meanwhile");
            let next = delay.map_or(FIRST_RETRY, |delay| (delay * 2).min(MAX_RETRY));
            Done::NotPersisted(digest, version, record, next)
        });
    }

    fn event(&mut self, event: Event) -> gate::Input {
        match event {
            Event::Connected { conn, hello, dialed, writer, .. } => {
                self.hub.opened(conn, writer);
                let own = dialed.is_some();
                if let Some(addr) = dialed {
                    self.dialed.insert(conn, addr);
                }
                gate::Input::Connected { conn, peer: PeerId::of(&hello.name), role: hello.role, dialed: own }
            }
            Event::ConnectFailed { addr } => {
                self.redial.insert(addr, Clock::now() + REDIAL);
                gate::Input::Timeout
            }
            Event::Disconnected(conn) => {
                self.hub.closed(conn);
                if let Some(addr) = self.dialed.remove(&conn) {
                    self.redial.insert(addr, Clock::now() + REDIAL);
                }
                gate::Input::Disconnected(conn)
            }
            Event::Frame(conn, Frame::Control(message)) => gate::Input::Message(conn, message),
            Event::Frame(conn, _) => {
                tracing::warn!(%conn, "closing a connection: a gate takes control messages only");
                self.hub.close(conn, "not a control message");
                gate::Input::Timeout
            }
            Event::ReadFailed { conn, digest, lease, piece, block, unread } => {
                gate::Input::ReadFailed { conn, digest, lease, piece, block, unread }
            }
            Event::Sent(_, len) => {
                metrics::counter!("deploycore_gate_served_bytes").increment(u64::from(len));
                gate::Input::Timeout
            }
        }
    }

    fn execute(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                gate::Output::Send(conn, message) => self.hub.send(conn, &message),
                gate::Output::Close(conn, reason) => {
                    tracing::warn!(%conn, reason, "closing a connection");
                    self.hub.close(conn, &reason);
                }
                gate::Output::Serve { conn, digest, lease, piece, block, offset, len } => {
                    let source = Arc::new(StoreSource { store: Arc::clone(&self.gate.store), digest });
                    let block = OutgoingBlock { digest, lease, piece, block, offset, len, source };
                    self.hub.send_block(conn, block);
                }
                gate::Output::Load(digest) => {
                    let (store, counts) = (Arc::clone(&self.gate.store), Arc::clone(&self.gate.counts));
                    self.tasks
                        .spawn(async move { Done::Loaded(digest, load_in_time(&*store, &*counts, digest).await) });
                }
                gate::Output::Persist(digest, version, record) => self.persist(digest, version, record, None),
            }
        }
    }
}

/// What the store and the counts say of an artifact; `None` if it is not to be served.
async fn load(store: &dyn ArtifactStore, counts: &dyn Counts, digest: Digest) -> Result<Option<(u64, Record)>, ()> {
    let short = digest.short();
    let manifest = match store.manifest(&digest).await {
        Ok(Some(manifest)) => manifest,
        Ok(None) => {
            tracing::info!(digest = %short, "asked for an artifact that the store does not have");
            return Ok(None);
        }
        Err(error) => {
            tracing::warn!(digest = %short, error = chain(&error), "the store did not give a manifest");
            return Err(());
        }
    };
    let shape = Shape::of(&manifest);
    match counts.load(&digest).await {
        Ok(None) => Ok(Some((shape.size(), Record::new(&shape)))),
        Ok(Some(record)) if record.fits(&shape) => Ok(Some((shape.size(), record))),
        Ok(Some(_)) => {
            tracing::error!(digest = %short, "the counts are of another artifact: it is not served");
            Ok(None)
        }
        Err(error) => {
            tracing::error!(digest = %short, %error, "the counts cannot be read: the artifact is not served");
            // What is damaged concerns this artifact alone.
            if error.kind() == io::ErrorKind::InvalidData { Ok(None) } else { Err(()) }
        }
    }
}

/// As [`load`]; what takes too long has failed. A thread that hangs on a disk stays behind.
async fn load_in_time(
    store: &dyn ArtifactStore,
    counts: &dyn Counts,
    digest: Digest,
) -> Result<Option<(u64, Record)>, ()> {
    tokio::time::timeout(READ_TIME, load(store, counts, digest)).await.unwrap_or_else(|_| {
        tracing::warn!(digest = %digest.short(), "the store or the counts did not answer in time");
        Err(())
    })
}

/// The first pause before counts are written again, which doubles, and the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct StoreSource {
    store: Arc<dyn ArtifactStore>,
    digest: Digest,
}

/// A store that takes longer for a block is taken for failed: the piece is leased again.
const READ_TIME: Duration = Duration::from_secs(20);

#[async_trait]
impl BlockSource for StoreSource {
    async fn read_block(&self, offset: u64, len: u32) -> Result<Bytes, Broken> {
        // Once the store has begun to give, what it gave counts, even when it breaks off.
        let begun = AtomicBool::new(false);
        let read = async {
            let range = offset..offset + u64::from(len);
            let mut chunks = self.store.read(&self.digest, range).await.map_err(io::Error::other)?;
            let mut bytes = BytesMut::with_capacity(len as usize);
            begun.store(true, Ordering::Relaxed);
            while let Some(chunk) = chunks.try_next().await.map_err(io::Error::other)? {
                if bytes.is_empty() && chunk.len() == len as usize {
                    return Ok(chunk);
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes.freeze())
        };
        let read = tokio::time::timeout(READ_TIME, read).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        read.map_err(|error| Broken { error, unread: !begun.load(Ordering::Relaxed) })
    }
}
