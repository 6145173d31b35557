//! `cluster.toml`: one file that all hosts of a cluster share, and that the one-host cluster writes for its own children. Everything has
//! a default but what only the operator knows; unknown keys are refused. Relative paths are relative to the folder of the file.

mod hosts;
mod places;
mod read;
mod replica;
mod server;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use deploycore::model::{CommitId, Labels, RegionName, RunSpec, ServiceName, friendly};
use deploycore::port::queue::Order;
use deploycore::store::CollectorSettings;
use deploycore_p2p::core::bound::Links;
use deploycore_p2p::{MutualTls, Security};
use serde::{Deserialize, Serialize};
use url::Url;

pub use places::dialed;
pub use read::read;
pub use replica::Replica;
pub use server::{Server, without_password};

/// How long what is over is kept: 90 days.
const KEPT: Duration = Duration::from_hours(90 * 24);

/// Everything that the roles of a cluster are told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The folder, on each host, of what its roles keep; `/var/lib/deploycore` by default.
    pub state: PathBuf,
    /// How often roles look for work in the databases, where no hint comes before; 2 s by default.
    #[serde(with = "friendly")]
    pub poll: Duration,
    /// Where the control plane is.
    pub control: Control,
    /// The database of the queue.
    pub queue: Server,
    /// The database of the ledger; the queue's by default.
    pub ledger: Server,
    /// The store of the global goals.
    pub goals: Server,
    /// The stores of artifacts.
    pub stores: Stores,
    /// How the swarm's connections are protected.
    pub swarm: Swarm,
    /// The regions, which every artifact must reach.
    pub regions: BTreeMap<RegionName, Region>,
    /// What is built and deployed, and how it is run where a deploy does not say.
    pub services: BTreeMap<ServiceName, RunSpec>,
    /// Deletes what nothing needs any more, from time to time; only where this section is.
    pub collect: Option<CollectorSettings>,
    /// Workers.
    pub worker: Worker,
    /// Agents.
    pub agent: Agent,
    /// The whole on one host.
    pub local: Local,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state: "/var/lib/deploycore".into(),
            poll: Duration::from_secs(2),
            control: Control::default(),
            queue: Server::default(),
            ledger: Server::default(),
            goals: Server::default(),
            stores: Stores::default(),
            swarm: Swarm::default(),
            regions: BTreeMap::new(),
            services: BTreeMap::new(),
            collect: None,
            worker: Worker::default(),
            agent: Agent::default(),
            local: Local::default(),
        }
    }
}

/// Where the control plane is, and what it sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    /// Its host, as the others reach it: a name or an address. `127.0.0.1` by default, which is for one host.
    pub host: String,
    /// The port of its API; 7400 by default.
    pub api_port: u16,
    /// The port of the gateway of the global goals, which regions read; 7401 by default.
    pub goals_port: u16,
    /// Where both listen: by default at `host` if that is an address, everywhere if it is a name.
    pub listen: Option<IpAddr>,
    /// Where the API listens, if not there.
    pub api_listen: Option<IpAddr>,
    /// Which build goes first among those of one priority: `oldest`, or `fair_share`, where services take turns. Control sets it when it
    /// starts; where it is not said, it stays as it was set last, at first `oldest`.
    pub queue_order: Option<Order>,
    /// How long jobs are kept in the queue after their end; 90 days by default, a day at least.
    #[serde(with = "friendly")]
    pub keep_jobs: Duration,
    /// The least epoch of new goals; 0 by default. One more than before, after the global goals were restored or lost: regions and machines take
    /// no goal that is older than what they have, and a greater epoch is newer than all.
    pub goal_epoch: u64,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            api_port: 7400,
            goals_port: 7401,
            listen: None,
            api_listen: None,
            queue_order: None,
            keep_jobs: KEPT,
            goal_epoch: 0,
        }
    }
}

/// The stores of artifacts that belong to no region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stores {
    /// URL of the main store, which workers write: `s3://`, `gs://`, `az://`, or `file://`, by default in the state folder.
    pub main: Option<Url>,
    /// Every `file://` store is the same folder on every host that uses it, by NFS for instance; false by default.
    pub shared_folders: bool,
    /// How long the logs of builds are kept in the main store; 90 days by default, a day at least.
    #[serde(with = "friendly")]
    pub keep_logs: Duration,
}

impl Default for Stores {
    fn default() -> Self {
        Self { main: None, shared_folders: false, keep_logs: KEPT }
    }
}

/// How the swarm's connections are protected. Across hosts one of the two must be said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Swarm {
    /// Not at all.
    pub plain_tcp: bool,
    /// By mutual TLS: the PEM file of this host's certificate.
    pub certificate: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// The authority that signs the members' certificates.
    pub authority: Option<PathBuf>,
    /// Whether a member's name must stand in its certificate: a machine's name, and for a region's host its name with `-gate` and
    /// `-tracker`; false by default.
    pub names_in_certificates: bool,
}

impl Swarm {
    /// What the members are told. Plain TCP where nothing is said, which only one host passes with.
    pub fn security(&self) -> Security {
        match (&self.certificate, &self.key, &self.authority) {
            (Some(certificate), Some(key), Some(authority)) => Security::MutualTls(MutualTls {
                certificate: certificate.clone(),
                key: key.clone(),
                authority: authority.clone(),
                names_in_certificates: self.names_in_certificates,
            }),
            _ => Security::PlainTcp,
        }
    }
}

/// A region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Region {
    /// URL of its store; by default a folder in the state folder.
    pub store: Option<Url>,
    /// The hosts that run the role `region` for it: each has a gateway with goals of its own, a gate, a tracker and a lane of the
    /// replicator, and any one is enough. A host, or a table with the ports. One on `127.0.0.1` by default.
    pub replicas: Vec<Replica>,
    /// What its machines and its store can send and receive a second: `GET /v1/swarm` tells times as multiples of the least possible
    /// one then.
    pub links: Option<Rates>,
}

impl Default for Region {
    fn default() -> Self {
        let here = Replica::of_host("127.0.0.1").expect("it is a name");
        Self { store: None, replicas: vec![here], links: None }
    }
}

/// The rates of a region's links, a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// What a machine can receive.
    pub down: ByteSize,
    /// What a machine can send.
    pub up: ByteSize,
    /// What the store may give.
    pub store: ByteSize,
}

impl From<Rates> for Links {
    fn from(rates: Rates) -> Self {
        Self { down: rates.down.as_u64(), up: rates.up.as_u64(), store: rates.store.as_u64() }
    }
}

/// Workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// Builds at once on a host; 1 by default.
    pub slots: NonZeroUsize,
    /// The git repository: whatever `git fetch` takes.
    pub repository: Option<String>,
    /// The build command, run by `sh -c` in the checkout with `DEPLOYCORE_SERVICE`, `DEPLOYCORE_COMMIT` and `DEPLOYCORE_JOB` set.
    pub command: Option<String>,
    /// The file that it leaves in the checkout: the artifact.
    pub output: Option<PathBuf>,
    /// Between heartbeats; 30 s by default.
    #[serde(with = "friendly")]
    pub heartbeat: Duration,
    /// A worker without a heartbeat for this long is lost, and its job is tried again; 90 s by default.
    #[serde(with = "friendly")]
    pub lost_after: Duration,
    /// Bytes that must be free on the disk of the checkouts: with fewer no build starts, and none that fails does so for good. 1 GiB by
    /// default; 0 turns it off.
    pub keep_free: ByteSize,
    /// Incompressible bytes to add to each artifact, for a try.
    pub payload: Option<ByteSize>,
    /// The folder for checkouts; in the state folder by default.
    pub state: Option<PathBuf>,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            slots: NonZeroUsize::MIN,
            repository: None,
            command: None,
            output: None,
            heartbeat: Duration::from_secs(30),
            lost_after: Duration::from_secs(90),
            keep_free: ByteSize::gib(1),
            payload: None,
            state: None,
        }
    }
}

/// Agents. A host that differs says so on its command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agent {
    /// The region of a machine that does not say; by default the only one.
    pub region: Option<RegionName>,
    /// What selectors may name, beside `region`.
    pub labels: Labels,
    /// Where the machine's swarm node listens; port 7430 of every address by default.
    pub listen: Option<SocketAddr>,
    /// Bytes a second that it may receive, and as many that it may send; no limit by default.
    pub link: Option<ByteSize>,
    /// The folder of blobs and services; in the state folder by default.
    pub state: Option<PathBuf>,
}

impl Default for Agent {
    fn default() -> Self {
        Self { region: None, labels: Labels(BTreeMap::new()), listen: None, link: None, state: None }
    }
}

impl Agent {
    /// Where the swarm node listens. On one host there are several, each on a port of its own.
    pub fn listening(&self, is_one_host: bool) -> SocketAddr {
        let usual = if is_one_host { (Ipv4Addr::LOCALHOST, 0) } else { (Ipv4Addr::UNSPECIFIED, 7430) };
        self.listen.unwrap_or_else(|| usual.into())
    }
}

/// The whole on one host: what `cluster --config` reads beside the rest. The addresses and the swarm's protection do not count then.
/// Flags of the same names go before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Local {
    /// Commits to build and deploy, in this order.
    pub commits: Vec<CommitId>,
    /// Which service, where there are several.
    pub service: Option<ServiceName>,
    /// Machines in each region; 4 by default.
    pub machines: u16,
    /// Workers; 2 by default.
    pub workers: u16,
    /// Folder for everything; goes on where an earlier run on it stopped. A temporary one by default.
    pub data_dir: Option<PathBuf>,
    /// Whether it stays up afterwards; false by default.
    pub keep_running: bool,
    /// When it gives up; 30 min by default.
    #[serde(with = "friendly")]
    pub time_limit: Duration,
    /// Where to write what happened, as JSON.
    pub report: Option<PathBuf>,
}

impl Default for Local {
    fn default() -> Self {
        Self {
            commits: Vec::new(),
            service: None,
            machines: 4,
            workers: 2,
            data_dir: None,
            keep_running: false,
            time_limit: Duration::from_mins(30),
            report: None,
        }
    }
}
