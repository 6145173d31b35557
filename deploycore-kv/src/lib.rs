//! Goal-state stores that are not memory: a file for one process, and HTTP for all others.
//!
//! | feature | what | URL |
//! |---|---|---|
//! | `redb` (default) | [`redb::Goals`]: goals in one file with one owner process | `redb://` |
//! | `gateway` | [`gateway::Gateway`]: offers any store over HTTP; [`gateway::GatewayClient`]: the same store from elsewhere | `http://` |

#![warn(missing_docs)]

#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "redb")]
pub mod redb;

#[cfg(feature = "gateway")]
pub use gateway::{Gateway, GatewayClient, GatewaySettings};
#[cfg(feature = "redb")]
pub use redb::Goals as RedbGoals;
