//! What names an artifact from the job to the machine.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ArtifactName, Digest, Epoch, JobId};

/// An artifact: its name, what its bytes hash to, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// Unique per job.
    pub name: ArtifactName,
    /// BLAKE3 of the bytes. Two artifacts may share one.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// The log of one attempt at a job, in the main artifact store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogName {
    /// The job.
    pub job: JobId,
    /// The epoch of the attempt.
    pub epoch: Epoch,
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.epoch)
    }
}
