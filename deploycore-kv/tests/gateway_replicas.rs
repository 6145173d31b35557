//! Two gateways of a region side by side: processes with stores of their own, one of which is killed and loses its disk.
#![cfg(all(feature = "gateway", feature = "redb"))]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use deploycore::deploy::{Mirror, MirrorSettings, ReportBoard};
use deploycore::machine::memory::{MemoryDisk, MemoryRunner, Program};
use deploycore::machine::{Agent, AgentDeps, AgentSettings};
use deploycore::memory;
use deploycore::model::{ArtifactRef, Digest, Goal, KnownMachine, MachineReport, Revision};
use deploycore::port::goals::{Error, Expect, GoalStateStore};
use deploycore::port::{ArtifactStoreExt, BackendError, MachineDirectory, ReportSink};
use deploycore_kv::gateway::{Gateway, GatewayClient, GatewayClientSettings, GatewaySettings};
use deploycore_kv::redb;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

const STORE: &str = "DEPLOYCORE_TEST_GATEWAY_STORE";
const GLOBAL: &str = "DEPLOYCORE_TEST_GATEWAY_GLOBAL";

fn goal(generation: u64, bytes: &[u8]) -> Goal {
    let artifact =
        json!({"name": format!("web-{generation}"), "digest": Digest::of(bytes), "size": bytes.len() as u64});
    serde_json::from_value(json!({
        "service": "web", "epoch": 0, "generation": generation, "artifact": artifact, "run": {}, "selector": {},
        "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z",
    }))
    .unwrap()
}

async fn deploy(goals: &dyn GoalStateStore, goal: &Goal) {
    let stored = goals.get(&goal.service).await.unwrap();
    goals.put(goal, stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision))).await.unwrap();
}

async fn generation(goals: &dyn GoalStateStore) -> Result<u64, Error> {
    Ok(goals.list("").await?.goals.first().map_or(0, |stored| stored.goal.position.generation.0))
}

async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let look = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), look).await.unwrap_or_else(|_| panic!("{what}: it does not come to that"));
}

/// A gateway in this process.
async fn serve(goals: Arc<dyn GoalStateStore>, board: Option<Arc<ReportBoard>>) -> (Url, CancellationToken) {
    let (reports, machines) = (board.clone().map(|it| it as Arc<dyn ReportSink>), board.map(|it| it as _));
    let gateway = Gateway::new(GatewaySettings::default(), goals, None, reports, machines);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move { gateway.serve(listener, stop).await.unwrap() });
    (url, shutdown)
}

fn of_both(urls: [&Url; 2]) -> GatewayClient {
    GatewayClient::of_replicas(urls.map(Clone::clone), GatewayClientSettings::default()).unwrap()
}

/// A replica of a region's gateway: its own file, its own mirror. Started by the tests below.
#[test]
#[ignore = "runs as a child of another test"]
fn child_that_serves() {
    let (Ok(store), Ok(global)) = (std::env::var(STORE), std::env::var(GLOBAL)) else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let goals = Arc::new(redb::Goals::open(store).await.unwrap());
        let global = Arc::new(GatewayClient::new(global.parse().unwrap()).unwrap());
        let mirror = Mirror::new(MirrorSettings::default(), global, goals.clone());
        let (url, shutdown) = serve(goals, None).await;
        println!("\nserves {url}");
        mirror.run(shutdown).await;
    });
}

struct Replica {
    process: Child,
    url: Url,
}

impl Replica {
    fn start(folder: &Path, global: &Url) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_serves", "--exact", "--ignored", "--nocapture"])
            .env(STORE, folder.join("goals.redb"))
            .env(GLOBAL, global.as_str())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let url = lines.find_map(|line| line.strip_prefix("serves ")?.parse().ok());
        Self { process, url: url.expect("the replica did not start") }
    }

    fn client(&self) -> GatewayClient {
        GatewayClient::new(self.url.clone()).unwrap()
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn machines_go_on_with_the_other_gateway_when_one_is_killed_and_it_catches_up_without_its_disk() {
    let global = Arc::new(memory::Goals::new());
    deploy(&*global, &goal(1, b"1")).await;
    let (global_url, _) = serve(global.clone(), None).await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut replicas = [0, 1].map(|number| Replica::start(folders[number].path(), &global_url));
    for replica in &replicas {
        let client = replica.client();
        until("a replica mirrors", || async { generation(&client).await.is_ok_and(|at| at == 1) }).await;
    }
    let machine = of_both([&replicas[0].url, &replicas[1].url]);
    assert_eq!(generation(&machine).await.unwrap(), 1);

    let used = replicas.iter().position(|replica| replica.url == *machine.base()).unwrap();
    replicas[used].kill();
    // A read does not even fail.
    assert_eq!(generation(&machine).await.unwrap(), 1);
    deploy(&*global, &goal(2, b"2")).await;
    until("the other gateway has the next goal", || async { generation(&machine).await.unwrap() == 2 }).await;

    // The killed one comes back with nothing, at another address: the goals are there again, and no older ones.
    std::fs::remove_file(folders[used].path().join("goals.redb")).unwrap();
    replicas[used] = Replica::start(folders[used].path(), &global_url);
    let client = replicas[used].client();
    until("the new replica catches up", || async { generation(&client).await.is_ok_and(|at| at == 2) }).await;
    let machine = of_both([&replicas[0].url, &replicas[1].url]);
    replicas[1 - used].kill();
    assert_eq!(generation(&machine).await.unwrap(), 2);
}

#[tokio::test]
async fn a_gateway_that_is_behind_moves_no_machine_back() {
    let store = memory::Store::new();
    let (ahead, behind) = (Arc::new(memory::Goals::new()), Arc::new(memory::Goals::new()));
    for (number, bytes) in [(1, b"old"), (2, b"new")] {
        store.put_bytes(Bytes::from_static(bytes)).await.unwrap();
        deploy(&*ahead, &goal(number, bytes)).await;
    }
    let ((ahead_url, shutdown), (behind_url, _)) = (serve(ahead, None).await, serve(behind.clone(), None).await);
    // Where a client begins is chance: one that begins at the gateway that is ahead is found soon.
    let begun = std::iter::repeat_with(|| of_both([&ahead_url, &behind_url])).take(1_000);
    let region = Arc::new(begun.into_iter().find(|client| *client.base() == ahead_url).unwrap());
    deploy(&*behind, &goal(1, b"old")).await;

    let disk = MemoryDisk::new("/m1", 1 << 30);
    let runner = MemoryRunner::new(|_| Program { answers_after: Some(Duration::ZERO), ends_after: None });
    let swarm = memory::SwarmRegion::with_files(Arc::new(store.clone()), Arc::new(disk.clone()));
    let mut settings = AgentSettings::new("m1".parse().unwrap(), "r1".parse().unwrap());
    settings.rhythm.poll = Duration::from_millis(50);
    let deps = AgentDeps {
        goals: region.clone(),
        manifests: Arc::new(store),
        swarm: Arc::new(swarm.join()),
        runner: Arc::new(runner),
        reports: Arc::new(Nowhere),
        disk: Arc::new(disk),
    };
    let agent = Arc::new(Agent::new(settings, deps));
    let running = agent.clone();
    let _task = AbortOnDropHandle::new(tokio::spawn(async move { running.run(CancellationToken::new()).await }));
    let status = agent.status();
    let runs = |bytes: &[u8]| {
        let services = status.borrow().services.clone();
        let current = services.first().and_then(|service| service.current.clone());
        current.is_some_and(|(_, ArtifactRef { digest, .. })| digest == Digest::of(bytes))
    };
    until("the machine runs the goal", || async { runs(b"new") }).await;

    shutdown.cancel();
    until("the machine asks the gateway that is behind", || async { *region.base() == behind_url }).await;
    assert_eq!(generation(&*region).await.unwrap(), 1);
    // So many polls see the old goal.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(runs(b"new"));
    deploy(&*behind, &goal(3, b"old")).await;
    until("a rollback, which is newer, reaches it", || async { runs(b"old") }).await;
}

#[derive(Debug)]
struct Nowhere;

#[async_trait]
impl ReportSink for Nowhere {
    async fn report(&self, _: &MachineReport) -> Result<(), BackendError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_revision_of_one_gateway_is_compacted_at_another_and_a_list_goes_on() {
    let (one, other) = (Arc::new(memory::Goals::new()), Arc::new(memory::Goals::new()));
    // The other counts further, and has the goal at a revision that the one has passed.
    deploy(&*other, &goal(1, b"1")).await;
    deploy(&*one, &goal(1, b"1")).await;
    deploy(&*one, &goal(2, b"2")).await;
    let (first, second) = (serve(one, None).await, serve(other.clone(), None).await);
    let client = of_both([&first.0, &second.0]);
    let seen = client.list("").await.unwrap().revision;
    assert!(client.changes(seen).await.unwrap().goals.is_empty());
    let (stopped, left) = if *client.base() == first.0 { (first, second) } else { (second, first) };
    stopped.1.cancel();
    // A question about a revision is for the one that gave it.
    until("the first gateway is gone", || async { client.changes(seen).await.is_err() }).await;
    until("the other is asked", || async { *client.base() == left.0 }).await;
    assert!(matches!(client.changes(seen).await, Err(Error::Compacted { .. })), "{:?}", client.changes(seen).await);
    let now = client.list("").await.unwrap().revision;
    assert_eq!(client.changes(now).await.unwrap().revision, now);
    assert!(client.changes(Revision(0)).await.is_ok());
}

fn report(machine: &str, pid: u32) -> MachineReport {
    let json = json!({"machine": machine, "region": "r1", "labels": {}, "agent_pid": pid, "services": []});
    serde_json::from_value(json).unwrap()
}

async fn all_machines(directory: &impl MachineDirectory, limit: usize) -> (Vec<KnownMachine>, usize) {
    let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = directory.machines(after.as_ref(), limit).await.unwrap();
        assert!(page.machines.len() <= limit);
        (pages, after) = (pages + 1, page.next);
        all.extend(page.machines);
        if after.is_none() {
            return (all, pages);
        }
    }
}

#[tokio::test]
async fn machines_that_report_to_different_gateways_are_one_list() {
    let boards = [Arc::new(ReportBoard::default()), Arc::new(ReportBoard::default())];
    let goals = || Arc::new(memory::Goals::new());
    let (first, second) =
        (serve(goals(), Some(boards[0].clone())).await, serve(goals(), Some(boards[1].clone())).await);
    boards[0].report(&report("a", 1)).await.unwrap();
    boards[0].report(&report("moved", 1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    boards[1].report(&report("moved", 2)).await.unwrap();
    boards[1].report(&report("b", 1)).await.unwrap();
    let client = of_both([&first.0, &second.0]);
    let known = client.machines(None, 9).await.unwrap();
    let known: Vec<_> = known.machines.iter().map(|one| (one.report.machine.as_str(), one.report.agent_pid)).collect();
    assert_eq!(known, [("a", 1), ("b", 1), ("moved", 2)]);
    // One counts for itself; together no machine counts twice.
    let one = GatewayClient::new(first.0.clone()).unwrap();
    for (asked, count) in [(&one, 2), (&client, 3)] {
        let tally = asked.tally(&goal(1, b"1")).await.unwrap();
        assert_eq!((tally.behind, tally.live()), (count, count));
    }

    second.1.cancel();
    until("the other is gone", || async { client.machines(None, 9).await.unwrap().machines.len() == 2 }).await;
    // Who reported there alone may be live all the same.
    assert!(client.machines(None, 9).await.unwrap().settling);
    first.1.cancel();
    until("nobody is left", || async { client.machines(None, 9).await.is_err() }).await;
}

#[tokio::test]
async fn a_long_list_comes_by_pages_from_all_gateways() {
    let boards = [Arc::new(ReportBoard::default()), Arc::new(ReportBoard::default())];
    let goals = || Arc::new(memory::Goals::new());
    let (first, second) =
        (serve(goals(), Some(boards[0].clone())).await, serve(goals(), Some(boards[1].clone())).await);
    let mut all = Vec::new();
    for n in 0..50 {
        let name = format!("m{n:02}");
        // The first has the head of the list and few others; some have moved to the second.
        if n < 20 || n % 10 == 0 {
            boards[0].report(&report(&name, 1)).await.unwrap();
        }
        if n >= 20 || n % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            boards[1].report(&report(&name, 2)).await.unwrap();
        }
        all.push((name, if n >= 20 || n % 3 == 0 { 2 } else { 1 }));
    }
    let client = of_both([&first.0, &second.0]);
    for limit in [1, 7, 50, 51] {
        let (found, pages) = all_machines(&client, limit).await;
        let found: Vec<_> = found.iter().map(|one| (one.report.machine.to_string(), one.report.agent_pid)).collect();
        assert_eq!(found, all, "by {limit}");
        assert!(pages >= 50_usize.div_ceil(limit), "{pages} pages of {limit}");
    }
    let (mut standings, mut after) = (Vec::new(), None);
    loop {
        let page = client.standings(&goal(1, b"1"), after.as_ref(), 9).await.unwrap();
        standings.extend(page.machines.into_iter().map(|machine| machine.key.machine.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(standings, all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    assert_eq!(client.tally(&goal(1, b"1")).await.unwrap().behind, 50);
}

#[tokio::test]
async fn a_page_of_long_reports_ends_before_it_is_too_long_to_be_read() {
    let board = Arc::new(ReportBoard::default());
    let gateway = serve(Arc::new(memory::Goals::new()), Some(board.clone())).await;
    for n in 0..20 {
        let message = "x".repeat(1 << 20);
        let json = json!({"machine": format!("m{n:02}"), "region": "r1", "labels": {}, "agent_pid": n,
            "services": [{"service": "web", "goal": {"epoch": 0, "generation": 1}, "phase": "fetching", "current": null,
                "pid": null, "port": null, "bytes_fetched": 0, "message": message}]});
        board.report(&serde_json::from_value(json).unwrap()).await.unwrap();
    }
    let settings = GatewayClientSettings { max_answer: ByteSize::mib(17), ..GatewayClientSettings::default() };
    let client = GatewayClient::with_settings(gateway.0.clone(), settings).unwrap();
    let (found, pages) = all_machines(&client, 1_000).await;
    assert_eq!((found.len(), pages), (20, 2));
    assert!(found.iter().zip(0..).all(|(machine, pid)| machine.report.agent_pid == pid));
}
