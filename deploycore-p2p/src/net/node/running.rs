//! The task that owns a node's state machine.

mod entry;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use deploycore::model::{Digest, Manifest};
use deploycore::port::swarm::{Error, FetchProgress, FetchRequest, Limits, Priority, SwarmStats};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant as Clock, sleep_until};
use tokio_util::sync::CancellationToken;

use self::entry::{Done, Entry, What};
use super::{Account, Command, Guard, Joined, Node};
use crate::core::message::{Addr, Hello, PeerId, Role, Zone};
use crate::core::peer::{self, Peer};
use crate::core::time::Instant;
use crate::core::wire::Frame;
use crate::net::connection::{Event, Hub};
use crate::net::files::Open;
use crate::net::outgoing::OutgoingBlock;
use crate::net::transport::Listener;

/// Names of peers that are remembered before some are forgotten.
const MAX_NAMES: usize = 1_024;
/// How often progress is told.
const PROGRESS: Duration = Duration::from_millis(50);

pub(super) struct Running<'a> {
    node: &'a Node,
    start: Clock,
    core: Peer,
    hub: Hub,
    events: mpsc::Receiver<Event>,
    tasks: JoinSet<Done>,
    entries: BTreeMap<Digest, Entry>,
    /// Of those that are connected, and of those that were and gave something that is here.
    names: BTreeMap<PeerId, String>,
    next_serial: u64,
    progress_at: Clock,
}

impl<'a> Running<'a> {
    pub(super) fn new(node: &'a Node, listener: Box<dyn Listener>) -> Self {
        let settings = &node.settings;
        let rng = settings.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let addr = Addr::from(settings.advertise.as_deref().unwrap_or(&node.local_addr));
        let trackers = settings.trackers.iter().map(|addr| Addr::from(addr.as_str())).collect();
        let id = PeerId::of(&settings.name);
        let zone = settings.zone.as_deref().map(Zone::of);
        let core = Peer::new(settings.swarm.clone(), id, addr, trackers, rng, Instant::ZERO).with_zone(zone);
        let hello = Hello {
            region: settings.region.clone(),
            name: settings.name.clone(),
            incarnation: core.incarnation(),
            role: Role::Node,
            zone,
        };
        // Blocks travel through it: its length bounds what waits between the network and the machine.
        let (sender, events) = mpsc::channel(32);
        let hub = Hub::new(hello, Arc::clone(&node.transport), settings.timeouts.clone(), sender);
        hub.accept(listener);
        let start = Clock::now();
        Self {
            node,
            start,
            core,
            hub,
            events,
            tasks: JoinSet::new(),
            entries: BTreeMap::new(),
            names: BTreeMap::new(),
            next_serial: 0,
            progress_at: start,
        }
    }

    fn now(&self) -> Instant {
        Instant::at(self.start.elapsed())
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, shutdown: CancellationToken) {
        loop {
            self.execute();
            let core_timer = self.start + self.core.poll_timeout().since_start();
            let fetching = self.entries.values().any(|entry| entry.summary.is_none());
            let timer = if fetching { core_timer.min(self.progress_at) } else { core_timer };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.done(done),
                    Err(error) => tracing::error!(%error, "a task of the node failed"),
                },
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(event) = self.events.recv() => self.event(event),
                () = sleep_until(timer) => {}
            }
            let now = self.now();
            if now >= self.core.poll_timeout() {
                self.core.handle(peer::Input::Timeout, now);
            }
            if fetching && Clock::now() >= self.progress_at {
                self.progress_at = Clock::now() + PROGRESS;
                self.tell_progress();
                self.checkpoint();
            }
        }
        drop(self.events);
        self.hub.end().await;
    }

    fn input(&mut self, input: peer::Input) {
        let now = self.now();
        self.core.handle(input, now);
    }

    fn event(&mut self, event: Event) {
        let input = match event {
            Event::Connected { conn, hello, dialed, writer, .. } => {
                self.hub.opened(conn, writer);
                let (peer, incarnation, role, zone) =
                    (PeerId::of(&hello.name), hello.incarnation, hello.role, hello.zone);
                tracing::debug!(%conn, name = hello.name, ?role, "connected");
                self.name(peer, hello.name);
                peer::Input::Connected { conn, peer, incarnation, role, zone, dialed }
            }
            Event::ConnectFailed { addr } => peer::Input::ConnectFailed(addr),
            Event::Disconnected(conn) => {
                self.hub.closed(conn);
                peer::Input::Disconnected(conn)
            }
            Event::Frame(conn, Frame::Control(message)) => peer::Input::Message(conn, message),
            Event::Frame(conn, Frame::Block(block)) => peer::Input::Block(conn, block),
            Event::Frame(conn, Frame::Hello(_)) => {
                tracing::warn!(%conn, "closing a connection: a second hello");
                self.hub.close(conn, "a second hello");
                peer::Input::Disconnected(conn)
            }
            Event::Sent(conn, len) => {
                metrics::counter!("deploycore_swarm_uploaded_bytes").increment(u64::from(len));
                peer::Input::Sent(conn, len)
            }
            Event::ReadFailed { conn, digest, piece, block, .. } => {
                peer::Input::ReadFailed { conn, digest, piece, block }
            }
        };
        self.input(input);
    }

    /// Remembers a name. Those of peers that left and gave nothing are forgotten when they are too many.
    fn name(&mut self, peer: PeerId, name: String) {
        if self.names.len() >= MAX_NAMES {
            let givers = self.entries.keys().filter_map(|digest| self.core.sources(digest)).flat_map(BTreeMap::keys);
            let givers: BTreeSet<PeerId> = givers.copied().collect();
            self.names.retain(|peer, _| givers.contains(peer) || self.core.is_connected(*peer));
        }
        self.names.insert(peer, name);
    }

    fn account(&self, digest: &Digest) -> Option<Account> {
        let progress = self.core.progress(digest)?;
        let name = |peer: &PeerId| self.names.get(peer).cloned().unwrap_or_else(|| peer.to_string());
        let sources = self.core.sources(digest)?;
        Some(Account {
            from_store: progress.from_store,
            from_peers: sources.iter().map(|(peer, bytes)| (name(peer), *bytes)).collect(),
            from_elsewhere: progress.from_elsewhere,
            retries: progress.retries,
            bad_pieces: progress.bad_pieces,
            wasted: progress.wasted,
        })
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Fetch(request, reply) => self.fetch(request, reply),
            Command::Seed(manifest, path, reply) => self.seed(manifest, path, reply),
            Command::Leave(digest, reply) => match self.entries.get_mut(&digest) {
                Some(entry) => {
                    entry.leaving.push(reply);
                    // Nor does what came before this word begin after it.
                    for command in entry.next.drain(..) {
                        command.stopped(digest);
                    }
                    self.end_entry(&digest);
                }
                None => {
                    let _ = reply.send(());
                }
            },
            Command::Adjust(digest, priority, limits, reply) => {
                let _ = reply.send(self.adjust(digest, priority, limits));
            }
            Command::Limit(limits, reply) => {
                self.input(peer::Input::Limit(limits));
                let _ = reply.send(());
            }
            Command::Account(digest, reply) => {
                let _ = reply.send(self.account(&digest));
            }
            Command::Stats(reply) => {
                let totals = self.core.totals();
                let _ = reply.send(SwarmStats {
                    fetching: self.entries.values().filter(|entry| entry.summary.is_none()).count() as u32,
                    seeding: totals.seeding,
                    peers: totals.peers,
                    downloaded: totals.downloaded,
                    uploaded: totals.uploaded,
                    quarantined: totals.quarantined,
                });
            }
        }
    }

    fn fetch(&mut self, request: FetchRequest, reply: oneshot::Sender<Result<Joined, Error>>) {
        let digest = request.manifest.digest();
        if let Some(entry) = self.entries.get_mut(&digest) {
            if !entry.leaving.is_empty() {
                let _ = reply.send(Err(Error::Stopped { digest }));
                return;
            }
            if entry.ending {
                return entry.next.push(Command::Fetch(request, reply));
            }
            if entry.path != request.destination {
                let _ = reply.send(Err(Error::Conflict { digest, path: entry.path.clone() }));
                return;
            }
            let joined = self.join(&digest, request.priority, request.limits);
            let _ = reply.send(joined.ok_or(Error::Stopped { digest }));
            return;
        }
        self.insert(&request.manifest, &request.destination, Open::Fetch);
        let Some(entry) = self.entries.get_mut(&digest) else { return };
        (entry.priority, entry.limits) = (request.priority, request.limits);
        self.open(&digest, move |opened| What::Opened(opened, reply));
    }

    /// A further caller for a fetch under way or complete. The more urgent of the priorities holds.
    fn join(&mut self, digest: &Digest, priority: Priority, limits: Limits) -> Option<Joined> {
        let entry = self.entries.get_mut(digest)?;
        let (sender, done) = oneshot::channel();
        let guard = entry.guard.upgrade().unwrap_or_else(|| Arc::new(Guard(CancellationToken::new())));
        let progress = entry.watched.clone();
        if let Some(summary) = &entry.summary {
            let _ = sender.send(Ok(summary.clone()));
            return Some(Joined { progress, done, guard });
        }
        entry.waiting.push(sender);
        if entry.guard.upgrade().is_none() {
            entry.guard = Arc::downgrade(&guard);
            let (dropped, digest, serial) = (guard.0.clone(), *digest, entry.serial);
            self.tasks.spawn(async move {
                dropped.cancelled().await;
                Done { digest, serial, what: What::Abandoned }
            });
        }
        if priority > entry.priority || limits != entry.limits {
            let priority = priority.max(entry.priority);
            // It is here: this cannot fail.
            let _ = self.adjust(*digest, priority, limits);
        }
        Some(Joined { progress, done, guard })
    }

    /// Also what is not verified yet, and so does not take part yet: it will with these.
    fn adjust(&mut self, digest: Digest, priority: Priority, limits: Limits) -> Result<(), Error> {
        let entry = self.entries.get_mut(&digest).filter(|entry| !entry.ending).ok_or(Error::NotFound { digest })?;
        (entry.priority, entry.limits) = (priority, limits);
        self.input(peer::Input::Adjust(digest, priority, limits));
        Ok(())
    }

    fn seed(&mut self, manifest: Arc<Manifest>, path: PathBuf, reply: oneshot::Sender<Result<(), Error>>) {
        let digest = manifest.digest();
        if let Some(entry) = self.entries.get_mut(&digest) {
            if !entry.leaving.is_empty() {
                let _ = reply.send(Err(Error::Stopped { digest }));
            } else if entry.ending {
                entry.next.push(Command::Seed(manifest, path, reply));
            } else if entry.path != path {
                self.verify_other(&manifest, &path, reply);
            } else if entry.summary.is_some() {
                let _ = reply.send(Ok(()));
            } else {
                entry.seeding.push(reply);
            }
            return;
        }
        self.insert(&manifest, &path, Open::Seed);
        if let Some(entry) = self.entries.get_mut(&digest) {
            entry.seeding.push(reply);
        }
        self.open(&digest, What::SeedOpened);
    }

    fn insert(&mut self, manifest: &Arc<Manifest>, path: &Path, open: Open) {
        self.next_serial += 1;
        let waiting_for = Some("the verification of what is on disk".to_owned());
        let (progress, watched) = watch::channel(FetchProgress { waiting_for, ..FetchProgress::default() });
        let entry = Entry {
            serial: self.next_serial,
            path: path.to_owned(),
            priority: Priority::Normal,
            limits: Limits::default(),
            open,
            file: None,
            started: Clock::now(),
            resumed: 0,
            progress: Some(progress),
            watched,
            waiting: Vec::new(),
            seeding: Vec::new(),
            guard: Weak::new(),
            summary: None,
            busy: 0,
            end: CancellationToken::new(),
            ending: false,
            leaving: Vec::new(),
            next: Vec::new(),
            checkpointed: (0, Clock::now()),
            checkpointing: false,
            manifest: Arc::clone(manifest),
        };
        self.entries.insert(manifest.digest(), entry);
    }

    fn execute(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                peer::Output::Connect(addr, _) => self.hub.connect(addr),
                peer::Output::Close(conn, reason) => {
                    tracing::debug!(%conn, reason, "closing a connection");
                    self.hub.close(conn, &reason);
                }
                peer::Output::Send(conn, message) => self.hub.send(conn, &message),
                peer::Output::SendBlock { conn, digest, piece, block, offset, len } => {
                    match self.entries.get(&digest).and_then(|entry| entry.file.clone()) {
                        Some(file) => {
                            let source = Arc::new(file);
                            let block = OutgoingBlock { digest, lease: 0, piece, block, offset, len, source };
                            self.hub.send_block(conn, block);
                        }
                        None => self.input(peer::Input::ReadFailed { conn, digest, piece, block }),
                    }
                }
                peer::Output::Store { digest, piece, blocks, hash_blocks } => {
                    if let Some(file) = self.entries.get(&digest).and_then(|entry| entry.file.clone()) {
                        self.work(
                            &digest,
                            async move { What::Stored(piece, file.store(piece, blocks, hash_blocks).await) },
                        );
                    }
                }
                peer::Output::Complete(digest) => {
                    if let Some(file) = self.entries.get(&digest).and_then(|entry| entry.file.clone()) {
                        self.work(&digest, async move { What::Finished(file.finish().await) });
                    }
                }
            }
        }
    }

    fn tell_progress(&mut self) {
        for (digest, entry) in &self.entries {
            let (Some(sender), Some(progress)) = (&entry.progress, self.core.progress(digest)) else { continue };
            let next = told(&progress);
            sender.send_if_modified(|last| {
                let changed = *last != next;
                *last = next;
                changed
            });
        }
    }
}

fn told(progress: &peer::Progress) -> FetchProgress {
    FetchProgress {
        pieces: progress.pieces,
        bytes: progress.bytes,
        peers: progress.peers,
        waiting_for: progress.waiting_for.map(|what| what.to_string()),
    }
}
