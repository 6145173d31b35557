//! The nouns of the design: plain values, validated where they are made, with no I/O.

mod artifact;
mod digest;
mod goal;
mod ids;
mod job;
mod machine;
mod manifest;
mod replication;
mod tally;
mod time;
mod tombstone;
mod waiver;

pub use artifact::{ArtifactRef, LogName};
pub use digest::{Digest, ParseDigestError};
pub use goal::{Generation, Goal, GoalEpoch, GoalPosition, Origin, Port, Readiness, Revision, RunSpec, Selector};
pub use ids::{
    ArtifactName, ClaimId, CommitId, ConcurrencyKey, DedupKey, InvalidName, JobId, MachineName, PinHolder, RegionName,
    ServiceName, WorkerName,
};
pub use job::{
    Attempt, AttemptOutcome, Completion, Epoch, Failure, FailureKind, Job, JobStatus, Lease, NewJob, OlderJobs, Retry,
    RunningLease, Timings,
};
pub use machine::{
    KnownMachine, Labels, LastReport, MachineKey, MachinePage, MachineReport, OfMachine, ParseLastReportError,
    ServicePhase, ServiceReport,
};
pub use manifest::{
    InvalidManifest, MAX_ARTIFACT_SIZE, MAX_PIECE_SIZE, MIN_PIECE_SIZE, Manifest, ManifestHasher, PieceCheck,
    piece_size_for,
};
pub use replication::figures::{FiguresCounter, FiguresRequest, ReplicationFigures};
pub use replication::{
    ArtifactStatus, CopyLease, CopyPriority, CopyState, CopyStatus, CopyTask, NewArtifact, UnknownPriority,
};
pub use tally::{MachineStanding, Standing, Tally};
pub use time::{Timestamp, elapsed, friendly, friendly_option, later};
pub use tombstone::{DigestTombstone, Tombstone, TombstoneStage};
pub use waiver::Waiver;
