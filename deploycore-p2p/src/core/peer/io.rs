//! What a node is told, what it wants done, and what it says of itself.

use bytes::Bytes;
use deploycore::model::Digest;
use deploycore::port::swarm::{Limits, Priority};

use crate::core::bitfield::Bitfield;
use crate::core::message::{Addr, Block, ConnId, Message, PeerId, Role, Waiting, Zone};
use crate::core::shape::Shape;

/// What happens to a node.
#[derive(Debug, Clone)]
pub enum Input<B = Bytes> {
    /// Take part in an artifact, with these verified pieces.
    Start(Box<Start>),
    /// Change how urgent an artifact is and how fast it may go.
    Adjust(Digest, Priority, Limits),
    /// Change how fast the node may go, all artifacts together.
    Limit(Limits),
    /// Take part no more.
    Stop(Digest),
    /// A member connected and said hello.
    Connected {
        /// The connection.
        conn: ConnId,
        /// Who.
        peer: PeerId,
        /// Which of its lives.
        incarnation: u64,
        /// What it is.
        role: Role,
        /// Where it is, if it says.
        zone: Option<Zone>,
        /// The address that was dialed, if this side dialed.
        dialed: Option<Addr>,
    },
    /// [`Output::Connect`] came to nothing.
    ConnectFailed(Addr),
    /// A connection ended.
    Disconnected(ConnId),
    /// A message came.
    Message(ConnId, Message),
    /// A block came.
    Block(ConnId, Block<B>),
    /// A block was handed to the network, or its connection ended.
    Sent(ConnId, u32),
    /// A block could not be read from disk.
    ReadFailed {
        /// For whom.
        conn: ConnId,
        /// Of what.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// Which block of it.
        block: u32,
    },
    /// What became of [`Output::Store`].
    Stored {
        /// Of what.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// Whether it verified and was written.
        verified: bool,
        /// The BLAKE3 hash of each block, when it did not verify or when they were asked for.
        blocks: Vec<[u8; 32]>,
    },
    /// The instant of [`Peer::poll_timeout`](super::Peer::poll_timeout) has come.
    Timeout,
}

/// Which artifact to take part in, and how.
#[derive(Debug, Clone)]
pub struct Start {
    /// Which.
    pub shape: Shape,
    /// What is on disk, verified.
    pub have: Bitfield,
    /// Before or after others.
    pub priority: Priority,
    /// How fast.
    pub limits: Limits,
}

/// What a node wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<B = Bytes> {
    /// Connect and say hello. The answer is `Connected` or `ConnectFailed`.
    Connect(Addr, Role),
    /// End a connection, for this reason.
    Close(ConnId, String),
    /// Send a message.
    Send(ConnId, Message),
    /// Read a block from disk and send it; then say [`Input::Sent`].
    SendBlock {
        /// To whom.
        conn: ConnId,
        /// Of what.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// Which block of it.
        block: u32,
        /// Where it starts in the artifact.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Verify a piece and write it; then say [`Input::Stored`].
    Store {
        /// Of what.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// Its bytes.
        blocks: Vec<B>,
        /// Whether the hashes of the blocks are wanted even when the piece verifies: to find who sent bad ones before.
        hash_blocks: bool,
    },
    /// All pieces are verified and written.
    Complete(Digest),
}

/// Where an artifact stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Pieces verified and written.
    pub pieces: u32,
    /// Bytes verified and written.
    pub bytes: u64,
    /// Neighbours that take part in it.
    pub peers: u32,
    /// Bytes taken through the gate, in verified pieces.
    pub from_store: u64,
    /// Bytes taken from peers, in verified pieces.
    pub from_peers: u64,
    /// Of that, from peers in other zones. 0 for a node without a zone.
    pub from_elsewhere: u64,
    /// Requests that were not answered by a block: the neighbour was busy, slow or gone. They were made again, perhaps elsewhere.
    pub retries: u32,
    /// Pieces that did not verify.
    pub bad_pieces: u32,
    /// Bytes received for nothing: twice, or too late.
    pub wasted: u64,
    /// Why nothing moves, when nothing moves.
    pub waiting_for: Option<Waiting>,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Artifacts being fetched.
    pub fetching: u32,
    /// Artifacts complete and offered.
    pub seeding: u32,
    /// Connected nodes.
    pub peers: u32,
    /// Bytes received in verified pieces.
    pub downloaded: u64,
    /// Bytes given to peers.
    pub uploaded: u64,
    /// Members in quarantine.
    pub quarantined: u32,
}
