//! The reference cluster: every part of deploycore wired into separate processes, on one host or on many.
//!
//! The binary `cluster` is a thin entry into [`cluster`], `swarm-node` one into [`swarm_node`]; the small programs beside them show
//! how to embed single parts.

pub mod cluster;
pub mod files;
mod signals;
pub mod swarm_node;

/// The examples in the README and the guides are compiled and run with the other tests.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../README.md")]
    mod readme {}
    #[doc = include_str!("../../docs/embedding.md")]
    mod embedding {}
    #[doc = include_str!("../../docs/custom-worker.md")]
    mod custom_worker {}
    #[doc = include_str!("../../docs/custom-backend.md")]
    mod custom_backend {}
    #[doc = include_str!("../../docs/stores.md")]
    mod stores {}
}
