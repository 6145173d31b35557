//! `cluster check`: tries each server that a role needs, from the host that it is run on, and changes nothing there.
//!
//! One line for each: the key, and what is wrong and what to do, or that all is well. Exit code 0: all is well; 1: a server is not; 2: the
//! configuration is not, and nothing was tried.

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use deploycore::model::RegionName;
use deploycore::port::GoalStateStore;
use deploycore_p2p::{Node, NodeSettings};
use deploycore_sql::Schema;
use futures::future::{BoxFuture, FutureExt, join_all};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::backends;
use super::cli::{Place, RoleName};
use super::config::{self, Config};
use super::roles::place;

/// Longer than any client takes to give up by itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// A member of the cluster in the same network answers sooner.
const DIAL: Duration = Duration::from_secs(5);

/// The configuration is at fault.
const BAD_CONFIGURATION: u8 = 2;

/// Checks the configuration for a role, or for all.
pub(super) async fn run(path: &Path, role: Option<RoleName>, place: &Place) -> Result<ExitCode> {
    let tries = match plan(path, role, place) {
        Ok(tries) => tries,
        Err(problems) => {
            for problem in problems {
                eprintln!("error: {problem}");
            }
            return Ok(BAD_CONFIGURATION.into());
        }
    };
    let results = join_all(tries.into_iter().map(Try::run)).await;
    for (key, result) in &results {
        match result {
            Ok(said) => println!("ok: {key}{said}"),
            Err(error) => eprintln!("error: {}", one_line(&format!("{key}{error:#}"))),
        }
    }
    Ok(if results.iter().all(|(_, result)| result.is_ok()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is to be tried, or all that is wrong with the configuration.
fn plan(path: &Path, role: Option<RoleName>, place: &Place) -> Result<Vec<Try>, Vec<String>> {
    let told = |error: anyhow::Error| vec![one_line(&format!("{error:#}"))];
    let config = config::read(path).map_err(told)?;
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(problems.into_iter().map(|problem| format!("{}: {problem}", path.display())).collect());
    }
    let tries = match role {
        Some(RoleName::Control) => Ok(control(&config)),
        Some(RoleName::Worker) => worker(&config),
        Some(RoleName::Region) => region(&config, place),
        Some(RoleName::Agent) => agent(&config, place),
        Some(RoleName::Warden) => Ok(Vec::new()),
        None => all(&config),
    };
    tries.map_err(told)
}

fn control(config: &Config) -> Vec<Try> {
    // The ledger may be in the queue's database, or have a file of its own beside it.
    let has_own = config.ledger.url.is_some() || config.queue.url.is_none();
    let mut tries = vec![queue(config)];
    tries.extend(has_own.then(|| ledger(config)));
    tries.extend([goals(config), main_store(config)]);
    tries
}

fn worker(config: &Config) -> Result<Vec<Try>> {
    super::roles::build_settings(config, "check")?;
    Ok(vec![queue(config), main_store(config), repository(config)])
}

fn region(config: &Config, place: &Place) -> Result<Vec<Try>> {
    let (name, _, replica) = place::replica(config, place)?;
    let members = ["gate", "tracker"].map(|part| swarm(config, name, format!("{}-{part}", replica.name)));
    let mut tries = vec![ledger(config), main_store(config), region_store(config, name), global_goals(config)];
    tries.extend(members);
    Ok(tries)
}

fn agent(config: &Config, place: &Place) -> Result<Vec<Try>> {
    let (name, region, machine) = place::machine(config, place)?;
    let mut tries = vec![swarm(config, name, machine.to_string())];
    for replica in &region.replicas {
        let key = || format!("[regions.{name}] replicas, {}", replica.name);
        tries.push(gateway(key(), replica.gateway()?));
        tries.push(dial(key(), config::dialed(&replica.host, replica.tracker_port), "tracker"));
        tries.push(dial(key(), config::dialed(&replica.host, replica.gate_port), "gate"));
    }
    Ok(tries)
}

/// What lies outside of the cluster: no role needs to run.
fn all(config: &Config) -> Result<Vec<Try>> {
    let mut tries = control(config);
    tries.extend(config.regions.keys().map(|name| region_store(config, name)));
    super::roles::build_settings(config, "check")?;
    tries.push(repository(config));
    Ok(tries)
}

/// Something to try.
struct Try {
    /// What its line begins with.
    key: String,
    outcome: BoxFuture<'static, Result<String>>,
}

impl Try {
    fn new(key: impl Into<String>, outcome: impl Future<Output = Result<String>> + Send + 'static) -> Self {
        Self { key: format!("{}: ", key.into()), outcome: outcome.boxed() }
    }

    /// A server whose password cannot be read: the error names the key.
    fn of_url<F>(key: &str, url: Result<String>, outcome: impl FnOnce(String) -> F) -> Self
    where
        F: Future<Output = Result<String>> + Send + 'static,
    {
        match url {
            Ok(url) => Self::new(key, outcome(url)),
            Err(error) => Self { key: String::new(), outcome: std::future::ready(Err(error)).boxed() },
        }
    }

    async fn run(self) -> (String, Result<String>) {
        let outcome = timeout(PATIENCE, self.outcome).await;
        (self.key, outcome.unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}"))))
    }
}

fn queue(config: &Config) -> Try {
    database("[queue] url", config.queue_url())
}

fn ledger(config: &Config) -> Try {
    database(backends::ledger_key(config), config.ledger_url())
}

fn database(key: &str, url: Result<String>) -> Try {
    Try::of_url(key, url, |url| async move {
        let schema = deploycore_sql::schema_of_url(&url).await?;
        Ok(match schema {
            Schema { found: None, known } => {
                format!("no tables yet; the first role that starts makes them, version {known}")
            }
            Schema { found: Some(found), known } if found < known => {
                format!("tables of version {found}; the first role that starts brings them to {known}")
            }
            Schema { known, .. } => format!("tables of version {known}"),
        })
    })
}

fn goals(config: &Config) -> Try {
    Try::of_url("[goals] url", config.goals_url(), |url| async move {
        if url.starts_with("redb:") {
            return Ok("a file that the control plane alone opens".into());
        }
        let goals = deploycore_kv::open_url(&url).await?;
        Ok(services(goals.list("").await?.goals.len()))
    })
}

fn services(count: usize) -> String {
    format!("answers, with the goals of {count} services")
}

fn main_store(config: &Config) -> Try {
    let config = config.clone();
    Try::new(
        "[stores] main",
        async move { backends::main_store(&config).await.map(answers).map_err(|error| below(&error)) },
    )
}

fn region_store(config: &Config, region: &RegionName) -> Try {
    let (config, region) = (config.clone(), region.clone());
    let key = format!("[regions.{region}] store");
    Try::new(
        key,
        async move { backends::region_store(&config, &region).await.map(answers).map_err(|error| below(&error)) },
    )
}

fn answers<T>(_: T) -> String {
    "answers".into()
}

/// Without the key, which stands there already.
fn below(error: &anyhow::Error) -> anyhow::Error {
    let reasons: Vec<_> = error.chain().skip(1).map(ToString::to_string).collect();
    anyhow!("{}", reasons.join(": "))
}

fn global_goals(config: &Config) -> Try {
    let client = backends::global_goals(config);
    Try::new("[control] host", async move {
        let client = client?;
        let asked = client.list("").await;
        let goals = asked.with_context(|| {
            format!(
                "the global goals at {} do not answer; start the role control there, or let this host in",
                client.base()
            )
        })?;
        Ok(services(goals.goals.len()))
    })
}

fn gateway(key: String, url: url::Url) -> Try {
    Try::new(key, async move {
        let client = backends::gateways(vec![url.clone()])?;
        let asked = client.list("").await;
        let goals = asked.with_context(|| {
            format!("the gateway {url} does not answer; start the role region there, or let this host in")
        })?;
        Ok(format!("the gateway {}", services(goals.goals.len())))
    })
}

fn dial(key: String, address: String, what: &'static str) -> Try {
    Try::new(key, async move {
        let dialed = timeout(DIAL, TcpStream::connect(&address)).await;
        let dialed = dialed.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        dialed.with_context(|| {
            format!("the {what} at {address} does not answer; start the role region there, or let this host in")
        })?;
        Ok(format!("the {what} at {address} answers"))
    })
}

/// A member that is set up reads its certificates.
fn swarm(config: &Config, region: &RegionName, member: String) -> Try {
    let settings = NodeSettings::new(member.clone(), region.clone(), config.swarm.security());
    let is_plain = config.swarm.certificate.is_none();
    Try::new("[swarm]", async move {
        Node::bind(settings).await.context("look at certificate, key and authority")?;
        Ok(if is_plain { "plain TCP".into() } else { format!("the certificates fit {member}") })
    })
}

fn repository(config: &Config) -> Try {
    let repository = config.worker.repository.clone();
    Try::new("[worker] repository", async move {
        let repository = repository.context("is missing")?;
        let mut git = tokio::process::Command::new("git");
        git.args(["ls-remote", "--quiet", "--", &repository, "HEAD"]);
        // Nobody is there to answer.
        git.env("GIT_TERMINAL_PROMPT", "0").env("SSH_ASKPASS_REQUIRE", "never").stdin(Stdio::null()).kill_on_drop(true);
        let output = git.output().await.context("git cannot be started: install it")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let place = config::without_password(&repository);
            bail!(
                "git cannot read {place}; look at its address and at this user's access: {}",
                said.replace(&repository, &place)
            );
        }
        Ok("answers".into())
    })
}

/// Servers and tools answer in paragraphs.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
