//! `queue-bench`: what a queue costs, with jobs that do nothing and every commit durable.
//!
//! It fills a queue, drains it with workers, and measures how soon a waiting worker starts a new job. With a server of its own it also
//! measures the server's CPU time, and beside it the two statements that any queue on PostgreSQL makes, run by pgbench.

mod bare;
mod bed;
mod cli;
mod measure;
mod report;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use self::bed::Bed;
use self::cli::{Cli, Mode};
use self::report::Report;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.context("the runtime could not be started").and_then(|runtime| runtime.block_on(bench(&cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(cli: &Cli) -> Result<()> {
    cli.check()?;
    let load_before = queue_lab::figures::load();
    let bed = Bed::open(cli).await?;
    let mut report = Report::new(cli, &bed);
    bed.add_history(cli.finished).await.context("the finished jobs could not be added")?;

    report.enqueue_per_s = measure::enqueue(&bed, cli).await.context("enqueueing")?;
    let pin = if cli.pinned { Some(bed.pin().await.context("the long transaction")?) } else { None };
    report.note_drain(&measure::drain(&bed, cli).await.context("draining")?);
    report.claim_alone_ms = measure::claim_alone(&bed).await.context("claiming alone")?;
    drop(pin);
    report.latency_ms = measure::latency(&bed, cli).await.context("the latency of an idle queue")?;
    if let Some(server) = bed.server()
        && cli.mode == Mode::Single
    {
        report.note_bare(bare::run(server, cli).await.context("pgbench")?);
    }
    report.load = [load_before, queue_lab::figures::load()];

    let json = serde_json::to_string_pretty(&report)?;
    println!("{json}");
    if let Some(path) = &cli.json {
        std::fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}
