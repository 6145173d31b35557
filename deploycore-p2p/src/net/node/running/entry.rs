//! The stay of an artifact at a node, and what its tasks report.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use deploycore::model::{Digest, Manifest};
use deploycore::port::swarm::{Error, FetchProgress, FetchSummary, Limits, Priority};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant as Clock;
use tokio_util::sync::CancellationToken;

use super::super::{Command, Guard, Joined};
use crate::core::bitfield::Bitfield;
use crate::net::files::{Open, PieceFile, Stored};

/// An artifact that the node fetches or offers.
#[derive(Debug)]
pub(super) struct Entry {
    /// Tells one stay of an artifact from the next: what a task reports of an earlier one is ignored.
    pub(super) serial: u64,
    pub(super) manifest: Arc<Manifest>,
    pub(super) path: PathBuf,
    pub(super) priority: Priority,
    pub(super) limits: Limits,
    pub(super) open: Open,
    pub(super) file: Option<Arc<dyn PieceFile>>,
    pub(super) started: Clock,
    pub(super) resumed: u64,
    /// Dropped when the fetch has ended.
    pub(super) progress: Option<watch::Sender<FetchProgress>>,
    pub(super) watched: watch::Receiver<FetchProgress>,
    pub(super) waiting: Vec<oneshot::Sender<Result<FetchSummary, Error>>>,
    pub(super) seeding: Vec<oneshot::Sender<Result<(), Error>>>,
    pub(super) guard: Weak<Guard>,
    /// Set when it is complete and durable.
    pub(super) summary: Option<FetchSummary>,
    /// Tasks that use its file.
    pub(super) busy: u32,
    /// Ends tasks that only read, however long they would take.
    pub(super) end: CancellationToken,
    /// Its stay is over once no task uses its file any more.
    pub(super) ending: bool,
    pub(super) leaving: Vec<oneshot::Sender<()>>,
    /// What came while its stay was ending, for the next.
    pub(super) next: Vec<Command>,
    pub(super) checkpointed: (u32, Clock),
    pub(super) checkpointing: bool,
}

/// What a task of the node has done, and with which stay of an artifact.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) digest: Digest,
    pub(super) serial: u64,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Opened(io::Result<Arc<dyn PieceFile>>, oneshot::Sender<Result<Joined, Error>>),
    SeedOpened(io::Result<Arc<dyn PieceFile>>),
    Verified(io::Result<Bitfield>),
    Stored(u32, io::Result<Stored>),
    Checkpointed(u32, io::Result<()>),
    Finished(io::Result<()>),
    /// Another file of an artifact that is here already was verified, and the caller has its answer.
    Answered,
    Abandoned,
}
