//! What a user may ask for.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use deploycore::port::queue::{MAX_BATCH, Order};

/// Measures a queue: enqueueing, draining, and the time from an enqueue to the start by a waiting worker.
///
/// The queue must be empty: every job that it holds would be taken.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Without --url it starts a PostgreSQL server of its own, durable and thrown away afterwards \
                                 (Debian: postgresql), and measures that server's CPU time and pgbench beside it."
)]
pub(crate) struct Cli {
    /// Of an empty database: sqlite:///path/file.db, postgres://user:password@host:port/database
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// Starts a PostgreSQL server; the default without --url
    #[arg(long, conflicts_with = "url")]
    pub(crate) server: bool,
    /// One job a call, or many
    #[arg(long, value_enum, default_value = "single")]
    pub(crate) mode: Mode,
    /// Who claim and complete at once
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(crate) workers: u16,
    /// How many jobs are enqueued and drained
    #[arg(long, value_name = "N", default_value = "5000", value_parser = clap::value_parser!(u32).range(500..=10_000_000))]
    pub(crate) jobs: u32,
    /// Jobs of one call in mode batch
    #[arg(long, value_name = "N", default_value = "100")]
    pub(crate) batch: usize,
    /// Enqueues whose latency is measured, on an idle queue
    #[arg(long, value_name = "N", default_value = "200")]
    pub(crate) latency_jobs: u32,
    /// Services take turns; otherwise the oldest job goes first
    #[arg(long)]
    pub(crate) fair_share: bool,
    /// So many finished jobs lie in the table before; needs a server of its own
    #[arg(long, value_name = "N", default_value = "0", value_parser = clap::value_parser!(u32).range(..=10_000_000), conflicts_with = "url")]
    pub(crate) finished: u32,
    /// A transaction is open in the database during the drain, so that nothing dead can be cleaned; needs a server of its own
    #[arg(long, conflicts_with = "url")]
    pub(crate) pinned: bool,
    /// Write the figures
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// How many jobs a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// One.
    Single,
    /// `--batch` of them.
    Batch,
}

impl Cli {
    /// How many jobs a call is about.
    pub(crate) fn at_once(&self) -> usize {
        match self.mode {
            Mode::Single => 1,
            Mode::Batch => self.batch,
        }
    }

    pub(crate) fn order(&self) -> Order {
        if self.fair_share { Order::FairShare } else { Order::Oldest }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.batch == 0 || self.batch > MAX_BATCH {
            bail!("--batch is 1 to {MAX_BATCH}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["queue-bench", "--mode", "batch", "--batch", "50"]);
        assert_eq!(cli.at_once(), 50);
        assert!(Cli::parse_from(["queue-bench", "--batch", "0"]).check().is_err());
        assert!(Cli::try_parse_from(["queue-bench", "--url", "sqlite://q.db", "--pinned"]).is_err());
    }
}
