//! `swarm-node` processes on loopback, in a folder of their own, and what the system tells of them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn swarm_node(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swarm-node"));
    command.args(arguments).stdin(Stdio::null()).env("RUST_LOG", "info");
    command
}

/// A process that does not outlive its test.
pub(crate) struct Running {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                eprintln!("{line}");
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, log }
    }

    /// What it wrote to standard error so far that contains this.
    pub(crate) fn said(&self, text: &str) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).cloned().collect()
    }

    /// Where it listens, once it says so.
    pub(crate) fn address(&mut self, role: &str) -> String {
        let prefix = format!("{role} on ");
        let mut addr = None;
        wait_for("address", || {
            assert!(self.is_running(), "the {role} ended");
            addr = self.said(&prefix).into_iter().find(|line| line.starts_with(&prefix));
            addr.is_some()
        });
        let rest = addr.unwrap()[prefix.len()..].to_owned();
        rest.split(": ").next().unwrap().to_owned()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn tell_to_end(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGKILL; gives the bytes it had read from files until then.
    pub(crate) fn kill(mut self) -> u64 {
        // It stands still before it is asked, so that nothing is read in between.
        self.signal(Signal::STOP);
        wait_for("standstill", || self.stat("status", "State:").starts_with('T'));
        let read = self.bytes_read();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        read
    }

    /// Bytes read from files, whether from the disk or its cache. What comes over sockets is not among them.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.stat("io", "rchar:").parse().unwrap()
    }

    /// Memory that is no file's, in bytes.
    pub(crate) fn anonymous_memory(&self) -> u64 {
        anonymous_memory(self.child.id())
    }

    fn stat(&self, file: &str, key: &str) -> String {
        of_process(self.child.id(), file, key)
    }
}

pub(crate) fn anonymous_memory(process: u32) -> u64 {
    let text = of_process(process, "status", "RssAnon:");
    text.strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

fn of_process(process: u32, file: &str, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{process}/{file}")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned()
}

pub(crate) fn wait_for(what: &str, there: impl FnMut() -> bool) {
    wait_long_for(what, PATIENCE, there);
}

pub(crate) fn wait_long_for(what: &str, patience: Duration, mut there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < patience, "no {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A tracker and a gate with a file, in a folder.
pub(crate) struct Swarm {
    folder: tempfile::TempDir,
    pub(crate) tracker_addr: String,
    gate_addr: String,
    pub(crate) tracker: Option<Running>,
    pub(crate) gate: Option<Running>,
    pub(crate) bytes: Vec<u8>,
}

impl Swarm {
    /// With a file of random bytes.
    pub(crate) fn new(size: usize) -> Self {
        let mut bytes = vec![0; size];
        fastrand::Rng::with_seed(7).fill(&mut bytes);
        let mut swarm = Self::with_file(|path| std::fs::write(path, &bytes).unwrap());
        swarm.bytes = bytes;
        swarm
    }

    /// With a file that is made in place.
    pub(crate) fn with_file(make: impl FnOnce(&Path)) -> Self {
        let mut swarm = Self {
            folder: tempfile::tempdir().unwrap(),
            tracker_addr: "127.0.0.1:0".to_owned(),
            gate_addr: "127.0.0.1:0".to_owned(),
            tracker: None,
            gate: None,
            bytes: Vec::new(),
        };
        make(&swarm.path("file"));
        swarm.start_tracker();
        swarm.start_gate();
        swarm
    }

    /// Where it was before, if there was one.
    pub(crate) fn start_tracker(&mut self) {
        let listen = ["tracker", "--name", "tracker", "--listen", &self.tracker_addr, "--insecure"];
        let links = ["--down", "16MiB", "--up", "1GiB", "--store", "1GiB"];
        let mut tracker = swarm_node(&listen);
        tracker.args(links).arg("--standings").arg(self.path("standings.json"));
        let mut tracker = Running::spawn(&mut tracker);
        self.tracker_addr = tracker.address("tracker");
        self.tracker = Some(tracker);
    }

    /// Where it was before, if there was one. It serves by then.
    pub(crate) fn start_gate(&mut self) {
        let member = ["--name", "gate", "--tracker", &self.tracker_addr, "--listen", &self.gate_addr, "--insecure"];
        let mut gate = swarm_node(&["gate"]);
        gate.args(member).arg(self.path("file")).arg("--manifest").arg(self.path("file.manifest"));
        let mut gate = Running::spawn(&mut gate);
        self.gate_addr = gate.address("gate");
        self.gate = Some(gate);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn fetch(&self, name: &str, more: &[&str]) -> Running {
        let mut fetch =
            swarm_node(&["fetch", "--tracker", &self.tracker_addr, "--listen", "127.0.0.1:0", "--insecure"]);
        fetch.args(["--name", name]).args(more);
        fetch.arg("--manifest").arg(self.path("file.manifest")).arg("--out").arg(self.path(name));
        fetch.arg("--stats").arg(self.path(&format!("{name}.json")));
        Running::spawn(&mut fetch)
    }

    /// Waits until a node's file is in place and it has told what that took.
    pub(crate) fn stats_in_time(&self, name: &str) -> Value {
        wait_for("stats", || self.path(&format!("{name}.json")).exists());
        self.stats(name)
    }

    pub(crate) fn stats(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(&format!("{name}.json"))).unwrap()).unwrap()
    }

    /// What the tracker tells of the file, if it does yet.
    pub(crate) fn standing(&self) -> Option<Value> {
        let standings: Value = serde_json::from_slice(&std::fs::read(self.path("standings.json")).ok()?).unwrap();
        standings.get(0).cloned()
    }

    pub(crate) fn verify(&self, name: &str) -> Output {
        let mut verify = swarm_node(&["verify", "--manifest"]);
        verify.arg(self.path("file.manifest")).arg(self.path(name)).output().unwrap()
    }

    pub(crate) fn assert_holds(&self, path: &Path) {
        assert!(std::fs::read(path).unwrap() == self.bytes, "{} differs", path.display());
    }
}

pub(crate) fn count(stats: &Value, key: &str) -> u64 {
    stats[key].as_u64().unwrap_or_else(|| panic!("{key} in {stats}"))
}

pub(crate) fn from_peers(stats: &Value) -> u64 {
    stats["from_peers"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum()
}
