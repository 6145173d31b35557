//! What a role counts, for Prometheus to fetch.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

/// Upper ends of the classes in which builds are counted by their time, in seconds. They end a little above the longest build.
const BUILD_SECONDS: [f64; 8] = [10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1200.0];

/// Serves `GET /metrics` from now on, in the text format of Prometheus.
pub(super) fn serve(address: SocketAddr) -> Result<()> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("deploycore_worker_build_seconds".to_owned()), &BUILD_SECONDS)
        .and_then(|builder| builder.with_http_listener(address).install())
        .with_context(|| format!("--metrics: metrics cannot be served at {address}: is another process there?"))
}
