//! A machine: goals by HTTP from its region, pieces from the store gate and from peers.

use std::sync::Arc;

use anyhow::{Context, Result};
use deploycore::machine::{
    Agent, AgentDeps, AgentSettings, LocalDisk, LocalDiskSettings, ProcessRunner, ProcessRunnerSettings,
};
use deploycore::model::{Labels, MachineName, RegionName};
use deploycore::port::swarm::Limits;
use deploycore_p2p::{Node, NodeSettings};
use tokio_util::sync::CancellationToken;

use super::{Services, end_services};
use crate::cluster::backends;
use crate::cluster::cli::Place;
use crate::cluster::config::{Config, Region};
use crate::cluster::supervisor::Lifeline;

pub(super) async fn run(
    config: &Config,
    name: &RegionName,
    region: &Region,
    machine: MachineName,
    place: &Place,
    shutdown: CancellationToken,
    lifeline: Lifeline,
) -> Result<()> {
    let gateways = Arc::new(backends::gateways(region.gateways()?)?);
    let listen = config.agent.listening(config.is_one_host());
    let mut node =
        NodeSettings::new(machine.to_string(), name.clone(), config.swarm.security()).with_listen(listen.to_string());
    node.trackers.extend(region.trackers());
    let labels = labels(config, name, place);
    node.zone = labels.0.get("zone").cloned();
    let link = config.agent.link.map(|rate| rate.as_u64());
    node.swarm.limits = Limits { ingress: link, egress: link, disk: None };
    let node = Node::bind(node).await;
    let node =
        Arc::new(node.with_context(|| format!("the swarm's node at {listen} cannot be set up with these settings"))?);
    let folder = config.machine_dir(name, machine.as_str());
    let deps = AgentDeps {
        goals: gateways.clone(),
        manifests: gateways.clone(),
        swarm: node.clone(),
        runner: Arc::new(ProcessRunner::new(ProcessRunnerSettings::default())?),
        reports: gateways,
        disk: Arc::new(LocalDisk::open(&folder, LocalDiskSettings::default())?),
    };
    let agent = Agent::new(AgentSettings::new(machine, name.clone()).with_labels(labels), deps);

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
        end_services(&folder)?;
    }
    result
}

/// What the file says of every machine, and the command line of this one.
fn labels(config: &Config, region: &RegionName, place: &Place) -> Labels {
    let mut labels = Labels([("region".to_owned(), region.to_string())].into());
    labels.0.extend(config.agent.labels.0.clone());
    labels.0.extend(place.labels.iter().cloned());
    labels
}
