//! The fuzz targets on a stable compiler: with the committed seeds, and with what is near them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use deploycore::model::RegionName;
use deploycore::port::swarm::Priority;
use deploycore_p2p::core::bitfield::{Bitfield, PackedBits};
use deploycore_p2p::core::message::{
    Announcement, Block, Contact, Hello, Message, PeerId, Refusal, Role, Standing, Waiting, Zone, ZonePart,
};
use deploycore_p2p::core::wire::{BLOCK_HEADER, Frame, HEADER};
use proptest::prelude::*;
use proptest::sample::Index;

use self::fuzz::script::{Step, digest, shape};

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, unreachable_pub, reason = "a crate of its own in the eyes of cargo fuzz")]
mod fuzz;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 4] = [
    ("frame", fuzz::frame::run),
    ("tracker", fuzz::tracker::run),
    ("gate", fuzz::gate::run),
    ("node", fuzz::node::run),
];

fn folder(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz/seeds", target].iter().collect()
}

/// Name and bytes of each seed of a target, in order.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(folder(target)).unwrap().map(|file| file.unwrap());
    let seed = |file: std::fs::DirEntry| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap());
    let mut seeds: Vec<_> = files.map(seed).collect();
    seeds.sort();
    seeds
}

#[test]
fn every_seed_keeps_the_rules() {
    for (target, run) in TARGETS {
        let seeds = seeds(target);
        assert!(seeds.len() >= 2, "{target} has seeds");
        for (name, bytes) in seeds {
            println!("{target}/{name}");
            run(&bytes);
        }
    }
}

/// A seed per kind of message, with all that is in it. `DEPLOYCORE_WRITE_SEEDS=1` writes them, and those of the machines, anew: when the
/// version of the protocol was raised.
#[test]
fn the_format_is_that_of_the_seeds() {
    let frames = frames();
    if std::env::var_os("DEPLOYCORE_WRITE_SEEDS").is_some() {
        for (name, frame) in &frames {
            std::fs::write(folder("frame").join(name), fuzz::frame::encode(frame)).unwrap();
        }
        for (target, name, steps) in scripts() {
            std::fs::write(folder(target).join(name), fuzz::script::bytes(&steps)).unwrap();
        }
    }
    let messages = frames.iter().filter_map(|(_, frame)| match frame {
        Frame::Control(message) => Some(kind(message)),
        _ => None,
    });
    assert_eq!(messages.collect::<BTreeSet<_>>(), (0..KINDS).collect(), "each kind of message has a frame");
    for (name, frame) in frames {
        let seed = std::fs::read(folder("frame").join(name)).unwrap();
        assert_eq!(fuzz::frame::parse(&seed.into()), Some(frame), "{name}: raise wire::VERSION, write the seeds anew");
    }
    let mut said = BTreeSet::new();
    for (target, name, steps) in scripts() {
        let seed = std::fs::read(folder(target).join(name)).unwrap();
        assert_eq!(fuzz::script::steps(&seed).collect::<Vec<_>>(), steps, "{target}/{name}");
        said.extend(steps.iter().filter_map(|step| match step {
            Step::Say(_, message) => Some(kind(message)),
            _ => None,
        }));
    }
    assert_eq!(said, (0..KINDS).collect(), "each kind of message is said to some machine");
}

#[test]
fn what_is_no_frame_is_refused() {
    for (name, frame) in frames() {
        let good = fuzz::frame::encode(&frame);
        // Some of a block is a block.
        let whole_from = if let Frame::Block(_) = frame { HEADER + BLOCK_HEADER + 1 } else { good.len() };
        for end in 0..whole_from {
            assert_eq!(whole(&good[..end]), None, "{name}, its first {end} bytes");
        }
        let more = [&good[..], &[0]].concat();
        assert!(whole(&more).is_none() || matches!(frame, Frame::Block(_)), "{name}, and a byte more");
        for wrong in [b"\x03", b"\xff"] {
            let other = [&good[..4], wrong, &good[5..]].concat();
            assert_eq!(whole(&other), None, "{name}, as a frame of an unknown kind");
        }
    }
}

/// The frame that all of these bytes are, with a header that tells their number.
fn whole(bytes: &[u8]) -> Option<Frame> {
    let (header, body) = bytes.split_first_chunk()?;
    fuzz::frame::decode(*header, Bytes::copy_from_slice(body))
}

static SEEDS: LazyLock<Vec<(Target, Vec<u8>)>> = LazyLock::new(|| {
    let of = |(target, run): (&str, Target)| seeds(target).into_iter().map(move |(_, bytes)| (run, bytes));
    TARGETS.into_iter().flat_map(of).collect()
});

/// A change that a fuzzer would make.
#[derive(Debug, Clone)]
enum Edit {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Cut(Index, usize),
    /// Some of another seed, perhaps of another target.
    Splice(Index, Index, Index, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    let telling = prop_oneof![any::<u8>(), Just(0), Just(1), Just(0x7f), Just(0x80), Just(0xff)];
    prop_oneof![
        4 => (at(), telling.clone()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        2 => (at(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        2 => (at(), prop::collection::vec(telling, 1..12)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        1 => (at(), 1..20_usize).prop_map(|(at, len)| Edit::Cut(at, len)),
        3 => (at(), at(), at(), 1..200_usize).prop_map(|(at, of, from, len)| Edit::Splice(at, of, from, len)),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: Edit) {
    let place = |index: Index, bytes: &[u8]| index.index(bytes.len() + 1);
    match edit {
        Edit::Set(..) | Edit::Flip(..) if bytes.is_empty() => {}
        Edit::Set(at, byte) => *at.get_mut(bytes) = byte,
        Edit::Flip(at, bit) => *at.get_mut(bytes) ^= 1 << bit,
        Edit::Insert(at, more) => {
            let at = place(at, bytes);
            bytes.splice(at..at, more);
        }
        Edit::Cut(at, len) => {
            let at = place(at, bytes);
            bytes.drain(at..(at + len).min(bytes.len()));
        }
        Edit::Splice(at, of, from, len) => {
            let (_, other) = &SEEDS[of.index(SEEDS.len())];
            let (at, from) = (place(at, bytes), place(from, other));
            bytes.splice(at..at, other[from..(from + len).min(other.len())].iter().copied());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_near_a_seed_keeps_the_rules(seed: Index, edits in prop::collection::vec(edit(), 1..12)) {
        let (run, seed) = &SEEDS[seed.index(SEEDS.len())];
        let mut bytes = seed.clone();
        for edit in edits {
            apply(&mut bytes, edit);
        }
        run(&bytes);
    }

    #[test]
    fn any_bytes_keep_the_rules(which in 0..TARGETS.len(), bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        TARGETS[which].1(&bytes);
    }
}

/// How many kinds of message there are.
const KINDS: usize = 22;

/// The number of a message's kind. A new kind wants a number, [`KINDS`] one more, and seeds.
fn kind(message: &Message) -> usize {
    match message {
        Message::Join { .. } => 0,
        Message::Leave { .. } => 1,
        Message::Have { .. } => 2,
        Message::Request { .. } => 3,
        Message::Cancel { .. } => 4,
        Message::Busy { .. } => 5,
        Message::Reject { .. } => 6,
        Message::Ready { .. } => 7,
        Message::Pass { .. } => 8,
        Message::Lease { .. } => 9,
        Message::Drained { .. } => 10,
        Message::Absent { .. } => 11,
        Message::Stuck { .. } => 12,
        Message::Announce(_) => 13,
        Message::Withdraw { .. } => 14,
        Message::GateHere { .. } => 15,
        Message::Census { .. } => 16,
        Message::Holders { .. } => 17,
        Message::Introduce { .. } => 18,
        Message::Gates { .. } => 19,
        Message::Ping => 20,
        Message::Await { .. } => 21,
    }
}

fn bits(which: usize, pieces: impl IntoIterator<Item = u32>) -> PackedBits {
    let mut bits = Bitfield::new(shape(which).pieces());
    for piece in pieces {
        bits.insert(piece);
    }
    PackedBits::from(&bits)
}

fn contact(peer: u64) -> Contact {
    Contact { peer: PeerId(peer), addr: format!("10.0.0.{peer}:7").into() }
}

fn join(which: usize, pieces: impl IntoIterator<Item = u32>, priority: Priority) -> Message {
    Message::Join { digest: digest(which), size: shape(which).size(), have: bits(which, pieces), priority }
}

fn announce(which: usize, pieces: impl IntoIterator<Item = u32>, need: Vec<u32>) -> Message {
    let (digest, size, have) = (digest(which), shape(which).size(), bits(which, pieces));
    let waiting = (!need.is_empty()).then_some(Waiting::Pieces { missing: need.len() as u32, peers: 3 });
    let standing = Standing { millis: Some(1_500), from_store: 7, from_peers: 1 << 20, waiting };
    let addr = "0.0.0.0:7".into();
    Message::Announce(Box::new(Announcement { digest, size, addr, have, need, wanted: 16, standing }))
}

fn request(which: usize, piece: u32, block: u32, count: u32) -> Message {
    Message::Request { digest: digest(which), piece, block, count }
}

/// A frame of each kind, and of those that are easily got wrong.
fn frames() -> Vec<(&'static str, Frame)> {
    let digest = digest(0);
    let hello = |name: &str, role| {
        let (region, name) = (RegionName::new("eu").unwrap(), name.to_owned());
        let zone = (role == Role::Node).then(|| Zone::of("a"));
        Frame::Hello(Hello { region, name, incarnation: 7, role, zone })
    };
    let mut frames = vec![
        ("hello-node", hello("m1", Role::Node)),
        ("hello-gate-longest-name", hello(&"g".repeat(128), Role::Gate)),
        ("block", Frame::Block(Block { digest, piece: 3, block: 0, data: Bytes::from_static(b"bytes") })),
    ];
    let messages = [
        ("join", join(0, [0, 19], Priority::Normal)),
        ("join-rollback-nothing", join(2, [], Priority::Rollback)),
        ("join-all-pieces", join(1, 0..shape(1).pieces(), Priority::Normal)),
        ("leave", Message::Leave { digest }),
        ("have", Message::Have { digest, pieces: vec![0, 200, u32::MAX].into(), count: 3 }),
        ("request", request(1, 4, 0, 4)),
        ("cancel", Message::Cancel { digest, piece: 1, block: 0 }),
        ("busy", Message::Busy { digest, piece: 1, block: 0, count: 1 }),
        ("reject", Message::Reject { digest, piece: 1, block: 0, count: 1, refusal: Refusal::BadBytes }),
        ("ready", Message::Ready { digest }),
        ("pass", Message::Pass { digest }),
        ("lease", Message::Lease { digest, pieces: vec![1, 2, 3], millis: 30_000 }),
        ("drained", Message::Drained { digest }),
        ("absent", Message::Absent { digest }),
        ("stuck", Message::Stuck { digest, pieces: vec![4], refused: vec![PeerId(u64::MAX)] }),
        ("announce", announce(0, [1, 2], vec![3])),
        ("withdraw", Message::Withdraw { digest }),
        ("gate-here", Message::GateHere { addr: "[::]:7".into() }),
        ("census", Message::Census { digest, pieces: vec![0, 19], except: vec![PeerId(1)] }),
        ("holders", Message::Holders { digest, pieces: vec![(0, 2), (19, 0)], stale_millis: 1_000, settled: true }),
        (
            "introduce",
            Message::Introduce {
                digest,
                peers: vec![contact(1), contact(2)],
                millis: 1_000,
                part: Some(ZonePart { index: 3, of: 9 }),
            },
        ),
        ("gates", Message::Gates { gates: vec![contact(100)] }),
        ("ping", Message::Ping),
        ("await", Message::Await { digest }),
    ];
    frames.extend(messages.map(|(name, message)| (name, Frame::Control(message))));
    frames
}

/// What may happen to the machines, from the usual on.
fn scripts() -> Vec<(&'static str, &'static str, Vec<Step>)> {
    use Role::{Gate, Node, Tracker};
    use Step::{Answer, Begin, Connect, Disconnect, Leave, Pass, Say};
    let (one, other) = (digest(0), digest(1));
    let well = |which| Answer { well: true, which };
    let badly = |which| Answer { well: false, which };
    let pass = |millis| Pass(Duration::from_millis(millis));
    let block = |who, piece, block| Step::Block { who, which: 0, piece, block, len: 1 };
    let holders = |piece| Message::Holders { digest: one, pieces: vec![(piece, 0)], stale_millis: 10, settled: true };
    let stuck = |piece| Message::Stuck { digest: one, pieces: vec![piece], refused: vec![PeerId(3)] };
    let introduce = Message::Introduce {
        digest: one,
        peers: vec![contact(1), contact(2)],
        millis: 1_000,
        part: Some(ZonePart { index: 0, of: 2 }),
    };
    vec![
        (
            "tracker",
            "members-meet-and-part",
            vec![
                Connect(0, Node, false),
                Connect(1, Node, false),
                Connect(2, Gate, false),
                Say(2, Message::GateHere { addr: "0.0.0.0:7".into() }),
                Say(0, announce(0, [], vec![])),
                Say(1, announce(0, [1, 2], vec![3])),
                pass(1_000),
                Say(0, announce(0, [3], vec![1])),
                Say(2, Message::Census { digest: one, pieces: vec![1, 3, 99], except: vec![PeerId(1)] }),
                Say(0, Message::Withdraw { digest: one }),
                Say(1, Message::Ping),
                Disconnect(1),
                Disconnect(2),
                pass(20_000),
            ],
        ),
        (
            "tracker",
            "more-members-and-artifacts-than-it-keeps",
            (0..7)
                .flat_map(|who| [Connect(who, Node, false), Say(who, announce(who % 3, [0], vec![]))])
                .chain((0..7).flat_map(|who| [Say(who, announce(0, [who as u32], vec![5, 6])), pass(300)]))
                .collect(),
        ),
        (
            "tracker",
            "one-member-twice-another-size-out-of-role",
            vec![
                Connect(0, Node, false),
                Connect(7, Node, false),
                Say(0, announce(0, [0], vec![])),
                Say(7, announce(0, [0, 1], vec![])),
                Disconnect(0),
                Say(
                    7,
                    Message::Announce(Box::new(Announcement {
                        digest: one,
                        size: 5,
                        addr: "a:1".into(),
                        have: bits(2, []),
                        need: vec![],
                        wanted: 0,
                        standing: Standing::default(),
                    })),
                ),
                Say(7, Message::GateHere { addr: "a:1".into() }),
                Connect(1, Tracker, false),
            ],
        ),
        (
            "gate",
            "pieces-are-leased-read-and-reported",
            vec![
                Connect(0, Node, false),
                Say(0, join(0, [0], Priority::Normal)),
                well(0),
                well(0),
                Say(0, request(0, 1, 0, 4)),
                Say(0, request(0, 1, 3, 1)),
                Say(0, request(0, 2, 0, 2)),
                Say(0, Message::Have { digest: one, pieces: vec![1, 2].into(), count: 3 }),
                badly(0),
                Say(0, Message::Cancel { digest: one, piece: 3, block: 0 }),
                Say(0, Message::Leave { digest: one }),
                pass(1_000),
            ],
        ),
        (
            "gate",
            "asked-for-before-it-is-counted",
            vec![
                Connect(0, Node, false),
                Say(0, join(0, [], Priority::Normal)),
                well(0),
                Say(0, request(0, 0, 0, 4)),
                well(0),
                Say(0, request(0, 0, 0, 4)),
            ],
        ),
        (
            "gate",
            "lost-pieces-are-asked-for-and-recovered",
            vec![
                Connect(7, Tracker, true),
                Say(7, Message::Gates { gates: vec![contact(100)] }),
                Connect(0, Node, false),
                Connect(1, Node, false),
                Say(0, join(0, [], Priority::Normal)),
                well(0),
                well(0),
                Say(0, request(0, 0, 0, 4)),
                Say(0, Message::Have { digest: one, pieces: vec![0].into(), count: 1 }),
                Disconnect(0),
                Say(1, join(0, [], Priority::Rollback)),
                well(0),
                pass(3_000),
                Say(1, stuck(0)),
                Say(7, holders(0)),
                pass(30_000),
                well(0),
                well(0),
                pass(30_000),
            ],
        ),
        (
            "gate",
            "pieces-rot-and-the-store-breaks-off",
            vec![
                Connect(0, Node, false),
                Say(0, join(1, [], Priority::Normal)),
                well(0),
                well(0),
                Say(0, request(1, 0, 0, 4)),
                badly(0),
                badly(0),
                pass(500),
                well(9),
                Say(0, request(1, 1, 0, 2)),
                Say(0, Message::Reject { digest: other, piece: 1, block: 0, count: 1, refusal: Refusal::BadBytes }),
                pass(2_000),
                well(0),
                Say(0, Message::Ping),
            ],
        ),
        (
            "gate",
            "absent-moved-and-another-size",
            vec![
                Connect(0, Node, false),
                Connect(7, Tracker, true),
                Say(0, join(2, [], Priority::Normal)),
                badly(0),
                Say(0, join(2, [], Priority::Normal)),
                Say(0, request(2, 0, 0, 1)),
                Say(0, join(0, [], Priority::Normal)),
                well(0),
                Say(7, Message::Gates { gates: vec![contact(1), contact(2), contact(3)] }),
                Say(7, Message::Gates { gates: vec![] }),
                Say(0, Message::Join { digest: one, size: 5, have: bits(2, []), priority: Priority::Normal }),
            ],
        ),
        (
            "node",
            "a-lease-is-read-and-passed-on",
            vec![
                Begin(0, 0b1),
                well(0),
                Connect(0, Tracker, true),
                Say(0, Message::Gates { gates: vec![contact(100)] }),
                Say(0, introduce.clone()),
                well(0),
                Connect(1, Gate, true),
                Say(1, Message::Lease { digest: one, pieces: vec![1, 2], millis: 30_000 }),
                well(0),
                well(0),
                well(0),
                well(0),
                Say(1, Message::Drained { digest: one }),
                Connect(2, Node, false),
                Say(2, join(0, [], Priority::Normal)),
                Say(2, request(0, 1, 0, 4)),
                well(0),
                Say(2, request(0, 0, 0, 1)),
                badly(0),
                Say(2, Message::Cancel { digest: one, piece: 0, block: 0 }),
                Say(2, Message::Pass { digest: one }),
                Say(2, Message::Await { digest: one }),
                Say(2, Message::Leave { digest: one }),
                pass(1_000),
                Leave(0),
            ],
        ),
        (
            "node",
            "peers-are-busy-refuse-and-send-bad-bytes",
            vec![
                Begin(0, 0),
                Connect(1, Node, false),
                Connect(2, Node, false),
                Say(1, join(0, 0..20, Priority::Normal)),
                Say(2, join(0, 0..20, Priority::Rollback)),
                Say(1, Message::Busy { digest: one, piece: 0, block: 0, count: 1 }),
                Say(1, Message::Ready { digest: one }),
                Say(2, Message::Reject { digest: one, piece: 1, block: 0, count: 1, refusal: Refusal::MissingPiece }),
                well(0),
                well(1),
                badly(2),
                badly(0),
                block(1, 3, 0),
                block(1, 3, 0),
                pass(21_000),
                Say(1, Message::Have { digest: one, pieces: vec![0, 1].into(), count: 20 }),
                pass(1_000),
            ],
        ),
        // What the first source of a suspect piece still brings is of no use, and has to be asked for again.
        (
            "node",
            "a-suspect-piece-is-leased-while-it-comes",
            vec![
                Begin(0, 0),
                well(0),
                Connect(7, Tracker, true),
                Say(7, Message::Gates { gates: vec![contact(3)] }),
                well(0),
                Connect(3, Gate, true),
                Connect(1, Node, false),
                Say(1, join(0, [0], Priority::Normal)),
                block(1, 0, 0),
                Connect(2, Node, false),
                Say(2, join(0, [0], Priority::Normal)),
                Disconnect(1),
                block(2, 0, 1),
                block(2, 0, 2),
                block(2, 0, 3),
                badly(2),
                Say(3, Message::Lease { digest: one, pieces: vec![0], millis: 30_000 }),
                block(2, 0, 0),
                pass(1_000),
            ],
        ),
        (
            "node",
            "nobody-has-the-artifact",
            vec![
                Begin(1, 0b1010_1010),
                Begin(2, 0),
                Connect(0, Gate, false),
                Say(0, Message::Absent { digest: other }),
                pass(1_000),
                Say(0, Message::Drained { digest: other }),
                pass(2_000),
                pass(2_000),
                badly(0),
                Connect(1, Node, false),
                Say(1, join(1, [0, 2, 4], Priority::Normal)),
                well(3),
                Disconnect(1),
                Say(0, Message::Ping),
                Connect(3, Tracker, false),
                Say(3, introduce),
            ],
        ),
    ]
}
