//! The native swarm: moves one big file to every machine of a region while reading the region's store about once.
//!
//! - [`Node`] is a machine's part: it fetches artifacts into files, verifies each piece against the manifest before it is
//!   shared or written, and serves what it has. It implements [`PeerSwarm`](deploycore::port::PeerSwarm).
//! - [`Gate`] is the only door to the region's store: it leases each piece to one node, which reads it and serves it at once.
//! - [`Tracker`] introduces them to each other. It holds soft state only.
//!
//! Start reading at [`core`], where the decisions are made by state machines without I/O; [`net`] puts them on sockets.

#![warn(missing_docs)]

pub mod core;
pub mod net;

pub use net::{Gate, GateSettings, Node, NodeSettings, Security, Timeouts, Tracker, TrackerSettings};
