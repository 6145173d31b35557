//! The main job with servers in place of files: PostgreSQL for queue and ledger, etcd for the global goals.

use servers::{etcd, postgres};

use crate::bed::{Bed, wait_for};
use crate::road::assert_rolled_back;

#[test]
fn the_road_goes_on_while_the_database_and_a_member_of_etcd_are_killed() {
    let mut postgres = postgres::Postgres::start(&postgres::Options::default()).unwrap();
    let mut etcd = etcd::Etcd::start(&etcd::Options::default().with_members(3)).unwrap();
    let (database, members) = (postgres.url("postgres"), etcd.endpoints().join(",").replace("http://", ""));
    let goals = format!("etcd://{members}/road");
    let servers = ["--database", &database, "--goals", &goals];
    let bed = Bed::new(&[&servers[..], &["--regions", "2", "--machines", "2"]].concat());
    let mut running = bed.start();

    running.until("a build that runs", || bed.jobs()?.iter().any(|job| job.running.is_some()).then_some(()));
    postgres.kill();
    postgres.start_again().unwrap();
    running.until("the first deployment", || bed.get("services/web"));
    let leader = etcd.leader().unwrap();
    etcd.kill(leader);
    running.until("the second deployment", || {
        (bed.get("services/web")?["goal"]["generation"].as_u64()? >= 2).then_some(())
    });
    etcd.start_again(leader).unwrap();
    postgres.kill();
    postgres.start_again().unwrap();
    assert!(running.end().success());

    let report = bed.report();
    assert_rolled_back(&report, 4);
    assert!(report.builds.iter().all(|build| build.attempts <= 2), "{:?}", report.builds);
    for file in ["queue.db", "ledger.db", "goals.redb"] {
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
