//! Invariant 9 at the gate, whatever its readers do.

use std::collections::BTreeMap;
use std::time::Duration;

use deploycore::model::Digest;
use deploycore::port::swarm::Priority;
use deploycore_p2p::core::bitfield::{Bitfield, PackedBits};
use deploycore_p2p::core::gate::{Gate, Input, Output, Record, Settings};
use deploycore_p2p::core::message::{ConnId, Message, PeerId, Role};
use deploycore_p2p::core::shape::Shape;
use deploycore_p2p::core::time::Instant;
use proptest::prelude::*;

const TRACKER: ConnId = ConnId(0);

#[derive(Debug, Clone)]
enum Step {
    Join(u64),
    Die(u64),
    /// Reads a block of each lease.
    Read(u64),
    /// Reports all leased pieces as verified.
    Arrive(u64),
    Stuck(u64, u32),
    /// The tracker answers the census: nobody holds anything, or everybody everything.
    Answer(bool),
    Pass(u64),
    RestartGate,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..6_u64).prop_map(Step::Join),
        2 => (1..6_u64).prop_map(Step::Die),
        6 => (1..6_u64).prop_map(Step::Read),
        2 => (1..6_u64).prop_map(Step::Arrive),
        3 => (1..6_u64, 0..40_u32).prop_map(|(reader, piece)| Step::Stuck(reader, piece)),
        2 => any::<bool>().prop_map(Step::Answer),
        3 => (1..20_000_u64).prop_map(Step::Pass),
        1 => Just(Step::RestartGate),
    ];
    prop::collection::vec(step, 1..120)
}

struct World {
    shape: Shape,
    settings: Settings,
    gate: Gate,
    now: Instant,
    durable: Option<Record>,
    leases: BTreeMap<ConnId, Vec<u32>>,
    census: Vec<u32>,
    served: u64,
    piece_reads: BTreeMap<(u32, u32), u64>,
}

impl World {
    fn new(pieces: u64) -> Self {
        let shape = Shape::new(Digest::of(b"a"), pieces * (256 << 10) - 5);
        let settings = Settings::default();
        let gate = Gate::new(settings.clone(), PeerId(9), "g:1".into(), Instant::ZERO);
        let mut world = Self {
            shape,
            settings,
            gate,
            now: Instant::ZERO,
            durable: None,
            leases: BTreeMap::new(),
            census: vec![],
            served: 0,
            piece_reads: BTreeMap::new(),
        };
        world.input(Input::Connected { conn: TRACKER, peer: PeerId(8), role: Role::Tracker });
        world
    }

    fn input(&mut self, input: Input) {
        self.gate.handle(input, self.now);
        while let Some(output) = self.gate.poll_output() {
            match output {
                Output::Load(digest) => {
                    let record = self.durable.clone().unwrap_or_else(|| Record::new(&self.shape));
                    self.gate.handle(Input::Loaded(digest, Some((self.shape.size(), record))), self.now);
                }
                Output::Persist(digest, version, record) => {
                    self.durable = Some(record);
                    self.gate.handle(Input::Persisted(digest, version), self.now);
                }
                Output::Send(conn, Message::Lease { pieces, .. }) => {
                    self.leases.entry(conn).or_default().extend(pieces);
                }
                Output::Send(_, Message::Census { pieces, .. }) => self.census = pieces,
                Output::Serve { piece, block, len, .. } => {
                    self.served += u64::from(len);
                    *self.piece_reads.entry((piece, block)).or_default() += 1;
                    let durable = self.durable.as_ref().expect("counted before it is served");
                    assert!(self.served <= durable.leased + durable.recovery, "served more than is durably counted");
                }
                Output::Send(..) | Output::Close(..) => {}
            }
        }
    }

    fn step(&mut self, step: &Step) {
        let digest = self.shape.digest();
        match *step {
            Step::Join(reader) => {
                let (conn, size) = (ConnId(reader), self.shape.size());
                self.input(Input::Connected { conn, peer: PeerId(reader), role: Role::Node });
                let have = PackedBits::from(&Bitfield::new(self.shape.pieces()));
                let join = Message::Join { digest, size, have, priority: Priority::Normal };
                self.input(Input::Message(conn, join));
            }
            Step::Die(reader) => {
                self.leases.remove(&ConnId(reader));
                self.input(Input::Disconnected(ConnId(reader)));
            }
            Step::Read(reader) => {
                for piece in self.leases.get(&ConnId(reader)).cloned().unwrap_or_default() {
                    self.input(Input::Message(ConnId(reader), Message::Request { digest, piece, block: 0 }));
                }
            }
            Step::Arrive(reader) => {
                let pieces = self.leases.remove(&ConnId(reader)).unwrap_or_default();
                let count = pieces.len() as u32;
                self.input(Input::Message(ConnId(reader), Message::Have { digest, pieces, count }));
            }
            Step::Stuck(reader, piece) => {
                let (pieces, refused) = ((piece..piece + 20).collect(), vec![]);
                self.input(Input::Message(ConnId(reader), Message::Stuck { digest, pieces, refused }));
            }
            Step::Answer(held) => {
                let pieces =
                    std::mem::take(&mut self.census).into_iter().map(|piece| (piece, u32::from(held))).collect();
                let holders = Message::Holders { digest, pieces, stale_millis: 1_000, settled: true };
                self.input(Input::Message(TRACKER, holders));
            }
            Step::Pass(millis) => {
                self.now = self.now + Duration::from_millis(millis);
                self.input(Input::Timeout);
            }
            Step::RestartGate => {
                self.leases.clear();
                self.gate = Gate::new(self.settings.clone(), PeerId(9), "g:1".into(), self.now);
                self.input(Input::Connected { conn: TRACKER, peer: PeerId(8), role: Role::Tracker });
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
            world.step(&Step::Join(reader));
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
