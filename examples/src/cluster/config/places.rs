//! Where everything of a role is: addresses, URLs, folders.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use deploycore::model::RegionName;
use url::Url;

use super::{Config, Control, Region, Replica};

/// An address listens at itself. What a name resolves to on its own host is often loopback, so a name listens everywhere.
pub(super) fn listening(host: &str, listen: Option<IpAddr>, port: u16) -> SocketAddr {
    (listen.or_else(|| host.parse().ok()).unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port).into()
}

/// `host:port`, as others dial it.
pub fn dialed(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn http(host: &str, port: u16) -> Result<Url> {
    Url::parse(&format!("http://{}/", dialed(host, port))).with_context(|| format!("{host:?} is no host"))
}

impl Control {
    /// Where the API listens.
    pub fn api_listening(&self) -> SocketAddr {
        listening(&self.host, self.api_listen.or(self.listen), self.api_port)
    }

    /// Where the gateway of the global goals listens.
    pub fn goals_listening(&self) -> SocketAddr {
        listening(&self.host, self.listen, self.goals_port)
    }

    /// The URL of the API.
    pub fn api_url(&self) -> Result<Url> {
        http(&self.host, self.api_port)
    }

    /// The URL of the global goals.
    pub fn goals_url(&self) -> Result<Url> {
        http(&self.host, self.goals_port)
    }
}

impl Region {
    /// The URL of each gateway.
    pub fn gateways(&self) -> Result<Vec<Url>> {
        self.replicas.iter().map(Replica::gateway).collect()
    }

    /// Each tracker, as `host:port`.
    pub fn trackers(&self) -> impl Iterator<Item = String> {
        self.replicas.iter().map(|replica| dialed(&replica.host, replica.tracker_port))
    }
}

impl Replica {
    /// The URL of its gateway.
    pub fn gateway(&self) -> Result<Url> {
        http(&self.host, self.gateway_port)
    }
}

impl Config {
    /// The URL of the queue's database, with its password.
    pub fn queue_url(&self) -> Result<String> {
        Ok(self.queue.full_url("queue")?.unwrap_or_else(|| self.file("sqlite", "queue.db")))
    }

    /// The URL of the ledger's database, with its password.
    pub fn ledger_url(&self) -> Result<String> {
        match self.ledger.full_url("ledger")? {
            Some(url) => Ok(url),
            None => Ok(self.queue.full_url("queue")?.unwrap_or_else(|| self.file("sqlite", "ledger.db"))),
        }
    }

    /// The URL of the store of the global goals, with its password.
    pub fn goals_url(&self) -> Result<String> {
        Ok(self.goals.full_url("goals")?.unwrap_or_else(|| self.file("redb", "goals.redb")))
    }

    /// The URL of the main store.
    pub fn main_store(&self) -> Result<Url> {
        self.stores.main.clone().map_or_else(|| folder(&self.state.join("main/store")), Ok)
    }

    /// The URL of a region's store.
    pub fn region_store(&self, name: &RegionName) -> Result<Url> {
        let given = self.regions.get(name).and_then(|region| region.store.clone());
        given.map_or_else(|| folder(&self.region_dir(name).join("store")), Ok)
    }

    fn file(&self, scheme: &str, name: &str) -> String {
        format!("{scheme}://{}", self.state.join("main").join(name).display())
    }

    /// The folder of the control plane.
    pub fn control_dir(&self) -> PathBuf {
        self.state.join("control")
    }

    /// The folder of a worker.
    pub fn worker_dir(&self, name: &str) -> PathBuf {
        self.worker.state.clone().unwrap_or_else(|| self.state.join("workers")).join(name)
    }

    fn region_dir(&self, region: &RegionName) -> PathBuf {
        self.state.join("regions").join(region.as_str())
    }

    /// The folder of a host of a region.
    pub fn replica_dir(&self, region: &RegionName, replica: &str) -> PathBuf {
        self.region_dir(region).join(replica)
    }

    /// The folder of all machines, with a folder for each region.
    pub fn machines_dir(&self) -> PathBuf {
        self.agent.state.clone().unwrap_or_else(|| self.state.join("machines"))
    }

    /// The folder of a machine.
    pub fn machine_dir(&self, region: &RegionName, machine: &str) -> PathBuf {
        self.machines_dir().join(region.as_str()).join(machine)
    }
}

fn folder(path: &Path) -> Result<Url> {
    Url::from_directory_path(path).map_err(|()| anyhow::anyhow!("{} is not an absolute path", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_listens_at_itself_and_a_name_everywhere() {
        let at =
            |host: &str, listen: Option<&str>| listening(host, listen.map(|ip| ip.parse().unwrap()), 1).to_string();
        assert_eq!(at("10.0.0.1", None), "10.0.0.1:1");
        assert_eq!(at("eu-1.internal", None), "0.0.0.0:1");
        assert_eq!(at("eu-1.internal", Some("10.0.0.1")), "10.0.0.1:1");
        assert_eq!(at("fd00::1", None), "[fd00::1]:1");
        assert_eq!(http("fd00::1", 7400).unwrap().as_str(), "http://[fd00::1]:7400/");
    }

    #[test]
    fn the_ledger_is_in_the_queues_database_unless_it_has_its_own() {
        let mut config = Config { state: "/s".into(), ..Config::default() };
        assert_eq!(config.queue_url().unwrap(), "sqlite:///s/main/queue.db");
        assert_eq!(config.ledger_url().unwrap(), "sqlite:///s/main/ledger.db");
        config.queue.url = Some("postgres://h/d".into());
        assert_eq!(config.ledger_url().unwrap(), "postgres://h/d");
        config.ledger.url = Some("mysql://h/e".into());
        assert_eq!(config.ledger_url().unwrap(), "mysql://h/e");
    }
}
