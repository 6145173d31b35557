//! The servers and files that a configuration names, opened for the roles. Errors begin with the key.

use std::sync::Arc;

use anyhow::{Context, Result};
use deploycore::model::RegionName;
use deploycore::port::{GoalStateStore, JobQueue, ReplicationLedger, goals};
use deploycore::store::{BlobStore, open_url};
use deploycore_kv::RedbGoals;
use deploycore_kv::gateway::{GatewayClient, GatewayClientSettings};
use url::Url;

use super::config::Config;

/// The queue.
pub(super) async fn queue(config: &Config) -> Result<Arc<dyn JobQueue>> {
    let database = deploycore_sql::open_url(&made(config, config.queue_url()?)?).await;
    Ok(database.context("[queue] url")?.queue)
}

/// The ledger.
pub(super) async fn ledger(config: &Config) -> Result<Arc<dyn ReplicationLedger>> {
    let database = deploycore_sql::open_url(&made(config, config.ledger_url()?)?).await;
    Ok(database.context(ledger_key(config))?.ledger)
}

/// Queue and ledger, which share their connections where they are in one database.
pub(super) async fn databases(config: &Config) -> Result<(Arc<dyn JobQueue>, Arc<dyn ReplicationLedger>)> {
    if config.queue_url()? != config.ledger_url()? {
        return Ok((queue(config).await?, ledger(config).await?));
    }
    let database = deploycore_sql::open_url(&made(config, config.queue_url()?)?).await.context("[queue] url")?;
    Ok((database.queue, database.ledger))
}

/// The key that says where the ledger is.
pub(super) fn ledger_key(config: &Config) -> &'static str {
    if config.ledger.url.is_some() || config.queue.url.is_none() { "[ledger] url" } else { "[queue] url" }
}

/// The global goals, as the control plane alone opens them, and once more where they are a file of this process, which wants a guard.
pub(super) async fn goals(config: &Config) -> Result<(Arc<dyn GoalStateStore>, Option<Arc<RedbGoals>>)> {
    let url = made(config, config.goals_url()?)?;
    let opened = async {
        if url.starts_with("redb:") {
            let file = Arc::new(RedbGoals::open_url(&url).await?);
            return Ok((file.clone() as Arc<dyn GoalStateStore>, Some(file)));
        }
        Ok::<_, goals::Error>((deploycore_kv::open_url(&url).await?, None))
    };
    opened.await.context("[goals] url")
}

/// The global goals, as regions read them.
pub(super) fn global_goals(config: &Config) -> Result<GatewayClient> {
    Ok(GatewayClient::new(config.control.goals_url().context("[control] host")?)?)
}

/// The main store.
pub(super) async fn main_store(config: &Config) -> Result<Arc<BlobStore>> {
    Ok(Arc::new(open_url(config.main_store()?.as_str()).await.context("[stores] main")?))
}

/// A region's store.
pub(super) async fn region_store(config: &Config, region: &RegionName) -> Result<Arc<BlobStore>> {
    let store = open_url(config.region_store(region)?.as_str()).await;
    Ok(Arc::new(store.with_context(|| format!("[regions.{region}] store"))?))
}

/// A client of a region's gateways.
pub(super) fn gateways(urls: Vec<Url>) -> Result<GatewayClient> {
    Ok(GatewayClient::of_replicas(urls, GatewayClientSettings::default())?)
}

/// A file in the state folder is made where it is missing, and so is its folder.
fn made(config: &Config, url: String) -> Result<String> {
    let folder = config.state.join("main");
    if url.contains(&format!("://{}/", folder.display())) {
        std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    Ok(url)
}
