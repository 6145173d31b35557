//! What a cluster on this host is asked for: by a file, and by flags, which go before.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use deploycore::model::{CommitId, MachineName, Port, Readiness, RegionName, RunSpec, ServiceName};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::cluster::cli::RunArgs;
use crate::cluster::config::{Config, Control, Local, Region, Replica, Server, Swarm};
use crate::cluster::fixture;
use crate::cluster::layout::DataDir;

/// On one host nothing delays a heartbeat for long, and nobody wants to wait 90 s for a killed worker's job.
const HEARTBEAT: Duration = Duration::from_secs(3);
const LOST_AFTER: Duration = Duration::from_secs(10);
/// A few processes on one file may ask it often.
const POLL: Duration = Duration::from_millis(500);
const REGIONS: u16 = 3;

/// What a cluster was asked for at its first start; a later start on the same folder must ask for the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Wanted {
    pub(super) service: ServiceName,
    pub(super) commits: Vec<CommitId>,
    pub(super) machines: u16,
    pub(super) workers: u16,
    pub(super) own_repository: bool,
    /// Without ports, which are picked anew at each start.
    pub(super) config: Config,
}

impl Wanted {
    pub(super) fn new(args: &RunArgs, file: Option<Config>, data: &DataDir) -> Result<Self> {
        let mut config = file.unwrap_or_else(on_this_host);
        let local = std::mem::take(&mut config.local);
        let (machines, workers) = (args.machines.unwrap_or(local.machines), args.workers.unwrap_or(local.workers));
        if machines == 0 || workers == 0 {
            bail!("a cluster has at least one machine and one worker: see machines and workers in [local]");
        }
        overlay(&mut config, args)?;
        let built = Built::new(args, &local, &mut config, data)?;
        let run = run_spec(args, &built, &config)?;
        config.services.insert(built.service.clone(), run);
        bring_home(&mut config, data);
        let problems = config.problems();
        if !problems.is_empty() {
            bail!("{}", problems.join("; "));
        }
        let Built { service, commits, own_repository } = built;
        let wanted = Self { service, commits, machines, workers, own_repository, config };
        if data.read_json::<Self>("cluster.json")?.is_some_and(|before| before != wanted) {
            bail!(
                "data folder {} belongs to a cluster with other settings (cluster.json there tells): repeat that command, or use another --data-dir",
                data.path().display()
            );
        }
        Ok(wanted)
    }

    /// How the service is run.
    pub(super) fn run(&self) -> &RunSpec {
        &self.config.services[&self.service]
    }

    /// Every machine keeps every build; the stores too.
    pub(super) fn check_disk(&self, data: &DataDir) -> Result<()> {
        let Some(payload) = self.config.worker.payload else { return Ok(()) };
        let (regions, machines) = (self.config.regions.len() as u64, u64::from(self.machines));
        let copies = (1 + regions + regions * machines) * self.commits.len() as u64;
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
}

fn on_this_host() -> Config {
    let mut config = Config { poll: POLL, ..Config::default() };
    (config.worker.heartbeat, config.worker.lost_after) = (HEARTBEAT, LOST_AFTER);
    config
}

/// Flags go before the file.
fn overlay(config: &mut Config, args: &RunArgs) -> Result<()> {
    if args.regions.is_some() || config.regions.is_empty() {
        let names = (1..=args.regions.unwrap_or(REGIONS)).map(|number| RegionName::new(format!("region-{number}")));
        let regions = names.map(|name| Ok((name?, Region::default())));
        config.regions = regions.collect::<Result<_>>()?;
    }
    if let Some(url) = &args.database {
        (config.queue, config.ledger) = (Server::of_url(url), Server::default());
    }
    if let Some(url) = &args.goals {
        config.goals = Server::of_url(url);
    }
    if let Some(url) = &args.store {
        config.stores.main = Some(below(url, "main"));
        for (name, region) in &mut config.regions {
            region.store = Some(below(url, name.as_str()));
        }
    }
    let worker = &mut config.worker;
    worker.repository = args.repo.clone().or(worker.repository.take());
    worker.command = args.build_command.clone().or(worker.command.take());
    worker.output = args.output.clone().or(worker.output.take());
    worker.payload = args.payload.or(worker.payload);
    config.agent.link = args.link.or(config.agent.link);
    Ok(())
}

/// Everything is on loopback, below the data folder.
fn bring_home(config: &mut Config, data: &DataDir) {
    data.path().clone_into(&mut config.state);
    (config.worker.state, config.agent.state) = (None, None);
    (config.agent.region, config.agent.listen) = (None, None);
    let Control { queue_order, keep_jobs, goal_epoch, .. } = config.control;
    (config.control, config.swarm) =
        (Control { queue_order, keep_jobs, goal_epoch, ..Control::default() }, Swarm::default());
    for region in config.regions.values_mut() {
        for (number, replica) in (1..).zip(&mut region.replicas) {
            let name = MachineName::new(format!("gateway-{number}")).expect("it is a name");
            *replica = Replica::named(name, "127.0.0.1");
        }
    }
}

/// What is built.
struct Built {
    service: ServiceName,
    commits: Vec<CommitId>,
    own_repository: bool,
}

impl Built {
    fn new(args: &RunArgs, local: &Local, config: &mut Config, data: &DataDir) -> Result<Self> {
        let commits = if args.commit.is_empty() { local.commits.clone() } else { args.commit.clone() };
        let worker = &mut config.worker;
        let given = [
            (worker.repository.is_some(), "--repo PATH"),
            (!commits.is_empty(), "--commit SHA"),
            (worker.command.is_some(), "--command CMD"),
            (worker.output.is_some(), "--output FILE"),
        ];
        let own_repository = given.iter().any(|(given, _)| *given) || args.run_args.is_some();
        let only = if config.services.len() == 1 { config.services.keys().next() } else { None };
        let service = args.name.as_ref().or(local.service.as_ref()).or(only).cloned();
        if !own_repository {
            let path = data.join("repo");
            let commits = fixture::repository(&path)?;
            worker.repository = Some(path.display().to_string());
            worker.command = Some(fixture::BUILD_COMMAND.into());
            worker.output = Some(fixture::OUTPUT.into());
            let service = service.map_or_else(|| ServiceName::new("web"), Ok)?;
            return Ok(Self { service, commits, own_repository });
        }
        let missing: Vec<_> = given.iter().filter(|(given, _)| !given).map(|(_, flag)| *flag).collect();
        if !missing.is_empty() {
            bail!(
                "a repository of your own needs {} too, or repository, command and output in [worker] and commits in [local]",
                missing.join(", ")
            );
        }
        if config.services.len() > 1 && service.is_none() {
            bail!("the configuration has several services: say by --name which to build and deploy");
        }
        if let Some(repository) = &mut worker.repository {
            *repository = local_repository(repository, &commits)?;
        }
        let service = service.map_or_else(|| ServiceName::new("app"), Ok)?;
        Ok(Self { service, commits, own_repository })
    }
}

fn run_spec(args: &RunArgs, built: &Built, config: &Config) -> Result<RunSpec> {
    let said = args.run_args.is_some() || args.ready.is_some();
    if let Some(run) = config.services.get(&built.service).filter(|_| !said) {
        return Ok(run.clone());
    }
    if !built.own_repository {
        return Ok(RunSpec {
            args: vec!["--port".into(), "{port}".into()],
            port: Port::Free,
            readiness: args.ready.clone().unwrap_or_else(|| Readiness::Http("/healthz".into())),
            ..RunSpec::default()
        });
    }
    if !said {
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

/// The store of this name below the one that a user named.
fn below(store: &Url, name: &str) -> Url {
    let mut url = store.clone();
    url.set_path(&format!("{}/{name}", store.path().trim_end_matches('/')));
    url
}
