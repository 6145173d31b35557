//! The state machines of the swarm: no clock, no randomness, no I/O of their own.
//!
//! [`peer::Peer`], [`tracker::Tracker`] and [`gate::Gate`] are driven alike, by the tokio shell ([`net`](crate::net)) and by
//! simulators:
//!
//! - `handle(input, now)` takes what happened: a connection, a message, a finished write. `now` never falls.
//! - `poll_output()` gives what to do next, until `None`. An output that must be durable before others may follow is data too,
//!   with an input that acknowledges it.
//! - `poll_timeout()` says when to call `handle` with a `Timeout` if nothing happens before.
//!
//! Randomness comes from a seeded generator that is passed in; maps are ordered. The same inputs give the same outputs.

#![allow(clippy::missing_panics_doc, reason = "what is expected holds by construction, as each message says")]

pub mod bitfield;
pub mod bound;
pub mod message;
pub mod shape;
pub mod time;
pub mod wire;

pub mod gate;
mod gates;
pub mod peer;
pub mod picker;
pub mod tracker;
