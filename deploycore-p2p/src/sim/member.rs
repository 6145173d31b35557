//! What there is of each member: its links, its connections, and what it was told and did not look at yet.

use std::time::Duration;

use fastrand::Rng;

use super::{Place, Shared, Token};
use crate::core::bitfield::Bitfield;
use crate::core::message::ConnId;
use crate::core::peer::Peer;
use crate::core::time::Instant;

/// A machine, the tracker or the gate.
pub(super) struct Member {
    /// The machine while it runs; tracker and gate are elsewhere.
    pub(super) peer: Option<Peer<Token>>,
    /// How often it started.
    pub(super) life: u32,
    pub(super) gives_bad: bool,
    pub(super) must_complete: bool,
    pub(super) wakes: Instant,
    pub(super) up: Pipe,
    pub(super) down: Pipe,
    pub(super) ends: Ends,
    pub(super) rng: Rng,
    /// By artifact.
    pub(super) completed: [Option<Duration>; 2],
    /// What it received by second since the second artifact's start; empty where there is none.
    pub(super) shared: Vec<Shared>,
    /// The verified pieces it had when it died, if it will start again.
    pub(super) kept: Vec<Bitfield>,
}

impl Member {
    pub(super) fn new(up: u64, down: u64, rng: Rng) -> Self {
        Self {
            peer: None,
            life: 0,
            gives_bad: false,
            must_complete: false,
            wakes: Instant::FAR,
            up: Pipe::new(up),
            down: Pipe::new(down),
            ends: Ends::default(),
            rng,
            completed: [None; 2],
            shared: Vec::new(),
            kept: Vec::new(),
        }
    }
}

/// One end's link, one way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pipe {
    rate: f64,
    pub(super) free: Instant,
}

impl Pipe {
    pub(super) fn new(rate: u64) -> Self {
        Self { rate: rate as f64, free: Instant::ZERO }
    }

    pub(super) fn time(&self, len: u32) -> Duration {
        Duration::from_secs_f64(f64::from(len) / self.rate)
    }
}

/// A member's ends of its connections, each numbered by its own side alone, in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Ends(Vec<End>);

#[derive(Debug, Clone, Copy)]
enum End {
    /// No answer yet.
    Dialed(u32),
    /// With whom, and what the other side calls it.
    Open(u32, u32),
    Closed,
}

impl Ends {
    pub(super) fn dial(&mut self, to: Place) -> ConnId {
        self.add(End::Dialed(to as u32))
    }

    pub(super) fn accept(&mut self, from: Place, there: ConnId) -> ConnId {
        self.add(End::Open(from as u32, there.0 as u32))
    }

    fn add(&mut self, end: End) -> ConnId {
        self.0.push(end);
        ConnId(self.0.len() as u64 - 1)
    }

    /// The other side answered; gives whether the dial was waited for.
    pub(super) fn answered(&mut self, conn: ConnId, there: ConnId) -> bool {
        let end = &mut self.0[conn.0 as usize];
        let End::Dialed(to) = *end else { return false };
        *end = End::Open(to, there.0 as u32);
        true
    }

    /// The other side is not there; gives who it is, if the dial was waited for.
    pub(super) fn refused(&mut self, conn: ConnId) -> Option<Place> {
        match std::mem::replace(&mut self.0[conn.0 as usize], End::Closed) {
            End::Dialed(to) => Some(to as Place),
            End::Open(..) | End::Closed => None,
        }
    }

    /// Who is at the other side of an open connection, and what it calls it.
    pub(super) fn other(&self, conn: ConnId) -> Option<(Place, ConnId)> {
        match self.0[conn.0 as usize] {
            End::Open(other, there) => Some((other as Place, ConnId(u64::from(there)))),
            End::Dialed(_) | End::Closed => None,
        }
    }

    /// Ends a connection; gives its other side, if it was open.
    pub(super) fn close(&mut self, conn: ConnId) -> Option<(Place, ConnId)> {
        let other = self.other(conn);
        self.0[conn.0 as usize] = End::Closed;
        other
    }

    /// Ends all; gives the other sides of those that were open.
    pub(super) fn close_all(&mut self) -> Vec<(Place, ConnId)> {
        let conns = (0..self.0.len() as u64).map(ConnId);
        conns.filter_map(|conn| self.close(conn)).collect()
    }

    /// The open ones, and the other side of each.
    pub(super) fn open(&self) -> impl Iterator<Item = (ConnId, (Place, ConnId))> + '_ {
        (0..self.0.len() as u64).map(ConnId).filter_map(|conn| Some((conn, self.other(conn)?)))
    }
}

/// A neighbour has verified a piece. These are most of what is said, so that they are kept small: a message with several is several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Announcement {
    pub(super) comes: Instant,
    /// As the receiver calls it.
    pub(super) conn: u32,
    pub(super) artifact: u32,
    pub(super) piece: u32,
    /// How many the neighbour has.
    pub(super) count: u32,
}

/// What a machine did not look at yet.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) announcements: Vec<Announcement>,
    /// When it will look.
    pub(super) looks: Instant,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { announcements: Vec::new(), looks: Instant::FAR }
    }
}
