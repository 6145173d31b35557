//! Keeps the children alive: starts them, starts a dead one again, and ends them all with the parent.
//!
//! Each child holds the read end of a pipe as its standard input, its lifeline: when the parent ends, in whatever way, the
//! child reads the end of the file and ends too.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cli::METRICS;
use super::layout::DataDir;

/// A child that lived this long is healthy: its next death counts as the first. Longer than a child waits for a lock or a port
/// before it fails for want of it.
const HEALTHY: Duration = Duration::from_secs(20);
/// A child that died this often without ever being healthy is given up: something is wrong that a restart does not mend.
const MAX_EARLY_DEATHS: u32 = 8;
/// How long children have to end once their lifelines are cut.
const STOP_PATIENCE: Duration = Duration::from_secs(12);

/// A process to keep alive.
#[derive(Debug, Clone)]
pub struct ChildSpec {
    /// Its name: of its log, and for people.
    pub name: String,
    /// Its role, as the command line knows it.
    pub role: &'static str,
    /// What the command line says beside the configuration.
    pub arguments: Vec<String>,
}

/// Keeps children alive until it is shut down.
#[derive(Debug)]
pub struct Supervisor {
    program: PathBuf,
    data: DataDir,
    tasks: tokio::task::JoinSet<Result<()>>,
    shutdown: CancellationToken,
}

impl Supervisor {
    /// A supervisor with no children; they are started from this program's own file.
    pub fn new(data: DataDir) -> Result<Self> {
        let program = std::env::current_exe().context("the program's own file is not known")?;
        let shutdown = CancellationToken::new();
        Ok(Self { program, data, tasks: tokio::task::JoinSet::new(), shutdown })
    }

    /// Starts a child and keeps it alive.
    pub fn start(&mut self, spec: ChildSpec) {
        let keeper =
            Keeper { program: self.program.clone(), data: self.data.clone(), shutdown: self.shutdown.clone(), spec };
        self.tasks.spawn(keeper.run());
    }

    /// Resolves when a child cannot be kept alive, with the reason.
    pub async fn failed(&mut self) -> anyhow::Error {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return error,
                Some(Err(error)) => return error.into(),
                None => std::future::pending().await,
            }
        }
    }

    /// Cuts all lifelines and waits until every child has ended; one that does not end in time is killed.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

struct Keeper {
    program: PathBuf,
    data: DataDir,
    shutdown: CancellationToken,
    spec: ChildSpec,
}

impl Keeper {
    async fn run(self) -> Result<()> {
        let mut early_deaths = 0;
        loop {
            let started = Instant::now();
            let mut child = self.spawn()?;
            // Taken, because waiting for the child would close it.
            let lifeline = child.stdin.take();
            let exit = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => {
                    drop(lifeline);
                    end(&mut child).await;
                    return Ok(());
                }
                exit = child.wait() => exit?,
            };
            tracing::warn!(child = self.spec.name, %exit, "child ended; starting it again");
            early_deaths = if started.elapsed() >= HEALTHY { 1 } else { early_deaths + 1 };
            if early_deaths >= MAX_EARLY_DEATHS {
                let log = log_path(&self.data, &self.spec.name);
                anyhow::bail!(
                    "{} ended {early_deaths} times in a row ({exit}); its log {} ends with:\n{}",
                    self.spec.name,
                    log.display(),
                    last_lines(&log, 15)
                );
            }
            let delay = Duration::from_millis(100) * 2_u32.pow(early_deaths - 1);
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    fn spawn(&self) -> Result<Child> {
        let log = log_path(&self.data, &self.spec.name);
        let log = OpenOptions::new().create(true).append(true).open(&log)?;
        Command::new(&self.program)
            .args(["role", self.spec.role, "--lifeline", "--config"])
            .arg(self.data.join("cluster.toml"))
            .args(&self.spec.arguments)
            // One address is for one process.
            .env_remove(METRICS)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} could not be started", self.spec.name))
    }
}

async fn end(child: &mut Child) {
    if tokio::time::timeout(STOP_PATIENCE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Where a child's output goes.
pub fn log_path(data: &DataDir, name: &str) -> PathBuf {
    data.join(format!("logs/{name}.log"))
}

/// The end of a text file, for an error message.
pub fn last_lines(path: &Path, count: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(16 << 10);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(16 << 10).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A role's tie to the parent that started it.
#[derive(Debug, Clone)]
pub struct Lifeline(CancellationToken);

impl Lifeline {
    /// No parent to end with.
    pub fn none() -> Self {
        Self(CancellationToken::new())
    }

    /// Standard input: its end means that the parent is gone. The reading thread ends with the process.
    pub fn standard_input() -> Self {
        let token = CancellationToken::new();
        let cut = token.clone();
        std::thread::spawn(move || {
            let mut byte = [0; 16];
            while matches!(std::io::Read::read(&mut std::io::stdin(), &mut byte), Ok(1..)) {}
            cut.cancel();
        });
        Self(token)
    }

    /// Whether the parent is gone.
    pub fn is_cut(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Resolves when the parent is gone.
    pub async fn cut(&self) {
        self.0.cancelled().await;
    }
}
