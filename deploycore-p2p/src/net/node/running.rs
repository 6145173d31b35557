//! The task that owns a node's state machine.

mod entry;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use deploycore::model::{Digest, Manifest};
use deploycore::port::swarm::{Error, FetchProgress, FetchRequest, FetchSummary, Limits, Priority, SwarmStats};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant as Clock, sleep_until};
use tokio_util::sync::CancellationToken;

use self::entry::{Done, Entry, What};
use super::{Account, Command, Guard, Joined, Node};
use crate::core::bitfield::Bitfield;
use crate::core::message::{Addr, Hello, PeerId, Role, Zone};
use crate::core::peer::{self, Peer};
use crate::core::shape::Shape;
use crate::core::time::Instant;
use crate::core::wire::Frame;
use crate::net::connection::{Event, Hub};
use crate::net::files::{Open, PieceFile, Stored};
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

    /// Verifies a file of an artifact that is served from elsewhere, or will be; that goes on as it is.
    fn verify_other(&mut self, manifest: &Arc<Manifest>, path: &Path, reply: oneshot::Sender<Result<(), Error>>) {
        let (files, manifest, path) = (Arc::clone(&self.node.files), Arc::clone(manifest), path.to_owned());
        let digest = manifest.digest();
        self.verify(&digest, async move {
            let verified = async { files.open(manifest, &path, Open::Seed).await?.verify().await };
            let outcome = verified.await.map_err(|error| unreadable(digest, &path, &error));
            let whole = |have: Bitfield| if have.is_full() { Ok(()) } else { Err(corrupt(digest, &path, &have)) };
            let _ = reply.send(outcome.and_then(whole));
            What::Answered
        });
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

    fn open(&mut self, digest: &Digest, what: impl FnOnce(io::Result<Arc<dyn PieceFile>>) -> What + Send + 'static) {
        let Some(entry) = self.entries.get(digest) else { return };
        let (files, manifest) = (Arc::clone(&self.node.files), Arc::clone(&entry.manifest));
        let (path, open) = (entry.path.clone(), entry.open);
        self.work(digest, async move { what(files.open(manifest, &path, open).await) });
    }

    /// Runs a task that uses an artifact's file; leaving the artifact waits for it.
    fn work(&mut self, digest: &Digest, work: impl Future<Output = What> + Send + 'static) {
        let Some(entry) = self.entries.get_mut(digest) else { return };
        entry.busy += 1;
        let (digest, serial) = (*digest, entry.serial);
        self.tasks.spawn(async move { Done { digest, serial, what: work.await } });
    }

    /// As [`work`](Self::work), for what writes nothing and may take long: it ends with the artifact's stay.
    fn verify(&mut self, digest: &Digest, work: impl Future<Output = What> + Send + 'static) {
        let Some(end) = self.entries.get(digest).map(|entry| entry.end.clone()) else { return };
        self.work(digest, async move {
            tokio::select! {
                biased;
                () = end.cancelled() => What::Answered,
                what = work => what,
            }
        });
    }

    fn done(&mut self, done: Done) {
        let Done { digest, serial, what } = done;
        let Some(entry) = self.entries.get_mut(&digest).filter(|entry| entry.serial == serial) else {
            return;
        };
        if !matches!(what, What::Abandoned) {
            entry.busy -= 1;
        }
        let leaving = entry.ending;
        match what {
            What::Abandoned => {
                let wanted = entry.guard.upgrade().is_some() || !entry.seeding.is_empty();
                if entry.summary.is_none() && !wanted && !leaving {
                    tracing::info!(digest = %digest.short(), "nobody waits for the fetch any more: it stops");
                    self.end_entry(&digest);
                }
                return;
            }
            What::Opened(Err(source), reply) => {
                let path = entry.path.clone();
                let _ = reply.send(Err(Error::Disk { path: path.clone(), source: copy(&source) }));
                self.fail(&digest, || Error::Disk { path: path.clone(), source: copy(&source) });
            }
            What::Opened(Ok(file), reply) => {
                entry.file = Some(Arc::clone(&file));
                let (priority, limits) = (entry.priority, entry.limits);
                if let Some(joined) = self.join(&digest, priority, limits) {
                    let _ = reply.send(Ok(joined));
                }
                if !leaving {
                    self.verify(&digest, async move { What::Verified(file.verify().await) });
                }
            }
            What::SeedOpened(Ok(file)) => {
                entry.file = Some(Arc::clone(&file));
                if !leaving {
                    self.verify(&digest, async move { What::Verified(file.verify().await) });
                }
            }
            What::Verified(Ok(have)) if !leaving => self.verified(&digest, have),
            What::Stored(piece, Ok(stored)) if !leaving => {
                let Stored { verified, blocks } = stored;
                metrics::counter!("deploycore_swarm_pieces", "verified" => if verified { "yes" } else { "no" })
                    .increment(1);
                self.input(peer::Input::Stored { digest, piece, verified, blocks });
            }
            What::Checkpointed(pieces, Ok(())) => {
                entry.checkpointing = false;
                entry.checkpointed = (pieces, Clock::now());
            }
            What::Finished(Ok(())) if !leaving => self.finished(&digest),
            What::SeedOpened(Err(source)) => {
                let path = entry.path.clone();
                self.fail(&digest, || unreadable(digest, &path, &source));
            }
            What::Verified(Err(source))
            | What::Stored(_, Err(source))
            | What::Checkpointed(_, Err(source))
            | What::Finished(Err(source)) => self.fail_disk(&digest, &source),
            What::Verified(_) | What::Stored(..) | What::Finished(_) | What::Answered => {}
        }
        self.drop_if_quiet(&digest);
    }

    fn verified(&mut self, digest: &Digest, have: Bitfield) {
        let Some(entry) = self.entries.get_mut(digest) else { return };
        if entry.open == Open::Seed && !have.is_full() {
            let path = entry.path.clone();
            return self.fail(digest, || corrupt(*digest, &path, &have));
        }
        let shape = Shape::of(&entry.manifest);
        entry.resumed = have.iter().map(|piece| shape.piece_len(piece)).sum();
        entry.checkpointed = (have.count(), Clock::now());
        let (priority, limits) = (entry.priority, entry.limits);
        self.input(peer::Input::Start(Box::new(peer::Start { shape, have, priority, limits })));
    }

    fn finished(&mut self, digest: &Digest) {
        let progress = self.core.progress(digest).unwrap_or_default();
        let Some(entry) = self.entries.get_mut(digest) else { return };
        let summary = FetchSummary {
            from_store: progress.from_store,
            from_peers: progress.from_peers,
            resumed: entry.resumed,
            bad_pieces: progress.bad_pieces,
            elapsed: entry.started.elapsed(),
        };
        if entry.open == Open::Fetch {
            tracing::info!(digest = %digest.short(), ?summary, wasted = progress.wasted, "fetched");
        }
        entry.summary = Some(summary.clone());
        if let Some(sender) = entry.progress.take() {
            sender.send_replace(told(&progress));
        }
        entry.waiting.drain(..).for_each(|waiting| drop(waiting.send(Ok(summary.clone()))));
        entry.seeding.drain(..).for_each(|waiting| drop(waiting.send(Ok(()))));
    }

    fn fail_disk(&mut self, digest: &Digest, source: &io::Error) {
        let Some(path) = self.entries.get(digest).map(|entry| entry.path.clone()) else { return };
        self.fail(digest, || Error::Disk { path: path.clone(), source: copy(source) });
    }

    /// Ends an artifact's stay with an error for all who wait.
    fn fail(&mut self, digest: &Digest, error: impl Fn() -> Error) {
        let Some(entry) = self.entries.get_mut(digest) else { return };
        tracing::warn!(digest = %digest.short(), error = deploycore::port::chain(&error()), "the artifact is given up");
        entry.waiting.drain(..).for_each(|waiting| drop(waiting.send(Err(error()))));
        entry.seeding.drain(..).for_each(|waiting| drop(waiting.send(Err(error()))));
        self.end_entry(digest);
    }

    /// Ends an artifact's stay: at once for the swarm, and for good once no task uses its file. Those who wait see it stopped.
    fn end_entry(&mut self, digest: &Digest) {
        let Some(entry) = self.entries.get_mut(digest) else { return };
        entry.ending = true;
        entry.end.cancel();
        entry.waiting.clear();
        for reply in entry.seeding.drain(..) {
            let _ = reply.send(Err(Error::Stopped { digest: *digest }));
        }
        self.input(peer::Input::Stop(*digest));
        self.drop_if_quiet(digest);
    }

    fn drop_if_quiet(&mut self, digest: &Digest) {
        if self.entries.get(digest).is_none_or(|entry| !entry.ending || entry.busy > 0) {
            return;
        }
        if let Some(entry) = self.entries.remove(digest) {
            for reply in entry.leaving {
                let _ = reply.send(());
            }
            for command in entry.next {
                self.command(command);
            }
        }
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

    fn checkpoint(&mut self) {
        let mut due = Vec::new();
        for (digest, entry) in &mut self.entries {
            let Some(have) = self.core.have(digest) else { continue };
            let (pieces, at) = entry.checkpointed;
            let waits = entry.checkpointing || at.elapsed() < self.node.settings.checkpoint;
            if entry.summary.is_none() && !waits && have.count() > pieces && !have.is_full() {
                entry.checkpointing = true;
                due.push((*digest, have.clone()));
            }
        }
        for (digest, have) in due {
            if let Some(file) = self.entries.get(&digest).and_then(|entry| entry.file.clone()) {
                self.work(&digest, async move { What::Checkpointed(have.count(), file.checkpoint(&have).await) });
            }
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

/// Why a file cannot be seeded.
fn unreadable(digest: Digest, path: &Path, source: &io::Error) -> Error {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::InvalidData => Error::Corrupt { digest, path, detail: source.to_string() },
        _ => Error::Disk { path, source: copy(source) },
    }
}

fn corrupt(digest: Digest, path: &Path, have: &Bitfield) -> Error {
    let detail = format!("{} of {} pieces do not verify", have.len() - have.count(), have.len());
    Error::Corrupt { digest, path: path.to_owned(), detail }
}

/// An I/O error again: the original cannot be cloned, and several may wait for it.
fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}
