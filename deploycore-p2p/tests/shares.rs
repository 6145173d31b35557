//! Artifacts at one node: whose blocks are asked for and served first, and how fast.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use deploycore::model::Digest;
use deploycore::port::swarm::{Limits, Priority};
use deploycore_p2p::core::bitfield::{Bitfield, PackedBits};
use deploycore_p2p::core::message::{Block, ConnId, Message, PeerId, Role};
use deploycore_p2p::core::peer::{Input, Output, Peer, Settings, Start};
use deploycore_p2p::core::shape::{MAX_BLOCK, Shape};
use deploycore_p2p::core::time::Instant;

/// Pieces of 8 blocks.
const SIZE: u64 = 10 << 30;
const BLOCK: u64 = MAX_BLOCK as u64;

fn shape(which: u8) -> Shape {
    Shape::new(Digest::of(&[which]), SIZE)
}

fn digest(which: u8) -> Digest {
    shape(which).digest()
}

/// A node whose neighbours bring what they are asked for, one block after the other over a link of this many bytes a second.
struct World {
    peer: Peer<Bytes>,
    now: Instant,
    rate: u64,
    neighbours: u64,
    /// What was asked for and not yet brought.
    asked: VecDeque<(ConnId, Digest, u32, u32)>,
    /// Since when the first of that is on its way.
    since: Option<Instant>,
    outputs: Vec<Output>,
    received: BTreeMap<Digest, u64>,
    cancelled: usize,
}

impl World {
    fn new(settings: Settings, rate: u64) -> Self {
        let rng = fastrand::Rng::with_seed(1);
        let peer = Peer::new(settings, PeerId(1), "me:1".into(), vec![], rng, Instant::ZERO);
        let (asked, outputs, received) = (VecDeque::new(), vec![], BTreeMap::new());
        let (now, since) = (Instant::ZERO, None);
        Self { peer, now, rate, neighbours: 0, asked, since, outputs, received, cancelled: 0 }
    }

    fn input(&mut self, input: Input) {
        self.peer.handle(input, self.now);
        while let Some(output) = self.peer.poll_output() {
            self.outputs.push(output);
        }
    }

    /// A neighbour that takes part in an artifact.
    fn neighbour(&mut self, parts: &[(u8, bool, Priority)]) -> ConnId {
        self.neighbours += 1;
        let conn = ConnId(self.neighbours);
        let (peer, incarnation) = (PeerId(100 + conn.0), 1);
        self.input(Input::Connected { conn, peer, incarnation, role: Role::Node, zone: None, dialed: None });
        for (which, whole, priority) in parts {
            self.joins(conn, *which, *whole, *priority);
        }
        conn
    }

    fn joins(&mut self, conn: ConnId, which: u8, whole: bool, priority: Priority) {
        let pieces = shape(which).pieces();
        let have = PackedBits::from(&if whole { Bitfield::full(pieces) } else { Bitfield::new(pieces) });
        self.input(Input::Message(conn, Message::Join { digest: digest(which), size: SIZE, have, priority }));
    }

    fn start(&mut self, which: u8, whole: bool, priority: Priority, limits: Limits) {
        let shape = shape(which);
        let have = if whole { Bitfield::full(shape.pieces()) } else { Bitfield::new(shape.pieces()) };
        self.input(Input::Start(Box::new(Start { shape, have, priority, limits })));
    }

    /// A neighbour asks for a piece, and has nobody else to ask.
    fn asks(&mut self, conn: ConnId, which: u8, piece: u32) {
        let (digest, count) = (digest(which), shape(which).blocks(piece));
        let before = self.outputs.len();
        self.input(Input::Message(conn, Message::Request { digest, piece, block: 0, count }));
        let is_busy = |output: &Output| matches!(output, Output::Send(to, Message::Busy { .. }) if *to == conn);
        if self.outputs[before..].iter().any(is_busy) {
            self.input(Input::Message(conn, Message::Await { digest }));
        }
    }

    fn take_sent(&mut self) -> Vec<(ConnId, Digest)> {
        let sent = |output| match output {
            Output::SendBlock { conn, digest, .. } => Some((conn, digest)),
            _ => None,
        };
        std::mem::take(&mut self.outputs).into_iter().filter_map(sent).collect()
    }

    fn note(&mut self) {
        for output in std::mem::take(&mut self.outputs) {
            match output {
                Output::Send(conn, Message::Request { digest, piece, block, count }) => {
                    self.asked.extend((block..block + count).map(|block| (conn, digest, piece, block)));
                }
                Output::Send(conn, Message::Cancel { digest, piece, block }) => {
                    self.cancelled += 1;
                    self.asked.retain(|asked| *asked != (conn, digest, piece, block));
                }
                Output::Send(_, Message::Leave { digest }) => self.asked.retain(|(_, asked, ..)| *asked != digest),
                Output::Store { digest, piece, .. } => {
                    self.input(Input::Stored { digest, piece, verified: true, blocks: vec![] });
                    self.note();
                }
                _ => {}
            }
        }
    }

    /// Lets time pass; gives the bytes received meanwhile, by artifact.
    fn pass(&mut self, span: Duration) -> [u64; 3] {
        let end = self.now + span;
        let before = self.received.clone();
        self.note();
        while self.now < end {
            let wake = self.peer.poll_timeout().min(end);
            self.since = self.asked.front().map(|_| self.since.unwrap_or(self.now));
            let takes = Duration::from_secs_f64(BLOCK as f64 / self.rate as f64);
            let arrives = self.since.map_or(Instant::FAR, |since| since + takes);
            if arrives <= wake {
                (self.now, self.since) = (arrives.max(self.now), Some(arrives));
                let (conn, digest, piece, block) = self.asked.pop_front().unwrap();
                let data = Bytes::from(vec![0; BLOCK as usize]);
                *self.received.entry(digest).or_default() += BLOCK;
                self.input(Input::Block(conn, Block { digest, piece, block, data }));
            } else {
                self.now = wake.max(self.now + Duration::from_micros(1));
                self.input(Input::Timeout);
            }
            self.note();
        }
        let since = |which: u8| {
            let of = |received: &BTreeMap<Digest, u64>| received.get(&digest(which)).copied().unwrap_or_default();
            of(&self.received) - of(&before)
        };
        [since(0), since(1), since(2)]
    }
}

const NONE: Limits = Limits { ingress: None, egress: None, disk: None };
const SECOND: Duration = Duration::from_secs(1);

/// A node with neighbours that have all of three artifacts, on a link of 100 MiB a second.
fn fetching(settings: Settings) -> World {
    let mut world = World::new(settings, 100 << 20);
    world.start(0, false, Priority::Normal, NONE);
    for _ in 0..12 {
        world.neighbour(&[0, 1, 2].map(|which| (which, true, Priority::Normal)));
    }
    world
}

#[test]
fn a_rollback_stops_what_others_have_under_way() {
    let mut world = fetching(Settings { ahead: Duration::from_secs(4), ..Settings::default() });
    world.pass(SECOND * 3);
    assert!(world.asked.len() >= 20, "{} blocks stand with neighbours", world.asked.len());
    world.start(1, false, Priority::Rollback, NONE);
    let [normal, rollback, _] = world.pass(SECOND);
    assert!(normal <= 4 * BLOCK && rollback >= 90 * BLOCK, "{normal} {rollback}");
    assert!(world.cancelled >= 20);
    let [normal, rollback, _] = world.pass(SECOND * 3);
    assert!(normal == 0 && rollback >= 290 * BLOCK, "{normal} {rollback}");
    // Whoever waited goes on when it is over, with what it had begun.
    world.input(Input::Stop(digest(1)));
    let [normal, rollback, _] = world.pass(SECOND);
    assert!(normal >= 98 * BLOCK && rollback == 0, "{normal} {rollback}");
    assert_eq!(world.peer.progress(&digest(0)).unwrap().wasted, 0);
}

#[test]
fn a_fetch_becomes_a_rollback_and_back() {
    let mut world = fetching(Settings::default());
    world.start(1, false, Priority::Normal, NONE);
    world.pass(SECOND * 2);
    let [one, other, _] = world.pass(SECOND * 4);
    assert!(one.abs_diff(other) <= 32 * BLOCK, "{one} {other}");
    world.input(Input::Adjust(digest(1), Priority::Rollback, NONE));
    world.pass(SECOND);
    let [one, other, _] = world.pass(SECOND * 10);
    assert!(one == 0 && other >= 950 * BLOCK, "{one} {other}");
    // What it moved meanwhile is not held against it.
    world.input(Input::Adjust(digest(1), Priority::Normal, NONE));
    world.pass(SECOND);
    let [one, other, _] = world.pass(SECOND * 4);
    assert!(one.abs_diff(other) <= 32 * BLOCK, "{one} {other}");
}

#[test]
fn shares_converge_on_the_weights() {
    let mut world = fetching(Settings::default());
    world.pass(SECOND);
    world.start(1, false, Priority::High, NONE);
    world.start(2, false, Priority::Normal, NONE);
    world.pass(SECOND);
    let shares = world.pass(SECOND * 10);
    let all: u64 = shares.iter().sum();
    for (share, expected) in shares.iter().zip([1.0 / 6.0, 4.0 / 6.0, 1.0 / 6.0]) {
        let share = *share as f64 / all as f64;
        assert!((share - expected).abs() < 0.03, "{shares:?}");
    }
}

/// Only one neighbour has the rollback, and it is so slow that nearly all of the link would stay idle.
#[test]
fn a_rollback_that_hardly_moves_lets_others_move_too() {
    let mut world = World::new(Settings::default(), 100 << 20);
    world.start(0, false, Priority::Normal, NONE);
    for _ in 0..12 {
        world.neighbour(&[(0, true, Priority::Normal)]);
    }
    let slow = world.neighbour(&[(1, true, Priority::Normal)]);
    world.pass(SECOND * 2);
    world.start(1, false, Priority::Rollback, NONE);
    let mut moved = 0;
    for _ in 0..50 {
        // What the slow one is asked for comes last, and at another pace than the rest.
        world.note();
        let (late, other): (Vec<_>, Vec<_>) = world.asked.drain(..).partition(|(conn, ..)| *conn == slow);
        world.asked.extend(other);
        moved += world.pass(Duration::from_millis(200))[0];
        world.asked.extend(late.into_iter().take(8));
        if let Some(at) = world.asked.iter().position(|(conn, ..)| *conn == slow) {
            let (conn, digest, piece, block) = world.asked.remove(at).unwrap();
            let data = Bytes::from(vec![0; BLOCK as usize]);
            world.input(Input::Block(conn, Block { digest, piece, block, data }));
        }
    }
    assert!(moved >= 300 * BLOCK, "{} blocks in ten seconds", moved / BLOCK);
}

#[test]
fn a_rollback_with_a_limit_of_its_own_leaves_others_the_rest() {
    let mut world = fetching(Settings::default());
    world.pass(SECOND);
    world.start(1, false, Priority::Rollback, Limits { ingress: Some(20 << 20), ..NONE });
    world.pass(SECOND);
    let [normal, rollback, _] = world.pass(SECOND * 4);
    assert!((76 * BLOCK..=84 * BLOCK).contains(&rollback), "{rollback}");
    assert!(normal >= 300 * BLOCK, "{normal}");
}

/// Whatever is limited, of whatever: in any second a block more at the most, and in the long run all of it.
#[test]
fn limits_on_what_comes_hold_and_are_used_and_change_at_once() {
    const RATE: u64 = 10 << 20;
    let ingress = |rate| Limits { ingress: Some(rate), ..NONE };
    let disk = |rate| Limits { disk: Some(rate), ..NONE };
    for limits in [ingress as fn(u64) -> Limits, disk] {
        for own in [false, true] {
            let mut world = fetching(Settings::default());
            let limit = |world: &mut World, rate| {
                let limits = limits(rate);
                world.input(if own {
                    Input::Adjust(digest(0), Priority::Normal, limits)
                } else {
                    Input::Limit(limits)
                });
            };
            world.pass(SECOND);
            limit(&mut world, RATE);
            world.pass(SECOND);
            let seconds: Vec<u64> = (0..10).map(|_| world.pass(SECOND)[0]).collect();
            let most = RATE + RATE / 20 + BLOCK;
            assert!(seconds.iter().all(|bytes| *bytes <= most), "{own}: {seconds:?}");
            assert!(seconds.iter().sum::<u64>() >= 9 * RATE, "{own}: {seconds:?}");
            limit(&mut world, 2 * RATE);
            world.pass(SECOND);
            let faster = world.pass(SECOND * 4)[0];
            assert!((7 * RATE..=9 * RATE).contains(&faster), "{own}: {faster}");
            limit(&mut world, 0);
            world.pass(SECOND);
            assert_eq!(world.pass(SECOND * 10)[0], 0, "{own}");
            limit(&mut world, RATE);
            assert!(world.pass(SECOND)[0] > 0, "{own}");
        }
    }
}

/// What a busy neighbour does not bring is no part of a limit.
#[test]
fn a_limit_is_not_used_up_by_requests_that_come_to_nothing() {
    let limits = Limits { ingress: Some(10 << 20), ..NONE };
    let mut world = World::new(Settings { limits, ..Settings::default() }, 100 << 20);
    world.start(0, false, Priority::Normal, NONE);
    let busy: Vec<ConnId> = (0..8).map(|_| world.neighbour(&[(0, true, Priority::Normal)])).collect();
    world.neighbour(&[(0, true, Priority::Normal)]);
    let mut moved = 0;
    for _ in 0..500 {
        world.note();
        while let Some(at) = world.asked.iter().position(|(conn, ..)| busy.contains(conn)) {
            let (conn, digest, piece, block) = world.asked.remove(at).unwrap();
            world.input(Input::Message(conn, Message::Busy { digest, piece, block, count: 1 }));
            world.note();
        }
        moved += world.pass(Duration::from_millis(10))[0];
    }
    assert!(moved >= 45 * BLOCK, "{} blocks in five seconds", moved / BLOCK);
}

/// A node that has three artifacts.
fn serving(slots: usize, limits: Limits) -> World {
    let mut world = World::new(Settings { slots, limits, ..Settings::default() }, 1);
    for which in 0..3 {
        world.start(which, true, Priority::Normal, NONE);
    }
    world.outputs.clear();
    world
}

/// Takes each block that goes out as sent, in order, until so many did; neighbours that have nothing more under way ask for the next
/// piece, again when they are told that they may. Gives how many were of each artifact.
fn give(world: &mut World, readers: &BTreeMap<ConnId, u8>, count: usize) -> [usize; 3] {
    let (mut network, mut given) = (VecDeque::new(), [0; 3]);
    let mut next: BTreeMap<ConnId, u32> = readers.keys().map(|conn| (*conn, 0)).collect();
    for (conn, which) in readers {
        world.asks(*conn, *which, 0);
    }
    for _ in 0..count {
        let mut ready = Vec::new();
        for output in std::mem::take(&mut world.outputs) {
            match output {
                Output::SendBlock { conn, digest, len, block, .. } => network.push_back((conn, digest, len, block)),
                Output::Send(conn, Message::Ready { .. }) => ready.push(conn),
                _ => {}
            }
        }
        for conn in ready {
            world.asks(conn, readers[&conn], next[&conn]);
        }
        let Some((conn, of, len, block)) = network.pop_front() else { break };
        given[(0..3).position(|which| digest(which) == of).unwrap()] += 1;
        // The next piece is asked for before the one before has come.
        if block == 6 {
            let piece = next.get_mut(&conn).unwrap();
            *piece += 1;
            let piece = *piece;
            world.asks(conn, readers[&conn], piece);
        }
        world.now = world.now + Duration::from_millis(8);
        world.input(Input::Sent(conn, len));
    }
    given
}

#[test]
fn a_rollback_is_served_at_the_edge_of_a_block_though_all_slots_are_taken() {
    let mut world = serving(2, NONE);
    let readers: Vec<ConnId> = (0..4).map(|_| world.neighbour(&[(0, false, Priority::High)])).collect();
    for reader in &readers {
        world.asks(*reader, 0, 0);
    }
    let under_way = world.take_sent();
    assert_eq!(under_way.len(), 4, "two slots, two blocks of each: {under_way:?}");
    let urgent = world.neighbour(&[(1, false, Priority::Rollback)]);
    world.asks(urgent, 1, 0);
    assert_eq!(world.take_sent(), [(urgent, digest(1)); 2]);
    // Of those who were served nothing more goes out before the rollback has all that it asked for.
    let mut sent = Vec::new();
    for (conn, _) in under_way.into_iter().chain([(urgent, digest(1)); 8]) {
        world.input(Input::Sent(conn, MAX_BLOCK));
        sent.extend(world.take_sent());
    }
    assert_eq!(sent, [(urgent, digest(1)); 6]);
    world.now = world.now + Duration::from_millis(101);
    world.input(Input::Timeout);
    assert_eq!(world.take_sent().len(), 4, "then the others go on");
}

#[test]
fn a_neighbour_may_make_a_rollback_of_what_it_fetches() {
    let mut world = serving(2, NONE);
    let readers: Vec<ConnId> = (0..2).map(|_| world.neighbour(&[(0, false, Priority::Normal)])).collect();
    let late = world.neighbour(&[(0, false, Priority::Normal)]);
    for reader in readers.iter().chain([&late]) {
        world.asks(*reader, 0, 0);
    }
    world.outputs.clear();
    world.joins(late, 0, false, Priority::Rollback);
    world.input(Input::Timeout);
    world.asks(late, 0, 0);
    assert_eq!(world.take_sent(), [(late, digest(0)); 2]);
}

#[test]
fn what_a_node_gives_is_shared_by_weight() {
    // More readers of the one than there are slots, and one of the other.
    let mut world = serving(4, NONE);
    let parts = [(0, 6, Priority::Normal), (1, 6, Priority::High), (2, 1, Priority::Normal)];
    let mut readers = BTreeMap::new();
    for (which, count, priority) in parts {
        for _ in 0..count {
            readers.insert(world.neighbour(&[(which, false, priority)]), which);
        }
    }
    let given = give(&mut world, &readers, 6_000);
    let share = given.map(|blocks| blocks as f64 / 6_000.0);
    assert!((share[1] - 4.0 / 6.0).abs() < 0.05 && (share[0] - 1.0 / 6.0).abs() < 0.05, "{share:?}");
}

#[test]
fn limits_on_what_goes_out_hold_and_change_at_once() {
    for limits in [Limits { egress: Some(10 << 20), ..NONE }, Limits { disk: Some(10 << 20), ..NONE }] {
        for own in [false, true] {
            let mut world = serving(4, if own { NONE } else { limits });
            if own {
                world.input(Input::Adjust(digest(0), Priority::Normal, limits));
            }
            let reader = world.neighbour(&[(0, false, Priority::Normal)]);
            let second = |world: &mut World| {
                let (end, mut sent, mut piece) = (world.now + SECOND, 0, 0);
                while world.now < end {
                    world.asks(reader, 0, piece);
                    piece += 1;
                    for (conn, _) in world.take_sent() {
                        sent += BLOCK;
                        world.input(Input::Sent(conn, MAX_BLOCK));
                    }
                    world.now = world.now + Duration::from_millis(5);
                    world.input(Input::Timeout);
                }
                sent
            };
            second(&mut world);
            let (most, bytes) = ((10 << 20) + (10 << 20) / 20 + BLOCK, second(&mut world));
            assert!((9 * BLOCK..=most).contains(&bytes), "{own}: {bytes}");
            let none = NONE;
            world.input(if own { Input::Adjust(digest(0), Priority::Normal, none) } else { Input::Limit(none) });
            assert!(second(&mut world) >= 100 * BLOCK, "{own}");
        }
    }
}
