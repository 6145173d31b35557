//! Serving: a few neighbours at a time, those with the least first.
//!
//! A neighbour that is served holds a slot until it asks for nothing more, or until it begins another piece while someone with
//! no more than it waits, or someone for an artifact whose turn it is. Whoever finds no slot is told `Busy` and asks another; if there is
//! none it waits, and is told `Ready` when it is its turn. The slot is then kept for it for a moment. Artifacts share what is given by
//! weight. Those who fetch a rollback have slots of their own, and while one is served no other block goes out.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use deploycore::model::Digest;
use deploycore::port::swarm::Priority;
use smallvec::SmallVec;

use super::rates::Way;
use super::turns::Turn;
use super::{Output, Peer};
use crate::core::message::{ConnId, Message, Payload, Refusal};
use crate::core::time::Instant;

/// Blocks of one neighbour that are handed to the network at once: one on its way, one behind it.
const MAX_UNSENT: u32 = 2;
/// Requests of one neighbour that wait in its slot.
const MAX_QUEUE: usize = 64;
/// How long a slot is kept for a neighbour that was told `Ready`.
const KEPT: Duration = Duration::from_millis(500);

/// A neighbour that is being served.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) conn: ConnId,
    pub(super) digest: Digest,
    /// As the neighbour says.
    pub(super) priority: Priority,
    queue: VecDeque<(u32, u32)>,
    /// The piece it asked for last, and how many it began.
    piece: Option<u32>,
    begun: u32,
    /// The numbers of the blocks handed to the network and not yet sent.
    sending: SmallVec<[u64; 2]>,
    kept_until: Instant,
}

impl Slot {
    fn new(conn: ConnId, digest: Digest, priority: Priority, kept_until: Instant) -> Self {
        let (queue, sending) = (VecDeque::new(), SmallVec::new());
        Self { conn, digest, priority, queue, piece: None, begun: 0, sending, kept_until }
    }

    /// Its neighbour was told `Ready` and did not ask for anything yet.
    fn is_kept(&self) -> bool {
        self.queue.is_empty() && self.sending.is_empty()
    }

    fn is_spent(&self, now: Instant) -> bool {
        self.is_kept() && self.kept_until <= now
    }

    fn is_rollback(&self) -> bool {
        self.priority == Priority::Rollback
    }
}

/// A neighbour that has nobody else to ask, and what decides when it is its turn: kept here, for it is compared with the others at each block.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) conn: ConnId,
    pub(super) digest: Digest,
    /// As the neighbour says.
    priority: Priority,
    /// How many of the artifact's pieces it has, in parts of 2^32.
    share: u64,
}

impl Waiting {
    pub(super) fn is(&self, conn: ConnId, digest: &Digest) -> bool {
        self.conn == conn && self.digest == *digest
    }

    fn is_rollback(&self) -> bool {
        self.priority == Priority::Rollback
    }
}

impl<B: Payload> Peer<B> {
    /// A neighbour asks for blocks. It finds a slot for all of them or for none: half a piece would help nobody.
    pub(super) fn request(&mut self, at: usize, digest: Digest, piece: u32, block: u32, count: u32, now: Instant) {
        let conn = self.links[at].conn;
        self.links[at].useful = now;
        let Some(artifact) = self.artifact(&digest) else {
            let refusal = Refusal::UnknownArtifact;
            return self.send(conn, Message::Reject { digest, piece, block, count, refusal });
        };
        let end = block.saturating_add(count);
        if !artifact.have.contains(piece) || count == 0 || end > artifact.shape.blocks(piece) {
            let refusal = Refusal::MissingPiece;
            return self.send(conn, Message::Reject { digest, piece, block, count, refusal });
        }
        if !self.admit(conn, &digest, piece, now) {
            return self.send(conn, Message::Busy { digest, piece, block, count });
        }
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.conn == conn && slot.digest == digest) {
            if slot.piece != Some(piece) {
                slot.piece = Some(piece);
                slot.begun += 1;
            }
            slot.queue.extend((block..end).map(|block| (piece, block)));
        }
        self.serve(now);
    }

    /// A neighbour that was told `Busy` has nobody else to ask.
    pub(super) fn awaited(&mut self, at: usize, digest: Digest, now: Instant) {
        let conn = self.links[at].conn;
        let serves = self.artifact(&digest).is_some() && self.links[at].remote(&digest).is_some();
        if serves && !self.waiting.iter().any(|waiting| waiting.is(conn, &digest)) {
            let (priority, share) = (self.urgency(conn, &digest), self.share(conn, &digest));
            self.waiting.push(Waiting { conn, digest, priority, share });
            self.serve(now);
        }
    }

    /// Whether the request may enter a slot; makes one if there is room.
    fn admit(&mut self, conn: ConnId, digest: &Digest, piece: u32, now: Instant) -> bool {
        if let Some(slot) = self.slots.iter().find(|slot| slot.conn == conn && slot.digest == *digest) {
            let next_piece = slot.begun > 0 && slot.piece != Some(piece);
            let rollback = slot.is_rollback();
            return slot.queue.len() < MAX_QUEUE && !(next_piece && self.is_turn_over(conn, digest, rollback));
        }
        self.slots.retain(|slot| !slot.is_spent(now));
        let priority = self.urgency(conn, digest);
        // A slot that is kept for another, who may not come, stands before nobody.
        let (all, kept) = self.slots_of(priority == Priority::Rollback);
        let free = all - kept < self.settings.slots && all < 2 * self.settings.slots;
        if free {
            self.waiting.retain(|waiting| !waiting.is(conn, digest));
            self.slots.push(Slot::new(conn, *digest, priority, now));
        }
        free
    }

    /// How many slots there are for rollbacks, or for others, and how many of them are kept.
    fn slots_of(&self, rollback: bool) -> (usize, usize) {
        let own = self.slots.iter().filter(|slot| slot.is_rollback() == rollback);
        own.fold((0, 0), |(all, kept), slot| (all + 1, kept + usize::from(slot.is_kept())))
    }

    fn urgency(&self, conn: ConnId, digest: &Digest) -> Priority {
        self.links.of(conn).and_then(|link| link.remote(digest)).map_or(Priority::Normal, |remote| remote.priority)
    }

    fn turn_out(&self, digest: &Digest) -> Turn {
        self.artifact(digest).map(|own| self.turns_out.of(own.turn_out, own.slack())).unwrap_or_default()
    }

    /// How many of an artifact's pieces a neighbour has, in parts of 2^32.
    fn share(&self, conn: ConnId, digest: &Digest) -> u64 {
        let remote = self.links.of(conn).and_then(|link| link.remote(digest));
        remote.map_or(1 << 32, |remote| share(remote.count, remote.has.len()))
    }

    /// Whether someone waits for a slot of the same kind who comes no later: for another artifact whose turn it is, or for this one
    /// with no more of it.
    fn is_turn_over(&self, conn: ConnId, digest: &Digest, rollback: bool) -> bool {
        let (turn, own) = (self.turn_out(digest), self.share(conn, digest));
        self.waiting.iter().filter(|waiting| waiting.is_rollback() == rollback).any(|waiting| {
            let same = waiting.digest == *digest;
            if same { waiting.share <= own } else { self.turn_out(&waiting.digest) < turn }
        })
    }

    /// A neighbour that is served or waits has another number of pieces now, or another priority.
    pub(super) fn note_standing(&mut self, conn: ConnId, digest: &Digest, count: u32, priority: Option<Priority>) {
        if let (Some(priority), Some(slot)) =
            (priority, self.slots.iter_mut().find(|slot| slot.conn == conn && slot.digest == *digest))
        {
            slot.priority = priority;
        }
        let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.is(conn, digest)) else { return };
        let Some(artifact) = self.artifacts.iter().find(|artifact| artifact.shape.digest() == *digest) else { return };
        waiting.share = share(count, artifact.shape.pieces());
        waiting.priority = priority.unwrap_or(waiting.priority);
    }

    pub(super) fn cancelled(&mut self, conn: ConnId, digest: &Digest, piece: u32, block: u32, now: Instant) {
        for slot in self.slots.iter_mut().filter(|slot| slot.conn == conn && slot.digest == *digest) {
            slot.queue.retain(|entry| *entry != (piece, block));
        }
        self.serve(now);
    }

    pub(super) fn passed(&mut self, conn: ConnId, digest: &Digest, now: Instant) {
        for slot in self.slots.iter_mut().filter(|slot| slot.conn == conn && slot.digest == *digest) {
            slot.kept_until = Instant::ZERO;
        }
        self.serve(now);
    }

    /// A neighbour keeps a slot for this node.
    pub(super) fn ready(&mut self, at: usize, digest: &Digest, now: Instant) {
        let conn = self.links[at].conn;
        if let Some(remote) = self.links[at].remote_mut(digest) {
            (remote.ask_after, remote.awaited) = (Instant::ZERO, false);
        }
        self.fill(at, now);
        if !self.links[at].asks.iter().any(|ask| ask.digest == *digest) {
            self.send(conn, Message::Pass { digest: *digest });
        }
    }

    pub(super) fn sent(&mut self, conn: ConnId, len: u32, now: Instant) {
        self.uploaded += u64::from(len);
        if let Some(at) = self.link_at(conn) {
            let link = &mut self.links[at];
            link.unsent = link.unsent.saturating_sub(1);
            link.useful = now;
        }
        // A connection sends in order.
        let own = self.slots.iter_mut().filter(|slot| slot.conn == conn && !slot.sending.is_empty());
        let slot = own.min_by_key(|slot| slot.sending.first().copied());
        let rollback = slot.is_some_and(|slot| {
            slot.sending.remove(0);
            slot.is_rollback()
        });
        self.precedence_out.moved(u64::from(len), rollback);
        self.serve(now);
    }

    /// Hands blocks to the network as far as it takes them, one of each slot in turn, and gives free slots away.
    pub(super) fn serve(&mut self, now: Instant) {
        while let Some(at) = self.next_slot(now) {
            let slot = &mut self.slots[at];
            let Some((piece, block)) = slot.queue.pop_front() else { break };
            slot.sending.push(self.next_block);
            self.next_block += 1;
            slot.kept_until = Instant::ZERO;
            let (conn, digest, priority) = (slot.conn, slot.digest, slot.priority);
            let Some(artifact) = self.artifact_at(&digest).map(|at| &mut self.artifacts[at]) else { break };
            let (shape, slack) = (artifact.shape, artifact.slack());
            let (offset, len) = (shape.offset(piece, block), shape.block_len(piece, block));
            self.turns_out.take(&mut artifact.turn_out, u64::from(len), slack, priority);
            if priority == Priority::Rollback && !artifact.rates.is_limited(Way::Out) {
                self.precedence_out.begin(now);
            }
            if let Some(link) = self.links.of_mut(conn) {
                link.unsent += 1;
            }
            self.outputs.push_back(Output::SendBlock { conn, digest, piece, block, offset, len });
        }
        self.slots.retain(|slot| !slot.is_spent(now));
        self.offer_slots(now);
    }

    /// The slot of which a block goes out now, and takes of the limits what it needs.
    fn next_slot(&mut self, now: Instant) -> Option<usize> {
        let others = self.may_serve_others(now);
        let rank = |at: usize| {
            let slot = &self.slots[at];
            (Reverse(slot.is_rollback()), self.turn_out(&slot.digest), slot.sending.len(), at)
        };
        let asks = |slot: &Slot| !slot.queue.is_empty() && (others || slot.is_rollback());
        let waiting = (0..self.slots.len()).filter(|at| asks(&self.slots[*at]));
        let mut order: SmallVec<[_; 12]> = waiting.map(rank).collect();
        order.sort_unstable();
        order.into_iter().map(|(.., at)| at).find(|at| self.may_send(*at, now))
    }

    /// Whether blocks may go out that are not of a rollback: none while one is served. Where they need not wait for it because it makes
    /// little use of that, one at a time: so they take the half at most.
    fn may_serve_others(&mut self, now: Instant) -> bool {
        let serving = self.is_serving_rollback();
        if let Some(until) = self.precedence_out.holds(serving, now) {
            self.tokens_at = self.tokens_at.min(until);
            return false;
        }
        !serving || self.slots.iter().all(|slot| slot.is_rollback() || slot.sending.is_empty())
    }

    /// Whether a rollback is being served, one without a limit of its own.
    pub(super) fn is_serving_rollback(&self) -> bool {
        let limited = |digest: &Digest| self.artifact(digest).is_none_or(|own| own.rates.is_limited(Way::Out));
        let served = |slot: &Slot| slot.is_rollback() && !slot.is_kept();
        self.slots.iter().any(|slot| served(slot) && !limited(&slot.digest))
    }

    fn may_send(&mut self, at: usize, now: Instant) -> bool {
        let Slot { conn, digest, queue, .. } = &self.slots[at];
        if self.links.of(*conn).is_none_or(|link| link.unsent >= MAX_UNSENT) {
            return false;
        }
        let (Some(artifact), Some((piece, block))) = (self.artifact_at(digest), queue.front()) else {
            return false;
        };
        let len = self.artifacts[artifact].shape.block_len(*piece, *block);
        self.take_rate(artifact, Way::Out, u64::from(len), now)
    }

    /// Tells those who wait that there is a slot: for a rollback first, then for the artifact whose turn it is, then those that have the
    /// least.
    fn offer_slots(&mut self, now: Instant) {
        for rollback in [true, false] {
            while self.slots_of(rollback).0 < self.settings.slots
                && self.waiting.iter().any(|waiting| waiting.is_rollback() == rollback)
            {
                let (len, start) = (self.waiting.len(), self.rng.usize(..self.waiting.len()));
                let rank = |at: &usize| (self.turn_out(&self.waiting[*at].digest), self.waiting[*at].share);
                let own = (0..len).map(|step| (start + step) % len);
                let own = own.filter(|at| self.waiting[*at].is_rollback() == rollback);
                let Some(best) = own.min_by_key(rank) else { break };
                let Waiting { conn, digest, priority, .. } = self.waiting.swap_remove(best);
                self.slots.push(Slot::new(conn, digest, priority, now + KEPT));
                self.send(conn, Message::Ready { digest });
            }
        }
    }

    /// Takes slots back from those who were told `Ready` and did not come.
    pub(super) fn expire_slots(&mut self, now: Instant) {
        self.slots.retain(|slot| !slot.is_spent(now));
    }
}

/// A part of a whole, in parts of 2^32.
fn share(part: u32, whole: u32) -> u64 {
    (u64::from(part) << 32) / u64::from(whole.max(1))
}
