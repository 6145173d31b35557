//! What happened, as `--report` writes it and the summary shows it.

use std::collections::BTreeMap;
use std::fmt;

use deploycore::model::{
    ArtifactName, CommitId, CopyState, Digest, Generation, JobId, JobStatus, MachineName, RegionName,
};
use serde::{Deserialize, Serialize};

/// The whole road of one run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Each build.
    pub builds: Vec<Build>,
    /// Each copy.
    pub replication: Vec<Copy>,
    /// Each deployment, in order.
    pub deployments: Vec<Deployment>,
    /// Each machine at the end.
    pub machines: Vec<Machine>,
}

/// A build.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Build {
    /// The job.
    pub job: JobId,
    /// What was built.
    pub commit: CommitId,
    /// What came out.
    pub artifact: Option<ArtifactName>,
    /// Its hash.
    pub digest: Option<Digest>,
    /// Its bytes.
    pub size: Option<u64>,
    /// How it ended.
    pub status: JobStatus,
    /// Attempts used up.
    pub attempts: u32,
    /// From enqueue to the last claim.
    pub queue_ms: u64,
    /// From the claim to the first byte of output.
    pub build_ms: u64,
    /// From there until it was durable in the main store.
    pub store_ms: u64,
}

/// A copy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copy {
    /// Of what.
    pub artifact: ArtifactName,
    /// Where to.
    pub region: RegionName,
    /// Where it stands.
    pub status: CopyState,
    /// From registration to completion.
    pub ms: u64,
    /// Bytes copied.
    pub bytes: u64,
}

/// A deployment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Deployment {
    /// The goal that was written.
    pub generation: Generation,
    /// `deploy` or `rollback`.
    pub kind: String,
    /// What runs.
    pub artifact: ArtifactName,
    /// Its hash.
    pub digest: Digest,
    /// Machines that run it.
    pub machines: usize,
    /// From the request until the last machine was good.
    pub converged_ms: u64,
    /// Bytes that the machines fetched for it.
    pub bytes_fetched: u64,
    /// Bytes that each region's gate gave out for it, by the artifact's size.
    pub store_read_ratio: BTreeMap<RegionName, f64>,
}

/// A machine at the end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The machine.
    pub machine: MachineName,
    /// Its region.
    pub region: RegionName,
    /// The running service's process.
    pub pid: Option<u32>,
    /// The goal it runs.
    pub generation: Generation,
    /// The bytes it runs.
    pub digest: Digest,
    /// What the service answered, or the start of the digest where it was not asked.
    pub version: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "builds")?;
        for build in &self.builds {
            let size = build.size.map_or_else(String::new, |size| bytesize::ByteSize(size).display().iec().to_string());
            writeln!(
                f,
                "  {}  {}  queued {}  built {}  stored {}  {size}",
                &build.commit.as_str()[..build.commit.as_str().len().min(10)],
                build.status,
                Ms(build.queue_ms),
                Ms(build.build_ms),
                Ms(build.store_ms),
            )?;
        }
        writeln!(f, "replication")?;
        for copy in &self.replication {
            writeln!(f, "  {:<12} {}  {:<9} {}", copy.region, copy.artifact, copy.status, Ms(copy.ms))?;
        }
        writeln!(f, "deployments")?;
        for deployment in &self.deployments {
            let ratios = deployment.store_read_ratio.values().copied();
            writeln!(
                f,
                "  generation {}  {:<8}  {}  {} machines in {}  fetched {}  store read {:.2} x",
                deployment.generation,
                deployment.kind,
                deployment.digest.short(),
                deployment.machines,
                Ms(deployment.converged_ms),
                bytesize::ByteSize(deployment.bytes_fetched).display().iec(),
                ratios.fold(0.0, f64::max),
            )?;
        }
        writeln!(f, "machines")?;
        for machine in &self.machines {
            writeln!(
                f,
                "  {:<12} {:<14} generation {}  {}  version {}",
                machine.region,
                machine.machine,
                machine.generation,
                machine.digest.short(),
                machine.version
            )?;
        }
        Ok(())
    }
}

struct Ms(u64);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.0 < 10_000 { format!("{} ms", self.0) } else { format!("{:.1} s", self.0 as f64 / 1e3) };
        f.pad(&text)
    }
}
