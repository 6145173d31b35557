//! The control plane: HTTP API, global goals, deployer, reaper, registrar.

mod api;
mod collection;
mod gauges;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use deploycore::build::{Reaper, ReaperSettings};
use deploycore::deploy::{Deployer, DeployerSettings};
use deploycore::model::{GoalEpoch, RegionName, RunSpec, ServiceName};
use deploycore::port::{ArtifactStore, GoalStateStore, JobQueue, ReplicationLedger};
use deploycore::store::{Registrar, RegistrarSettings};
use deploycore_kv::gateway::{Gateway, GatewayClient, GatewaySettings};
use tokio_util::sync::CancellationToken;
use url::Url;

use self::collection::Collection;
use self::gauges::Gauges;
use super::Services;
use crate::cluster::backends;
use crate::cluster::config::Config;

/// What the handlers of the API work with.
#[derive(Debug)]
struct State {
    queue: Arc<dyn JobQueue>,
    ledger: Arc<dyn ReplicationLedger>,
    store: Arc<dyn ArtifactStore>,
    goals: Arc<dyn GoalStateStore>,
    deployer: Arc<Deployer>,
    regions: BTreeMap<RegionName, Region>,
    services: BTreeMap<ServiceName, RunSpec>,
    /// Deploys and rollbacks of this process go one after the other, so that their preconditions hold.
    writing: tokio::sync::Mutex<()>,
    http: reqwest::Client,
    collection: Collection,
}

#[derive(Debug)]
struct Region {
    /// Of each of its gateways.
    urls: Vec<Url>,
    gateway: Arc<GatewayClient>,
}

/// `with_gauges`: somebody may ask what waits.
pub(super) async fn run(config: Config, with_gauges: bool, shutdown: CancellationToken) -> Result<()> {
    let (queue, ledger) = backends::databases(&config).await?;
    if let Some(order) = config.control.queue_order {
        queue.set_order(order).await.context("[control] queue_order")?;
    }
    let store = backends::main_store(&config).await?;
    let (goals, file) = backends::goals(&config).await?;

    let mut regions = BTreeMap::new();
    for (name, region) in &config.regions {
        let urls = region.gateways()?;
        let gateway = Arc::new(backends::gateways(urls.clone())?);
        regions.insert(name.clone(), Region { urls, gateway });
    }
    let settings = DeployerSettings::default().with_epoch(GoalEpoch(config.control.goal_epoch));
    let mut deployer = Deployer::new(settings, goals.clone(), ledger.clone());
    for (name, region) in &regions {
        deployer = deployer.with_directory(name.clone(), region.gateway.clone());
    }
    let deployer = Arc::new(deployer);
    let required = config.regions.keys().cloned();
    let registrar = Registrar::new(
        RegistrarSettings::default().with_required(required).with_period(config.poll),
        queue.clone(),
        ledger.clone(),
    );
    let reaper = Reaper::new(reaper_settings(&config), queue.clone())?.with_horizon(registrar.horizon());

    let mut services = Services::new(shutdown.clone());
    if let Some(file) = file {
        services.guard(file);
    }
    // Read-only: goals are written by the deployer alone, which holds the store itself.
    let gateway = Gateway::new(GatewaySettings::default(), goals.clone(), None, None, None);
    services.serve_gateway(config.control.goals_listening(), &gateway, axum::Router::new()).await?;
    services.sweep(store.clone(), config.stores.keep_logs);
    let http = reqwest::Client::builder().timeout(std::time::Duration::from_secs(5)).no_proxy().build();
    let collection =
        Collection { config: config.clone(), ledger: ledger.clone(), goals: goals.clone(), main: store.clone() };
    if let Some(settings) = config.collect.clone() {
        let collector = collection.collector(settings, &regions).await.context("[collect]")?;
        let stop = shutdown.clone();
        services.add("collector", async move {
            collector.run(stop).await;
            Ok(())
        });
    }
    if with_gauges {
        let gauges =
            Gauges { queue: queue.clone(), ledger: ledger.clone(), regions: regions.keys().cloned().collect() };
        let stop = shutdown.clone();
        services.add("gauges", async move {
            gauges.run(stop).await;
            Ok(())
        });
    }
    let state = State {
        queue,
        ledger,
        store,
        goals,
        deployer: deployer.clone(),
        regions,
        services: config.services,
        writing: tokio::sync::Mutex::default(),
        http: http.context("the HTTP client could not be made")?,
        collection,
    };
    services.serve("control API", config.control.api_listening(), api::router(Arc::new(state))).await?;
    let stop = shutdown.clone();
    services.add("reaper", async move {
        reaper.run(stop).await;
        Ok(())
    });
    let stop = shutdown.clone();
    services.add("deployer", async move {
        deployer.run(stop).await;
        Ok(())
    });
    let stop = shutdown.clone();
    services.add("registrar", async move {
        registrar.run(stop).await;
        Ok(())
    });
    services.run().await
}

fn reaper_settings(config: &Config) -> ReaperSettings {
    // No later than a lost worker can be found.
    let heartbeat = config.worker.heartbeat;
    ReaperSettings::default()
        .with_period(heartbeat)
        .with_heartbeat(heartbeat, config.worker.lost_after)
        .with_prune_after(Some(config.control.keep_jobs))
}
