//! One artifact at the gate: who may read which piece now.

mod census;
mod grant;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use deploycore::model::Digest;
use deploycore::port::swarm::Priority;

use self::census::Census;
use super::record::{Record, Usage, budget};
use super::{Output, Settings};
use crate::core::bitfield::Bitfield;
use crate::core::message::{ConnId, Message, PeerId, Refusal};
use crate::core::shape::Shape;
use crate::core::time::{Bucket, Instant};

/// Where a piece stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// Never granted.
    Fresh,
    /// A lease is under way.
    Leased,
    /// Granted before; whether anyone has it is for the trackers to say.
    Out,
    /// To be granted again: its lease ended without the piece arriving.
    Lost,
    /// To be granted again: no living member holds it.
    Orphan,
}

#[derive(Debug)]
struct Reader {
    conn: ConnId,
    have: Bitfield,
    /// As it says.
    priority: Priority,
    leases: u32,
    told_drained: bool,
}

#[derive(Debug)]
struct Lease {
    /// Told with each read, so that the failure of a read never counts against a later lease of the same piece.
    id: u64,
    piece: u32,
    conn: ConnId,
    /// The version of the record that covers it; told when that is durable.
    version: u64,
    /// From telling to end; `None` before it is told.
    span: Option<(Instant, Instant)>,
    /// Blocks that were read or are being read, one bit each.
    served: u8,
    recovery: bool,
}

/// A piece whose bytes in the store are not the artifact's.
#[derive(Debug, Clone, Copy)]
struct Rotten {
    /// How often it was found so.
    found: u32,
    /// Not granted before.
    until: Instant,
}

#[derive(Debug)]
pub(super) struct Artifact {
    shape: Shape,
    budget: u64,
    record: Record,
    pieces: Vec<Piece>,
    /// When something last happened to each piece.
    touched: Vec<Instant>,
    fresh: VecDeque<u32>,
    fresh_bytes: u64,
    /// Lost and orphaned pieces in the order in which they became so.
    again: VecDeque<u32>,
    readers: VecDeque<Reader>,
    /// Some reader without a lease may not know yet that nothing is left to lease.
    untold: bool,
    /// Those beyond the most readers: each becomes one when another leaves, in the order in which they came.
    waiting: BTreeMap<ConnId, Reader>,
    /// Those of them who may not know either.
    untold_waiting: Vec<ConnId>,
    /// How many readers read it for a rollback.
    urgent: usize,
    leases: Vec<Lease>,
    /// Leases that ended while reads may still have been under way, the newest last: such a read may fail yet.
    ended: VecDeque<Lease>,
    next_lease: u64,
    /// Failures of the store in a row, those of one pause counted once, and when it is tried again.
    failures: u32,
    paused_until: Instant,
    rotten: BTreeMap<u32, Rotten>,
    /// The record's version; what is asked to be durable; what is.
    version: u64,
    persisting: u64,
    durable: u64,
    recovery_rate: Bucket,
    asked: BTreeSet<u32>,
    /// Members that those who ask know to send bad bytes.
    refused: BTreeSet<PeerId>,
    census: Option<Census>,
    /// How long pieces took lately, in seconds.
    typical: Option<f64>,
    unused_since: Option<Instant>,
}

/// Nothing is granted for this time after the store failed; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A store that fails is tried at least this often.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A rotten piece is not granted for this time; it doubles nine times, to eight minutes: reading it costs budget and helps nobody before
/// the copy is repaired.
const FIRST_ROT: Duration = Duration::from_secs(1);
const ROT_DOUBLINGS: u32 = 9;
/// Ended leases that are remembered.
const MAX_ENDED: usize = 256;

impl Artifact {
    /// `first_lease` numbers its leases; an artifact that was dropped and came back has others.
    pub(super) fn new(shape: Shape, record: Record, settings: &Settings, first_lease: u64, now: Instant) -> Self {
        let record = if record.fits(&shape) { record } else { Record::new(&shape) };
        let budget = budget(&shape, settings);
        let mut pieces = vec![Piece::Out; record.reads.len()];
        let (mut fresh, mut fresh_bytes) = (VecDeque::new(), 0);
        for piece in (0..shape.pieces()).filter(|piece| record.reads[*piece as usize] == 0) {
            // A piece may be unread because someone had it already; what was kept for it may be spent since.
            let len = shape.piece_len(piece);
            if record.leased + fresh_bytes + len <= budget {
                pieces[piece as usize] = Piece::Fresh;
                fresh.push_back(piece);
                fresh_bytes += len;
            }
        }
        Self {
            shape,
            budget,
            fresh_bytes,
            fresh,
            touched: vec![now; pieces.len()],
            pieces,
            record,
            again: VecDeque::new(),
            readers: VecDeque::new(),
            untold: false,
            waiting: BTreeMap::new(),
            untold_waiting: Vec::new(),
            urgent: 0,
            leases: Vec::new(),
            ended: VecDeque::new(),
            next_lease: first_lease,
            failures: 0,
            paused_until: now,
            rotten: BTreeMap::new(),
            version: 0,
            persisting: 0,
            durable: 0,
            recovery_rate: Bucket::new(Some(settings.recovery_rate), now),
            asked: BTreeSet::new(),
            refused: BTreeSet::new(),
            census: None,
            typical: None,
            unused_since: Some(now),
        }
    }

    pub(super) fn digest(&self) -> Digest {
        self.shape.digest()
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(super) fn usage(&self) -> Usage {
        self.record.usage()
    }

    /// Since when nobody reads it and nothing is to be written.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        self.unused_since.filter(|_| self.durable == self.version)
    }

    pub(super) fn joined(
        &mut self,
        conn: ConnId,
        have: Bitfield,
        priority: Priority,
        settings: &Settings,
        now: Instant,
    ) {
        self.unused_since = None;
        for piece in have.iter() {
            self.touched[piece as usize] = now;
            self.held(piece);
        }
        let known = self.readers.iter_mut().find(|reader| reader.conn == conn).or(self.waiting.get_mut(&conn));
        if let Some(reader) = known {
            (reader.have, reader.priority) = (have, priority);
        } else {
            let reader = Reader { conn, have, priority, leases: 0, told_drained: false };
            if self.readers.len() < settings.max_readers {
                self.readers.push_back(reader);
                self.untold = true;
            } else {
                self.waiting.insert(conn, reader);
                self.untold_waiting.push(conn);
            }
        }
        self.count_urgent();
    }

    fn count_urgent(&mut self) {
        self.urgent = self.readers.iter().filter(|reader| reader.priority == Priority::Rollback).count();
    }

    pub(super) fn left(&mut self, conn: ConnId, now: Instant) {
        self.end_leases(now, |lease| lease.conn == conn);
        if let Some(at) = self.readers.iter().position(|reader| reader.conn == conn) {
            self.readers.remove(at);
            if let Some((_, next)) = self.waiting.pop_first() {
                self.untold |= !next.told_drained;
                self.readers.push_back(next);
            }
        } else {
            self.waiting.remove(&conn);
        }
        self.count_urgent();
        if self.readers.is_empty() && self.unused_since.is_none() {
            self.unused_since = Some(now);
        }
    }

    /// Lets all readers go; gives who they were.
    pub(super) fn dismiss(&mut self, now: Instant) -> Vec<ConnId> {
        let readers: Vec<ConnId> =
            self.waiting.keys().copied().chain(self.readers.iter().map(|reader| reader.conn)).collect();
        for conn in &readers {
            self.left(*conn, now);
        }
        readers
    }

    /// Someone has the piece: it needs no reading. That a piece is held which was never granted here happens when machines
    /// seed what they kept.
    fn held(&mut self, piece: u32) {
        match self.pieces[piece as usize] {
            Piece::Fresh => self.fresh_bytes -= self.shape.piece_len(piece),
            Piece::Lost | Piece::Orphan => {}
            Piece::Leased | Piece::Out => return,
        }
        self.pieces[piece as usize] = Piece::Out;
    }

    /// A node says that it verified a piece.
    pub(super) fn arrived(&mut self, conn: ConnId, piece: u32, now: Instant) {
        let Some(reader) = self.readers.iter_mut().find(|reader| reader.conn == conn) else {
            return;
        };
        if !reader.have.insert(piece) {
            return;
        }
        let leased = self.leases.iter().position(|lease| lease.piece == piece && lease.conn == conn);
        reader.leases -= u32::from(leased.is_some());
        self.untold |= leased.is_some();
        self.touched[piece as usize] = now;
        self.rotten.remove(&piece);
        self.held(piece);
        let Some(at) = leased else {
            return;
        };
        let lease = self.leases.swap_remove(at);
        self.pieces[piece as usize] = Piece::Out;
        self.refund(&lease);
        if let (Some((told, _)), true) = (lease.span, lease.served != 0) {
            let took = now.since(told).as_secs_f64();
            self.typical = Some(self.typical.map_or(took, |typical| typical * 0.8 + took * 0.2));
            self.failures = 0;
        }
    }

    /// The store did not give a block: it costs nothing if nothing was read, the lease ends, and nothing is granted for a while. A store that is down would
    /// otherwise be asked as fast as it can fail.
    pub(super) fn read_failed(&mut self, lease: u64, block: u32, nothing: bool, now: Instant) {
        if now >= self.paused_until {
            self.paused_until = now + (FIRST_PAUSE * (1 << self.failures.min(10))).min(MAX_PAUSE);
            self.failures += 1;
        }
        let unread = if nothing { !(1_u8.checked_shl(block).unwrap_or(0)) } else { u8::MAX };
        if let Some(at) = self.leases.iter().position(|open| open.id == lease) {
            self.leases[at].served &= unread;
            self.end_lease(at, now);
        } else if let Some(at) = self.ended.iter().position(|ended| ended.id == lease) {
            let ended = &mut self.ended[at];
            let before = ended.served;
            ended.served &= unread;
            let (piece, recovery, first, read) = (ended.piece, ended.recovery, before != 0, ended.served != 0);
            if ended.served != before {
                self.give_back(piece, u64::from(self.shape.block_len(piece, block)), recovery, first && !read);
                // That it was lost was noted when the lease ended; that it was never read is known only now.
                if self.pieces[piece as usize] == Piece::Lost {
                    self.lost(piece);
                }
            }
        }
    }

    /// A piece that was read did not verify. What was said of an earlier lease does not end one of which nothing was read yet.
    pub(super) fn bad_bytes(&mut self, conn: ConnId, piece: u32, now: Instant) {
        let read = |lease: &Lease| lease.conn == conn && lease.piece == piece && lease.served != 0;
        let Some(at) = self.leases.iter().position(read) else {
            return;
        };
        let rotten = self.rotten.entry(piece).or_insert(Rotten { found: 0, until: now });
        rotten.until = now + FIRST_ROT * (1 << rotten.found.min(ROT_DOUBLINGS));
        rotten.found += 1;
        self.end_lease(at, now);
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.end_leases(now, |lease| lease.span.is_some_and(|(_, until)| until <= now));
        if self.census.as_ref().is_some_and(|census| census.until <= now) {
            self.census = None;
        }
        debug_assert!(
            self.record.leased + self.fresh_bytes <= self.budget,
            "the first reading of all pieces is covered"
        );
    }

    /// Ends leases whose piece did not arrive.
    fn end_leases(&mut self, now: Instant, which: impl Fn(&Lease) -> bool) {
        while let Some(at) = self.leases.iter().position(&which) {
            self.end_lease(at, now);
        }
    }

    fn end_lease(&mut self, at: usize, now: Instant) {
        let lease = self.leases.swap_remove(at);
        if let Some(reader) = self.readers.iter_mut().find(|reader| reader.conn == lease.conn) {
            reader.leases -= 1;
            self.untold = true;
        }
        self.touched[lease.piece as usize] = now;
        self.refund(&lease);
        self.lost(lease.piece);
        if lease.served != 0 {
            self.ended.push_back(lease);
            if self.ended.len() > MAX_ENDED {
                self.ended.pop_front();
            }
        }
    }

    /// A piece is to be granted again: as if for the first time when nothing of it was read.
    fn lost(&mut self, piece: u32) {
        let len = self.shape.piece_len(piece);
        let kept = self.record.leased + self.fresh_bytes + len <= self.budget;
        if self.record.reads[piece as usize] == 0 && kept {
            self.pieces[piece as usize] = Piece::Fresh;
            self.fresh.push_front(piece);
            self.fresh_bytes += len;
        } else if self.pieces[piece as usize] != Piece::Lost {
            self.pieces[piece as usize] = Piece::Lost;
            self.again.push_back(piece);
        }
    }

    /// What was not read under a lease costs nothing.
    fn refund(&mut self, lease: &Lease) {
        let blocks = (0..self.shape.blocks(lease.piece)).filter(|block| lease.served & (1 << block) == 0);
        let unread = blocks.map(|block| u64::from(self.shape.block_len(lease.piece, block))).sum();
        if unread > 0 {
            self.give_back(lease.piece, unread, lease.recovery, lease.served == 0);
        }
    }

    fn give_back(&mut self, piece: u32, bytes: u64, recovery: bool, whole: bool) {
        let counted = if recovery { &mut self.record.recovery } else { &mut self.record.leased };
        *counted -= bytes;
        if whole {
            let reads = &mut self.record.reads[piece as usize];
            *reads = reads.saturating_sub(1);
        }
        self.version += 1;
    }

    pub(super) fn request(&mut self, conn: ConnId, piece: u32, block: u32, count: u32, outputs: &mut VecDeque<Output>) {
        let (digest, end) = (self.shape.digest(), block.saturating_add(count));
        if count == 0 || end > self.shape.blocks(piece) {
            let refusal = Refusal::MissingPiece;
            return outputs.push_back(Output::Send(conn, Message::Reject { digest, piece, block, count, refusal }));
        }
        let told = |lease: &&mut Lease| lease.conn == conn && lease.piece == piece && lease.span.is_some();
        let mut lease = self.leases.iter_mut().find(told);
        for block in block..end {
            let unread = lease.as_mut().filter(|lease| block < u8::BITS && lease.served & (1 << block) == 0);
            outputs.push_back(if let Some(lease) = unread {
                lease.served |= 1 << block;
                let (offset, len) = (self.shape.offset(piece, block), self.shape.block_len(piece, block));
                Output::Serve { conn, digest, lease: lease.id, piece, block, offset, len }
            } else {
                let (count, refusal) = (1, Refusal::NotLeased);
                Output::Send(conn, Message::Reject { digest, piece, block, count, refusal })
            });
        }
    }

    /// Whether someone reads it for a rollback.
    pub(super) fn is_rollback(&self) -> bool {
        self.urgent > 0
    }

    /// The part of their leases that others may have beside those of this one.
    pub(super) fn leaves(&self, settings: &Settings) -> f64 {
        1.0 - (self.leases.len() as f64 / f64::from(self.lease_bound(settings, 1.0))).min(1.0)
    }

    /// Grants what may be granted, asks the trackers what must be asked, and says what must become durable. `part` is how much of its
    /// leases it may have.
    pub(super) fn work(
        &mut self,
        settings: &Settings,
        part: f64,
        trackers: &[ConnId],
        now: Instant,
        outputs: &mut VecDeque<Output>,
    ) {
        self.ask(trackers, now, outputs);
        self.grant(settings, part, now);
        if self.version > self.durable && self.persisting <= self.durable {
            self.persisting = self.version;
            outputs.push_back(Output::Persist(self.shape.digest(), self.version, self.record.clone()));
        }
        self.tell_drained(now, outputs);
    }

    /// Tells who waits for a lease that nothing is left to lease. While a lease is under way it may fail, and its piece come to a reader that waits. A
    /// rotten piece comes when it comes.
    fn tell_drained(&mut self, now: Instant, outputs: &mut VecDeque<Output>) {
        if !self.untold && self.untold_waiting.is_empty() {
            return;
        }
        if self.next_fresh().is_some() || !self.again.iter().all(|piece| self.is_rotten(*piece, now)) {
            return;
        }
        self.untold = false;
        let (digest, waiting) = (self.shape.digest(), &mut self.waiting);
        let readers = self.readers.iter_mut().filter(|reader| reader.leases == 0);
        let late = self.untold_waiting.drain(..).filter_map(|conn| waiting.remove(&conn));
        let mut late: Vec<Reader> = late.collect();
        for reader in readers.chain(&mut late).filter(|reader| !reader.told_drained) {
            reader.told_drained = true;
            outputs.push_back(Output::Send(reader.conn, Message::Drained { digest }));
        }
        self.waiting.extend(late.into_iter().map(|reader| (reader.conn, reader)));
    }
}
