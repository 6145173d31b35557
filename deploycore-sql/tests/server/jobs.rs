//! Jobs for tests of any server, and how to go on with them.

use std::num::NonZeroU32;
use std::time::Duration;

use deploycore::model::{ArtifactName, ArtifactRef, ClaimId, Completion, Digest, Job, Lease, NewJob, Timings};
use deploycore::port::queue::ClaimRequest;

/// Nothing here takes longer unless something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn job() -> NewJob {
    NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap())
        .with_max_attempts(NonZeroU32::new(100).unwrap())
        .with_max_releases(1_000)
}

pub(crate) fn request(limit: usize) -> ClaimRequest {
    ClaimRequest { claim: ClaimId::new(), worker: "worker-1".parse().unwrap(), limit }
}

pub(crate) fn lease(job: &Job) -> Lease {
    job.running.as_ref().expect("it runs").lease
}

pub(crate) fn success(job: &Job) -> Completion {
    let bytes = format!("{}/{}", job.spec.id, job.epoch);
    let name = ArtifactName::for_job(&job.spec.service, job.spec.id);
    let artifact = ArtifactRef { name, digest: Digest::of(bytes.as_bytes()), size: bytes.len() as u64 };
    Completion::Succeeded { artifact, log: None, timings: Timings::default() }
}
