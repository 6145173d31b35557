//! Roles that are started apart, from one file, on PostgreSQL, etcd and S3; and each mistake told on one line.

use deploycore::model::{CommitId, Digest, Generation, KnownMachine, ServicePhase};
use deploycore_examples::cluster::api::{BuildAnswer, ServiceStatus, Status};
use deploycore_examples::cluster::fixture;

use crate::bed::{fetch, repository, turn, wait_for};
use crate::hosts::{Hosts, Urls, servers};

const WORKERS: [&str; 2] = ["worker-1", "worker-2"];
const REGIONS: [&str; 3] = ["eu-1", "eu-2", "us-1"];
const DEPLOYED: &str = "deploycore_deployer_goals_total{kind=\"deploy\"}";
const MACHINES: [&str; 3] = ["eu-m1", "eu-m2", "us-m1"];

/// A repository of a program in two versions, and how it is built.
fn versions(folder: &std::path::Path) -> ([CommitId; 2], String) {
    let first = repository(folder);
    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"];
        assert!(fixture::git().args(identity).args(arguments).current_dir(folder).status().unwrap().success());
    };
    std::fs::write(folder.join("file"), "other content").unwrap();
    git(&["commit", "--quiet", "--all", "--message", "two"]);
    let output = fixture::git().args(["rev-parse", "HEAD"]).current_dir(folder).output().unwrap();
    let second = String::from_utf8(output.stdout).unwrap();
    let build = r##"{ echo "#!/bin/sh"; echo "# $(cat file)"; echo "exec sleep 1000"; } > app"##;
    let build = format!("repository = '{}'\ncommand = '''{build}'''\noutput = 'app'", folder.display());
    ([first, second.trim().to_owned()].map(|commit| CommitId::new(commit).unwrap()), build)
}

fn machines(hosts: &Hosts) -> Option<Vec<KnownMachine>> {
    hosts.json(&["machines"])
}

/// The digest and the process of the service on each machine, once all are good at a generation.
fn all_good(hosts: &Hosts, generation: u64) -> Vec<(String, Digest, Option<u32>)> {
    wait_for(&format!("generation {generation} on every machine"), || {
        let machines = machines(hosts)?;
        let services =
            machines.iter().flat_map(|machine| machine.report.services.iter().map(move |service| (machine, service)));
        let good = services.filter(|(machine, service)| {
            let is_there = service.goal.generation == Generation(generation) && service.phase == ServicePhase::Good;
            machine.live && is_there
        });
        let mut good: Vec<_> = good
            .filter_map(|(machine, service)| {
                let (_, artifact) = service.current.as_ref()?;
                Some((machine.report.machine.to_string(), artifact.digest, service.pid))
            })
            .collect();
        good.sort();
        (good.len() == MACHINES.len()).then_some(good)
    })
}

fn digests(good: &[(String, Digest, Option<u32>)]) -> Vec<Digest> {
    let mut digests: Vec<_> = good.iter().map(|(_, digest, _)| *digest).collect();
    digests.dedup();
    digests
}

fn build(hosts: &Hosts, commit: &CommitId) -> BuildAnswer {
    hosts.json(&["build", "--commit", commit.as_str()]).expect("the build is enqueued")
}

/// Also when the control plane was just started: it is asked again.
fn deploy(hosts: &Hosts, artifact: &str) {
    wait_for("a deployable artifact", || {
        hosts.run("control", &["deploy", "web", artifact]).status.success().then_some(())
    });
}

#[test]
fn roles_apart_build_deploy_and_roll_back_while_each_is_killed() {
    let _turn = turn();
    let database = servers().postgres.create_database().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ([first, second], build_keys) = versions(&folder.path().join("repo"));
    let mut hosts = Hosts::new(&Urls::new(&database, "road"), &build_keys);

    let checked = hosts.ask(&["check", "--role", "control"]);
    assert!(checked.contains("ok: [queue] url: no tables yet"), "{checked}");
    hosts.start("control");
    for host in WORKERS.iter().chain(&REGIONS).chain(&MACHINES) {
        hosts.start(host);
    }
    let one = build(&hosts, &first);
    deploy(&hosts, one.artifact.as_str());
    let before = all_good(&hosts, 1);
    let [old] = digests(&before)[..] else { panic!("{before:?}") };

    // Each role in turn; what the others do goes on.
    hosts.kill("control");
    hosts.kill("worker-1");
    hosts.start("control");
    // It looks at once.
    let waits = |series| wait_for(series, || metric(&hosts, series));
    assert_eq!(waits("deploycore_queue_jobs{status=\"SUCCEEDED\"}"), "1");
    assert_eq!(waits("deploycore_queue_oldest_queued_seconds"), "0");
    assert_eq!(waits("deploycore_replication_copies{region=\"us\",state=\"completed\"}"), "1");
    assert_eq!(metric(&hosts, DEPLOYED), None);
    let two = build(&hosts, &second);
    hosts.kill("eu-1");
    deploy(&hosts, two.artifact.as_str());
    let after = all_good(&hosts, 2);
    let [new] = digests(&after)[..] else { panic!("{after:?}") };
    assert_ne!(old, new);
    assert_eq!(metric(&hosts, DEPLOYED).as_deref(), Some("1"));
    let status: Status = hosts.json(&["status"]).unwrap();
    let silent: Vec<_> = status.regions.values().flat_map(|region| &region.silent).collect();
    assert_eq!(silent.len(), 1, "{status:?}");
    hosts.start("eu-1");
    hosts.start("worker-1");
    hosts.kill("worker-2");
    hosts.kill("us-1");
    hosts.start("us-1");

    // The service goes on without its agent, and the next agent takes it over.
    hosts.kill("eu-m1");
    let (_, _, pid) = after[0].clone();
    let pid = pid.expect("it runs");
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    hosts.start("eu-m1");
    assert_eq!(all_good(&hosts, 2), after, "nothing was started anew");

    hosts.ask(&["rollback", "web"]);
    assert_eq!(digests(&all_good(&hosts, 3)), [old]);
    let service: ServiceStatus = wait_for("the service", || {
        let status: Status = hosts.json(&["status"])?;
        status.services.into_iter().next()
    });
    assert_eq!(service.goal.position.generation, Generation(3));

    for (host, arguments) in [
        ("control", &["check"][..]),
        ("control", &["check", "--role", "control"]),
        ("worker-1", &["check", "--role", "worker"]),
        ("eu-2", &["check", "--role", "region", "--region", "eu", "--name", "eu-2"]),
        ("us-m1", &["check", "--role", "agent", "--region", "us", "--name", "us-m1"]),
    ] {
        let output = hosts.run(host, arguments);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
        assert!(said.lines().count() >= 3 && said.lines().all(|line| line.starts_with("ok: ")), "{said}");
    }
    // No machine has what opens a database or a store.
    assert!(!hosts.host("us-m1").join("secret").exists());
}

/// What control says of a series, given as Prometheus writes it.
fn metric(hosts: &Hosts, series: &str) -> Option<String> {
    let text = fetch(&format!("http://{}/metrics", hosts.metrics))?;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map(str::to_owned)
}

/// What `check` says of a file: one line for the fault, and no password.
fn fault(hosts: &Hosts, arguments: &[&str], code: i32) -> String {
    let host = if arguments.contains(&"region") { "eu-1" } else { "control" };
    let output = hosts.run(host, &[&["check"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("error: ") && !said.contains("s3cret"), "{said}");
    said
}

#[test]
fn each_mistake_is_one_line_that_names_the_key_and_what_to_do() {
    let database = servers().postgres.create_database().unwrap();
    let urls = Urls::new(&database, "mistakes");
    let folder = tempfile::tempdir().unwrap();
    let (_, build) = versions(&folder.path().join("repo"));
    let with = |change: &dyn Fn(&mut Urls)| {
        let mut urls = urls.clone();
        change(&mut urls);
        Hosts::new(&urls, &build)
    };
    let port = servers().postgres.port();

    let hosts = with(&|_| {});
    std::fs::write(hosts.host("control").join("secret/queue"), "s3cret").unwrap();
    let said = fault(&hosts, &[], 1);
    let place = format!("127.0.0.1:{port}/{}", database.name());
    assert!(
        said.contains(&format!("[queue] url: the PostgreSQL server at {place} refuses user \"deploycore\": look at")),
        "{said}"
    );
    // The role says the same, and ends.
    let output = hosts.run("control", &["role", "control"]);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: [queue] url: the PostgreSQL server at") && !log.contains("s3cret"), "{log}");
    assert_eq!(output.status.code(), Some(1));

    let said =
        fault(&with(&|urls| urls.queue = "postgres://deploycore@127.0.0.1:1/d".into()), &["--role", "worker"], 1);
    assert!(
        said.contains("[queue] url: cannot reach the PostgreSQL server at 127.0.0.1:1/d: look at its address"),
        "{said}"
    );
    let said = fault(&with(&|urls| urls.goals = urls.goals.replace("deploy@", "other@")), &["--role", "control"], 1);
    assert!(said.contains("[goals] url: ") && said.contains("refused the user \"other\""), "{said}");
    let said = fault(&with(&|urls| urls.eu = urls.eu.replace("artifacts-eu", "no-such-bucket")), &[], 1);
    assert!(
        said.contains("[regions.eu] store: ") && said.contains("s3://no-such-bucket/mistakes: there is no such bucket"),
        "{said}"
    );
    let said = fault(&with(&|_| {}), &["--role", "region", "--region", "eu", "--name", "eu-1"], 1);
    assert!(
        said.contains("[control] host: the global goals at http://127.")
            && said.contains("start the role control there"),
        "{said}"
    );

    // Nothing was tried of a file that cannot work.
    let said = fault(&with(&|urls| urls.queue = "sqlite:///var/q.db".into()), &[], 2);
    assert!(
        said.contains("[queue] url is sqlite, which lives on one host") && said.contains("postgres://USER@HOST"),
        "{said}"
    );
    let said = fault(&with(&|urls| urls.goals = "etcd://u:s3cret@h:1/p".into()), &[], 2);
    assert!(said.contains("[goals] url holds a password"), "{said}");

    // Tables of a program of the future.
    let sql = "CREATE SCHEMA deploycore; CREATE TABLE deploycore.migrations (version bigint); \
               INSERT INTO deploycore.migrations VALUES (99)";
    let psql = servers().postgres.program("psql", database.name()).args(["-q", "-c", sql]).output().unwrap();
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
    let said = fault(&with(&|_| {}), &["--role", "control"], 1);
    assert!(
        said.contains(&format!("[queue] url: {place} has schema version 99")) && said.contains("upgrade the program"),
        "{said}"
    );
}
