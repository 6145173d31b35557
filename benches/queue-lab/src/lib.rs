//! What the drivers of the queue share: a throw-away server or the URL of one, the CPU time that it costs, histories of calls and their
//! checker.
//!
//! `queue-bench` measures a queue, `queue-torture` kills its clients and proves from their records that it kept its contract.
//! `docs/benchmarks.md` holds the figures.

pub mod check;
pub mod cpu;
pub mod database;
pub mod figures;
pub mod history;
pub mod job;
pub mod judge;
pub mod torture;
