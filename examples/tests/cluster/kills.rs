//! SIGKILL at each stage of the road, SIGSTOP past the lease: the main job still ends with 0, and nothing ran twice.

use std::io::Write;
use std::time::Duration;

use deploycore::model::{Digest, Job, JobStatus, ServicePhase, Timestamp};
use rustix::process::{Pid, Signal, kill_process};

use crate::bed::{Bed, Running, repository, send, wait_for};
use crate::road::assert_rolled_back;

/// A stage of the road, recognised from outside by what only this stage shows.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// A job waits.
    Queued,
    /// A worker holds a job and nothing of it is in the store.
    Building,
    /// A worker holds a job and its artifact is on the way into the store.
    Storing,
    /// A job's worker is silent, and the reaper has not rescued it yet.
    Orphaned,
    /// An artifact is in the main store and not in every region.
    Replicating,
    /// A machine fetches the generation.
    Fetching(u64),
    /// Some machines run the generation, others do not yet.
    Spreading(u64),
    /// The service was started for the generation and is not ready yet.
    OnTrial(u64),
    /// The rollback was written.
    RollingBack(u64),
    /// The main job is done.
    AtRest,
}

/// More than a heartbeat, less than the age at which a lease is lost.
const SILENCE: Duration = Duration::from_secs(5);
/// Smaller files of a store are artifacts without padding.
const PADDED: u64 = 1 << 20;

impl Stage {
    fn is_now(self, bed: &Bed) -> bool {
        self.seen(bed).unwrap_or(false)
    }

    fn seen(self, bed: &Bed) -> Option<bool> {
        Some(match self {
            Self::Queued => bed.jobs()?.iter().any(|job| job.status == JobStatus::Queued),
            Self::Building => bed.jobs()?.iter().any(|job| job.running.is_some()) && blobs(bed) == 0,
            Self::Storing => {
                let jobs = bed.jobs()?;
                let stored = jobs.iter().filter(|job| job.artifact.is_some()).count();
                jobs.iter().any(|job| job.running.is_some()) && blobs(bed) > stored
            }
            Self::Orphaned => bed
                .jobs()?
                .iter()
                .filter_map(|job| job.running.as_ref())
                .any(|running| Timestamp::now().duration_since(running.last_heartbeat).unsigned_abs() > SILENCE),
            Self::Replicating => {
                let jobs = bed.jobs()?;
                let mut artifacts = jobs.iter().filter_map(|job| job.artifact.as_ref());
                artifacts.any(|artifact| {
                    let status = bed.get(&format!("artifacts/{}", artifact.name));
                    !status.is_some_and(|status| {
                        status["copies"].as_object().is_some_and(|c| c.values().all(|copy| copy["state"] == "complete"))
                    })
                })
            }
            Self::Fetching(generation) => bed.phases(generation)?.contains(&ServicePhase::Fetching),
            Self::OnTrial(generation) => bed.phases(generation)?.contains(&ServicePhase::Running),
            Self::Spreading(generation) => {
                let phases = bed.phases(generation)?;
                let is_ahead = |phase: &ServicePhase| matches!(phase, ServicePhase::Running | ServicePhase::Good);
                phases.iter().any(is_ahead) && phases.iter().any(|phase| *phase != phases[0])
            }
            Self::RollingBack(generation) => bed.get("services/web")?["goal"]["generation"].as_u64()? >= generation,
            Self::AtRest => bed.log().contains("running until Ctrl-C"),
        })
    }
}

/// Artifacts in the main store, the unfinished included.
fn blobs(bed: &Bed) -> usize {
    let Ok(files) = std::fs::read_dir(bed.data().join("main/store/blobs")) else { return 0 };
    files.flatten().filter(|file| file.metadata().is_ok_and(|file| file.len() >= PADDED)).count()
}

/// Who is struck.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Child(&'static str),
    /// The worker that holds a job, whichever it is; any, when none does.
    Builder,
}

impl Victim {
    fn name(self, bed: &Bed) -> Option<String> {
        match self {
            Self::Child(name) => Some(name.to_owned()),
            Self::Builder => {
                let jobs = bed.jobs()?;
                let holder = jobs.iter().find_map(|job| job.running.as_ref());
                Some(holder.map_or("worker-1".to_owned(), |running| running.worker.to_string()))
            }
        }
    }
}

/// Kills a child in a stage, and waits until it was started again; false when the main job ended and the stage was never seen.
fn strike(bed: &Bed, running: &mut Running<'_>, stage: Stage, victim: Victim) -> bool {
    let found = running.until(&format!("{stage:?}, to kill {victim:?}"), || {
        let over = AtRest.is_now(bed);
        let aim = victim.name(bed).and_then(|name| Some((bed.pid_of(&name)?, name)));
        let seen = stage.is_now(bed);
        match aim {
            Some(aim) if seen => Some(Some(aim)),
            _ if over && !matches!(stage, AtRest) => Some(None),
            _ => None,
        }
    });
    let Some((pid, name)) = found else { return false };
    kill_process(pid, Signal::KILL).unwrap();
    // Past the test harness, so that every report of the tests lists what was struck and when.
    let line = format!("{stage:?}: killed {name} ({})\n", pid.as_raw_nonzero());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    running.until(&format!("the successor of {name}"), || bed.pid_of(&name).filter(|next| *next != pid));
    true
}

/// Each stage is long enough to be seen: an artifact of some size, and machines with links that take two seconds for it.
const SEEN: [&str; 4] = ["--payload", "48MiB", "--link", "24MiB"];
/// A busy machine may still look away for the whole of a stage.
const TRIES: usize = 3;

fn survives(arguments: &[&str], strikes: &[(Stage, Victim)]) {
    let struck = (0..TRIES).any(|_| survives_once(arguments, strikes));
    assert!(struck, "a stage of {strikes:?} was never seen");
}

/// Runs the main job, strikes in order, and expects the usual end, also of what is struck after it. False when a stage was not seen.
fn survives_once(arguments: &[&str], strikes: &[(Stage, Victim)]) -> bool {
    let small = ["--regions", "2", "--machines", "2", "--keep-running"];
    let bed = Bed::new(&[&small, &SEEN[..], arguments].concat());
    let mut running = bed.start();
    for (stage, victim) in strikes {
        if !strike(&bed, &mut running, *stage, *victim) {
            return false;
        }
    }
    running.until("the end of the main job", || Stage::AtRest.is_now(&bed).then_some(()));
    running.until("every machine in good order", || {
        (bed.phases(3)? == [ServicePhase::Good; 4] && bed.machines()?.iter().all(|machine| machine.live)).then_some(())
    });
    send(running.pid(), Signal::INT);
    assert!(running.end().success());
    assert_rolled_back(&bed.report(), 4);
    assert_eq!(bed.descendants(), Vec::<u32>::new());
    true
}

use Stage::{AtRest, Building, Fetching, OnTrial, Orphaned, Queued, Replicating, RollingBack, Spreading, Storing};
use Victim::{Builder, Child};

#[test]
fn kills_on_the_way_to_the_store() {
    survives(
        &[],
        &[
            (Queued, Child("control")),
            (Building, Builder),
            (Orphaned, Child("control")),
            (Storing, Builder),
            (Replicating, Child("region-1")),
            (Replicating, Child("control")),
        ],
    );
}

#[test]
fn kills_on_the_way_to_the_machines() {
    survives(
        &[],
        &[
            (Fetching(1), Child("region-1")),
            (Fetching(1), Child("region-2-m1")),
            (Fetching(2), Child("control")),
            (Fetching(2), Child("region-2")),
            (RollingBack(3), Child("region-1-m1")),
            (AtRest, Child("region-1")),
            (AtRest, Child("region-1-m2")),
            (AtRest, Child("control")),
            (AtRest, Builder),
        ],
    );
}

#[test]
fn kills_while_services_are_switched() {
    survives(
        &["--ready", "alive:2s"],
        &[
            (OnTrial(1), Child("region-1-m1")),
            (OnTrial(1), Child("control")),
            (OnTrial(2), Child("region-2-m2")),
            (Spreading(2), Child("region-2")),
            (RollingBack(3), Child("region-1")),
            (OnTrial(3), Child("region-2-m1")),
            (OnTrial(3), Child("control")),
        ],
    );
}

/// Every kind of child in every stage, one kill a run. It takes a quarter of an hour:
/// `cargo test -p deploycore-examples --test cluster -- --ignored --nocapture`
#[test]
#[ignore = "a quarter of an hour"]
fn every_child_at_every_stage() {
    let victims = [Child("control"), Builder, Child("region-1"), Child("region-1-m1"), Child("region-2-m2")];
    let stages = [Queued, Building, Storing, Replicating, Fetching(1), Fetching(2), RollingBack(3), AtRest];
    for victim in victims {
        for stage in stages {
            survives(&[], &[(stage, victim)]);
        }
        for stage in [OnTrial(1), Spreading(1), OnTrial(2), Spreading(2), OnTrial(3)] {
            survives(&["--ready", "alive:2s"], &[(stage, victim)]);
        }
    }
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
    bed.jobs()?.pop()
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
