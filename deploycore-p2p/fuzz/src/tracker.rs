//! A tracker, told whatever may be said to it.

use std::time::Duration;

use deploycore_p2p::core::message::{MAX_CONTACTS, Message, PeerId};
use deploycore_p2p::core::time::Instant;
use deploycore_p2p::core::tracker::{Input, Output, Settings, Tracker};

use super::script::{PLACES, Places, Step, steps, zone_of};

const MAX_ARTIFACTS: usize = 3;
const MAX_MEMBERS: usize = 4;

/// It keeps its bounds, and when all are gone it remembers nobody.
pub fn run(input: &[u8]) {
    let settings = Settings {
        max_artifacts: MAX_ARTIFACTS,
        max_members: MAX_MEMBERS,
        max_links: PLACES - 1,
        ..Settings::default()
    };
    let mut world = World {
        tracker: Tracker::new(settings.clone(), fastrand::Rng::with_seed(1), Instant::ZERO),
        places: Places::default(),
        now: Instant::ZERO,
    };
    for step in steps(input) {
        world.step(step);
    }
    for who in 0..PLACES {
        world.step(Step::Disconnect(who));
    }
    world.step(Step::Pass(settings.max_interval * settings.missed_announces + settings.gate_grace));
    assert_eq!((world.tracker.census(), world.tracker.gates()), ((0, 0), 0));
}

struct World {
    tracker: Tracker,
    places: Places,
    now: Instant,
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Connect(who, role, _) => {
                let (conn, before) = self.places.connect(who);
                if let Some(before) = before {
                    self.input(Input::Disconnected(before));
                }
                // Two places are one member that connects anew.
                let peer = PeerId((who % (PLACES - 1)) as u64);
                let zone = zone_of(who);
                self.input(Input::Connected { conn, peer, role, zone, host: "::1".to_owned() });
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
            Step::Pass(time) => {
                self.now = self.now + time;
                self.input(Input::Timeout);
            }
            _ => {}
        }
    }

    fn input(&mut self, input: Input) {
        self.tracker.handle(input, self.now);
        assert!(
            self.tracker.poll_timeout() > self.now && self.tracker.poll_timeout() <= self.now + Duration::from_secs(1)
        );
        let mut outputs = 0;
        while let Some(output) = self.tracker.poll_output() {
            outputs += 1;
            match output {
                Output::Send(conn, message) => {
                    self.places.check_send(conn, &message);
                    check(&message);
                }
                Output::Close(conn, _) => {
                    self.places.closed(conn);
                    self.tracker.handle(Input::Disconnected(conn), self.now);
                }
            }
        }
        // An answer, and the gates told to everyone when they changed, by this and by a sweep.
        assert!(outputs <= 2 * PLACES + 2, "{outputs} outputs of one input");
        let (artifacts, members) = self.tracker.census();
        for standing in self.tracker.standings(self.now) {
            assert!(standing.complete <= standing.fetchers && (0.0..=1.0).contains(&standing.share), "{standing:?}");
        }
        assert!(artifacts <= MAX_ARTIFACTS && members <= MAX_ARTIFACTS * MAX_MEMBERS, "{artifacts} {members}");
        assert!(self.tracker.gates() <= MAX_CONTACTS);
    }
}

fn check(message: &Message) {
    match message {
        Message::Introduce { peers, .. } => {
            assert!(peers.len() < MAX_MEMBERS, "{peers:?} for one of {MAX_MEMBERS}");
        }
        Message::Holders { pieces, .. } => {
            assert!(pieces.iter().all(|(_, holders)| *holders as usize <= MAX_MEMBERS), "{pieces:?}");
        }
        Message::Gates { .. } => {}
        other => panic!("a tracker does not say {other:?}"),
    }
}
