//! What the members of a swarm say to each other.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use deploycore::model::{Digest, RegionName};
use deploycore::port::swarm::Priority;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::bitfield::PackedBits;

/// A member of the swarm: the first eight bytes of the BLAKE3 hash of its name. The name is for people, this for tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId(pub u64);

impl PeerId {
    /// The id that belongs to a name.
    pub fn of(name: &str) -> Self {
        let hash = blake3::hash(name.as_bytes());
        Self(u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes")))
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Where a member listens: `host:port`, resolved anew at each connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Addr(pub Arc<str>);

impl From<&str> for Addr {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Addr {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A part of a region within which bytes are cheap: a data centre, a room, a rack. The first eight bytes of the BLAKE3 hash of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Zone(pub u64);

impl Zone {
    /// The zone with a name.
    pub fn of(name: &str) -> Self {
        Self(PeerId::of(name).0)
    }
}

/// Which of the nodes of a zone that take part in an artifact one is: by that they share what is to be brought from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZonePart {
    /// From 0.
    pub index: u32,
    /// How many there are.
    pub of: u32,
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Fetches and seeds.
    Node,
    /// Introduces members to each other.
    Tracker,
    /// The door to the region's store.
    Gate,
}

/// The first message on a connection, both ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The region. Members of two regions do not talk.
    pub region: RegionName,
    /// The sender's name, at most 128 bytes.
    pub name: String,
    /// Drawn anew at each start of the sender, so that a connection to its dead predecessor is told from one to it.
    pub incarnation: u64,
    /// What the sender is.
    pub role: Role,
    /// Where within the region the sender is, if it says.
    pub zone: Option<Zone>,
}

/// A member to talk to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub addr: Addr,
}

/// Why a request is refused for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The artifact is not offered here.
    UnknownArtifact,
    /// The piece is not here, or there is no such block.
    MissingPiece,
    /// The gate serves leased pieces only, each block once.
    NotLeased,
    /// The bytes could not be read.
    ReadFailed,
    /// From a node to a gate: the leased piece did not verify.
    BadBytes,
}

/// How far a member is with an artifact. Nothing depends on it: it is for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Milliseconds since the fetch began, or that it took once all pieces are there. `None` for one that began with all of them.
    pub millis: Option<u32>,
    /// Bytes taken through the gate, in verified pieces.
    pub from_store: u64,
    /// Bytes taken from peers, in verified pieces.
    pub from_peers: u64,
    /// For what it waits, when nothing moves.
    pub waiting: Option<Waiting>,
}

/// Why nothing moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// No tracker is connected, nor anyone else.
    Tracker,
    /// No gate is known, and no peer.
    Gate,
    /// The gate does not have the artifact.
    Artifact,
    /// The gate is not connected.
    GateConnection,
    /// Nobody brings what is missing.
    Pieces {
        /// How many.
        missing: u32,
        /// Peers that take part.
        peers: u32,
    },
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tracker => f.write_str("a tracker"),
            Self::Gate => f.write_str("a store gate"),
            Self::Artifact => f.write_str("a store gate that has the artifact"),
            Self::GateConnection => f.write_str("a connection to the store gate"),
            Self::Pieces { missing, peers } => write!(f, "{missing} pieces from the gate or one of {peers} peers"),
        }
    }
}

/// A control message. Blocks travel outside of it, so that their bytes are never copied into one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Node to node or gate: I take part in this artifact and have these pieces. Sent again when the priority changes.
    Join {
        /// Of what.
        digest: Digest,
        /// Bytes.
        size: u64,
        /// Verified pieces.
        have: PackedBits,
        /// How urgent it is for the sender.
        priority: Priority,
    },
    /// I take no part any more.
    Leave {
        /// In what.
        digest: Digest,
    },
    /// More pieces verified, in batches. Those that the receiver has too are left out.
    Have {
        /// Of what.
        digest: Digest,
        /// Which. Mostly a few: they lie within, for this is the message that is sent most.
        pieces: SmallVec<[u32; 4]>,
        /// How many the sender has by now.
        count: u32,
    },
    /// Give me consecutive blocks of a piece. A node queues all of them or says `Busy`; a gate answers for each.
    Request {
        /// Of what.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// The first block of it.
        block: u32,
        /// How many.
        count: u32,
    },
    /// I do not need the block any more. It may be on its way.
    Cancel {
        /// Of what.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// Which block of it.
        block: u32,
    },
    /// All slots are taken: the request is dropped. Whoever has nobody else to ask says `Await`.
    Busy {
        /// Of what.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// The first block of it.
        block: u32,
        /// How many.
        count: u32,
    },
    /// These blocks are refused.
    Reject {
        /// Of what.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// The first block of it.
        block: u32,
        /// How many.
        count: u32,
        /// Why.
        refusal: Refusal,
    },
    /// A slot is kept for you for a moment.
    Ready {
        /// For what.
        digest: Digest,
    },
    /// I do not need the slot.
    Pass {
        /// For what.
        digest: Digest,
    },
    /// Gate to node: read these pieces here, once, within this time.
    Lease {
        /// Of what.
        digest: Digest,
        /// Which.
        pieces: Vec<u32>,
        /// Milliseconds until the lease ends.
        millis: u32,
    },
    /// Gate to node: nothing is left to lease; the other pieces are with peers.
    Drained {
        /// Of what.
        digest: Digest,
    },
    /// Gate to node: this artifact is not served here, now.
    Absent {
        /// Of what.
        digest: Digest,
    },
    /// Node to gate: nobody I know has these pieces.
    Stuck {
        /// Of what.
        digest: Digest,
        /// Which.
        pieces: Vec<u32>,
        /// Members whose word does not count: they sent bad bytes.
        refused: Vec<PeerId>,
    },
    /// Node to tracker: I take part in this artifact. Sent again from time to time.
    Announce(Box<Announcement>),
    /// Node to tracker: I take no part any more.
    Withdraw {
        /// In what.
        digest: Digest,
    },
    /// Gate to tracker: I am a gate.
    GateHere {
        /// Where I listen.
        addr: Addr,
    },
    /// Gate to tracker: who has these pieces?
    Census {
        /// Of what.
        digest: Digest,
        /// Which.
        pieces: Vec<u32>,
        /// Not counting these.
        except: Vec<PeerId>,
    },
    /// Tracker to gate: how many living members hold each of the pieces.
    Holders {
        /// Of what.
        digest: Digest,
        /// (piece, holders).
        pieces: Vec<(u32, u32)>,
        /// A member may be silent about a new piece for this many milliseconds.
        stale_millis: u32,
        /// The tracker has run long enough to have heard of every member.
        settled: bool,
    },
    /// Tracker to node: peers to connect to.
    Introduce {
        /// For what.
        digest: Digest,
        /// Whom.
        peers: Vec<Contact>,
        /// Milliseconds until the next announce.
        millis: u32,
        /// Which of the nodes of its zone the receiver is, if it said where it is.
        part: Option<ZonePart>,
    },
    /// Tracker to node and gate: the region's gates, sent at the start and whenever they change.
    Gates {
        /// All of them.
        gates: Vec<Contact>,
    },
    /// Keeps an idle connection open.
    Ping,
    /// Node to node, after `Busy`: there is nobody else to ask. Say `Ready` when there is a slot.
    Await {
        /// For what.
        digest: Digest,
    },
}

/// A node's part in an artifact, as trackers are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// In what.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Where the node listens.
    pub addr: Addr,
    /// Verified pieces.
    pub have: PackedBits,
    /// Pieces that nobody it knows has.
    pub need: Vec<u32>,
    /// How many more peers it would like to connect to.
    pub wanted: u16,
    /// How far it is, for people.
    pub standing: Standing,
}

impl Message {
    /// Whether lists are within their bounds; what is not is malformed.
    pub(crate) fn is_bounded(&self) -> bool {
        match self {
            Self::Have { pieces, .. } => pieces.len() <= MAX_LIST,
            Self::Lease { pieces, .. } => pieces.len() <= MAX_LIST,
            Self::Stuck { pieces, refused: peers, .. } | Self::Census { pieces, except: peers, .. } => {
                pieces.len() <= MAX_LIST && peers.len() <= MAX_CONTACTS
            }
            Self::Announce(part) => part.need.len() <= MAX_LIST && part.addr.0.len() <= MAX_ADDR,
            Self::Holders { pieces, .. } => pieces.len() <= MAX_LIST,
            Self::Introduce { peers: contacts, .. } | Self::Gates { gates: contacts } => {
                contacts.len() <= MAX_CONTACTS && contacts.iter().all(|contact| contact.addr.0.len() <= MAX_ADDR)
            }
            Self::GateHere { addr } => addr.0.len() <= MAX_ADDR,
            _ => true,
        }
    }
}

/// The most pieces that one message names.
pub const MAX_LIST: usize = 4096;
/// The most members that one message introduces.
pub const MAX_CONTACTS: usize = 256;
/// The longest address.
pub const MAX_ADDR: usize = 300;

/// The bytes of a block as the machines see them: real bytes, or a stand-in when a simulator moves no bytes.
pub trait Payload: Clone + fmt::Debug {
    /// How many bytes it stands for.
    fn byte_len(&self) -> usize;
}

impl Payload for Bytes {
    fn byte_len(&self) -> usize {
        self.len()
    }
}

/// A block on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block<B = Bytes> {
    /// Of what.
    pub digest: Digest,
    /// Which piece.
    pub piece: u32,
    /// Which block of it.
    pub block: u32,
    /// Its bytes.
    pub data: B,
}

/// A connection, as whoever drives a machine numbers it. Numbers are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
