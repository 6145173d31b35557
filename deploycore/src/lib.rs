//! Build a commit once and put the resulting binary on every machine.
//!
//! This crate holds the nouns ([`model`]), the five traits that a backend implements ([`port`]), the services that run on the
//! traits ([`build`], [`store`], [`deploy`], [`machine`]), memory backends ([`memory`]) that are also the reference for all
//! others, and a kit that checks any backend against the contract (`conformance`, behind the feature of that name).
//!
//! Data flows one way:
//!
//! ```text
//! commit ─► JobQueue ─► Worker + Builder ─► ArtifactStore (main) ─► Replicator ─► ArtifactStore (region)
//!                                                                       │
//!        goal (global) ◄── Deployer ◄── ReplicationLedger: complete everywhere = deployable
//!             │
//!           Mirror ─► goal (region) ─► Agent ◄─► PeerSwarm ─► verify, switch, run, report
//! ```
//!
//! Each service is a reconciler: it reads state, computes what is missing, does it, and can be killed at any instruction and
//! started again. The order of the modules below is the order to read them in.

#![warn(missing_docs)]

pub mod model;
pub mod port;

pub mod pace;
pub mod tls;

pub mod build;
pub mod store;

pub mod deploy;
pub mod machine;

pub mod memory;

#[cfg(feature = "conformance")]
pub mod conformance;
