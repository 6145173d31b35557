//! How many machines one gateway process holds, what one costs, and how fast it tells them.
//!
//! ```text
//! gateway-load --machines 20000 --seconds 20 --json figures.json
//! ```
//!
//! It starts a gateway process of its own, bound to one core, and plays the machines from another: each holds one connection with a request
//! that waits for a change, as `GatewayClient` sends it. While they wait it polls as fast as the gateway answers; then it changes a goal and
//! takes the time until each machine has it. With `--url` it loads a gateway that is there already: that one must be writable, and of
//! its process nothing is known, so memory and CPU are left out.

mod http;
mod load;
mod machine;
mod process;
mod serve;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use url::Url;

#[derive(Debug, Parser)]
#[command(about = "Loads a region's gateway with waiting machines and polls", version)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves goals until the standard input ends; what the driver starts.
    #[command(hide = true)]
    Serve(serve::Serve),
}

#[derive(Debug, Args)]
struct Load {
    /// Machines that wait.
    #[arg(long, default_value_t = 20_000)]
    machines: usize,
    /// How long to poll while they wait.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Connections that poll in a closed loop.
    #[arg(long, default_value_t = 64)]
    pollers: usize,
    /// Services that have a goal.
    #[arg(long, default_value_t = 20)]
    services: usize,
    /// Machines report before they wait, and say on each request that the report holds, as agents do. The region's board of reports counts to
    /// the gateway's memory then.
    #[arg(long)]
    reports: bool,
    /// Where the gateway of the driver's own keeps its goals.
    #[arg(long, value_enum, default_value_t = serve::Store::Redb)]
    store: serve::Store,
    /// A gateway that is there already, instead of one of the driver's own.
    #[arg(long)]
    url: Option<Url>,
    /// Where to write the figures besides standard output.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Figures {
    /// Machines asked for, and those that still waited when the change was made.
    machines: usize,
    held: usize,
    /// Anonymous memory of the gateway's process: before the machines came, while they wait, and the difference by machine.
    anonymous_before: Option<u64>,
    anonymous_held: Option<u64>,
    bytes_per_machine: Option<u64>,
    /// Polls answered in a second by the clock, and in a second of the process' CPU time, its part in the kernel included.
    polls_per_s: f64,
    polls_per_cpu_s: Option<f64>,
    poll_ms: Quantiles,
    /// From before the change is written until a machine has all of the answer.
    after_change_ms: Quantiles,
    /// The same until it has read the list of all goals too, as an agent does when it hears of a change.
    listed_ms: Quantiles,
    /// Machines that have not heard of the change after a minute.
    missed: usize,
    /// Requests that were not answered as they should be, with a new connection after each.
    failures: usize,
    /// Bytes of the whole list of goals, and of one answer to the change.
    list_bytes: usize,
    change_bytes: usize,
}

/// Of many durations, in milliseconds.
#[derive(Debug, Default, Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Quantiles {
    fn of(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        let at = |share: f64| {
            let last = durations.len().checked_sub(1)?;
            let rank = (durations.len() as f64 * share).ceil() as usize;
            Some(durations[rank.clamp(1, last + 1) - 1].as_secs_f64() * 1e3)
        };
        Self { p50: at(0.5).unwrap_or_default(), p99: at(0.99).unwrap_or_default(), max: at(1.0).unwrap_or_default() }
    }
}

fn main() -> Result<()> {
    let Cli { command, load } = Cli::parse();
    if let Some(Command::Serve(serve)) = command {
        return serve::run(&serve);
    }
    if load.machines == 0 || load.pollers == 0 || load.services == 0 || load.seconds == 0 {
        bail!("--machines, --pollers, --services and --seconds are 1 at the least");
    }
    process::allow_open_files(load.machines + load.pollers + 200)?;
    let figures = load::run(&load)?;
    let json = serde_json::to_string_pretty(&figures)?;
    println!("{json}");
    if let Some(path) = &load.json {
        std::fs::write(path, json + "\n").with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}
