//! A host of a region: mirror, goals with their gateway, replicator lane, store gate, tracker, machine reports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use deploycore::deploy::{Mirror, MirrorSettings, ReportBoard};
use deploycore::model::{Digest, RegionName};
use deploycore::port::ArtifactStore;
use deploycore::store::{Replicator, ReplicatorSettings};
use deploycore_kv::RedbGoals;
use deploycore_kv::gateway::{Gateway, GatewaySettings};
use deploycore_p2p::core::bound::Links;
use deploycore_p2p::core::tracker::SwarmStanding;
use deploycore_p2p::{Gate, GateSettings, Tracker, TrackerSettings};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Services;
use crate::cluster::api::StoreUsage;
use crate::cluster::backends;
use crate::cluster::config::{self, Config, Replica, dialed};

pub(super) async fn run(
    config: &Config,
    name: &RegionName,
    region: &config::Region,
    replica: &Replica,
    shutdown: CancellationToken,
) -> Result<()> {
    let main: Arc<dyn ArtifactStore> = backends::main_store(config).await?;
    let store = backends::region_store(config, name).await?;
    let ledger = backends::ledger(config).await?;
    let folder = config.replica_dir(name, replica.name.as_str());
    let goals = Arc::new(RedbGoals::open(folder.join("goals.redb")).await?);
    let global = Arc::new(backends::global_goals(config)?);
    let board = Arc::new(ReportBoard::default());

    let security = config.swarm.security();
    let at = replica.listening(replica.tracker_port);
    let mut tracker = TrackerSettings::new(format!("{}-tracker", replica.name), name.clone(), security.clone())
        .with_listen(at.to_string());
    tracker.tracking.links = region.links.map(Links::from);
    let tracker = Tracker::bind(tracker).await.with_context(|| cannot_listen(at))?;
    let at = replica.listening(replica.gate_port);
    let mut gate = GateSettings::new(format!("{}-gate", replica.name), name.clone(), folder.join("gate"), security)
        .with_listen(at.to_string());
    if at.ip().is_unspecified() {
        gate.advertise = Some(dialed(&replica.host, replica.gate_port));
    }
    gate.trackers.extend(region.trackers());
    let gate = Arc::new(Gate::bind(gate, store.clone()).await.with_context(|| cannot_listen(at))?);
    let lanes = BTreeMap::from([(name.clone(), store.clone() as Arc<dyn ArtifactStore>)]);
    let mirror = Mirror::new(MirrorSettings::default(), global, goals.clone());
    let replicator = Replicator::new(ReplicatorSettings::default().with_period(config.poll), ledger, main, lanes);

    let mut services = Services::new(shutdown.clone());
    services.sweep(store.clone(), config.stores.keep_logs);
    services.guard(goals.clone());
    let gateway = Gateway::new(GatewaySettings::default(), goals, Some(store), Some(board.clone()), Some(board));
    let usage = Router::new().route("/v1/usage/{digest}", get(usage)).with_state(gate.clone());
    let swarm = Router::new().route("/v1/swarm", get(swarm)).with_state(tracker.standings());
    services.serve_gateway(replica.listening(replica.gateway_port), &gateway, usage.merge(swarm)).await?;
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
    format!("{address} cannot be listened on with these settings")
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
