//! The warden: when the parent is gone it ends what agents left running, also services whose agent was killed first.
//!
//! An agent that restarts adopts its running services, so they outlive it by design; but they must not outlive the cluster. An agent that
//! lives ends its services itself, and holds its lock as long as it lives, so the warden looks only at machines whose lock is free, and
//! holds it meanwhile: a cluster that is started on the same folder at once keeps what it adopts.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

use super::end_services;
use crate::cluster::config;

/// Between looks for locks that have become free.
const LOOK: Duration = Duration::from_millis(200);
/// Agents have ended within this time, a little more than [`super::ORDERLY_END`]; a lock that is held still is another cluster's. The
/// parent waits a little longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(11);

pub(super) async fn run(config: config::Warden, shutdown: CancellationToken) -> Result<()> {
    shutdown.cancelled().await;
    let mut left: BTreeSet<PathBuf> = config.agents.into_iter().collect();
    let start = tokio::time::Instant::now();
    while start.elapsed() < PATIENCE {
        left.retain(|agent| !sweep(agent));
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Ends the services of an agent that is gone; false while it lives.
fn sweep(agent: &Path) -> bool {
    let Ok(lock) = File::options().create(true).truncate(false).write(true).open(agent.with_extension("lock")) else {
        return false;
    };
    if lock.try_lock().is_err() {
        return false;
    }
    let ended = config::read::<config::Agent>(agent).and_then(|agent| end_services(&agent.data_dir));
    if let Err(error) = ended {
        // A machine that never started has no journals; another's must end all the same.
        tracing::info!(agent = %agent.display(), "nothing to end: {error:#}");
    }
    true
}
