//! Several hosts played by this one: each has an address of its own on loopback, a folder with the same `cluster.toml` and what secrets and
//! certificates it needs, and processes of roles that were started apart.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use deploycore::machine::{journaled_processes, kill_group};
use servers::etcd::{self, Etcd};
use servers::postgres::{self, Database, Postgres};
use servers::s3::S3;
use servers::{Launch, Process};
use tempfile::TempDir;

use crate::bed::cluster;

const GOALS_PASSWORD: &str = "of the goals: p@ss/word";

/// PostgreSQL, etcd with authentication, and S3.
pub(crate) struct Servers {
    pub(crate) postgres: Postgres,
    pub(crate) etcd: Etcd,
    pub(crate) s3: S3,
}

/// Started once for all tests.
pub(crate) fn servers() -> &'static Servers {
    static SERVERS: OnceLock<Servers> = OnceLock::new();
    SERVERS.get_or_init(|| {
        std::thread::scope(|scope| {
            let postgres = scope.spawn(|| Postgres::start(&postgres::Options::default()).unwrap());
            let etcd = scope.spawn(|| {
                let mut etcd = Etcd::start(&etcd::Options::default()).unwrap();
                etcd.enable_auth("deploy", GOALS_PASSWORD, "/apart").unwrap();
                etcd
            });
            let s3 = S3::start().unwrap();
            for bucket in ["artifacts", "artifacts-eu", "artifacts-us"] {
                s3.create_bucket(bucket).unwrap();
            }
            Servers { postgres: postgres.join().unwrap(), etcd: etcd.join().unwrap(), s3 }
        })
    })
}

/// What a cluster's file says of its servers.
#[derive(Debug, Clone)]
pub(crate) struct Urls {
    pub(crate) queue: String,
    pub(crate) goals: String,
    pub(crate) main: String,
    pub(crate) eu: String,
    pub(crate) us: String,
}

impl Urls {
    /// Without passwords. `name` keeps tests apart.
    pub(crate) fn new(database: &Database<'_>, name: &str) -> Self {
        let Servers { postgres, etcd, s3 } = servers();
        let store =
            |bucket| format!("s3://{bucket}/{name}?endpoint=http://{}&allow_http=true&region=us-east-1", s3.address());
        Self {
            queue: format!("postgres://deploycore@127.0.0.1:{}/{}", postgres.port(), database.name()),
            goals: format!("etcd://deploy@{}/apart/{name}", etcd.endpoints()[0].replace("http://", "")),
            main: store("artifacts"),
            eu: store("artifacts-eu"),
            us: store("artifacts-us"),
        }
    }
}

/// The hosts of a cluster.
pub(crate) struct Hosts {
    folder: TempDir,
    file: String,
    /// Where control serves what it counts.
    pub(crate) metrics: String,
    /// What runs, by host.
    running: BTreeMap<String, Process>,
}

impl Hosts {
    /// With one file for all of them.
    pub(crate) fn new(urls: &Urls, build: &str) -> Self {
        // Loopback has 2^24 addresses: a network of 256 for each cluster of each process.
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let network = NETWORKS.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x51).wrapping_add(std::process::id());
        let address = |number: u8| format!("127.{}.{}.{number}", network >> 8 & 0x7f | 0x80, network & 0xff);
        let Urls { queue, goals, main, eu, us } = urls;
        let file = format!(
            "state = 'state'\npoll = '200ms'\n[control]\nhost = '{}'\n\
             [queue]\nurl = '{queue}'\npassword_file = 'secret/queue'\n[goals]\nurl = '{goals}'\npassword_env = 'GOALS_PASSWORD'\n\
             [stores]\nmain = '{main}'\n\
             [swarm]\ncertificate = 'member.pem'\nkey = 'member.key'\nauthority = 'ca.pem'\nnames_in_certificates = true\n\
             [regions.eu]\nstore = '{eu}'\nreplicas = [{{ name = 'eu-1', host = '{}' }}, {{ name = 'eu-2', host = '{}' }}]\n\
             [regions.us]\nstore = '{us}'\nreplicas = [{{ name = 'us-1', host = '{}' }}]\n\
             [services.web]\nreadiness = {{ alive = '300ms' }}\n\
             [worker]\nheartbeat = '1s'\nlost_after = '4s'\n{build}\n[agent]\nlisten = '127.0.0.1:0'\n",
            address(10),
            address(11),
            address(12),
            address(21)
        );
        let metrics = format!("{}:7490", address(10));
        Self { folder: tempfile::tempdir().unwrap(), file, metrics, running: BTreeMap::new() }
    }

    /// The folder of a host, made at its first use. Only who needs the database's password has it.
    pub(crate) fn host(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join("hosts").join(name);
        if !folder.exists() {
            self.certify(name);
            std::fs::write(folder.join("cluster.toml"), &self.file).unwrap();
            if !name.contains("-m") {
                std::fs::create_dir(folder.join("secret")).unwrap();
                std::fs::write(folder.join("secret/queue"), "of-a-test\n").unwrap();
            }
        }
        folder
    }

    pub(crate) fn config(&self, host: &str) -> PathBuf {
        self.host(host).join("cluster.toml")
    }

    /// By the script that the guide names.
    fn certify(&self, host: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("swarm-certificate");
        let members = [format!("{host}-gate"), format!("{host}-tracker"), host.to_owned()];
        let output =
            Command::new(script).arg(self.folder.path().join("hosts")).arg(host).args(members).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts a role on a host and waits until it says that it is ready, as systemd would.
    pub(crate) fn start(&mut self, host: &str) {
        let folder = self.host(host);
        let (role, region) = role_of(host);
        let place = folder.join("notify");
        let _ = std::fs::remove_file(&place);
        let socket = UnixDatagram::bind(&place).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut launch = Launch::new(env!("CARGO_BIN_EXE_cluster"), self.log_path(host))
            .with_arguments(["role", role, "--name", host, "--config"])
            .with_arguments([self.config(host)])
            .with_variable("NOTIFY_SOCKET", &place);
        if let Some(region) = region {
            launch = launch.with_arguments(["--region", region]);
        }
        if role != "agent" {
            launch = launch.with_variable("AWS_ACCESS_KEY_ID", "test").with_variable("AWS_SECRET_ACCESS_KEY", "test");
        }
        if role == "control" {
            launch =
                launch.with_variable("GOALS_PASSWORD", GOALS_PASSWORD).with_arguments(["--metrics", &self.metrics]);
        }
        let mut word = [0; 64];
        let is_ready = || socket.recv(&mut word).is_ok_and(|length| &word[..length] == b"READY=1");
        let process = Process::start(&launch, is_ready).unwrap();
        self.running.insert(host.to_owned(), process);
    }

    /// SIGKILL. What it started goes on.
    pub(crate) fn kill(&mut self, host: &str) {
        let mut process = self.running.remove(host).expect("it runs");
        process.signal(servers::Signal::KILL).unwrap();
        while process.ended().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn log_path(&self, host: &str) -> PathBuf {
        self.folder.path().join(format!("{host}.log"))
    }

    /// Runs a command with the file of a host, and with the environment that its role has.
    pub(crate) fn run(&self, host: &str, arguments: &[&str]) -> Output {
        let mut command = cluster();
        if host.ends_with("control") {
            command.env("GOALS_PASSWORD", GOALS_PASSWORD);
        }
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        command.args(arguments).arg("--config").arg(self.config(host)).output().unwrap()
    }

    /// What a command prints, which must succeed.
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let output = self.run("control", arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, arguments: &[&str]) -> Option<T> {
        let output = self.run("control", &[arguments, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).ok()
    }
}

impl Drop for Hosts {
    /// Services outlive their agents.
    fn drop(&mut self) {
        self.running.clear();
        for host in std::fs::read_dir(self.folder.path().join("hosts")).into_iter().flatten().flatten() {
            let (name, machines) = (host.file_name(), host.path().join("state/machines"));
            for region in std::fs::read_dir(machines).into_iter().flatten().flatten() {
                for process in journaled_processes(&region.path().join(&name)).unwrap_or_default() {
                    let _ = kill_group(&process);
                }
            }
        }
    }
}

/// `control`, `worker-1`, `eu-1`, `eu-m1`.
fn role_of(host: &str) -> (&'static str, Option<&str>) {
    match host.split_once('-') {
        None => ("control", None),
        Some(("worker", _)) => ("worker", None),
        Some((region, number)) => (if number.starts_with('m') { "agent" } else { "region" }, Some(region)),
    }
}
