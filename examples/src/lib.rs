//! The reference cluster: every part of deploycore wired into separate processes on one host.
//!
//! The binary `cluster` is a thin entry into [`cluster`]; the small programs beside it show how to embed single parts.

pub mod cluster;
