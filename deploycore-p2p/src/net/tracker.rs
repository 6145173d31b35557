//! The tracker as a service.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use deploycore::model::RegionName;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant as Clock, sleep_until};
use tokio_util::sync::CancellationToken;

use super::connection::{Event, Hub};
use super::transport::{Listener, Transport};
use super::{Security, Timeouts};
use crate::core::message::{Hello, PeerId, Role};
use crate::core::time::Instant;
use crate::core::tracker::{self, SwarmStanding};
use crate::core::wire::Frame;

/// How a tracker is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerSettings {
    /// Its name, unique in the region.
    pub name: String,
    /// The region.
    pub region: RegionName,
    /// Where to listen, as `host:port`; port 0 takes a free one.
    pub listen: String,
    /// How connections are protected.
    pub security: Security,
    /// Time limits of connections.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// How it introduces.
    #[serde(default)]
    pub tracking: tracker::Settings,
    /// Seeds its choices; drawn anew at each start if not given.
    #[serde(default)]
    pub seed: Option<u64>,
}

impl TrackerSettings {
    /// Settings of a tracker that listens on a free port of this host.
    pub fn new(name: impl Into<String>, region: RegionName, security: Security) -> Self {
        Self {
            name: name.into(),
            region,
            listen: "127.0.0.1:0".to_owned(),
            security,
            timeouts: Timeouts::default(),
            tracking: tracker::Settings::default(),
            seed: None,
        }
    }

    /// Listens there.
    #[must_use]
    pub fn with_listen(mut self, addr: impl Into<String>) -> Self {
        self.listen = addr.into();
        self
    }
}

/// Introduces the members of a region to each other. Soft state only: it may be killed and started again at any time.
#[derive(Debug)]
pub struct Tracker {
    settings: TrackerSettings,
    transport: Arc<dyn Transport>,
    local_addr: String,
    listener: Mutex<Option<Box<dyn Listener>>>,
    standings: watch::Sender<Arc<[SwarmStanding]>>,
}

/// How often it tells how far the region is, where anyone wants to know.
const TELL: Duration = Duration::from_secs(1);

impl Tracker {
    /// Opens the port. Connections are answered once [`run`](Self::run) runs.
    pub async fn bind(settings: TrackerSettings) -> io::Result<Self> {
        let transport = settings.security.transport(&settings.name)?;
        Self::bind_with(settings, transport).await
    }

    /// As [`bind`](Self::bind), over another transport.
    pub async fn bind_with(settings: TrackerSettings, transport: Arc<dyn Transport>) -> io::Result<Self> {
        let listener = transport.listen(&settings.listen).await?;
        let local_addr = listener.local_addr()?;
        let standings = watch::Sender::new(Arc::from([]));
        Ok(Self { settings, transport, local_addr, listener: Mutex::new(Some(listener)), standings })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> &str {
        &self.local_addr
    }

    /// How far the region is with each artifact: told once a second while the tracker runs, and nothing before or after.
    pub fn standings(&self) -> watch::Receiver<Arc<[SwarmStanding]>> {
        self.standings.subscribe()
    }

    /// Serves until told to end. It can run once.
    ///
    /// # Panics
    ///
    /// When called a second time.
    #[tracing::instrument(name = "tracker", skip_all, fields(region = %self.settings.region))]
    pub async fn run(&self, shutdown: CancellationToken) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let listener = listener.expect("a tracker runs once");
        let start = Clock::now();
        let now = || Instant::at(start.elapsed());
        let rng = self.settings.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let mut core = tracker::Tracker::new(self.settings.tracking.clone(), rng, now());
        let hello = Hello {
            region: self.settings.region.clone(),
            name: self.settings.name.clone(),
            incarnation: fastrand::u64(..),
            role: Role::Tracker,
            zone: None,
        };
        let (sender, mut events) = mpsc::channel(256);
        let mut hub = Hub::new(hello, Arc::clone(&self.transport), self.settings.timeouts.clone(), sender);
        hub.accept(listener);
        let _silence = Silence(&self.standings);
        let mut tell_at = start + TELL;
        loop {
            if tell_at <= Clock::now() {
                tell_at = Clock::now() + TELL;
                if self.standings.receiver_count() > 0 {
                    self.standings.send_replace(core.standings(now()).into());
                }
            }
            while let Some(output) = core.poll_output() {
                match output {
                    tracker::Output::Send(conn, message) => hub.send(conn, &message),
                    tracker::Output::Close(conn, reason) => {
                        tracing::warn!(%conn, reason, "closing a connection");
                        hub.close(conn, &reason);
                    }
                }
            }
            let timer = tell_at.min(start + core.poll_timeout().since_start());
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                event = events.recv() => event,
                () = sleep_until(timer) => None,
            };
            let input = match event {
                Some(Event::Connected { conn, hello, host, writer, .. }) => {
                    hub.opened(conn, writer);
                    let (peer, role, zone) = (PeerId::of(&hello.name), hello.role, hello.zone);
                    tracker::Input::Connected { conn, peer, role, zone, host }
                }
                Some(Event::Disconnected(conn)) => {
                    hub.closed(conn);
                    tracker::Input::Disconnected(conn)
                }
                Some(Event::Frame(conn, Frame::Control(message))) => tracker::Input::Message(conn, message),
                Some(Event::Frame(conn, _)) => {
                    tracing::warn!(%conn, "closing a connection: a tracker takes control messages only");
                    hub.close(conn, "not a control message");
                    tracker::Input::Disconnected(conn)
                }
                Some(_) | None => tracker::Input::Timeout,
            };
            core.handle(input, now());
        }
        drop(events);
        hub.end().await;
    }
}

/// What was known is not known any more when the tracker ends, however it ends.
struct Silence<'a>(&'a watch::Sender<Arc<[SwarmStanding]>>);

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        self.0.send_replace(Arc::from([]));
    }
}
