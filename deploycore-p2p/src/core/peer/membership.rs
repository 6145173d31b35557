//! Whom a node knows: trackers, gates, neighbours.

use std::collections::BTreeSet;
use std::time::Duration;

use deploycore::model::Digest;

use super::artifact::Artifact;
use super::link::Link;
use super::{Output, Peer};
use crate::core::bitfield::PackedBits;
use crate::core::gate::rendezvous;
use crate::core::message::{Addr, Announcement, ConnId, Contact, Message, Payload, PeerId, Role, Standing, Waiting};
use crate::core::time::Instant;

/// An address that is dialed, or was. It is kept while its connection is young: one that is accepted and closed at once counts as
/// dialed in vain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dial {
    role: Role,
    /// Which node is there, as the tracker says.
    peer: Option<PeerId>,
    /// How often in a row no connection came about, or each was closed at once.
    failures: u32,
    /// How often in a row no connection came about.
    unreached: u32,
    state: DialState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DialState {
    /// Not dialed again before.
    Waits(Instant),
    UnderWay,
    Connected,
}

impl Dial {
    fn is_under_way(&self) -> bool {
        self.state == DialState::UnderWay
    }
}

/// After the first failure; it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// Trackers and gates are dialed at least this often...
const MAX_RETRY: Duration = Duration::from_secs(2);
/// ...but a gate that answers and closes each time. It has as many readers as it takes, and a handshake with all others every second
/// would be its whole work.
const MAX_REFUSED_RETRY: Duration = Duration::from_mins(1);
/// A connection that lasted this long, or brought something, was not in vain.
const STEADY: Duration = Duration::from_secs(5);
/// An address at which a member answered that is connected already is not dialed again before.
const ALIAS_RETRY: Duration = Duration::from_mins(1);
/// Without neighbours or gate the tracker is asked this often.
const LONELY: Duration = Duration::from_millis(500);
/// Asked again of a gate that does not serve the artifact.
const ABSENT_RETRY: Duration = Duration::from_millis(500);
/// A connection says something at least this often.
const PING: Duration = Duration::from_secs(10);
/// Blocks that came unasked and are forgiven each second.
const FORGIVEN: u32 = 4;
/// Pieces named in one call for help.
const MAX_NEED: usize = 256;
/// Members that are named with it: in quarantine, out of reach, or who did not give what they said they have.
const MAX_REFUSED: usize = 32;
/// Vain attempts to connect after which a member is out of reach: what only it has, has to come from elsewhere.
const BEYOND_REACH: u32 = 3;
/// How long a node that was dialed in vain is remembered; the tracker names it again meanwhile if it still announces itself.
const VAIN_MEMORY: Duration = Duration::from_secs(10);
/// Addresses remembered as unreachable.
const MAX_DIALS: usize = 1_024;

impl<B: Payload> Peer<B> {
    pub(super) fn connected(&mut self, link: Link, now: Instant) {
        let old = match self.welcome(&link) {
            Ok(old) => old,
            Err((reason, retry)) => {
                self.outputs.push_back(Output::Close(link.conn, reason.to_owned()));
                if let Some(addr) = &link.dialed {
                    self.dial_failed(addr, now);
                    if let (Some(retry), Some(dial)) = (retry, self.dials.get_mut(addr)) {
                        dial.state = DialState::Waits(now + retry);
                    }
                }
                return;
            }
        };
        if let Some(dial) = link.dialed.as_ref().and_then(|addr| self.dials.get_mut(addr)) {
            if dial.unreached > 0 {
                (dial.failures, dial.unreached) = (0, 0);
            }
            dial.state = DialState::Connected;
        }
        let (role, conn) = (link.role, link.conn);
        self.links.push(link);
        // Only now: its address is not to be dialed again.
        if let Some(old) = old {
            self.close(old, "a newer connection takes its place", now);
        }
        match role {
            Role::Node => (0..self.artifacts.len()).for_each(|at| self.send_join(conn, at)),
            Role::Tracker => (0..self.artifacts.len()).for_each(|at| self.announce_to(conn, at, now)),
            Role::Gate => self.join_gates(now),
        }
    }

    /// Whether a connection is taken, and in place of which older one; if not, why, and when to dial again unless soon.
    fn welcome(&self, link: &Link) -> Result<Option<ConnId>, (&'static str, Option<Duration>)> {
        // Whoever dials this node may say of itself what it likes: only where a tracker or a gate was expected is one believed.
        let expected = link.dialed.as_ref().and_then(|addr| self.dials.get(addr)).map_or(Role::Node, |dial| dial.role);
        if link.role != expected {
            return Err(("its role is another than expected", None));
        }
        if link.peer == self.id {
            return Err(("it is this node itself", None));
        }
        if self.quarantine.contains_key(&link.peer) {
            return Err(("it sent bad bytes before", None));
        }
        let mut replaced = None;
        for old in self.links.iter().filter(|old| old.peer == link.peer && old.role == link.role) {
            // Two connections between two lives: both sides keep the one that the smaller id dialed. A connection to an
            // earlier life is dead, whatever the network says.
            let keeps = |link: &Link| link.dialed.is_some() == (self.id < link.peer);
            let same_way = old.dialed.is_some() == link.dialed.is_some();
            let same_life = old.incarnation == link.incarnation;
            if same_life && !same_way && keeps(old) {
                return Err(("there is a connection already", None));
            }
            if same_life && link.dialed.is_some() && same_way {
                return Err(("it is connected under another address", Some(ALIAS_RETRY)));
            }
            // Two trackers that were given one name are two.
            if link.role != Role::Tracker || old.dialed == link.dialed {
                replaced = Some(old.conn);
            }
        }
        let nodes = self.links.iter().filter(|link| link.role == Role::Node).count();
        if link.role == Role::Node && replaced.is_none() && nodes >= self.settings.max_links {
            return Err(("too many connections", None));
        }
        Ok(replaced)
    }

    pub(super) fn disconnected(&mut self, conn: ConnId, now: Instant) {
        let Some(at) = self.link_at(conn) else {
            return;
        };
        let digests: Vec<Digest> = self.artifacts.iter().map(|artifact| artifact.shape.digest()).collect();
        for digest in &digests {
            self.settle(at, digest);
        }
        let rest = self.links.take_asks(at, |_| true);
        self.outstanding -= rest.iter().map(|ask| u64::from(ask.len)).sum::<u64>();
        let link = self.links.swap_remove(at);
        if link.role == Role::Tracker {
            self.gates.disconnected(conn, now);
        }
        let dialed = link.dialed.as_ref();
        if let Some(addr) = dialed.filter(|_| !self.links.iter().any(|other| other.dialed.as_ref() == dialed)) {
            if now.since(link.opened) >= STEADY || link.useful > link.opened {
                self.dials.remove(addr);
            } else {
                self.dial_failed(addr, now);
            }
        }
        for remote in &link.remotes {
            if let Some(artifact) = self.artifacts.iter_mut().find(|artifact| artifact.shape == remote.shape) {
                artifact.count(&remote.has, link.is_elsewhere, false);
            }
        }
        self.slots.retain(|slot| slot.conn != conn);
        self.waiting.retain(|waiting| waiting.conn != conn);
        self.serve(now);
        self.fill_all(now);
        self.dial_missing(now);
    }

    pub(super) fn dial_failed(&mut self, addr: &Addr, now: Instant) {
        let jitter = self.rng.f64();
        if let Some(dial) = self.dials.get_mut(addr) {
            dial.failures += 1;
            let is_refused = dial.role == Role::Gate && dial.unreached == 0;
            let longest = if is_refused { MAX_REFUSED_RETRY } else { MAX_RETRY };
            let delay = (FIRST_RETRY * (1 << dial.failures.min(11))).min(longest);
            dial.state = DialState::Waits(now + delay.mul_f64(0.5 + 0.5 * jitter));
        }
    }

    /// No connection came about: nobody is there, something is between, or one end does not trust the other.
    pub(super) fn unreached(&mut self, addr: &Addr, now: Instant) {
        if let Some(dial) = self.dials.get_mut(addr) {
            dial.unreached = dial.unreached.saturating_add(1);
        }
        self.dial_failed(addr, now);
    }

    fn dial(&mut self, addr: &Addr, role: Role, peer: Option<PeerId>, now: Instant) {
        let known = self.links.iter().any(|link| link.role == role && link.dialed.as_ref() == Some(addr));
        if known || (self.dials.len() >= MAX_DIALS && !self.dials.contains_key(addr)) {
            return;
        }
        let dial = self.dials.entry(addr.clone()).or_insert(Dial {
            role,
            peer,
            failures: 0,
            unreached: 0,
            state: DialState::Waits(now),
        });
        if dial.peer != peer {
            // Another has the address now.
            (dial.peer, dial.unreached) = (peer, 0);
        }
        if matches!(dial.state, DialState::Waits(until) if until <= now) {
            *dial = Dial { role, state: DialState::UnderWay, ..*dial };
            self.outputs.push_back(Output::Connect(addr.clone(), role));
        }
    }

    /// Dials trackers and gates that should be connected and are not.
    pub(super) fn dial_missing(&mut self, now: Instant) {
        for addr in self.trackers.clone() {
            self.dial(&addr, Role::Tracker, None, now);
        }
        self.join_gates(now);
    }

    /// Takes part at the gate that decides for each artifact that is being fetched.
    pub(super) fn join_gates(&mut self, now: Instant) {
        if !self.settings.reads_store {
            return;
        }
        for at in 0..self.artifacts.len() {
            let artifact = &self.artifacts[at];
            if artifact.have.is_full() || artifact.joined_gate.is_some() || artifact.absent_until > now {
                continue;
            }
            let Some(gate) = rendezvous(&artifact.shape.digest(), self.gates.all()).cloned() else {
                continue;
            };
            match self.links.iter().find(|link| link.role == Role::Gate && link.peer == gate.peer).map(|link| link.conn)
            {
                Some(conn) => {
                    self.artifacts[at].joined_gate = Some(conn);
                    self.artifacts[at].drained = false;
                    self.send_join(conn, at);
                }
                None => self.dial(&gate.addr, Role::Gate, None, now),
            }
        }
    }

    pub(super) fn gates_told(&mut self, tracker: ConnId, gates: Vec<Contact>, now: Instant) {
        for (addr, dial) in &mut self.dials {
            // A tracker that names a gate has heard of it a moment ago: no backoff.
            if gates.iter().any(|gate| gate.addr == *addr) && matches!(dial.state, DialState::Waits(_)) {
                dial.state = DialState::Waits(now);
            }
        }
        self.gates.told(tracker, gates, now);
        self.join_those_that_decide(now);
    }

    /// An artifact may be decided for by another gate now.
    fn join_those_that_decide(&mut self, now: Instant) {
        for at in 0..self.artifacts.len() {
            let decides = rendezvous(&self.artifacts[at].shape.digest(), self.gates.all()).map(|gate| gate.peer);
            let Some(conn) = self.artifacts[at].joined_gate else { continue };
            let joined = self.links.of(conn).map(|link| link.peer);
            if decides.is_some() && decides != joined {
                let digest = self.artifacts[at].shape.digest();
                if let Some(link) = self.link_at(conn) {
                    self.settle(link, &digest);
                }
                self.send(conn, Message::Leave { digest });
            }
        }
        self.join_gates(now);
    }

    /// The gate does not serve the artifact, now.
    pub(super) fn gate_lacks(&mut self, digest: &Digest, now: Instant) {
        if let Some(at) = self.artifact_at(digest) {
            self.artifacts[at].joined_gate = None;
            self.artifacts[at].absent_until = now + ABSENT_RETRY;
        }
    }

    /// Peers to connect to.
    pub(super) fn introduced(&mut self, digest: &Digest, peers: &[Contact], interval: Duration, now: Instant) {
        let Some(at) = self.artifact_at(digest) else {
            return;
        };
        let lonely = !self.artifacts[at].have.is_full() && self.neighbours(digest) == 0 && peers.is_empty();
        // A tracker that has no room says so by a long interval: it is asked sooner, but not as if it had.
        let interval = if lonely { interval.min(LONELY.max(interval / 16)) } else { interval };
        self.artifacts[at].announce_at = now + interval.mul_f64(0.9 + 0.1 * self.rng.f64());
        for contact in peers {
            let known = contact.peer == self.id
                || self.quarantine.contains_key(&contact.peer)
                || self.links.iter().any(|link| link.role == Role::Node && link.peer == contact.peer);
            let dialing = self.dials.values().filter(|dial| dial.role == Role::Node && dial.is_under_way()).count();
            let nodes = self.links.iter().filter(|link| link.role == Role::Node).count();
            if !known && nodes + dialing < self.settings.max_links {
                self.dial(&contact.addr, Role::Node, Some(contact.peer), now);
            }
        }
    }

    fn neighbours(&self, digest: &Digest) -> usize {
        self.links.iter().filter(|link| link.role == Role::Node && link.remote(digest).is_some()).count()
    }

    /// Announces an artifact to all trackers.
    pub(super) fn announce(&mut self, at: usize, now: Instant) {
        let trackers: Vec<ConnId> =
            self.links.iter().filter(|link| link.role == Role::Tracker).map(|link| link.conn).collect();
        // Until a tracker answers; its answer sets the interval.
        self.artifacts[at].announce_at = now + Duration::from_secs(2);
        for conn in trackers {
            self.announce_to(conn, at, now);
        }
    }

    fn announce_to(&mut self, conn: ConnId, at: usize, now: Instant) {
        let artifact = &self.artifacts[at];
        let (digest, size) = (artifact.shape.digest(), artifact.shape.size());
        let complete = artifact.have.is_full();
        let need = if self.needs_holders(artifact) { self.starved(artifact) } else { Vec::new() };
        let half = usize::from(self.settings.degree / 2).max(1);
        let wanted = if complete { 0 } else { half.saturating_sub(self.neighbours(&digest)) as u16 };
        let have = PackedBits::from(&artifact.have);
        let standing = Standing { waiting: self.waiting_for(artifact), ..artifact.standing(now) };
        let addr = self.addr.clone();
        let part = Announcement { digest, size, addr, have, need, wanted, standing };
        self.send(conn, Message::Announce(Box::new(part)));
    }

    /// Whether it is time to look for holders of pieces that no neighbour has. At first that is so of most pieces, and they come by
    /// themselves; if everyone looked then, everyone would end with as many neighbours as it may have. With thirty random neighbours, less
    /// than one piece in a thousand is with none when everyone has a quarter.
    fn needs_holders(&self, artifact: &Artifact<B>) -> bool {
        let has_a_quarter = artifact.have.count() >= artifact.have.len() / 4;
        match artifact.joined_gate {
            Some(_) => artifact.drained && (has_a_quarter || !self.is_asking(&artifact.shape.digest())),
            None => has_a_quarter,
        }
    }

    /// Missing pieces that no neighbour gives: none has them and nobody is bringing them, or none that has them gave them when it was asked.
    fn starved(&self, artifact: &Artifact<B>) -> Vec<u32> {
        let digest = artifact.shape.digest();
        let gives = |piece: u32, link: &Link| {
            let has = link.remote(&digest).is_some_and(|remote| remote.has.contains(piece));
            has && !artifact.withheld.contains(&(piece, link.peer))
        };
        let gate = |piece: u32| {
            artifact.is_leased(piece)
                || artifact.begun_at(piece).is_some_and(|at| {
                    let begun = &artifact.begun[at];
                    begun.storing || begun.source.is_some_and(|source| self.links.is_gate(source))
                })
        };
        let mut withheld: Vec<u32> = artifact.withheld.iter().map(|(piece, _)| *piece).collect();
        withheld.dedup();
        withheld.retain(|piece| !gate(*piece) && !self.links.iter().any(|link| gives(*piece, link)));
        let nowhere = artifact.nowhere().filter(|piece| !withheld.contains(piece));
        let room = MAX_NEED.saturating_sub(withheld.len());
        let nowhere: Vec<u32> = nowhere.take(room).collect();
        withheld.into_iter().chain(nowhere).take(MAX_NEED).collect()
    }

    fn is_asking(&self, digest: &Digest) -> bool {
        self.links.iter().any(|link| link.asks.iter().any(|ask| ask.digest == *digest))
    }

    /// All pieces are here: the tracker learns of a new seed, the gate of a reader less.
    pub(super) fn completed(&mut self, at: usize, now: Instant) {
        let artifact = &mut self.artifacts[at];
        artifact.took = artifact.took.or(Some(now.since(artifact.since)));
        let digest = artifact.shape.digest();
        if let Some(conn) = artifact.joined_gate.take() {
            self.send(conn, Message::Leave { digest });
        }
        self.announce(at, now);
        // Batches leave out what a neighbour has; at the end all are told the whole.
        let nodes: Vec<ConnId> =
            self.links.iter().filter(|link| link.role == Role::Node).map(|link| link.conn).collect();
        for conn in nodes {
            self.send_join(conn, at);
        }
        self.fill_all(now);
    }

    /// What a slow timer looks after: announces, dials, calls for help.
    pub(super) fn keep_company(&mut self, now: Instant) {
        for at in 0..self.artifacts.len() {
            if self.artifacts[at].announce_at <= now {
                self.announce(at, now);
            }
            self.call_for_help(at, now);
        }
        if self.gates.forget(now) {
            self.join_those_that_decide(now);
        }
        self.dial_missing(now);
        // What was dialed in vain is remembered for a while, so that it can be told that it is out of reach.
        let memory = if self.dials.len() < MAX_DIALS / 2 { VAIN_MEMORY } else { Duration::ZERO };
        let expired = |dial: &Dial| {
            let memory = if dial.unreached > 0 { memory } else { Duration::ZERO };
            matches!(dial.state, DialState::Waits(until) if until + memory <= now)
        };
        self.dials.retain(|_, dial| dial.role != Role::Node || !expired(dial));
    }

    /// What a slower one does: who was refused may come again, what came unasked is forgiven, connections that serve no purpose are closed,
    /// and the others say something.
    pub(super) fn tend_links(&mut self, now: Instant) {
        self.quarantine.retain(|_, until| *until > now);
        let idle: Vec<ConnId> =
            self.links.iter().filter(|link| self.is_idle(link, now)).map(|link| link.conn).collect();
        for conn in idle {
            self.close(conn, "idle", now);
        }
        for link in self.links.iter_mut() {
            link.unasked = link.unasked.saturating_sub(FORGIVEN);
            if now.since(link.pinged) >= PING {
                link.pinged = now;
                self.outputs.push_back(Output::Send(link.conn, Message::Ping));
            }
        }
    }

    /// Nobody asks anything of it, and nobody will: for no artifact does one side have what the other lacks.
    fn is_idle(&self, link: &Link, now: Instant) -> bool {
        if now.since(link.useful) < self.settings.idle {
            return false;
        }
        match link.role {
            Role::Tracker => false,
            Role::Gate => !self.artifacts.iter().any(|artifact| artifact.joined_gate == Some(link.conn)),
            Role::Node => link.remotes.iter().all(|remote| {
                let own = self.artifact(&remote.shape.digest());
                own.is_none_or(|artifact| artifact.have.is_full() && remote.has.is_full())
            }),
        }
    }

    /// Pieces that are with no neighbour, once the gate has nothing left to lease, are asked of the gate and the tracker.
    fn call_for_help(&mut self, at: usize, now: Instant) {
        let artifact = &self.artifacts[at];
        let starved = if artifact.drained { self.starved(artifact) } else { Vec::new() };
        let artifact = &mut self.artifacts[at];
        if starved.is_empty() {
            artifact.starved_since = None;
            return;
        }
        let since = *artifact.starved_since.get_or_insert(now);
        if now.since(since) < self.settings.stuck_after {
            return;
        }
        artifact.starved_since = Some(now);
        artifact.announce_at = artifact.announce_at.min(now + self.settings.stuck_after);
        if let Some(conn) = artifact.joined_gate {
            let digest = artifact.shape.digest();
            let beyond_reach = self.dials.values().filter(|dial| dial.unreached >= BEYOND_REACH);
            let unreached = beyond_reach.filter_map(|dial| dial.peer);
            let withheld = artifact.withheld.iter().filter(|(piece, _)| starved.contains(piece)).map(|(_, peer)| *peer);
            let refused: BTreeSet<PeerId> = self.quarantine.keys().copied().chain(unreached).chain(withheld).collect();
            let refused = refused.into_iter().take(MAX_REFUSED).collect();
            self.send(conn, Message::Stuck { digest, pieces: starved, refused });
        }
    }

    /// Why nothing moves, when nothing moves.
    pub(super) fn waiting_for(&self, artifact: &Artifact<B>) -> Option<Waiting> {
        let digest = artifact.shape.digest();
        let storing = artifact.begun.iter().any(|begun| begun.storing);
        if artifact.have.is_full() || self.is_asking(&digest) || storing {
            return None;
        }
        let missing = artifact.shape.pieces() - artifact.have.count();
        let peers = self.neighbours(&digest);
        let tracker = self.links.iter().any(|link| link.role == Role::Tracker);
        Some(if peers == 0 && !tracker && artifact.joined_gate.is_none() {
            Waiting::Tracker
        } else if self.settings.reads_store && self.gates.all().is_empty() && peers == 0 {
            Waiting::Gate
        } else if self.settings.reads_store && artifact.joined_gate.is_none() && artifact.absent_until > Instant::ZERO {
            Waiting::Artifact
        } else if self.settings.reads_store && artifact.joined_gate.is_none() {
            Waiting::GateConnection
        } else {
            Waiting::Pieces { missing, peers: peers as u32 }
        })
    }

    /// Whether a member is refused for bad bytes.
    pub fn is_quarantined(&self, peer: PeerId) -> bool {
        self.quarantine.contains_key(&peer)
    }
}
