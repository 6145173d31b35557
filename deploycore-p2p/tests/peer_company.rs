//! Whom a node talks to, and what it believes.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use deploycore::model::Digest;
use deploycore::port::swarm::{Limits, Priority};
use deploycore_p2p::core::bitfield::{Bitfield, PackedBits};
use deploycore_p2p::core::gate;
use deploycore_p2p::core::message::{Addr, Block, ConnId, Contact, Message, PeerId, Refusal, Role};
use deploycore_p2p::core::peer::{Input, Output, Peer, Settings, Start};
use deploycore_p2p::core::shape::Shape;
use deploycore_p2p::core::time::Instant;
use serde::Deserialize;
use serde::de::value::MapDeserializer;

const PIECE: u64 = 256 << 10;
const PIECES: u32 = 20;

fn shape() -> Shape {
    Shape::new(Digest::of(b"a"), u64::from(PIECES) * PIECE)
}

struct World {
    peer: Peer<Bytes>,
    now: Instant,
    next_conn: u64,
    outputs: Vec<Output>,
}

impl World {
    fn new(trackers: &[&str]) -> Self {
        Self::with(Settings::default(), trackers)
    }

    fn with(settings: Settings, trackers: &[&str]) -> Self {
        let trackers = trackers.iter().copied().map(Addr::from).collect();
        let rng = fastrand::Rng::with_seed(1);
        let peer = Peer::new(settings, PeerId(1), "me:1".into(), trackers, rng, Instant::ZERO);
        let mut world = Self { peer, now: Instant::ZERO, next_conn: 1, outputs: vec![] };
        world.poll();
        world
    }

    fn poll(&mut self) {
        self.outputs.extend(std::iter::from_fn(|| self.peer.poll_output()));
    }

    fn input(&mut self, input: Input) {
        self.peer.handle(input, self.now);
        self.poll();
    }

    fn start(&mut self) {
        self.start_with(0);
    }

    /// Starts with this many pieces.
    fn start_with(&mut self, pieces: u32) {
        let (priority, limits) = (Priority::Normal, Limits::default());
        let mut have = Bitfield::new(PIECES);
        (0..pieces).for_each(|piece| _ = have.insert(piece));
        self.input(Input::Start(Box::new(Start { shape: shape(), have, priority, limits })));
    }

    fn connect(&mut self, peer: u64, role: Role, dialed: Option<&str>) -> ConnId {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let dialed = dialed.map(Addr::from);
        self.input(Input::Connected { conn, peer: PeerId(peer), incarnation: peer, role, zone: None, dialed });
        conn
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now + span;
        self.input(Input::Timeout);
    }

    fn says(&mut self, conn: ConnId, message: Message) {
        self.input(Input::Message(conn, message));
    }

    fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    fn is_closed(&mut self, conn: ConnId) -> bool {
        self.take().iter().any(|output| matches!(output, Output::Close(closed, _) if *closed == conn))
    }

    /// A gate that a tracker named, connected.
    fn gate(&mut self) -> ConnId {
        let tracker = self.connect(8, Role::Tracker, Some("t:1"));
        let gates = vec![Contact { peer: PeerId(9), addr: "g:1".into() }];
        self.says(tracker, Message::Gates { gates });
        self.connect(9, Role::Gate, Some("g:1"))
    }
}

#[test]
fn who_connects_is_a_node_whatever_it_says() {
    let mut world = World::new(&["t:1"]);
    world.start();
    for role in [Role::Tracker, Role::Gate] {
        let conn = world.connect(7, role, None);
        assert!(world.is_closed(conn), "{role:?}");
    }
    let conn = world.connect(7, Role::Node, Some("t:1"));
    assert!(world.is_closed(conn), "a tracker was dialed");
    world.pass(Duration::from_secs(5));
    let conn = world.gate();
    assert!(!world.is_closed(conn));
}

/// Answers each dial of a tracker for a minute; gives how often it was dialed.
fn dials(world: &mut World, mut answer: impl FnMut(&mut World, &str)) -> u32 {
    let mut dials = 0;
    for _ in 0..6_000 {
        for output in world.take() {
            if let Output::Connect(addr, Role::Tracker) = output {
                dials += 1;
                answer(world, &addr.0);
            }
        }
        world.pass(Duration::from_millis(10));
    }
    dials
}

#[test]
fn a_tracker_that_accepts_and_hangs_up_is_dialed_ever_more_seldom() {
    let mut world = World::new(&["t:1"]);
    let count = dials(&mut world, |world, addr| {
        let conn = world.connect(8, Role::Tracker, Some(addr));
        world.input(Input::Disconnected(conn));
    });
    assert!((10..80).contains(&count), "{count} dials in a minute");
}

#[test]
fn a_tracker_under_two_addresses_is_connected_once() {
    let mut world = World::new(&["t:1", "t:2"]);
    let mut closed = 0;
    let count = dials(&mut world, |world, addr| {
        let conn = world.connect(8, Role::Tracker, Some(addr));
        closed += u32::from(world.is_closed(conn));
    });
    assert!((2..5).contains(&count) && closed == count - 1, "{count} dials, {closed} closed");
}

#[test]
fn two_trackers_of_one_name_are_both_kept() {
    let mut world = World::new(&["t:1", "t:2"]);
    let mut life = 0;
    let count = dials(&mut world, |world, addr| {
        life += 1;
        let (conn, dialed) = (ConnId(life), Some(Addr::from(addr)));
        world.input(Input::Connected {
            conn,
            peer: PeerId(8),
            incarnation: life,
            role: Role::Tracker,
            zone: None,
            dialed,
        });
    });
    assert_eq!(count, 2);
}

#[test]
fn a_lie_about_the_size_before_the_start_costs_the_liar_its_connection() {
    for size in [PIECE, u64::from(PIECES) * PIECE * 4, u64::MAX, 0] {
        let mut world = World::new(&[]);
        let (liar, honest) = (world.connect(2, Role::Node, None), world.connect(3, Role::Node, None));
        let digest = shape().digest();
        let have = PackedBits::from(&Bitfield::full(Shape::new(digest, size.min(1 << 30)).pieces()));
        world.says(liar, Message::Join { digest, size, have, priority: Priority::Normal });
        let (size, have) = (shape().size(), PackedBits::from(&Bitfield::full(PIECES)));
        world.says(honest, Message::Join { digest, size, have, priority: Priority::Normal });
        world.start();
        let outputs = world.take();
        let closed = |conn| outputs.iter().any(|output| matches!(output, Output::Close(closed, _) if *closed == conn));
        assert!(closed(liar) && !closed(honest));
        world.says(liar, Message::Have { digest, pieces: (0..100).collect(), count: 100 });
        world.pass(Duration::from_secs(1));
        assert!(outputs.iter().any(|output| matches!(output, Output::Send(_, Message::Request { .. }))));
    }
}

#[test]
fn a_refusal_that_comes_late_loses_no_piece() {
    let mut world = World::new(&["t:1"]);
    world.start();
    let gate = world.gate();
    let digest = shape().digest();
    world.says(gate, Message::Lease { digest, pieces: (0..PIECES).collect(), millis: 30_000 });
    // Of an earlier lease of a piece that is not begun anew yet.
    let refusal = Refusal::ReadFailed;
    world.says(gate, Message::Reject { digest, piece: PIECES - 1, block: 0, count: 1, refusal });
    for _ in 0..1_000 {
        for output in world.take() {
            match output {
                Output::Send(conn, Message::Request { piece, block, .. }) => {
                    let data = Bytes::from(vec![0; PIECE as usize]);
                    world.input(Input::Block(conn, Block { digest, piece, block, data }));
                }
                Output::Store { piece, .. } => {
                    world.input(Input::Stored { digest, piece, verified: true, blocks: vec![] });
                }
                _ => {}
            }
        }
        world.pass(Duration::from_millis(10));
    }
    assert!(world.peer.have(&digest).unwrap().is_full());
}

#[test]
fn what_is_begun_of_all_artifacts_together_is_bounded() {
    let mut world = World::new(&[]);
    let most = Settings::default().max_begun;
    let size = 4 << 30;
    let digests: Vec<Digest> = (0..40_u8).map(|which| Digest::of(&[which])).collect();
    for digest in &digests {
        let shape = Shape::new(*digest, size);
        let (priority, limits) = (Priority::Normal, Limits::default());
        world.input(Input::Start(Box::new(Start { shape, have: Bitfield::new(shape.pieces()), priority, limits })));
    }
    // Each brings one block of what it is asked for, and then nothing.
    let mut begun = BTreeSet::new();
    for neighbour in 0..60 {
        let conn = world.connect(100 + neighbour, Role::Node, None);
        for digest in &digests {
            let (digest, priority) = (*digest, Priority::Normal);
            let have = PackedBits::from(&Bitfield::full(Shape::new(digest, size).pieces()));
            world.says(conn, Message::Join { digest, size, have, priority });
        }
        for output in world.take() {
            if let Output::Send(conn, Message::Request { digest, piece, block, .. }) = output {
                begun.insert((digest, piece));
                let data = Bytes::from(vec![0; Shape::new(digest, size).block_len(piece, block) as usize]);
                world.input(Input::Block(conn, Block { digest, piece, block, data }));
            }
        }
    }
    let bytes = begun.len() as u64 * Shape::new(digests[0], size).piece_size();
    assert!(bytes <= most, "{bytes}");
}

/// Whom it asked for which block.
fn requests(outputs: Vec<Output>) -> Vec<(ConnId, u32, u32)> {
    let requests = outputs.into_iter().filter_map(|output| match output {
        Output::Send(conn, Message::Request { piece, block, .. }) => Some((conn, piece, block)),
        _ => None,
    });
    requests.collect()
}

/// Otherwise all that may be asked for in all would come to stand with those that are slow.
#[test]
fn what_one_brings_lets_another_be_asked_that_was_not_yet() {
    let mut world = World::new(&[]);
    world.start();
    let (digest, size) = (shape().digest(), shape().size());
    for neighbour in 0..8 {
        let conn = world.connect(100 + neighbour, Role::Node, None);
        let have = PackedBits::from(&Bitfield::full(PIECES));
        world.says(conn, Message::Join { digest, size, have, priority: Priority::Normal });
    }
    let first = requests(world.take());
    let mut asked: BTreeSet<ConnId> = first.iter().map(|(conn, ..)| *conn).collect();
    assert_eq!((first.len(), asked.len()), (8, 4), "the bound is two pieces of each of four");
    for (conn, piece, block) in first.into_iter().step_by(2) {
        let data = Bytes::from(vec![0; PIECE as usize]);
        world.input(Input::Block(conn, Block { digest, piece, block, data }));
        let next = requests(world.take());
        assert_eq!(next.len(), 1, "{next:?}");
        assert!(asked.insert(next[0].0), "{next:?} was asked before");
    }
}

/// A neighbour is asked for two pieces, and then the gate leases them. Gives the neighbour, the gate and the pieces.
fn asked_and_leased(world: &mut World) -> (ConnId, ConnId, Vec<u32>) {
    world.start();
    let gate = world.gate();
    let neighbour = world.connect(100, Role::Node, None);
    let (digest, size, have) = (shape().digest(), shape().size(), PackedBits::from(&Bitfield::full(PIECES)));
    world.says(neighbour, Message::Join { digest, size, have, priority: Priority::Normal });
    let pieces: Vec<u32> = requests(world.take()).into_iter().map(|(_, piece, _)| piece).collect();
    assert_eq!(pieces.len(), 2);
    world.says(gate, Message::Lease { digest, pieces: pieces.clone(), millis: 60_000 });
    assert_eq!(requests(world.take()), [], "they are under way");
    (neighbour, gate, pieces)
}

#[test]
fn a_leased_piece_is_read_when_the_neighbour_that_was_asked_is_silent() {
    let mut world = World::new(&["t:1"]);
    let (_, gate, pieces) = asked_and_leased(&mut world);
    for _ in 0..100 {
        world.pass(Duration::from_millis(250));
    }
    let read: Vec<u32> =
        requests(world.take()).into_iter().filter(|(conn, ..)| *conn == gate).map(|(_, piece, _)| piece).collect();
    assert_eq!(BTreeSet::from_iter(read), BTreeSet::from_iter(pieces));
}

#[test]
fn the_gate_is_told_when_a_neighbour_brings_a_leased_piece() {
    let mut world = World::new(&["t:1"]);
    let (neighbour, gate, pieces) = asked_and_leased(&mut world);
    let digest = shape().digest();
    for piece in pieces {
        let data = Bytes::from(vec![0; PIECE as usize]);
        world.input(Input::Block(neighbour, Block { digest, piece, block: 0, data }));
        world.input(Input::Stored { digest, piece, verified: true, blocks: vec![] });
        let told = |output: &Output| matches!(output, Output::Send(conn, Message::Have { pieces, .. }) if *conn == gate && pieces[..] == [piece]);
        assert!(world.take().iter().any(told), "piece {piece}");
    }
}

/// The size of a block does not stand in configurations: all members cut alike.
/// A neighbour that fetches and has these pieces.
fn neighbour(world: &mut World, peer: u64, pieces: &[u32]) -> ConnId {
    let conn = world.connect(peer, Role::Node, None);
    let mut have = Bitfield::new(PIECES);
    for piece in pieces {
        have.insert(*piece);
    }
    let (digest, size) = (shape().digest(), shape().size());
    world.says(conn, Message::Join { digest, size, have: PackedBits::from(&have), priority: Priority::Normal });
    conn
}

/// Neighbours that were told `Ready` often have found what they want elsewhere. While their slots stood before others that asked, nothing
/// was sent, everyone was busy, and a swarm of a thousand took 1.43 times the bound.
#[test]
fn a_slot_that_is_kept_for_one_who_may_not_come_stands_before_nobody() {
    let mut world = World::new(&[]);
    world.start_with(PIECES);
    let slots = Settings::default().slots;
    let conns: Vec<ConnId> = (0..2 * slots as u64).map(|peer| neighbour(&mut world, 10 + peer, &[])).collect();
    world.take();
    let request = Message::Request { digest: shape().digest(), piece: 3, block: 0, count: 1 };
    let ask = |world: &mut World, conn: ConnId| {
        world.says(conn, request.clone());
        world.take().iter().any(|output| matches!(output, Output::SendBlock { conn: to, .. } if *to == conn))
    };
    let (first, second) = conns.split_at(slots);
    assert!(first.iter().all(|conn| ask(&mut world, *conn)));
    assert!(!second.iter().any(|conn| ask(&mut world, *conn)), "all slots are taken");
    for conn in second {
        world.says(*conn, Message::Await { digest: shape().digest() });
    }
    for conn in first {
        world.input(Input::Sent(*conn, PIECE as u32));
    }
    let ready = world.take().iter().filter(|output| matches!(output, Output::Send(_, Message::Ready { .. }))).count();
    assert_eq!(ready, slots, "each slot is offered");
    assert!(first.iter().all(|conn| ask(&mut world, *conn)), "those who were told to come did not");
    assert!(second.iter().all(|conn| ask(&mut world, *conn)), "and when they do, there is room");
}

/// `Ready` is for those who have nobody else to ask: most of those who are told `Busy` do, and pass.
#[test]
fn a_node_waits_for_a_busy_neighbour_when_it_has_nobody_else_to_ask() {
    let mut world = World::new(&[]);
    world.start();
    let (one, other) = (neighbour(&mut world, 10, &[3]), neighbour(&mut world, 11, &[3]));
    let digest = shape().digest();
    let asked = |outputs: Vec<Output>| requests(outputs).first().map(|(conn, piece, _)| (*conn, *piece));
    assert_eq!(asked(world.take()), Some((one, 3)));
    let busy = Message::Busy { digest, piece: 3, block: 0, count: 1 };
    world.says(one, busy.clone());
    let outputs = world.take();
    let waits = |outputs: &[Output]| -> Vec<ConnId> {
        let waits = outputs.iter().filter_map(|output| match output {
            Output::Send(conn, Message::Await { .. }) => Some(*conn),
            _ => None,
        });
        waits.collect()
    };
    assert_eq!(waits(&outputs), [], "there is another to ask");
    assert_eq!(asked(outputs), Some((other, 3)));
    world.says(other, busy);
    assert_eq!(waits(&world.take()), [one, other]);
    world.says(one, Message::Have { digest, pieces: vec![4].into(), count: 2 });
    assert_eq!(waits(&world.take()), [], "it waits already");
    world.says(one, Message::Ready { digest });
    assert_eq!(asked(world.take()).map(|(conn, _)| conn), Some(one));
}

/// Most pieces are with no neighbour at first, and come to them by themselves. When all the nodes of a large swarm looked for their
/// holders then, each ended with three times the neighbours.
#[test]
fn holders_are_looked_for_once_a_quarter_is_here() {
    for (pieces, looks) in [(0, false), (4, false), (5, true)] {
        let mut world = World::new(&["t:1"]);
        world.start_with(pieces);
        let gate = world.gate();
        neighbour(&mut world, 10, &[10]);
        world.says(gate, Message::Drained { digest: shape().digest() });
        world.take();
        world.pass(Duration::from_secs(3));
        let need = |output: &Output| match output {
            Output::Send(_, Message::Announce(part)) => Some(part.need.len()),
            _ => None,
        };
        let need = world.take().iter().find_map(need).expect("it announces itself");
        assert_eq!(need > 0, looks, "{need} pieces, with {pieces} here");
    }
}

/// Whom it names as no holders when it asks the gate for pieces.
fn calls_for_help(outputs: &[Output]) -> Vec<(Vec<u32>, Vec<PeerId>)> {
    let calls = outputs.iter().filter_map(|output| match output {
        Output::Send(_, Message::Stuck { pieces, refused, .. }) => Some((pieces.clone(), refused.clone())),
        _ => None,
    });
    calls.collect()
}

/// Its disk may be damaged, or its machine hang. While it counted as a holder, whoever had nobody else waited for ever.
#[test]
fn who_does_not_give_what_it_says_it_has_counts_as_no_holder() {
    for refuses in [true, false] {
        let mut world = World::new(&["t:1"]);
        world.start_with(PIECES - 1);
        let (gate, digest, piece) = (world.gate(), shape().digest(), PIECES - 1);
        world.says(gate, Message::Drained { digest });
        let holder = neighbour(&mut world, 10, &[piece]);
        world.pass(Duration::from_secs(5));
        let outputs = world.take();
        assert_eq!(calls_for_help(&outputs), [], "it is asked");
        assert_eq!(requests(outputs), [(holder, piece, 0)]);
        if refuses {
            let refusal = Refusal::ReadFailed;
            world.says(holder, Message::Reject { digest, piece, block: 0, count: 1, refusal });
        }
        for _ in 0..100 {
            world.pass(Duration::from_millis(250));
        }
        let calls = calls_for_help(&world.take());
        assert_eq!(calls.first(), Some(&(vec![piece], vec![PeerId(10)])), "refuses: {refuses}");
        // It recovers.
        world.says(holder, Message::Have { digest, pieces: vec![piece].into(), count: 1 });
        for _ in 0..100 {
            world.pass(Duration::from_millis(250));
        }
        assert!(!requests(world.take()).is_empty(), "it is asked again");
        let data = Bytes::from(vec![0; PIECE as usize]);
        world.input(Input::Block(holder, Block { digest, piece, block: 0, data }));
        world.input(Input::Stored { digest, piece, verified: true, blocks: vec![] });
        assert!(world.peer.have(&digest).unwrap().is_full());
    }
}

/// It has to come from one source alone, so nobody goes on with what another began. It stayed begun, and nobody was asked for it again.
#[test]
fn a_suspect_piece_begins_anew_when_its_only_source_is_gone() {
    let max_block = (PIECE / 4) as u32;
    let mut world = World::with(Settings { max_block, ..Settings::default() }, &[]);
    let (shape, piece) = (shape().with_max_block(max_block), PIECES - 1);
    let (digest, priority, limits) = (shape.digest(), Priority::Normal, Limits::default());
    let mut have = Bitfield::full(PIECES);
    have.remove(piece);
    world.input(Input::Start(Box::new(Start { shape, have, priority, limits })));
    let block = |world: &mut World, conn, block| {
        let data = Bytes::from(vec![0; max_block as usize]);
        world.input(Input::Block(conn, Block { digest, piece, block, data }));
    };
    let first = neighbour(&mut world, 10, &[piece]);
    block(&mut world, first, 0);
    world.input(Input::Disconnected(first));
    let second = neighbour(&mut world, 11, &[piece]);
    (1..4).for_each(|number| block(&mut world, second, number));
    world.input(Input::Stored { digest, piece, verified: false, blocks: vec![[0; 32]; 4] });
    world.pass(Duration::from_millis(250));
    assert_eq!(requests(world.take()).last(), Some(&(second, piece, 0)), "now from one alone");
    world.says(second, Message::Reject { digest, piece, block: 0, count: 1, refusal: Refusal::ReadFailed });
    world.input(Input::Disconnected(second));
    let third = neighbour(&mut world, 12, &[piece]);
    assert_eq!(requests(world.take()), [(third, piece, 0)]);
}

/// A gate takes so many connections. When those beyond came again every second or two, a region of a hundred thousand gave it nothing
/// else to do.
#[test]
fn a_gate_that_hangs_up_is_dialed_ever_more_seldom() {
    let mut world = World::new(&["t:1"]);
    world.start();
    let tracker = world.connect(8, Role::Tracker, Some("t:1"));
    let gates = vec![Contact { peer: PeerId(9), addr: "g:1".into() }];
    world.says(tracker, Message::Gates { gates: gates.clone() });
    let dials = |world: &mut World, minutes: u64| {
        let mut dials = 0;
        for _ in 0..minutes * 6_000 {
            if world.take().iter().any(|output| matches!(output, Output::Connect(_, Role::Gate))) {
                dials += 1;
                let conn = world.connect(9, Role::Gate, Some("g:1"));
                world.input(Input::Disconnected(conn));
            }
            world.pass(Duration::from_millis(10));
        }
        dials
    };
    let first = dials(&mut world, 10);
    assert!((10..30).contains(&first), "{first} dials in ten minutes");
    world.says(tracker, Message::Gates { gates });
    world.pass(Duration::from_millis(300));
    assert!(
        world.take().iter().any(|output| matches!(output, Output::Connect(_, Role::Gate))),
        "it may be another life"
    );
}

#[test]
fn settings_that_name_nothing_are_the_defaults() {
    let nothing = || MapDeserializer::<_, serde::de::value::Error>::new(std::iter::empty::<(&str, u32)>());
    assert_eq!(Settings::deserialize(nothing()).unwrap(), Settings::default());
    assert_eq!(gate::Settings::deserialize(nothing()).unwrap(), gate::Settings::default());
    let block = MapDeserializer::<_, serde::de::value::Error>::new(std::iter::once(("max_block", 1)));
    assert!(Settings::deserialize(block).unwrap_err().to_string().contains("max_block"));
}
