//! The agent with real processes and a real disk; only the region is in memory.

#![cfg(feature = "process")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::machine::disk::Error as DiskError;
use deploycore::machine::{
    Agent, AgentDeps, AgentSettings, CoreSettings, Instance, LocalDisk, LocalDiskSettings, ProcessRunner,
    ProcessRunnerSettings, Runner, agent::Rhythm, journaled_processes, kill_group,
};
use deploycore::memory::{Goals, Store, SwarmRegion};
use deploycore::model::{
    ArtifactName, ArtifactRef, Generation, Goal, GoalEpoch, GoalPosition, Labels, MachineName, MachineReport, Origin,
    Port, Readiness, RegionName, RunSpec, Selector, ServiceName, ServicePhase, ServiceReport,
};
use deploycore::pace::Backoff;
use deploycore::port::goals::Expect;
use deploycore::port::{ArtifactStoreExt, BackendError, GoalStateStore, ReportSink};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Far above what any wait takes; a wait that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct NoSink;

#[async_trait]
impl ReportSink for NoSink {
    async fn report(&self, _: &MachineReport) -> Result<(), BackendError> {
        Ok(())
    }
}

/// A region with one machine.
struct World {
    folder: tempfile::TempDir,
    store: Store,
    swarm: SwarmRegion,
    goals: Goals,
    written: u64,
}

impl World {
    fn new() -> Self {
        let store = Store::new();
        let swarm = SwarmRegion::new(Arc::new(store.clone()));
        Self { folder: tempfile::tempdir().unwrap(), store, swarm, goals: Goals::new(), written: 0 }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("machine")
    }

    async fn put(&self, script: &str) -> ArtifactRef {
        let manifest = self.store.put_bytes(Bytes::from(format!("#!/bin/sh\n{script}\n"))).await.unwrap();
        let name = ArtifactName::new(format!("web-{}", manifest.digest().short())).unwrap();
        ArtifactRef { name, digest: manifest.digest(), size: manifest.size() }
    }

    /// Writes the next goal and gives its position.
    async fn deploy(&mut self, artifact: &ArtifactRef, run: &RunSpec) -> GoalPosition {
        self.deploy_to(artifact, run, Selector::all()).await
    }

    async fn deploy_to(&mut self, artifact: &ArtifactRef, run: &RunSpec, selector: Selector) -> GoalPosition {
        self.written += 1;
        let position = GoalPosition { epoch: GoalEpoch(1), generation: Generation(self.written) };
        let goal = Goal {
            service: service(),
            position,
            artifact: artifact.clone(),
            run: run.clone(),
            selector,
            origin: Origin::Deploy,
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            waivers: Vec::new(),
        };
        let stored = self.goals.get(&service()).await.unwrap();
        let expect = stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
        self.goals.put(&goal, expect).await.unwrap();
        position
    }

    /// The data folder; the tasks of an agent that was just aborted may hold it for a moment.
    fn disk(&self) -> LocalDisk {
        let begun = std::time::Instant::now();
        loop {
            match LocalDisk::open(self.data(), LocalDiskSettings::default()) {
                Err(DiskError::InUse { .. }) if begun.elapsed() < PATIENCE => std::thread::yield_now(),
                other => return other.unwrap(),
            }
        }
    }

    fn start(&self) -> Machine {
        let backoff = Backoff { initial: Duration::from_millis(20), max: Duration::from_millis(200) };
        let rhythm =
            Rhythm { poll: Duration::from_millis(100), probe: Duration::from_millis(20), backoff, ..Rhythm::default() };
        let core = CoreSettings { restart: backoff, retry: backoff, ..CoreSettings::default() };
        let labels = Labels(BTreeMap::from([("zone".to_owned(), "a".to_owned())]));
        let settings = AgentSettings::new(MachineName::new("m1").unwrap(), RegionName::new("r1").unwrap())
            .with_rhythm(rhythm)
            .with_core(core)
            .with_labels(labels);
        let runner = Arc::new(ProcessRunner::new(ProcessRunnerSettings::default()).unwrap());
        let deps = AgentDeps {
            goals: Arc::new(self.goals.clone()),
            manifests: Arc::new(self.store.clone()),
            swarm: Arc::new(self.swarm.join()),
            runner: Arc::clone(&runner) as Arc<dyn Runner>,
            reports: Arc::new(NoSink),
            disk: Arc::new(self.disk()),
        };
        let agent = Agent::new(settings, deps);
        let (status, shutdown) = (agent.status(), CancellationToken::new());
        let token = shutdown.clone();
        let task = tokio::spawn(async move { agent.run(token).await });
        Machine { status, shutdown, task, data: self.data() }
    }
}

/// A running agent. What it leaves running is killed with the test.
struct Machine {
    status: watch::Receiver<MachineReport>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), DiskError>>,
    data: PathBuf,
}

impl Machine {
    async fn until(&mut self, what: &str, check: impl Fn(&ServiceReport) -> bool) -> ServiceReport {
        let seen = self.status.wait_for(|report| report.services.first().is_some_and(&check));
        if let Ok(report) = tokio::time::timeout(PATIENCE, seen).await {
            return report.expect("the agent runs").services[0].clone();
        }
        panic!("never {what}: {:#?}", self.status.borrow().services)
    }

    async fn until_good(&mut self, position: GoalPosition) -> ServiceReport {
        self.until(&format!("good at {position}"), |s| s.phase == ServicePhase::Good && s.goal == position).await
    }

    /// Ends the agent without a word to the services.
    async fn crash(self) {
        self.task.abort();
        let _ = (&mut { self }.task).await;
    }

    async fn shut_down(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.data.join("services/web/log")).unwrap_or_default()
    }
}

/// Kills what a test leaves running, also when it fails.
struct Cleanup(PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for instance in journaled_processes(&self.0).unwrap_or_default() {
            let _ = kill_group(&instance);
        }
    }
}

fn service() -> ServiceName {
    ServiceName::new("web").unwrap()
}

fn alive(span: Duration) -> RunSpec {
    RunSpec { readiness: Readiness::Alive(span), stop_grace: Duration::from_millis(500), ..RunSpec::default() }
}

fn http() -> RunSpec {
    RunSpec {
        args: vec!["--port".to_owned(), "{port}".to_owned()],
        port: Port::Free,
        readiness: Readiness::Http("/ready".to_owned()),
        ready_timeout: Duration::from_secs(20),
        stop_grace: Duration::from_millis(500),
        ..RunSpec::default()
    }
}

/// A script that becomes [`http_service`] of this test program.
fn http_script(version: &str) -> String {
    let program = std::env::current_exe().unwrap();
    format!("echo \"start {version} $*\"\nVERSION={version} exec {} --exact http_service --ignored", program.display())
}

/// Not a test: the service that the HTTP tests deploy.
#[test]
#[ignore = "run as a service by the other tests"]
fn http_service() {
    let (Ok(port), Ok(version)) = (std::env::var("PORT"), std::env::var("VERSION")) else { return };
    let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let status = if version == "broken" { "500 Broken" } else { "200 OK" };
        let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{version}", version.len());
    }
}

fn ask(port: u16) -> String {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.rsplit("\r\n").next().unwrap().to_owned()
}

fn current(data: &Path) -> String {
    std::fs::read_link(data.join("services/web/current")).unwrap().file_name().unwrap().to_string_lossy().into_owned()
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolls_forward_back_without_a_fetch_and_reverts_what_does_not_answer() {
    let mut world = World::new();
    let _cleanup = Cleanup(world.data());
    let (one, two) = (world.put(&http_script("one")).await, world.put(&http_script("two")).await);
    let broken = world.put(&http_script("broken")).await;
    let mut machine = world.start();

    let first = world.deploy(&one, &http()).await;
    let report = machine.until_good(first).await;
    assert_eq!(ask(report.port.unwrap()), "one");
    assert_eq!(report.bytes_fetched, one.size);
    assert_eq!(report.current, Some((first, one.clone())));
    assert_eq!(current(&world.data()), one.digest.to_string());
    assert!(machine.log().contains(&format!("start one --port {}", report.port.unwrap())), "{}", machine.log());
    let old = report.pid.unwrap();

    let second = world.deploy(&two, &http()).await;
    let report = machine.until_good(second).await;
    assert_eq!(ask(report.port.unwrap()), "two");
    assert!(!is_running(old), "the old process is gone");

    let back = world.deploy(&one, &http()).await;
    let report = machine.until_good(back).await;
    assert_eq!(ask(report.port.unwrap()), "one");
    assert_eq!(report.bytes_fetched, 0, "a kept build is not fetched");

    let run = RunSpec { ready_timeout: Duration::from_millis(700), ..http() };
    let bad = world.deploy(&broken, &run).await;
    let reverted = |s: &ServiceReport| s.phase == ServicePhase::Reverted && s.pid.is_some() && s.goal == bad;
    let report = machine.until("reverted", |s| reverted(s) && s.current == Some((back, one.clone()))).await;
    assert!(report.message.clone().unwrap().contains("not ready"), "{report:?}");
    assert_eq!(current(&world.data()), one.digest.to_string());

    // The same goal is not tried again, not even by the next agent.
    machine.crash().await;
    let mut machine = world.start();
    let report = machine.until("reverted still", |s| reverted(s)).await;
    assert_eq!(report.current, Some((back, one.clone())));
    // A new generation of the same artifact is.
    let again = world.deploy(&broken, &run).await;
    machine.until("tried again", |s| s.goal == again && s.phase == ServicePhase::Reverted).await;
    machine.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_takes_the_running_service_over() {
    let mut world = World::new();
    let _cleanup = Cleanup(world.data());
    let script = world.put("echo begun; while :; do sleep 1; done").await;
    let mut machine = world.start();
    let position = world.deploy(&script, &alive(Duration::from_millis(100))).await;
    let pid = machine.until_good(position).await.pid.unwrap();
    for graceful in [false, true] {
        if graceful {
            machine.shut_down().await;
        } else {
            machine.crash().await;
        }
        assert!(is_running(pid));
        machine = world.start();
        let report = machine.until_good(position).await;
        assert_eq!(report.pid, Some(pid), "the same process");
        assert_eq!(machine.log().matches("begun").count(), 1);
    }
    // What the new agent did not start it still misses when it ends.
    let instances = journaled_processes(&world.data()).unwrap();
    assert_eq!(instances.iter().map(|i| i.pid).collect::<Vec<_>>(), [pid]);
    assert!(kill_group(&instances[0]).unwrap());
    let report = machine.until("started again", |s| s.pid.is_some_and(|other| other != pid)).await;
    assert!(is_running(report.pid.unwrap()) && !is_running(pid));
    assert!(!kill_group(&instances[0]).unwrap(), "the name of a dead process names no other");

    // Another zone: the service is retired, with its children.
    let elsewhere = Selector(BTreeMap::from([("zone".to_owned(), "b".to_owned())]));
    world.deploy_to(&script, &alive(Duration::from_millis(100)), elsewhere).await;
    machine.until("retired", |s| s.phase == ServicePhase::Retired && s.current.is_none()).await;
    assert!(!is_running(report.pid.unwrap()));
    machine.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_run_once_must_end_with_zero() {
    let mut world = World::new();
    let _cleanup = Cleanup(world.data());
    let run = RunSpec { readiness: Readiness::Exit, args: vec!["hello".to_owned()], ..RunSpec::default() };
    let (well, badly) = (world.put("echo \"well $1 $HOME\"").await, world.put("echo badly; exit 3").await);
    let mut machine = world.start();
    let first = world.deploy(&well, &run).await;
    let report = machine.until_good(first).await;
    assert_eq!(report.pid, None);
    let log = machine.log();
    assert!(log.contains("well hello") && log.contains("services/web/work"), "{log}");

    let second = world.deploy(&badly, &run).await;
    let report = machine.until("reverted", |s| s.goal == second && s.phase == ServicePhase::Reverted).await;
    assert!(report.message.unwrap().contains("exit code 3"));
    assert_eq!(machine.log().matches("badly").count(), 3, "it was given its attempts");
    machine.until("back", |s| s.current == Some((first, well.clone()))).await;

    let killed = world.put("echo killed; kill -KILL $$").await;
    let third = world.deploy(&killed, &run).await;
    let report = machine.until("reverted", |s| s.goal == third && s.phase == ServicePhase::Reverted).await;
    assert!(report.message.unwrap().contains("exit code 137"));
    assert_eq!(machine.log().matches("killed").count(), 3, "a signal is an end as any other");

    // Nothing is started for bytes that are only wanted on disk.
    let fourth = world.deploy(&badly, &RunSpec::default()).await;
    machine.until_good(fourth).await;
    assert_eq!(current(&world.data()), badly.digest.to_string());
    assert_eq!(machine.log().matches("badly").count(), 3);
    machine.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_is_clean_and_the_log_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let settings = serde_json::from_str(r#"{"max_log": "1KiB"}"#).unwrap();
    let runner = ProcessRunner::new(settings).unwrap();
    let env = [("GREETING", "good day"), ("a.b", "dotted"), ("PWD", "/mine"), ("DEPLOYCORE_INSTANCE", "mine")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
    // The last argument becomes a variable of its own unless something on the way expands or splits it.
    let run = RunSpec { env: env.into(), args: vec!["ARG=a $HOME *".to_owned()], ..RunSpec::default() };
    let service = service();
    let launch = deploycore::machine::runner::Launch {
        service,
        executable: "/usr/bin/env".into(),
        folder: folder.path().to_owned(),
        run,
    };
    let instance = runner.prepare(&launch).await.unwrap();
    assert!(runner.is_alive(&instance).await, "it waits");
    assert_eq!(std::fs::read_to_string(folder.path().join("log")).unwrap(), "", "and has not begun");
    runner.release(&instance).await.unwrap();
    assert_eq!(runner.ended(&instance).await, Some(0));
    runner.stop(&instance, Duration::ZERO).await.unwrap();
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    let (own, mut lines): (Vec<_>, Vec<_>) = log.lines().partition(|line| line.starts_with("DEPLOYCORE_INSTANCE="));
    assert_eq!(own.len(), 1, "it is marked, and not as it says itself");
    assert!(own[0].contains(&instance.boot), "{own:?}");
    lines.sort_unstable();
    let home = format!("HOME={}", folder.path().join("work").display());
    let path = "PATH=/usr/local/bin:/usr/bin:/bin";
    assert_eq!(lines, ["ARG=a $HOME *", "GREETING=good day", &home, path, "PWD=/mine", "a.b=dotted"]);

    std::fs::write(folder.path().join("log"), vec![b'x'; 3000]).unwrap();
    runner.tend(folder.path()).await;
    assert_eq!(std::fs::metadata(folder.path().join("log")).unwrap().len(), 0);
    assert_eq!(std::fs::metadata(folder.path().join("log.1")).unwrap().len(), 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_looked_at_by_several_at_once_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let runner = ProcessRunner::new(serde_json::from_str(r#"{"max_log": "1MiB"}"#).unwrap()).unwrap();
    for _ in 0..20 {
        std::fs::write(folder.path().join("log"), vec![b'x'; 2 << 20]).unwrap();
        futures::future::join_all((0..4).map(|_| runner.tend(folder.path()))).await;
        assert_eq!(std::fs::metadata(folder.path().join("log")).unwrap().len(), 0);
        assert_eq!(std::fs::metadata(folder.path().join("log.1")).unwrap().len(), 1 << 20);
    }
}

#[tokio::test]
async fn a_log_that_cannot_be_copied_is_cut_and_the_older_one_makes_room_for_the_newer() {
    let folder = tempfile::tempdir().unwrap();
    let runner = ProcessRunner::new(serde_json::from_str(r#"{"max_log": "1KiB"}"#).unwrap()).unwrap();
    let [log, aside, older] = ["log", "log.1.new", "log.1"].map(|name| folder.path().join(name));
    std::fs::write(&older, "older").unwrap();

    // The first copy finds a full disk, the second has room.
    std::fs::write(&log, vec![b'x'; 3000]).unwrap();
    std::os::unix::fs::symlink("/dev/full", &aside).unwrap();
    runner.tend(folder.path()).await;
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    assert_eq!(std::fs::read(&older).unwrap(), [b'x'; 1024]);
    assert!(!aside.exists());

    // No copy can be made.
    std::fs::write(&log, vec![b'y'; 3000]).unwrap();
    std::fs::create_dir(&aside).unwrap();
    runner.tend(folder.path()).await;
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    assert_eq!(std::fs::read(&older).unwrap(), [b'x'; 1024]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_not_let_go_ends_with_its_runner_and_stop_reaches_the_whole_group() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    // It ignores the polite signal, and so does the child that it leaves behind.
    std::fs::write(&script, "#!/bin/sh\ntrap '' TERM\n(trap '' TERM; while :; do sleep 1; done) &\necho $!\nwait\n")
        .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let launch = deploycore::machine::runner::Launch {
        service: service(),
        executable: script,
        folder: folder.path().to_owned(),
        run: RunSpec::default(),
    };
    let runner = ProcessRunner::new(ProcessRunnerSettings::default()).unwrap();
    let waiting = runner.prepare(&launch).await.unwrap();
    drop(runner);
    let runner = ProcessRunner::new(ProcessRunnerSettings::default()).unwrap();
    tokio::time::timeout(PATIENCE, runner.ended(&waiting)).await.expect("it ends by itself");
    assert_eq!(std::fs::read_to_string(folder.path().join("log")).unwrap(), "");

    let instance = runner.prepare(&launch).await.unwrap();
    runner.release(&instance).await.unwrap();
    let child = read_pid(&folder.path().join("log")).await;
    assert!(is_running(child));
    runner.stop(&instance, Duration::from_millis(100)).await.unwrap();
    assert!(!is_running(child) && !is_running(instance.pid));
    runner.stop(&instance, Duration::ZERO).await.unwrap();
    let stranger = Instance { pid: std::process::id(), ..instance };
    assert!(!kill_group(&stranger).unwrap(), "a number alone is no identity");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_finds_what_left_the_group() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    // The service itself ends at once; what it left in a session of its own ignores the polite signal.
    std::fs::write(&script, "#!/bin/sh\nsetsid /bin/sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done' &\n")
        .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for kill in [false, true] {
        let data = folder.path().join(kill.to_string());
        let launch = deploycore::machine::runner::Launch {
            service: service(),
            executable: script.clone(),
            folder: data.clone(),
            run: RunSpec::default(),
        };
        let runner = ProcessRunner::new(ProcessRunnerSettings::default()).unwrap();
        let instance = runner.prepare(&launch).await.unwrap();
        runner.release(&instance).await.unwrap();
        let child = read_pid(&data.join("log")).await;
        tokio::time::timeout(PATIENCE, runner.ended(&instance)).await.unwrap();
        assert!(is_running(child));
        if kill {
            assert!(kill_group(&instance).unwrap());
        } else {
            runner.stop(&instance, Duration::from_millis(50)).await.unwrap();
        }
        assert!(!is_running(child));
    }
}

#[test]
fn a_group_without_leader_that_has_the_number_by_chance_is_let_alone() {
    use std::os::unix::process::CommandExt;
    let mut leader = std::process::Command::new("/bin/sh");
    leader.args(["-c", "sleep 60 >/dev/null & echo $!"]).process_group(0).stdout(std::process::Stdio::piped());
    let leader = leader.spawn().unwrap();
    let pid = leader.id();
    let member: u32 = String::from_utf8(leader.wait_with_output().unwrap().stdout).unwrap().trim().parse().unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let instance = Instance { pid, start_time: 1, boot, port: None };
    let killed = kill_group(&instance).unwrap();
    let lives = is_running(member);
    let member = rustix::process::Pid::from_raw(i32::try_from(member).unwrap()).unwrap();
    let _ = rustix::process::kill_process(member, rustix::process::Signal::KILL);
    assert!(!killed && lives);
}

async fn read_pid(log: &Path) -> u32 {
    let read = async {
        loop {
            if let Some(Ok(pid)) = std::fs::read_to_string(log).unwrap().lines().next().map(str::parse) {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the service begins")
}
