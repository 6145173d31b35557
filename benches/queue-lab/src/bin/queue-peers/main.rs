//! `queue-peers`: this queue and others on one PostgreSQL server, each in a database of its own, in one run, as ratios to what the server can
//! commit. `benches/peers/run` installs the others and starts this.

mod queue;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use queue_lab::figures::load;
use servers::postgres::{Options, Postgres};

use self::queue::{Mode, Queue};
use self::report::Row;

/// Measures this queue and others on one PostgreSQL server of its own, durable and thrown away afterwards.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Where the peers are installed
    #[arg(long, value_name = "DIR")]
    peers: PathBuf,
    /// Who claim and complete at once
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u16).range(1..=200))]
    workers: u16,
    /// Jobs of each measurement, one a call
    #[arg(long, value_name = "N", default_value = "4000", value_parser = clap::value_parser!(u32).range(500..=1_000_000))]
    jobs: u32,
    /// Jobs of each measurement in mode batch
    #[arg(long, value_name = "N", default_value = "20000", value_parser = clap::value_parser!(u32).range(500..=10_000_000))]
    batch_jobs: u32,
    /// Jobs of one call in mode batch
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    batch: u16,
    /// How often each is measured, in turn
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Write the figures
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put the table into this file
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/benchmarks.md")]
    write_docs: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let load_before = load();
    // Of three queues with drivers of their own, each with as many connections as it has workers.
    let options = Options::default().with_setting("max_wal_size", "8GB").with_setting("checkpoint_timeout", "1h");
    let server = Postgres::start(&options)?;
    let commits_per_s = queue::commit_limit(&server, cli.workers).context("pgbench")?;
    eprintln!("the server commits {commits_per_s:.0} single-row updates a second");
    let kinds = Mode::ALL.into_iter().flat_map(|mode| Queue::ALL.map(|queue| (mode, queue)));
    let mut rows: Vec<Row> = kinds.map(|(mode, queue)| Row::new(queue, mode)).collect();
    for _ in 0..cli.rounds {
        for row in &mut rows {
            let (queue, mode) = (row.queue, row.mode);
            let figures = queue.measure(&server, cli, mode).with_context(|| format!("{queue:?}, {mode:?}"))?;
            row.add(figures);
            eprintln!("{}", row.line(commits_per_s));
        }
    }
    let settings = report::Settings {
        workers: cli.workers,
        jobs: cli.jobs,
        batch_jobs: cli.batch_jobs,
        batch: cli.batch,
        rounds: cli.rounds,
    };
    let report = report::Report { settings, commits_per_s, rows, load: [load_before, load()] };
    print!("{}", report.table());
    if let Some(path) = &cli.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, json).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &cli.write_docs {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let text = report.put_into(&text).with_context(|| path.display().to_string())?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
