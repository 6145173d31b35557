//! What an agent remembers of a service: one small file, replaced whole.
//!
//! The journal is written, synced, before what it announces is done, so that after a crash it names the state to go on to. The
//! links and the processes say how far that went.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::runner::Instance;
use crate::model::{ArtifactRef, Digest, Goal, GoalPosition, RunSpec, ServiceName};

/// The version of the format that this code writes and reads.
pub const VERSION: u32 = 1;
/// How many rejections are kept; older ones are below every goal that may still come.
const MAX_REJECTED: usize = 16;

/// An artifact with the way to run it: what a service may be switched to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// The goal that it comes from.
    #[serde(flatten)]
    pub position: GoalPosition,
    /// What.
    pub artifact: ArtifactRef,
    /// How.
    pub run: RunSpec,
}

impl Build {
    /// What a goal asks for.
    pub fn of(goal: &Goal) -> Self {
        Self { position: goal.position, artifact: goal.artifact.clone(), run: goal.run.clone() }
    }

    /// Whether a process of one is as good as a process of the other.
    pub fn runs_like(&self, other: &Self) -> bool {
        self.artifact.digest == other.artifact.digest && self.run == other.run
    }
}

/// What `current` shall name and what shall run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// What.
    pub build: Build,
    /// Whether it has still to become ready. While on trial it is reverted when it fails; afterwards it is started again.
    pub trial: bool,
}

/// A process, written down before it runs the first instruction of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// What it runs.
    pub build: Build,
    /// Which process.
    pub instance: Instance,
}

/// A build that was reverted. It is not tried again for the same goal; a new generation may name the same artifact again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The goal.
    pub position: GoalPosition,
    /// Why.
    pub reason: String,
}

/// What the links of a service name; `None` for a link that is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links {
    /// What runs, or is about to.
    pub current: Option<Digest>,
    /// What a revert would go back to.
    pub previous: Option<Digest>,
}

/// What an agent remembers of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// [`VERSION`].
    pub version: u32,
    /// The service.
    pub service: ServiceName,
    /// The newest goal taken up. Its position never falls.
    pub goal: Option<Goal>,
    /// What `current` shall name; `None` when nothing shall run.
    pub target: Option<Target>,
    /// Builds that were ready, newest first: the first is what a revert goes back to. Their blobs are kept.
    pub proven: Vec<Build>,
    /// Builds that were reverted, newest first.
    pub rejected: Vec<Rejection>,
    /// The process that was started last; it may have ended since.
    pub process: Option<Launched>,
    /// Bytes fetched for the goal.
    pub bytes_fetched: u64,
    /// Whether the service ever had a target here: a machine that was never selected has nothing to report.
    pub served: bool,
}

impl Journal {
    /// Of a service that was never heard of.
    pub fn new(service: ServiceName) -> Self {
        Self {
            version: VERSION,
            service,
            goal: None,
            target: None,
            proven: Vec::new(),
            rejected: Vec::new(),
            process: None,
            bytes_fetched: 0,
            served: false,
        }
    }

    /// Why the goal at this position was reverted, if it was.
    pub fn rejection(&self, position: GoalPosition) -> Option<&Rejection> {
        self.rejected.iter().find(|rejection| rejection.position == position)
    }

    /// What the links shall name.
    pub fn links(&self) -> Links {
        let current = self.target.as_ref().map(|target| target.build.artifact.digest);
        let mut proven = self.proven.iter().map(|build| build.artifact.digest);
        Links { current, previous: current.and_then(|current| proven.find(|digest| *digest != current)) }
    }

    /// The blobs without which this journal cannot be followed.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let target = self.target.as_ref().map(|target| target.build.artifact.digest);
        target.into_iter().chain(self.proven.iter().map(|build| build.artifact.digest)).collect()
    }

    pub(super) fn reject(&mut self, position: GoalPosition, reason: String) {
        self.rejected.retain(|rejection| rejection.position != position);
        self.rejected.insert(0, Rejection { position, reason });
        self.rejected.truncate(MAX_REJECTED);
    }

    /// Notes that the target became ready; keeps `previous` builds besides it.
    pub(super) fn prove(&mut self, previous: usize) {
        let Some(target) = &mut self.target else { return };
        target.trial = false;
        let build = target.build.clone();
        self.proven.retain(|other| !other.runs_like(&build));
        self.proven.insert(0, build);
        // Two builds may share a blob: what is counted is what can be gone back to.
        self.proven.truncate(previous + 1);
    }
}
