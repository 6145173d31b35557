//! The native swarm: moves one big file to every machine of a region while reading the region's store about once.
//!
//! - [`Node`] is a machine's part: it fetches artifacts into files, verifies each piece against the manifest before it is
//!   shared or written, and serves what it has. It implements [`PeerSwarm`](deploycore::port::PeerSwarm).
//! - [`Gate`] is the only door to the region's store: it leases each piece to one node, which reads it and serves it at once.
//! - [`Tracker`] introduces them to each other. It holds soft state only.
//!
//! Start reading at [`core`], where the decisions are made by state machines without I/O; [`net`] puts them on sockets.
//!
//! A region in one process, over TCP on loopback:
//!
//! ```
//! use std::sync::Arc;
//!
//! use deploycore::model::RegionName;
//! use deploycore::port::swarm::{FetchRequest, Limits, Priority};
//! use deploycore::port::{ArtifactStoreExt, PeerSwarm};
//! use deploycore_p2p::{Gate, GateSettings, Node, NodeSettings, Security, Tracker, TrackerSettings};
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (region, folder) = (RegionName::new("eu")?, tempfile::tempdir()?);
//! let store = Arc::new(deploycore::memory::Store::new());
//! let manifest = Arc::new(store.put_bytes(vec![7; 3 << 20].into()).await?);
//!
//! let tracker = Tracker::bind(TrackerSettings::new("tracker", region.clone(), Security::PlainTcp)).await?;
//! let settings = GateSettings::new("gate", region.clone(), folder.path().join("counts"), Security::PlainTcp)
//!     .with_tracker(tracker.local_addr());
//! let gate = Gate::bind(settings, store).await?;
//! let settings = NodeSettings::new("m1", region, Security::PlainTcp).with_tracker(tracker.local_addr());
//! let node = Node::bind(settings).await?;
//!
//! let destination = folder.path().join("web");
//! let (priority, limits) = (Priority::Normal, Limits::default());
//! let fetch = async {
//!     let request = FetchRequest { manifest: Arc::clone(&manifest), destination, priority, limits };
//!     node.fetch(request).await?.done.await
//! };
//! let never = CancellationToken::new();
//! let summary = tokio::select! {
//!     summary = fetch => summary?,
//!     () = tracker.run(never.clone()) => unreachable!(),
//!     () = gate.run(never.clone()) => unreachable!(),
//!     () = node.run(never.clone()) => unreachable!(),
//! };
//! assert_eq!(summary.from_store, 3 << 20);
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

pub mod core;
pub mod net;
#[cfg(feature = "sim")]
pub mod sim;

#[cfg(feature = "tls")]
pub use net::MutualTls;
pub use net::{Account, Gate, GateSettings, Node, NodeSettings, Security, Timeouts, Tracker, TrackerSettings};
