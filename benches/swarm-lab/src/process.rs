//! A program that runs on one of the hosts, and what it costs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use serde::Serialize;

use crate::command::wait;

/// What a process has cost, its children included once they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Cost {
    pub(crate) cpu_seconds: f64,
    /// The most memory that was resident, pages of files included.
    pub(crate) peak_bytes: u64,
}

/// What went over a host's link so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Traffic {
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// A process; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    cost: Cost,
    ended: Option<ExitStatus>,
}

/// A process that was asked to end is killed after this time.
const PATIENCE: Duration = Duration::from_secs(5);

impl Process {
    /// Starts a program; what it says goes to `<folder>/<name>.log`.
    pub(crate) fn spawn(command: &mut Command, folder: &Path, name: &str) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("{name} could not be started"))?;
        Ok(Self { child, name: name.to_owned(), log, cost: Cost::default(), ended: None })
    }

    /// How it ended, if it did.
    pub(crate) fn look(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            // It is left to be waited for until what it cost is noted.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let pid = Pid::from_child(&self.child);
            if rustix::process::waitid(WaitId::Pid(pid), options)?.is_some() {
                self.note();
                self.ended = self.child.try_wait()?;
            }
        }
        Ok(self.ended)
    }

    /// Fails when it has ended.
    pub(crate) fn must_run(&mut self) -> Result<()> {
        match self.look()? {
            Some(status) => bail!("{} ended: {status}: {}", self.name, self.last_words()),
            None => Ok(()),
        }
    }

    /// The last of what it said.
    pub(crate) fn last_words(&self) -> String {
        let said = std::fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        said[said.floor_char_boundary(said.len().saturating_sub(600))..].trim().to_owned()
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let read = std::fs::read_to_string(format!("/proc/{}/net/dev", self.child.id()));
        read.ok().and_then(|text| traffic_of(&text)).unwrap_or_default()
    }

    /// Ends it; gives what it has cost in all.
    pub(crate) fn end(mut self) -> Result<Cost> {
        if self.look()?.is_none() {
            self.note();
            rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM)?;
            wait(&mut self.child, PATIENCE)?;
        }
        Ok(self.cost)
    }

    /// Notes what it has cost so far. A process that has ended and was not waited for still tells its time, but no memory.
    pub(crate) fn note(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let read =
            |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default();
        if let Some(ticks) = ticks_of(&read("stat")) {
            self.cost.cpu_seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        }
        if let Some(bytes) = peak_of(&read("status")) {
            self.cost.peak_bytes = bytes;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It fails when the process has ended.
        let _ = self.child.kill();
        let _ = wait(&mut self.child, PATIENCE);
    }
}

/// User and system time in `/proc/<pid>/stat`, children that were waited for included. The name in it may hold anything.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn traffic_of(dev: &str) -> Option<Traffic> {
    let line = dev.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"))?;
    let mut fields = line.split_whitespace();
    let received = fields.next()?.parse().ok()?;
    let sent = fields.nth(7)?.parse().ok()?;
    Some(Traffic { received, sent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_is_read() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 100 0 0 0 11 22 3 4 20 0 9 0 100 1000 10";
        assert_eq!(ticks_of(stat), Some(40));
        assert_eq!(ticks_of(""), None);
        assert_eq!(peak_of("VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n"), Some(2 << 20));
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 500 5 0 0 0 0 0 0 700 7 0 0 0 0 0 0\n";
        assert_eq!(traffic_of(dev), Some(Traffic { received: 500, sent: 700 }));
    }

    #[test]
    fn a_process_that_ended_tells_what_it_cost() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo last words; exit 3"]);
        let mut process = Process::spawn(&mut command, folder.path(), "busy").unwrap();
        let start = std::time::Instant::now();
        let status = loop {
            if let Some(status) = process.look().unwrap() {
                break status;
            }
            assert!(start.elapsed() < Duration::from_mins(1));
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!((status.code(), process.last_words().as_str()), (Some(3), "last words"));
        assert!(process.must_run().unwrap_err().to_string().contains("last words"));
        assert!(process.end().unwrap().cpu_seconds > 0.0);
    }

    #[test]
    fn a_process_ends_when_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::spawn(Command::new("sleep").arg("600"), folder.path(), "sleeper").unwrap();
        let path = format!("/proc/{}", process.child.id());
        assert!(Path::new(&path).exists());
        drop(process);
        assert!(!Path::new(&path).exists());
    }
}
