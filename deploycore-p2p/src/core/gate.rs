//! The store gate: the only door from the swarm to the region's store.
//!
//! Each piece is leased to one node, which reads it here and serves it at once; so the store is read about once, by many
//! nodes in parallel. What a lease allows is counted, durably, before the lease is told: [`Output::Persist`] is data, and
//! the leases it covers go out when [`Input::Persisted`] acknowledges it. A gate that is killed has therefore counted at least
//! what it served.
//!
//! The leases of a rollback come first: the more of those that it may have are under way, the fewer others get, down to one.
//!
//! A piece is leased again when
//!
//! - its lease ended without the piece arriving (the node died, or took several times as long as others), as long as the
//!   budget covers that *and* the first reading of all pieces still unread; or
//! - a node says that nobody it knows has the piece, and the trackers say that no living member holds it. Beyond the budget such
//!   a recovery read waits for its rate, and is counted apart.
//!
//! Where a region has several gates, each counts for itself.

mod artifact;
mod record;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use deploycore::model::{Digest, friendly};
use serde::{Deserialize, Serialize};

pub use record::{Record, Usage};

use self::artifact::Artifact;
use super::gates::Gates;
use super::message::{Addr, ConnId, Contact, Message, PeerId, Refusal, Role};
use super::shape::{MAX_BLOCK, Shape};
use super::time::Instant;

/// How a gate behaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Leases under way at once, for one artifact; fewer while those of a rollback are. Enough to fill the store's link; more would make each piece come later.
    pub max_leases: u32,
    /// The shortest lease.
    #[serde(with = "friendly")]
    pub min_lease: Duration,
    /// The longest lease, and the first ones, before it is known how long a piece takes.
    #[serde(with = "friendly")]
    pub max_lease: Duration,
    /// A lease lasts this many times as long as pieces took lately.
    pub lease_multiple: u32,
    /// Leased reads of an artifact stay within this many times its size...
    pub budget_ratio: f64,
    /// ...or its size and this many pieces, whichever is more.
    pub budget_pieces: u32,
    /// Bytes a second of recovery reads of an artifact.
    pub recovery_rate: u64,
    /// Artifacts served at once. The longest unused is dropped for another; its counts are on disk.
    pub max_artifacts: usize,
    /// Artifacts looked for in the store at once. Whoever asks for more is told to come again.
    pub max_loading: usize,
    /// The most connections; those beyond are refused.
    pub max_links: usize,
    /// Nodes of one artifact that are considered for leases at once; others wait until one of these leaves.
    pub max_readers: usize,
    /// How often what got lost is looked for.
    #[serde(with = "friendly")]
    pub tick: Duration,
    /// Bytes of a block. Another than [`MAX_BLOCK`] is for simulators: all members must cut alike.
    #[serde(skip)]
    pub max_block: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_leases: 64,
            min_lease: Duration::from_secs(5),
            max_lease: Duration::from_secs(30),
            lease_multiple: 4,
            budget_ratio: 1.2,
            budget_pieces: 8,
            recovery_rate: 64 << 20,
            max_artifacts: 1_024,
            max_loading: 32,
            max_links: 32_768,
            max_readers: 4_096,
            tick: Duration::from_millis(100),
            max_block: MAX_BLOCK,
        }
    }
}

/// What happens to a gate.
#[derive(Debug, Clone)]
pub enum Input {
    /// A member connected, or the gate to a tracker.
    Connected {
        /// The connection.
        conn: ConnId,
        /// Who.
        peer: PeerId,
        /// What it is.
        role: Role,
        /// Whether the gate dialed. It believes a tracker only that it dialed itself.
        dialed: bool,
    },
    /// A connection ended.
    Disconnected(ConnId),
    /// A message came.
    Message(ConnId, Message),
    /// What [`Output::Load`] asked for: the artifact's size and what was counted before, or `None` when the store does not have it.
    Loaded(Digest, Option<(u64, Record)>),
    /// The record of this version, or a later one, is durable.
    Persisted(Digest, u64),
    /// The store failed to give a block.
    ReadFailed {
        /// To whom.
        conn: ConnId,
        /// Of what.
        digest: Digest,
        /// Under which lease.
        lease: u64,
        /// Which piece.
        piece: u32,
        /// Which block of it.
        block: u32,
        /// Whether it is certain that nothing was read; else it counts as read.
        unread: bool,
    },
    /// The instant of [`Gate::poll_timeout`] has come.
    Timeout,
}

/// What a gate wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a message.
    Send(ConnId, Message),
    /// End a connection, for this reason.
    Close(ConnId, String),
    /// Read a block from the store and send it.
    Serve {
        /// To whom.
        conn: ConnId,
        /// Of what.
        digest: Digest,
        /// Under which lease: told back when the read fails.
        lease: u64,
        /// Which piece.
        piece: u32,
        /// Which block of it.
        block: u32,
        /// Where it starts in the artifact.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Look for the artifact's manifest in the store and for its record on disk.
    Load(Digest),
    /// Make the record durable; it replaces the one before. Then acknowledge.
    Persist(Digest, u64, Record),
}

#[derive(Debug)]
struct Client {
    role: Role,
}

#[derive(Debug)]
enum Entry {
    /// Asked for; these wait.
    Loading(Vec<(ConnId, Message)>),
    /// Not in the store; not looked for again before this instant.
    Absent(Instant),
    Serving(Box<Artifact>),
}

/// The gate's state machine.
#[derive(Debug)]
pub struct Gate {
    settings: Settings,
    id: PeerId,
    addr: Addr,
    clients: BTreeMap<ConnId, Client>,
    /// Those of them that are trackers.
    trackers: Vec<ConnId>,
    /// All gates of the region, this one among them.
    gates: Gates,
    artifacts: BTreeMap<Digest, Entry>,
    /// How often an artifact was taken up: each time its leases get numbers of their own.
    loads: u64,
    tick_at: Instant,
    outputs: VecDeque<Output>,
}

const ABSENT_FOR: Duration = Duration::from_millis(500);

impl Gate {
    /// A gate that is reached at `addr`.
    pub fn new(settings: Settings, id: PeerId, addr: Addr, now: Instant) -> Self {
        Self {
            tick_at: now + settings.tick,
            settings,
            id,
            addr,
            clients: BTreeMap::new(),
            trackers: Vec::new(),
            gates: Gates::default(),
            artifacts: BTreeMap::new(),
            loads: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Takes an input. Outputs are polled until there is none before the next.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Connected { conn, peer: _, role, dialed } => self.connected(conn, role, dialed),
            Input::Disconnected(conn) => {
                self.clients.remove(&conn);
                self.trackers.retain(|tracker| *tracker != conn);
                self.gates.disconnected(conn, now);
                for artifact in self.serving() {
                    artifact.left(conn, now);
                }
            }
            Input::Message(conn, message) => self.message(conn, message, now),
            Input::Loaded(digest, found) => self.loaded(digest, found, now),
            Input::Persisted(digest, version) => {
                if let Some(Entry::Serving(artifact)) = self.artifacts.get_mut(&digest) {
                    artifact.persisted(version, &self.settings, now, &mut self.outputs);
                }
            }
            Input::ReadFailed { conn, digest, lease, piece, block, unread } => {
                if let Some(Entry::Serving(artifact)) = self.artifacts.get_mut(&digest) {
                    artifact.read_failed(lease, block, unread, now);
                }
                let refusal = Refusal::ReadFailed;
                self.outputs.push_back(Output::Send(conn, Message::Reject { digest, piece, block, count: 1, refusal }));
            }
            Input::Timeout => {}
        }
        if now >= self.tick_at {
            self.tick(now);
            self.tick_at = now + self.settings.tick;
        }
        self.work(now);
    }

    /// Lets each artifact grant what it may: rollbacks first, the others what those leave.
    fn work(&mut self, now: Instant) {
        let mut left = 1.0_f64;
        for rollback in [true, false] {
            let part = left;
            for entry in self.artifacts.values_mut() {
                let Entry::Serving(artifact) = entry else { continue };
                if artifact.is_rollback() == rollback {
                    artifact.work(&self.settings, part, &self.trackers, now, &mut self.outputs);
                    left = left.min(artifact.leaves(&self.settings));
                }
            }
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        self.tick_at
    }

    /// What was read of an artifact, if it is being served.
    pub fn usage(&self, digest: &Digest) -> Option<Usage> {
        match self.artifacts.get(digest) {
            Some(Entry::Serving(artifact)) => Some(artifact.usage()),
            _ => None,
        }
    }

    fn serving(&mut self) -> impl Iterator<Item = &mut Artifact> {
        self.artifacts.values_mut().filter_map(|entry| match entry {
            Entry::Serving(artifact) => Some(&mut **artifact),
            _ => None,
        })
    }

    /// Whether this gate decides for the artifact, as far as it knows.
    fn decides(&self, digest: &Digest) -> bool {
        rendezvous(digest, self.gates.all()).is_none_or(|gate| gate.peer == self.id)
    }

    fn connected(&mut self, conn: ConnId, role: Role, dialed: bool) {
        // Whoever is dialed was named by the configuration; whoever dials may say of itself what it likes.
        let expected = if dialed { Role::Tracker } else { Role::Node };
        if role != expected {
            return self.close(conn, format!("a {role:?} where none is expected"));
        }
        if !dialed && self.clients.len() >= self.settings.max_links {
            return self.close(conn, "too many connections");
        }
        self.clients.insert(conn, Client { role });
        if role == Role::Tracker {
            self.trackers.push(conn);
            self.outputs.push_back(Output::Send(conn, Message::GateHere { addr: self.addr.clone() }));
        }
    }

    /// A tracker that has not heard of this gate yet will in a moment: it is one of them in any case.
    fn gates_told(&mut self, tracker: ConnId, mut gates: Vec<Contact>, now: Instant) {
        if !gates.iter().any(|gate| gate.peer == self.id) {
            gates.push(Contact { peer: self.id, addr: self.addr.clone() });
        }
        self.gates.told(tracker, gates, now);
        self.let_go(now);
    }

    /// Artifacts that another gate decides for now: their readers go there, and nothing is kept of them.
    fn let_go(&mut self, now: Instant) {
        let moved: Vec<Digest> = self.artifacts.keys().filter(|digest| !self.decides(digest)).copied().collect();
        for digest in moved {
            if let Some(Entry::Serving(artifact)) = self.artifacts.get_mut(&digest) {
                for conn in artifact.dismiss(now) {
                    self.outputs.push_back(Output::Send(conn, Message::Absent { digest }));
                }
            }
        }
    }

    fn message(&mut self, conn: ConnId, message: Message, now: Instant) {
        let Some(client) = self.clients.get(&conn) else {
            return;
        };
        match (client.role, message) {
            (Role::Node, Message::Join { digest, size, have, priority }) => {
                self.join(conn, digest, Message::Join { digest, size, have, priority }, now);
            }
            (Role::Node, message) => self.node_said(conn, message, now),
            (Role::Tracker, Message::Gates { gates }) => self.gates_told(conn, gates, now),
            (Role::Tracker, Message::Holders { digest, pieces, stale_millis, settled }) => {
                if let Some(Entry::Serving(artifact)) = self.artifacts.get_mut(&digest) {
                    let stale = Duration::from_millis(u64::from(stale_millis));
                    artifact.holders(conn, &pieces, stale, settled, now);
                }
            }
            (_, Message::Ping) => {}
            (role, other) => self.close(conn, format!("a {role:?} sent {other:?} to a gate")),
        }
    }

    fn node_said(&mut self, conn: ConnId, message: Message, now: Instant) {
        let (Message::Leave { digest }
        | Message::Have { digest, .. }
        | Message::Request { digest, .. }
        | Message::Cancel { digest, .. }
        | Message::Stuck { digest, .. }
        | Message::Reject { digest, .. }) = &message
        else {
            return if message != Message::Ping {
                self.close(conn, format!("a node sent {message:?} to a gate"));
            };
        };
        let Some(Entry::Serving(artifact)) = self.artifacts.get_mut(digest) else {
            if let Message::Request { digest, piece, block, count } = message {
                let refusal = Refusal::UnknownArtifact;
                self.outputs.push_back(Output::Send(conn, Message::Reject { digest, piece, block, count, refusal }));
            }
            return;
        };
        match message {
            Message::Leave { .. } => artifact.left(conn, now),
            Message::Have { pieces, .. } => pieces.iter().for_each(|piece| artifact.arrived(conn, *piece, now)),
            Message::Request { piece, block, count, .. } => {
                artifact.request(conn, piece, block, count, &mut self.outputs);
            }
            Message::Stuck { pieces, refused, .. } => artifact.stuck(&pieces, &refused),
            Message::Reject { piece, .. } => {
                tracing::error!(%conn, digest = %artifact.digest(), piece, "a piece from the store did not verify");
                artifact.bad_bytes(conn, piece, now);
            }
            // What is not yet read stays counted, and the node may ask for it no more: nothing to do.
            _ => {}
        }
    }

    fn close(&mut self, conn: ConnId, reason: impl Into<String>) {
        let mut reason = reason.into();
        reason.truncate(reason.floor_char_boundary(200));
        self.outputs.push_back(Output::Close(conn, reason));
    }

    fn join(&mut self, conn: ConnId, digest: Digest, join: Message, now: Instant) {
        if !self.decides(&digest) {
            return self.outputs.push_back(Output::Send(conn, Message::Absent { digest }));
        }
        match self.artifacts.get_mut(&digest) {
            Some(Entry::Loading(waiting)) => {
                waiting.retain(|(other, _)| *other != conn);
                if waiting.len() < self.settings.max_readers {
                    waiting.push((conn, join));
                } else {
                    self.outputs.push_back(Output::Send(conn, Message::Absent { digest }));
                }
            }
            Some(Entry::Absent(until)) if now < *until => {
                self.outputs.push_back(Output::Send(conn, Message::Absent { digest }));
            }
            Some(Entry::Serving(artifact)) => {
                let Message::Join { size, have, priority, .. } = join else { return };
                let fits = have.unpack(artifact.shape().pieces()).filter(|_| size == artifact.shape().size());
                match fits {
                    Some(have) => artifact.joined(conn, have, priority, &self.settings, now),
                    None => self.close(conn, format!("another size for artifact {}", digest.short())),
                }
            }
            Some(Entry::Absent(_)) | None => {
                let loading = self.artifacts.values().filter(|entry| matches!(entry, Entry::Loading(_))).count();
                if loading >= self.settings.max_loading {
                    return self.outputs.push_back(Output::Send(conn, Message::Absent { digest }));
                }
                self.make_room();
                self.artifacts.insert(digest, Entry::Loading(vec![(conn, join)]));
                self.outputs.push_back(Output::Load(digest));
            }
        }
    }

    /// Drops an artifact that nobody reads when there are too many.
    fn make_room(&mut self) {
        if self.artifacts.len() < self.settings.max_artifacts {
            return;
        }
        let unused = |entry: &Entry| match entry {
            Entry::Serving(artifact) => artifact.unused_since(),
            Entry::Absent(until) => Some(*until),
            Entry::Loading(_) => None,
        };
        let oldest = self.artifacts.iter().filter_map(|(digest, entry)| Some((unused(entry)?, *digest))).min();
        if let Some((_, digest)) = oldest {
            self.artifacts.remove(&digest);
        }
    }

    fn loaded(&mut self, digest: Digest, found: Option<(u64, Record)>, now: Instant) {
        let Some(entry @ Entry::Loading(_)) = self.artifacts.get_mut(&digest) else {
            return;
        };
        let next = match found {
            Some((size, record)) => {
                self.loads += 1;
                let shape = Shape::new(digest, size).with_max_block(self.settings.max_block);
                Entry::Serving(Box::new(Artifact::new(shape, record, &self.settings, self.loads << 32, now)))
            }
            None => Entry::Absent(now + ABSENT_FOR),
        };
        let Entry::Loading(waiting) = std::mem::replace(entry, next) else { return };
        for (conn, join) in waiting {
            if self.clients.contains_key(&conn) {
                self.join(conn, digest, join, now);
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        for artifact in self.serving() {
            artifact.expire(now);
        }
        if self.gates.forget(now) {
            self.let_go(now);
        }
        let (id, gates) = (self.id, self.gates.all());
        let decides = |digest: &Digest| rendezvous(digest, gates).is_none_or(|gate| gate.peer == id);
        self.artifacts.retain(|digest, entry| match entry {
            Entry::Absent(until) => *until + ABSENT_FOR * 20 >= now,
            Entry::Serving(artifact) => artifact.unused_since().is_none() || decides(digest),
            Entry::Loading(_) => true,
        });
    }

    /// Whether other gates are known, which take over what this one would let go.
    pub fn has_company(&self) -> bool {
        self.gates.all().iter().any(|gate| gate.peer != self.id)
    }
}

/// The gate that decides for an artifact: the one with the highest hash together with it. When a gate comes or goes, only the
/// artifacts of that gate move.
pub fn rendezvous<'a>(digest: &Digest, gates: &'a [Contact]) -> Option<&'a Contact> {
    let weight = |contact: &Contact| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(digest.as_bytes()).update(&contact.peer.0.to_le_bytes());
        *hasher.finalize().as_bytes()
    };
    gates.iter().max_by_key(|contact| weight(contact))
}
