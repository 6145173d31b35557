//! Whatever others say, in whatever order: no machine panics, and what a node keeps stays consistent, which it asserts at each tick.

use std::time::Duration;

use bytes::Bytes;
use deploycore::model::Digest;
use deploycore::port::swarm::{Limits, Priority};
use deploycore_p2p::core::bitfield::{Bitfield, PackedBits};
use deploycore_p2p::core::gate::{self, Gate, Record};
use deploycore_p2p::core::message::{
    Addr, Announcement, Block, ConnId, Contact, Message, PeerId, Refusal, Role, Standing, Zone, ZonePart,
};
use deploycore_p2p::core::peer::{self, Peer};
use deploycore_p2p::core::shape::Shape;
use deploycore_p2p::core::time::Instant;
use deploycore_p2p::core::tracker::{self, Tracker};
use proptest::prelude::*;

/// The sizes of the artifacts as their manifests say.
const SIZES: [u64; 3] = [20 * (256 << 10) - 7, 700 << 20, 0];

fn digest(which: usize) -> Digest {
    Digest::of(&[which as u8])
}

fn shape(which: usize) -> Shape {
    Shape::new(digest(which), SIZES[which])
}

#[derive(Debug, Clone)]
enum Step {
    Connect(u64, Role, bool),
    Disconnect(u64),
    Say(u64, Message),
    Block(u64, usize, u32, u32, usize),
    Start(usize, u64),
    /// Adjusts an artifact, or the node's limits.
    Adjust(Option<usize>, Priority, Limits),
    Stop(usize),
    /// Answers what the machine wanted done, well or badly.
    Answer(bool),
    Pass(u64),
}

fn pieces() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..25_u32, 1 => 0..3_000_u32, 1 => any::<u32>()]
}

fn size() -> impl Strategy<Value = (usize, u64)> {
    (0..SIZES.len()).prop_flat_map(|which| {
        let size = prop_oneof![5 => Just(SIZES[which]), 1 => 0..1_u64 << 24, 1 => any::<u64>(), 1 => Just(1 << 40)];
        (Just(which), size)
    })
}

fn packed() -> impl Strategy<Value = (Digest, u64, PackedBits)> {
    (size(), any::<u64>(), any::<bool>()).prop_map(|((which, size), set, fits)| {
        let len = if fits { Shape::new(digest(which), size.min(1 << 40)).pieces() } else { 77 };
        let mut bits = Bitfield::new(len);
        (0..len.min(4_000)).filter(|piece| set >> (piece % 64) & 1 == 1).for_each(|piece| {
            bits.insert(piece);
        });
        (digest(which), size, PackedBits::from(&bits))
    })
}

fn message() -> impl Strategy<Value = Message> {
    let digest = (0..SIZES.len()).prop_map(digest);
    let block = prop_oneof![4 => Just(0_u32), 2 => 0..9_u32, 1 => any::<u32>()];
    let list = prop::collection::vec(pieces(), 0..30);
    let contacts = prop::collection::vec(0..6_u64, 0..5).prop_map(|peers| {
        let contact = |peer| Contact { peer: PeerId(peer), addr: Addr::from(format!("m{peer}:1")) };
        peers.into_iter().map(contact).collect::<Vec<_>>()
    });
    let refusal = prop_oneof![Just(Refusal::MissingPiece), Just(Refusal::NotLeased), Just(Refusal::BadBytes)];
    (packed(), digest, pieces(), block, list, contacts, refusal, any::<u32>(), 0..24_u8).prop_map(
        |((of, size, have), digest, piece, block, pieces, contacts, refusal, number, which)| match which {
            0 | 1 => Message::Join { digest: of, size, have, priority: Priority::Rollback },
            2 => Message::Join { digest: of, size, have, priority: Priority::Normal },
            3 => Message::Leave { digest },
            4 => Message::Have { digest, pieces: pieces.into(), count: number },
            5 | 6 => Message::Request { digest, piece, block, count: number % 9 },
            7 => Message::Cancel { digest, piece, block },
            8 => Message::Busy { digest, piece, block, count: number },
            9 => Message::Reject { digest, piece, block, count: number, refusal },
            10 => Message::Ready { digest },
            11 => Message::Pass { digest },
            12 | 13 => Message::Lease { digest, pieces, millis: number },
            14 => Message::Drained { digest },
            15 => Message::Absent { digest },
            16 => Message::Stuck { digest, pieces, refused: vec![PeerId(u64::from(number % 5))] },
            17 => {
                let (addr, wanted) = ("0.0.0.0:1".into(), number as u16);
                let (millis, much) = ((number % 3 > 0).then_some(number), u64::MAX / u64::from(number % 3 + 1));
                let standing = Standing { millis, from_store: much, from_peers: much, ..Standing::default() };
                let part = Announcement { digest: of, size, addr, have, need: pieces, wanted, standing };
                Message::Announce(Box::new(part))
            }
            18 => Message::Withdraw { digest },
            19 => {
                let part = (number % 2 == 0).then_some(ZonePart { index: number, of: number / 2 });
                Message::Introduce { digest, peers: contacts, millis: number, part }
            }
            20 => Message::Gates { gates: contacts },
            21 => Message::Census { digest, pieces, except: vec![PeerId(1)] },
            22 => Message::Await { digest },
            _ => {
                let pieces = pieces.into_iter().map(|piece| (piece, number % 2)).collect();
                Message::Holders { digest, pieces, stale_millis: number % 5_000, settled: number % 3 > 0 }
            }
        },
    )
}

fn priority() -> impl Strategy<Value = Priority> {
    prop_oneof![Just(Priority::Normal), Just(Priority::High), Just(Priority::Rollback)]
}

fn limits() -> impl Strategy<Value = Limits> {
    let rate = || prop_oneof![3 => Just(None), 1 => (0..1_u64 << 24).prop_map(Some), 1 => any::<u64>().prop_map(Some)];
    (rate(), rate(), rate()).prop_map(|(ingress, egress, disk)| Limits { ingress, egress, disk })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let role = prop_oneof![3 => Just(Role::Node), 1 => Just(Role::Tracker), 1 => Just(Role::Gate)];
    let which = 0..SIZES.len();
    let step = prop_oneof![
        3 => (1..7_u64, role, any::<bool>()).prop_map(|(conn, role, dialed)| Step::Connect(conn, role, dialed)),
        1 => (1..7_u64).prop_map(Step::Disconnect),
        20 => (1..7_u64, message()).prop_map(|(conn, message)| Step::Say(conn, message)),
        2 => (1..7_u64, which.clone(), pieces(), 0..9_u32, prop_oneof![Just(0_usize), Just(256 << 10), Just(1 << 20)])
            .prop_map(|(conn, which, piece, block, len)| Step::Block(conn, which, piece, block, len)),
        2 => (which.clone(), any::<u64>()).prop_map(|(which, have)| Step::Start(which, have)),
        2 => (prop::option::of(which.clone()), priority(), limits())
            .prop_map(|(which, priority, limits)| Step::Adjust(which, priority, limits)),
        1 => which.prop_map(Step::Stop),
        8 => any::<bool>().prop_map(Step::Answer),
        4 => (0..3_000_u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..150)
}

/// Connections are numbered anew at each connect.
#[derive(Debug, Default)]
struct Conns {
    at: [u64; 8],
    last: u64,
}

impl Conns {
    fn open(&mut self, which: u64) -> ConnId {
        self.last += 1;
        self.at[which as usize] = self.last;
        ConnId(self.last)
    }

    fn get(&self, which: u64) -> ConnId {
        ConnId(self.at[which as usize])
    }
}

fn answer(output: peer::Output, well: bool, dials: &mut Vec<Addr>) -> Option<peer::Input> {
    match output {
        peer::Output::Connect(addr, _) if well => {
            dials.push(addr);
            None
        }
        peer::Output::Connect(addr, _) => Some(peer::Input::ConnectFailed(addr)),
        peer::Output::Send(conn, Message::Request { digest, piece, block, .. }) => {
            let len = (0..SIZES.len()).map(shape).find(|shape| shape.digest() == digest)?.block_len(piece, block);
            let data = Bytes::from(vec![0; if well { len } else { 9 } as usize]);
            Some(peer::Input::Block(conn, Block { digest, piece, block, data }))
        }
        peer::Output::SendBlock { conn, len, .. } if well => Some(peer::Input::Sent(conn, len)),
        peer::Output::SendBlock { conn, digest, piece, block, .. } => {
            Some(peer::Input::ReadFailed { conn, digest, piece, block })
        }
        peer::Output::Store { digest, piece, blocks, .. } => {
            let blocks = (0..blocks.len() as u8).map(|block| [block; 32]).collect();
            Some(peer::Input::Stored { digest, piece, verified: well, blocks })
        }
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_node_survives_whatever_it_is_told(steps in steps()) {
        let (mut now, mut conns, mut dials, mut todo) = (Instant::ZERO, Conns::default(), vec![], vec![]);
        let rng = fastrand::Rng::with_seed(1);
        let trackers = vec!["t:1".into()];
        let mut node = Peer::new(peer::Settings::default(), PeerId(0), "m0:1".into(), trackers, rng, now)
            .with_zone(Some(Zone(1)));
        for step in steps {
            let input = match step {
                Step::Connect(which, role, dialed) => {
                    let dialed = if dialed { dials.pop() } else { None };
                    let (conn, peer) = (conns.open(which), PeerId(which));
                    Some(peer::Input::Connected { conn, peer, incarnation: conn.0 / 3, role, zone: Some(Zone(peer.0 % 3)), dialed })
                }
                Step::Disconnect(which) => Some(peer::Input::Disconnected(conns.get(which))),
                Step::Say(which, message) => Some(peer::Input::Message(conns.get(which), message)),
                Step::Block(which, of, piece, block, len) => {
                    let data = Bytes::from(vec![0; len]);
                    Some(peer::Input::Block(conns.get(which), Block { digest: digest(of), piece, block, data }))
                }
                Step::Start(which, set) => {
                    let shape = shape(which);
                    let mut have = Bitfield::new(shape.pieces());
                    (0..shape.pieces()).filter(|piece| set >> (piece % 64) & 3 == 3).for_each(|piece| {
                        have.insert(piece);
                    });
                    let (priority, limits) = (Priority::Normal, Limits::default());
                    Some(peer::Input::Start(Box::new(peer::Start { shape, have, priority, limits })))
                }
                Step::Adjust(Some(which), priority, limits) => {
                    Some(peer::Input::Adjust(digest(which), priority, limits))
                }
                Step::Adjust(None, _, limits) => Some(peer::Input::Limit(limits)),
                Step::Stop(which) => Some(peer::Input::Stop(digest(which))),
                Step::Answer(well) => todo.pop().and_then(|output| answer(output, well, &mut dials)),
                Step::Pass(millis) => {
                    now = now + Duration::from_millis(millis);
                    Some(peer::Input::Timeout)
                }
            };
            if let Some(input) = input {
                node.handle(input, now);
                todo.extend(std::iter::from_fn(|| node.poll_output()));
            }
            now = now + Duration::from_millis(260);
            node.handle(peer::Input::Timeout, now);
            todo.extend(std::iter::from_fn(|| node.poll_output()));
        }
    }

    #[test]
    fn a_gate_survives_whatever_it_is_told(steps in steps()) {
        let (mut now, mut conns, mut todo) = (Instant::ZERO, Conns::default(), vec![]);
        let mut gate = Gate::new(gate::Settings::default(), PeerId(9), "g:1".into(), now);
        for step in steps {
            let input = match step {
                Step::Connect(which, role, dialed) => {
                    let (conn, peer) = (conns.open(which), PeerId(which));
                    Some(gate::Input::Connected { conn, peer, role, dialed })
                }
                Step::Disconnect(which) => Some(gate::Input::Disconnected(conns.get(which))),
                Step::Say(which, message) => Some(gate::Input::Message(conns.get(which), message)),
                Step::Pass(millis) => {
                    now = now + Duration::from_millis(millis);
                    Some(gate::Input::Timeout)
                }
                Step::Answer(well) => todo.pop().and_then(|output| match output {
                    gate::Output::Load(digest) => {
                        let shape = (0..SIZES.len()).map(shape).find(|shape| shape.digest() == digest);
                        let found = shape.filter(|_| well).map(|shape| (shape.size(), Record::new(&shape)));
                        Some(gate::Input::Loaded(digest, found))
                    }
                    gate::Output::Persist(digest, version, _) => Some(gate::Input::Persisted(digest, version)),
                    gate::Output::Serve { conn, digest, lease, piece, block, .. } if !well => {
                        Some(gate::Input::ReadFailed { conn, digest, lease, piece, block, unread: true })
                    }
                    _ => None,
                }),
                _ => None,
            };
            if let Some(input) = input {
                gate.handle(input, now);
                todo.extend(std::iter::from_fn(|| gate.poll_output()));
            }
        }
    }

    #[test]
    fn a_tracker_survives_whatever_it_is_told(steps in steps()) {
        let (mut now, mut conns) = (Instant::ZERO, Conns::default());
        let mut tracker = Tracker::new(tracker::Settings::default(), fastrand::Rng::with_seed(1), now);
        for step in steps {
            let input = match step {
                Step::Connect(which, role, _) => {
                    let (conn, peer) = (conns.open(which), PeerId(which));
                    tracker::Input::Connected { conn, peer, role, zone: Some(Zone(conn.0 % 3)), host: "::1".into() }
                }
                Step::Disconnect(which) => tracker::Input::Disconnected(conns.get(which)),
                Step::Say(which, message) => tracker::Input::Message(conns.get(which), message),
                Step::Pass(millis) => {
                    now = now + Duration::from_millis(millis);
                    tracker::Input::Timeout
                }
                _ => continue,
            };
            tracker.handle(input, now);
            while tracker.poll_output().is_some() {}
            for standing in tracker.standings(now) {
                prop_assert!((0.0..=1.0).contains(&standing.share), "{standing:?}");
                prop_assert!(standing.complete <= standing.fetchers, "{standing:?}");
            }
        }
    }
}
