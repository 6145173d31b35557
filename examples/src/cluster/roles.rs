//! The roles, one process each.

mod agent;
mod control;
mod metrics;
pub(super) mod place;
mod region;
mod warden;
mod worker;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use deploycore::machine::{journaled_processes, kill_group};
use deploycore::pace::{Backoff, Pace, Wake};
use deploycore::port::chain;
use deploycore::store::BlobStore;
use deploycore_kv::RedbGoals;
use deploycore_kv::gateway::{Gateway, keeping_alive};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::cli::{Place, RoleName};
use super::config;
use super::notify;
use super::supervisor::Lifeline;
use crate::signals::told_to_end;

pub(super) use worker::build_settings;

/// How long a role may take to end in order; then it ends anyway. The parent waits a little longer.
const ORDERLY_END: Duration = Duration::from_secs(10);
/// How long the lock of an ending predecessor is waited for.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(15);
/// How long a port is waited for. Whoever holds the lock has no predecessor any more, but a port may be let go of a little later.
const PORT_PATIENCE: Duration = Duration::from_secs(3);

/// How often a store is swept, and how old what unfinished puts left must be.
const SWEEP_PERIOD: Duration = Duration::from_hours(6);
const SWEEP_AGE: Duration = Duration::from_hours(24);

/// Runs one role until it is told to end or fails.
pub async fn run(
    role: RoleName,
    config: &Path,
    place: &Place,
    metrics: Option<SocketAddr>,
    with_lifeline: bool,
) -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let lifeline = if with_lifeline { Lifeline::standard_input() } else { Lifeline::none() };
    let limit = if role == RoleName::Warden { warden::PATIENCE } else { ORDERLY_END };
    let shutdown = shutdown_token(lifeline.clone(), limit)?;
    tracing::info!(?role, config = %config.display(), pid = std::process::id(), "starting");
    let (path, config) = (config, config::read(config)?);
    let problems = config.problems();
    if !problems.is_empty() {
        bail!("{}: {}", path.display(), problems.join("; "));
    }
    if let Some(address) = metrics {
        metrics::serve(address)?;
    }
    match role {
        RoleName::Control => {
            let _lock = lock(&config.control_dir()).await?;
            control::run(config, metrics.is_some(), shutdown).await
        }
        RoleName::Worker => {
            let name = place::worker(place)?;
            let _lock = lock(&config.worker_dir(name.as_str())).await?;
            worker::run(config, name, shutdown).await
        }
        RoleName::Region => {
            let (name, region, replica) = place::replica(&config, place)?;
            let _lock = lock(&config.replica_dir(name, replica.name.as_str())).await?;
            region::run(&config, name, region, replica, shutdown).await
        }
        RoleName::Agent => {
            let (name, region, machine) = place::machine(&config, place)?;
            let _lock = lock(&config.machine_dir(name, machine.as_str())).await?;
            agent::run(&config, name, region, machine, place, shutdown, lifeline).await
        }
        // It outlives the others and touches only what nobody holds.
        RoleName::Warden => warden::run(&config, shutdown).await,
    }?;
    tracing::info!("ended");
    Ok(())
}

/// Held by a role as long as it runs, with its process id in it.
fn lock_path(folder: &Path) -> PathBuf {
    folder.join("role.lock")
}

/// Two processes of one role and name would share a folder: the second waits for the first to end.
async fn lock(folder: &Path) -> Result<File> {
    let path = lock_path(folder);
    let cannot = || format!("{} cannot be made: see that this user may write there", path.display());
    std::fs::create_dir_all(folder).with_context(cannot)?;
    let mut file = File::options().create(true).truncate(false).write(true).open(&path).with_context(cannot)?;
    let start = tokio::time::Instant::now();
    while file.try_lock().is_err() {
        if start.elapsed() > PREDECESSOR_PATIENCE {
            bail!("{} is locked: another process runs as this one would", path.display());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // For people who look for the process, and for tests that kill it.
    file.set_len(0)?;
    std::io::Write::write_all(&mut file, std::process::id().to_string().as_bytes())?;
    Ok(file)
}

fn shutdown_token(lifeline: Lifeline, limit: Duration) -> Result<CancellationToken> {
    let token = CancellationToken::new();
    let signalled = told_to_end()?;
    let told = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = signalled => {}
            () = lifeline.cut() => {}
        }
        told.cancel();
        notify::stopping();
        // A service that cannot end in order is what a crash is: everything can be started again after it.
        tokio::time::sleep(limit).await;
        tracing::error!("not ended in order within {limit:?}");
        std::process::exit(1);
    });
    Ok(token)
}

/// The services of a role: they end together.
struct Services {
    tasks: JoinSet<(&'static str, Result<()>)>,
    shutdown: CancellationToken,
}

impl Services {
    fn new(shutdown: CancellationToken) -> Self {
        Self { tasks: JoinSet::new(), shutdown }
    }

    fn add(&mut self, name: &'static str, service: impl Future<Output = Result<()>> + Send + 'static) {
        self.tasks.spawn(async move { (name, service.await) });
    }

    async fn serve(&mut self, name: &'static str, address: SocketAddr, router: axum::Router) -> Result<()> {
        let listener = listen(address).await?;
        let shutdown = self.shutdown.clone();
        self.add(name, async move {
            let stopped = shutdown.clone();
            let server = axum::serve(keeping_alive(listener), router)
                .with_graceful_shutdown(async move { stopped.cancelled().await });
            tokio::select! {
                result = server => Ok(result?),
                // A client that does not read its answer would hold a graceful end for ever.
                () = async { shutdown.cancelled().await; tokio::time::sleep(Duration::from_secs(1)).await } => Ok(()),
            }
        });
        Ok(())
    }

    /// Serves a gateway, with further routes beside its own.
    async fn serve_gateway(&mut self, address: SocketAddr, gateway: &Gateway, more: axum::Router) -> Result<()> {
        let listener = listen(address).await?;
        let (gateway, shutdown) = (gateway.clone(), self.shutdown.clone());
        self.add("gateway", async move { Ok(gateway.serve_with(more, listener, shutdown).await?) });
        Ok(())
    }

    /// Removes from a store, from time to time, what puts that were cut short left, and logs that were kept for long enough.
    fn sweep(&mut self, store: Arc<BlobStore>, keep_logs: Duration) {
        let sweep = move || {
            let store = store.clone();
            async move { sweep_store(&store, keep_logs).await }
        };
        self.add("store sweep", sweep_until(self.shutdown.clone(), sweep));
    }

    /// Ends the process when the thread that owns a file of goals has panicked: one that starts anew opens it again.
    fn guard(&mut self, file: Arc<RedbGoals>) {
        let shutdown = self.shutdown.clone();
        self.add("goal file", async move {
            let failed = shutdown.run_until_cancelled(file.failed()).await.is_some();
            ensure!(!failed, "the thread that owns it has panicked");
            Ok(())
        });
    }

    /// Waits until all have ended; one that ends early takes the others with it.
    async fn run(mut self) -> Result<()> {
        notify::ready();
        let mut first = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let early = !self.shutdown.is_cancelled();
            self.shutdown.cancel();
            let result = match ended {
                Ok((name, Ok(()))) if early => Err(anyhow::anyhow!("{name} ended by itself")),
                Ok((name, result)) => result.with_context(|| format!("{name} failed")),
                Err(panic) => Err(panic.into()),
            };
            if first.is_ok() {
                first = result;
            }
        }
        first
    }
}

async fn sweep_store(store: &BlobStore, keep_logs: Duration) {
    match store.sweep(SWEEP_AGE).await {
        Ok(swept) => tracing::info!(?swept, "store swept"),
        Err(error) => tracing::warn!(error = chain(&error), "the store cannot be swept"),
    }
    if let Err(error) = store.sweep_logs(keep_logs).await {
        tracing::warn!(error = chain(&error), "old logs cannot be removed");
    }
}

/// Sweeps in the rhythm. A sweep lists the whole store, which may take minutes: an end in order does not wait for that.
async fn sweep_until<F: Future<Output = ()>>(shutdown: CancellationToken, sweep: impl Fn() -> F) -> Result<()> {
    let mut pace = Pace::new(SWEEP_PERIOD, Backoff::default());
    while pace.wait(std::future::pending(), &shutdown).await != Wake::Shutdown {
        if shutdown.run_until_cancelled(sweep()).await.is_none() {
            break;
        }
    }
    Ok(())
}

/// Ends what the journals of a machine say is running.
fn end_services(folder: &Path) -> Result<()> {
    for process in journaled_processes(folder)? {
        kill_group(&process)?;
    }
    Ok(())
}

/// Listens; a port that a predecessor is still letting go of is waited for.
async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let start = tokio::time::Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) if start.elapsed() > PORT_PATIENCE => {
                return Err(error).with_context(|| {
                    format!("{address} cannot be listened on: another process holds the port, or the address is not this host's")
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_end_in_order_does_not_wait_for_a_sweep() {
        let shutdown = CancellationToken::new();
        let (begun, sweeps) = tokio::sync::watch::channel(false);
        let sweep = || {
            begun.send_replace(true);
            std::future::pending()
        };
        let told = async {
            sweeps.clone().wait_for(|begun| *begun).await.unwrap();
            shutdown.cancel();
        };
        let ended = async { tokio::join!(sweep_until(shutdown.clone(), sweep), told).0 };
        tokio::time::timeout(SWEEP_PERIOD * 2, ended).await.expect("it is waited for").unwrap();
    }
}
