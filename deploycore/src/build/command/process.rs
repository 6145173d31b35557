//! One child process with all that it starts: started, watched, listened to, ended.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::build::BuildLog;

/// The variable by which every process of a build is found.
pub(super) const MARK: &str = "DEPLOYCORE_BUILD";

/// The child waits for a line before it becomes the program, so that the watchdog is there before the program does anything. If
/// the worker dies first, the read fails and nothing runs.
const GATE: &str = r#"read -r go && exec "$@" </dev/null"#;

/// Waits for a line from the worker, which says that the group has been seen to. The end of the pipe without one means that the worker
/// is gone: then it ends process group $1, by force after $2 tenths of a second. `kill -s` is the one form that every shell reads alike.
const WATCHDOG: &str = r#"read -r done && exit 0
kill -s TERM -- "-$1" 2>/dev/null || exit 0
n=0
while [ "$n" -lt "$2" ]; do
  kill -s 0 -- "-$1" 2>/dev/null || exit 0
  sleep 0.1
  n=$((n + 1))
done
kill -s KILL -- "-$1" 2>/dev/null
exit 0"#;

/// A program to run in a process group of its own, with a clean environment and no input.
#[derive(Debug)]
pub(super) struct Program {
    argv: Vec<OsString>,
    folder: PathBuf,
    env: BTreeMap<OsString, OsString>,
}

/// Where the output goes.
#[derive(Debug, Clone)]
pub(super) struct Sink {
    log: BuildLog,
    /// Standard output, if it is wanted apart; at most [`CAPTURE`] bytes.
    stdout: Option<Arc<Mutex<Vec<u8>>>>,
}

const CAPTURE: usize = 64 << 10;

impl Sink {
    /// Both streams into the log, as they come.
    pub(super) fn log(log: &BuildLog) -> Self {
        Self { log: log.clone(), stdout: None }
    }

    /// Standard output apart, the rest into the log.
    pub(super) fn capture(log: &BuildLog) -> Self {
        Self { log: log.clone(), stdout: Some(Arc::default()) }
    }

    fn take(&self, stream: Stream, bytes: &[u8]) {
        match (&self.stdout, stream) {
            (Some(captured), Stream::Captured) => {
                let mut captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
                let room = CAPTURE.saturating_sub(captured.len());
                captured.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            _ => self.log.write(bytes),
        }
    }

    pub(super) fn captured(&self) -> String {
        let bytes = self.stdout.as_ref().map(|bytes| bytes.lock().unwrap_or_else(PoisonError::into_inner).clone());
        String::from_utf8_lossy(&bytes.unwrap_or_default()).trim().to_owned()
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Code(i32),
    Signal(i32),
    /// By us, because it was told to stop.
    Stopped,
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or_default()),
        }
    }
}

impl Program {
    pub(super) fn new(argv: impl IntoIterator<Item = impl Into<OsString>>, folder: &Path) -> Self {
        let argv = argv.into_iter().map(Into::into).collect();
        Self { argv, folder: folder.to_owned(), env: BTreeMap::new() }
    }

    /// Marks every process of the program.
    pub(super) fn marked(mut self, mark: &str) -> Self {
        self.env.insert(MARK.into(), mark.into());
        self
    }

    /// Adds to the environment. The mark stays.
    pub(super) fn env(&mut self, more: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>) {
        let more = more.into_iter().map(|(name, value)| (name.as_ref().to_owned(), value.as_ref().to_owned()));
        self.env.extend(more.filter(|(name, _)| name != MARK));
    }

    /// Runs it to its end, and ends what it left behind in its group. When `stop` is cancelled the group gets SIGTERM, and after `grace`
    /// SIGKILL. When the future is dropped the group gets SIGKILL at once, and when this process dies the watchdog ends it.
    pub(super) async fn run(&self, sink: Sink, grace: Duration, stop: &CancellationToken) -> io::Result<Exit> {
        let (mut child, outputs) = self.start(&sink)?;
        // Declared after the child, so that it is dropped, and kills, before the child can be reaped.
        let mut group = Group::of(&child, grace)?;
        let listener = join_all(outputs.into_iter().map(|(pipe, stream)| pump(pipe, stream, &sink)));
        tokio::pin!(listener);
        if let Some(mut gate) = child.stdin.take() {
            // A child that is gone already has its reasons, which its exit tells.
            let _ = gate.write_all(b"go\n").await;
        }
        let mut closed = false;
        let exit = {
            let ended = end_of(&mut child, &group, grace, stop);
            tokio::pin!(ended);
            loop {
                tokio::select! {
                    exit = &mut ended => break exit?,
                    _ = &mut listener, if !closed => closed = true,
                }
            }
        };
        group.end().await;
        if !closed {
            // A process that left the group may hold the pipe open.
            let _ = timeout(LAST_WORDS, listener).await;
        }
        Ok(exit)
    }

    /// The child, waiting at its gate, and the pipes that its output comes from.
    fn start(&self, sink: &Sink) -> io::Result<(Child, Vec<(pipe::Receiver, Stream)>)> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GATE, "sh"]).args(&self.argv).current_dir(&self.folder).env_clear().envs(&self.env);
        command.stdin(Stdio::piped()).process_group(0);
        let (log_out, log_in) = io::pipe()?;
        let mut outputs = vec![(receiver(log_out)?, Stream::Log)];
        if sink.stdout.is_some() {
            let (out, into) = io::pipe()?;
            outputs.push((receiver(out)?, Stream::Captured));
            command.stdout(into).stderr(log_in);
        } else {
            command.stdout(log_in.try_clone()?).stderr(log_in);
        }
        // The command goes, and with it this process's ends of the pipes.
        Ok((command.spawn()?, outputs))
    }
}

/// How long the output of processes that left the group is waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Between looks whether a stopped group is gone.
const GONE_LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Log,
    Captured,
}

fn receiver(end: io::PipeReader) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(OwnedFd::from(end))
}

async fn pump(mut pipe: pipe::Receiver, stream: Stream, sink: &Sink) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        sink.take(stream, &buffer[..read]);
    }
}

/// Waits for the child, or ends its group when told to.
async fn end_of(child: &mut Child, group: &Group, grace: Duration, stop: &CancellationToken) -> io::Result<Exit> {
    tokio::select! {
        status = child.wait() => return status.map(Exit::from),
        () = stop.cancelled() => {}
    }
    group.signal(Signal::TERM);
    let gone = async {
        let _ = child.wait().await;
        while group.is_there() {
            sleep(GONE_LOOK).await;
        }
    };
    if timeout(grace, gone).await.is_err() {
        group.signal(Signal::KILL);
        child.wait().await?;
    }
    Ok(Exit::Stopped)
}

/// A process group and its watchdog. Dropping it kills the group.
#[derive(Debug)]
struct Group {
    id: Pid,
    watchdog: Child,
    /// The end of the pipe that only this process holds.
    leash: PipeWriter,
    ended: bool,
}

impl Group {
    /// The group that `child` leads, which has not passed its gate yet.
    fn of(child: &Child, grace: Duration) -> io::Result<Self> {
        let id = child.id().and_then(|id| Pid::from_raw(id as i32));
        let id = id.ok_or_else(|| io::Error::other("the process ended before it was started"))?;
        let (end, leash) = io::pipe()?;
        let tenths = grace.as_millis() / 100;
        let mut watchdog = Command::new("/bin/sh");
        watchdog.args(["-c", WATCHDOG, "sh", &id.as_raw_nonzero().to_string(), &tenths.to_string()]);
        watchdog.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").process_group(0);
        watchdog.stdin(end).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { id, watchdog: watchdog.spawn()?, leash, ended: false })
    }

    fn signal(&self, signal: Signal) {
        // Nobody left to hear it is as good.
        let _ = kill_process_group(self.id, signal);
    }

    fn is_there(&self) -> bool {
        test_kill_process_group(self.id).is_ok()
    }

    /// Ends what is left after the leader. The id cannot stand for another group yet: that would take a full turn of
    /// the kernel's process ids since the leader was reaped, a moment ago.
    async fn end(&mut self) {
        self.kill();
        let _ = timeout(LAST_WORDS, self.watchdog.wait()).await;
    }

    fn kill(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.signal(Signal::KILL);
            // The pipe is empty, so that this does not block.
            let _ = self.leash.write_all(b"done\n");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn shell(script: &str) -> Program {
        let mut program = Program::new(["sh", "-c", script], Path::new("/"));
        program.env([("PATH", std::env::var_os("PATH").unwrap_or_default())]);
        program
    }

    async fn run(script: &str) -> (Exit, String) {
        let log = BuildLog::new(4096);
        let exit = shell(script).run(Sink::log(&log), Duration::from_secs(5), &CancellationToken::new()).await.unwrap();
        (exit, String::from_utf8(log.contents().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn output_keeps_its_order_and_the_exit_is_told() {
        let (exit, log) = run("echo out; echo err >&2; echo again; cat; exit 3").await;
        assert_eq!((exit, log.as_str()), (Exit::Code(3), "out\nerr\nagain\n"));
        assert_eq!(run("kill -SEGV $$").await.0, Exit::Signal(11));
        assert_eq!(run("exec no-such-program").await.0, Exit::Code(127));
    }

    #[tokio::test]
    async fn the_environment_is_clean() {
        let (_, log) = run("env | grep -v -e ^PATH= -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD=; true").await;
        assert_eq!(log, "");
    }

    #[tokio::test]
    async fn a_stopped_group_is_ended_by_force_if_need_be() {
        let stop = CancellationToken::new();
        let log = BuildLog::new(4096);
        let program = shell("trap '' TERM; sleep 600 & echo $! ; wait; sleep 600");
        let run = program.run(Sink::log(&log), Duration::from_millis(200), &stop);
        let stopper = async {
            while log.contents().is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
            stop.cancel();
        };
        let (exit, ()) = tokio::join!(run, stopper);
        assert_eq!(exit.unwrap(), Exit::Stopped);
        assert_gone(&log).await;
    }

    #[tokio::test]
    async fn a_daemon_in_the_group_does_not_outlive_the_program_or_hold_it_up() {
        let started = Instant::now();
        let log = BuildLog::new(4096);
        let program = shell("sleep 600 & echo $!; exit 0");
        let exit = program.run(Sink::log(&log), Duration::from_secs(5), &CancellationToken::new()).await;
        assert_eq!(exit.unwrap(), Exit::Code(0));
        assert!(started.elapsed() < Duration::from_mins(1));
        assert_gone(&log).await;
    }

    #[tokio::test]
    async fn dropping_the_run_kills_the_group() {
        let log = BuildLog::new(4096);
        let program = shell("sleep 600 & echo $!; wait");
        let (grace, stop) = (Duration::from_secs(5), CancellationToken::new());
        let run = program.run(Sink::log(&log), grace, &stop);
        let started = async {
            while log.contents().is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = run => panic!("the program runs for ten minutes"),
            () = started => {}
        }
        assert_gone(&log).await;
    }

    #[tokio::test]
    async fn captured_output_stays_apart() {
        let log = BuildLog::new(4096);
        let sink = Sink::capture(&log);
        let program = shell("echo answer; echo noise >&2");
        program.run(sink.clone(), Duration::from_secs(5), &CancellationToken::new()).await.unwrap();
        assert_eq!((sink.captured().as_str(), log.contents()), ("answer", "noise\n".into()));
    }

    /// The process whose id the log holds ends soon.
    async fn assert_gone(log: &BuildLog) {
        let id = String::from_utf8(log.contents().to_vec()).unwrap();
        let id = Pid::from_raw(id.trim().parse().unwrap()).unwrap();
        let gone = async {
            while is_running(id) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), gone).await.expect("the process is still there");
    }

    /// A zombie that its parent has not reaped does not count.
    fn is_running(id: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", id.as_raw_nonzero()));
        match stat {
            Ok(stat) => !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'),
            Err(_) => !Path::new("/proc/self").exists() && rustix::process::test_kill_process(id).is_ok(),
        }
    }
}
