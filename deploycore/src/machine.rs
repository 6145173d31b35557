//! On the machine: the agent, its disk and the runner of processes.
//!
//! The agent makes reality match the goals of its region. What it decides is in [`core`]: one state machine per service, with no
//! clock, no randomness and no I/O. What it does is behind three seams: [`Disk`] (blobs, links, journals), [`Runner`]
//! (processes) and [`PeerSwarm`](crate::port::PeerSwarm) (bytes). [`Agent`] is the shell that carries effects to them and
//! answers back.

pub mod core;
pub mod disk;
pub mod journal;
pub mod memory;
pub mod runner;

pub mod agent;
#[cfg(feature = "process")]
pub mod process;

pub use self::agent::{Agent, AgentDeps, AgentSettings, Rhythm};
pub use self::core::{Core, CoreSettings};
pub use self::disk::Disk;
#[cfg(feature = "process")]
pub use self::disk::{LocalDisk, LocalDiskSettings};
pub use self::journal::Journal;
#[cfg(feature = "process")]
pub use self::process::{ProcessRunner, ProcessRunnerSettings, journaled_processes, kill_group};
pub use self::runner::{Instance, Runner};
