//! The processes of a cluster on this host, and the file that they share.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result, bail};
use rand::RngExt;
use url::Url;

use super::wanted::Wanted;
use crate::cluster::config::Config;
use crate::cluster::layout::DataDir;
use crate::cluster::supervisor::ChildSpec;
use crate::files;

/// The children and where they listen.
pub(super) struct Ends {
    pub(super) children: Vec<ChildSpec>,
    pub(super) api: Url,
    pub(super) goals: Url,
    /// Each gateway, with the name of its child.
    pub(super) gateways: Vec<(String, Url)>,
}

impl Ends {
    /// Picks ports, writes the configuration and says who is to be started with it.
    pub(super) fn prepare(listen: Option<SocketAddr>, wanted: &Wanted, data: &DataDir) -> Result<Self> {
        let mut config = wanted.config.clone();
        pick_ports(&mut config, listen)?;
        files::write_atomic(&data.join("cluster.toml"), toml::to_string_pretty(&config)?.as_bytes())?;
        let (mut children, mut gateways) = (Vec::new(), Vec::new());
        let mut child = |name: &str, role, place: &[&str]| {
            let arguments = place.iter().map(|&argument| argument.to_owned()).collect();
            children.push(ChildSpec { name: name.to_owned(), role, arguments });
        };
        for (name, region) in &config.regions {
            for replica in &region.replicas {
                let (own, several) = (replica.name.as_str(), region.replicas.len() > 1);
                let title = if several { format!("{name}-{own}") } else { name.to_string() };
                child(&title, "region", &["--region", name.as_str(), "--name", own]);
                gateways.push((title, replica.gateway()?));
            }
            for number in 1..=wanted.machines {
                let machine = format!("{name}-m{number}");
                // The warden looks there.
                std::fs::create_dir_all(config.machine_dir(name, &machine))?;
                child(&machine, "agent", &["--region", name.as_str(), "--name", &machine]);
            }
        }
        child("control", "control", &[]);
        for number in 1..=wanted.workers {
            let name = format!("worker-{number}");
            child(&name, "worker", &["--name", &name]);
        }
        child("warden", "warden", &[]);
        let api = url(config.control.api_listening())?;
        files::write_atomic(&data.join("run/api"), api.as_str().as_bytes())?;
        Ok(Self { children, api, goals: config.control.goals_url()?, gateways })
    }
}

fn pick_ports(config: &mut Config, listen: Option<SocketAddr>) -> Result<()> {
    let mut ports = Ports::default();
    config.control.api_port = match listen {
        Some(address) => free(address)?.port(),
        None => ports.pick()?,
    };
    config.control.api_listen = listen.map(|address| address.ip());
    config.control.goals_port = ports.pick()?;
    for replica in config.regions.values_mut().flat_map(|region| &mut region.replicas) {
        replica.gateway_port = ports.pick()?;
        replica.tracker_port = ports.pick()?;
        replica.gate_port = ports.pick()?;
    }
    Ok(())
}

fn url(address: SocketAddr) -> Result<Url> {
    Ok(Url::parse(&format!("http://{address}/"))?)
}

/// Picks ports below the range that the system hands out by itself, so that no outgoing connection takes one meanwhile.
#[derive(Debug, Default)]
struct Ports(std::collections::BTreeSet<u16>);

impl Ports {
    fn pick(&mut self) -> Result<u16> {
        for _ in 0..1_000 {
            let port = rand::rng().random_range(15_000..32_000);
            if !self.0.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                self.0.insert(port);
                return Ok(port);
            }
        }
        bail!("no free port was found on 127.0.0.1 between 15000 and 32000")
    }
}

/// A port of zero stands for any.
fn free(address: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("{address} cannot be listened on: choose another --listen, or stop what holds it"))?;
    Ok(listener.local_addr()?)
}
