//! Pieces from other zones: each comes into a zone about once, and goes on within it.
//!
//! The tracker tells each node which of how many it is in its zone. By that each piece has one node of the zone whose part it is to bring it
//! from elsewhere; the others wait until a neighbour in the zone has it. Nobody answers for that: the node may be gone, or hear late of a
//! piece. So a node that finds too little to ask for takes the parts of those after it too, of twice as many at each look, until it has
//! enough.

use deploycore::model::Digest;

use super::artifact::Artifact;
use super::link::{Ask, Link};
use super::{Peer, TEND};
use crate::core::bitfield::Bitfield;
use crate::core::message::{Payload, Zone, ZonePart};
use crate::core::shape::Shape;
use crate::core::time::Instant;

/// What a node may bring from other zones of an artifact. Empty for a node without a zone: to it nothing is elsewhere.
#[derive(Debug, Default)]
pub(super) struct Outside {
    /// Which of the nodes of the zone it is, as the tracker says.
    part: Option<ZonePart>,
    /// It takes the part of so many nodes, its own included.
    parts: u32,
    /// How many neighbours in the zone have each piece.
    near: Vec<u16>,
    /// Pieces not to be brought from elsewhere: they are in the zone, or another's part.
    barred: Option<Bitfield>,
}

impl Outside {
    /// For a node of this zone.
    pub(super) fn new(zone: Option<Zone>, pieces: u32) -> Self {
        match zone {
            Some(_) => {
                Self { near: vec![0; pieces as usize], barred: Some(Bitfield::new(pieces)), parts: 1, part: None }
            }
            None => Self::default(),
        }
    }

    /// A neighbour in the zone has a piece now, or has it no more.
    pub(super) fn count(&mut self, piece: u32, come: bool) {
        let Some(count) = self.near.get_mut(piece as usize) else { return };
        *count = if come { count.saturating_add(1) } else { count.saturating_sub(1) };
        let (near, mine) = (*count > 0, self.is_mine(piece));
        if let Some(barred) = &mut self.barred {
            if near || !mine {
                barred.insert(piece)
            } else {
                barred.remove(piece)
            };
        }
    }

    /// Whether it is this node's part to bring a piece. Before the tracker told which part that is, it is.
    fn is_mine(&self, piece: u32) -> bool {
        let Some(ZonePart { index, of }) = self.part.filter(|part| part.of > 0) else { return true };
        // Neighbouring pieces are as far from each other as others.
        let (index, of) = (u64::from(index), u64::from(of));
        let bearer = (u64::from(piece).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % of;
        (bearer + of - index % of) % of < u64::from(self.parts)
    }

    /// Whether it counts what the neighbours in the zone have, and bars what follows from that.
    pub(super) fn is_consistent(&self, near: &[u16]) -> bool {
        self.barred.as_ref().is_none_or(|barred| {
            let bars = |(piece, near): (u32, &u16)| barred.contains(piece) == (*near > 0 || !self.is_mine(piece));
            self.near == near && (0..).zip(near).all(bars)
        })
    }

    fn take_part(&mut self, part: ZonePart, parts: u32) {
        if self.barred.is_none() || (self.part, self.parts) == (Some(part), parts) {
            return;
        }
        (self.part, self.parts) = (Some(part), parts);
        let pieces = self.near.len() as u32;
        let mut barred = Bitfield::new(pieces);
        for piece in 0..pieces {
            if self.near[piece as usize] > 0 || !self.is_mine(piece) {
                barred.insert(piece);
            }
        }
        self.barred = Some(barred);
    }
}

impl<B: Payload> Artifact<B> {
    /// Pieces that are not to be begun with this neighbour, if it is one of another zone.
    pub(super) fn barred(&self, link: &Link) -> Option<&Bitfield> {
        self.outside.barred.as_ref().filter(|_| link.is_elsewhere)
    }

    /// Whether a piece may be brought by this neighbour, as far as zones go.
    pub(super) fn may_come_from(&self, link: &Link, piece: u32) -> bool {
        self.barred(link).is_none_or(|barred| !barred.contains(piece))
    }

    /// Whether this neighbour has something that may be begun with it.
    pub(super) fn is_offered(&self, link: &Link, has: &Bitfield) -> bool {
        match self.barred(link) {
            None => has.exceeds(&self.taken),
            Some(barred) => has.exceeds(&self.taken.union(barred)),
        }
    }
}

impl<B: Payload> Peer<B> {
    /// A tracker says which of the nodes of its zone this one is. One that has no room for it does not, and another may have said so before.
    pub(super) fn place_in_zone(&mut self, digest: &Digest, part: Option<ZonePart>) {
        if let (Some(at), Some(part)) = (self.artifact_at(digest), part) {
            let outside = &mut self.artifacts[at].outside;
            outside.take_part(part, outside.parts);
        }
    }

    /// Bytes of rollbacks, or of all others, that nodes in other zones were asked for and that did not come. What is asked for in the zone
    /// does not wait for them: they may come over a thin link.
    pub(super) fn outstanding_elsewhere(&self, artifact: usize) -> u64 {
        if self.zone.is_none() {
            return 0;
        }
        let rollback = self.artifacts[artifact].is_rollback();
        let beside = |ask: &&Ask| self.artifact(&ask.digest).is_some_and(|other| other.is_rollback() == rollback);
        let asks = self.links.iter().filter(|link| link.is_elsewhere).flat_map(|link| &link.asks);
        asks.filter(beside).map(|ask| u64::from(ask.len)).sum()
    }

    /// How many these may be: little of what may be asked for in the zone, and at least a piece.
    pub(super) fn window_elsewhere(&self, shape: &Shape) -> u64 {
        (self.window(shape) / 4).max(shape.piece_size())
    }

    /// Looks whether what the zone offers is enough to ask for. If not, and others elsewhere have more, twice as much of that is this
    /// node's part; if it is, half as much.
    pub(super) fn look_elsewhere(&mut self, now: Instant) {
        for at in 0..self.artifacts.len() {
            let artifact = &self.artifacts[at];
            let Some(part) = artifact.outside.part.filter(|_| !artifact.have.is_full()) else { continue };
            let is_short = now.since(artifact.since) > TEND && artifact.outstanding * 2 < self.window(&artifact.shape);
            let brought = artifact.brought();
            let has_more = |link: &Link| {
                let remote = link.remote(&artifact.shape.digest()).filter(|_| link.is_elsewhere);
                remote.is_some_and(|remote| remote.has.exceeds(&brought))
            };
            let parts = artifact.outside.parts;
            let parts = if is_short && self.links.iter().any(has_more) {
                parts.saturating_mul(2).min(part.of.max(1))
            } else {
                (parts / 2).max(1)
            };
            self.artifacts[at].outside.take_part(part, parts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside(index: u32, of: u32, parts: u32) -> Outside {
        let mut outside = Outside::new(Some(Zone::of("a")), 1_000);
        outside.take_part(ZonePart { index, of }, parts);
        outside
    }

    fn may_bring(outside: &Outside) -> Vec<u32> {
        outside.barred.as_ref().unwrap().missing().collect()
    }

    #[test]
    fn each_piece_is_the_part_of_one_node_of_the_zone() {
        let mut all: Vec<u32> = (0..7).flat_map(|index| may_bring(&outside(index, 7, 1))).collect();
        all.sort_unstable();
        assert_eq!(all, (0..1_000).collect::<Vec<u32>>());
        let shares: Vec<usize> = (0..7).map(|index| may_bring(&outside(index, 7, 1)).len()).collect();
        assert!(shares.iter().all(|share| (100..190).contains(share)), "{shares:?}");
    }

    #[test]
    fn one_that_takes_more_parts_takes_those_of_the_nodes_after_it() {
        let mut both = may_bring(&outside(2, 7, 1));
        both.extend(may_bring(&outside(3, 7, 1)));
        both.sort_unstable();
        assert_eq!(may_bring(&outside(2, 7, 2)), both);
        assert_eq!(may_bring(&outside(6, 7, 7)).len(), 1_000);
    }

    #[test]
    fn what_is_in_the_zone_is_not_brought_from_elsewhere() {
        let mut outside = outside(0, 1, 1);
        outside.count(5, true);
        outside.count(5, true);
        outside.count(5, false);
        assert!(!may_bring(&outside).contains(&5));
        outside.count(5, false);
        assert!(may_bring(&outside).contains(&5));
    }

    #[test]
    fn numbers_that_make_no_sense_are_borne() {
        for (index, of) in [(u32::MAX, u32::MAX), (7, 3), (0, 0), (u32::MAX, 1)] {
            assert!(may_bring(&outside(index, of, u32::MAX)).len() == 1_000);
        }
    }

    #[test]
    fn to_a_node_without_a_zone_nothing_is_elsewhere() {
        let mut outside = Outside::new(None, 1_000);
        outside.take_part(ZonePart { index: 0, of: 3 }, 1);
        outside.count(5, true);
        assert!(outside.barred.is_none());
    }
}
