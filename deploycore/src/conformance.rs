//! The conformance kit: named cases per trait that any backend must pass.
//!
//! A case is a function that takes a fresh backend and panics when the backend breaks the contract. `deploycore::queue_conformance!` and its
//! siblings make one test of each case; the function `cases` of a module lists them for a runner of one's own. Over [`handles`] the
//! same cases ask what several processes on one database would see.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a case fails")]
#![allow(clippy::wildcard_imports, reason = "the cases of a kit share one vocabulary of steps")]

mod case;
pub mod goals;
pub mod handles;
pub mod ledger;
pub mod queue;
pub mod store;
pub mod swarm;

pub use case::{CASE_LIMIT, Case};
