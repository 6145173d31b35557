//! Invariant 9 at the gate, whatever its readers do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use deploycore::model::Digest;
use deploycore::port::swarm::Priority;
use deploycore_p2p::core::bitfield::{Bitfield, PackedBits};
use deploycore_p2p::core::gate::{Gate, Input, Output, Record, Settings};
use deploycore_p2p::core::message::{ConnId, Message, PeerId, Refusal, Role};
use deploycore_p2p::core::shape::Shape;
use deploycore_p2p::core::time::Instant;
use proptest::prelude::*;

const TRACKER: ConnId = ConnId(0);

#[derive(Debug, Clone)]
enum Step {
    /// Takes part with the pieces whose number, divided by 64, has a remainder in the set.
    Join(u64, u64),
    Die(u64),
    /// Reads a block of each lease.
    Read(u64),
    /// Reports all leased pieces as verified.
    Arrive(u64),
    /// Says that its first leased piece did not verify.
    Reject(u64),
    Stuck(u64, u32),
    /// The tracker answers the census: nobody holds anything, or everybody everything.
    Answer(bool),
    Pass(u64),
    /// The store fails from now on, or no more.
    StoreFails(bool),
    /// A store that fails does so in the midst of a block, or before.
    BreaksOff(bool),
    /// So many reads that failed are told.
    TellFailures(usize),
    /// Records wait to become durable from now on, or no more.
    DiskWaits(bool),
    /// The record that waits becomes durable.
    Persist,
    /// The record that waits may have become durable before the gate died.
    RestartGate(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (1..6_u64).prop_map(|reader| Step::Join(reader, 0)),
        1 => (1..6_u64, any::<u64>()).prop_map(|(reader, have)| Step::Join(reader, have)),
        2 => (1..6_u64).prop_map(Step::Die),
        6 => (1..6_u64).prop_map(Step::Read),
        2 => (1..6_u64).prop_map(Step::Arrive),
        1 => (1..6_u64).prop_map(Step::Reject),
        3 => (1..6_u64, 0..40_u32).prop_map(|(reader, piece)| Step::Stuck(reader, piece)),
        2 => any::<bool>().prop_map(Step::Answer),
        3 => (1..20_000_u64).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::StoreFails),
        1 => any::<bool>().prop_map(Step::BreaksOff),
        2 => (0..10_usize).prop_map(Step::TellFailures),
        1 => any::<bool>().prop_map(Step::DiskWaits),
        3 => Just(Step::Persist),
        1 => any::<bool>().prop_map(Step::RestartGate),
    ];
    prop::collection::vec(step, 1..120)
}

struct World {
    shape: Shape,
    settings: Settings,
    gate: Gate,
    now: Instant,
    durable: Option<Record>,
    disk_waits: bool,
    persisting: Option<(u64, Record)>,
    store_fails: bool,
    breaks_off: bool,
    failed: VecDeque<Input>,
    leases: BTreeMap<ConnId, Vec<u32>>,
    census: Vec<u32>,
    /// Pieces that nobody holds, as far as the gate was told.
    ownerless: BTreeSet<u32>,
    /// Reads that the gate asked for, and bytes that it got.
    asked: u64,
    served: u64,
    piece_reads: BTreeMap<(u32, u32), u64>,
}

impl World {
    fn new(pieces: u64) -> Self {
        Self::of_size(pieces * (256 << 10) - 5)
    }

    fn of_size(size: u64) -> Self {
        let shape = Shape::new(Digest::of(b"a"), size);
        let settings = Settings::default();
        let gate = Gate::new(settings.clone(), PeerId(9), "g:1".into(), Instant::ZERO);
        let mut world = Self {
            shape,
            settings,
            gate,
            now: Instant::ZERO,
            durable: None,
            disk_waits: false,
            persisting: None,
            store_fails: false,
            breaks_off: false,
            failed: VecDeque::new(),
            leases: BTreeMap::new(),
            census: vec![],
            ownerless: BTreeSet::new(),
            asked: 0,
            served: 0,
            piece_reads: BTreeMap::new(),
        };
        world.tracker_connects();
        world
    }

    fn tracker_connects(&mut self) {
        self.input(Input::Connected { conn: TRACKER, peer: PeerId(8), role: Role::Tracker, dialed: true });
    }

    fn input(&mut self, input: Input) {
        self.gate.handle(input, self.now);
        while let Some(output) = self.gate.poll_output() {
            match output {
                Output::Load(digest) => {
                    let record = self.durable.clone().unwrap_or_else(|| Record::new(&self.shape));
                    self.gate.handle(Input::Loaded(digest, Some((self.shape.size(), record))), self.now);
                }
                Output::Persist(_, version, record) => {
                    assert!(self.persisting.is_none(), "one record is written at a time");
                    self.persisting = Some((version, record));
                    if !self.disk_waits {
                        self.persist();
                    }
                }
                Output::Send(conn, Message::Lease { pieces, .. }) => {
                    self.leases.entry(conn).or_default().extend(pieces);
                }
                Output::Send(_, Message::Census { pieces, .. }) => self.census = pieces,
                Output::Serve { conn, digest, lease, piece, block, len, .. } => {
                    self.asked += 1;
                    if self.store_fails {
                        // What was given before it broke off is read.
                        let unread = !self.breaks_off;
                        self.served += if unread { 0 } else { u64::from(len) };
                        self.failed.push_back(Input::ReadFailed { conn, digest, lease, piece, block, unread });
                        let durable = self.durable.as_ref().expect("counted before it is served");
                        assert!(self.served <= durable.leased + durable.recovery, "read more than is durably counted");
                        continue;
                    }
                    self.served += u64::from(len);
                    *self.piece_reads.entry((piece, block)).or_default() += 1;
                    let durable = self.durable.as_ref().expect("counted before it is served");
                    assert!(self.served <= durable.leased + durable.recovery, "served more than is durably counted");
                }
                Output::Send(..) | Output::Close(..) => {}
            }
        }
    }

    /// What waits is durable, and the gate may learn of it: the rest of what it wants is done by the next input.
    fn persist(&mut self) {
        let Some((version, record)) = self.persisting.take() else { return };
        self.replace(&record);
        self.gate.handle(Input::Persisted(self.shape.digest(), version), self.now);
    }

    /// Each recovered byte is of a piece that nobody held.
    fn replace(&mut self, record: &Record) {
        let before = self.durable.replace(record.clone()).unwrap_or_else(|| Record::new(&self.shape));
        let granted = |piece: &&u32| record.reads[**piece as usize] > before.reads[**piece as usize];
        let ownerless: u64 = self.ownerless.iter().filter(granted).map(|piece| self.shape.piece_len(*piece)).sum();
        assert!(record.recovery <= before.recovery + ownerless, "a piece was recovered that somebody may hold");
    }

    fn says(&mut self, reader: u64, message: Message) {
        self.input(Input::Message(ConnId(reader), message));
    }

    fn step(&mut self, step: &Step) {
        let digest = self.shape.digest();
        match *step {
            Step::Join(reader, set) => {
                let (conn, size) = (ConnId(reader), self.shape.size());
                self.input(Input::Connected { conn, peer: PeerId(reader), role: Role::Node, dialed: false });
                let mut have = Bitfield::new(self.shape.pieces());
                (0..self.shape.pieces()).filter(|piece| set >> (piece % 64) & 1 == 1).for_each(|piece| {
                    have.insert(piece);
                });
                self.ownerless.retain(|piece| !have.contains(*piece));
                let have = PackedBits::from(&have);
                self.says(reader, Message::Join { digest, size, have, priority: Priority::Normal });
            }
            Step::Die(reader) => {
                self.leases.remove(&ConnId(reader));
                self.input(Input::Disconnected(ConnId(reader)));
            }
            Step::Read(reader) => {
                for piece in self.leases.get(&ConnId(reader)).cloned().unwrap_or_default() {
                    let count = self.shape.blocks(piece);
                    self.says(reader, Message::Request { digest, piece, block: 0, count });
                }
            }
            Step::Arrive(reader) => {
                let pieces = self.leases.remove(&ConnId(reader)).unwrap_or_default();
                self.ownerless.retain(|piece| !pieces.contains(piece));
                let count = pieces.len() as u32;
                self.says(reader, Message::Have { digest, pieces: pieces.into(), count });
            }
            Step::Reject(reader) => {
                if let Some(piece) = self.leases.get_mut(&ConnId(reader)).and_then(Vec::pop) {
                    self.says(
                        reader,
                        Message::Reject { digest, piece, block: 0, count: 1, refusal: Refusal::BadBytes },
                    );
                }
            }
            Step::Stuck(reader, piece) => {
                let (pieces, refused) = ((piece..piece + 20).collect(), vec![]);
                self.says(reader, Message::Stuck { digest, pieces, refused });
            }
            Step::Answer(held) => {
                let asked = std::mem::take(&mut self.census);
                if !held {
                    self.ownerless.extend(&asked);
                }
                let pieces = asked.into_iter().map(|piece| (piece, u32::from(held))).collect();
                let holders = Message::Holders { digest, pieces, stale_millis: 1_000, settled: true };
                self.input(Input::Message(TRACKER, holders));
            }
            Step::Pass(millis) => {
                self.now = self.now + Duration::from_millis(millis);
                self.input(Input::Timeout);
            }
            Step::StoreFails(fails) => self.store_fails = fails,
            Step::BreaksOff(breaks) => self.breaks_off = breaks,
            Step::TellFailures(count) => {
                for input in self.failed.drain(..count.min(self.failed.len())).collect::<Vec<_>>() {
                    self.input(input);
                }
            }
            Step::DiskWaits(waits) => {
                self.disk_waits = waits;
                if !waits {
                    self.persist();
                    self.input(Input::Timeout);
                }
            }
            Step::Persist => {
                self.persist();
                self.input(Input::Timeout);
            }
            Step::RestartGate(written) => {
                match self.persisting.take() {
                    Some((_, record)) if written => self.replace(&record),
                    _ => {}
                }
                self.leases.clear();
                self.failed.clear();
                self.gate = Gate::new(self.settings.clone(), PeerId(9), "g:1".into(), self.now);
                self.tracker_connects();
            }
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let Some(record) = &self.durable else { return Ok(()) };
        let (size, piece) = (self.shape.size(), self.shape.piece_size());
        let budget = (size as f64 * 1.2).max((size + 8 * piece) as f64);
        prop_assert!(record.leased as f64 <= budget, "{record:?}");
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_budget_is_never_passed_and_nothing_is_served_uncounted(pieces in 1..60_u64, steps in steps()) {
        let mut world = World::new(pieces);
        for step in steps {
            world.step(&step);
            world.check()?;
        }
    }

    #[test]
    fn without_deaths_each_block_is_read_once(pieces in 1..60_u64, readers in 1..6_u64) {
        let mut world = World::new(pieces);
        for reader in 1..=readers {
            world.step(&Step::Join(reader, 0));
        }
        for _ in 0..2 * pieces {
            for reader in 1..=readers {
                world.step(&Step::Read(reader));
                world.step(&Step::Arrive(reader));
            }
        }
        prop_assert_eq!(world.served, world.shape.size());
        prop_assert!(world.piece_reads.values().all(|reads| *reads == 1));
    }
}

/// Pieces of eight blocks, of which the node asks for all at once.
const LARGE: u64 = 9 << 30;

#[test]
fn a_store_that_fails_costs_nothing_and_is_not_asked_again_at_once() {
    for size in [LARGE, 20 * (256 << 10)] {
        let mut world = World::of_size(size);
        for reader in 1..6 {
            world.step(&Step::Join(reader, 0));
        }
        world.step(&Step::StoreFails(true));
        let outage = 600;
        for _ in 0..outage * 10 {
            for reader in 1..6 {
                world.step(&Step::Read(reader));
                world.leases.remove(&ConnId(reader));
            }
            world.step(&Step::TellFailures(usize::MAX));
            world.step(&Step::Pass(100));
            world.step(&Step::Stuck(1, 0));
            world.step(&Step::Answer(false));
        }
        let record = world.durable.clone().unwrap();
        let under_way = 64 * world.shape.piece_size();
        assert!(record.leased <= under_way && record.recovery == 0, "{} {}", record.leased, record.recovery);
        assert!(world.asked < outage / 5 * 64 * 8 * 2, "{} reads of a store that fails", world.asked);

        world.step(&Step::StoreFails(false));
        for _ in 0..4 * world.shape.pieces() {
            for reader in 1..6 {
                world.step(&Step::Read(reader));
                world.step(&Step::Arrive(reader));
            }
            world.step(&Step::Pass(100));
        }
        let record = world.durable.clone().unwrap();
        assert_eq!((world.served, record.leased, record.recovery), (size, size, 0));
    }
}

#[test]
fn a_rotten_piece_is_read_ever_more_seldom_and_the_others_come() {
    let mut world = World::new(20);
    for reader in 1..4 {
        world.step(&Step::Join(reader, 0));
    }
    let rotten = 7;
    for _ in 0..36_000 {
        for reader in 1..4 {
            world.step(&Step::Read(reader));
            let leased = world.leases.remove(&ConnId(reader)).unwrap_or_default();
            let (bad, good): (Vec<u32>, Vec<u32>) = leased.into_iter().partition(|piece| *piece == rotten);
            for piece in bad {
                world.leases.entry(ConnId(reader)).or_default().push(piece);
                world.step(&Step::Reject(reader));
            }
            let (digest, count) = (world.shape.digest(), good.len() as u32);
            world.says(reader, Message::Have { digest, pieces: good.into(), count });
        }
        let digest = world.shape.digest();
        world.says(1, Message::Stuck { digest, pieces: vec![rotten], refused: vec![] });
        world.step(&Step::Answer(false));
        world.step(&Step::Pass(100));
    }
    let reads = world.piece_reads[&(rotten, 0)];
    // An hour: ten within the first quarter, then one each eight minutes and a half.
    assert!((10..=20).contains(&reads), "{reads}");
    assert!((0..20).all(|piece| piece == rotten || world.piece_reads[&(piece, 0)] == 1));
}
