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

/// The two ends of each connection, in the order in which they were opened.
#[derive(Debug, Default)]
pub(super) struct Connections(Vec<Option<(u32, u32)>>);

impl Connections {
    pub(super) fn add(&mut self, from: Place, to: Place) -> ConnId {
        self.0.push(Some((from as u32, to as u32)));
        ConnId(self.0.len() as u64 - 1)
    }

    pub(super) fn close(&mut self, conn: ConnId) {
        self.0[conn.0 as usize] = None;
    }

    pub(super) fn is_open(&self, conn: ConnId) -> bool {
        self.0[conn.0 as usize].is_some()
    }

    pub(super) fn other_end(&self, conn: ConnId, end: Place) -> Option<Place> {
        let (one, other) = self.0[conn.0 as usize]?;
        Some(if one as Place == end { other as Place } else { one as Place })
    }

    pub(super) fn open(&self) -> impl Iterator<Item = (ConnId, (Place, Place))> + '_ {
        let place = |(one, other): (u32, u32)| (one as Place, other as Place);
        (0..).map(ConnId).zip(&self.0).filter_map(move |(conn, ends)| Some((conn, place((*ends)?))))
    }
}
