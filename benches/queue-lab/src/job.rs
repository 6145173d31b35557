//! Jobs without work, and how they end.

use deploycore::model::{ArtifactName, ArtifactRef, Completion, Digest, Job, Lease, NewJob, Timings};

/// A job of a service that nobody runs.
///
/// # Panics
///
/// Never: the names are valid.
pub fn job() -> NewJob {
    NewJob::new("lab".parse().expect("a name"), "0123456789abcdef".parse().expect("a commit"))
}

/// The lease of a claimed job.
///
/// # Panics
///
/// When the job does not run: a claim hands out running jobs.
pub fn lease(job: &Job) -> Lease {
    job.running.as_ref().expect("a claimed job runs").lease
}

/// A success of the lease of a claimed job.
pub fn success(job: &Job) -> Completion {
    success_of(&lease(job))
}

/// A success of this very lease: no other run of the job completes it with the same bytes.
///
/// # Panics
///
/// Never: the name is valid.
pub fn success_of(lease: &Lease) -> Completion {
    let bytes = format!("{}/{}/{}", lease.job, lease.epoch, lease.claim);
    let name = ArtifactName::for_job(&"lab".parse().expect("a name"), lease.job);
    let artifact = ArtifactRef { name, digest: Digest::of(bytes.as_bytes()), size: bytes.len() as u64 };
    Completion::Succeeded { artifact, log: None, timings: Timings { build_ms: 1, store_ms: 1 } }
}
