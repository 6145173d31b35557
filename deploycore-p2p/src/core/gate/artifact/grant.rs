//! Granting: which reader gets a lease on which piece, within the budget.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Artifact, Lease, Piece, Reader};
use crate::core::gate::{Output, Settings};
use crate::core::message::{ConnId, Message};
use crate::core::time::Instant;

impl Artifact {
    /// How many leases may be under way: a sixth of the pieces at most. The death of this gate costs as much, and the fifth that the
    /// budget has beyond the artifact must last for it. Of that a part, but one in any case.
    pub(super) fn lease_bound(&self, settings: &Settings, part: f64) -> u32 {
        let bound = settings.max_leases.min((self.shape.pieces() / 6).max(4));
        ((f64::from(bound) * part) as u32).max(1)
    }

    /// How many pieces one reader may hold leases on: few when there are many readers, bounded by what it keeps in memory. Of the last fresh pieces
    /// each may hold half of its share: what a slow reader has piled up when all others are done, everybody waits for.
    fn window(&self, settings: &Settings) -> u32 {
        let by_memory = ((32 << 20) / self.shape.piece_size()).max(2) as u32;
        let readers = self.readers.len().max(1) as u32;
        let share = match readers {
            1 => u32::MAX,
            _ => (self.fresh_bytes / self.shape.piece_size()) as u32 / (2 * readers),
        };
        (self.lease_bound(settings, 1.0) / readers).clamp(2, 16.min(by_memory)).min(share.max(2))
    }

    pub(super) fn grant(&mut self, settings: &Settings, part: f64, now: Instant) {
        if now < self.paused_until {
            return;
        }
        let (window, bound) = (self.window(settings), self.lease_bound(settings, part) as usize);
        // Lost pieces first: others wait for them. Each is looked at once, so that one that must wait does not stop the rest.
        for _ in 0..self.again.len() {
            let Some(piece) = self.again.pop_front() else { break };
            let state = self.pieces[piece as usize];
            if !matches!(state, Piece::Lost | Piece::Orphan) {
                continue;
            }
            if self.is_rotten(piece, now) {
                self.again.push_back(piece);
                continue;
            }
            let len = self.shape.piece_len(piece);
            let affordable = self.record.leased + self.fresh_bytes + len <= self.budget;
            if !affordable && state == Piece::Lost {
                self.pieces[piece as usize] = Piece::Out;
                continue;
            }
            let allowed = self.leases.len() < bound;
            let reader = if allowed { self.next_reader(window, piece) } else { None };
            match reader {
                Some(conn) if affordable || self.recovery_rate.take(len, now).is_ok() => {
                    self.lease(piece, conn, !affordable);
                }
                _ => self.again.push_back(piece),
            }
        }
        while self.leases.len() < bound
            && let Some(piece) = self.next_fresh()
            && let Some(conn) = self.next_reader(window, piece)
        {
            self.fresh.pop_front();
            self.fresh_bytes -= self.shape.piece_len(piece);
            self.lease(piece, conn, false);
        }
    }

    pub(super) fn is_rotten(&self, piece: u32, now: Instant) -> bool {
        self.rotten.get(&piece).is_some_and(|rotten| now < rotten.until)
    }

    fn lease(&mut self, piece: u32, conn: ConnId, recovery: bool) {
        let len = self.shape.piece_len(piece);
        let counted = if recovery { &mut self.record.recovery } else { &mut self.record.leased };
        *counted += len;
        self.record.reads[piece as usize] = self.record.reads[piece as usize].saturating_add(1);
        self.version += 1;
        self.pieces[piece as usize] = Piece::Leased;
        let (id, version) = (self.next_lease, self.version);
        self.next_lease += 1;
        self.leases.push(Lease { id, piece, conn, version, span: None, served: 0, recovery });
        if let Some(reader) = self.readers.iter_mut().find(|reader| reader.conn == conn) {
            reader.leases += 1;
            reader.told_drained = false;
        }
    }

    /// The first piece that was never granted; those that turned out to be held are passed over.
    pub(super) fn next_fresh(&mut self) -> Option<u32> {
        while let Some(piece) = self.fresh.front() {
            if self.pieces[*piece as usize] == Piece::Fresh {
                return Some(*piece);
            }
            self.fresh.pop_front();
        }
        None
    }

    /// The next reader in turn that has room and lacks the piece.
    fn next_reader(&mut self, window: u32, piece: u32) -> Option<ConnId> {
        let fits = |reader: &Reader| reader.leases < window && !reader.have.contains(piece);
        let at = self.readers.iter().position(fits)?;
        let reader = self.readers.remove(at)?;
        let conn = reader.conn;
        self.readers.push_back(reader);
        Some(conn)
    }

    /// The record is durable: the leases that it covers are told.
    pub(in crate::core::gate) fn persisted(
        &mut self,
        version: u64,
        settings: &Settings,
        now: Instant,
        outputs: &mut VecDeque<Output>,
    ) {
        self.durable = self.durable.max(version);
        self.persisting = 0;
        let mut told: BTreeMap<ConnId, Vec<u32>> = BTreeMap::new();
        let expected = self.typical.map(|typical| Duration::from_secs_f64(typical) * settings.lease_multiple);
        let span = expected.unwrap_or(settings.max_lease).min(settings.max_lease).max(settings.min_lease);
        for lease in self.leases.iter_mut().filter(|lease| lease.span.is_none() && lease.version <= version) {
            lease.span = Some((now, now + span));
            told.entry(lease.conn).or_default().push(lease.piece);
        }
        let (digest, millis) = (self.shape.digest(), span.as_millis() as u32);
        for (conn, pieces) in told {
            outputs.push_back(Output::Send(conn, Message::Lease { digest, pieces, millis }));
        }
    }
}
