//! A server as a process that does not outlive its guard.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{Error, User};

/// Between two looks at a server that starts or ends.
const LOOK: Duration = Duration::from_millis(20);
/// How long a server may take to end after its own signal before it is killed.
const END_WITHIN: Duration = Duration::from_secs(5);
/// So much of the end of a log is told.
const LOG_TOLD: usize = 8_192;

/// How a server is started.
#[derive(Debug)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    user: Option<User>,
    log: PathBuf,
    stop: Signal,
    ready_within: Duration,
}

impl Launch {
    /// A program whose output goes to the end of the file `log`. It stops by SIGTERM, and has 30 s to be ready.
    pub fn new(program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            user: None,
            log: log.into(),
            stop: Signal::TERM,
            ready_within: Duration::from_secs(30),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn with_arguments(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to its environment.
    #[must_use]
    pub fn with_variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs it as another user; only root can.
    #[must_use]
    pub fn with_user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    /// Sets the signal by which it stops at once and in order.
    #[must_use]
    pub fn with_stop(mut self, stop: Signal) -> Self {
        self.stop = stop;
        self
    }

    /// Sets how long it may take until it is ready.
    #[must_use]
    pub fn with_ready_within(mut self, limit: Duration) -> Self {
        self.ready_within = limit;
        self
    }

    fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// `setpriv` becomes the program, and the kernel kills that when the thread that started it is gone.
    fn command(&self) -> Result<Command, Error> {
        let log = File::options().create(true).append(true).open(&self.log).map_err(Error::io(&self.log))?;
        let errors = log.try_clone().map_err(Error::io(&self.log))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        command.args(self.user.iter().flat_map(User::setpriv));
        command.arg("--").arg(&self.program).args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // Its own folder may be closed to another user, and the interrupt of a terminal is for the tests.
        command.current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        Ok(command)
    }
}

/// A running server. Dropped, it stops, and with it all processes of its group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    stop: Signal,
    /// The thread that started the process lives as long as this: its end would be the process's.
    _keeper: mpsc::Sender<()>,
}

impl Process {
    /// Starts a server and waits until `is_ready`.
    pub fn start(launch: &Launch, mut is_ready: impl FnMut() -> bool) -> Result<Self, Error> {
        let mut process = Self::spawn(launch)?;
        let start = Instant::now();
        while !is_ready() {
            if let Some(status) = process.ended()? {
                return Err(Error::Ended { program: process.name.clone(), status, log: process.log() });
            }
            if start.elapsed() > launch.ready_within {
                let waited = start.elapsed();
                return Err(Error::NotReady { program: process.name.clone(), waited, log: process.log() });
            }
            thread::sleep(LOOK);
        }
        // What answered may have been another server, on the port that this one did not get.
        match process.ended()? {
            None => Ok(process),
            Some(status) => Err(Error::Ended { program: process.name.clone(), status, log: process.log() }),
        }
    }

    fn spawn(launch: &Launch) -> Result<Self, Error> {
        let mut command = launch.command()?;
        let (give, take) = mpsc::channel();
        let (keeper, until_dropped) = mpsc::channel::<()>();
        let keep = move || {
            let child = command.spawn();
            if give.send(child).is_ok() {
                let _ = until_dropped.recv();
            }
        };
        let name = launch.name();
        thread::Builder::new().name(format!("{name} keeper")).spawn(keep).map_err(Error::io("a thread"))?;
        let child = take.recv().unwrap_or_else(|gone| Err(io::Error::other(gone)));
        let child = child.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { program: "setpriv".to_owned(), package: "util-linux" },
            _ => Error::Io { path: launch.program.clone(), source },
        })?;
        Ok(Self { name, child, log: launch.log.clone(), stop: launch.stop, _keeper: keeper })
    }

    /// Its process id, which is also that of its group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().map_err(Error::io(&self.name))
    }

    /// The end of what it said.
    pub fn log(&self) -> String {
        tail(&self.log)
    }

    /// Sends it a signal, for instance SIGSTOP. A process that has ended gets none.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        if self.ended()?.is_none() {
            kill_process(self.pid(), signal).map_err(|error| Error::io(&self.name)(error.into()))?;
        }
        Ok(())
    }

    /// SIGKILL, to all of its group.
    pub fn kill(mut self) {
        self.kill_group();
    }

    /// Not waited for (see [`ended`](Self::ended)), so that the number stands for no other process.
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn kill_group(&mut self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.ended(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        let _ = kill_process(self.pid(), self.stop);
        let start = Instant::now();
        while start.elapsed() < END_WITHIN {
            if self.has_ended() {
                return;
            }
            thread::sleep(LOOK);
        }
        self.kill_group();
    }
}

fn tail(log: &Path) -> String {
    let said = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&said[said.len().saturating_sub(LOG_TOLD)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Folder;

    fn shell(folder: &Folder, script: &str) -> Launch {
        Launch::new("/bin/sh", folder.path().join("log")).with_arguments(["-c", script])
    }

    fn is_there(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_process_ends_with_its_guard_though_its_starter_ended_before() {
        let folder = Folder::new("test").unwrap();
        let ready = folder.path().join("ready");
        let launch = shell(&folder, &format!("touch {}; exec sleep 60", ready.display()));
        let mut process = thread::spawn(move || Process::start(&launch, || ready.exists()).unwrap()).join().unwrap();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(process.ended().unwrap(), None, "the process died with the thread that asked for it");
        let pid = process.id();
        drop(process);
        assert!(!is_there(pid));
    }

    #[test]
    fn one_that_ends_or_is_never_ready_gives_its_log() {
        let folder = Folder::new("test").unwrap();
        let ended = Process::start(&shell(&folder, "echo the disk is full; exit 3"), || false).unwrap_err();
        assert!(matches!(&ended, Error::Ended { log, .. } if log.contains("the disk is full")), "{ended}");
        let slow = shell(&folder, "echo waiting for a friend; exec sleep 60");
        let slow = Process::start(&slow.with_ready_within(Duration::from_millis(300)), || false).unwrap_err();
        assert!(matches!(&slow, Error::NotReady { log, .. } if log.contains("waiting for a friend")), "{slow}");
    }

    #[test]
    fn one_that_does_not_stop_is_killed_with_its_group() {
        let folder = Folder::new("test").unwrap();
        let child = folder.path().join("child");
        // The group has a second process; neither minds SIGTERM.
        let script = format!("trap '' TERM; sleep 60 & echo $! > {0}.new; mv {0}.new {0}; wait", child.display());
        let process = Process::start(&shell(&folder, &script), || child.exists()).unwrap();
        let (pid, child) = (process.id(), std::fs::read_to_string(&child).unwrap().trim().parse().unwrap());
        assert!(is_there(pid) && is_there(child));
        process.kill();
        assert!(!is_there(pid));
        // It is reaped by whoever adopted it.
        wait_until(|| !is_there(child) || is_zombie(child));
    }

    /// What the next test kills; it does nothing by itself.
    #[test]
    #[ignore = "started by another test as a process of its own"]
    fn holder() {
        let place = PathBuf::from(std::env::var_os("SERVERS_TEST_PLACE").unwrap());
        let folder = Folder::new("test").unwrap();
        let process = Process::start(&shell(&folder, "exec sleep 60"), || true).unwrap();
        let draft = place.with_extension("new");
        std::fs::write(&draft, format!("{} {}", process.id(), folder.path().display())).unwrap();
        std::fs::rename(draft, place).unwrap();
        thread::sleep(Duration::from_mins(1));
    }

    #[test]
    fn a_killed_test_leaves_neither_process_nor_folder() {
        let folder = Folder::new("test").unwrap();
        let place = folder.path().join("place");
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::tests::holder", "--ignored"])
            .env("SERVERS_TEST_PLACE", &place)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_until(|| place.exists());
        let said = std::fs::read_to_string(&place).unwrap();
        let (pid, left) = said.split_once(' ').unwrap();
        let pid = pid.parse().unwrap();
        assert!(is_there(pid) && Path::new(left).exists());
        holder.kill().unwrap();
        holder.wait().unwrap();
        wait_until(|| (!is_there(pid) || is_zombie(pid)) && !Path::new(left).exists());
    }

    fn wait_until(mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not come");
            thread::sleep(LOOK);
        }
    }

    fn is_zombie(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }
}
