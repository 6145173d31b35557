//! Whom a gate lets in, and what it takes up.

use deploycore::model::Digest;
use deploycore::port::swarm::Priority;
use deploycore_p2p::core::bitfield::{Bitfield, PackedBits};
use deploycore_p2p::core::gate::{Gate, Input, Output, Record, Settings, rendezvous};
use deploycore_p2p::core::message::{ConnId, Contact, Message, PeerId, Role};
use deploycore_p2p::core::shape::Shape;
use deploycore_p2p::core::time::Instant;

const OWN: PeerId = PeerId(9);
const SIZE: u64 = 10 << 20;

fn gate(settings: Settings) -> Gate {
    Gate::new(settings, OWN, "g:1".into(), Instant::ZERO)
}

fn handle(gate: &mut Gate, input: Input) -> Vec<Output> {
    gate.handle(input, Instant::ZERO);
    std::iter::from_fn(|| gate.poll_output()).collect()
}

fn connect(gate: &mut Gate, conn: u64, role: Role, dialed: bool) -> Vec<Output> {
    handle(gate, Input::Connected { conn: ConnId(conn), peer: PeerId(conn), role, dialed })
}

fn join(gate: &mut Gate, conn: u64, digest: Digest) -> Vec<Output> {
    let have = PackedBits::from(&Bitfield::new(Shape::new(digest, SIZE).pieces()));
    let join = Message::Join { digest, size: SIZE, have, priority: Priority::Normal };
    handle(gate, Input::Message(ConnId(conn), join))
}

fn is_closed(outputs: &[Output], conn: u64) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Close(closed, _) if *closed == ConnId(conn)))
}

#[test]
fn only_a_tracker_that_was_dialed_is_believed() {
    let mut gate = gate(Settings::default());
    assert!(is_closed(&connect(&mut gate, 1, Role::Tracker, false), 1));
    assert!(is_closed(&connect(&mut gate, 2, Role::Gate, false), 2));
    assert!(is_closed(&connect(&mut gate, 3, Role::Node, true), 3));
    let gates = vec![Contact { peer: PeerId(1), addr: "evil:1".into() }];
    assert_eq!(handle(&mut gate, Input::Message(ConnId(1), Message::Gates { gates })), []);
    connect(&mut gate, 4, Role::Node, false);
    let digest = Digest::of(b"a");
    assert_eq!(join(&mut gate, 4, digest), [Output::Load(digest)], "it still decides by itself");
    assert!(!is_closed(&connect(&mut gate, 5, Role::Tracker, true), 5));
}

#[test]
fn connections_and_artifacts_looked_for_are_bounded() {
    let mut gate = gate(Settings { max_loading: 2, max_links: 1, ..Settings::default() });
    connect(&mut gate, 1, Role::Node, false);
    assert!(is_closed(&connect(&mut gate, 2, Role::Node, false), 2));
    for name in [b"a", b"b"] {
        assert_eq!(join(&mut gate, 1, Digest::of(name)), [Output::Load(Digest::of(name))]);
    }
    let digest = Digest::of(b"c");
    assert_eq!(join(&mut gate, 1, digest), [Output::Send(ConnId(1), Message::Absent { digest })]);
    handle(&mut gate, Input::Loaded(Digest::of(b"a"), None));
    assert_eq!(join(&mut gate, 1, digest), [Output::Load(digest)]);
}

#[test]
fn an_artifact_that_another_gate_decides_for_is_let_go() {
    let mut gate = gate(Settings::default());
    connect(&mut gate, 1, Role::Node, false);
    connect(&mut gate, 2, Role::Tracker, true);
    let other = Contact { peer: PeerId(77), addr: "other:1".into() };
    let both = [other.clone(), Contact { peer: OWN, addr: "g:1".into() }];
    let decided = |digest: &Digest| rendezvous(digest, &both) == Some(&other);
    let [digest, own] = [true, false].map(|by_other| {
        (0..=u8::MAX).map(|name| Digest::of(&[name])).find(|digest| decided(digest) == by_other).unwrap()
    });
    join(&mut gate, 1, digest);
    let record = Record::new(&Shape::new(digest, SIZE));
    let outputs = handle(&mut gate, Input::Loaded(digest, Some((SIZE, record))));
    let Some(Output::Persist(_, version, _)) = outputs.last() else { panic!("{outputs:?}") };
    let gates = Message::Gates { gates: vec![other] };
    let outputs = handle(&mut gate, Input::Message(ConnId(2), gates));
    assert!(outputs.contains(&Output::Send(ConnId(1), Message::Absent { digest })), "{outputs:?}");
    gate.handle(Input::Timeout, gate.poll_timeout());
    assert!(gate.usage(&digest).is_some(), "its counts are not durable yet");
    let Some(Output::Persist(_, later, _)) = handle(&mut gate, Input::Persisted(digest, *version)).pop() else {
        panic!("what the leases gave back is to be durable too")
    };
    handle(&mut gate, Input::Persisted(digest, later));
    gate.handle(Input::Timeout, gate.poll_timeout());
    assert!(gate.usage(&digest).is_none());
    // The tracker has not heard of this gate yet.
    assert_eq!(join(&mut gate, 1, own), [Output::Load(own)]);
}
