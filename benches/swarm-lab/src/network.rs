//! Hosts as network namespaces, each with one link to a switch, which is a bridge in a namespace of its own: nothing of it is to be seen
//! from the host's own network, and with the namespaces all else goes.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::run;
use crate::figures::{Case, Rate};
use crate::names;

/// The host that holds the store.
pub(crate) const STORE: u16 = 0;

const NET: &str = "10.77.0.0/16";

/// A full frame, without what only a wire has: preamble, checksum and gap.
const FRAME: u64 = 1514;
/// A packet of many frames holds what takes this long at the link's rate.
const PACKET: Duration = Duration::from_millis(2);
const MIN_FRAMES: u64 = 2;
const MAX_FRAMES: u64 = 40;
/// How many such packets a shaper lets through at once. It lets one through when a timer tells that its time has come. If it saved up for no
/// more than one, what passes while the timer is late would be lost: 1.4 % of a link of 50 Mbit/s that always had something to send.
const BURST: u64 = 2;
/// What the kernel keeps free in a packet of many frames, and some more.
const PACKET_ROOM: u64 = 400;
/// What waits before a link beyond this is dropped. A switch's port holds as much, and so many senders that begin at once need some room.
const QUEUE: Duration = Duration::from_millis(50);
const MIN_QUEUE: u64 = 256 << 10;

/// The network of one run. Dropping it removes it, with all processes in it.
#[derive(Debug)]
pub(crate) struct Network {
    prefix: String,
}

impl Network {
    pub(crate) fn build(case: &Case, congestion: &str) -> Result<Self> {
        // Made first, so that what follows is removed when it fails.
        let network = Self { prefix: names::prefix() };
        let switch = format!("{}switch", network.prefix);
        run(&format!("ip netns add {switch}"))?;
        run(&format!("ip -n {switch} link add switch type bridge stp_state 0 mcast_snooping 0"))?;
        run(&format!("ip -n {switch} link set switch up"))?;
        // A switch has no firewall.
        let no_filter = "for call in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $call ] || echo 0 > $call; done";
        crate::command::finish(exec(&switch, Path::new("sh")).args(["-c", no_filter]), Duration::from_secs(10))?;
        for host in 0..=case.fetchers {
            let rate = if host == STORE { case.store } else { case.rate };
            network.add_host(&switch, host, rate, congestion).with_context(|| format!("host {host}"))?;
        }
        Ok(network)
    }

    fn add_host(&self, switch: &str, host: u16, rate: Rate, congestion: &str) -> Result<()> {
        let (namespace, port, address) = (self.namespace(host), format!("port{host}"), address(host));
        run(&format!("ip netns add {namespace}"))?;
        run(&format!("ip link add {port} netns {switch} type veth peer name eth0 netns {namespace}"))?;
        run(&format!("ip -n {switch} link set {port} master switch up"))?;
        run(&format!("ip -n {namespace} addr add {address}/16 dev eth0 noprefixroute"))?;
        run(&format!("ip -n {namespace} link set lo up"))?;
        run(&format!("ip -n {namespace} link set eth0 up"))?;
        // By the route, because a namespace may not choose every one for itself.
        let route = format!("{NET} dev eth0 src {address} congctl {congestion}");
        run(&format!("ip -n {namespace} route add {route}"))?;
        // A packet of more frames than the shaper lets through at once would be taken apart there, at many times the cost.
        run(&format!("ip -n {namespace} link set eth0 gso_max_size {}", frames(rate) * FRAME + PACKET_ROOM))?;
        let shaper = shaper(rate);
        run(&format!("tc -n {namespace} qdisc add dev eth0 root {shaper}"))?;
        run(&format!("tc -n {switch} qdisc add dev {port} root {shaper}"))?;
        Ok(())
    }

    fn namespace(&self, host: u16) -> String {
        format!("{}{host}", self.prefix)
    }

    /// A program on one of the hosts. The process that is started becomes the program.
    pub(crate) fn command(&self, host: u16, program: &Path) -> Command {
        exec(&self.namespace(host), program)
    }

    /// What a host has sent so far, headers included.
    pub(crate) fn sent(&self, host: u16) -> Result<Passed> {
        passed(&run(&format!("tc -n {} -s -j qdisc show dev eth0 root", self.namespace(host)))?)
    }

    /// What has left the switch for a host.
    pub(crate) fn received(&self, host: u16) -> Result<Passed> {
        passed(&run(&format!("tc -n {}switch -s -j qdisc show dev port{host} root", self.prefix))?)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let own = self.prefix.clone();
        if let Err(error) = remove(&|name| name.starts_with(&own)) {
            eprintln!("the network could not be removed: {error:#}");
        }
    }
}

fn exec(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

/// What went through a shaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) bytes: u64,
    pub(crate) dropped: u64,
}

fn passed(json: &str) -> Result<Passed> {
    let all: Value = serde_json::from_str(json)?;
    let shaper = &all[0];
    let field = |name: &str| shaper[name].as_u64().with_context(|| format!("tc tells no {name}: {json}"));
    Ok(Passed { bytes: field("bytes")?, dropped: field("drops")? })
}

pub(crate) fn address(host: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host as u8 + 1)
}

fn frames(rate: Rate) -> u64 {
    (during(rate, PACKET) / FRAME).clamp(MIN_FRAMES, MAX_FRAMES)
}

fn shaper(rate: Rate) -> String {
    let (burst, queue) = (BURST * frames(rate) * FRAME, during(rate, QUEUE).max(MIN_QUEUE));
    format!("tbf rate {}bit burst {burst} limit {queue}", rate.bits())
}

fn during(rate: Rate, time: Duration) -> u64 {
    (rate.bytes() * time.as_secs_f64()) as u64
}

/// Removes the networks of labs that died.
pub(crate) fn remove_stale() -> Result<()> {
    remove(&names::is_stale)
}

fn remove(which: &dyn Fn(&str) -> bool) -> Result<()> {
    let Ok(entries) = Path::new("/run/netns").read_dir() else {
        return Ok(());
    };
    let names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let names: Vec<String> = names.into_iter().filter(|name| which(name)).collect();
    // A process that is alive would keep its namespace alive, without a name.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        let mut pids = Vec::new();
        for name in &names {
            pids.extend(run(&format!("ip netns pids {name}"))?.split_whitespace().map(ToOwned::to_owned));
        }
        if pids.is_empty() {
            break;
        }
        // One that has ended meanwhile makes the command fail, and is no loss.
        let _ = crate::command::finish(Command::new("kill").arg("-KILL").args(&pids), Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(10));
    }
    for name in names {
        run(&format!("ip netns delete {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shaper_holds_little_and_gives_little_for_free() {
        assert_eq!(shaper("100mbit".parse().unwrap()), "tbf rate 100000000bit burst 48448 limit 625000");
        assert_eq!(shaper("25mbit".parse().unwrap()), "tbf rate 25000000bit burst 12112 limit 262144");
        assert_eq!(shaper("1gbit".parse().unwrap()), "tbf rate 1000000000bit burst 121120 limit 6250000");
    }

    #[test]
    fn what_passed_is_read_from_tc() {
        let json = r#"[{"kind":"tbf","handle":"8001:","root":true,"options":{},"bytes":1514,"packets":1,"drops":2}]"#;
        assert_eq!(passed(json).unwrap(), Passed { bytes: 1514, dropped: 2 });
        assert!(passed("[]").is_err());
    }

    #[test]
    fn addresses_differ() {
        assert_eq!(address(STORE).to_string(), "10.77.0.1");
        assert_eq!(address(250).to_string(), "10.77.0.251");
    }
}
