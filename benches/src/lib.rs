//! What the benchmarks share: a runtime, folders that vanish, bytes and values to work on.
//!
//! `cargo bench -p deploycore-benches` runs all; `docs/benchmarks.md` holds the figures.

use std::path::PathBuf;

use bytes::Bytes;
use deploycore::model::{
    ArtifactRef, Digest, Generation, Goal, GoalEpoch, GoalPosition, Labels, MachineReport, NewJob, Origin, RunSpec,
    Selector, ServiceName, ServicePhase, ServiceReport, Timestamp,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A runtime as a host program would have it.
///
/// # Panics
///
/// When the system gives no threads.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads are to be had")
}

/// A folder that vanishes with the value. It lies where `TMPDIR` says: a disk, if the figure shall include syncs.
///
/// # Panics
///
/// When it cannot be made.
pub fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().to_owned();
    (folder, path)
}

/// Incompressible bytes, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

/// A job of a service.
///
/// # Panics
///
/// Never: the names are valid.
pub fn job() -> NewJob {
    NewJob::new("bench".parse().expect("valid"), "0123456789abcdef".parse().expect("valid"))
}

/// The `generation`-th goal of a service.
///
/// # Panics
///
/// When `service` is no valid name.
pub fn goal(service: &str, generation: u64) -> Goal {
    let service: ServiceName = service.parse().expect("valid");
    let digest = Digest::of(&generation.to_le_bytes());
    Goal {
        artifact: ArtifactRef {
            name: format!("{service}-{generation}").parse().expect("valid"),
            digest,
            size: 1 << 30,
        },
        service,
        position: GoalPosition { epoch: GoalEpoch(1), generation: Generation(generation) },
        run: RunSpec::default(),
        selector: Selector::all(),
        origin: Origin::Deploy,
        created_at: Timestamp::UNIX_EPOCH,
        waivers: Vec::new(),
    }
}

/// The report of a machine that runs one service.
///
/// # Panics
///
/// When `machine` is no valid name.
pub fn report(machine: &str) -> MachineReport {
    let goal = goal("service-0", 1);
    let service = ServiceReport {
        service: goal.service,
        goal: goal.position,
        phase: ServicePhase::Good,
        current: Some((goal.position, goal.artifact)),
        pid: Some(1),
        port: Some(80),
        bytes_fetched: 1 << 30,
        message: None,
    };
    MachineReport {
        machine: machine.parse().expect("valid"),
        region: "region".parse().expect("valid"),
        labels: Labels::default(),
        agent_pid: 1,
        services: vec![service],
    }
}
