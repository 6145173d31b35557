//! A connection to another member, and what is known of its pieces.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use deploycore::model::Digest;
use deploycore::port::swarm::Priority;
use smallvec::SmallVec;

use crate::core::bitfield::Bitfield;
use crate::core::message::{Addr, ConnId, PeerId, Role, Zone};
use crate::core::shape::Shape;
use crate::core::time::Instant;

/// A neighbour's part in one artifact. What an announcement of pieces touches lies together, here and in [`Link`]: they are most of what
/// comes, and mostly wait for memory.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Remote {
    /// As the neighbour says, who may be the first to speak of the artifact here.
    pub(super) shape: Shape,
    /// How many pieces it has: more than are known one by one, because it does not name those that are here too.
    pub(super) count: u32,
    pub(super) priority: Priority,
    /// It was asked to say `Ready` when...
    pub(super) awaited: bool,
    /// ...it is busy no more, or until then.
    pub(super) ask_after: Instant,
    pub(super) has: Bitfield,
}

/// A request under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) digest: Digest,
    pub(super) piece: u32,
    pub(super) block: u32,
    pub(super) len: u32,
    pub(super) at: Instant,
    /// Nothing else was under way when it was made: its time is the path's latency.
    alone: bool,
}

/// The connections of a node, in no order.
#[derive(Debug, Default)]
pub(super) struct Links {
    all: Vec<Link>,
    /// The connection of each, how many bytes it is asked for, and how many milliseconds the last block took to come from there: what is
    /// looked up most lies close together.
    conns: Vec<ConnId>,
    asked: Vec<u64>,
    waits: Vec<u32>,
    gates: SmallVec<[ConnId; 2]>,
}

impl Links {
    pub(super) fn push(&mut self, link: Link) {
        self.conns.push(link.conn);
        self.asked.push(0);
        self.waits.push(0);
        if link.role == Role::Gate {
            self.gates.push(link.conn);
        }
        self.all.push(link);
    }

    pub(super) fn swap_remove(&mut self, at: usize) -> Link {
        let conn = self.conns.swap_remove(at);
        self.asked.swap_remove(at);
        self.waits.swap_remove(at);
        self.gates.retain(|gate| *gate != conn);
        self.all.swap_remove(at)
    }

    /// Whether a connection leads to a gate.
    pub(super) fn is_gate(&self, conn: ConnId) -> bool {
        self.gates.contains(&conn)
    }

    /// How many bytes each neighbour is asked for.
    pub(super) fn asked_bytes(&self) -> &[u64] {
        &self.asked
    }

    /// How many milliseconds the last block took to come from each neighbour; 0 before the first.
    pub(super) fn waits(&self) -> &[u32] {
        &self.waits
    }

    /// Notes that a block came that a neighbour was asked for.
    pub(super) fn received(&mut self, at: usize, ask: &Ask, now: Instant) {
        self.waits[at] = now.since(ask.at).as_millis() as u32;
        self.all[at].received(ask, now);
    }

    /// Notes a request to a neighbour.
    pub(super) fn ask(&mut self, at: usize, digest: Digest, piece: u32, block: u32, len: u32, now: Instant) {
        let asks = &mut self.all[at].asks;
        let alone = asks.is_empty();
        asks.push(Ask { digest, piece, block, len, at: now, alone });
        self.asked[at] += u64::from(len);
    }

    /// Forgets one request; gives it if it was under way.
    pub(super) fn take_ask(&mut self, at: usize, digest: &Digest, piece: u32, block: u32) -> Option<Ask> {
        let same = |ask: &Ask| ask.piece == piece && ask.block == block && ask.digest == *digest;
        let asks = &mut self.all[at].asks;
        let ask = asks.remove(asks.iter().position(same)?);
        self.asked[at] -= u64::from(ask.len);
        Some(ask)
    }

    /// Forgets the requests that a condition holds for; gives them.
    pub(super) fn take_asks(&mut self, at: usize, gone: impl Fn(&Ask) -> bool) -> SmallVec<[Ask; 2]> {
        let taken: SmallVec<[Ask; 2]> = self.all[at].asks.extract_if(.., |ask| gone(ask)).collect();
        self.asked[at] -= taken.iter().map(|ask| u64::from(ask.len)).sum::<u64>();
        taken
    }

    /// How long a request to a neighbour usually takes, queueing included.
    pub(super) fn expected(&self, at: usize) -> Option<Duration> {
        let link = &self.all[at];
        (link.rate > 0.0).then(|| {
            let queue = Duration::from_secs_f64((self.asked[at] as f64 / link.rate).min(3600.0));
            queue + link.latency.unwrap_or_default()
        })
    }

    /// Where a connection stands, until one is removed.
    pub(super) fn position(&self, conn: ConnId) -> Option<usize> {
        self.conns.iter().position(|other| *other == conn)
    }

    pub(super) fn of(&self, conn: ConnId) -> Option<&Link> {
        self.position(conn).map(|at| &self.all[at])
    }

    pub(super) fn of_mut(&mut self, conn: ConnId) -> Option<&mut Link> {
        self.position(conn).map(|at| &mut self.all[at])
    }
}

impl Deref for Links {
    type Target = [Link];
    fn deref(&self) -> &[Link] {
        &self.all
    }
}

impl DerefMut for Links {
    fn deref_mut(&mut self) -> &mut [Link] {
        &mut self.all
    }
}

#[derive(Debug)]
#[repr(C)]
pub(super) struct Link {
    pub(super) role: Role,
    /// A node in another zone than this one.
    pub(super) is_elsewhere: bool,
    pub(super) conn: ConnId,
    /// Nearly always one: it lies within.
    pub(super) remotes: SmallVec<[Remote; 1]>,
    pub(super) peer: PeerId,
    pub(super) incarnation: u64,
    pub(super) dialed: Option<Addr>,
    pub(super) asks: Vec<Ask>,
    /// Blocks handed to the shell and not yet to the network.
    pub(super) unsent: u32,
    /// When this side sent its last ping.
    pub(super) pinged: Instant,
    /// The last time it served a purpose.
    pub(super) useful: Instant,
    /// Blocks that came without being asked for, or too late.
    pub(super) unasked: u32,
    /// Bytes a second while requests are under way; 0 before the first block.
    pub(super) rate: f64,
    latency: Option<Duration>,
    last_block: Instant,
    pub(super) opened: Instant,
}

/// The most artifacts that two nodes share.
const MAX_REMOTES: usize = 1_024;
/// Pieces of all artifacts that a neighbour may speak of: a bit each is kept of them.
const MAX_REMOTE_PIECES: u64 = 8 << 20;
/// The longest path within a region. What a measured latency has beyond it is the queue at the other end, which is no reason to
/// ask for more: a node that did so would have all its requests with one neighbour that slows down while the others stand idle.
const MAX_PATH: Duration = Duration::from_millis(50);

impl Link {
    pub(super) fn new(
        conn: ConnId,
        peer: PeerId,
        incarnation: u64,
        role: Role,
        dialed: Option<Addr>,
        now: Instant,
    ) -> Self {
        Self {
            conn,
            peer,
            incarnation,
            role,
            is_elsewhere: false,
            dialed,
            remotes: SmallVec::new(),
            asks: Vec::new(),
            unsent: 0,
            pinged: now,
            useful: now,
            unasked: 0,
            rate: 0.0,
            latency: None,
            last_block: now,
            opened: now,
        }
    }

    /// Where the node at the other end is, seen from a node of a zone of its own. One that does not say is elsewhere.
    pub(super) fn with_zones(self, own: Option<Zone>, other: Option<Zone>) -> Self {
        Self { is_elsewhere: self.role == Role::Node && own.is_some() && own != other, ..self }
    }

    pub(super) fn remote(&self, digest: &Digest) -> Option<&Remote> {
        self.remotes.iter().find(|remote| remote.shape.digest() == *digest)
    }

    pub(super) fn remote_mut(&mut self, digest: &Digest) -> Option<&mut Remote> {
        self.remotes.iter_mut().find(|remote| remote.shape.digest() == *digest)
    }

    /// Notes a neighbour's part in an artifact; `false` when there are too many.
    pub(super) fn join(&mut self, remote: Remote) -> bool {
        let digest = remote.shape.digest();
        let others = self.remotes.iter().filter(|other| other.shape.digest() != digest);
        let pieces: u64 = others.chain([&remote]).map(|remote| u64::from(remote.has.len())).sum();
        if pieces > MAX_REMOTE_PIECES {
            return false;
        }
        if let Some(known) = self.remote_mut(&digest) {
            *known = remote;
            return true;
        }
        let room = self.remotes.len() < MAX_REMOTES;
        if room {
            self.remotes.push(remote);
        }
        room
    }

    pub(super) fn leave(&mut self, digest: &Digest) -> Option<Remote> {
        let at = self.remotes.iter().position(|remote| remote.shape.digest() == *digest)?;
        Some(self.remotes.swap_remove(at))
    }

    /// How many bytes may be asked for: what fills the path twice, at least two blocks.
    pub(super) fn window(&self, block: u32, max: u64) -> u64 {
        let latency = self.latency.unwrap_or_default().min(MAX_PATH) + Duration::from_millis(2);
        let path = (self.rate * latency.as_secs_f64() * 2.0) as u64;
        path.max(2 * u64::from(block)).min(max.max(u64::from(block)))
    }

    pub(super) fn asks_for(&self, digest: &Digest, piece: u32, block: u32) -> Option<&Ask> {
        self.asks.iter().find(|ask| ask.piece == piece && ask.block == block && ask.digest == *digest)
    }

    /// A block that was asked for came: learns the path's rate and latency.
    fn received(&mut self, ask: &Ask, now: Instant) {
        let busy = now.since(self.last_block.max(ask.at)).as_secs_f64().max(1e-6);
        let sample = f64::from(ask.len) / busy;
        self.rate = if self.rate == 0.0 { sample } else { self.rate * 0.8 + sample * 0.2 };
        if ask.alone {
            let sample = now.since(ask.at);
            // It follows slowly upwards, so that one slow answer does not open the window.
            self.latency = Some(self.latency.map_or(sample, |latency| sample.min(latency + latency / 8)));
        }
        self.last_block = now;
        self.useful = now;
    }
}
