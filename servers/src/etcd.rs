//! etcd: one server, or a cluster whose members are killed, stopped and started again one by one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::{Error, Folder, Launch, Network, Port, Process, Signal};

const SERVER: &str = "etcd-server";
const CLIENT: &str = "etcd-client";
/// The administrator that [`Etcd::enable_auth`] makes.
const ROOT: &str = "root:of-the-tests";
/// How long a cluster may take to have a leader that all members know.
const AGREED_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// How a cluster is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How many members; 1 by default.
    pub members: usize,
    /// Whether clients must use TLS and show a certificate; false by default. See [`Etcd::certificates`].
    pub tls: bool,
    /// Whether each member is in a place of its own of a [`Network`], where it can be cut off; false by default. Needs root.
    pub network: bool,
}

impl Default for Options {
    /// One server without TLS.
    fn default() -> Self {
        Self { members: 1, tls: false, network: false }
    }
}

impl Options {
    /// A cluster.
    #[must_use]
    pub fn with_members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// With each member in a place of its own.
    #[must_use]
    pub fn with_network(mut self) -> Self {
        self.network = true;
        self
    }

    /// With TLS for clients, who must show a certificate.
    #[must_use]
    pub fn with_tls(mut self) -> Self {
        self.tls = true;
        self
    }
}

/// Certificates as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificates {
    /// Who signed the others.
    pub ca: PathBuf,
    /// A client's.
    pub client: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
    /// A server's, for loopback.
    pub server: PathBuf,
    /// Its key.
    pub server_key: PathBuf,
}

impl Certificates {
    /// Makes an authority, and certificates for a server on loopback and for a client.
    pub fn new(folder: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let wrong = |error: rcgen::Error| Error::io(folder)(std::io::Error::other(error));
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(Error::io(&path))?;
            Ok::<_, Error>(path)
        };
        let mut authority = CertificateParams::new(Vec::new()).map_err(wrong)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().map_err(wrong)?;
        let ca = write("ca.pem", authority.self_signed(&key).map_err(wrong)?.pem())?;
        let issuer = Issuer::new(authority, key);
        let sign = |name: &str, hosts: &[&str]| {
            let hosts: Vec<_> = hosts.iter().map(|&host| host.to_owned()).collect();
            let key = KeyPair::generate().map_err(wrong)?;
            let params = CertificateParams::new(hosts).map_err(wrong)?;
            let certificate = params.signed_by(&key, &issuer).map_err(wrong)?;
            let place = write(&format!("{name}.pem"), certificate.pem())?;
            Ok::<_, Error>((place, write(&format!("{name}-key.pem"), key.serialize_pem())?))
        };
        let (server, server_key) = sign("server", &["127.0.0.1", "localhost"])?;
        let (client, client_key) = sign("client", &["client"])?;
        Ok(Self { ca, client, client_key, server, server_key })
    }
}

/// A cluster, and its data. Dropped, both are gone.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    certificates: Option<Certificates>,
    user: Option<&'static str>,
    // After the members, as are the ports.
    network: Option<Network>,
    _ports: Vec<Port>,
    _folder: Folder,
}

#[derive(Debug)]
struct Member {
    process: Option<Process>,
    stopped: bool,
    launch: Launch,
    address: SocketAddr,
}

impl Member {
    fn answers(&self) -> bool {
        self.process.is_some() && !self.stopped
    }
}

impl Etcd {
    /// Starts a cluster and waits until all members follow one leader.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let folder = Folder::new("etcd")?;
        let certificates = options.tls.then(|| Certificates::new(&folder.path().join("tls"))).transpose()?;
        let network = options.network.then(|| Network::new(options.members)).transpose()?;
        let mut ports = Vec::new();
        let addresses = (0..options.members).map(|number| addresses(network.as_ref(), number, &mut ports));
        let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let peer = |number: usize| format!("http://{}", addresses[number][1]);
        let all: Vec<_> = (0..options.members).map(|number| format!("m{number}={}", peer(number))).collect();
        let all = all.join(",");
        let launch = |number: usize| {
            let (client, name) = (format!("{scheme}://{}", addresses[number][0]), format!("m{number}"));
            let arguments = [
                ("--name", name.as_str()),
                ("--listen-client-urls", &client),
                ("--advertise-client-urls", &client),
                ("--listen-peer-urls", &peer(number)),
                ("--initial-advertise-peer-urls", &peer(number)),
                ("--initial-cluster", &all),
                ("--logger", "zap"),
            ];
            let arguments = arguments.map(|(name, value)| format!("{name}={value}"));
            let log = folder.path().join(format!("{name}.log"));
            let launch = match &network {
                None => Launch::new("etcd", log),
                Some(network) => {
                    Launch::new("ip", log).with_arguments(["netns", "exec", &network.name(number), "etcd"])
                }
            };
            launch
                .with_arguments(arguments)
                .with_arguments([Path::new("--data-dir"), &folder.path().join(&name)])
                .with_arguments(certificates.iter().flat_map(tls_arguments))
        };
        let member = |number: usize| Member {
            process: None,
            stopped: false,
            launch: launch(number),
            address: addresses[number][0],
        };
        let members = (0..options.members).map(member).collect();
        let mut cluster = Self { members, certificates, user: None, network, _ports: ports, _folder: folder };
        for number in 0..options.members {
            cluster.launch(number)?;
        }
        cluster.agreed()?;
        Ok(cluster)
    }

    /// The members' client URLs.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        self.members.iter().map(|member| format!("{scheme}://{}", member.address)).collect()
    }

    /// What a client needs where TLS was asked for.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// The places of the members, by their numbers, where a network was asked for.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// Runs `etcdctl` on all members that run and are not stopped, as the administrator where there is one, and gives what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, Error> {
        let running = self.endpoints().into_iter().zip(&self.members).filter(|(_, member)| member.answers());
        self.ctl_on(&running.map(|(endpoint, _)| endpoint).collect::<Vec<_>>().join(","), arguments)
    }

    fn ctl_on(&self, endpoints: &str, arguments: &[&str]) -> Result<String, Error> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", endpoints, "--command-timeout=10s"]);
        if let Some(certificates) = &self.certificates {
            let Certificates { ca, client, client_key, .. } = certificates;
            command.arg("--cacert").arg(ca).arg("--cert").arg(client).arg("--key").arg(client_key);
        }
        command.args(self.user.iter().flat_map(|user| ["--user", user])).args(arguments);
        let output = command.output().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::Missing { program: "etcdctl".to_owned(), package: CLIENT },
            _ => Error::io("etcdctl")(source),
        })?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let said = said + &String::from_utf8_lossy(&output.stderr);
        Err(Error::Tool { program: "etcdctl".to_owned(), status: output.status, said })
    }

    /// Turns authentication on, with a user who may read and write below a prefix.
    pub fn enable_auth(&mut self, name: &str, password: &str, prefix: &str) -> Result<(), Error> {
        for arguments in [
            &["user", "add", ROOT][..],
            &["role", "add", "root"],
            &["user", "grant-role", "root", "root"],
            &["user", "add", &format!("{name}:{password}")],
            &["role", "add", name],
            &["role", "grant-permission", name, "--prefix=true", "readwrite", prefix],
            &["user", "grant-role", name, name],
            &["auth", "enable"],
        ] {
            self.ctl(arguments)?;
        }
        self.user = Some(ROOT);
        Ok(())
    }

    /// Compacts the log up to now, so that no earlier revision can be read or watched. Members that run and are not stopped take part.
    pub fn compact(&self) -> Result<(), Error> {
        let status = self.ctl(&["get", "no-such-key", "--write-out=fields"])?;
        let revision = status.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap_or_default();
        self.ctl(&["compact", "--physical", revision]).map(drop)
    }

    /// The number of the member that leads.
    pub fn leader(&self) -> Result<usize, Error> {
        let status = self.ctl(&["endpoint", "status", "--write-out=simple"])?;
        let leads = |line: &str| line.split(", ").nth(4) == Some("true");
        let line = status.lines().find(|line| leads(line)).unwrap_or_default();
        let number = self.endpoints().iter().position(|endpoint| line.starts_with(&format!("{endpoint}, ")));
        let none =
            || Error::NotReady { program: "etcd's leader".to_owned(), waited: Duration::ZERO, log: status.clone() };
        number.ok_or_else(none)
    }

    /// SIGKILL. Nothing while it is down.
    pub fn kill(&mut self, number: usize) {
        let member = &mut self.members[number];
        member.stopped = false;
        if let Some(process) = member.process.take() {
            process.kill();
        }
    }

    /// Starts a member again on its ports and data, after [`kill`](Self::kill). It may take a moment until it follows.
    pub fn start_again(&mut self, number: usize) -> Result<(), Error> {
        if self.members[number].process.is_none() {
            self.launch(number)?;
        }
        Ok(())
    }

    /// SIGSTOP: it keeps its connections and says nothing.
    pub fn stop(&mut self, number: usize) -> Result<(), Error> {
        self.members[number].stopped = true;
        self.signal(number, Signal::STOP)
    }

    /// SIGCONT, after [`stop`](Self::stop).
    pub fn resume(&mut self, number: usize) -> Result<(), Error> {
        self.members[number].stopped = false;
        self.signal(number, Signal::CONT)
    }

    /// Waits until all members that run and are not stopped follow one leader.
    pub fn agreed(&self) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let Err(error) = self.ctl(&["endpoint", "health"]) else { return Ok(()) };
            if start.elapsed() > AGREED_WITHIN {
                return Err(error);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn signal(&mut self, number: usize, signal: Signal) -> Result<(), Error> {
        self.members[number].process.as_mut().map_or(Ok(()), |process| process.signal(signal))
    }

    /// A member of a cluster serves when most are there; it listens before that.
    fn launch(&mut self, number: usize) -> Result<(), Error> {
        let member = &mut self.members[number];
        let listens = || TcpStream::connect_timeout(&member.address, Duration::from_millis(200)).is_ok();
        let started = Process::start(&member.launch, listens).map_err(|error| match error {
            // setpriv says so: it is what was started.
            Error::Ended { log, .. } if log.contains("failed to execute etcd") => {
                Error::Missing { program: "etcd".to_owned(), package: SERVER }
            }
            other => other,
        });
        member.process = Some(started?);
        Ok(())
    }
}

impl Drop for Etcd {
    /// A stopped process takes no other signal than SIGKILL, and there is nothing that it should end in order.
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|number| self.kill(number));
    }
}

/// Where a member serves clients, and where it serves its peers. In a place of its own it has all ports, on loopback those it takes.
fn addresses(network: Option<&Network>, number: usize, taken: &mut Vec<Port>) -> Result<[SocketAddr; 2], Error> {
    if let Some(network) = network {
        let host = IpAddr::V4(network.address(number));
        return Ok([2379, 2380].map(|port| SocketAddr::new(host, port)));
    }
    let ports = [Port::take()?, Port::take()?];
    let addresses = ports.each_ref().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port.number())));
    taken.extend(ports);
    Ok(addresses)
}

fn tls_arguments(certificates: &Certificates) -> Vec<std::ffi::OsString> {
    let Certificates { ca, server, server_key, .. } = certificates;
    let files = [("--cert-file", server), ("--key-file", server_key), ("--trusted-ca-file", ca)];
    let files = files.into_iter().flat_map(|(name, path)| [name.into(), path.clone().into_os_string()]);
    files.chain(["--client-cert-auth".into()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_survives_a_member_and_gets_it_back() {
        let mut etcd = Etcd::start(&Options::default().with_members(3)).unwrap();
        etcd.ctl(&["put", "k", "v"]).unwrap();
        let leader = etcd.leader().unwrap();
        etcd.kill(leader);
        assert!(TcpStream::connect(etcd.members[leader].address).is_err());
        etcd.agreed().unwrap();
        assert_ne!(etcd.leader().unwrap(), leader);
        etcd.ctl(&["put", "k", "w"]).unwrap();
        etcd.start_again(leader).unwrap();
        etcd.agreed().unwrap();
        assert_eq!(etcd.ctl_on(&etcd.endpoints()[leader], &["get", "k"]).unwrap(), "k\nw\n");
    }

    #[test]
    fn a_server_asks_for_certificate_and_password() {
        let mut etcd = Etcd::start(&Options::default().with_tls()).unwrap();
        etcd.enable_auth("web", "secret", "/web").unwrap();
        etcd.ctl(&["put", "/api/k", "v"]).unwrap();
        etcd.ctl(&["put", "/web/k", "v"]).unwrap();
        etcd.user = Some("web:secret");
        assert!(etcd.ctl(&["get", "/web/k"]).is_ok());
        assert!(etcd.ctl(&["get", "/api/k"]).is_err());
        etcd.user = Some("web:other");
        assert!(etcd.ctl(&["get", "/web/k"]).is_err());
        etcd.certificates = None;
        assert!(etcd.ctl(&["endpoint", "health"]).is_err());
    }
}
