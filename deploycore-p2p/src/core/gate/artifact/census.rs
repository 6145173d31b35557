//! Whether anyone still holds a piece that nodes miss: the trackers are asked.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::{Artifact, Piece};
use crate::core::gate::Output;
use crate::core::message::{ConnId, MAX_CONTACTS, MAX_LIST, Message, PeerId};
use crate::core::time::Instant;

/// How long a tracker may take to answer.
const CENSUS_TIME: Duration = Duration::from_secs(2);

/// A question to the trackers under way.
#[derive(Debug)]
pub(super) struct Census {
    pieces: BTreeSet<u32>,
    waiting: BTreeSet<ConnId>,
    pub(super) until: Instant,
}

impl Artifact {
    /// A node knows nobody who has these pieces.
    pub(in crate::core::gate) fn stuck(&mut self, pieces: &[u32], refused: &[PeerId]) {
        if self.refused.len() + refused.len() <= MAX_CONTACTS {
            self.refused.extend(refused);
        }
        let known = pieces.iter().filter(|piece| **piece < self.shape.pieces());
        self.asked.extend(known.filter(|piece| self.pieces[**piece as usize] == Piece::Out));
    }

    /// A tracker's answer. A piece is orphaned when all trackers asked know of no holder, and none can have come by it unheard.
    pub(in crate::core::gate) fn holders(
        &mut self,
        conn: ConnId,
        pieces: &[(u32, u32)],
        stale: Duration,
        settled: bool,
        now: Instant,
    ) {
        let Some(census) = &mut self.census else {
            return;
        };
        if !census.waiting.remove(&conn) {
            return;
        }
        if !settled {
            self.census = None;
            return;
        }
        let quiet = stale + stale / 2;
        let ownerless: BTreeSet<u32> =
            pieces.iter().filter(|(_, holders)| *holders == 0).map(|(piece, _)| *piece).collect();
        let touched = &self.touched;
        census.pieces.retain(|piece| ownerless.contains(piece) && now.since(touched[*piece as usize]) > quiet);
        if census.waiting.is_empty() {
            let pieces = self.census.take().map(|census| census.pieces).unwrap_or_default();
            for piece in pieces {
                if self.pieces[piece as usize] == Piece::Out {
                    self.pieces[piece as usize] = Piece::Orphan;
                    self.again.push_back(piece);
                }
            }
        }
    }

    pub(super) fn ask(&mut self, trackers: &[ConnId], now: Instant, outputs: &mut VecDeque<Output>) {
        if self.asked.is_empty() || self.census.is_some() || trackers.is_empty() {
            return;
        }
        let pieces: BTreeSet<u32> = std::mem::take(&mut self.asked);
        let list: Vec<u32> = pieces.iter().copied().take(MAX_LIST).collect();
        let except: Vec<PeerId> = std::mem::take(&mut self.refused).into_iter().collect();
        for conn in trackers {
            let (digest, except) = (self.shape.digest(), except.clone());
            let message = Message::Census { digest, pieces: list.clone(), except };
            outputs.push_back(Output::Send(*conn, message));
        }
        let waiting = trackers.iter().copied().collect();
        self.census = Some(Census { pieces: list.into_iter().collect(), waiting, until: now + CENSUS_TIME });
    }
}
