//! What each role is told, as TOML. Unknown keys are refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use deploycore::model::{Labels, MachineName, RegionName, RunSpec, ServiceName, WorkerName, friendly};
use deploycore_p2p::core::bound::Links;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use url::Url;

/// The control plane.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where the gateway of the global goals listens.
    pub goals: SocketAddr,
    /// URL of the store of the global goals.
    pub goals_store: String,
    /// URL of the queue's database.
    pub queue: String,
    /// URL of the ledger's database.
    pub ledger: String,
    /// The main store, for build logs.
    pub store: Url,
    /// The workers' time between heartbeats.
    #[serde(with = "friendly")]
    pub heartbeat: Duration,
    /// A lease without a heartbeat for this long is lost.
    #[serde(with = "friendly")]
    pub lost_after: Duration,
    /// How often the registrar looks for work in the databases.
    #[serde(with = "friendly")]
    pub look: Duration,
    /// The regions that every artifact must reach.
    pub regions: Vec<RegionEndpoint>,
    /// How each service is run where a deploy does not say.
    pub services: BTreeMap<ServiceName, RunSpec>,
}

/// A region as the control plane sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionEndpoint {
    /// Its name.
    pub name: RegionName,
    /// Its gateway.
    pub gateway: Url,
}

/// A worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// Its name.
    pub name: WorkerName,
    /// Builds at once.
    pub slots: NonZeroUsize,
    /// Between heartbeats.
    #[serde(with = "friendly")]
    pub heartbeat: Duration,
    /// A lease without a heartbeat for this long is lost.
    #[serde(with = "friendly")]
    pub lost_after: Duration,
    /// URL of the queue's database.
    pub queue: String,
    /// The main store.
    pub store: Url,
    /// How often the worker looks for work in the databases.
    #[serde(with = "friendly")]
    pub look: Duration,
    /// The git repository.
    pub repository: String,
    /// The build command, for `sh -c`.
    pub command: String,
    /// The file it leaves in the checkout.
    pub output: PathBuf,
    /// The folder for checkouts.
    pub scratch: PathBuf,
    /// Incompressible bytes to add to each artifact.
    pub payload: Option<ByteSize>,
}

/// A region.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Its name.
    pub name: RegionName,
    /// Where its gateway listens.
    pub gateway: SocketAddr,
    /// Where its tracker listens.
    pub tracker: SocketAddr,
    /// Where its store gate listens.
    pub gate: SocketAddr,
    /// The gateway of the global goals.
    pub global: Url,
    /// The main store.
    pub main_store: Url,
    /// Its own store.
    pub store: Url,
    /// URL of the ledger's database.
    pub ledger: String,
    /// How often the replicator looks for work in the databases.
    #[serde(with = "friendly")]
    pub look: Duration,
    /// URL of the store of its goals.
    pub goals_store: String,
    /// The folder of the gate's counts.
    pub gate_dir: PathBuf,
    /// What its machines and its store can send and receive, in bytes a second: `GET /v1/swarm` tells times as multiples of the least
    /// possible one then.
    #[serde(default)]
    pub links: Option<Links>,
}

/// A machine. It holds no path and no credential to any store.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Its name.
    pub machine: MachineName,
    /// Its region.
    pub region: RegionName,
    /// What selectors may name.
    #[serde(default)]
    pub labels: Labels,
    /// Its region's gateway.
    pub gateway: Url,
    /// Its region's trackers.
    pub trackers: Vec<SocketAddr>,
    /// Where its swarm node listens.
    pub listen: SocketAddr,
    /// Bytes a second that it may receive, and as many that it may send.
    pub link: Option<ByteSize>,
    /// The folder of its blobs and services.
    pub data_dir: PathBuf,
}

/// The warden.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warden {
    /// The configurations of all agents.
    pub agents: Vec<PathBuf>,
}

/// Reads a configuration; the error names the file, the line and the key.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} could not be read", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
}
