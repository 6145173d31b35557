//! A network of namespaces: each server has an address of its own, and any two can be cut off from each other. Needs root.

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Error;

const PACKAGE: &str = "iproute2";

/// Namespaces around a bridge of the host's, which this process reaches all of them by. Dropped, it is gone; also when this process
/// dies, however it dies.
#[derive(Debug)]
pub struct Network {
    tag: String,
    subnet: [u8; 3],
    sweeper: Child,
}

/// Waits for the end of its input, as a [`Folder`](crate::Folder)'s does, then removes the namespaces and the bridge.
const SWEEP: &str =
    r#"cat >/dev/null; bridge=$1; shift; for place; do ip netns del "$place"; done; ip link del "$bridge""#;

impl Network {
    /// Whether this process may make one: it must be root's.
    pub fn is_allowed() -> bool {
        rustix::process::geteuid().is_root()
    }

    /// Makes a network of so many places, numbered from 0; at most 200.
    pub fn new(places: usize) -> Result<Self, Error> {
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NETWORKS.fetch_add(1, Ordering::Relaxed));
        let tag = format!("dc{process:x}n{number}");
        // Addresses set apart for tests of networks (RFC 2544). Two processes that share one are unlikely to run at once.
        let part = process.wrapping_add(number.wrapping_mul(101)) % 508;
        let subnet = [198, 18 + (part / 254) as u8, 1 + (part % 254) as u8];
        let sweeper = Command::new("sh")
            .args(["-c", SWEEP, "sweeper", &tag])
            .args((0..places).map(|place| format!("{tag}-{place}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(Error::io("sh"))?;
        let network = Self { tag, subnet, sweeper };
        network.make(places)?;
        Ok(network)
    }

    fn make(&self, places: usize) -> Result<(), Error> {
        let bridge = &self.tag;
        ip(&["link", "add", bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", self.host()), "dev", bridge])?;
        ip(&["link", "set", bridge, "up"])?;
        for place in 0..places {
            let (name, cable) = (self.name(place), format!("{bridge}{place}"));
            ip(&["netns", "add", &name])?;
            ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            ip(&["link", "set", &cable, "master", bridge, "up"])?;
            ip(&["-n", &name, "addr", "add", &format!("{}/24", self.address(place)), "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    /// The address of this process.
    pub fn host(&self) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, 1)
    }

    /// The address of a place.
    pub fn address(&self, place: usize) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, 2 + place as u8)
    }

    /// The name of a place's namespace, for `ip netns exec`.
    pub fn name(&self, place: usize) -> String {
        format!("{}-{place}", self.tag)
    }

    /// From now on nothing passes between the two, and neither is told.
    pub fn cut(&self, one: usize, other: usize) -> Result<(), Error> {
        self.route("add", one, other)?;
        self.route("add", other, one)
    }

    /// Undoes a [`cut`](Self::cut).
    pub fn heal(&self, one: usize, other: usize) -> Result<(), Error> {
        self.route("del", one, other)?;
        self.route("del", other, one)
    }

    fn route(&self, change: &str, from: usize, to: usize) -> Result<(), Error> {
        ip(&["-n", &self.name(from), "route", change, "blackhole", &format!("{}/32", self.address(to))])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.sweeper.stdin.take());
        let _ = self.sweeper.wait();
    }
}

fn ip(arguments: &[&str]) -> Result<(), Error> {
    let output = Command::new("ip").args(arguments).output().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing { program: "ip".to_owned(), package: PACKAGE },
        _ => Error::io("ip")(source),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let program = format!("ip {}", arguments.join(" "));
    Err(Error::Tool { program, status: output.status, said: String::from_utf8_lossy(&output.stderr).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(network: &Network, from: usize, to: usize) -> bool {
        // A port that nobody listens on is refused at once if anything passes at all.
        let script = format!("exec 3<>/dev/tcp/{}/9", network.address(to));
        let name = network.name(from);
        let tried =
            Command::new("ip").args(["netns", "exec", &name, "timeout", "1", "bash", "-c", &script]).output().unwrap();
        String::from_utf8_lossy(&tried.stderr).contains("refused")
    }

    #[test]
    fn two_places_are_cut_off_from_each_other_and_no_others() {
        if !Network::is_allowed() {
            eprintln!("not root: no network of namespaces is tested");
            return;
        }
        let network = Network::new(3).unwrap();
        assert!(passes(&network, 0, 1) && passes(&network, 0, 2));
        network.cut(0, 1).unwrap();
        assert!(!passes(&network, 0, 1) && !passes(&network, 1, 0));
        assert!(passes(&network, 0, 2) && passes(&network, 2, 1));
        network.heal(0, 1).unwrap();
        assert!(passes(&network, 1, 0));
        let name = network.name(0);
        drop(network);
        assert!(!std::path::Path::new("/run/netns").join(name).exists());
    }
}
