//! The tokio shell around the state machines: connections, files, clocks.
//!
//! Each service is one task that owns its machine and never waits for the network or the disk: connections, reads, writes and
//! hashing are tasks of their own, which report through one bounded channel.

mod buffers;
mod connection;
mod counts;
mod files;
mod gate;
mod memory;
mod node;
mod outgoing;
#[cfg(feature = "tls")]
mod tls;
mod tracker;
mod transport;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::friendly;
use serde::{Deserialize, Serialize};

pub use counts::{Counts, DiskCounts, MemoryCounts};
pub use files::{DiskFiles, Files, Open, PieceFile, Stored};
pub use gate::{Gate, GateSettings};
pub use memory::{MemoryFiles, MemoryNetwork};
pub use node::{Account, Node, NodeSettings};
#[cfg(feature = "tls")]
pub use tls::MutualTls;
pub use tracker::{Tracker, TrackerSettings};
pub use transport::{Connection, Listener, Tcp, Transport};

/// How connections are protected. There is no default: a configuration says it by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Security {
    /// Not at all: whoever reaches a port takes part. For one host, or a network that keeps strangers out by other means.
    PlainTcp,
    /// Mutual TLS 1.3: only who has a certificate of the swarm's authority takes part. Feature `tls`.
    #[cfg(feature = "tls")]
    MutualTls(MutualTls),
}

impl Security {
    /// Connections that are protected like this, of a member of this name.
    #[cfg_attr(
        not(feature = "tls"),
        expect(unused_variables, clippy::unnecessary_wraps, reason = "plain TCP knows no names")
    )]
    fn transport(&self, name: &str) -> io::Result<Arc<dyn Transport>> {
        match self {
            Self::PlainTcp => Ok(Arc::new(Tcp)),
            #[cfg(feature = "tls")]
            Self::MutualTls(files) => Ok(Arc::new(tls::Tls::new(files, name)?)),
        }
    }
}

/// Time limits of connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// To connect.
    #[serde(with = "friendly")]
    pub connect: Duration,
    /// From connected to hellos exchanged.
    #[serde(with = "friendly")]
    pub handshake: Duration,
    /// A connection on which nothing comes, or nothing can be written, for this long is closed. Members ping every 10 s.
    #[serde(with = "friendly")]
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), handshake: Duration::from_secs(5), idle: Duration::from_secs(30) }
    }
}
