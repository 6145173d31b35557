//! What lies between the members: links that carry one block after the other, and connections.

use std::time::Duration;

use super::Place;
use crate::core::message::ConnId;
use crate::core::time::Instant;

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

/// The connections, numbered in the order in which they were opened.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// The two ends of each.
    ends: Vec<(u32, u32)>,
    /// Which are open, a bit each: what is asked for most stays in the cache.
    open: Vec<u64>,
}

impl Connections {
    pub(super) fn add(&mut self, from: Place, to: Place) -> ConnId {
        let at = self.ends.len();
        self.ends.push((from as u32, to as u32));
        self.open.resize(at / 64 + 1, 0);
        self.open[at / 64] |= 1 << (at % 64);
        ConnId(at as u64)
    }

    pub(super) fn close(&mut self, conn: ConnId) {
        self.open[conn.0 as usize / 64] &= !(1 << (conn.0 % 64));
    }

    pub(super) fn is_open(&self, conn: ConnId) -> bool {
        self.open[conn.0 as usize / 64] >> (conn.0 % 64) & 1 == 1
    }

    pub(super) fn other_end(&self, conn: ConnId, end: Place) -> Option<Place> {
        let (one, other) = self.ends[conn.0 as usize];
        let other_end = if one as Place == end { other } else { one };
        self.is_open(conn).then_some(other_end as Place)
    }

    pub(super) fn open(&self) -> impl Iterator<Item = (ConnId, (Place, Place))> + '_ {
        let all = (0..).map(ConnId).zip(&self.ends).map(|(conn, ends)| (conn, (ends.0 as Place, ends.1 as Place)));
        all.filter(|(conn, _)| self.is_open(*conn))
    }
}
