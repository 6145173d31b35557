//! How a node behaves.

use std::time::Duration;

use deploycore::model::friendly;
use deploycore::port::swarm::Limits;
use serde::{Deserialize, Serialize};

use crate::core::shape::MAX_BLOCK;

/// How a node behaves in the swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Neighbours of an artifact aimed at. Each node looks for half of them; the other half finds it.
    pub degree: u16,
    /// The most connections to nodes; those beyond are refused.
    pub max_links: usize,
    /// How many neighbours are served at the same time, and as many more that fetch a rollback.
    pub slots: usize,
    /// Bytes asked for and not yet received, of rollbacks together and of all others together.
    pub max_outstanding: u64,
    /// What arrives in this time may be asked for, within that. More would wait in the neighbours' queues, and pieces would be chosen long
    /// before they come.
    #[serde(with = "friendly")]
    pub ahead: Duration,
    /// Bytes asked for and not yet received, of one neighbour.
    pub max_outstanding_per_link: u64,
    /// Bytes of pieces begun and not yet complete, of rollbacks together and of all others together, apart from leased ones.
    pub max_begun: u64,
    /// A request older than this is asked of someone else.
    #[serde(with = "friendly")]
    pub request_timeout: Duration,
    /// After `Busy` the neighbour is asked again after this time, unless it says `Ready` before.
    #[serde(with = "friendly")]
    pub busy_retry: Duration,
    /// How long verified pieces wait to be announced together, at least...
    #[serde(with = "friendly")]
    pub have_delay: Duration,
    /// ...and at most: in between, a 64th of the time since the node began to fetch, or of the time that it will still take, whichever is
    /// less. At the start pieces must multiply, and at the end somebody waits for each; in between it costs nothing.
    #[serde(with = "friendly")]
    pub max_have_delay: Duration,
    /// How often what got lost is looked for.
    #[serde(with = "friendly")]
    pub tick: Duration,
    /// Pieces that no neighbour has are asked of the gate after this time.
    #[serde(with = "friendly")]
    pub stuck_after: Duration,
    /// How long a member that sent bad bytes is refused.
    #[serde(with = "friendly")]
    pub quarantine: Duration,
    /// A connection that serves no purpose any more is closed after this time.
    #[serde(with = "friendly")]
    pub idle: Duration,
    /// Whether the store may be read; if not, the node is a plain peer.
    pub reads_store: bool,
    /// Limits of the node, all artifacts together, until [`Input::Limit`](super::Input::Limit) sets others.
    pub limits: Limits,
    /// Bytes of a block. Another than [`MAX_BLOCK`] is for simulators: all members must cut alike.
    #[serde(skip)]
    pub max_block: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            degree: 32,
            max_links: 96,
            slots: 6,
            max_outstanding: 32 << 20,
            ahead: Duration::from_millis(250),
            max_outstanding_per_link: 4 << 20,
            max_begun: 64 << 20,
            request_timeout: Duration::from_secs(20),
            busy_retry: Duration::from_secs(1),
            have_delay: Duration::from_millis(5),
            max_have_delay: Duration::from_millis(500),
            tick: Duration::from_millis(250),
            stuck_after: Duration::from_secs(1),
            quarantine: Duration::from_mins(10),
            idle: Duration::from_secs(30),
            reads_store: true,
            limits: Limits::default(),
            max_block: MAX_BLOCK,
        }
    }
}
