//! A cluster under test: its process, its folder, and a look at it from outside.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use deploycore::model::{Generation, Job, KnownMachine, ServicePhase};
use deploycore::port::JobQueue;
use deploycore::port::queue::{Claiming, JobPage, Order};
use deploycore_examples::cluster::api::MachinesPage;
use deploycore_examples::cluster::fixture;
use deploycore_examples::cluster::report::Report;
use deploycore_sql::Sqlite;
use deploycore_sql::sqlite::Settings;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Whatever is waited for comes within this time on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(4);

/// Clusters of dozens of processes run one after the other: together they would only slow each other down.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Held by a cluster of dozens of processes.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A cluster with its folder.
pub(crate) struct Bed {
    folder: TempDir,
    args: Vec<String>,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Bed {
    /// A bed for a cluster that is started with `args`.
    pub(crate) fn new(args: &[&str]) -> Self {
        Self::with_turn(args, Some(turn()))
    }

    /// A bed for a cluster that runs at the same time as that of another bed.
    pub(crate) fn beside(_other: &Self, args: &[&str]) -> Self {
        Self::with_turn(args, None)
    }

    fn with_turn(args: &[&str], turn: Option<MutexGuard<'static, ()>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, args: args.iter().map(|arg| (*arg).to_owned()).collect(), _turn: turn }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts the main job; its output goes to a file of the bed.
    pub(crate) fn start(&self) -> Running<'_> {
        let log = std::fs::File::create(self.folder.path().join("out.log")).unwrap();
        let child = cluster()
            .args(&self.args)
            .arg("--data-dir")
            .arg(self.data())
            .arg("--report")
            .arg(self.folder.path().join("report.json"))
            .args(["--time-limit", "4m"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Running { bed: self, child }
    }

    pub(crate) fn report(&self) -> Report {
        serde_json::from_value(self.raw_report()).unwrap()
    }

    pub(crate) fn raw_report(&self) -> serde_json::Value {
        let bytes = std::fs::read(self.folder.path().join("report.json")).expect("a report was written");
        serde_json::from_slice(&bytes).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("out.log")).unwrap_or_default()
    }

    /// The process of a child by its name.
    pub(crate) fn pid_of(&self, child: &str) -> Option<Pid> {
        let folder = match child.rsplit_once("-m") {
            Some((region, _)) => format!("machines/{region}/{child}"),
            None if child.starts_with("worker-") => format!("workers/{child}"),
            None if child.starts_with("region-") => format!("regions/{child}/gateway-1"),
            None => child.to_owned(),
        };
        holder_of(&self.data().join(folder))
    }

    /// A GET on the control plane's API; `None` while it does not answer.
    pub(crate) fn get(&self, path: &str) -> Option<serde_json::Value> {
        let base = std::fs::read_to_string(self.data().join("run/api")).ok()?;
        serde_json::from_str(&fetch(&format!("{}v1/{path}", base.trim()))?).ok()
    }

    /// All jobs, newest first.
    pub(crate) fn jobs(&self) -> Option<Vec<Job>> {
        Some(serde_json::from_value::<JobPage>(self.get("jobs")?).unwrap().jobs)
    }

    /// Every machine that reported.
    pub(crate) fn machines(&self) -> Option<Vec<KnownMachine>> {
        let page: MachinesPage<KnownMachine> = serde_json::from_value(self.get("machines")?).unwrap();
        assert_eq!(page.next, None);
        Some(page.machines)
    }

    /// Where each machine is that has taken up this generation.
    pub(crate) fn phases(&self, generation: u64) -> Option<Vec<ServicePhase>> {
        let machines = self.machines()?;
        let services = machines.iter().flat_map(|machine| &machine.report.services);
        let there = services.filter(|service| service.goal.generation == Generation(generation));
        Some(there.map(|service| service.phase).collect())
    }

    /// Whether the queue's database takes a write, which is one without effect.
    pub(crate) fn can_write_to_the_queue(&self) -> bool {
        let url = format!("sqlite://{}", self.data().join("main/queue.db").display());
        let settings = Settings::default().with_busy_timeout(Duration::from_secs(2));
        runtime().block_on(async {
            let queue = Sqlite::open_with(&url, &settings).await;
            matches!(queue, Ok(sqlite) if sqlite.queue().set_claiming(Claiming::Open).await.is_ok())
        })
    }

    /// What the queue's database says.
    pub(crate) fn queue_order(&self) -> Order {
        let url = format!("sqlite://{}", self.data().join("main/queue.db").display());
        let stats = async { Sqlite::open(&url).await.unwrap().queue().stats().await };
        runtime().block_on(stats).unwrap().order
    }

    /// Every process that was started from this bed's folder, by command line, working folder or program.
    pub(crate) fn descendants(&self) -> Vec<u32> {
        let data = self.data();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| *pid != std::process::id() && belongs(*pid, &data)).collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for pid in self.descendants() {
            send(pid, Signal::KILL);
        }
    }
}

fn belongs(pid: u32, data: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let within = |link: &str| std::fs::read_link(process.join(link)).is_ok_and(|path| path.starts_with(data));
    let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
    within("cwd") || within("exe") || String::from_utf8_lossy(&command).contains(&*data.to_string_lossy())
}

/// A main job under way.
pub(crate) struct Running<'a> {
    bed: &'a Bed,
    child: Child,
}

impl Running<'_> {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end, which is expected to be a bad one.
    pub(crate) fn status(mut self) -> ExitStatus {
        wait_for("the end of the main job", || self.child.try_wait().unwrap())
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> ExitStatus {
        let status = wait_for("the end of the main job", || self.child.try_wait().unwrap());
        if !status.success() {
            eprintln!("{}", self.bed.log());
        }
        status
    }

    /// Waits until `look` sees something; fails at once when the main job has ended before.
    pub(crate) fn until<T>(&mut self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        wait_for(what, || {
            if let Some(found) = look() {
                return Some(found);
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the main job ended with {status} before {what}:\n{}", self.bed.log());
            }
            None
        })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that a folder of a role belongs to: it writes its id into its lock.
pub(crate) fn holder_of(folder: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(folder.join("role.lock")).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

/// Makes a repository with one commit; gives the commit.
pub(crate) fn repository(folder: &Path) -> String {
    let git = |args: &[&str]| {
        let identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"];
        let output = fixture::git().args(identity).args(args).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    std::fs::create_dir_all(folder).unwrap();
    git(&["init", "--quiet"]);
    std::fs::write(folder.join("file"), "content").unwrap();
    git(&["add", "--all"]);
    git(&["commit", "--quiet", "--message", "one"]);
    git(&["rev-parse", "HEAD"])
}

/// The program under test.
pub(crate) fn cluster() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluster"));
    for variable in ["DATA_DIR", "API", "CONFIG", "REGION", "NAME", "LABELS"] {
        command.env_remove(format!("DEPLOYCORE_{variable}"));
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    cluster().args(args).output().unwrap()
}

pub(crate) fn send(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), signal);
}

/// Looks again and again until there is something to see.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// What is at a URL; `None` while it is not there.
pub(crate) fn fetch(url: &str) -> Option<String> {
    runtime().block_on(async {
        deploycore::tls::ensure_provider();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = http.get(url).timeout(Duration::from_secs(2)).send().await.ok()?;
        answer.error_for_status().ok()?.text().await.ok()
    })
}
