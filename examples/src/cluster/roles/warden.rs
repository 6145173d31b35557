//! The warden: when the parent is gone it ends what agents left running, also services whose agent was killed first.
//!
//! An agent that restarts adopts its running services, so they outlive it by design; but they must not outlive the cluster. An agent that
//! lives ends its services itself, and holds its lock as long as it lives, so the warden looks only at machines whose lock is free, and
//! holds it meanwhile: a cluster that is started on the same folder at once keeps what it adopts.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

use super::{end_services, lock_path};
use crate::cluster::config::Config;

/// Between looks for locks that have become free.
const LOOK: Duration = Duration::from_millis(200);
/// Agents have ended within this time, a little more than [`super::ORDERLY_END`]; a lock that is held still is another cluster's. The
/// parent waits a little longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(11);

pub(super) async fn run(config: &Config, shutdown: CancellationToken) -> Result<()> {
    shutdown.cancelled().await;
    let mut left = machines(&config.machines_dir())?;
    let start = tokio::time::Instant::now();
    while start.elapsed() < PATIENCE {
        left.retain(|machine| !sweep(machine));
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// The folder of each machine of this host: they stand below their regions'.
fn machines(folder: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut machines = BTreeSet::new();
    for region in std::fs::read_dir(folder)? {
        for machine in std::fs::read_dir(region?.path())? {
            machines.insert(machine?.path());
        }
    }
    Ok(machines)
}

/// Ends the services of an agent that is gone; false while it lives.
fn sweep(machine: &Path) -> bool {
    let Ok(lock) = File::options().create(true).truncate(false).write(true).open(lock_path(machine)) else {
        return false;
    };
    if lock.try_lock().is_err() {
        return false;
    }
    if let Err(error) = end_services(machine) {
        // A machine that never started has no journals; another's must end all the same.
        tracing::info!(machine = %machine.display(), "nothing to end: {error:#}");
    }
    true
}
