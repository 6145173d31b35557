//! SIGKILL at each stage of the road, SIGSTOP past the lease: the main job still ends with 0, and nothing ran twice.

use deploycore::model::JobStatus;
use rustix::process::{Signal, kill_process};

use crate::bed::{Bed, Running};
use crate::road::assert_rolled_back;

/// A stage of the road, recognised from outside.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Queued,
    Building,
    Replicating,
    Fetching(u64),
    Converging(u64),
    AtRest(u64),
}

impl Stage {
    fn seen(self, bed: &Bed) -> Option<()> {
        let seen = match self {
            Self::Queued => !bed.get("jobs")?["jobs"].as_array()?.is_empty(),
            Self::Building => bed.get("jobs")?["jobs"].as_array()?.iter().any(|job| job["status"] == "RUNNING"),
            Self::Replicating => {
                bed.get("jobs")?["jobs"].as_array()?.iter().any(|job| job["status"] == JobStatus::Succeeded.as_str())
            }
            Self::Fetching(generation) => generation_of(bed)? >= generation,
            Self::Converging(generation) => generation_of(bed)? >= generation && !converged(bed)?.is_empty(),
            Self::AtRest(generation) => {
                let service = bed.get("services/web")?;
                generation_of(bed)? >= generation && service["convergence"]["behind"].as_array()?.is_empty()
            }
        };
        seen.then_some(())
    }
}

fn generation_of(bed: &Bed) -> Option<u64> {
    bed.get("services/web")?["goal"]["generation"].as_u64()
}

fn converged(bed: &Bed) -> Option<Vec<serde_json::Value>> {
    bed.get("services/web")?["convergence"]["converged"].as_array().cloned()
}

fn strike(bed: &Bed, running: &mut Running<'_>, stage: Stage, child: &str, signal: Signal) {
    running.until(&format!("{stage:?}"), || stage.seen(bed));
    let pid = running.until(&format!("the process of {child}"), || bed.pid_of(child));
    eprintln!("{stage:?}: {signal:?} to {child} ({})", pid.as_raw_nonzero());
    kill_process(pid, signal).ok();
}

/// Runs the main job, strikes in order, and expects the usual end.
fn survives(strikes: &[(Stage, &str)]) {
    let bed = Bed::new(&["--regions", "2", "--machines", "2"]);
    let mut running = bed.start();
    for (stage, child) in strikes {
        strike(&bed, &mut running, *stage, child, Signal::KILL);
    }
    assert!(running.end().success());
    assert_rolled_back(&bed.report(), 4);
    assert_eq!(bed.descendants(), Vec::<u32>::new());
}

#[test]
fn kills_of_worker_and_control_plane_on_the_way_to_the_store() {
    survives(&[
        (Stage::Queued, "control"),
        (Stage::Building, "worker-1"),
        (Stage::Building, "worker-2"),
        (Stage::Replicating, "region-1"),
        (Stage::Replicating, "control"),
    ]);
}

#[test]
fn kills_of_region_agent_and_control_plane_on_the_way_to_the_machines() {
    survives(&[
        (Stage::Fetching(1), "region-1"),
        (Stage::Fetching(1), "region-2-m1"),
        (Stage::Converging(1), "region-1-m2"),
        (Stage::Fetching(2), "control"),
        (Stage::Fetching(2), "region-2-m2"),
        (Stage::Converging(2), "region-2"),
        (Stage::Fetching(3), "region-1-m1"),
        (Stage::AtRest(3), "region-1"),
    ]);
}

#[test]
fn a_worker_that_stood_still_past_its_lease_does_not_complete_the_run_of_another() {
    let bed = Bed::new(&["--regions", "1", "--machines", "1", "--workers", "2"]);
    let mut running = bed.start();
    strike(&bed, &mut running, Stage::Building, "worker-1", Signal::STOP);
    let stopped = bed.pid_of("worker-1").unwrap();
    // Its job, if it held one, is rescued and built by the other; then the zombie wakes up.
    running.until("both builds", || {
        let jobs = bed.get("jobs")?;
        let jobs = jobs["jobs"].as_array()?;
        jobs.iter().all(|job| job["status"] == "SUCCEEDED").then_some(())
    });
    kill_process(stopped, Signal::CONT).unwrap();
    assert!(running.end().success());
    assert_rolled_back(&bed.report(), 1);
}
