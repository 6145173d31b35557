//! The processes of the clients, and what is done to them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::history;
use crate::judge::Kill;

pub(super) struct Clients {
    program: PathBuf,
    url: String,
    folder: PathBuf,
    seed: u64,
    started: u64,
    running: Vec<Child>,
    pub(super) kills: Vec<Kill>,
    pub(super) stops: usize,
}

impl Clients {
    /// `program` becomes a client when it is called with `--client`.
    pub(super) fn start(program: &Path, url: &str, folder: &Path, seed: u64, many: usize) -> Result<Self> {
        let mut clients = Self {
            program: program.to_owned(),
            url: url.to_owned(),
            folder: folder.to_owned(),
            seed,
            started: 0,
            running: Vec::new(),
            kills: Vec::new(),
            stops: 0,
        };
        for number in 0..many {
            let child = clients.spawn(number)?;
            clients.running.push(child);
        }
        Ok(clients)
    }

    pub(super) fn count(&self) -> usize {
        self.running.len()
    }

    fn spawn(&mut self, number: usize) -> Result<Child> {
        self.started += 1;
        let history = self.folder.join(format!("client-{:05}", self.started));
        Command::new(&self.program)
            .args(["--client", &name(number), "--url", &self.url, "--seed", &(self.seed + self.started).to_string()])
            .arg("--history")
            .arg(history)
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| self.program.display().to_string())
    }

    /// SIGKILL; one of the same name starts at once.
    pub(super) async fn kill(&mut self, number: usize) -> Result<()> {
        self.check(number)?;
        self.running[number].start_kill()?;
        self.kills.push(Kill { worker: name(number), at: history::now() });
        self.running[number].wait().await?;
        self.running[number] = self.spawn(number)?;
        Ok(())
    }

    /// SIGSTOP.
    pub(super) fn stop(&mut self, number: usize) -> Result<()> {
        self.check(number)?;
        self.stops += 1;
        self.signal(number, Signal::STOP)
    }

    /// SIGCONT.
    pub(super) fn go_on(&mut self, number: usize) -> Result<()> {
        self.signal(number, Signal::CONT)
    }

    fn signal(&mut self, number: usize, signal: Signal) -> Result<()> {
        let pid = self.running[number].id().and_then(|id| Pid::from_raw(id as i32));
        kill_process(pid.context("a client has ended by itself")?, signal)?;
        Ok(())
    }

    /// A client that ended by itself was told what no queue may say.
    fn check(&mut self, number: usize) -> Result<()> {
        match self.running[number].try_wait()? {
            None => Ok(()),
            Some(status) => bail!("client {} ended by itself: {status}", name(number)),
        }
    }

    /// SIGKILL to all.
    pub(super) async fn end(&mut self) -> Result<()> {
        for number in 0..self.running.len() {
            self.check(number)?;
            self.running[number].kill().await?;
        }
        Ok(())
    }
}

fn name(number: usize) -> String {
    format!("client-{number}")
}
