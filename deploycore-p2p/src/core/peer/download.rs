//! Fetching: whom to ask for what, and what to do with what comes.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use deploycore::model::Digest;
use smallvec::{SmallVec, smallvec};

use super::artifact::{Artifact, Begun, BlockState};
use super::link::{Ask, Link, Remote};
use super::rates::Way;
use super::{Output, Peer};
use crate::core::message::{Block, ConnId, Message, Payload, PeerId, Role};
use crate::core::picker::{self, Order};
use crate::core::shape::Shape;
use crate::core::time::Instant;

/// Pieces that a node has before it looks for the rarest.
const RANDOM_FIRST: u32 = 4;
/// Pieces that may be begun however large they are.
const MIN_BEGUN: u64 = 2;
/// Pieces of one artifact that may be begun with neighbours.
const MAX_BEGUN: u64 = 64;
/// Blocks that may be asked for in all, however slowly they come.
const MIN_BLOCKS: u64 = 6;
/// Bytes that may be asked for in all, however slowly they come: eight of the smallest pieces. On a link of 50 Mbit/s fewer arrive while a
/// request and its answer are on a way of 60 ms each, and the link would stand idle.
const MIN_WINDOW: u64 = 2 << 20;
/// Pieces that may be asked for in all, however slowly they come.
const MIN_PIECES: u64 = 4;
/// Neighbours whose answers differ by less are equally quick, in milliseconds.
const WAIT_STEP: u32 = 50;
/// At the end, late blocks are looked for this often.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Blocks that nobody asked for, after which the connection is closed.
const MAX_UNASKED: u32 = 256;

/// Blocks to ask for.
struct Wanted {
    artifact: usize,
    piece: u32,
    blocks: Range<u32>,
}

impl<B: Payload> Peer<B> {
    /// Asks a neighbour for all that it should be asked for now.
    pub(super) fn fill(&mut self, at: usize, now: Instant) {
        while self.ask(at, now) {}
    }

    /// Asks a neighbour for what it should be asked for next; `false` if that is nothing.
    fn ask(&mut self, at: usize, now: Instant) -> bool {
        let Some(Wanted { artifact, piece, blocks }) = self.next_wanted(at, now) else {
            return false;
        };
        let shape = self.artifacts[artifact].shape;
        let (digest, block, count) = (shape.digest(), blocks.start, blocks.len() as u32);
        let mut begun = self.artifacts[artifact].begun_mut(piece);
        let mut bytes = 0;
        for block in blocks {
            if let Some(begun) = &mut begun {
                let state = &mut begun.blocks[block as usize];
                *state = match state {
                    BlockState::Asked(n) => BlockState::Asked(*n + 1),
                    _ => BlockState::Asked(1),
                };
            }
            let len = shape.block_len(piece, block);
            self.links.ask(at, digest, piece, block, len, now);
            bytes += u64::from(len);
        }
        let conn = self.links[at].conn;
        self.asked(artifact, bytes, now);
        self.send(conn, Message::Request { digest, piece, block, count });
        true
    }

    /// Asks every neighbour in turn until a bound of the node is reached: first those that are asked for the least, of these the ones that
    /// answered soonest, from a random one on. Each that is idle is asked once before any is asked for more. So requests do not queue with
    /// some while others have nothing to do.
    pub(super) fn fill_all(&mut self, now: Instant) {
        self.held_back = false;
        if self.artifacts.iter().all(|artifact| artifact.have.is_full()) {
            return;
        }
        for conn in self.unfinished() {
            if let Some(at) = self.link_at(conn) {
                self.fill(at, now);
            }
        }
        let (asked, waits) = (self.links.asked_bytes(), self.links.waits());
        let (len, start) = (asked.len(), self.rng.usize(..asked.len().max(1)));
        let rank = |step| {
            let at = (start + step) % len;
            rank(asked[at], waits[at], step)
        };
        let mut order: SmallVec<[u64; 64]> = (0..len).map(rank).collect();
        order.sort_unstable();
        let mut more: SmallVec<[usize; 64]> = SmallVec::new();
        for rank in order {
            let at = (start + (rank as u16) as usize) % len;
            let is_asked = self.links.asked_bytes()[at] > 0;
            if self.links[at].role != Role::Tracker && (is_asked || self.ask(at, now)) {
                more.push(at);
            }
            if self.held_back {
                return;
            }
        }
        for at in more {
            self.fill(at, now);
            if self.held_back {
                return;
            }
        }
        for at in 0..self.links.len() {
            self.await_slot(at, now);
        }
    }

    /// There is room to ask for more, and nobody to ask: a neighbour that is busy is asked to say when it is not.
    pub(super) fn await_slot(&mut self, at: usize, now: Instant) {
        let link = &self.links[at];
        let offers = |remote: &&Remote| {
            let own = self.artifacts.iter().find(|artifact| artifact.shape == remote.shape);
            own.is_some_and(|artifact| artifact.is_offered(link, &remote.has))
        };
        let busy = link.remotes.iter().filter(|remote| remote.ask_after > now && !remote.awaited);
        let wanted: SmallVec<[Digest; 2]> = busy.filter(offers).map(|remote| remote.shape.digest()).collect();
        let link = &mut self.links[at];
        for digest in wanted {
            if let Some(remote) = link.remote_mut(&digest) {
                remote.awaited = true;
                self.outputs.push_back(Output::Send(link.conn, Message::Await { digest }));
            }
        }
    }

    /// Asks others when a bound that stood before it has given way.
    fn go_on(&mut self, now: Instant) {
        if self.held_back {
            self.fill_all(now);
        }
    }

    /// How many bytes may be asked for in all before nothing more is: what arrives soon, at least a few blocks and pieces.
    pub(super) fn window(&self, shape: &Shape) -> u64 {
        let soon = (self.rate_in * self.settings.ahead.as_secs_f64()) as u64;
        let least = (MIN_BLOCKS * u64::from(shape.block_size())).max(MIN_PIECES * shape.piece_size()).max(MIN_WINDOW);
        soon.max(least).min(self.settings.max_outstanding)
    }

    /// What to ask a neighbour for next: all of a piece that is still to be asked for, as long as there is room for a block. A piece is
    /// asked for as a whole so that a neighbour that is busy says so before any of it has come.
    fn next_wanted(&mut self, at: usize, now: Instant) -> Option<Wanted> {
        for artifact in self.by_share(now) {
            let shape = self.artifacts[artifact].shape;
            let link = &self.links[at];
            let remote = link.remote(&shape.digest());
            let serves = match link.role {
                Role::Node => remote.is_some_and(|remote| remote.ask_after <= now && !remote.has.is_empty()),
                Role::Gate => true,
                Role::Tracker => false,
            };
            let window = link.window(shape.block_size(), self.settings.max_outstanding_per_link);
            let fits = self.links.asked_bytes()[at] + u64::from(shape.block_size()) <= window;
            if !serves || !fits {
                continue;
            }
            let elsewhere = self.outstanding_elsewhere(artifact);
            if link.is_elsewhere && elsewhere + u64::from(shape.block_size()) > self.window_elsewhere(&shape) {
                continue;
            }
            let outstanding = self.outstanding_beside(artifact) - elsewhere;
            let full = outstanding + u64::from(shape.block_size()) > self.window(&shape);
            // A lease is a duty: others wait for the piece.
            if full && link.role == Role::Node {
                self.held_back = true;
                // What a rollback waits for is no reason for others to wait, where they need not anyway.
                if self.artifacts[artifact].is_rollback() {
                    continue;
                }
                return None;
            }
            let block = u64::from(shape.block_size());
            if !self.take_rate(artifact, Way::In, block, now) {
                continue;
            }
            let found = match self.links[at].role {
                Role::Gate => self.next_leased(artifact, at),
                _ => self.next_of_neighbour(artifact, at, now),
            };
            match found {
                Some((piece, blocks)) => {
                    let blocks = self.within_rate(artifact, piece, blocks, now);
                    return Some(Wanted { artifact, piece, blocks });
                }
                None => self.give_back_rate(artifact, Way::In, block),
            }
        }
        None
    }

    /// The blocks of a piece that limits allow now, of which the first is taken already as if it were a whole one. The others of the
    /// piece are asked for later.
    fn within_rate(&mut self, artifact: usize, piece: u32, blocks: Range<u32>, now: Instant) -> Range<u32> {
        let shape = self.artifacts[artifact].shape;
        let len = |block| u64::from(shape.block_len(piece, block));
        self.give_back_rate(artifact, Way::In, u64::from(shape.block_size()) - len(blocks.start));
        let mut end = blocks.start + 1;
        while end < blocks.end && self.take_rate(artifact, Way::In, len(end), now) {
            end += 1;
        }
        blocks.start..end
    }

    /// Connections with which pieces are begun of which something is still to be asked for. While a limit holds it back, a node asks there
    /// first: else it would begin ever more pieces, a block of each.
    fn unfinished(&self) -> SmallVec<[ConnId; 8]> {
        let limited = |artifact: &&Artifact<B>| self.is_limited(artifact, Way::In) && !artifact.have.is_full();
        let begun = self.artifacts.iter().filter(limited).flat_map(|artifact| &artifact.begun);
        begun.filter(|begun| !begun.storing && begun.free_blocks().is_some()).filter_map(|begun| begun.source).collect()
    }

    fn next_leased(&mut self, artifact: usize, at: usize) -> Option<(u32, Range<u32>)> {
        let (conn, artifact) = (self.links[at].conn, &mut self.artifacts[artifact]);
        let mut own = artifact.begun.iter().filter(|begun| begun.source == Some(conn) && !begun.storing);
        if let Some(found) = own.find_map(|begun| Some((begun.piece, begun.free_blocks()?))) {
            return Some(found);
        }
        // A piece that a neighbour is asked for stays leased: it may bring it, and then the gate is told; if not, it is read here.
        let to_ask = |piece: u32| artifact.begun_at(piece).is_none_or(|at| artifact.begun[at].free_blocks().is_some());
        let next = artifact.leases.iter().position(|(piece, gate)| *gate == conn && to_ask(*piece))?;
        let (piece, _) = artifact.leases.remove(next)?;
        match artifact.begun_mut(piece) {
            // What came of it before stays; the rest is read under the new lease.
            Some(begun) => begun.source = Some(conn),
            None => artifact.begun.push(Begun::new(&artifact.shape, piece, conn)),
        }
        artifact.taken.insert(piece);
        let blocks = artifact.begun_mut(piece)?.free_blocks()?;
        Some((piece, blocks))
    }

    fn next_of_neighbour(&mut self, at_artifact: usize, at: usize, now: Instant) -> Option<(u32, Range<u32>)> {
        let artifact = &mut self.artifacts[at_artifact];
        let link = &self.links[at];
        let (conn, remote) = (link.conn, link.remote(&artifact.shape.digest())?);
        // Finish what was begun here, then what nobody brings any more.
        let mut own = artifact.begun.iter().filter(|begun| begun.source == Some(conn) && !begun.storing);
        if let Some(found) = own.find_map(|begun| Some((begun.piece, begun.free_blocks()?))) {
            return Some(found);
        }
        let orphan = |begun: &Begun<B>| {
            let adoptable = begun.source.is_none() && !begun.storing && remote.has.contains(begun.piece);
            let suspect = || artifact.suspects.iter().any(|suspect| suspect.piece == begun.piece);
            adoptable && begun.free_blocks().is_some() && !suspect() && artifact.may_come_from(link, begun.piece)
        };
        if let Some(at) = artifact.begun.iter().position(orphan) {
            let begun = &mut artifact.begun[at];
            begun.source = Some(conn);
            return Some((begun.piece, begun.free_blocks()?));
        }
        if !artifact.is_offered(link, &remote.has) {
            if now < artifact.look_again {
                return None;
            }
            let found = self.last_blocks(at_artifact, at, now);
            if found.is_none() {
                self.artifacts[at_artifact].look_again = now + LOOK_AGAIN;
            }
            return found;
        }
        if !self.may_begin(at_artifact) && !self.make_room(at_artifact) {
            self.held_back = true;
            return None;
        }
        let artifact = &mut self.artifacts[at_artifact];
        let (link, digest) = (&self.links[at], artifact.shape.digest());
        let remote = link.remote(&digest)?;
        let order = if artifact.have.count() < RANDOM_FIRST { Order::Random } else { Order::RarestFirst };
        let not = artifact
            .barred(link)
            .map_or(Cow::Borrowed(&artifact.taken), |barred| Cow::Owned(artifact.taken.union(barred)));
        let piece = picker::pick(&remote.has, &not, &artifact.availability, order, &mut self.rng)?;
        artifact.begun.push(Begun::new(&artifact.shape, piece, conn));
        artifact.taken.insert(piece);
        Some((piece, 0..artifact.shape.blocks(piece)))
    }

    /// Whether one more piece of an artifact may be begun with a neighbour: what is begun of all artifacts is in memory. A rollback and
    /// others do not wait for each other's pieces.
    fn may_begin(&self, at: usize) -> bool {
        let own = &self.artifacts[at];
        let counts = |artifact: &Artifact<B>| artifact.is_rollback() == own.is_rollback();
        let leased = |begun: &Begun<B>| begun.source.is_some_and(|source| self.links.is_gate(source));
        let count = |artifact: &Artifact<B>| artifact.begun.iter().filter(|begun| !leased(begun)).count() as u64;
        let begun: u64 = self
            .artifacts
            .iter()
            .filter(|artifact| counts(artifact))
            .map(|artifact| count(artifact) * artifact.shape.piece_size())
            .sum();
        let bound = self.settings.max_begun.max(MIN_BEGUN * own.shape.piece_size());
        begun + own.shape.piece_size() <= bound && count(own) < MAX_BEGUN
    }

    /// Forgets the begun piece of which the least came, among those that nobody brings: first of this artifact, else of another that
    /// it shares the room with; `false` if there is none.
    fn make_room(&mut self, at: usize) -> bool {
        if self.artifacts[at].forget_begun() {
            return true;
        }
        let rollback = self.artifacts[at].is_rollback();
        let made =
            self.artifacts.iter_mut().filter(|other| other.is_rollback() == rollback).any(Artifact::forget_begun);
        made && self.may_begin(at)
    }

    /// A lease came. A piece that is here meanwhile is reported at once, so that the gate waits for nothing.
    pub(super) fn leased(&mut self, at: usize, digest: &Digest, pieces: &[u32], now: Instant) {
        let conn = self.links[at].conn;
        let Some(artifact) = self.artifact_at(digest).map(|at| &mut self.artifacts[at]) else {
            return;
        };
        artifact.drained = false;
        let mut here = SmallVec::new();
        for piece in pieces.iter().filter(|piece| **piece < artifact.shape.pieces()) {
            if artifact.have.contains(*piece) {
                here.push(*piece);
            } else if !artifact.is_leased(*piece) {
                artifact.leases.push_back((*piece, conn));
                artifact.taken.insert(*piece);
            }
        }
        if !here.is_empty() {
            let count = self.artifact(digest).map_or(0, |artifact| artifact.have.count());
            self.send(conn, Message::Have { digest: *digest, pieces: here, count });
        }
        self.fill(at, now);
    }

    /// A block came.
    pub(super) fn block(&mut self, conn: ConnId, block: Block<B>, now: Instant) {
        let Some(at) = self.link_at(conn) else {
            return;
        };
        let Block { digest, piece, block, data } = block;
        let known = self.artifact_at(&digest);
        let right = known.map(|artifact| self.artifacts[artifact].shape.block_len(piece, block) as usize);
        if right.is_some_and(|len| len != data.byte_len()) {
            // Its request is still noted, so that closing gives it back.
            let (peer, store) = (self.links[at].peer, self.links[at].role == Role::Gate);
            self.close(conn, format!("block {block} of piece {piece} has {} bytes", data.byte_len()), now);
            return self.convict(peer, store, piece, now);
        }
        let asked = self.links.take_ask(at, &digest, piece, block);
        if let Some(ask) = asked {
            self.no_more_asked(&digest, u64::from(ask.len), true);
            self.received += u64::from(ask.len);
            self.links.received(at, &ask, now);
        } else {
            self.links[at].unasked += 1;
            if self.links[at].unasked > MAX_UNASKED {
                return self.close(conn, "too many blocks that were not asked for", now);
            }
        }
        let Some(artifact) = known else {
            return self.go_on(now);
        };
        self.accept(artifact, at, (piece, block), asked.is_some(), data);
        // What stands open in all is bounded. If whoever brings something were asked again at once, all of it would come to stand with
        // those that are busy, while others, that were never asked, are idle.
        let may_ask = |link: &Link| !self.held_back || link.role == Role::Gate;
        if let Some(at) = self.link_at(conn).filter(|at| may_ask(&self.links[*at])) {
            self.fill(at, now);
        }
        self.go_on(now);
    }

    fn accept(&mut self, at_artifact: usize, at: usize, (piece, block): (u32, u32), asked: bool, data: B) {
        let (conn, from, store) = (self.links[at].conn, self.links[at].peer, self.links[at].role == Role::Gate);
        let artifact = &mut self.artifacts[at_artifact];
        let (digest, len) = (artifact.shape.digest(), data.byte_len() as u64);
        let single = artifact.suspects.iter().any(|suspect| suspect.piece == piece);
        let Some(begun) = artifact.begun_mut(piece).filter(|begun| !single || begun.source == Some(conn)) else {
            artifact.wasted += len;
            // Another is to bring all of a suspect piece; what came of it from here is asked for again.
            if let Some(begun) = artifact.begun_mut(piece).filter(|_| asked) {
                begun.unask(block);
                if begun.source.is_none() {
                    artifact.release_if_bare(piece);
                }
            }
            return;
        };
        let Some(state) = begun.blocks.get_mut(block as usize).filter(|state| !matches!(state, BlockState::Got { .. }))
        else {
            artifact.wasted += len;
            return;
        };
        let others = matches!(state, BlockState::Asked(copies) if *copies > u8::from(asked));
        *state = BlockState::Got { data, from, store };
        let whole = begun.is_whole();
        if whole {
            begun.storing = true;
            let hash_blocks = single;
            let blocks = begun.blocks.iter().filter_map(|block| match block {
                BlockState::Got { data, .. } => Some(data.clone()),
                _ => None,
            });
            let blocks = blocks.collect();
            self.outputs.push_back(Output::Store { digest, piece, blocks, hash_blocks });
        }
        if !others {
            return;
        }
        // Whoever else was asked for it need not send it any more. What a gate read is counted in any case.
        for other in 0..self.links.len() {
            if let Some(ask) = self.links.take_ask(other, &digest, piece, block) {
                self.no_more_asked(&digest, u64::from(ask.len), false);
                if self.links[other].role == Role::Node {
                    let conn = self.links[other].conn;
                    self.send(conn, Message::Cancel { digest, piece, block });
                }
            }
        }
    }

    /// A piece was verified and written, or did not verify.
    pub(super) fn stored(&mut self, digest: &Digest, piece: u32, verified: bool, hashes: &[[u8; 32]], now: Instant) {
        let Some(at) = self.artifact_at(digest) else {
            return;
        };
        let Some(begun) =
            self.artifacts[at].begun_at(piece).filter(|at_begun| self.artifacts[at].begun[*at_begun].storing)
        else {
            return;
        };
        let begun = self.artifacts[at].drop_begun(begun);
        let sources: Vec<(PeerId, bool, u64)> = begun.blocks.iter().filter_map(source_of).collect();
        if verified {
            self.keep(at, piece, &sources, hashes, now);
        } else {
            self.artifacts[at].bad_pieces += 1;
            self.blame(at, piece, &begun, &sources, hashes, now);
        }
        self.go_on(now);
    }

    fn keep(&mut self, at: usize, piece: u32, sources: &[(PeerId, bool, u64)], hashes: &[[u8; 32]], now: Instant) {
        let artifact = &mut self.artifacts[at];
        let digest = artifact.shape.digest();
        artifact.taken.insert(piece);
        if !artifact.have.insert(piece) {
            return;
        }
        let promised = artifact.is_leased(piece);
        artifact.withheld.retain(|(withheld, _)| *withheld != piece);
        artifact.leases.retain(|(leased, _)| *leased != piece);
        artifact.bytes += artifact.shape.piece_len(piece);
        for (peer, store, len) in sources {
            if *store {
                artifact.from_store += len;
            } else {
                artifact.from_peers += len;
                if self.links.iter().any(|link| link.peer == *peer && link.is_elsewhere) {
                    artifact.from_elsewhere += len;
                }
                *artifact.sources.entry(*peer).or_default() += len;
            }
            self.downloaded += len;
        }
        artifact.fresh.push(piece);
        let (done, left) = (artifact.have.count(), artifact.have.len() - artifact.have.count());
        let near = now.since(artifact.since).mul_f64(f64::from(left.min(done)) / f64::from(done));
        let delay = (near / 64).max(self.settings.have_delay).min(self.settings.max_have_delay);
        self.flush_at = self.flush_at.min(now + delay);
        // The gate learns of its piece at once: the lease ends, the next one comes.
        if let Some(conn) = artifact.joined_gate
            && (promised || sources.iter().any(|(_, store, _)| *store))
        {
            let count = artifact.have.count();
            self.send(conn, Message::Have { digest, pieces: smallvec![piece], count });
        }
        self.compare_with_suspects(at, piece, hashes, now);
        if self.artifacts.get(at).is_some_and(|artifact| artifact.shape.digest() == digest && artifact.have.is_full()) {
            self.outputs.push_back(Output::Complete(digest));
            self.completed(at, now);
        }
    }

    /// Requests that will not be answered by blocks.
    pub(super) fn unanswered(&mut self, at: usize, digest: &Digest, piece: u32, block: u32, count: u32, now: Instant) {
        let conn = self.links[at].conn;
        let blocks = block..block.saturating_add(count);
        let same = |ask: &Ask| ask.piece == piece && blocks.contains(&ask.block) && ask.digest == *digest;
        let asks = self.links.take_asks(at, same);
        if asks.is_empty() {
            return;
        }
        self.no_more_asked(digest, asks.iter().map(|ask| u64::from(ask.len)).sum(), false);
        if let Some(artifact) = self.artifact_at(digest).map(|at| &mut self.artifacts[at]) {
            artifact.retries += 1;
            if let Some(begun) = artifact.begun_mut(piece) {
                for ask in &asks {
                    begun.unask(ask.block);
                }
                if begun.source == Some(conn) {
                    begun.source = None;
                }
            }
            artifact.release_if_bare(piece);
        }
        self.fill_all(now);
    }

    /// A neighbour does not have, or the gate does not give, what was asked for.
    pub(super) fn rejected(&mut self, at: usize, digest: &Digest, piece: u32, block: u32, count: u32, now: Instant) {
        let (peer, is_elsewhere) = (self.links[at].peer, self.links[at].is_elsewhere);
        if let Some(remote) = self.links[at].remote_mut(digest)
            && remote.has.remove(piece)
            && let Some(artifact) = self.artifacts.iter_mut().find(|artifact| artifact.shape.digest() == *digest)
        {
            artifact.count_piece(piece, is_elsewhere, false);
            artifact.note_withheld(piece, peer);
        }
        // A lease that waits to be begun stays: nothing was asked for under it, so it is an earlier one that was refused.
        self.unanswered(at, digest, piece, block, count, now);
    }

    /// All requests to a neighbour for an artifact are void.
    pub(super) fn settle(&mut self, at: usize, digest: &Digest) {
        let conn = self.links[at].conn;
        let asks = self.links.take_asks(at, |ask| ask.digest == *digest);
        self.no_more_asked(digest, asks.iter().map(|ask| u64::from(ask.len)).sum(), false);
        if let Some(artifact) = self.artifact_at(digest).map(|at| &mut self.artifacts[at]) {
            artifact.retries += asks.len() as u32;
            artifact.unask(&asks);
            artifact.source_gone(conn);
        }
    }
}

/// Bytes asked for, then how soon the last answer came, then the step, in one number: the order is made anew for each block that comes.
fn rank(asked: u64, wait: u32, step: usize) -> u64 {
    let [wait, step] = [(wait / WAIT_STEP) as usize, step].map(|part| part.min(0xFFFF) as u64);
    asked.min(0xFFFF_FFFF) << 32 | wait << 16 | step
}

fn source_of<B: Payload>(block: &BlockState<B>) -> Option<(PeerId, bool, u64)> {
    match block {
        BlockState::Got { data, from, store } => Some((*from, *store, data.byte_len() as u64)),
        _ => None,
    }
}

impl<B: Payload> Artifact<B> {
    /// Forgets the begun piece of which the least came, among those that nobody brings; `false` if there is none.
    fn forget_begun(&mut self) -> bool {
        let idle = |(_, begun): &(usize, &Begun<B>)| begun.is_idle();
        let least = self.begun.iter().enumerate().filter(idle).min_by_key(|(_, begun)| begun.got());
        let least = least.map(|(at, _)| at);
        if let Some(at) = least {
            self.waste_begun(at);
        }
        least.is_some()
    }
}
