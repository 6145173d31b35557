//! Whose pieces a gate leases first.

use std::collections::BTreeMap;
use std::time::Duration;

use deploycore::model::Digest;
use deploycore::port::swarm::Priority;
use deploycore_p2p::core::bitfield::{Bitfield, PackedBits};
use deploycore_p2p::core::gate::{Gate, Input, Output, Record, Settings};
use deploycore_p2p::core::message::{ConnId, Message, PeerId, Role};
use deploycore_p2p::core::shape::Shape;
use deploycore_p2p::core::time::Instant;

/// 2,048 pieces.
const SIZE: u64 = 512 << 20;

fn shape(which: u8) -> Shape {
    Shape::new(Digest::of(&[which]), SIZE)
}

/// A gate whose readers read what they are leased.
struct World {
    gate: Gate,
    now: Instant,
    leases: BTreeMap<(ConnId, Digest), Vec<u32>>,
    /// Who was told that nothing is left to lease.
    drained: Vec<ConnId>,
}

impl World {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let gate = Gate::new(settings, PeerId(9), "g:1".into(), Instant::ZERO);
        Self { gate, now: Instant::ZERO, leases: BTreeMap::new(), drained: vec![] }
    }

    fn input(&mut self, input: Input) {
        self.gate.handle(input, self.now);
        while let Some(output) = self.gate.poll_output() {
            match output {
                Output::Load(digest) => {
                    let shape = shape(u8::from(digest == shape(1).digest()));
                    self.input(Input::Loaded(digest, Some((SIZE, Record::new(&shape)))));
                }
                Output::Persist(digest, version, _) => self.input(Input::Persisted(digest, version)),
                Output::Send(conn, Message::Lease { digest, pieces, .. }) => {
                    self.leases.entry((conn, digest)).or_default().extend(pieces);
                }
                Output::Send(conn, Message::Drained { .. }) => self.drained.push(conn),
                _ => {}
            }
        }
    }

    fn joins(&mut self, conn: u64, which: u8, priority: Priority) {
        let (shape, peer) = (shape(which), PeerId(conn));
        let conn = ConnId(conn);
        self.input(Input::Connected { conn, peer, role: Role::Node, dialed: false });
        let have = PackedBits::from(&Bitfield::new(shape.pieces()));
        self.input(Input::Message(conn, Message::Join { digest: shape.digest(), size: SIZE, have, priority }));
    }

    fn leased(&self, which: u8) -> usize {
        let of = self.leases.iter().filter(|((_, digest), _)| *digest == shape(which).digest());
        of.map(|(_, pieces)| pieces.len()).sum()
    }

    /// All pieces that are leased now are read, while others are leased.
    fn arrive(&mut self) {
        self.arrive_of_each(|_| usize::MAX);
    }

    /// Of what is leased now, each reader reads so many pieces.
    fn arrive_of_each(&mut self, most: impl Fn(ConnId) -> usize) {
        let pieces = |((conn, digest), pieces): (&(ConnId, Digest), &Vec<u32>)| {
            pieces.iter().take(most(*conn)).map(|piece| (*conn, *digest, *piece)).collect::<Vec<_>>()
        };
        let leases: Vec<(ConnId, Digest, u32)> = self.leases.iter().flat_map(pieces).collect();
        for (conn, digest, piece) in leases {
            self.leases.entry((conn, digest)).or_default().retain(|leased| *leased != piece);
            self.input(Input::Message(conn, Message::Request { digest, piece, block: 0, count: 1 }));
            self.now = self.now + Duration::from_millis(1);
            self.input(Input::Message(conn, Message::Have { digest, pieces: vec![piece].into(), count: 1 }));
        }
    }
}

#[test]
fn a_rollback_is_leased_its_pieces_and_others_what_that_leaves() {
    let mut world = World::new();
    let most = Settings::default().max_leases as usize;
    for conn in 0..40 {
        world.joins(conn, 0, Priority::Normal);
    }
    assert_eq!(world.leased(0), most);
    // One machine that rolls back reads a few pieces at a time: the store is no less busy with the rest.
    world.joins(100, 1, Priority::Rollback);
    let few = world.leased(1);
    assert!((2..=most / 4).contains(&few), "{few}");
    for _ in 0..4 {
        world.arrive();
        assert_eq!((world.leased(0), world.leased(1)), (most - few, few));
    }
    // Many take all there is, but for one.
    for conn in 101..140 {
        world.joins(conn, 1, Priority::Rollback);
    }
    assert_eq!(world.leased(1), most);
    for _ in 0..4 {
        world.arrive();
    }
    assert_eq!((world.leased(0), world.leased(1)), (1, most));
    // One by one they have all, or think better of it.
    for conn in 100..140 {
        world.input(Input::Message(ConnId(conn), Message::Leave { digest: shape(1).digest() }));
    }
    assert_eq!(world.leased(0), most);
}

#[test]
fn a_reader_may_make_a_rollback_of_what_it_reads() {
    let mut world = World::new();
    let most = Settings::default().max_leases as usize;
    for conn in 0..40 {
        world.joins(conn, 0, Priority::Normal);
        world.joins(conn, 1, Priority::Normal);
    }
    assert_eq!((world.leased(0), world.leased(1)), (most, most));
    for conn in 0..40 {
        world.joins(conn, 1, Priority::Rollback);
    }
    for _ in 0..4 {
        world.arrive();
    }
    assert_eq!((world.leased(0), world.leased(1)), (1, most));
}

/// The store gave one reader a tenth of what it gave the others, for TCP divides a link as it likes. At the end its leases alone were left, and
/// all waited for what came there.
#[test]
fn at_the_end_nobody_has_many_pieces_that_all_wait_for() {
    let (mut world, slow) = (World::new(), ConnId(0));
    for conn in 0..7 {
        world.joins(conn, 0, Priority::Normal);
    }
    let left = |world: &World| world.leases[&(slow, shape(0).digest())].len();
    let many = left(&world);
    assert!(many >= 8, "{many}");
    let mut rounds = 0;
    while world.leased(0) > left(&world) {
        world.arrive_of_each(|conn| if conn == slow { 1 } else { usize::MAX });
        rounds += 1;
    }
    assert!(rounds > 20, "{rounds}");
    assert!(left(&world) * 2 < many, "{} of {many}", left(&world));
}

/// While it was told that nothing is left to lease, it called for help as long as anything was; and when all readers died it stood alone.
#[test]
fn who_comes_beyond_the_most_readers_waits_until_one_leaves() {
    let mut world = World::with(Settings { max_readers: 2, ..Settings::default() });
    let digest = shape(0).digest();
    for conn in 1..=4 {
        world.joins(conn, 0, Priority::Normal);
    }
    let readers = |world: &World| {
        world.leases.iter().filter(|(_, pieces)| !pieces.is_empty()).map(|((conn, _), _)| conn.0).collect::<Vec<_>>()
    };
    assert_eq!((readers(&world), &world.drained[..]), (vec![1, 2], &[][..]));
    for (gone, next) in [(1, vec![2, 3]), (2, vec![3, 4])] {
        world.leases.remove(&(ConnId(gone), digest));
        world.input(Input::Disconnected(ConnId(gone)));
        assert_eq!((readers(&world), &world.drained[..]), (next, &[][..]));
    }
    world.joins(5, 0, Priority::Normal);
    while !world.leases.values().all(Vec::is_empty) {
        world.arrive();
    }
    world.drained.sort_unstable();
    assert_eq!(world.drained, [3, 4, 5].map(ConnId), "each once");
}
