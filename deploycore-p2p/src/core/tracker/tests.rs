use super::*;
use crate::core::bitfield::{Bitfield, PackedBits};
use crate::core::message::{Announcement, Standing, Waiting, ZonePart};

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
    let message =
        Message::Announce(Box::new(Announcement { digest, size, addr, have, need: vec![], wanted, standing }));
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
    connect_in(tracker, conn, role, None, now);
}

fn connect_in(tracker: &mut Tracker, conn: u64, role: Role, zone: Option<Zone>, now: Instant) {
    let peer = PeerId(conn);
    tracker.handle(Input::Connected { conn: ConnId(conn), peer, role, zone, host: "10.1.1.1".into() }, now);
}

/// Which of its zone's members the one is that announces itself last.
fn part(tracker: &mut Tracker, conn: u64, now: Instant) -> Option<ZonePart> {
    announce(tracker, conn, &Bitfield::new(4), 0, now);
    tracker.swarms[&Digest::of(b"artifact")].part(PeerId(conn))
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
fn a_member_of_a_zone_meets_members_of_it_and_at_least_three_of_ten_of_others() {
    let now = Instant::ZERO;
    let mut tracker = Tracker::new(Settings::default(), Rng::with_seed(1), now);
    let zone = |conn: u64| Zone(conn % 10);
    let (mut near, mut far) = (0, 0);
    for conn in 0..2_000 {
        connect_in(&mut tracker, conn, Role::Node, Some(zone(conn)), now);
        let peers = announce(&mut tracker, conn, &Bitfield::new(4), 16, now);
        if conn >= 1_000 {
            let of_zone = peers.iter().filter(|contact| zone(contact.peer.0) == zone(conn)).count();
            assert_eq!(peers.len(), 16);
            (near, far) = (near + of_zone, far + 16 - of_zone);
            assert!(far >= 5, "{peers:?}");
        }
    }
    assert_eq!((near, far), (11_000, 5_000));
}

/// With the only member of its zone, or in a region that is one zone, there is nobody near or nobody far.
#[test]
fn zones_of_one_and_one_zone_of_all_are_introduced_all_the_same() {
    let now = Instant::ZERO;
    let mut tracker = Tracker::new(Settings::default(), Rng::with_seed(1), now);
    for conn in 0..100 {
        connect_in(&mut tracker, conn, Role::Node, Some(Zone(1)), now);
        assert_eq!(announce(&mut tracker, conn, &Bitfield::new(4), 16, now).len() as u64, conn.min(16));
    }
    connect_in(&mut tracker, 100, Role::Node, Some(Zone(2)), now);
    assert_eq!(announce(&mut tracker, 100, &Bitfield::new(4), 16, now).len(), 16);
    connect(&mut tracker, 101, Role::Node, now);
    assert_eq!(announce(&mut tracker, 101, &Bitfield::new(4), 16, now).len(), 16);
}

#[test]
fn the_members_of_a_zone_are_numbered_without_gap_also_when_some_leave_or_move() {
    let now = Instant::ZERO;
    let mut tracker = Tracker::new(Settings::default(), Rng::with_seed(1), now);
    for conn in 0..30 {
        connect_in(&mut tracker, conn, Role::Node, (conn % 3 > 0).then_some(Zone(conn % 3)), now);
        part(&mut tracker, conn, now);
    }
    for conn in [4, 13, 28] {
        tracker.handle(Input::Message(ConnId(conn), Message::Withdraw { digest: Digest::of(b"artifact") }), now);
    }
    // One moves from the first zone to the second, under a new connection.
    connect_in(&mut tracker, 7, Role::Node, Some(Zone(2)), now);
    let indexes = |tracker: &mut Tracker, conns: &[u64]| {
        let parts: Vec<ZonePart> = conns.iter().map(|conn| part(tracker, *conn, now).unwrap()).collect();
        assert!(parts.iter().all(|part| part.of as usize == conns.len()), "{parts:?}");
        parts.iter().map(|part| part.index as usize).collect::<std::collections::BTreeSet<_>>()
    };
    part(&mut tracker, 7, now);
    assert_eq!(indexes(&mut tracker, &[1, 10, 16, 19, 22, 25]), (0..6).collect());
    assert_eq!(indexes(&mut tracker, &[2, 5, 7, 8, 11, 14, 17, 20, 23, 26, 29]), (0..11).collect());
    assert_eq!(part(&mut tracker, 0, now), None);
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
    let mut tracker = Tracker::new(Settings { links: Some(links), ..Settings::default() }, Rng::with_seed(1), at(0));
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

/// A gate that says it twice is no news for a hundred thousand nodes, and an address that nobody could be told of is nobody's.
#[test]
fn a_gate_is_told_of_once_and_by_an_address_that_can_be_told() {
    let now = Instant::ZERO;
    let mut tracker = Tracker::new(Settings::default(), Rng::with_seed(1), now);
    connect(&mut tracker, 1, Role::Node, now);
    connect(&mut tracker, 2, Role::Gate, now);
    let mut say = |addr: String| {
        tracker.handle(Input::Message(ConnId(2), Message::GateHere { addr: addr.into() }), now);
        std::iter::from_fn(|| tracker.poll_output()).collect::<Vec<_>>()
    };
    let told = |outputs: &[Output]| {
        let bounded = |output: &Output| matches!(output, Output::Send(_, message) if message.is_bounded());
        outputs.iter().filter(|output| bounded(output)).count()
    };
    assert_eq!(told(&say("0.0.0.0:1".into())), 2);
    assert_eq!(say("0.0.0.0:1".into()), []);
    assert_eq!(told(&say("0.0.0.0:2".into())), 2, "it moved");
    let long = format!("[::]:{}", "1".repeat(MAX_ADDR - 5));
    assert!(matches!(&say(long)[..], [Output::Close(ConnId(2), _)]));
    let long = format!("[::]:{}", "1".repeat(MAX_ADDR - 5));
    let part = Announcement {
        digest: Digest::of(b"artifact"),
        size: MIB,
        addr: long.into(),
        have: PackedBits::from(&Bitfield::new(4)),
        need: vec![],
        wanted: 0,
        standing: Standing::default(),
    };
    tracker.handle(Input::Message(ConnId(1), Message::Announce(Box::new(part))), now);
    assert!(matches!(tracker.poll_output(), Some(Output::Close(ConnId(1), _))));
}
