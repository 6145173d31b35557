//! What the fuzz targets do with their input: bytes as they may come from anybody who reaches a port.
//!
//! A function per target that panics when a rule is broken. `cargo fuzz` calls them with inputs of its own, and
//! `deploycore-p2p/tests/seeds.rs` with the seeds and with what is near them.

pub mod frame;
pub mod gate;
pub mod node;
pub mod script;
pub mod tracker;
