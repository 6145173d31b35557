//! A node's part in the swarm: what it fetches, what it serves, whom it knows.
//!
//! One machine handles all artifacts of a node over one connection a neighbour. Fetching is driven by what arrives: a block
//! that came, a piece that a neighbour announces, a slot that a neighbour keeps make it ask for more; a slow timer only mends
//! what got lost. Data is asked for, never pushed; each request is answered by the block, `Busy` or `Reject`.

mod artifact;
mod blame;
mod download;
mod io;
mod late;
mod link;
mod membership;
mod precedence;
mod rates;
mod settings;
mod share;
mod turns;
mod upload;
mod zones;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deploycore::model::Digest;
use deploycore::port::swarm::{Limits, Priority};
use fastrand::Rng;
use smallvec::SmallVec;

use self::artifact::Artifact;
pub use self::io::{Input, Output, Progress, Start, Totals};
use self::link::{Link, Links, Remote};
use self::membership::Dial;
use self::precedence::Precedence;
use self::rates::Rates;
pub use self::settings::Settings;
use self::turns::Turns;
use self::upload::{Slot, Waiting};
use super::bitfield::{Bitfield, PackedBits};
use super::gates::Gates;
use super::message::{Addr, ConnId, MAX_LIST, Message, Payload, PeerId, Refusal, Role, Zone};
use super::shape::Shape;
use super::time::Instant;

/// The node's state machine. `B` is what stands for a block's bytes.
#[derive(Debug)]
pub struct Peer<B = Bytes> {
    settings: Arc<Settings>,
    id: PeerId,
    incarnation: u64,
    addr: Addr,
    zone: Option<Zone>,
    trackers: Vec<Addr>,
    rng: Rng,
    links: Links,
    artifacts: Vec<Artifact<B>>,
    gates: Gates,
    dials: BTreeMap<Addr, Dial>,
    quarantine: BTreeMap<PeerId, Instant>,
    slots: Vec<Slot>,
    /// Neighbours that were told `Busy` and have nobody else to ask.
    waiting: Vec<Waiting>,
    /// Bytes asked for and not yet received.
    outstanding: u64,
    /// Bytes received since the last tick, and bytes a second lately.
    received: u64,
    rate_in: f64,
    rated_at: Instant,
    /// Something could be asked for, but a bound of the node stood before it.
    held_back: bool,
    rates: Rates,
    turns_in: Turns,
    turns_out: Turns,
    precedence_in: Precedence,
    precedence_out: Precedence,
    /// Numbers the blocks that are handed to the network.
    next_block: u64,
    downloaded: u64,
    uploaded: u64,
    tick_at: Instant,
    tend_at: Instant,
    flush_at: Instant,
    /// When a rate limit allows more, or others need no longer wait for a rollback.
    tokens_at: Instant,
    outputs: VecDeque<Output<B>>,
}

/// How often all connections are looked at: for those that serve no purpose, and those that are silent.
const TEND: Duration = Duration::from_secs(1);

impl<B: Payload> Peer<B> {
    /// A node that takes part in nothing yet. `addr` is where others reach it.
    pub fn new(
        settings: impl Into<Arc<Settings>>,
        id: PeerId,
        addr: Addr,
        trackers: Vec<Addr>,
        mut rng: Rng,
        now: Instant,
    ) -> Self {
        let settings = settings.into();
        let tick_at = now + settings.tick.mul_f64(rng.f64());
        let mut peer = Self {
            id,
            incarnation: rng.u64(..),
            addr,
            zone: None,
            trackers,
            rng,
            links: Links::default(),
            artifacts: Vec::new(),
            gates: Gates::default(),
            dials: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            slots: Vec::new(),
            waiting: Vec::new(),
            outstanding: 0,
            received: 0,
            rate_in: 0.0,
            rated_at: now,
            held_back: false,
            rates: Rates::new(settings.limits, now),
            turns_in: Turns::default(),
            turns_out: Turns::default(),
            precedence_in: Precedence::new(now),
            precedence_out: Precedence::new(now),
            next_block: 0,
            downloaded: 0,
            uploaded: 0,
            tick_at,
            tend_at: now,
            flush_at: Instant::FAR,
            tokens_at: Instant::FAR,
            outputs: VecDeque::new(),
            settings,
        };
        peer.dial_missing(now);
        peer
    }

    /// The node is in this zone: what it fetches comes from there rather than from elsewhere. To be said before any input.
    #[must_use]
    pub fn with_zone(self, zone: Option<Zone>) -> Self {
        Self { zone, ..self }
    }

    /// Which of its lives this is, for its hello.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Takes an input. Outputs are polled until there is none before the next.
    pub fn handle(&mut self, input: Input<B>, now: Instant) {
        match input {
            Input::Start(start) => self.start(*start, now),
            Input::Adjust(digest, priority, limits) => self.adjust(&digest, priority, limits, now),
            Input::Limit(limits) => {
                self.rates.set(limits, now);
                self.fill_all(now);
                self.serve(now);
            }
            Input::Stop(digest) => self.stop(&digest, now),
            Input::Connected { conn, peer, incarnation, role, zone, dialed } => {
                let link = Link::new(conn, peer, incarnation, role, dialed, now).with_zones(self.zone, zone);
                self.connected(link, now);
            }
            Input::ConnectFailed(addr) => self.unreached(&addr, now),
            Input::Disconnected(conn) => self.disconnected(conn, now),
            Input::Message(conn, message) => self.message(conn, message, now),
            Input::Block(conn, block) => self.block(conn, block, now),
            Input::Sent(conn, len) => self.sent(conn, len, now),
            Input::ReadFailed { conn, digest, piece, block } => {
                let refusal = Refusal::ReadFailed;
                self.send(conn, Message::Reject { digest, piece, block, count: 1, refusal });
                self.sent(conn, 0, now);
            }
            Input::Stored { digest, piece, verified, blocks } => self.stored(&digest, piece, verified, &blocks, now),
            Input::Timeout => {}
        }
        if now >= self.flush_at {
            self.flush();
        }
        if now >= self.tokens_at {
            self.tokens_at = Instant::FAR;
            self.fill_all(now);
            self.serve(now);
        }
        if now >= self.tick_at {
            self.tick(now);
            self.tick_at = now + self.settings.tick;
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output<B>> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        self.tick_at.min(self.flush_at).min(self.tokens_at)
    }

    /// Where an artifact stands, if the node takes part in it.
    pub fn progress(&self, digest: &Digest) -> Option<Progress> {
        let artifact = self.artifact(digest)?;
        let peers = self.links.iter().filter(|link| link.role == Role::Node && link.remote(digest).is_some()).count();
        Some(Progress { peers: peers as u32, waiting_for: self.waiting_for(artifact), ..artifact.progress() })
    }

    /// The verified pieces of an artifact, if the node takes part in it.
    pub fn have(&self, digest: &Digest) -> Option<&Bitfield> {
        self.artifact(digest).map(|artifact| &artifact.have)
    }

    /// Whether there is a connection to a member.
    pub fn is_connected(&self, peer: PeerId) -> bool {
        self.links.iter().any(|link| link.peer == peer)
    }

    /// What each peer gave of an artifact, in bytes of verified pieces.
    pub fn sources(&self, digest: &Digest) -> Option<&BTreeMap<PeerId, u64>> {
        Some(&self.artifact(digest)?.sources)
    }

    /// Counts since the start.
    pub fn totals(&self) -> Totals {
        let complete = self.artifacts.iter().filter(|artifact| artifact.have.is_full()).count();
        Totals {
            fetching: (self.artifacts.len() - complete) as u32,
            seeding: complete as u32,
            peers: self.links.iter().filter(|link| link.role == Role::Node).count() as u32,
            downloaded: self.downloaded,
            uploaded: self.uploaded,
            quarantined: self.quarantine.len() as u32,
        }
    }

    fn artifact(&self, digest: &Digest) -> Option<&Artifact<B>> {
        self.artifacts.iter().find(|artifact| artifact.shape.digest() == *digest)
    }

    fn artifact_at(&self, digest: &Digest) -> Option<usize> {
        self.artifacts.iter().position(|artifact| artifact.shape.digest() == *digest)
    }

    fn link_at(&self, conn: ConnId) -> Option<usize> {
        self.links.position(conn)
    }

    fn send(&mut self, conn: ConnId, message: Message) {
        self.outputs.push_back(Output::Send(conn, message));
    }

    /// Ends a connection from this side. Everything that hung on it is let go at once; the shell's `Disconnected` finds nothing.
    fn close(&mut self, conn: ConnId, reason: impl Into<String>, now: Instant) {
        let mut reason = reason.into();
        reason.truncate(reason.floor_char_boundary(200));
        self.outputs.push_back(Output::Close(conn, reason));
        self.disconnected(conn, now);
    }

    fn start(&mut self, start: Start, now: Instant) {
        let Start { shape, have, priority, limits } = start;
        if self.artifact(&shape.digest()).is_some() || have.len() != shape.pieces() {
            return;
        }
        // The manifest proved the size; whoever spoke of another before is wrong.
        let wrong = |link: &&Link| link.remote(&shape.digest()).is_some_and(|remote| remote.shape != shape);
        let wrong: Vec<ConnId> = self.links.iter().filter(wrong).map(|link| link.conn).collect();
        for conn in wrong {
            self.close(conn, format!("another size for artifact {}", shape.digest().short()), now);
        }
        let turns = (self.turns_in.first(), self.turns_out.first());
        let mut artifact = Artifact::new(shape, have, priority, limits, turns, self.zone, now);
        for link in self.links.iter() {
            if let Some(remote) = link.remote(&shape.digest()) {
                artifact.count(&remote.has, link.is_elsewhere, true);
            }
        }
        let complete = artifact.have.is_full();
        self.artifacts.push(artifact);
        let at = self.artifacts.len() - 1;
        let nodes: Vec<ConnId> =
            self.links.iter().filter(|link| link.role == Role::Node).map(|link| link.conn).collect();
        for conn in nodes {
            self.send_join(conn, at);
        }
        self.announce(at, now);
        self.dial_missing(now);
        if complete {
            self.outputs.push_back(Output::Complete(shape.digest()));
        } else {
            self.fill_all(now);
        }
    }

    fn adjust(&mut self, digest: &Digest, priority: Priority, limits: Limits, now: Instant) {
        let Some(at) = self.artifact_at(digest) else {
            return;
        };
        let artifact = &mut self.artifacts[at];
        artifact.rates.set(limits, now);
        if artifact.priority != priority {
            artifact.priority = priority;
            (artifact.turn_in, artifact.turn_out) = (self.turns_in.first(), self.turns_out.first());
            let gate = artifact.joined_gate;
            let told = |link: &&Link| link.role == Role::Node || gate == Some(link.conn);
            let members: Vec<ConnId> = self.links.iter().filter(told).map(|link| link.conn).collect();
            for conn in members {
                self.send_join(conn, at);
            }
        }
        self.fill_all(now);
        self.serve(now);
    }

    fn stop(&mut self, digest: &Digest, now: Instant) {
        let Some(at) = self.artifact_at(digest) else {
            return;
        };
        for link in 0..self.links.len() {
            let asks = self.links.take_asks(link, |ask| ask.digest == *digest);
            self.no_more_asked(digest, asks.iter().map(|ask| u64::from(ask.len)).sum(), false);
        }
        self.artifacts.remove(at);
        self.slots.retain(|slot| slot.digest != *digest);
        self.waiting.retain(|waiting| waiting.digest != *digest);
        let parting: Vec<(ConnId, Role)> = self.links.iter().map(|link| (link.conn, link.role)).collect();
        for (conn, role) in parting {
            let digest = *digest;
            let message = if role == Role::Tracker { Message::Withdraw { digest } } else { Message::Leave { digest } };
            self.send(conn, message);
        }
        self.fill_all(now);
        self.serve(now);
    }

    fn send_join(&mut self, conn: ConnId, at: usize) {
        let artifact = &self.artifacts[at];
        let (digest, size, priority) = (artifact.shape.digest(), artifact.shape.size(), artifact.priority);
        let have = PackedBits::from(&artifact.have);
        self.send(conn, Message::Join { digest, size, have, priority });
    }

    fn message(&mut self, conn: ConnId, message: Message, now: Instant) {
        let Some(at) = self.link_at(conn) else {
            return;
        };
        match (self.links[at].role, message) {
            (_, Message::Ping) => {}
            (Role::Node, Message::Join { digest, size, have, priority }) => match Shape::claimed(digest, size) {
                Some(shape) => {
                    let shape = shape.with_max_block(self.settings.max_block);
                    self.remote_joined(at, shape, &have, priority, now);
                }
                None => self.close(conn, "an artifact larger than any", now),
            },
            (Role::Node, Message::Leave { digest }) => self.remote_left(at, &digest, now),
            (Role::Node, Message::Have { digest, pieces, count }) => self.remote_has(at, &digest, &pieces, count, now),
            (Role::Node, Message::Request { digest, piece, block, count }) => {
                self.request(at, digest, piece, block, count, now);
            }
            (Role::Node, Message::Cancel { digest, piece, block }) => self.cancelled(conn, &digest, piece, block, now),
            (Role::Node, Message::Await { digest }) => self.awaited(at, digest, now),
            (Role::Node, Message::Pass { digest }) => self.passed(conn, &digest, now),
            (Role::Node, Message::Ready { digest }) => self.ready(at, &digest, now),
            (Role::Node, Message::Busy { digest, piece, block, count }) => {
                let until = now + self.settings.busy_retry;
                if let Some(remote) = self.links[at].remote_mut(&digest) {
                    (remote.ask_after, remote.awaited) = (until, false);
                }
                self.unanswered(at, &digest, piece, block, count, now);
            }
            (Role::Node | Role::Gate, Message::Reject { digest, piece, block, count, refusal }) => {
                tracing::debug!(%conn, piece, block, ?refusal, "a request was refused");
                self.rejected(at, &digest, piece, block, count, now);
            }
            (Role::Gate, Message::Lease { digest, pieces, .. }) => self.leased(at, &digest, &pieces, now),
            (Role::Gate, Message::Drained { digest }) => {
                if let Some(at) = self.artifact_at(&digest) {
                    self.artifacts[at].drained = true;
                }
            }
            (Role::Gate, Message::Absent { digest }) => self.gate_lacks(&digest, now),
            (Role::Tracker, Message::Introduce { digest, peers, millis, part }) => {
                self.links[at].useful = now;
                self.place_in_zone(&digest, part);
                self.introduced(&digest, &peers, Duration::from_millis(u64::from(millis)), now);
            }
            (Role::Tracker, Message::Gates { gates }) => self.gates_told(conn, gates, now),
            (role, other) => self.close(conn, format!("a {role:?} sent {other:?} to a node"), now),
        }
    }

    fn remote_joined(&mut self, at: usize, shape: Shape, have: &PackedBits, priority: Priority, now: Instant) {
        let conn = self.links[at].conn;
        let Some(has) = have.unpack(shape.pieces()) else {
            return self.close(conn, "pieces that do not fit the artifact's size", now);
        };
        let digest = shape.digest();
        let newcomer = self.links[at].remote(&digest).is_none();
        self.note_standing(conn, &digest, has.count(), Some(priority));
        let own = self.artifacts.iter_mut().find(|artifact| artifact.shape.digest() == digest);
        if own.as_ref().is_some_and(|artifact| artifact.shape != shape) {
            return self.close(conn, format!("another size for artifact {}", digest.short()), now);
        }
        let is_elsewhere = self.links[at].is_elsewhere;
        let before = self.links[at].remote(&digest).map(|remote| remote.has.clone());
        let remote =
            Remote { shape, count: has.count(), has: has.clone(), priority, ask_after: Instant::ZERO, awaited: false };
        if !self.links[at].join(remote) {
            return self.close(conn, "more artifacts than a connection carries", now);
        }
        if let Some(artifact) = own {
            if let Some(before) = before {
                artifact.count(&before, is_elsewhere, false);
            }
            artifact.count(&has, is_elsewhere, true);
        }
        // What verified here before it took part was not announced to it.
        if let Some(own) = self.artifact_at(&digest).filter(|own| newcomer && self.artifacts[*own].have.count() > 0) {
            self.send_join(conn, own);
        }
        self.fill(at, now);
    }

    fn remote_left(&mut self, at: usize, digest: &Digest, now: Instant) {
        let conn = self.links[at].conn;
        let Some(remote) = self.links[at].leave(digest) else {
            return;
        };
        if let Some(artifact) = self.artifacts.iter_mut().find(|artifact| artifact.shape.digest() == *digest) {
            artifact.count(&remote.has, self.links[at].is_elsewhere, false);
        }
        self.settle(at, digest);
        self.slots.retain(|slot| slot.conn != conn || slot.digest != *digest);
        self.waiting.retain(|waiting| !waiting.is(conn, digest));
        self.serve(now);
        self.fill_all(now);
    }

    fn remote_has(&mut self, at: usize, digest: &Digest, pieces: &[u32], count: u32, now: Instant) {
        let mut artifact = self.artifacts.iter_mut().find(|artifact| artifact.shape.digest() == *digest);
        let is_elsewhere = self.links[at].is_elsewhere;
        let Some(remote) = self.links[at].remote_mut(digest) else {
            return;
        };
        remote.count = count.min(remote.has.len());
        for piece in pieces {
            if remote.has.insert(*piece)
                && let Some(artifact) = &mut artifact
            {
                artifact.count_piece(*piece, is_elsewhere, true);
            }
        }
        let (is_busy, count, conn) = (remote.ask_after > now, remote.count, self.links[at].conn);
        self.note_standing(conn, digest, count, None);
        match (self.held_back, is_busy) {
            (true, _) => {}
            (false, true) => self.await_slot(at, now),
            (false, false) => self.fill(at, now),
        }
    }

    /// Announces the pieces that verified since the last time: to neighbours that may want them, and to the gate those it leased.
    fn flush(&mut self) {
        self.flush_at = Instant::FAR;
        for artifact in &mut self.artifacts {
            let pieces = std::mem::take(&mut artifact.fresh);
            let (digest, count) = (artifact.shape.digest(), artifact.have.count());
            for chunk in pieces.chunks(MAX_LIST) {
                for link in self.links.iter() {
                    let Some(remote) = link.remote(&digest).filter(|_| link.role == Role::Node) else { continue };
                    // Nobody asks for what it has.
                    let lacks = |piece: &u32| !remote.has.contains(*piece);
                    let pieces: SmallVec<[u32; 4]> = chunk.iter().copied().filter(lacks).collect();
                    if !pieces.is_empty() {
                        self.outputs.push_back(Output::Send(link.conn, Message::Have { digest, pieces, count }));
                    }
                }
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        debug_assert!(self.is_consistent());
        let rate = std::mem::take(&mut self.received) as f64 / now.since(self.rated_at).as_secs_f64().max(0.01);
        self.rate_in = if self.rate_in < rate { rate } else { self.rate_in * 0.75 + rate * 0.25 };
        self.rated_at = now;
        self.precedence_in.look(self.is_bringing_rollback(), now);
        self.precedence_out.look(self.is_serving_rollback(), now);
        self.give_up_slow_requests(now);
        self.expire_slots(now);
        self.keep_company(now);
        if now >= self.tend_at {
            self.tend_links(now);
            self.look_elsewhere(now);
            self.tend_at = now + TEND;
        }
        self.fill_all(now);
        self.serve(now);
    }

    /// What is kept twice says the same twice.
    fn is_consistent(&self) -> bool {
        let asked: u64 = self.links.asked_bytes().iter().sum();
        let counted = |artifact: &Artifact<B>| {
            let mut availability = vec![0_u16; artifact.availability.len()];
            let mut near = availability.clone();
            for link in self.links.iter() {
                for piece in link.remote(&artifact.shape.digest()).into_iter().flat_map(|remote| remote.has.iter()) {
                    availability[piece as usize] += 1;
                    near[piece as usize] += u16::from(!link.is_elsewhere);
                }
            }
            availability == artifact.availability && artifact.outside.is_consistent(&near)
        };
        let agrees = |artifact: &Artifact<B>| {
            let digest = artifact.shape.digest();
            let asks = || self.links.iter().flat_map(|link| &link.asks).filter(|ask| ask.digest == digest);
            let bytes: u64 = asks().map(|ask| u64::from(ask.len)).sum();
            let agree = artifact.asked() == asks().count() && artifact.outstanding == bytes;
            artifact.is_consistent() && agree && counted(artifact)
        };
        asked == self.outstanding && self.artifacts.iter().all(agrees)
    }
}
