//! The files that are shipped for operators: the example of a configuration, and the units of systemd.

use std::path::{Path, PathBuf};
use std::process::Command;

use deploycore_examples::cluster::config;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn the_example_of_a_configuration_is_one() {
    let config = config::read(&shipped("cluster.toml")).unwrap();
    assert!(!config.is_one_host());
    assert_eq!(config.problems(), Vec::<String>::new());
}

/// Every key that a comment shows is one, with the default that the comment tells.
#[test]
fn its_comments_tell_the_defaults() {
    let text = std::fs::read_to_string(shipped("cluster.toml")).unwrap();
    let is_key =
        |line: &str| line.starts_with("# [") || line.split_once(" = ").is_some_and(|(key, _)| !key[2..].contains(' '));
    let bare = |line: &str| line.strip_prefix("# ").filter(|_| is_key(line)).unwrap_or(line).to_owned();
    let all: Vec<_> = text.lines().map(bare).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.toml");
    std::fs::write(&path, all.join("\n")).unwrap();
    let with = config::read(&path).unwrap();
    let without = config::read(&shipped("cluster.toml")).unwrap();
    assert_eq!((with.state, with.poll), (without.state, without.poll));
    assert_eq!(
        (with.control.api_port, with.control.goals_port),
        (without.control.api_port, without.control.goals_port)
    );
    assert_eq!((with.control.keep_jobs, with.stores.keep_logs), (without.control.keep_jobs, without.stores.keep_logs));
    assert_eq!((with.worker.heartbeat, with.worker.lost_after), (without.worker.heartbeat, without.worker.lost_after));
    assert_eq!((with.local.machines, with.local.workers, with.local.time_limit), (4, 2, without.local.time_limit));
    assert_eq!(with.agent.listen, Some(without.agent.listening(false)));
}

#[test]
fn systemd_takes_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("systemd-analyze is not there: the units are not verified");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for role in ["control", "worker", "region", "agent"] {
        let name = format!("deploycore-{role}.service");
        let unit = std::fs::read_to_string(shipped("systemd").join(&name)).unwrap();
        assert!(unit.contains(&format!("ExecStart=/usr/local/bin/cluster role {role}\n")));
        let path = folder.path().join(name);
        std::fs::write(&path, unit.replace("/usr/local/bin/cluster", env!("CARGO_BIN_EXE_cluster"))).unwrap();
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // Of this unit only: what else the host has is not ours.
        let about: Vec<_> = said.lines().filter(|line| line.contains("deploycore")).collect();
        assert!(output.status.success() && about.is_empty(), "{said}");
    }
}
