//! The main job with a repository of the user's own, and what a user does to it on the way.

use std::path::Path;

use deploycore::model::{Digest, Generation};
use deploycore::port::queue::Order;
use deploycore_examples::cluster::fixture;
use rustix::process::Signal;

use crate::bed::{Bed, repository, send, wait_for};

const SMALL: [&str; 6] = ["--regions", "1", "--machines", "2", "--workers", "1"];

fn arguments<'a>(repo: &'a Path, commits: &[&'a str], command: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["--repo", repo.to_str().unwrap(), "--commit"];
    arguments.extend(commits);
    arguments.extend(["--command", command]);
    arguments.extend(SMALL);
    arguments.extend(rest);
    arguments
}

#[test]
fn clusters_side_by_side_run_what_users_build() {
    let folder = tempfile::tempdir().unwrap();
    let (service, script) = (folder.path().join("service"), folder.path().join("script"));
    let commits = fixture::repository(&service).unwrap();
    let commits: Vec<_> = commits.iter().map(AsRef::as_ref).collect();
    let commit = repository(&script);

    // A service that answers over HTTP, padded; a program that runs once; a file that nothing runs.
    let build = "cargo build --release --offline --quiet";
    let http = ["--output", "target/release/web", "--run", "--port {port}", "--ready", "http:/healthz"];
    let http = [&http[..], &["--name", "shop", "--payload", "8MiB"]].concat();
    let http = Bed::new(&arguments(&service, &commits, build, &http));
    let once = r#"printf '#!/bin/sh\ntest "$1" = now\n' > app"#;
    let once = Bed::beside(
        &http,
        &arguments(&script, &[&commit], once, &["--output", "app", "--run", "now", "--ready", "exit"]),
    );
    let kept = Bed::beside(&http, &arguments(&script, &[&commit], "cp file kept", &["--output", "kept"]));

    let running = [http.start(), once.start(), kept.start()];
    for running in running {
        assert!(running.end().success());
    }
    let report = http.report();
    assert_eq!(report.deployments.len(), 3);
    assert_eq!(report.deployments[2].digest, report.deployments[0].digest);
    assert!(report.builds.iter().all(|build| build.size.is_some_and(|size| size > 8 << 20)));
    assert!(report.machines.iter().all(|machine| machine.pid.is_some() && machine.generation == Generation(3)));
    let report = once.report();
    assert_eq!((report.deployments.len(), report.machines.len()), (1, 2));
    let report = kept.report();
    assert!(report.machines.iter().all(|machine| machine.digest == Digest::of(b"content") && machine.pid.is_none()));
}

#[test]
fn an_interrupted_build_costs_no_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let (repo, gates) = (folder.path().join("repo"), folder.path().join("gates"));
    std::fs::create_dir_all(&gates).unwrap();
    let commit = repository(&repo);
    let gates_text = gates.display();
    let command =
        format!("touch '{gates_text}/begun'; until [ -e '{gates_text}/go' ]; do sleep 0.1; done; cp file app");
    let bed = Bed::new(&arguments(&repo, &[&commit], &command, &["--output", "app"]));
    for signal in [Signal::INT, Signal::KILL, Signal::TERM, Signal::KILL] {
        let _ = std::fs::remove_file(gates.join("begun"));
        let mut running = bed.start();
        running.until("the build", || gates.join("begun").exists().then_some(()));
        send(running.pid(), signal);
        wait_for("the end of all descendants", || bed.descendants().is_empty().then_some(()));
        assert!(!running.status().success());
    }
    std::fs::write(gates.join("go"), "").unwrap();
    assert!(bed.start().end().success());
    assert_eq!(bed.report().builds[0].attempts, 1, "the others were given back");
}

#[test]
fn the_same_command_builds_anew_what_failed() {
    let folder = tempfile::tempdir().unwrap();
    let (repo, tool) = (folder.path().join("repo"), folder.path().join("tool"));
    let commit = repository(&repo);
    let command = format!("cp '{}' app", tool.display());
    let bed = Bed::new(&arguments(&repo, &[&commit], &command, &["--output", "app"]));
    assert!(!bed.start().end().success());
    assert!(bed.log().contains("tool"), "{}", bed.log());
    std::fs::write(&tool, "now there").unwrap();
    assert!(bed.start().end().success());
    assert_eq!(bed.report().machines[0].digest, Digest::of(b"now there"));
}

#[test]
fn a_file_says_what_flags_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let commit = repository(&folder.path().join("repo"));
    let file = folder.path().join("cluster.toml");
    // It describes hosts; here all is on this one.
    let text = format!(
        "poll = '200ms'\n[control]\nhost = '10.0.0.10'\nqueue_order = 'fair_share'\n[swarm]\ncertificate = 'a'\nkey = 'b'\nauthority = 'c'\n\
         [regions.eu]\nreplicas = ['eu-1.internal', 'eu-2.internal']\n[services.shop]\n\
         [worker]\nrepository = 'repo'\ncommand = 'cp file kept'\noutput = 'other'\n\
         [local]\ncommits = ['{commit}']\nmachines = 1\nworkers = 1\n"
    );
    std::fs::write(&file, text).unwrap();
    let bed = Bed::new(&["--config", file.to_str().unwrap(), "--machines", "2", "--output", "kept"]);
    assert!(bed.start().end().success());
    let report = bed.report();
    let machines: Vec<_> = report.machines.iter().map(|machine| machine.machine.to_string()).collect();
    assert_eq!(machines, ["eu-m1", "eu-m2"]);
    assert!(report.machines.iter().all(|machine| machine.digest == Digest::of(b"content")));
    assert!(report.builds[0].artifact.as_ref().is_some_and(|name| name.as_str().starts_with("shop-")));
    assert_eq!(bed.queue_order(), Order::FairShare);
    for gateway in ["eu-gateway-1", "eu-gateway-2"] {
        assert!(bed.data().join(format!("logs/{gateway}.log")).exists());
    }
}
