//! The swarm without the rest of deploycore: a tracker, a gate in front of one file, and nodes that fetch it.

mod cli;
mod fetch;
mod single_file;
mod usage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use deploycore::model::{Manifest, RegionName};
use deploycore_p2p::core::tracker::SwarmStanding;
use deploycore_p2p::{Gate, GateSettings, Tracker, TrackerSettings};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use self::cli::{Cli, Command, GateArgs, TrackerArgs, VerifyArgs};
use self::single_file::SingleFile;
use crate::files::{check_writable, write_atomic};
use crate::signals::told_to_end;

/// How a command ended, for the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// 0: it did what was asked.
    Done,
    /// 3: the file is not what the manifest says.
    Differs,
    /// 4: told to end before it was done.
    Stopped,
}

/// Reads the command line and does what it says. 0: done; 1: an error; 2: a wrong command line; 3: `verify` found another file;
/// 4: ended by a signal before the file was whole.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")
        .and_then(|runtime| {
            // As a task, so that it runs where connections do: a wake-up of the main thread for each block costs more.
            let result = runtime.block_on(async { tokio::spawn(run(cli.command)).await? });
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Differs) => ExitCode::from(3),
        Ok(Outcome::Stopped) => ExitCode::from(4),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<Outcome> {
    match command {
        Command::Tracker(args) => tracker(args).await,
        Command::Gate(args) => gate(args).await,
        Command::Fetch(args) => fetch::run(args).await,
        Command::Verify(args) => verify(&args).await,
    }
}

/// All members of one swarm are of one region; the tool knows one swarm only.
fn region() -> RegionName {
    RegionName::new("swarm").expect("a valid name")
}

/// Cancelled when the process is told to end.
fn end_token() -> Result<CancellationToken> {
    let (token, signalled) = (CancellationToken::new(), told_to_end()?);
    let told = token.clone();
    tokio::spawn(async move {
        signalled.await;
        told.cancel();
    });
    Ok(token)
}

async fn tracker(args: TrackerArgs) -> Result<Outcome> {
    if let Some(path) = &args.standings {
        check_writable(path).context("--standings")?;
    }
    let (listen, links) = (&args.listen, args.links());
    let name = args.name.unwrap_or_else(|| random_name("tracker"));
    let mut settings = TrackerSettings::new(name, region(), args.trust.security()).with_listen(listen);
    settings.tracking.links = links;
    let tracker = Tracker::bind(settings).await.with_context(|| format!("--listen {listen}"))?;
    eprintln!("tracker on {}", tracker.local_addr());
    if let Some(path) = args.standings {
        tokio::spawn(write_standings(tracker.standings(), path));
    }
    tracker.run(end_token()?).await;
    Ok(Outcome::Done)
}

/// Keeps the file as new as what the tracker tells.
async fn write_standings(mut standings: watch::Receiver<Arc<[SwarmStanding]>>, path: PathBuf) {
    while standings.changed().await.is_ok() {
        let standings = Arc::clone(&standings.borrow_and_update());
        let path = path.clone();
        let written = tokio::task::spawn_blocking(move || write_atomic(&path, &serde_json::to_vec(&*standings)?)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!("{error:#}");
        }
    }
}

async fn gate(args: GateArgs) -> Result<Outcome> {
    check_writable(&args.manifest).context("--manifest")?;
    let end = end_token()?;
    let bar = bar("hash");
    let hashed = SingleFile::open(&args.file, &bar);
    let file = tokio::select! {
        file = hashed => file.with_context(|| args.file.display().to_string())?,
        () = end.cancelled() => return Ok(Outcome::Stopped),
    };
    bar.finish_and_clear();
    let manifest = file.manifest();
    let counts = args.counts.unwrap_or_else(|| beside(&args.manifest, ".counts"));
    let member = args.member;
    let name = member.name.unwrap_or_else(|| random_name("gate"));
    let mut settings = GateSettings::new(name, region(), &counts, member.trust.security()).with_listen(&member.listen);
    settings.advertise = member.advertise;
    settings.trackers = member.tracker;
    let gate = Gate::bind(settings, Arc::new(file)).await;
    let gate = gate.with_context(|| format!("--listen {}, counts in {}", member.listen, counts.display()))?;
    let serving = gate.run(end);
    write_atomic(&args.manifest, &serde_json::to_vec(&*manifest)?)?;
    eprintln!("gate on {}: {} bytes, BLAKE3 {}", gate.local_addr(), manifest.size(), manifest.digest());
    serving.await;
    let usage = gate.usage(&manifest.digest()).await?;
    eprintln!("{} bytes leased, {} for recovery", usage.leased_bytes, usage.recovery_bytes);
    Ok(Outcome::Done)
}

async fn verify(args: &VerifyArgs) -> Result<Outcome> {
    let manifest = read_manifest(&args.manifest)?;
    let bar = bar("verify");
    let found = SingleFile::open(&args.path, &bar).await.with_context(|| args.path.display().to_string())?.manifest();
    bar.finish_and_clear();
    if *found == manifest {
        println!("{}: {} bytes, BLAKE3 {}", args.path.display(), found.size(), found.digest());
        return Ok(Outcome::Done);
    }
    eprintln!(
        "{} holds {} bytes with BLAKE3 {}; {} says {} bytes with {}",
        args.path.display(),
        found.size(),
        found.digest(),
        args.manifest.display(),
        manifest.size(),
        manifest.digest()
    );
    Ok(Outcome::Differs)
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let bytes = std::fs::read(path).with_context(|| format!("--manifest {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("--manifest {}: not a manifest", path.display()))
}

/// A bar that counts bytes; hidden where there is no terminal.
fn bar(title: &'static str) -> ProgressBar {
    let template = "{prefix:<8} [{bar:30}] {bytes}/{total_bytes}  {bytes_per_sec}  {elapsed}  {msg}";
    let style = ProgressStyle::with_template(template).expect("the template is constant").progress_chars("=> ");
    ProgressBar::no_length().with_style(style).with_prefix(title)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn random_name(role: &str) -> String {
    format!("{role}-{:08x}", rand::random::<u32>())
}
