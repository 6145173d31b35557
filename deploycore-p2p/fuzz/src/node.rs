//! A node, told whatever may be said to it, on a network and a disk that work or fail.

use bytes::Bytes;
use deploycore::port::swarm::{Limits, Priority};
use deploycore_p2p::core::bitfield::Bitfield;
use deploycore_p2p::core::message::{Addr, Block, Message, PeerId};
use deploycore_p2p::core::peer::{Input, Output, Peer, Settings, Start};
use deploycore_p2p::core::time::Instant;

use super::script::{MAX_BLOCK, PLACES, Places, SIZES, Step, digest, shape, shape_of, steps, zone_of};

/// It asks for what it lacks, serves what it verified, and when it is told to end it owes nothing.
pub fn run(input: &[u8]) {
    let settings = Settings { max_links: 6, slots: 2, degree: 4, max_block: MAX_BLOCK, ..Settings::default() };
    let (rng, trackers) = (fastrand::Rng::with_seed(1), vec!["t:1".into()]);
    let mut world = World {
        node: Peer::new(settings.clone(), PeerId(100), "m:1".into(), trackers, rng, Instant::ZERO)
            .with_zone(zone_of(1)),
        settings,
        places: Places::default(),
        now: Instant::ZERO,
        todo: Vec::new(),
        dials: Vec::new(),
    };
    world.input(Input::Timeout);
    for step in steps(input) {
        world.step(step);
    }
    for who in 0..PLACES {
        world.step(Step::Disconnect(who));
    }
    for which in 0..SIZES.len() {
        world.step(Step::Leave(which));
    }
    let totals = world.node.totals();
    assert_eq!((totals.fetching, totals.seeding, totals.peers), (0, 0, 0), "{totals:?}");
}

struct World {
    node: Peer,
    settings: Settings,
    places: Places,
    now: Instant,
    /// What waits to be done.
    todo: Vec<Output>,
    dials: Vec<Addr>,
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Connect(who, role, dialed) => {
                let (conn, before) = self.places.connect(who);
                if let Some(before) = before {
                    self.input(Input::Disconnected(before));
                }
                let dialed = if dialed { self.dials.pop() } else { None };
                let (peer, incarnation) = (PeerId((who % (PLACES - 1)) as u64), conn.0 / 3);
                let zone = zone_of(who);
                self.input(Input::Connected { conn, peer, incarnation, role, zone, dialed });
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
            Step::Block { who, which, piece, block, len } => {
                let (piece, block) = (u32::from(piece), u32::from(block));
                let right = shape(which).block_len(piece, block) as usize;
                let len = if len % 4 > 0 && right > 0 { right } else { usize::from(len) + 1 };
                let block = Block { digest: digest(which), piece, block, data: Bytes::from(vec![0; len]) };
                if let Some(conn) = self.places.get(who) {
                    self.input(Input::Block(conn, block));
                }
            }
            Step::Begin(which, set) => {
                let shape = shape(which);
                let mut have = Bitfield::new(shape.pieces());
                (0..shape.pieces()).filter(|piece| set >> (piece % 8) & 1 == 1).for_each(|piece| {
                    have.insert(piece);
                });
                let (priority, limits) = (Priority::Normal, Limits::default());
                self.input(Input::Start(Box::new(Start { shape, have, priority, limits })));
            }
            Step::Leave(which) => self.input(Input::Stop(digest(which))),
            Step::Answer { well, which } => {
                if !self.todo.is_empty() {
                    let output = self.todo.remove(usize::from(which) % self.todo.len());
                    self.answer(output, well);
                }
            }
            Step::Pass(time) => {
                self.now = self.now + time;
                self.input(Input::Timeout);
            }
        }
    }

    fn answer(&mut self, output: Output, well: bool) {
        match output {
            Output::Connect(addr, _) if well => self.dials.push(addr),
            Output::Connect(addr, _) => self.input(Input::ConnectFailed(addr)),
            Output::Send(conn, Message::Request { digest, piece, block, count }) => {
                let shape = shape_of(&digest).expect("it asks for what it fetches");
                for block in block..block + count {
                    let len = if well { shape.block_len(piece, block) } else { 9 };
                    let data = Bytes::from(vec![0; len as usize]);
                    self.input(Input::Block(conn, Block { digest, piece, block, data }));
                }
            }
            Output::SendBlock { conn, len, .. } if well => self.input(Input::Sent(conn, len)),
            Output::SendBlock { conn, digest, piece, block, .. } => {
                self.input(Input::ReadFailed { conn, digest, piece, block });
            }
            Output::Store { digest, piece, blocks, .. } => {
                let blocks = (0..blocks.len() as u8).map(|block| [block; 32]).collect();
                self.input(Input::Stored { digest, piece, verified: well, blocks });
            }
            _ => {}
        }
    }

    fn input(&mut self, input: Input) {
        self.node.handle(input, self.now);
        while let Some(output) = self.node.poll_output() {
            self.check(&output);
            match output {
                Output::Close(conn, _) => {
                    self.places.closed(conn);
                    self.node.handle(Input::Disconnected(conn), self.now);
                }
                Output::Send(_, Message::Request { .. }) => self.todo.push(output),
                Output::Send(..) | Output::Complete(_) => {}
                _ => self.todo.push(output),
            }
        }
        assert!(self.node.totals().peers as usize <= self.settings.max_links);
    }

    fn check(&self, output: &Output) {
        match output {
            Output::Send(conn, message) => {
                self.places.check_send(*conn, message);
                if let Message::Request { digest, piece, block, count } = message {
                    let shape = shape_of(digest).expect("it asks for what it fetches");
                    assert!(*count > 0 && block + count <= shape.blocks(*piece), "no such blocks: {message:?}");
                    let have = self.node.have(digest);
                    assert!(have.is_none_or(|have| !have.contains(*piece)), "it has piece {piece}");
                }
            }
            Output::SendBlock { digest, piece, block, offset, len, .. } => {
                let shape = shape_of(digest).expect("it serves what it takes part in");
                assert!(self.node.have(digest).is_some_and(|have| have.contains(*piece)), "not verified: {output:?}");
                assert_eq!((*offset, *len), (shape.offset(*piece, *block), shape.block_len(*piece, *block)));
                assert!(*len > 0);
            }
            Output::Store { digest, piece, blocks, .. } => {
                let shape = shape_of(digest).expect("it stores what it fetches");
                let lens = (0..shape.blocks(*piece)).map(|block| shape.block_len(*piece, block) as usize);
                assert!(blocks.iter().map(Bytes::len).eq(lens), "another piece {piece}");
            }
            Output::Complete(digest) => {
                assert!(self.node.have(digest).is_some_and(Bitfield::is_full));
            }
            Output::Connect(..) | Output::Close(..) => {}
        }
    }
}
