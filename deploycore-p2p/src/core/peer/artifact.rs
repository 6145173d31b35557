//! One artifact at a node: which pieces are here, begun, or promised.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use deploycore::port::swarm::{Limits, Priority};

use super::Progress;
use super::link::Ask;
use super::rates::Rates;
use super::turns::Turn;
use super::zones::Outside;
use crate::core::bitfield::Bitfield;
use crate::core::message::{ConnId, Payload, PeerId, Standing, Zone};
use crate::core::shape::Shape;
use crate::core::time::Instant;

/// A block of a piece that was begun.
#[derive(Debug)]
pub(super) enum BlockState<B> {
    /// To be asked for.
    Free,
    /// Asked of this many neighbours.
    Asked(u8),
    /// Here, from this member.
    Got { data: B, from: PeerId, store: bool },
}

/// A piece that was begun.
#[derive(Debug)]
pub(super) struct Begun<B> {
    pub(super) piece: u32,
    pub(super) blocks: Vec<BlockState<B>>,
    /// Whose piece it is to bring. Others help only at the end.
    pub(super) source: Option<ConnId>,
    /// All blocks came and are being verified.
    pub(super) storing: bool,
}

impl<B: Payload> Begun<B> {
    pub(super) fn new(shape: &Shape, piece: u32, source: ConnId) -> Self {
        let blocks = (0..shape.blocks(piece)).map(|_| BlockState::Free).collect();
        Self { piece, blocks, source: Some(source), storing: false }
    }

    /// The first blocks in a row that are to be asked for.
    pub(super) fn free_blocks(&self) -> Option<Range<u32>> {
        let is_free = |block: &BlockState<B>| matches!(block, BlockState::Free);
        let start = self.blocks.iter().position(is_free)?;
        let count = self.blocks[start..].iter().take_while(|block| is_free(block)).count();
        Some(start as u32..(start + count) as u32)
    }

    /// Nobody is to bring it and nothing of it is under way.
    pub(super) fn is_idle(&self) -> bool {
        let asked = |block: &BlockState<B>| matches!(block, BlockState::Asked(_));
        self.source.is_none() && !self.storing && !self.blocks.iter().any(asked)
    }

    pub(super) fn is_whole(&self) -> bool {
        self.blocks.iter().all(|block| matches!(block, BlockState::Got { .. }))
    }

    /// Nothing came and nothing is asked for.
    pub(super) fn is_bare(&self) -> bool {
        self.blocks.iter().all(|block| matches!(block, BlockState::Free))
    }

    pub(super) fn got(&self) -> usize {
        self.blocks.iter().filter(|block| matches!(block, BlockState::Got { .. })).count()
    }

    /// One request for the block less.
    pub(super) fn unask(&mut self, block: u32) {
        if let Some(state @ BlockState::Asked(_)) = self.blocks.get_mut(block as usize) {
            *state = match state {
                BlockState::Asked(n) if *n > 1 => BlockState::Asked(*n - 1),
                _ => BlockState::Free,
            };
        }
    }
}

/// How many pairs of a piece and a member that did not give it are remembered of an artifact.
const MAX_WITHHELD: usize = 256;

/// A piece that did not verify and came from several members: who sent which block, to be compared with a good copy.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) piece: u32,
    pub(super) blocks: Vec<(PeerId, bool, [u8; 32])>,
}

#[derive(Debug)]
pub(super) struct Artifact<B> {
    pub(super) shape: Shape,
    pub(super) priority: Priority,
    pub(super) have: Bitfield,
    /// Here, begun, or leased to this node: not to be begun with a neighbour.
    pub(super) taken: Bitfield,
    /// How many neighbours have each piece.
    pub(super) availability: Vec<u16>,
    pub(super) outside: Outside,
    pub(super) begun: Vec<Begun<B>>,
    /// Leased by the gate on this connection and not yet begun.
    pub(super) leases: VecDeque<(u32, ConnId)>,
    /// The gate has nothing more to lease: pieces that nobody has will not come by themselves.
    pub(super) drained: bool,
    /// Verified and not yet announced.
    pub(super) fresh: Vec<u32>,
    pub(super) suspects: Vec<Suspect>,
    /// Members that said they have a missing piece, and did not give it. It may be with nobody else.
    pub(super) withheld: BTreeSet<(u32, PeerId)>,
    pub(super) rates: Rates,
    /// Bytes of it asked for and not yet received.
    pub(super) outstanding: u64,
    /// Its turns to be asked for and to be served.
    pub(super) turn_in: Turn,
    pub(super) turn_out: Turn,
    /// When the node began to take part.
    pub(super) since: Instant,
    /// All pieces were here at the start.
    pub(super) began_whole: bool,
    /// How long it took until all pieces were here.
    pub(super) took: Option<Duration>,
    pub(super) announce_at: Instant,
    /// The gate on this connection was told that this node takes part.
    pub(super) joined_gate: Option<ConnId>,
    /// The gate said that it does not serve the artifact; asked again then.
    pub(super) absent_until: Instant,
    /// Since when some missing piece is with no neighbour.
    pub(super) starved_since: Option<Instant>,
    /// When late blocks are looked for again, at the end.
    pub(super) look_again: Instant,
    pub(super) bytes: u64,
    pub(super) from_store: u64,
    pub(super) from_peers: u64,
    /// Of that, from other zones.
    pub(super) from_elsewhere: u64,
    /// And by whom.
    pub(super) sources: BTreeMap<PeerId, u64>,
    /// Requests that were not answered by a block.
    pub(super) retries: u32,
    pub(super) bad_pieces: u32,
    pub(super) wasted: u64,
}

impl<B: Payload> Artifact<B> {
    /// `turns` are the turns of one that begins now, to be asked for and to be served.
    pub(super) fn new(
        shape: Shape,
        have: Bitfield,
        priority: Priority,
        limits: Limits,
        turns: (Turn, Turn),
        zone: Option<Zone>,
        now: Instant,
    ) -> Self {
        Self {
            shape,
            priority,
            taken: have.clone(),
            availability: vec![0; shape.pieces() as usize],
            outside: Outside::new(zone, shape.pieces()),
            begun: Vec::new(),
            leases: VecDeque::new(),
            drained: false,
            fresh: Vec::new(),
            suspects: Vec::new(),
            withheld: BTreeSet::new(),
            rates: Rates::new(limits, now),
            outstanding: 0,
            turn_in: turns.0,
            turn_out: turns.1,
            since: now,
            began_whole: have.is_full(),
            took: None,
            announce_at: now,
            joined_gate: None,
            absent_until: Instant::ZERO,
            starved_since: None,
            look_again: now,
            bytes: have.iter().map(|piece| shape.piece_len(piece)).sum(),
            have,
            from_store: 0,
            from_peers: 0,
            from_elsewhere: 0,
            sources: BTreeMap::new(),
            retries: 0,
            bad_pieces: 0,
            wasted: 0,
        }
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            pieces: self.have.count(),
            bytes: self.bytes,
            from_store: self.from_store,
            from_peers: self.from_peers,
            from_elsewhere: self.from_elsewhere,
            retries: self.retries,
            bad_pieces: self.bad_pieces,
            wasted: self.wasted,
            ..Progress::default()
        }
    }

    /// How far it is, as trackers are told.
    pub(super) fn standing(&self, now: Instant) -> Standing {
        let time = self.took.unwrap_or_else(|| now.since(self.since));
        Standing {
            millis: (!self.began_whole).then(|| u32::try_from(time.as_millis()).unwrap_or(u32::MAX)),
            from_store: self.from_store,
            from_peers: self.from_peers,
            waiting: None,
        }
    }

    /// By how much it catches up when it could not use its turns, in bytes: a few pieces, each of which is asked for at once.
    pub(super) fn slack(&self) -> u64 {
        4 * self.shape.piece_size()
    }

    /// The pieces of a neighbour, who may be elsewhere, come or go.
    pub(super) fn count(&mut self, has: &Bitfield, is_elsewhere: bool, come: bool) {
        for piece in has.iter() {
            self.count_piece(piece, is_elsewhere, come);
        }
    }

    pub(super) fn count_piece(&mut self, piece: u32, is_elsewhere: bool, come: bool) {
        if let Some(count) = self.availability.get_mut(piece as usize) {
            *count = if come { count.saturating_add(1) } else { count.saturating_sub(1) };
        }
        if !is_elsewhere {
            self.outside.count(piece, come);
        }
    }

    /// Whether what is taken is what is here, begun or leased, and nothing else: a piece that stayed taken would never be fetched.
    pub(super) fn is_consistent(&self) -> bool {
        let mut taken = self.have.clone();
        let leased = self.leases.iter().map(|(piece, _)| *piece);
        leased.chain(self.begun.iter().map(|begun| begun.piece)).for_each(|piece| {
            taken.insert(piece);
        });
        taken == self.taken
    }

    /// How many requests the begun pieces wait for. A block that stayed asked for would never be asked for again.
    pub(super) fn asked(&self) -> usize {
        let asked = |block: &BlockState<B>| match block {
            BlockState::Asked(times) => usize::from(*times),
            _ => 0,
        };
        self.begun.iter().flat_map(|begun| &begun.blocks).map(asked).sum()
    }

    pub(super) fn begun_at(&self, piece: u32) -> Option<usize> {
        self.begun.iter().position(|begun| begun.piece == piece)
    }

    pub(super) fn begun_mut(&mut self, piece: u32) -> Option<&mut Begun<B>> {
        self.begun.iter_mut().find(|begun| begun.piece == piece)
    }

    /// Lets a begun piece go if nothing of it came and nobody is asked for it: it may then be begun elsewhere. A suspect piece has to come
    /// from one source alone, so that what came of it is of no use when nobody brings the rest.
    pub(super) fn release_if_bare(&mut self, piece: u32) {
        let Some(at) = self.begun_at(piece) else {
            return;
        };
        let suspect = self.suspects.iter().any(|suspect| suspect.piece == piece);
        if self.begun[at].is_bare() || (suspect && self.begun[at].is_idle()) {
            self.waste_begun(at);
        }
    }

    /// Takes requests back. A piece that nobody is to bring, and that has to come from one source alone, begins anew.
    pub(super) fn unask(&mut self, asks: &[Ask]) {
        for ask in asks {
            let Some(begun) = self.begun_mut(ask.piece) else { continue };
            begun.unask(ask.block);
            if begun.source.is_none() {
                self.release_if_bare(ask.piece);
            }
        }
    }

    /// Forgets a begun piece; what came of it came in vain.
    pub(super) fn waste_begun(&mut self, at: usize) {
        let begun = self.drop_begun(at);
        self.wasted += begun.got() as u64 * u64::from(self.shape.block_size());
    }

    /// Forgets a begun piece with what came of it.
    pub(super) fn drop_begun(&mut self, at: usize) -> Begun<B> {
        let begun = self.begun.swap_remove(at);
        if !self.leases.iter().any(|(piece, _)| *piece == begun.piece) {
            self.taken.remove(begun.piece);
        }
        begun
    }

    /// A connection is gone: its pieces are anyone's, its leases void. The requests are settled by the caller, before.
    pub(super) fn source_gone(&mut self, conn: ConnId) {
        let void: Vec<u32> = self.leases.iter().filter(|(_, gate)| *gate == conn).map(|(piece, _)| *piece).collect();
        self.leases.retain(|(_, gate)| *gate != conn);
        for piece in void {
            if self.begun_at(piece).is_none() {
                self.taken.remove(piece);
            }
        }
        let mut orphans = Vec::new();
        for begun in self.begun.iter_mut().filter(|begun| begun.source == Some(conn)) {
            begun.source = None;
            orphans.push(begun.piece);
        }
        for piece in orphans {
            self.release_if_bare(piece);
        }
        if self.joined_gate == Some(conn) {
            self.joined_gate = None;
            self.drained = false;
        }
    }

    /// Notes that a member did not give a piece which it said it has.
    pub(super) fn note_withheld(&mut self, piece: u32, peer: PeerId) {
        if !self.have.contains(piece) && self.withheld.len() < MAX_WITHHELD {
            self.withheld.insert((piece, peer));
        }
    }

    /// Pieces that are here, leased, or on their way from someone.
    pub(super) fn brought(&self) -> Bitfield {
        let mut brought = self.taken.clone();
        let left = |begun: &&Begun<B>| begun.source.is_none() && !begun.storing;
        for begun in self.begun.iter().filter(left) {
            brought.remove(begun.piece);
        }
        brought
    }

    /// Missing pieces that no neighbour has and nobody is bringing.
    pub(super) fn nowhere(&self) -> impl Iterator<Item = u32> {
        self.have.missing().filter(|piece| {
            let brought =
                || self.begun.iter().any(|begun| begun.piece == *piece && (begun.source.is_some() || begun.storing));
            self.availability[*piece as usize] == 0 && !self.is_leased(*piece) && !brought()
        })
    }

    /// Whether a gate leased a piece that is not yet begun.
    pub(super) fn is_leased(&self, piece: u32) -> bool {
        self.leases.iter().any(|(leased, _)| *leased == piece)
    }
}
