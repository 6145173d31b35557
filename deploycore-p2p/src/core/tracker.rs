//! The tracker: introduces the members of a region to each other.
//!
//! It holds soft state only. A member announces itself on connecting and from time to time; a tracker that starts empty knows
//! everyone again within one interval. The graph of introductions is random and about regular: each asks for as many peers as
//! it lacks, and those with the fewest introductions are named first.

mod standing;
mod swarm;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use deploycore::model::{Digest, friendly};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

pub use self::standing::{Ratios, SwarmStanding};
use self::swarm::{Member, Swarm};
use super::bound::Links;
use super::message::{Addr, Announcement, ConnId, Contact, MAX_ADDR, MAX_CONTACTS, Message, PeerId, Role, Zone};
use super::shape::Shape;
use super::time::Instant;

/// How a tracker behaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A member that is silent for this many announce intervals is forgotten.
    pub missed_announces: u32,
    /// A member whose connection ended is forgotten after this time unless it comes back.
    #[serde(with = "friendly")]
    pub grace: Duration,
    /// The same for a gate: its artifacts move to other gates then.
    #[serde(with = "friendly")]
    pub gate_grace: Duration,
    /// After this time of running the tracker believes that it has heard of everyone.
    #[serde(with = "friendly")]
    pub settle: Duration,
    /// How many announces a second one artifact's members may send together; the interval follows.
    pub announces_per_second: u32,
    /// The shortest interval between two announces of a member.
    #[serde(with = "friendly")]
    pub min_interval: Duration,
    /// The longest.
    #[serde(with = "friendly")]
    pub max_interval: Duration,
    /// The most members of one artifact.
    pub max_members: usize,
    /// The most artifacts.
    pub max_artifacts: usize,
    /// The most connections; those beyond are refused.
    pub max_links: usize,
    /// The links of the region, if known: how long fetches take is then told as a multiple of the least possible time too.
    pub links: Option<Links>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            missed_announces: 3,
            grace: Duration::from_secs(3),
            gate_grace: Duration::from_secs(10),
            settle: Duration::from_secs(5),
            announces_per_second: 2_000,
            min_interval: Duration::from_secs(1),
            max_interval: Duration::from_mins(1),
            max_members: 500_000,
            max_artifacts: 4_096,
            max_links: 131_072,
            links: None,
        }
    }
}

/// What happens to a tracker.
#[derive(Debug, Clone)]
pub enum Input {
    /// A member connected and said hello.
    Connected {
        /// The connection.
        conn: ConnId,
        /// Who.
        peer: PeerId,
        /// What it is.
        role: Role,
        /// Where it is, if it says.
        zone: Option<Zone>,
        /// The host that it connects from, which replaces an unspecified one in the address that it announces.
        host: String,
    },
    /// A connection ended.
    Disconnected(ConnId),
    /// A message came.
    Message(ConnId, Message),
    /// The instant of [`Tracker::poll_timeout`] has come.
    Timeout,
}

/// What a tracker wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a message.
    Send(ConnId, Message),
    /// End a connection, for this reason.
    Close(ConnId, String),
}

#[derive(Debug)]
struct Client {
    peer: PeerId,
    role: Role,
    zone: Option<Zone>,
    host: String,
}

#[derive(Debug)]
struct KnownGate {
    contact: Contact,
    conn: ConnId,
    /// Set when its connection ended.
    gone_at: Option<Instant>,
}

/// The tracker's state machine.
#[derive(Debug)]
pub struct Tracker {
    settings: Settings,
    rng: Rng,
    clients: BTreeMap<ConnId, Client>,
    swarms: BTreeMap<Digest, Swarm>,
    gates: Vec<KnownGate>,
    started: Instant,
    sweep_at: Instant,
    outputs: VecDeque<Output>,
}

impl Tracker {
    /// A tracker that knows nobody.
    pub fn new(settings: Settings, rng: Rng, now: Instant) -> Self {
        Self {
            settings,
            rng,
            clients: BTreeMap::new(),
            swarms: BTreeMap::new(),
            gates: Vec::new(),
            started: now,
            sweep_at: now + Duration::from_millis(500),
            outputs: VecDeque::new(),
        }
    }

    /// Takes an input. Outputs are polled until there is none before the next.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Connected { conn, role: Role::Tracker, .. } => self.close(conn, "a tracker has no use for another"),
            Input::Connected { conn, .. } if self.clients.len() >= self.settings.max_links => {
                self.close(conn, "too many connections");
            }
            Input::Connected { conn, peer, role, zone, host } => {
                self.clients.insert(conn, Client { peer, role, zone, host });
                let gates = self.contacts();
                if !gates.is_empty() {
                    self.outputs.push_back(Output::Send(conn, Message::Gates { gates }));
                }
            }
            Input::Disconnected(conn) => self.disconnected(conn, now),
            Input::Message(conn, message) => self.message(conn, message, now),
            Input::Timeout => {}
        }
        if now >= self.sweep_at {
            self.sweep(now);
            self.sweep_at = now + Duration::from_millis(500);
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        self.sweep_at
    }

    /// Artifacts and members known, for people.
    pub fn census(&self) -> (usize, usize) {
        (self.swarms.len(), self.swarms.values().map(|swarm| swarm.members.len()).sum())
    }

    /// How far the region is with each artifact, for people.
    pub fn standings(&self, now: Instant) -> Vec<SwarmStanding> {
        self.swarms.values().map(|swarm| swarm.standing(self.settings.links.as_ref(), now)).collect()
    }

    /// The gates known, for people.
    pub fn gates(&self) -> usize {
        self.gates.len()
    }

    fn contacts(&self) -> Vec<Contact> {
        self.gates.iter().map(|gate| gate.contact.clone()).collect()
    }

    fn tell_gates(&mut self) {
        let gates = self.contacts();
        for conn in self.clients.keys() {
            self.outputs.push_back(Output::Send(*conn, Message::Gates { gates: gates.clone() }));
        }
    }

    fn message(&mut self, conn: ConnId, message: Message, now: Instant) {
        let Some(client) = self.clients.get(&conn) else {
            return;
        };
        match (client.role, message) {
            (Role::Node, Message::Announce(part)) => {
                let Announcement { digest, size, addr, have, need, wanted, standing } = *part;
                let Some(addr) = reachable(&addr, &client.host) else {
                    return self.close(conn, "an address that is too long");
                };
                let contact = Contact { peer: client.peer, addr };
                let claimed = Shape::claimed(digest, size);
                match claimed.and_then(|shape| Some((shape, have.unpack(shape.pieces())?))) {
                    Some((shape, have)) => {
                        let zone = client.zone;
                        let member = Member {
                            contact,
                            conn,
                            zone,
                            have,
                            standing,
                            heard: now,
                            expires: now,
                            degree: 0,
                            in_zone: 0,
                        };
                        self.announce(shape, member, &need, wanted);
                    }
                    None => self.close(conn, "an announce whose pieces do not fit the artifact's size"),
                }
            }
            (Role::Node, Message::Withdraw { digest }) => {
                let peer = client.peer;
                if let Some(swarm) = self.swarms.get_mut(&digest) {
                    swarm.forget(peer, self.settings.max_members);
                }
            }
            (Role::Gate, Message::GateHere { addr }) => match reachable(&addr, &client.host) {
                Some(addr) => self.gate_here(conn, Contact { peer: client.peer, addr }),
                None => self.close(conn, "an address that is too long"),
            },
            (Role::Gate, Message::Census { digest, pieces, except }) => {
                let (swarm, stale) = (self.swarms.get(&digest), self.interval(&digest));
                let count = |piece| swarm.map_or(0, |swarm| swarm.holders_except(piece, &except));
                let pieces = pieces.into_iter().map(|piece| (piece, count(piece))).collect();
                let settled = now.since(self.started) >= self.settings.settle;
                let stale_millis = stale.as_millis() as u32;
                let answer = Message::Holders { digest, pieces, stale_millis, settled };
                self.outputs.push_back(Output::Send(conn, answer));
            }
            (_, Message::Ping) => {}
            (role, other) => self.close(conn, format!("a {role:?} sent {other:?} to a tracker")),
        }
    }

    fn close(&mut self, conn: ConnId, reason: impl Into<String>) {
        let mut reason = reason.into();
        reason.truncate(reason.floor_char_boundary(200));
        self.outputs.push_back(Output::Close(conn, reason));
    }

    /// Nobody is introduced, for long: a connection that was ended would only come back at once.
    fn turn_away(&mut self, conn: ConnId, digest: Digest, reason: &str) {
        tracing::warn!(%conn, digest = %digest.short(), reason, "an announce is turned away");
        let millis = self.settings.max_interval.as_millis() as u32;
        self.outputs
            .push_back(Output::Send(conn, Message::Introduce { digest, peers: Vec::new(), millis, part: None }));
    }

    fn gate_here(&mut self, conn: ConnId, contact: Contact) {
        // Said again on one connection it is no news; each word of it goes to all.
        if self.gates.iter().any(|gate| gate.conn == conn && gate.contact == contact) {
            return;
        }
        self.gates.retain(|gate| gate.contact.peer != contact.peer);
        if self.gates.len() >= MAX_CONTACTS {
            return self.close(conn, "more gates than a region may have");
        }
        self.gates.push(KnownGate { contact, conn, gone_at: None });
        // Told to all again even when it did not move: whoever lost its connection tries anew at once.
        self.tell_gates();
    }

    /// How long a member may wait between two announces of an artifact.
    fn interval(&self, digest: &Digest) -> Duration {
        let members = self.swarms.get(digest).map_or(0, |swarm| swarm.members.len());
        let millis = members as u64 * 1000 / u64::from(self.settings.announces_per_second.max(1));
        Duration::from_millis(millis).clamp(self.settings.min_interval, self.settings.max_interval)
    }

    fn announce(&mut self, shape: Shape, member: Member, need: &[u32], wanted: u16) {
        let (digest, conn, peer) = (shape.digest(), member.conn, member.contact.peer);
        if !self.swarms.contains_key(&digest) && self.swarms.len() >= self.settings.max_artifacts {
            return self.turn_away(conn, digest, "more artifacts than this tracker keeps");
        }
        let expires = member.heard + self.interval(&digest) * self.settings.missed_announces.max(2);
        let swarm = self.swarms.entry(digest).or_insert_with(|| Swarm::new(shape));
        if swarm.shape != shape {
            return self.turn_away(conn, digest, "another size for an artifact");
        }
        if !swarm.index.contains_key(&peer) && swarm.members.len() >= self.settings.max_members {
            return self.turn_away(conn, digest, "more members than this tracker keeps");
        }
        swarm.note(Member { expires, ..member });
        let peers = swarm.introduce(peer, need, usize::from(wanted).min(MAX_CONTACTS), &mut self.rng);
        let part = swarm.part(peer);
        let millis = self.interval(&digest).as_millis() as u32;
        self.outputs.push_back(Output::Send(conn, Message::Introduce { digest, peers, millis, part }));
    }

    fn disconnected(&mut self, conn: ConnId, now: Instant) {
        let Some(client) = self.clients.remove(&conn) else {
            return;
        };
        let forget_at = now + self.settings.grace;
        for swarm in self.swarms.values_mut() {
            if let Some(at) = swarm.index.get(&client.peer) {
                let member = &mut swarm.members[*at];
                if member.conn == conn {
                    member.expires = member.expires.min(forget_at);
                }
            }
        }
        for gate in self.gates.iter_mut().filter(|gate| gate.conn == conn) {
            gate.gone_at = Some(now);
        }
    }

    /// Forgets those whose time is over.
    fn sweep(&mut self, now: Instant) {
        for swarm in self.swarms.values_mut() {
            let silent: Vec<PeerId> =
                swarm.members.iter().filter(|member| member.expires <= now).map(|member| member.contact.peer).collect();
            for peer in silent {
                swarm.forget(peer, self.settings.max_members);
            }
        }
        self.swarms.retain(|_, swarm| !swarm.members.is_empty());
        let before = self.gates.len();
        let grace = self.settings.gate_grace;
        self.gates.retain(|gate| gate.gone_at.is_none_or(|gone| now.since(gone) < grace));
        if self.gates.len() != before {
            self.tell_gates();
        }
    }
}

/// The address that others can use: a member that listens everywhere is found where it connects from. `None` if nobody could be told of it:
/// a message with such an address is malformed.
fn reachable(addr: &Addr, host: &str) -> Option<Addr> {
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let addr = match addr.0.strip_prefix("0.0.0.0:").or_else(|| addr.0.strip_prefix("[::]:")) {
        Some(port) => Addr::from(format!("{bracketed}:{port}")),
        None => addr.clone(),
    };
    (addr.0.len() <= MAX_ADDR).then_some(addr)
}

#[cfg(test)]
mod tests;
