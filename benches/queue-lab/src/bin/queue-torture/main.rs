//! `queue-torture`: clients of a queue as processes that are killed and stopped, a database that is killed too if it is our own, and the
//! proof from all records that nothing was lost, nothing done twice, no zombie believed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use queue_lab::torture::{self, Settings, Target, client};
use servers::postgres::{Options, Postgres};

/// Puts a queue under fire and proves from the records of all calls that it kept its contract.
///
/// The queue must be empty: every job that it holds would be taken. It ends with an error when the contract was broken.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Without --url it starts a PostgreSQL server of its own, durable and thrown away afterwards \
                                 (Debian: postgresql), and kills it now and then."
)]
struct Cli {
    /// Of an empty database: sqlite:///path/file.db, postgres://user:password@host:port/database
    #[arg(long)]
    url: Option<String>,
    /// How long the fire lasts
    #[arg(long, value_name = "N", default_value = "30", value_parser = clap::value_parser!(u64).range(5..=86_400))]
    seconds: u64,
    /// How many clients there are at once
    #[arg(long, value_name = "N", default_value = "6", value_parser = clap::value_parser!(u16).range(2..=100))]
    clients: u16,
    /// A lease without a heartbeat for so many milliseconds is lost
    #[arg(long, value_name = "MS", default_value = "1000", value_parser = clap::value_parser!(u64).range(200..=60_000))]
    lease_ms: u64,
    /// Of what is done to whom [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Write what came of it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Be a client of this name: for the driver itself
    #[arg(long, hide = true, requires_all = ["history", "url"])]
    client: Option<String>,
    /// Where the client writes its calls down
    #[arg(long, hide = true)]
    history: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.context("the runtime could not be started").and_then(|runtime| runtime.block_on(start(&cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(cli: &Cli) -> Result<()> {
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    if let (Some(worker), Some(history), Some(url)) = (&cli.client, &cli.history, &cli.url) {
        return client::run(url, worker, history, seed).await;
    }
    let mut target = match &cli.url {
        Some(url) => Target::Url(url.clone()),
        None => Target::server(Postgres::start(&Options::default())?)?,
    };
    let settings = Settings {
        program: std::env::current_exe()?,
        fire: Duration::from_secs(cli.seconds),
        clients: cli.clients.into(),
        lost_after: Duration::from_millis(cli.lease_ms),
        seed,
    };
    let report = torture::run(&settings, &mut target).await?;
    let json = serde_json::to_string_pretty(&report)?;
    println!("{json}");
    if let Some(path) = &cli.json {
        std::fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
    }
    if !report.is_good() {
        bail!("the queue broke its contract; --seed {seed} does the same to the same clients again");
    }
    Ok(())
}
