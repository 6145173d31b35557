//! Blocks that take long: taken back from sources that are slow, and at the end asked of a second one.

use std::ops::Range;
use std::time::Duration;

use super::Peer;
use super::artifact::BlockState;
use crate::core::message::{Message, Payload, Role};
use crate::core::time::Instant;

/// How many neighbours may be asked for one block at the end.
const MAX_COPIES: u8 = 2;
/// How many blocks may be asked for twice at once.
const MAX_DOUBLES: usize = 4;
/// A source this many times slower than the median is relieved of its pieces.
const SLOW: f64 = 3.0;
/// A request is not late before.
const LATE: Duration = Duration::from_millis(500);

impl<B: Payload> Peer<B> {
    /// The end: everything is asked for, and this neighbour has nothing else to do. It is asked for a block that another one
    /// takes long to bring.
    pub(super) fn last_blocks(&mut self, at_artifact: usize, at: usize, now: Instant) -> Option<(u32, Range<u32>)> {
        let artifact = &self.artifacts[at_artifact];
        if !artifact.taken.is_full() {
            return None;
        }
        let (link, digest) = (&self.links[at], artifact.shape.digest());
        let remote = link.remote(&digest)?;
        let open = || artifact.begun.iter().filter(|begun| !begun.storing);
        let doubles =
            open().flat_map(|begun| &begun.blocks).filter(|block| matches!(block, BlockState::Asked(MAX_COPIES..)));
        if doubles.count() >= MAX_DOUBLES {
            return None;
        }
        let usual = self.median_wait().unwrap_or(Duration::from_millis(500)) * 2;
        let theirs =
            open().filter(|begun| remote.has.contains(begun.piece) && artifact.may_come_from(link, begun.piece));
        let single = |piece: u32| !artifact.suspects.iter().any(|suspect| suspect.piece == piece);
        theirs.filter(|begun| single(begun.piece)).find_map(|begun| {
            (0..).zip(&begun.blocks).find_map(|(block, state)| {
                let elsewhere = || {
                    let mut asks = self.links.iter().filter_map(|other| other.asks_for(&digest, begun.piece, block));
                    asks.all(|ask| now.since(ask.at) > usual) && link.asks_for(&digest, begun.piece, block).is_none()
                };
                let wanted = match state {
                    BlockState::Free => true,
                    BlockState::Asked(copies) => *copies < MAX_COPIES && elsewhere(),
                    BlockState::Got { .. } => false,
                };
                wanted.then_some((begun.piece, block..block + 1))
            })
        })
    }

    /// How fast the neighbours in the node's zone, or those elsewhere, usually are: the median of at least four.
    fn median_rate(&self, is_elsewhere: bool) -> Option<f64> {
        let nodes = self.links.iter().filter(|link| link.role == Role::Node && link.is_elsewhere == is_elsewhere);
        let mut rates: Vec<f64> = nodes.map(|link| link.rate).filter(|rate| *rate > 0.0).collect();
        rates.sort_by(f64::total_cmp);
        (rates.len() >= 4).then(|| rates[rates.len() / 2])
    }

    /// How long the neighbours usually take: the median.
    fn median_wait(&self) -> Option<Duration> {
        let mut waits: Vec<Duration> = (0..self.links.len()).filter_map(|at| self.links.expected(at)).collect();
        waits.sort_unstable();
        waits.get(waits.len() / 2).copied()
    }

    /// Takes work back from sources that are silent, or much slower than the others while faster ones have room.
    pub(super) fn give_up_slow_requests(&mut self, now: Instant) {
        let asked = (0..).zip(self.links.asked_bytes()).filter(|(_, bytes)| **bytes > 0).map(|(at, _)| at);
        let mut asks = asked.flat_map(|at: usize| &self.links[at].asks);
        if !asks.any(|ask| now.since(ask.at) > LATE.min(self.settings.request_timeout)) {
            return;
        }
        // What comes from another zone may share a thin link: it is no slower for that than the rest that does.
        let medians = [false, true].map(|is_elsewhere| self.median_rate(is_elsewhere));
        let usual = self.median_wait().map(|wait| wait * 4);
        let mut late = Vec::new();
        let asked = self.links.asked_bytes();
        for (at, link) in self.links.iter().enumerate().filter(|(at, _)| asked[*at] > 0) {
            let patience = self.settings.request_timeout.max(self.links.expected(at).unwrap_or_default() * 4);
            let median = medians[usize::from(link.is_elsewhere)];
            let slow = link.role == Role::Node && link.rate > 0.0 && median.is_some_and(|rate| link.rate * SLOW < rate);
            let usual = usual.unwrap_or(patience * 4);
            for ask in &link.asks {
                let age = now.since(ask.at);
                if age > patience || (slow && age > usual.max(LATE)) {
                    late.push((link.conn, *ask));
                }
            }
        }
        for (conn, ask) in late {
            let Some(at) = self.link_at(conn) else { continue };
            if self.links[at].role == Role::Node {
                let (peer, until) = (self.links[at].peer, now + self.settings.busy_retry);
                if let Some(own) =
                    self.artifact_at(&ask.digest).filter(|_| now.since(ask.at) > self.settings.request_timeout)
                {
                    self.artifacts[own].note_withheld(ask.piece, peer);
                }
                if let Some(remote) = self.links[at].remote_mut(&ask.digest) {
                    remote.ask_after = until;
                }
                let (digest, piece, block) = (ask.digest, ask.piece, ask.block);
                self.send(conn, Message::Cancel { digest, piece, block });
            }
            self.unanswered(at, &ask.digest, ask.piece, ask.block, 1, now);
        }
    }
}
