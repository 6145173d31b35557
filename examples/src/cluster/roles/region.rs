//! A region: mirror, goals with their gateway, replicator lane, store gate, tracker, machine reports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use deploycore::deploy::{Mirror, MirrorSettings, ReportBoard};
use deploycore::model::Digest;
use deploycore::port::ArtifactStore;
use deploycore::store::{Replicator, ReplicatorSettings, open_url};
use deploycore_kv::gateway::{Gateway, GatewayClient, GatewaySettings};
use deploycore_p2p::core::tracker::SwarmStanding;
use deploycore_p2p::{Gate, GateSettings, Security, Tracker, TrackerSettings};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Services;
use crate::cluster::api::StoreUsage;
use crate::cluster::config;

pub(super) async fn run(config: config::Region, shutdown: CancellationToken) -> Result<()> {
    let main: Arc<dyn ArtifactStore> = Arc::new(open_url(config.main_store.as_str()).await?);
    let store = Arc::new(open_url(config.store.as_str()).await?);
    let ledger = deploycore_sql::open_url(&config.ledger).await?.ledger;
    let goals = deploycore_kv::open_url(&config.goals_store).await?;
    let global = Arc::new(GatewayClient::new(config.global)?);
    let board = Arc::new(ReportBoard::default());

    let mut tracker = TrackerSettings::new(format!("{}-tracker", config.name), config.name.clone(), Security::PlainTcp)
        .with_listen(config.tracker.to_string());
    tracker.tracking.links = config.links;
    let tracker = Tracker::bind(tracker).await.with_context(|| cannot_listen(config.tracker))?;
    let gate =
        GateSettings::new(format!("{}-gate", config.name), config.name.clone(), config.gate_dir, Security::PlainTcp)
            .with_listen(config.gate.to_string())
            .with_tracker(config.tracker.to_string());
    let gate = Arc::new(Gate::bind(gate, store.clone()).await.with_context(|| cannot_listen(config.gate))?);
    let lanes = BTreeMap::from([(config.name, store.clone() as Arc<dyn ArtifactStore>)]);
    let mirror = Mirror::new(MirrorSettings::default(), global, goals.clone());
    let replicator = Replicator::new(ReplicatorSettings::default().with_period(config.look), ledger, main, lanes);

    let mut services = Services::new(shutdown.clone());
    services.sweep(store.clone());
    let gateway = Gateway::new(GatewaySettings::default(), goals, Some(store), Some(board.clone()), Some(board));
    let usage = Router::new().route("/v1/usage/{digest}", get(usage)).with_state(gate.clone());
    let swarm = Router::new().route("/v1/swarm", get(swarm)).with_state(tracker.standings());
    services.serve_gateway(config.gateway, &gateway, usage.merge(swarm)).await?;
    let stop = shutdown.clone();
    services.add("tracker", async move {
        tracker.run(stop).await;
        Ok(())
    });
    let stop = shutdown.clone();
    services.add("gate", async move {
        gate.run(stop).await;
        Ok(())
    });
    let stop = shutdown.clone();
    services.add("mirror", async move {
        mirror.run(stop).await;
        Ok(())
    });
    services.add("replicator", async move {
        replicator.run(shutdown).await;
        Ok(())
    });
    services.run().await
}

fn cannot_listen(address: SocketAddr) -> String {
    format!("{address} cannot be listened on: does another process hold the port?")
}

/// How far the region's machines are with each artifact.
async fn swarm(State(standings): State<watch::Receiver<Arc<[SwarmStanding]>>>) -> Json<Arc<[SwarmStanding]>> {
    Json(Arc::clone(&standings.borrow()))
}

async fn usage(
    State(gate): State<Arc<Gate>>,
    Path(digest): Path<Digest>,
) -> Result<Json<StoreUsage>, (StatusCode, String)> {
    let usage = gate.usage(&digest).await.map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    Ok(Json(StoreUsage { leased_bytes: usage.leased_bytes, recovery_bytes: usage.recovery_bytes }))
}
