//! Serving: a few neighbours at a time, those with the least first.
//!
//! A neighbour that is served holds a slot until it asks for nothing more, or until it begins another piece while someone with
//! no more than it waits. Whoever finds no slot is told `Busy` and asks another; if there is none it waits, and is told `Ready` when it is
//! its turn. The slot is then kept for it for a moment. Requests of a rollback never wait.

use std::collections::VecDeque;
use std::time::Duration;

use deploycore::model::Digest;
use deploycore::port::swarm::Priority;

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
    queue: VecDeque<(u32, u32)>,
    /// The piece it asked for last, and how many it began.
    piece: Option<u32>,
    begun: u32,
    /// Blocks handed to the network and not yet sent.
    sending: u32,
    kept_until: Instant,
}

/// A neighbour that has nobody else to ask, and what decides when it is its turn: kept here, for it is compared with the others at each block.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) conn: ConnId,
    pub(super) digest: Digest,
    priority: Priority,
    /// How many of the artifact's pieces it has, in parts of 2^32.
    share: u64,
}

impl Waiting {
    pub(super) fn is(&self, conn: ConnId, digest: &Digest) -> bool {
        self.conn == conn && self.digest == *digest
    }
}

impl Slot {
    /// Its neighbour was told `Ready` and did not ask for anything yet.
    fn is_kept(&self) -> bool {
        self.queue.is_empty() && self.sending == 0
    }

    fn is_spent(&self, now: Instant) -> bool {
        self.queue.is_empty() && self.sending == 0 && self.kept_until <= now
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
        let rollback = self.urgency(conn, digest) == Priority::Rollback;
        if let Some(slot) = self.slots.iter().find(|slot| slot.conn == conn && slot.digest == *digest) {
            let next_piece = slot.begun > 0 && slot.piece != Some(piece);
            let turn_over = next_piece && !rollback && self.someone_has_less(conn, digest);
            return slot.queue.len() < MAX_QUEUE && !turn_over;
        }
        self.slots.retain(|slot| !slot.is_spent(now));
        let bound = if rollback { self.settings.slots * 2 } else { self.settings.slots };
        // A slot that is kept for another, who may not come, stands before nobody.
        let kept = self.slots.iter().filter(|slot| slot.is_kept()).count();
        let free = self.slots.len() - kept < bound && self.slots.len() < 2 * bound;
        if free {
            self.waiting.retain(|waiting| !waiting.is(conn, digest));
            self.slots.push(Slot::new(conn, *digest, now));
        }
        free
    }

    fn urgency(&self, conn: ConnId, digest: &Digest) -> Priority {
        self.links.of(conn).and_then(|link| link.remote(digest)).map_or(Priority::Normal, |remote| remote.priority)
    }

    /// How many of an artifact's pieces a neighbour has, in parts of 2^32.
    fn share(&self, conn: ConnId, digest: &Digest) -> u64 {
        let remote = self.links.of(conn).and_then(|link| link.remote(digest));
        remote.map_or(1 << 32, |remote| share(remote.count, remote.has.len()))
    }

    /// Whether a neighbour waits that has no more than this one.
    fn someone_has_less(&self, conn: ConnId, digest: &Digest) -> bool {
        let own = self.share(conn, digest);
        self.waiting.iter().any(|waiting| waiting.share <= own)
    }

    /// A neighbour has another number of pieces now, or another priority.
    pub(super) fn note_waiting(&mut self, conn: ConnId, digest: &Digest, count: u32, priority: Option<Priority>) {
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
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.conn == conn && slot.sending > 0) {
            slot.sending -= 1;
        }
        self.serve(now);
    }

    /// Hands blocks to the network as far as it takes them, one of each slot in turn, and gives free slots away.
    pub(super) fn serve(&mut self, now: Instant) {
        loop {
            let mut order: Vec<usize> = (0..self.slots.len()).filter(|at| !self.slots[*at].queue.is_empty()).collect();
            order.sort_by_key(|at| {
                let slot = &self.slots[*at];
                (std::cmp::Reverse(self.urgency(slot.conn, &slot.digest)), slot.sending)
            });
            let Some(at) = order.into_iter().find(|at| self.may_send(*at, now)) else { break };
            let slot = &mut self.slots[at];
            let Some((piece, block)) = slot.queue.pop_front() else { break };
            slot.sending += 1;
            slot.kept_until = Instant::ZERO;
            let (conn, digest) = (slot.conn, slot.digest);
            let Some(shape) = self.artifact(&digest).map(|artifact| artifact.shape) else { break };
            if let Some(link) = self.links.of_mut(conn) {
                link.unsent += 1;
            }
            let (offset, len) = (shape.offset(piece, block), shape.block_len(piece, block));
            self.outputs.push_back(Output::SendBlock { conn, digest, piece, block, offset, len });
        }
        self.slots.retain(|slot| !slot.is_spent(now));
        self.offer_slots(now);
    }

    fn may_send(&mut self, at: usize, now: Instant) -> bool {
        let (conn, digest) = (self.slots[at].conn, self.slots[at].digest);
        if self.links.of(conn).is_none_or(|link| link.unsent >= MAX_UNSENT) {
            return false;
        }
        let Some(artifact) = self.artifacts.iter_mut().find(|artifact| artifact.shape.digest() == digest) else {
            return false;
        };
        let len = self.slots[at].queue.front().map_or(0, |(piece, block)| artifact.shape.block_len(*piece, *block));
        let len = u64::from(len);
        let allowed = self
            .egress
            .take(len, now)
            .and_then(|()| artifact.egress.take(len, now).inspect_err(|_| self.egress.give_back(len)));
        if let Err(when) = allowed {
            self.tokens_at = self.tokens_at.min(when);
        }
        allowed.is_ok()
    }

    /// Tells those who wait that there is a slot: the most urgent first, then those that have the least.
    fn offer_slots(&mut self, now: Instant) {
        while self.slots.len() < self.settings.slots && !self.waiting.is_empty() {
            let (len, start) = (self.waiting.len(), self.rng.usize(..self.waiting.len()));
            let rank = |at: &usize| (std::cmp::Reverse(self.waiting[*at].priority), self.waiting[*at].share);
            let Some(best) = (0..len).map(|step| (start + step) % len).min_by_key(rank) else { break };
            let Waiting { conn, digest, .. } = self.waiting.swap_remove(best);
            let mut slot = Slot::new(conn, digest, now);
            slot.kept_until = now + KEPT;
            self.slots.push(slot);
            self.send(conn, Message::Ready { digest });
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

impl Slot {
    fn new(conn: ConnId, digest: Digest, now: Instant) -> Self {
        Self { conn, digest, queue: VecDeque::new(), piece: None, begun: 0, sending: 0, kept_until: now }
    }
}
