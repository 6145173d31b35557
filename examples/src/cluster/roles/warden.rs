//! The warden: when the parent is gone it ends what agents left running, also services whose agent was killed first.
//!
//! An agent that restarts adopts its running services, so they outlive it by design; but they must not outlive the cluster.

use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

use super::end_services;
use crate::cluster::config;

/// Agents end their services themselves within this time.
const HEAD_START: Duration = Duration::from_secs(1);

pub(super) async fn run(config: config::Warden, shutdown: CancellationToken) -> Result<()> {
    shutdown.cancelled().await;
    tokio::time::sleep(HEAD_START).await;
    for _ in 0..5 {
        for folder in &config.machines {
            if let Err(error) = end_services(folder) {
                // A machine that never started has no journals; another's must end all the same.
                tracing::info!(folder = %folder.display(), "nothing to end: {error:#}");
            }
        }
        // A service that was just being started stands in the journal by now.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}
