//! The main job from end to end, interrupted and gone on with, and the commands to a cluster that stays up.

use std::collections::{BTreeMap, BTreeSet};

use deploycore::model::Generation;
use deploycore_examples::cluster::report::Report;
use rustix::process::Signal;

use crate::bed::{Bed, cluster, send, wait_for};

/// What must hold after the main job with two commits, whatever happened on the way.
pub(crate) fn assert_rolled_back(report: &Report, machines: usize) {
    let [first, second, rollback] = &report.deployments[..] else { panic!("{:?}", report.deployments) };
    assert_ne!(first.digest, second.digest);
    assert_eq!((rollback.kind.as_str(), rollback.digest), ("rollback", first.digest));
    let generations: Vec<_> = report.deployments.iter().map(|deployment| deployment.generation).collect();
    assert_eq!(generations, [Generation(1), Generation(2), Generation(3)], "nothing was deployed twice");
    assert_eq!(report.machines.len(), machines);
    for machine in &report.machines {
        assert_eq!((machine.digest, machine.version.as_str()), (first.digest, "1.0.0"), "{machine:?}");
    }
    let names: BTreeSet<_> = report.machines.iter().map(|machine| &machine.machine).collect();
    assert_eq!(names.len(), machines);
}

/// What programs that read the report rely on.
const REPORT: [(&str, &str); 4] = [
    ("builds", "artifact attempts build_ms commit digest job queue_ms size status store_ms"),
    ("deployments", "artifact bytes_fetched converged_ms digest generation kind machines store_read_ratio"),
    ("machines", "digest generation machine pid region version"),
    ("replication", "artifact bytes ms region status"),
];

fn keys(report: &serde_json::Value) -> Vec<(&str, String)> {
    let keys = |row: &serde_json::Value| row.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let parts: BTreeMap<_, _> = report.as_object().unwrap().iter().collect();
    parts.iter().map(|(part, rows)| (part.as_str(), keys(&rows[0]).into_iter().collect::<Vec<_>>().join(" "))).collect()
}

#[test]
fn two_commits_are_built_deployed_and_rolled_back() {
    let bed = Bed::new(&["--regions", "2", "--machines", "2"]);
    assert!(bed.start().end().success());
    let report = bed.report();
    assert_rolled_back(&report, 4);
    assert_eq!(report.replication.len(), 4);
    assert!(report.deployments.iter().all(|deployment| deployment.machines == 4));
    let raw = bed.raw_report();
    assert_eq!(keys(&raw), REPORT.map(|(part, keys)| (part, keys.to_owned())));
    assert_eq!(report.deployments[2].bytes_fetched, 0, "a rollback to a kept build fetches nothing");
    for deployment in &report.deployments {
        for (region, ratio) in &deployment.store_read_ratio {
            assert!(*ratio <= 1.2, "{region} read {ratio} x of {}", deployment.artifact);
        }
    }
    assert_eq!(bed.descendants(), Vec::<u32>::new(), "nothing is left behind");

    // The same command again finds everything done.
    assert!(bed.start().end().success());
    assert_rolled_back(&bed.report(), 4);
}

#[test]
fn after_a_kill_of_the_parent_everything_ends_and_the_same_command_goes_on() {
    let bed = Bed::new(&["--regions", "1", "--machines", "2"]);
    let mut running = bed.start();
    running.until("the first deployment", || bed.get("services/web"));
    send(running.pid(), Signal::KILL);
    drop(running);
    wait_for("the end of all descendants", || bed.descendants().is_empty().then_some(()));
    assert!(bed.start().end().success());
    assert_rolled_back(&bed.report(), 2);
}

#[test]
fn a_cluster_that_stays_up_takes_commands() {
    let bed = Bed::new(&["--regions", "2", "--machines", "1", "--keep-running"]);
    let mut running = bed.start();
    running.until("the end of the main job", || bed.log().contains("running until Ctrl-C").then_some(()));
    let data = bed.data();
    let ask = |args: &[&str]| {
        let output = cluster().args(args).arg("--data-dir").arg(&data).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    assert!(ask(&["status"]).contains("web generation 3"));
    assert!(ask(&["machines"]).contains("Good"));
    let swarm = ask(&["swarm"]);
    assert!(swarm.contains("1 of 1 machines, 100.0 % of the bytes"), "{swarm}");
    let jobs = ask(&["jobs"]);
    assert_eq!(jobs.matches("SUCCEEDED").count(), 2, "{jobs}");

    // Forward to the newer artifact, back, and further back to a named generation.
    let report = bed.report();
    let newer = report.deployments[1].artifact.to_string();
    let waive = ["--reason", "it burns", "--by", "ann", "--for"];
    let deploy = |region, term| [&["deploy", "web", &newer, "--wait", "--waive", region][..], &waive, &[term]].concat();
    let told = ask(&deploy("region-2", "2h"));
    assert!(told.contains("generation 4") && told.contains("without region-2 until"), "{told}");
    assert!(ask(&["status"]).contains(": it burns, says ann"));
    let history = bed.get("services/web/history").unwrap();
    assert_eq!(history[0]["goal"]["waivers"][0]["region"], "region-2", "{history}");
    assert!(history[1]["goal"].get("waivers").is_none(), "{history}");
    assert!(ask(&["rollback", "web", "--wait"]).contains("generation 5"));
    assert!(ask(&["rollback", "web", "--to", "2", "--wait"]).contains("generation 6"));

    // A commit that was built before is built again: a new job, a new artifact.
    let commit = report.builds[0].commit.to_string();
    assert!(ask(&["build", "--commit", &commit, "--wait"]).contains("deployable"));

    let plan = ask(&["collect", "--older-than", "1d", "--keep", "0"]);
    assert!(plan.contains("0 stay, 0 go") && plan.contains("nothing was changed"), "all are young: {plan}");
    assert!(ask(&["collect", "--delete"]).contains("0 marked"));
    let refused = |args: &[&str]| {
        let refused = cluster().args(args).arg("--data-dir").arg(&data).output().unwrap();
        assert!(!refused.status.success());
        String::from_utf8_lossy(&refused.stderr).into_owned()
    };
    assert!(refused(&["deploy", "web", "web-unknown"]).contains("web-unknown is not in the ledger"));
    assert!(refused(&["collect", "--older-than", "1h"]).contains("older_than is 3600s: 86400s is the least"));
    assert!(refused(&deploy("mars", "2h")).contains("does not require region mars: it requires region-1, region-2"));
    assert!(refused(&deploy("region-2", "25h")).contains("is the latest"));

    send(running.pid(), Signal::INT);
    assert!(running.end().success());
    assert_eq!(bed.descendants(), Vec::<u32>::new(), "Ctrl-C stops every child");
}
