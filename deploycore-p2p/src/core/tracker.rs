//! The tracker: introduces the members of a region to each other.
//!
//! It holds soft state only. A member announces itself on connecting and from time to time; a tracker that starts empty knows
//! everyone again within one interval. The graph of introductions is random and about regular: each asks for as many peers as
//! it lacks, and those with the fewest introductions are named first.

mod standing;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use deploycore::model::{Digest, friendly};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use self::standing::Gone;
pub use self::standing::{Ratios, SwarmStanding};
use super::bitfield::Bitfield;
use super::bound::Links;
use super::message::{Addr, ConnId, Contact, MAX_CONTACTS, Message, PeerId, Role, Standing};
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
    host: String,
}

#[derive(Debug)]
struct Member {
    contact: Contact,
    conn: ConnId,
    have: Bitfield,
    standing: Standing,
    heard: Instant,
    /// When it is forgotten unless it is heard of.
    expires: Instant,
    /// Introductions it is part of, as far as known.
    degree: u16,
}

#[derive(Debug)]
struct Swarm {
    shape: Shape,
    members: Vec<Member>,
    index: BTreeMap<PeerId, usize>,
    /// How many members hold each piece.
    holders: Vec<u32>,
    gone: Gone,
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

/// How many members at most are looked at for one introduction.
const SCAN: usize = 2_048;

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
            Input::Connected { conn, peer, role, host } => {
                self.clients.insert(conn, Client { peer, role, host });
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
            (Role::Node, Message::Announce { digest, size, addr, have, need, wanted, standing }) => {
                let contact = Contact { peer: client.peer, addr: reachable(&addr, &client.host) };
                let claimed = Shape::claimed(digest, size);
                match claimed.and_then(|shape| Some((shape, have.unpack(shape.pieces())?))) {
                    Some((shape, have)) => {
                        let member = Member { contact, conn, have, standing, heard: now, expires: now, degree: 0 };
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
            (Role::Gate, Message::GateHere { addr }) => {
                let contact = Contact { peer: client.peer, addr: reachable(&addr, &client.host) };
                self.gate_here(conn, contact);
            }
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
        self.outputs.push_back(Output::Send(conn, Message::Introduce { digest, peers: Vec::new(), millis }));
    }

    fn gate_here(&mut self, conn: ConnId, contact: Contact) {
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
        let millis = self.interval(&digest).as_millis() as u32;
        self.outputs.push_back(Output::Send(conn, Message::Introduce { digest, peers, millis }));
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

/// The address that others can use: a member that listens everywhere is found where it connects from.
fn reachable(addr: &Addr, host: &str) -> Addr {
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    match addr.0.strip_prefix("0.0.0.0:").or_else(|| addr.0.strip_prefix("[::]:")) {
        Some(port) => Addr::from(format!("{bracketed}:{port}")),
        None => addr.clone(),
    }
}

impl Swarm {
    fn new(shape: Shape) -> Self {
        Self {
            shape,
            members: Vec::new(),
            index: BTreeMap::new(),
            holders: vec![0; shape.pieces() as usize],
            gone: Gone::new(),
        }
    }

    fn note(&mut self, member: Member) {
        self.gone.remove(&member.contact.peer);
        if let Some(at) = self.index.get(&member.contact.peer) {
            let known = &mut self.members[*at];
            known.have.minus(&member.have).for_each(|piece| self.holders[piece as usize] -= 1);
            member.have.minus(&known.have).for_each(|piece| self.holders[piece as usize] += 1);
            let degree = known.degree;
            *known = Member { degree, ..member };
        } else {
            member.have.iter().for_each(|piece| self.holders[piece as usize] += 1);
            self.index.insert(member.contact.peer, self.members.len());
            self.members.push(member);
        }
    }

    fn holders_except(&self, piece: u32, except: &[PeerId]) -> u32 {
        let holds = |peer: &&PeerId| self.index.get(peer).is_some_and(|at| self.members[*at].have.contains(piece));
        let all = self.holders.get(piece as usize).copied().unwrap_or(0);
        all.saturating_sub(except.iter().filter(holds).count() as u32)
    }

    /// One that fetched all of it still counts among those that did, for as many as `max_gone`.
    fn forget(&mut self, peer: PeerId, max_gone: usize) {
        let Some(at) = self.index.remove(&peer) else {
            return;
        };
        let member = self.members.swap_remove(at);
        if member.have.is_full() && member.standing.millis.is_some() && self.gone.len() < max_gone {
            self.gone.insert(peer, member.standing);
        }
        member.have.iter().for_each(|piece| self.holders[piece as usize] -= 1);
        if let Some(moved) = self.members.get(at) {
            self.index.insert(moved.contact.peer, at);
        }
    }

    /// Up to `wanted` members for `peer`, and beyond that a few that hold what it needs.
    fn introduce(&mut self, peer: PeerId, need: &[u32], wanted: usize, rng: &mut Rng) -> Vec<Contact> {
        let own = self.index[&peer];
        let mut chosen: Vec<usize> = Vec::new();
        if !need.is_empty() {
            let start = rng.usize(..self.members.len());
            let scanned = (0..self.members.len().min(SCAN)).map(|step| (start + step) % self.members.len());
            let holds = |at: &usize| *at != own && need.iter().any(|piece| self.members[*at].have.contains(*piece));
            chosen.extend(scanned.filter(holds).take(8));
        }
        if self.members.len() <= wanted + 1 {
            chosen.extend((0..self.members.len()).filter(|at| *at != own));
        } else {
            let len = self.members.len();
            let mut sample: Vec<usize> = match len {
                len if len <= wanted * 4 => (0..len).collect(),
                _ => (0..wanted * 3).map(|_| rng.usize(..len)).collect(),
            };
            sample.sort_unstable();
            sample.dedup();
            sample.retain(|at| *at != own);
            rng.shuffle(&mut sample);
            sample.sort_by_key(|at| self.members[*at].degree);
            chosen.extend(sample.into_iter().take(wanted));
        }
        chosen.sort_unstable();
        chosen.dedup();
        rng.shuffle(&mut chosen);
        chosen.truncate(MAX_CONTACTS);
        for at in &chosen {
            self.members[*at].degree = self.members[*at].degree.saturating_add(1);
        }
        self.members[own].degree = self.members[own].degree.saturating_add(chosen.len() as u16);
        chosen.into_iter().map(|at| self.members[at].contact.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::bitfield::PackedBits;
    use crate::core::message::Waiting;

    const MIB: u64 = 1 << 20;

    fn announce(tracker: &mut Tracker, conn: u64, have: &Bitfield, wanted: u16, now: Instant) -> Vec<Contact> {
        announce_as(tracker, conn, have, wanted, Standing::default(), now)
    }

    fn announce_as(
        tracker: &mut Tracker,
        conn: u64,
        have: &Bitfield,
        wanted: u16,
        standing: Standing,
        now: Instant,
    ) -> Vec<Contact> {
        let (digest, size) = (Digest::of(b"artifact"), u64::from(have.len()) * MIB / 4);
        let (addr, have) = (Addr::from(format!("10.0.0.{conn}:1")), PackedBits::from(have));
        let message = Message::Announce { digest, size, addr, have, need: vec![], wanted, standing };
        tracker.handle(Input::Message(ConnId(conn), message), now);
        let mut peers = Vec::new();
        while let Some(output) = tracker.poll_output() {
            match output {
                Output::Send(_, Message::Introduce { peers: found, .. }) => peers = found,
                Output::Send(..) => {}
                Output::Close(_, reason) => panic!("{reason}"),
            }
        }
        peers
    }

    fn connect(tracker: &mut Tracker, conn: u64, role: Role, now: Instant) {
        let peer = PeerId(conn);
        tracker.handle(Input::Connected { conn: ConnId(conn), peer, role, host: "10.1.1.1".into() }, now);
    }

    fn census(tracker: &mut Tracker, now: Instant) -> (Vec<(u32, u32)>, bool) {
        let message = Message::Census { digest: Digest::of(b"artifact"), pieces: vec![0, 1, 2, 77], except: vec![] };
        tracker.handle(Input::Message(ConnId(1_000_000), message), now);
        loop {
            if let Output::Send(_, Message::Holders { pieces, settled, .. }) = tracker.poll_output().unwrap() {
                return (pieces, settled);
            }
        }
    }

    #[test]
    fn it_builds_a_graph_of_about_equal_degrees() {
        let mut tracker = Tracker::new(Settings::default(), Rng::with_seed(1), Instant::ZERO);
        let mut degrees = BTreeMap::new();
        for conn in 0..2_000 {
            connect(&mut tracker, conn, Role::Node, Instant::ZERO);
            let peers = announce(&mut tracker, conn, &Bitfield::new(4), 16, Instant::ZERO);
            assert_eq!(peers.len() as u64, conn.min(16));
            *degrees.entry(conn).or_insert(0) += peers.len();
            for contact in &peers {
                *degrees.entry(contact.peer.0).or_insert(0) += 1;
            }
        }
        let (least, most) = (degrees.values().min().unwrap(), degrees.values().max().unwrap());
        assert!(*least >= 16 && *most <= 80, "{least}..{most}");
    }

    #[test]
    fn holders_follow_announces_departures_and_silence() {
        let at = |secs| Instant::at(Duration::from_secs(secs));
        let mut tracker = Tracker::new(Settings::default(), Rng::with_seed(1), at(0));
        connect(&mut tracker, 1_000_000, Role::Gate, at(0));
        for conn in 0..3 {
            connect(&mut tracker, conn, Role::Node, at(0));
        }
        let mut have = Bitfield::new(4);
        have.insert(1);
        announce(&mut tracker, 0, &have, 4, at(0));
        announce(&mut tracker, 1, &Bitfield::full(4), 4, at(0));
        announce(&mut tracker, 2, &Bitfield::new(4), 4, at(0));
        assert_eq!(census(&mut tracker, at(1)), (vec![(0, 1), (1, 2), (2, 1), (77, 0)], false));
        tracker.handle(Input::Disconnected(ConnId(1)), at(2));
        announce(&mut tracker, 0, &have, 4, at(2));
        announce(&mut tracker, 2, &have, 4, at(2));
        assert_eq!(census(&mut tracker, at(2)).0, [(0, 1), (1, 3), (2, 1), (77, 0)]);
        announce(&mut tracker, 2, &have, 4, at(6));
        tracker.handle(Input::Timeout, at(6));
        assert_eq!(census(&mut tracker, at(6)), (vec![(0, 0), (1, 1), (2, 0), (77, 0)], true));
        let withdraw = Message::Withdraw { digest: Digest::of(b"artifact") };
        tracker.handle(Input::Message(ConnId(2), withdraw), at(6));
        assert_eq!(tracker.census(), (1, 0));
    }

    #[test]
    fn it_tells_how_long_fetches_take_and_who_waits_for_what() {
        let at = |secs| Instant::at(Duration::from_secs(secs));
        let links = Links { down: MIB / 4, up: MIB / 4, store: MIB };
        let mut tracker =
            Tracker::new(Settings { links: Some(links), ..Settings::default() }, Rng::with_seed(1), at(0));
        let mut say = |conn, pieces: u32, millis, waiting, now| {
            let mut have = Bitfield::new(4);
            (0..pieces).for_each(|piece| {
                have.insert(piece);
            });
            let standing = Standing { millis, from_store: 1, from_peers: 2, waiting };
            connect(&mut tracker, conn, Role::Node, now);
            announce_as(&mut tracker, conn, &have, 4, standing, now);
            let mut standings = tracker.standings(now);
            assert_eq!(standings.len(), 1);
            standings.remove(0)
        };
        let seed = say(0, 4, None, None, at(0));
        assert_eq!((seed.members, seed.fetchers, seed.complete, seed.max), (1, 0, 0, None));
        let lost = Waiting::Pieces { missing: 3, peers: 1 };
        let one = say(1, 1, Some(1_000), Some(lost), at(1));
        assert_eq!((one.fetchers, one.complete, one.p50, one.share), (1, 0, None, 0.25));
        assert_eq!((one.elapsed, one.expected), (Duration::from_secs(1), Some(Duration::from_secs(4))));
        assert_eq!(one.waiting, [("10.0.0.1:1".into(), lost)]);
        assert_eq!(one.bound, Some(links.bound(MIB, 1)));
        let two = say(2, 4, Some(6_000), None, at(3));
        assert_eq!((two.fetchers, two.complete, two.p50, two.p99), (2, 1, Some(Duration::from_secs(6)), None));
        assert_eq!(two.elapsed, Duration::from_secs(6), "the first is at it for three seconds by now");
        assert_eq!((two.from_store, two.from_peers), (2, 4), "not what the seed had");
        assert_eq!(two.ratios.and_then(|ratios| ratios.p50), Some(1.5));

        // Who has it may go. Who dies before is waited for no more.
        tracker.handle(Input::Message(ConnId(2), Message::Withdraw { digest: Digest::of(b"artifact") }), at(3));
        tracker.handle(Input::Disconnected(ConnId(1)), at(3));
        announce(&mut tracker, 0, &Bitfield::full(4), 4, at(9));
        let end = tracker.standings(at(9)).remove(0);
        assert_eq!((end.members, end.fetchers, end.max), (1, 1, Some(Duration::from_secs(6))));
    }

    #[test]
    fn gates_are_told_to_everyone_and_outlive_a_restart() {
        let at = |secs| Instant::at(Duration::from_secs(secs));
        let mut tracker = Tracker::new(Settings::default(), Rng::with_seed(1), at(0));
        connect(&mut tracker, 1, Role::Node, at(0));
        connect(&mut tracker, 2, Role::Gate, at(0));
        tracker.handle(Input::Message(ConnId(2), Message::GateHere { addr: "0.0.0.0:7".into() }), at(0));
        let gates = vec![Contact { peer: PeerId(2), addr: "10.1.1.1:7".into() }];
        assert_eq!(tracker.poll_output(), Some(Output::Send(ConnId(1), Message::Gates { gates: gates.clone() })));
        tracker.handle(Input::Disconnected(ConnId(2)), at(1));
        tracker.handle(Input::Timeout, at(5));
        connect(&mut tracker, 3, Role::Node, at(5));
        assert!(
            std::iter::from_fn(|| tracker.poll_output())
                .any(|o| o == Output::Send(ConnId(3), Message::Gates { gates: gates.clone() }))
        );
        tracker.handle(Input::Timeout, at(20));
        assert_eq!(tracker.gates(), 0);
    }

    #[test]
    fn a_member_out_of_its_role_is_closed() {
        let mut tracker = Tracker::new(Settings::default(), Rng::with_seed(1), Instant::ZERO);
        connect(&mut tracker, 1, Role::Node, Instant::ZERO);
        let message = Message::GateHere { addr: "x:1".into() };
        tracker.handle(Input::Message(ConnId(1), message), Instant::ZERO);
        assert!(matches!(tracker.poll_output(), Some(Output::Close(ConnId(1), _))));
    }
}
