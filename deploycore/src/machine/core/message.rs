//! What goes into a core and what comes out.

use std::time::Duration;

use super::super::journal::{Build, Journal, Links};
use crate::machine::runner::Instance;
use crate::model::{ArtifactRef, Digest, Goal};
use crate::port::swarm::Priority;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A goal of this service was seen. Old ones may come again.
    Goal(Box<Goal>),
    /// The journal is durable.
    Journaled,
    /// The links are durable.
    Switched,
    /// The process waits.
    Prepared(Instance),
    /// The process was let go.
    Released,
    /// Nothing is left of the process.
    Stopped,
    /// The effect of 2 to 7 under way failed; what it did is not known. It says nothing about the build.
    Failed(String),
    /// The build cannot be started as it is specified.
    Unstartable(String),
    /// The blob is on disk, verified whole, with so many bytes fetched for it.
    Fetched(Digest, u64),
    /// So many bytes of a fetch are on disk.
    Progress(Digest, u64),
    /// The fetch cannot go on. The number, from 0 to 1 and drawn by the shell, says how much of half the delay before the next is let go: machines
    /// that failed together come back at different times.
    FetchFailed(Digest, String, f64),
    /// The blob is not on disk any more: it turned out to be damaged and was removed, or somebody took it away.
    Lost(Digest),
    /// The process answers on its port.
    Ready(Instance),
    /// The process ended.
    Ended(Instance, Option<i32>),
    /// The time of [`Core::poll_timeout`](super::Core::poll_timeout) has come.
    Timeout,
}

/// What to do. Each is answered by an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Replace the journal; answer when it is durable.
    Journal(Box<Journal>),
    /// Make the links name these blobs; answer when that is durable.
    Switch(Links),
    /// Make a process of the build that waits.
    Prepare(Build),
    /// Let the process go.
    Release(Instance),
    /// Stop the process and all that it started.
    Stop(Instance, Duration),
    /// Make sure that the blob is on disk, whole and verified. At most one is under way.
    Fetch(ArtifactRef, Priority),
    /// End the fetch; no answer.
    CancelFetch(Digest),
    /// Say when the process ends, and when it first answers on this path, if there is one.
    Watch(Instance, Option<String>),
}
