//! The lab itself, with the star of a web server: root, `ip`, `tc`, `nginx` and `curl` are needed.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_mins(1);

fn lab(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swarm-lab"));
    command.args(["--tools", "star", "--fetchers", "2", "--dir"]).arg(dir).args(more);
    command.stdout(Stdio::null());
    command
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn namespaces(pid: u32) -> usize {
    let prefix = format!("swarm-lab-{pid}-");
    let entries = Path::new("/run/netns").read_dir().into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
}

fn entries(dir: &Path) -> usize {
    dir.read_dir().unwrap().count()
}

/// Programs that have a file below the folder in their command line.
fn programs(dir: &Path) -> usize {
    let dir = dir.to_str().unwrap();
    let all = Path::new("/proc").read_dir().unwrap().flatten();
    all.filter(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(dir)
    })
    .count()
}

/// A lab in the middle of a run that would take minutes.
fn at_work(dir: &Path) -> Child {
    let child = lab(dir, &["--rate", "1mbit", "--size", "20MiB"]).spawn().unwrap();
    until("a fetch", || programs(dir) >= 4);
    assert_eq!((namespaces(child.id()), entries(dir)), (4, 1));
    child
}

#[test]
#[ignore = "needs root and the star's programs"]
fn a_run_measures_what_it_should_and_leaves_nothing() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let json = out.path().join("out.json");
    let mut command = lab(dir.path(), &["--rate", "20mbit", "--size", "4MiB", "--json", json.to_str().unwrap()]);
    let mut child = command.spawn().unwrap();
    assert!(child.wait().unwrap().success());
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let figure = |name: &str| told["runs"][0][name].as_f64().unwrap();
    // Two copies over the store's link, headers included: a link that is not shaped, or a burst that is not counted, falls out.
    assert!((2.05..2.6).contains(&figure("ratio")), "{told}");
    assert!((2.05..2.3).contains(&figure("store_copies")), "{told}");
    assert_eq!((namespaces(child.id()), entries(dir.path()), programs(dir.path())), (0, 0, 0));
}

#[test]
#[ignore = "needs root and the star's programs"]
fn a_lab_that_is_told_to_end_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = at_work(dir.path());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    until("the end", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!((namespaces(child.id()), entries(dir.path()), programs(dir.path())), (0, 0, 0));
}

#[test]
#[ignore = "needs root and the star's programs"]
fn the_next_lab_removes_what_a_killed_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut killed = at_work(dir.path());
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!((namespaces(killed.id()), entries(dir.path())), (4, 1));
    assert!(lab(dir.path(), &["--rate", "20mbit", "--size", "64KiB"]).status().unwrap().success());
    assert_eq!((namespaces(killed.id()), entries(dir.path()), programs(dir.path())), (0, 0, 0));
}
