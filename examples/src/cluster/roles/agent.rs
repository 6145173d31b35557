//! A machine: goals by HTTP from its region, pieces from the store gate and from peers.

use std::sync::Arc;

use anyhow::Result;
use deploycore::machine::{
    Agent, AgentDeps, AgentSettings, LocalDisk, LocalDiskSettings, ProcessRunner, ProcessRunnerSettings,
};
use deploycore::port::swarm::Limits;
use deploycore_kv::gateway::GatewayClient;
use deploycore_p2p::{Node, NodeSettings, Security};
use tokio_util::sync::CancellationToken;

use super::{Services, end_services};
use crate::cluster::config;
use crate::cluster::supervisor::Lifeline;

pub(super) async fn run(config: config::Agent, shutdown: CancellationToken, lifeline: Lifeline) -> Result<()> {
    let region = Arc::new(GatewayClient::new(config.gateway)?);
    let mut node = NodeSettings::new(config.machine.to_string(), config.region.clone(), Security::PlainTcp)
        .with_listen(config.listen.to_string());
    for tracker in config.trackers {
        node = node.with_tracker(tracker.to_string());
    }
    let link = config.link.map(|rate| rate.as_u64());
    node.swarm.limits = Limits { ingress: link, egress: link, disk: None };
    let node = Arc::new(Node::bind(node).await?);
    let deps = AgentDeps {
        goals: region.clone(),
        manifests: region.clone(),
        swarm: node.clone(),
        runner: Arc::new(ProcessRunner::new(ProcessRunnerSettings::default())?),
        reports: region,
        disk: Arc::new(LocalDisk::open(&config.data_dir, LocalDiskSettings::default())?),
    };
    let agent = Agent::new(AgentSettings::new(config.machine, config.region).with_labels(config.labels), deps);

    let mut services = Services::new(shutdown.clone());
    let stop = shutdown.clone();
    services.add("swarm node", async move {
        node.run(stop).await;
        Ok(())
    });
    services.add("agent", async move { Ok(agent.run(shutdown).await?) });
    let result = services.run().await;
    if lifeline.is_cut() {
        // The whole cluster ends: what runs here ends too, instead of waiting for the next agent.
        end_services(&config.data_dir)?;
    }
    result
}
