//! A disk and a runner in memory: a machine for tests and simulations, in tokio's time, which may be virtual.
//!
//! Each outlives the agents that use it, so that an agent can be dropped at any await and the next one finds what it left.

mod disk;
mod runner;

pub use disk::MemoryDisk;
pub use runner::{MemoryRunner, Program};
