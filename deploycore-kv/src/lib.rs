//! Goal-state stores that are not memory: a file for one process, a cluster of etcd, and HTTP for all others.
//!
//! | feature | what | URL |
//! |---|---|---|
//! | `redb` (default) | [`redb::Goals`]: goals in one file with one owner process | `redb://` |
//! | `etcd` | [`etcd::Goals`]: goals in a cluster of etcd 3.4 or newer | `etcd://`, `etcds://` |
//! | `gateway` | [`gateway::Gateway`]: offers any store over HTTP; [`gateway::GatewayClient`]: the same store from elsewhere | `http://` |
//!
//! [`open_url`] opens the store that a URL names.

#![warn(missing_docs)]

#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(feature = "gateway")]
pub mod gateway;
mod open;
#[cfg(feature = "redb")]
pub mod redb;

#[cfg(feature = "etcd")]
pub use etcd::Goals as EtcdGoals;
#[cfg(feature = "gateway")]
pub use gateway::{Gateway, GatewayClient, GatewaySettings};
pub use open::open_url;
#[cfg(feature = "redb")]
pub use redb::Goals as RedbGoals;
