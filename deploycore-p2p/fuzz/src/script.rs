//! What happens to a machine, as bytes: a step each, told by its first byte.
//!
//! ```text
//! step = what (3 bits), who (the 3 bits above) ...
//! connect = 0, role and whether dialed (u8)          disconnect = 1
//! say     = 2, length (u16), a control frame's body  block = 3, artifact, piece, block, how long (u8 each)
//! begin   = 4, artifact, pieces that are there (u8)  leave = 5, artifact (u8)
//! answer  = 6, well or badly, which one (u8)         pass = 7, milliseconds (u16)
//! ```
//!
//! Bytes that end early end the script. A message that does not parse is no step: its connection would be closed.

use std::time::Duration;

use bytes::Bytes;
use deploycore::model::Digest;
use deploycore_p2p::core::message::{ConnId, Message, Role, Zone};
use deploycore_p2p::core::shape::Shape;
use deploycore_p2p::core::wire::{self, Frame, Kind};

/// Connections that are open at once.
pub const PLACES: usize = 8;
/// The artifacts' sizes, as their manifests say: 20 pieces, 6 of which the last has one block, none.
pub const SIZES: [u64; 3] = [20 * (256 << 10) - 7, 5 * (256 << 10) + 9, 0];
/// So that a piece has four blocks, as those of large artifacts have, and a script is soon run.
pub const MAX_BLOCK: u32 = 64 << 10;

/// The name of one of the artifacts, so simple that a fuzzer finds it.
pub fn digest(which: usize) -> Digest {
    Digest::from_bytes([which as u8; 32])
}

/// One of the artifacts.
pub fn shape(which: usize) -> Shape {
    Shape::new(digest(which), SIZES[which]).with_max_block(MAX_BLOCK)
}

/// The artifact of that name, if it is one of them.
pub fn shape_of(digest: &Digest) -> Option<Shape> {
    (0..SIZES.len()).map(shape).find(|shape| shape.digest() == *digest)
}

/// Where the member at a place is: some do not say.
pub fn zone_of(who: usize) -> Option<Zone> {
    [None, Some(Zone(1)), Some(Zone(2))][who % 3]
}

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The member at this place connects.
    Connect(usize, Role, bool),
    /// Its connection ends.
    Disconnect(usize),
    /// It says something.
    Say(usize, Message),
    /// It sends a block.
    Block { who: usize, which: usize, piece: u8, block: u8, len: u8 },
    /// The node takes part in an artifact, of which it has the pieces whose number, divided by 8, has a remainder in the set.
    Begin(usize, u8),
    /// The node takes part no more.
    Leave(usize),
    /// Something that the machine wanted done is done, or fails.
    Answer { well: bool, which: u8 },
    /// Time passes.
    Pass(Duration),
}

/// The steps that bytes tell.
pub fn steps(input: &[u8]) -> impl Iterator<Item = Step> {
    let mut input = input;
    std::iter::from_fn(move || {
        loop {
            let first = byte(&mut input)?;
            let who = usize::from(first >> 3) % PLACES;
            return Some(match first & 7 {
                0 => {
                    let which = byte(&mut input)?;
                    let role = [Role::Node, Role::Tracker, Role::Gate][usize::from(which % 3)];
                    Step::Connect(who, role, which >= 128)
                }
                1 => Step::Disconnect(who),
                2 => {
                    let len = usize::from(number(&mut input)?);
                    let (body, rest) = input.split_at_checked(len)?;
                    input = rest;
                    match wire::parse_body(Kind::Control, Bytes::copy_from_slice(body)) {
                        Ok(Frame::Control(message)) => Step::Say(who, message),
                        _ => continue,
                    }
                }
                3 => {
                    let which = usize::from(byte(&mut input)?) % SIZES.len();
                    let (piece, block, len) = (byte(&mut input)?, byte(&mut input)?, byte(&mut input)?);
                    Step::Block { who, which, piece, block, len }
                }
                4 => Step::Begin(usize::from(byte(&mut input)?) % SIZES.len(), byte(&mut input)?),
                5 => Step::Leave(usize::from(byte(&mut input)?) % SIZES.len()),
                6 => {
                    let (well, which) = (byte(&mut input)?, byte(&mut input)?);
                    Step::Answer { well: well % 4 > 0, which }
                }
                _ => Step::Pass(Duration::from_millis(number(&mut input)?.into())),
            });
        }
    })
}

/// The bytes that tell steps.
pub fn bytes(steps: &[Step]) -> Vec<u8> {
    let mut out = Vec::new();
    let first = |what: u8, who: usize| what | (who as u8) << 3;
    for step in steps {
        match step {
            Step::Connect(who, role, dialed) => {
                let role = match role {
                    Role::Node => 0,
                    Role::Tracker => 1,
                    Role::Gate => 2,
                };
                out.extend([first(0, *who), if *dialed { 129 + role } else { role }]);
            }
            Step::Disconnect(who) => out.push(first(1, *who)),
            Step::Say(who, message) => {
                let frame = wire::encode_control(message);
                let body = &frame[wire::HEADER..];
                out.push(first(2, *who));
                out.extend((body.len() as u16).to_le_bytes());
                out.extend(body);
            }
            Step::Block { who, which, piece, block, len } => {
                out.extend([first(3, *who), *which as u8, *piece, *block, *len]);
            }
            Step::Begin(which, have) => out.extend([4, *which as u8, *have]),
            Step::Leave(which) => out.extend([5, *which as u8]),
            Step::Answer { well, which } => out.extend([6, u8::from(*well), *which]),
            Step::Pass(time) => {
                out.push(7);
                out.extend((time.as_millis() as u16).to_le_bytes());
            }
        }
    }
    out
}

fn byte(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

fn number(input: &mut &[u8]) -> Option<u16> {
    Some(u16::from_le_bytes([byte(input)?, byte(input)?]))
}

/// The connections at the places; each gets a number of its own, as those who drive machines give them.
#[derive(Debug, Default)]
pub struct Places {
    open: [Option<ConnId>; PLACES],
    last: u64,
}

impl Places {
    /// A new connection, and the one that was there before, which has ended.
    pub fn connect(&mut self, who: usize) -> (ConnId, Option<ConnId>) {
        self.last += 1;
        let conn = ConnId(self.last);
        (conn, self.open[who].replace(conn))
    }

    /// Ends a connection.
    pub fn disconnect(&mut self, who: usize) -> Option<ConnId> {
        self.open[who].take()
    }

    /// Ends a connection that the machine closed.
    pub fn closed(&mut self, conn: ConnId) {
        self.open.iter_mut().filter(|open| **open == Some(conn)).for_each(|open| *open = None);
    }

    /// The connection at a place.
    pub fn get(&self, who: usize) -> Option<ConnId> {
        self.open[who]
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.open.iter().flatten().count()
    }

    /// Checks what a machine says to somebody: it is a message that the receiver takes.
    pub fn check_send(&self, conn: ConnId, message: &Message) {
        assert!(conn.0 >= 1 && conn.0 <= self.last, "{conn} never was");
        let bytes = wire::encode_control(message);
        let sent = Frame::Control(message.clone());
        assert_eq!(super::frame::parse(&bytes).as_ref(), Some(&sent), "the receiver takes it for another one");
    }
}
