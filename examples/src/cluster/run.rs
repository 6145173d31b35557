//! The entry: dispatches the command line.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use super::cli::{Cli, Command};
use super::{check, commands, roles, whole};

/// Reads the command line and does what it says; the exit code is 0 only when all of it was done.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    deploycore::tls::ensure_provider();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")
        .and_then(|runtime| {
            let result = runtime.block_on(dispatch(cli));
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        None => whole::bring_up(cli.run).await,
        Some(Command::Role { role, config, place, metrics, lifeline }) => {
            roles::run(role, &config, &place, metrics, lifeline).await
        }
        Some(Command::Check { config, role, place }) => return check::run(&config, role, &place).await,
        Some(command) => commands::run(command).await,
    }
    .map(|()| ExitCode::SUCCESS)
}
