//! The entry: dispatches the command line, and brings a whole cluster up for the main job.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use clap::Parser;
use deploycore::model::{CommitId, Labels, MachineName, Port, Readiness, RegionName, RunSpec, ServiceName, WorkerName};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use url::Url;

use super::cli::{Cli, Command, RunArgs};
use super::client::Client;
use super::layout::DataDir;
use super::report::Report;
use super::scenario::{Plan, Scenario};
use super::supervisor::{ChildSpec, Supervisor};
use super::{commands, config, fixture, roles};
use crate::files;
use crate::signals::told_to_end;

/// On one host nothing delays a heartbeat for long, and nobody wants to wait 90 s for a killed worker's job.
const HEARTBEAT: Duration = Duration::from_secs(3);
const LOST_AFTER: Duration = Duration::from_secs(10);
/// A few processes on one file may ask it often.
const LOOK: Duration = Duration::from_millis(500);

/// Reads the command line and does what it says; the exit code is 0 only when all of it was done.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    deploycore::tls::ensure_provider();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")
        .and_then(|runtime| {
            let result = runtime.block_on(dispatch(cli));
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(cli: Cli) -> Result<()> {
    match cli.command {
        None => bring_up(cli.run).await,
        Some(Command::Role { role, config, lifeline }) => roles::run(role, &config, lifeline).await,
        Some(command) => commands::run(command).await,
    }
}

/// What a cluster was asked for at its first start; a later start on the same folder must ask for the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Wanted {
    service: ServiceName,
    repository: String,
    commits: Vec<CommitId>,
    command: String,
    output: PathBuf,
    run: RunSpec,
    regions: u16,
    machines: u16,
    workers: u16,
    payload: Option<ByteSize>,
    #[serde(default)]
    database: Option<String>,
    #[serde(default)]
    goals: Option<String>,
    #[serde(default)]
    store: Option<Url>,
    own_repository: bool,
}

async fn bring_up(args: RunArgs) -> Result<()> {
    if let Some(report) = &args.report {
        files::check_writable(report).context("--report")?;
    }
    let temporary =
        if args.data_dir.is_none() { Some(tempfile::Builder::new().prefix("deploycore-").tempdir()?) } else { None };
    let folder = args.data_dir.clone().or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned()));
    let data = DataDir::create(&folder.context("a data folder is always known")?)?;
    let lock = data.lock("cluster.lock")?;
    let result = run_cluster(&args, &data).await;
    drop(lock);
    // Without a child there are no logs to look at.
    let has_logs = std::fs::read_dir(data.join("logs")).is_ok_and(|mut logs| logs.next().is_some());
    match (&result, temporary) {
        (Err(_), Some(temporary)) if has_logs => {
            let kept = temporary.keep();
            eprintln!("data folder with logs kept: {}", kept.display());
        }
        (Err(_), None) if has_logs => eprintln!("logs: {}", data.join("logs").display()),
        _ => {}
    }
    result
}

async fn run_cluster(args: &RunArgs, data: &DataDir) -> Result<()> {
    let wanted = wanted(args, data)?;
    check_disk(&wanted, data)?;
    let ends = write_configs(args, &wanted, data)?;
    // Only now: what was refused must not bind the folder to its settings.
    data.write_json("cluster.json", &wanted)?;
    let mut supervisor = Supervisor::new(data.clone())?;
    for child in &ends.children {
        supervisor.start(child.clone());
    }
    let client = Client::new(ends.api.clone())?;
    let machines = usize::from(wanted.regions) * usize::from(wanted.machines);
    let versions = (!wanted.own_repository).then(|| fixture::VERSIONS.map(str::to_owned).to_vec());
    let plan = Plan {
        service: wanted.service.clone(),
        commits: wanted.commits.clone(),
        machines,
        versions,
        readiness: wanted.run.readiness.clone(),
    };
    eprintln!(
        "cluster: {} regions × {} machines, {} workers; data in {}",
        wanted.regions,
        wanted.machines,
        wanted.workers,
        data.path().display()
    );
    let scenario = Scenario::new(&plan, data, &client)?;
    let walk = async {
        let report = scenario.run(args.time_limit).await?;
        finish(args, &report)?;
        if args.keep_running {
            keep_running(&ends, data);
            std::future::pending::<()>().await;
        }
        Ok(())
    };
    let result = tokio::select! {
        result = walk => result,
        error = supervisor.failed() => Err(error),
        signal = interrupted() => signal.and_then(|()| {
            if args.keep_running { Ok(()) } else { bail!("interrupted; the same command with the same --data-dir goes on") }
        }),
    };
    supervisor.stop().await;
    result
}

fn finish(args: &RunArgs, report: &Report) -> Result<()> {
    println!("{report}");
    if let Some(path) = &args.report {
        files::write_atomic(path, &serde_json::to_vec_pretty(report)?)?;
    }
    Ok(())
}

fn keep_running(ends: &Ends, data: &DataDir) {
    let dir = data.path().display();
    println!("running until Ctrl-C");
    println!("  control plane   {}", ends.api);
    println!("  global goals    {}", ends.goals);
    for region in &ends.regions {
        println!("  {:<14}  {}", region.name, region.gateway);
    }
    println!("  try             cluster status --data-dir {dir}");
    println!("                  cluster machines --data-dir {dir}");
}

async fn interrupted() -> Result<()> {
    told_to_end()?.await;
    eprintln!("stopping");
    Ok(())
}

fn wanted(args: &RunArgs, data: &DataDir) -> Result<Wanted> {
    let name = |default: &str| args.name.clone().map_or_else(|| ServiceName::new(default), Ok);
    let mut wanted = if let (Some(repo), Some(command), Some(output)) = (&args.repo, &args.build_command, &args.output)
    {
        Wanted {
            service: name("app")?,
            repository: local_repository(repo, &args.commit)?,
            commits: args.commit.clone(),
            command: command.clone(),
            output: output.clone(),
            run: run_spec(args)?,
            own_repository: true,
            ..Wanted::sized(args, name("app")?)
        }
    } else {
        let path = data.join("repo");
        let commits = fixture::repository(&path)?;
        let run = RunSpec {
            args: vec!["--port".into(), "{port}".into()],
            port: Port::Free,
            readiness: args.ready.clone().unwrap_or_else(|| Readiness::Http("/healthz".into())),
            ..RunSpec::default()
        };
        Wanted {
            repository: path.display().to_string(),
            commits,
            command: fixture::BUILD_COMMAND.into(),
            output: fixture::OUTPUT.into(),
            run,
            ..Wanted::sized(args, name("web")?)
        }
    };
    if let Some(before) = data.read_json::<Wanted>("cluster.json")? {
        if before != wanted {
            bail!(
                "data folder {} belongs to a cluster with other settings (cluster.json there tells): repeat that command, or use another --data-dir",
                data.path().display()
            );
        }
        wanted = before;
    }
    Ok(wanted)
}

impl Wanted {
    fn sized(args: &RunArgs, service: ServiceName) -> Self {
        Self {
            service,
            repository: String::new(),
            commits: Vec::new(),
            command: String::new(),
            output: PathBuf::new(),
            run: RunSpec::default(),
            regions: args.regions,
            machines: args.machines,
            workers: args.workers,
            payload: args.payload,
            database: args.database.clone(),
            goals: args.goals.clone(),
            store: args.store.clone(),
            own_repository: false,
        }
    }
}

fn run_spec(args: &RunArgs) -> Result<RunSpec> {
    if args.run_args.is_none() && args.ready.is_none() {
        return Ok(RunSpec::default());
    }
    let text = args.run_args.as_deref().unwrap_or_default();
    let words = shell_words::split(text).with_context(|| format!("--run {text:?} has an open quote"))?;
    let readiness = args.ready.clone().unwrap_or(Readiness::Alive(Duration::from_secs(5)));
    let wants_port = matches!(readiness, Readiness::Http(_)) || words.iter().any(|word| word.contains("{port}"));
    let port = if wants_port { Port::Free } else { Port::None };
    Ok(RunSpec { args: words, port, readiness, ..RunSpec::default() })
}

/// A repository on this host is checked at once, so that a wrong path or commit is told before anything starts.
fn local_repository(repo: &str, commits: &[CommitId]) -> Result<String> {
    if repo.contains("://") {
        return Ok(repo.to_owned());
    }
    let path = Path::new(repo).canonicalize().with_context(|| format!("repository {repo} does not exist"))?;
    for commit in commits {
        let found = fixture::git()
            .arg("-C")
            .arg(&path)
            .args(["cat-file", "-e", &format!("{commit}^{{commit}}")])
            .output()
            .context("git could not be started: install it")?;
        if !found.status.success() {
            let reason = String::from_utf8_lossy(&found.stderr);
            bail!("commit {commit} is not in repository {}: {}", path.display(), reason.trim());
        }
    }
    Ok(path.display().to_string())
}

/// Every machine keeps every build; the stores too.
fn check_disk(wanted: &Wanted, data: &DataDir) -> Result<()> {
    let Some(payload) = wanted.payload else { return Ok(()) };
    let (regions, machines) = (u64::from(wanted.regions), u64::from(wanted.machines));
    let copies = (1 + regions + regions * machines) * wanted.commits.len() as u64;
    let present = data.read_json::<serde_json::Value>("scenario.json")?.is_some();
    let needed = if present { 0 } else { payload.as_u64().saturating_mul(copies) };
    let disk = rustix::fs::statvfs(data.path()).map_err(std::io::Error::from)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed > free {
        bail!(
            "--payload {payload} on {} machines needs {} of disk, {} has {} free: use fewer machines, a smaller payload or another --data-dir",
            regions * machines,
            ByteSize(needed).display().iec(),
            data.path().display(),
            ByteSize(free).display().iec()
        );
    }
    Ok(())
}

/// The children and where they listen.
struct Ends {
    children: Vec<ChildSpec>,
    api: Url,
    goals: Url,
    regions: Vec<config::RegionEndpoint>,
}

fn write_configs(args: &RunArgs, wanted: &Wanted, data: &DataDir) -> Result<Ends> {
    let mut ports = Ports::default();
    let mut writer = ConfigWriter { data, children: Vec::new() };
    let api = match args.listen {
        Some(address) => free(address)?,
        None => ports.pick()?,
    };
    let goals = ports.pick()?;
    let database = |name: &str| match &wanted.database {
        Some(url) => url.clone(),
        None => format!("sqlite://{}", data.join("main").join(name).display()),
    };
    let redb = |path: PathBuf| format!("redb://{}", path.display());
    let store = |name: &str, folder: &Path| match &wanted.store {
        Some(url) => Ok(below(url, name)),
        None => file_url(&folder.join("store")),
    };
    let (queue, ledger, main_store) = (database("queue.db"), database("ledger.db"), store("main", &data.join("main"))?);
    let mut regions = Vec::new();
    for number in 1..=wanted.regions {
        let name = RegionName::new(format!("region-{number}"))?;
        let (gateway, tracker, gate) = (ports.pick()?, ports.pick()?, ports.pick()?);
        let folder = data.join("regions").join(name.as_str());
        std::fs::create_dir_all(&folder)?;
        let region = config::Region {
            name: name.clone(),
            gateway,
            tracker,
            gate,
            global: http_url(goals)?,
            main_store: main_store.clone(),
            store: store(name.as_str(), &folder)?,
            ledger: ledger.clone(),
            look: LOOK,
            goals_store: redb(folder.join("goals.redb")),
            gate_dir: folder.join("gate"),
            links: None,
        };
        writer.write(name.as_str(), "region", &region)?;
        regions.push(config::RegionEndpoint { name: name.clone(), gateway: http_url(gateway)? });
        for number in 1..=wanted.machines {
            let machine = MachineName::new(format!("{name}-m{number}"))?;
            let agent = config::Agent {
                machine: machine.clone(),
                region: name.clone(),
                labels: Labels([("region".to_owned(), name.to_string())].into()),
                gateway: http_url(gateway)?,
                trackers: vec![tracker],
                listen: (Ipv4Addr::LOCALHOST, 0).into(),
                link: args.link,
                data_dir: data.join("machines").join(name.as_str()).join(machine.as_str()),
            };
            std::fs::create_dir_all(&agent.data_dir)?;
            writer.write(machine.as_str(), "agent", &agent)?;
        }
    }
    let control = config::Control {
        api,
        goals,
        goals_store: wanted.goals.clone().unwrap_or_else(|| redb(data.join("main/goals.redb"))),
        queue: queue.clone(),
        ledger,
        store: main_store.clone(),
        heartbeat: HEARTBEAT,
        lost_after: LOST_AFTER,
        look: LOOK,
        regions: regions.clone(),
        services: BTreeMap::from([(wanted.service.clone(), wanted.run.clone())]),
    };
    writer.write("control", "control", &control)?;
    for number in 1..=wanted.workers {
        let name = WorkerName::new(format!("worker-{number}"))?;
        let worker = config::Worker {
            name: name.clone(),
            slots: NonZeroUsize::MIN,
            heartbeat: HEARTBEAT,
            lost_after: LOST_AFTER,
            look: LOOK,
            queue: queue.clone(),
            store: main_store.clone(),
            repository: wanted.repository.clone(),
            command: wanted.command.clone(),
            output: wanted.output.clone(),
            scratch: data.join("workers").join(name.as_str()),
            payload: wanted.payload,
        };
        writer.write(name.as_str(), "worker", &worker)?;
    }
    let agents = writer.agents();
    writer.write("warden", "warden", &config::Warden { agents })?;
    let children = writer.children;
    files::write_atomic(&data.join("run/api"), http_url(api)?.as_str().as_bytes())?;
    Ok(Ends { children, api: http_url(api)?, goals: http_url(goals)?, regions })
}

struct ConfigWriter<'a> {
    data: &'a DataDir,
    children: Vec<ChildSpec>,
}

impl ConfigWriter<'_> {
    fn write(&mut self, name: &str, role: &'static str, config: &impl Serialize) -> Result<()> {
        let text = toml::to_string_pretty(config)?;
        files::write_atomic(&self.data.join(format!("config/{name}.toml")), text.as_bytes())?;
        self.children.push(ChildSpec { name: name.to_owned(), role });
        Ok(())
    }

    /// The configurations of the agents written so far.
    fn agents(&self) -> Vec<PathBuf> {
        let agents = self.children.iter().filter(|child| child.role == "agent");
        agents.map(|agent| self.data.join(format!("config/{}.toml", agent.name))).collect()
    }
}

fn http_url(address: SocketAddr) -> Result<Url> {
    Ok(Url::parse(&format!("http://{address}/"))?)
}

/// The store of this name below the one that a user named.
fn below(store: &Url, name: &str) -> Url {
    let mut url = store.clone();
    url.set_path(&format!("{}/{name}", store.path().trim_end_matches('/')));
    url
}

fn file_url(path: &Path) -> Result<Url> {
    Url::from_directory_path(path).map_err(|()| anyhow::anyhow!("{} is not an absolute path", path.display()))
}

/// Picks ports below the range that the system hands out by itself, so that no outgoing connection takes one meanwhile.
#[derive(Debug, Default)]
struct Ports(std::collections::BTreeSet<u16>);

impl Ports {
    fn pick(&mut self) -> Result<SocketAddr> {
        for _ in 0..1_000 {
            let port = rand::rng().random_range(15_000..32_000);
            let address = (Ipv4Addr::LOCALHOST, port).into();
            if !self.0.contains(&port) && TcpListener::bind(address).is_ok() {
                self.0.insert(port);
                return Ok(address);
            }
        }
        bail!("no free port was found on 127.0.0.1 between 15000 and 32000")
    }
}

fn free(address: SocketAddr) -> Result<SocketAddr> {
    TcpListener::bind(address)
        .with_context(|| format!("{address} cannot be listened on: choose another --listen, or stop what holds it"))?;
    Ok(address)
}
