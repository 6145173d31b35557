//! SIGKILL at each stage of the road, SIGSTOP past the lease: the main job still ends with 0, and nothing ran twice.

use deploycore::model::{Digest, Job, JobStatus};
use deploycore::port::queue::JobPage;
use rustix::process::{Pid, Signal, kill_process};

use crate::bed::{Bed, Running, repository, send, wait_for};
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

/// The first attempt at a build waits for the file `go`, the next ones do not; what comes out tells which it was.
const BUILD: &str =
    "if mkdir first 2>/dev/null; then who=zombie; until [ -e go ]; do sleep 0.1; done; else who=successor; fi";
const LEAVES: &str = "printf '#!/bin/sh\\n# %s\\n' $who > \"$OLDPWD/app\"";
const SUCCESSORS: &[u8] = b"#!/bin/sh\n# successor\n";

#[test]
fn a_worker_that_stood_still_past_its_lease_does_not_complete_the_run_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let (repo, gates) = (folder.path().join("repo"), folder.path().join("gates"));
    std::fs::create_dir_all(&gates).unwrap();
    let commit = repository(&repo);
    let command = format!("cd '{}'\n{BUILD}\n{LEAVES}", gates.display());
    let arguments = ["--repo", repo.to_str().unwrap(), "--commit", &commit, "--command", &command, "--output", "app"];
    let small =
        ["--regions", "1", "--machines", "1", "--workers", "2", "--run", "", "--ready", "exit", "--keep-running"];
    let bed = Bed::new(&[&arguments[..], &small[..]].concat());
    let mut running = bed.start();

    running.until("the first attempt", || gates.join("first").exists().then_some(()));
    let before = running.until("the lease", || only_job(&bed)?.running);
    let (zombie, log) = (before.worker.to_string(), bed.data().join(format!("logs/{}.log", before.worker)));
    let stopped = stop_between_writes(&bed, &zombie);
    let after = running.until("the other worker's run", || only_job(&bed).filter(|job| job.status.is_finished()));
    assert_eq!((after.status, after.attempts, after.rescues), (JobStatus::Succeeded, 2, 1));
    assert!(after.epoch > before.lease.epoch);

    // Now it wakes up, and its build comes to its end.
    kill_process(stopped, Signal::CONT).unwrap();
    std::fs::write(gates.join("go"), "").unwrap();
    running.until("the refusal", || std::fs::read_to_string(&log).ok()?.contains("the lease is lost").then_some(()));
    running.until("the end of the main job", || bed.log().contains("running until Ctrl-C").then_some(()));
    assert_eq!(only_job(&bed).as_ref(), Some(&after), "a finished job does not change");
    send(running.pid(), Signal::INT);
    assert!(running.end().success());
    let successors = Digest::of(SUCCESSORS);
    assert_eq!(bed.report().builds[0].digest, Some(successors));
    assert_eq!(bed.report().machines[0].digest, successors);
}

fn only_job(bed: &Bed) -> Option<Job> {
    serde_json::from_value::<JobPage>(bed.get("jobs")?).ok()?.jobs.pop()
}

/// Stops a process at a moment when it is not writing to the queue: an SQLite file that a stopped process has locked is locked for
/// all, until it goes on.
fn stop_between_writes(bed: &Bed, child: &str) -> Pid {
    let pid = bed.pid_of(child).unwrap();
    wait_for("a stop between two writes", || {
        kill_process(pid, Signal::STOP).unwrap();
        if bed.can_write_to_the_queue() {
            return Some(pid);
        }
        kill_process(pid, Signal::CONT).unwrap();
        None
    })
}
