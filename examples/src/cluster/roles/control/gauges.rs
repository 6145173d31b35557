//! What waits, as gauges: in the queue, and on the way to each region.

use std::sync::Arc;
use std::time::Duration;

use deploycore::model::{FiguresRequest, RegionName, ReplicationFigures};
use deploycore::pace::{Backoff, Pace, Wake, within};
use deploycore::port::{JobQueue, ReplicationLedger, chain, ledger, queue};
use metrics::gauge;
use tokio_util::sync::CancellationToken;

/// Between looks. For one the queue walks along an index of all that finished.
const PERIOD: Duration = Duration::from_secs(30);
/// How long a look may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Keeps gauges of a queue and a ledger.
pub(super) struct Gauges {
    pub(super) queue: Arc<dyn JobQueue>,
    pub(super) ledger: Arc<dyn ReplicationLedger>,
    /// Those whose copies are told, also while there are none.
    pub(super) regions: Vec<RegionName>,
}

impl Gauges {
    /// Looks again and again until `shutdown`. While a database cannot be asked, its gauges stay as they were.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let mut pace = Pace::new(PERIOD, Backoff::default());
        loop {
            let Some(all_told) = shutdown.run_until_cancelled(self.look()).await else { return };
            pace.note(all_told);
            if pace.wait(std::future::pending(), &shutdown).await == Wake::Shutdown {
                return;
            }
        }
    }

    /// Whether both answered.
    async fn look(&self) -> bool {
        let jobs = self.tell_jobs().await.inspect_err(|error| {
            tracing::warn!(error = %chain(error), "the queue does not say what waits");
        });
        let copies = self.tell_copies().await.inspect_err(|error| {
            tracing::warn!(error = %chain(error), "the ledger does not say what waits");
        });
        jobs.is_ok() && copies.is_ok()
    }

    async fn tell_jobs(&self) -> Result<(), queue::Error> {
        let stats = within::<_, queue::Error>(LIMIT, "queue", self.queue.stats()).await?;
        for (status, count) in &stats.counts {
            gauge!("deploycore_queue_jobs", "status" => status.as_str()).set(*count as f64);
        }
        gauge!("deploycore_queue_oldest_queued_seconds").set(stats.oldest_queued_seconds.unwrap_or(0.0));
        gauge!("deploycore_queue_paused").set(if stats.paused { 1.0 } else { 0.0 });
        Ok(())
    }

    async fn tell_copies(&self) -> Result<(), ledger::Error> {
        let request = FiguresRequest::default();
        let figures = within::<_, ledger::Error>(LIMIT, "ledger", self.ledger.figures(&request)).await?;
        for region in &self.regions {
            tell_region(region, figures.get(region).unwrap_or(&ReplicationFigures::default()));
        }
        Ok(())
    }
}

fn tell_region(region: &RegionName, figures: &ReplicationFigures) {
    let counts = [
        ("pending", figures.pending),
        ("overdue", figures.overdue),
        ("failed", figures.failed),
        ("completed", figures.completed),
        ("late", figures.late),
    ];
    for (state, count) in counts {
        gauge!("deploycore_replication_copies", "region" => region.to_string(), "state" => state).set(count as f64);
    }
    gauge!("deploycore_replication_pending_bytes", "region" => region.to_string()).set(figures.pending_bytes as f64);
    let latencies = [("0.5", figures.p50), ("0.99", figures.p99), ("1", figures.max)];
    for (quantile, latency) in latencies {
        gauge!("deploycore_replication_seconds", "region" => region.to_string(), "quantile" => quantile)
            .set(latency.map_or(f64::NAN, |latency| latency.as_secs_f64()));
    }
}
