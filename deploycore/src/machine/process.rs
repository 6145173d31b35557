//! Services as ordinary processes of a Linux host.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, Command};

use super::disk;
use super::runner::{Error, Instance, Launch, Runner};
use crate::model::{Port, Readiness};
use crate::port::chain;

mod group;

/// Waits for one line, then becomes the build. The line comes when the process is journaled; when the agent dies before, the end of the
/// pipe comes instead and nothing is executed. The line is the mark that the build and all that it starts carry in their environment.
const GATE: &str = "IFS= read -r DEPLOYCORE_INSTANCE || exit 125; export DEPLOYCORE_INSTANCE; unset PWD OLDPWD SHLVL; exec \"$@\" </dev/null";
/// For one probe of readiness.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a process that is not a child is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long a killed group may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often what is left of a killed instance is looked for at most, by whoever cannot wait for its end.
const KILL_ROUNDS: usize = 50;

/// How services are started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessRunnerSettings {
    /// The `PATH` of services whose run specification gives none.
    pub path: String,
    /// A log past this size is moved to `log.1` and begun anew. It is looked at every few seconds, so that a burst may write more. Where the disk has no
    /// room for the copy that this takes, the log is begun anew all the same.
    pub max_log: ByteSize,
}

impl Default for ProcessRunnerSettings {
    fn default() -> Self {
        Self { path: "/usr/local/bin:/usr/bin:/bin".to_owned(), max_log: ByteSize::mib(16) }
    }
}

/// Starts services as processes: each in a group of its own, with a clean environment, in the folder `work` of its service, its output
/// appended to the file `log` beside it. They outlive the agent, and the next agent knows them by pid, start time and boot, and what they
/// started by a mark in its environment, whatever group it moved to.
///
/// It needs `/proc` and `/bin/sh`. Under a supervisor that ends whole control groups with the agent (systemd does by default), set
/// it to end the agent's own process only.
#[derive(Debug)]
pub struct ProcessRunner {
    settings: ProcessRunnerSettings,
    boot: String,
    state: Mutex<State>,
    /// Held while a log is rotated: whoever asked for it may be gone, and the next instance of the service asks again.
    rotating: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct State {
    /// Prepared processes with the pipe that lets them go, by folder: a newer one for the same service ends the older.
    gates: HashMap<PathBuf, (Instance, ChildStdin)>,
    /// Those that this runner started.
    children: HashMap<Instance, Arc<tokio::sync::Mutex<Child>>>,
}

impl ProcessRunner {
    /// A runner on this host.
    ///
    /// Errors: `System` when `/proc` cannot be read.
    pub fn new(settings: ProcessRunnerSettings) -> Result<Self, Error> {
        let boot = group::boot().map_err(system("reading the boot id"))?;
        Ok(Self { settings, boot, state: Mutex::default(), rotating: Arc::default() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn child(&self, instance: &Instance) -> Option<Arc<tokio::sync::Mutex<Child>>> {
        self.state().children.get(instance).cloned()
    }

    fn command(&self, launch: &Launch, port: Option<u16>) -> Result<Command, Error> {
        let (log_path, work) = (launch.folder.join("log"), launch.folder.join("work"));
        fs::create_dir_all(&work).map_err(system(format!("making {}", work.display())))?;
        let log = OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.map_err(system(format!("opening {}", log_path.display())))?;
        let errors = log.try_clone().map_err(system(format!("opening {}", log_path.display())))?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GATE, launch.service.as_str()]);
        command.env_clear().env("PATH", &self.settings.path).env("HOME", &work);
        if let Some(port) = port {
            command.env("PORT", port.to_string());
        }
        // A shell drops what it could not name itself; `env` sets it behind the shell's back.
        let (named, unnamed): (Vec<_>, Vec<_>) = launch.run.env.iter().partition(|(key, _)| survives_shell(key));
        command.envs(named);
        if !unnamed.is_empty() {
            command.arg("/usr/bin/env").args(unnamed.iter().map(|(key, value)| format!("{key}={value}")));
        }
        command.arg(&launch.executable);
        let port = port.map(|port| port.to_string());
        command.args(launch.run.args.iter().map(|arg| match &port {
            Some(port) => arg.replace("{port}", port),
            None => arg.clone(),
        }));
        command.current_dir(&work).stdin(Stdio::piped()).stdout(log).stderr(errors).process_group(0);
        Ok(command)
    }
}

#[async_trait]
impl Runner for ProcessRunner {
    async fn prepare(&self, launch: &Launch) -> Result<Instance, Error> {
        let unstartable = |detail: String| Error::Unstartable { service: launch.service.clone(), detail };
        if launch.run.env.keys().any(|key| key.is_empty() || key.contains('=')) {
            return Err(unstartable("a name in its environment is empty or has a '='".to_owned()));
        }
        let port = match launch.run.port {
            Port::None if matches!(launch.run.readiness, Readiness::Http(_)) => {
                return Err(unstartable("readiness by HTTP needs a port".to_owned()));
            }
            Port::None => None,
            Port::Fixed(port) => Some(port),
            Port::Free => Some(free_port().map_err(system("picking a free port"))?),
        };
        let mut child = match self.command(launch, port)?.spawn() {
            // A null byte somewhere, or more than a process may be given.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::ArgumentListTooLong) => {
                return Err(unstartable(error.to_string()));
            }
            other => other.map_err(system(format!("starting {}", launch.service)))?,
        };
        let pid = child.id().expect("the child was not waited for");
        let gate = child.stdin.take().expect("the pipe was asked for");
        // The child waits at its gate, so it is there to be read.
        let Some(stat) = group::stat(pid) else {
            return Err(system("reading the start time")(io::ErrorKind::NotFound.into()));
        };
        let instance = Instance { pid, start_time: stat.start_time, boot: self.boot.clone(), port };
        let mut state = self.state();
        state.children.insert(instance.clone(), Arc::new(tokio::sync::Mutex::new(child)));
        state.gates.insert(launch.folder.clone(), (instance.clone(), gate));
        Ok(instance)
    }

    async fn release(&self, instance: &Instance) -> Result<(), Error> {
        let gate = {
            let mut state = self.state();
            let folder =
                state.gates.iter().find(|(_, (waiting, _))| waiting == instance).map(|(folder, _)| folder.clone());
            folder.and_then(|folder| state.gates.remove(&folder))
        };
        let Some((_, mut gate)) = gate else { return Err(Error::NotPrepared { pid: instance.pid }) };
        gate.write_all(format!("{}\n", group::mark(instance)).as_bytes()).await.map_err(system("releasing the process"))
    }

    async fn is_alive(&self, instance: &Instance) -> bool {
        group::is_alive(instance, &self.boot)
    }

    async fn ended(&self, instance: &Instance) -> Option<i32> {
        if let Some(child) = self.child(instance) {
            return child.lock().await.wait().await.ok().and_then(exit_code);
        }
        while group::is_alive(instance, &self.boot) {
            tokio::time::sleep(LOOK).await;
        }
        None
    }

    async fn tend(&self, folder: &Path) {
        let (folder, max) = (folder.to_owned(), self.settings.max_log.as_u64());
        let rotating = Arc::clone(&self.rotating);
        let rotated = tokio::task::spawn_blocking(move || {
            let _alone = rotating.lock().unwrap_or_else(PoisonError::into_inner);
            rotate(&folder, max)
        })
        .await;
        if let Ok(Err(error)) = rotated {
            tracing::warn!(%error, "a log could not be kept or could not be cut");
        }
    }

    async fn answers(&self, instance: &Instance, path: &str) -> bool {
        let Some(port) = instance.port else { return false };
        let answer = tokio::time::timeout(PROBE_TIMEOUT, status(port, path)).await;
        // Somebody else may answer on the port of a process that has just ended.
        matches!(answer, Ok(Ok(200..=299))) && group::is_alive(instance, &self.boot)
    }

    async fn stop(&self, instance: &Instance, grace: Duration) -> Result<(), Error> {
        self.state().gates.retain(|_, (waiting, _)| waiting != instance);
        let known = group::is_there(instance, &self.boot);
        for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, KILL_TIMEOUT)] {
            if !group::signal(instance, &self.boot, known, signal).map_err(system("signalling a process group"))? {
                break;
            }
            let gone = async {
                let mut pause = Duration::from_millis(5);
                while group::is_left(instance, &self.boot, known) {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(100));
                }
            };
            if tokio::time::timeout(patience, gone).await.is_ok() {
                break;
            }
        }
        if group::is_left(instance, &self.boot, known) {
            return Err(Error::Unstoppable { pid: instance.pid });
        }
        if let Some(child) = self.child(instance) {
            // It is dead: this takes its exit status from the system.
            let _ = child.lock().await.wait().await;
            self.state().children.remove(instance);
        }
        Ok(())
    }
}

/// The processes that the journals under a data folder name, alive or not, whether or not an agent runs. A journal that cannot be read
/// is passed over with a warning: it must not keep the others alive. With [`kill_group`] a watchdog ends what an agent left running: the agent first, then these.
///
/// Errors: `Io`.
pub fn journaled_processes(data: &Path) -> Result<Vec<Instance>, disk::Error> {
    let readable = disk::journals(data)?.into_iter().filter_map(|journal| {
        journal.inspect_err(|error| tracing::warn!(error = chain(error), "what it names cannot be ended")).ok()
    });
    Ok(readable.filter_map(|journal| journal.process).map(|launched| launched.instance).collect())
}

/// Kills an instance and all that it started, at once and if it is still the one that it was. Whether there was anything to kill.
///
/// Errors: what the system says when it refuses.
pub fn kill_group(instance: &Instance) -> io::Result<bool> {
    let boot = group::boot()?;
    let known = group::is_there(instance, &boot);
    let killed = group::signal(instance, &boot, known, Signal::KILL)?;
    for _ in 0..KILL_ROUNDS {
        // Each may have started another before it died.
        if !group::signal(instance, &boot, known, Signal::KILL)? {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(killed)
}

/// As a shell has it: 128 and the signal's number for what a signal ended.
fn exit_code(status: ExitStatus) -> Option<i32> {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal))
}

fn survives_shell(key: &str) -> bool {
    let special = ["PWD", "OLDPWD", "SHLVL", "_", "IFS", "ENV", "PS1", "PS2", "PS4", "OPTIND", "PPID"];
    let named = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !key.as_bytes()[0].is_ascii_digit();
    named && !special.contains(&key)
}

/// A port that was free a moment ago. Should another take it meanwhile, the service ends and is started with another.
fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The status of `GET` on a local port, from the first line of the answer.
async fn status(port: u16, path: &str) -> io::Result<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    // "HTTP/1.1 200"
    let mut line = [0; 12];
    stream.read_exact(&mut line).await?;
    let line = std::str::from_utf8(&line).map_err(|_| io::ErrorKind::InvalidData)?;
    let code = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..)).and_then(|code| code.parse().ok());
    code.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Copies the log aside and cuts it; the service appends, so it goes on at the start. What it writes in between is lost. A log that cannot
/// be copied is cut too: on a full disk it would take the room that the journals need.
fn rotate(folder: &Path, max: u64) -> io::Result<()> {
    let log = folder.join("log");
    match fs::metadata(&log) {
        Ok(found) if found.len() > max => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let (aside, older) = (folder.join("log.1.new"), folder.join("log.1"));
    let copied = match copy_end(&log, &aside, max) {
        // The older log makes room for the newer.
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            let _ = fs::remove_file(&older);
            copy_end(&log, &aside, max)
        }
        copied => copied,
    };
    let kept = copied.and_then(|()| fs::rename(&aside, &older));
    OpenOptions::new().write(true).open(&log)?.set_len(0)?;
    kept
}

/// Copies the last `max` bytes of a log: not more is kept, whatever a burst wrote. Of a copy that fails nothing stays.
fn copy_end(log: &Path, copy: &Path, max: u64) -> io::Result<()> {
    let mut file = File::open(log)?;
    let len = file.metadata()?.len();
    io::Seek::seek(&mut file, io::SeekFrom::Start(len.saturating_sub(max)))?;
    let copied = File::create(copy).and_then(|mut copy| io::copy(&mut io::Read::take(file, max), &mut copy));
    if copied.is_err() {
        let _ = fs::remove_file(copy);
    }
    copied.map(drop)
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    |source| Error::System { what, source }
}
