//! The main job with servers in place of files: PostgreSQL for queue and ledger, etcd for the global goals, S3 for the artifacts.

use std::collections::BTreeSet;

use rustix::process::{Signal, kill_process};
use servers::{etcd, postgres, s3};

use crate::bed::{Bed, wait_for};
use crate::road::assert_rolled_back;

#[test]
fn the_road_goes_on_while_servers_and_roles_are_killed_in_turn() {
    let s3 = s3::S3::start().unwrap();
    let store = s3.create_bucket("artifacts").unwrap();
    let mut postgres = postgres::Postgres::start(&postgres::Options::default()).unwrap();
    let mut etcd = etcd::Etcd::start(&etcd::Options::default().with_members(3)).unwrap();
    let (database, members) = (postgres.url("postgres"), etcd.endpoints().join(",").replace("http://", ""));
    let goals = format!("etcd://{members}/road");
    let servers = ["--database", &database, "--goals", &goals, "--store", &store];
    let bed = Bed::new(&[&servers[..], &["--regions", "3", "--machines", "2"]].concat());
    let mut running = bed.start();
    let kill = |child: &str| kill_process(bed.pid_of(child).expect("it runs"), Signal::KILL).unwrap();
    let generation = || bed.get("services/web")?["goal"]["generation"].as_u64();

    let worker = running.until("a build that runs", || bed.jobs()?.into_iter().find_map(|job| job.running)).worker;
    kill(worker.as_str());
    postgres.kill();
    postgres.start_again().unwrap();
    let first = running.until("the first deployment", generation);
    kill("region-2");
    let leader = etcd.leader().unwrap();
    etcd.kill(leader);
    kill("control");
    let second = running.until("the second deployment", || generation().filter(|now| *now > first));
    etcd.start_again(leader).unwrap();
    postgres.kill();
    postgres.start_again().unwrap();
    running.until("the rollback", || generation().filter(|now| *now > second));
    kill("region-1");
    assert!(running.end().success());

    let report = bed.report();
    assert_rolled_back(&report, 6);
    // One attempt may be lost with its worker, one with the database.
    assert!(report.builds.iter().all(|build| build.attempts <= 3), "{:?}", report.builds);
    let digests: BTreeSet<_> = report.builds.iter().map(|build| build.digest).collect();
    assert_eq!(digests.len(), report.builds.len(), "each build has its own result, and one");
    for file in ["queue.db", "ledger.db", "goals.redb", "store"] {
        assert!(!bed.data().join("main").join(file).exists(), "{file} is not used");
    }
}

#[test]
fn servers_that_are_not_there_are_named() {
    for (option, url, named) in [
        ("--database", "postgres://u:s3cret@127.0.0.1:1/d", "cannot reach the PostgreSQL server at 127.0.0.1:1/d"),
        ("--database", "mysql://u:s3cret@127.0.0.1:1/d", "cannot reach the MariaDB server at 127.0.0.1:1/d"),
        ("--goals", "etcd://u:s3cret@127.0.0.1:1/p", "http://127.0.0.1:1"),
    ] {
        let bed = Bed::new(&[option, url, "--regions", "1", "--machines", "1"]);
        let running = bed.start();
        let log = bed.data().join("logs/control.log");
        let said = wait_for("a word of control", || {
            let log = std::fs::read_to_string(&log).ok()?;
            log.contains(named).then_some(log)
        });
        assert!(!said.contains("s3cret"), "{said}");
        drop(running);
    }
}
