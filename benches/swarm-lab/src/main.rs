//! `swarm-lab`: the swarm on real sockets over shaped links, with what others use beside it.
//!
//! Each host is a network namespace with one link to a switch, shaped both ways: one holds the store, the others fetch. What is run are
//! the tools themselves, as processes; what is measured is the time from the start of the first fetch to the end of the last, and what
//! that cost. Root and Linux only. `docs/benchmarks.md` holds the figures.

mod cli;
mod command;
mod figures;
mod names;
mod network;
mod payload;
mod process;
mod report;
mod run;
mod tool;

use std::future::Future;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use self::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("the runtime could not be started").and_then(|runtime| {
        runtime.block_on(async {
            let ended = told_to_end()?;
            // Whichever comes first: dropping the lab removes all that it made.
            tokio::select! {
                biased;
                () = ended => bail!("told to end"),
                result = lab(&cli) => result,
            }
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Resolves with the first signal that asks for an end; none of them ends the process by itself any more.
fn told_to_end() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}

async fn lab(cli: &Cli) -> Result<()> {
    let case = cli.case();
    cli.check()?;
    let parent = cli.dir.clone().unwrap_or_else(std::env::temp_dir);
    network::remove_stale()?;
    names::remove_stale_folders(&parent)?;
    let folder = tempfile::Builder::new().prefix(&names::prefix()).tempdir_in(&parent);
    let folder = folder.with_context(|| format!("no folder can be made in {}", parent.display()))?;
    let payload = payload::make(folder.path(), cli)?;
    eprintln!("{case}: the bound is {:.2} s", case.bound());
    let mut runs = Vec::new();
    for _ in 0..cli.runs {
        for tool in &cli.tools {
            let run = run::run(*tool, cli, folder.path(), &payload).await;
            let run = run.with_context(|| format!("{tool}, {case}"))?;
            eprintln!("{}", report::line(&case, &run));
            runs.push(run);
        }
    }
    let rows = report::rows(&case, &runs);
    print!("{}", report::table(&rows));
    if let Some(path) = &cli.json {
        let json = serde_json::to_vec_pretty(&report::Json { case: &case, runs: &runs })?;
        std::fs::write(path, json).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &cli.write_docs {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let text = report::merge(&text, &rows).with_context(|| path.display().to_string())?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
