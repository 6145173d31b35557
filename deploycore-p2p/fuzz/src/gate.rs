//! A gate, told whatever may be said to it, in front of a store and a disk that work or fail.

use std::collections::{BTreeMap, BTreeSet};

use deploycore::model::Digest;
use deploycore_p2p::core::gate::{Gate, Input, Output, Record, Settings};
use deploycore_p2p::core::message::{ConnId, Message, PeerId};
use deploycore_p2p::core::time::Instant;

use super::script::{MAX_BLOCK, Places, SIZES, Step, digest, shape_of, steps};

/// It counts before it serves, serves what it leased, once, and stays within the budget.
pub fn run(input: &[u8]) {
    let settings = Settings {
        max_artifacts: 2,
        max_loading: 2,
        max_links: 6,
        max_readers: 4,
        max_block: MAX_BLOCK,
        ..Settings::default()
    };
    let mut world = World {
        gate: Gate::new(settings.clone(), PeerId(100), "g:1".into(), Instant::ZERO),
        settings,
        places: Places::default(),
        now: Instant::ZERO,
        durable: BTreeMap::new(),
        served: BTreeMap::new(),
        leases: BTreeSet::new(),
        todo: Vec::new(),
    };
    for step in steps(input) {
        world.step(step);
    }
}

struct World {
    gate: Gate,
    settings: Settings,
    places: Places,
    now: Instant,
    durable: BTreeMap<Digest, Record>,
    /// Bytes that were read.
    served: BTreeMap<Digest, u64>,
    /// Leases told, and the blocks of each that were not served.
    leases: BTreeSet<(ConnId, Digest, u32, u32)>,
    /// What waits to be done.
    todo: Vec<Output>,
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Connect(who, role, dialed) => {
                let (conn, before) = self.places.connect(who);
                if let Some(before) = before {
                    self.input(Input::Disconnected(before));
                }
                self.input(Input::Connected { conn, peer: PeerId(who as u64), role, dialed });
            }
            Step::Disconnect(who) => {
                if let Some(conn) = self.places.disconnect(who) {
                    self.input(Input::Disconnected(conn));
                }
            }
            Step::Say(who, message) => {
                if let Some(conn) = self.places.get(who) {
                    self.input(Input::Message(conn, message));
                }
            }
            Step::Answer { well, which } if !self.todo.is_empty() => {
                let output = self.todo.remove(usize::from(which) % self.todo.len());
                self.answer(output, well);
            }
            Step::Pass(time) => {
                self.now = self.now + time;
                self.input(Input::Timeout);
            }
            _ => {}
        }
    }

    fn answer(&mut self, output: Output, well: bool) {
        match output {
            Output::Load(digest) => {
                let found = shape_of(&digest).filter(|_| well).map(|shape| {
                    let record = self.durable.get(&digest).cloned();
                    (shape.size(), record.unwrap_or_else(|| Record::new(&shape)))
                });
                self.input(Input::Loaded(digest, found));
            }
            Output::Persist(digest, version, record) => {
                self.durable.insert(digest, record);
                self.input(Input::Persisted(digest, version));
            }
            Output::Serve { conn, digest, lease, piece, block, len, .. } if !well => {
                // It fails before it begins, or in the midst of it.
                let unread = piece % 2 == 0;
                if unread {
                    *self.served.entry(digest).or_default() -= u64::from(len);
                }
                self.input(Input::ReadFailed { conn, digest, lease, piece, block, unread });
            }
            _ => {}
        }
    }

    fn input(&mut self, input: Input) {
        self.gate.handle(input, self.now);
        while let Some(output) = self.gate.poll_output() {
            match &output {
                Output::Send(conn, message) => self.says(*conn, message),
                Output::Close(conn, _) => {
                    self.places.closed(*conn);
                    self.gate.handle(Input::Disconnected(*conn), self.now);
                }
                Output::Load(of) => {
                    let loads = self.todo.iter().filter(|todo| matches!(todo, Output::Load(_)));
                    assert!(loads.clone().count() < self.settings.max_loading, "more are loaded than may be");
                    assert!(loads.clone().all(|todo| *todo != Output::Load(*of)), "{of} is loaded already");
                }
                Output::Persist(of, _, record) => self.check_record(of, record),
                Output::Serve { conn, digest, piece, block, offset, len, .. } => {
                    let shape = shape_of(digest).expect("only what is there is served");
                    assert_eq!((*offset, *len), (shape.offset(*piece, *block), shape.block_len(*piece, *block)));
                    assert!(*len > 0 && offset + u64::from(*len) <= shape.size());
                    let leased = self.leases.remove(&(*conn, *digest, *piece, *block));
                    assert!(leased, "block {block} of piece {piece} is served without a lease, or twice");
                    let served = self.served.entry(*digest).or_default();
                    *served += u64::from(*len);
                    let durable = &self.durable[digest];
                    assert!(*served <= durable.leased + durable.recovery, "{served} bytes, uncounted: {durable:?}");
                }
            }
            if !matches!(output, Output::Send(..) | Output::Close(..)) {
                self.todo.push(output);
            }
        }
        let known = (0..SIZES.len()).filter_map(|which| self.gate.usage(&digest(which)));
        // What is in use is not dropped; what waits to be loaded comes on top.
        assert!(known.count() <= self.settings.max_artifacts + self.settings.max_loading);
    }

    fn says(&mut self, conn: ConnId, message: &Message) {
        self.places.check_send(conn, message);
        if let Message::Lease { digest, pieces, .. } = message {
            let shape = shape_of(digest).expect("only what is there is leased");
            for piece in pieces {
                assert!(*piece < shape.pieces());
                self.leases.extend((0..shape.blocks(*piece)).map(|block| (conn, *digest, *piece, block)));
            }
        }
    }

    fn check_record(&self, digest: &Digest, record: &Record) {
        let shape = shape_of(digest).expect("only what is there is counted");
        let persisting = self.todo.iter().any(|todo| matches!(todo, Output::Persist(of, ..) if of == digest));
        assert!(!persisting, "one record is written at a time");
        let budget = (shape.size() as f64 * 1.2).max((shape.size() + 8 * shape.piece_size()) as f64);
        assert!(record.leased as f64 <= budget, "{record:?}");
        assert!(record.fits(&shape), "{record:?}");
    }
}
