//! The queues, and how each is measured: by a driver that speaks its own language, as a process with the server to itself.

use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use queue_lab::database;
use serde::{Deserialize, Serialize};
use servers::postgres::Postgres;

use crate::Cli;

/// How many jobs a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    Single,
    Batch,
}

impl Mode {
    pub(crate) const ALL: [Self; 2] = [Self::Single, Self::Batch];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Batch => "batch",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Queue {
    Deploycore,
    GraphileWorker,
    PgBoss,
    Pgmq,
    Procrastinate,
}

/// What a driver says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Figures {
    #[serde(default)]
    pub(crate) version: Option<String>,
    pub(crate) enqueue_per_s: f64,
    /// Absent where a queue has no such mode.
    pub(crate) drain_per_s: Option<f64>,
}

impl Queue {
    pub(crate) const ALL: [Self; 5] =
        [Self::Deploycore, Self::GraphileWorker, Self::PgBoss, Self::Pgmq, Self::Procrastinate];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Deploycore => "deploycore",
            Self::GraphileWorker => "graphile-worker",
            Self::PgBoss => "pg-boss",
            Self::Pgmq => "pgmq",
            Self::Procrastinate => "procrastinate",
        }
    }

    pub(crate) fn measure(self, server: &Postgres, cli: &Cli, mode: Mode) -> Result<Figures> {
        let jobs = if mode == Mode::Batch { cli.batch_jobs } else { cli.jobs };
        let mode = mode.name();
        let name = format!("{}-{mode}", self.name());
        let url = database::create(server, &name)?;
        let figures = self.drive(cli, mode, jobs, &url)?;
        // What the server would still do for it shall not fall into the next measurement.
        database::drop(server, &name)?;
        Ok(figures)
    }

    fn drive(self, cli: &Cli, mode: &str, jobs: u32, url: &str) -> Result<Figures> {
        let json = cli.peers.join("deploycore.json");
        let mut command = match self {
            Self::Deploycore => {
                let own = std::env::current_exe()?.with_file_name("queue-bench");
                let mut command = Command::new(own);
                command.args(["--url", url, "--mode", mode, "--workers", &cli.workers.to_string()]);
                command.args(["--jobs", &jobs.to_string(), "--batch", &cli.batch.to_string()]);
                command.args(["--latency-jobs", "1", "--json"]).arg(&json);
                command
            }
            Self::GraphileWorker | Self::PgBoss => {
                let mut command = Command::new("node");
                command.arg(cli.peers.join(format!("{}.mjs", self.name())));
                command
            }
            Self::Pgmq => Command::new(cli.peers.join("pgmq/target/release/pgmq-peer")),
            Self::Procrastinate => {
                let mut command = Command::new(cli.peers.join("venv/bin/python"));
                command.arg(cli.peers.join("procrastinate_peer.py"));
                command
            }
        };
        command.env("DATABASE_URL", url).env("MODE", mode).env("JOBS", jobs.to_string());
        command.env("WORKERS", cli.workers.to_string()).env("BATCH", cli.batch.to_string());
        let output = command.output().with_context(|| command.get_program().display().to_string())?;
        let said = said(&output)?;
        if self == Self::Deploycore {
            return Ok(serde_json::from_str(&std::fs::read_to_string(json)?)?);
        }
        let line = said.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("it said: {said}"))
    }
}

fn said(output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}

/// What the server can commit: updates of one row each, by primary key, each a transaction, from as many clients as there are workers.
pub(crate) fn commit_limit(server: &Postgres, clients: u16) -> Result<f64> {
    const TABLE: &str = "CREATE TABLE t AS SELECT n AS id, 0 AS value FROM generate_series(1, 100000) n; ALTER TABLE t ADD PRIMARY KEY (id)";
    const UPDATE: &str = "\\set id random(1, 100000)\nUPDATE t SET value = value + 1 WHERE id = :id;\n";
    database::create(server, "commits")?;
    said(&server.program("psql", "commits").args(["-q", "-c", TABLE]).output()?)?;
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("update.sql");
    std::fs::write(&script, UPDATE)?;
    let mut command = server.program("pgbench", "commits");
    command.args(["-n", "-M", "prepared", "-j", "2", "-T", "5", "-c", &clients.to_string(), "-f"]).arg(&script);
    let said = said(&command.output()?)?;
    let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok());
    tps.with_context(|| format!("pgbench gave no rate: {said}"))
}
