//! What a user may ask for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use deploycore::model::{ArtifactName, CommitId, CopyPriority, Generation, Readiness, RegionName, ServiceName};
use url::Url;

use super::api::WaiverRequest;

/// The variable that says where a role serves what it counts.
pub(super) const METRICS: &str = "DEPLOYCORE_METRICS";

/// Builds commits, puts them on every machine, rolls forward and back: a whole deploycore cluster on this host.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// The main job: bring a cluster up, build, deploy, roll forward, roll back, check.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Settings of the cluster; flags beside it go before [default: none]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Git repository to build from, a path or URL [default: a small HTTP service that is made on the spot]
    #[arg(long, value_name = "PATH")]
    pub repo: Option<String>,
    /// Commits to build and deploy, in this order
    #[arg(long, value_name = "SHA", num_args = 1..)]
    pub commit: Vec<CommitId>,
    /// Build command, run by `sh -c` in the checkout
    #[arg(long = "command", value_name = "CMD")]
    pub build_command: Option<String>,
    /// File that the build command leaves in the checkout: the artifact
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Arguments to start the artifact with; `{port}` stands for a free port. Without it and --ready the artifact is only installed
    #[arg(long = "run", value_name = "ARGS", allow_hyphen_values = true)]
    pub run_args: Option<String>,
    /// When the started artifact counts as running [default: alive:5s; http:/healthz for the small service]
    #[arg(long, value_name = "http:PATH|alive:5s|exit", value_parser = parse_readiness)]
    pub ready: Option<Readiness>,
    /// Name of the service
    #[arg(long, value_name = "NAME")]
    pub name: Option<ServiceName>,
    /// Regions [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=20))]
    pub regions: Option<u16>,
    /// Machines in each region [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=200))]
    pub machines: Option<u16>,
    /// Workers [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=50))]
    pub workers: Option<u16>,
    /// Folder for everything; goes on where an earlier run on it stopped [default: a temporary one]
    #[arg(long, value_name = "DIR", env = "DEPLOYCORE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Database of queue and ledger: postgres://user:password@host:port/database, or mysql:// [default: SQLite files in the folder]
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
    /// Store of the global goals: etcd://host:port,host:port/prefix [default: a file in the folder]
    #[arg(long, value_name = "URL")]
    pub goals: Option<String>,
    /// Stores of artifacts, one below the other: s3://bucket/prefix, gs:// or az:// [default: folders in the folder]
    #[arg(long, value_name = "URL")]
    pub store: Option<Url>,
    /// Pad each artifact with this many incompressible bytes
    #[arg(long, value_name = "SIZE")]
    pub payload: Option<ByteSize>,
    /// Limit each machine's download and upload to this many bytes a second, as a real link would
    #[arg(long, value_name = "SIZE")]
    pub link: Option<ByteSize>,
    /// Address of the control plane's API [default: a free port]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Write what happened as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Stay up afterwards and print the endpoints
    #[arg(long)]
    pub keep_running: bool,
    /// Give up after this long [default: 30m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub time_limit: Option<Duration>,
}

/// How to reach a running cluster.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// URL of the control plane
    #[arg(long, value_name = "URL", env = "DEPLOYCORE_API", global = true)]
    pub api: Option<Url>,
    /// Its configuration, instead of its URL
    #[arg(long, value_name = "FILE", env = "DEPLOYCORE_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Data folder of the running cluster, instead of its URL
    #[arg(long = "data-dir", value_name = "DIR", env = "DEPLOYCORE_DATA_DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Print the JSON of the API
    #[arg(long, global = true)]
    pub json: bool,
}

/// Commands to a running cluster, and the roles that the main job starts.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enqueue a build
    Build {
        /// The commit
        #[arg(long, value_name = "SHA")]
        commit: CommitId,
        /// The service [default: the cluster's]
        #[arg(long, value_name = "NAME")]
        name: Option<ServiceName>,
        /// Cancel the service's builds that are still queued
        #[arg(long)]
        supersede: bool,
        /// Wait until the artifact is deployable
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Make every machine run an artifact
    Deploy {
        service: ServiceName,
        artifact: ArtifactName,
        /// Wait until every live machine runs it
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        without: Without,
        #[command(flatten)]
        target: Target,
    },
    /// Go back to the previous generation, or a named one
    Rollback {
        service: ServiceName,
        /// The generation whose artifact shall run again
        #[arg(long, value_name = "GENERATION", value_parser = parse_generation)]
        to: Option<Generation>,
        /// Wait until every live machine runs it
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        without: Without,
        #[command(flatten)]
        target: Target,
    },
    /// Show services, queue and regions
    Status {
        /// Show again every second until Ctrl-C
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        target: Target,
    },
    /// List jobs, newest first
    Jobs {
        /// At most this many
        #[arg(long, default_value_t = 20)]
        limit: u32,
        #[command(flatten)]
        target: Target,
    },
    /// List machines and what they run
    Machines {
        /// Only those that the service's goal selects, and where each is with it
        #[arg(long, value_name = "SERVICE")]
        service: Option<ServiceName>,
        #[command(flatten)]
        target: Target,
    },
    /// Show how far each region's machines are with each artifact
    Swarm {
        #[command(flatten)]
        target: Target,
    },
    /// Show how the copies to each region go
    Replication {
        /// Completed copies of this long count
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
        window: Duration,
        /// A copy that takes longer is late
        #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = parse_duration)]
        threshold: Duration,
        #[command(flatten)]
        target: Target,
    },
    /// Have the copies of an artifact made before others
    Prioritize {
        artifact: ArtifactName,
        /// How urgent they are
        #[arg(long, value_name = "normal|emergency|rollback", default_value = "emergency")]
        priority: CopyPriority,
        #[command(flatten)]
        target: Target,
    },
    /// Delete what nothing needs any more; without --delete say what that is, and why the rest stays
    Collect {
        /// What was registered and deployed longer ago; at least a day
        #[arg(long, value_name = "AGE", default_value = "30d", value_parser = parse_age)]
        older_than: Duration,
        /// Keep so many of each service's newest, whatever their age
        #[arg(long, value_name = "N", default_value_t = 10)]
        keep: usize,
        /// Make a round: mark what nothing needs, and delete what was marked an hour ago
        #[arg(long)]
        delete: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Run one role on this host, until SIGINT or SIGTERM
    Role {
        /// Which
        role: RoleName,
        /// The cluster's configuration
        #[arg(long, value_name = "FILE", env = "DEPLOYCORE_CONFIG")]
        config: PathBuf,
        #[command(flatten)]
        place: Place,
        /// Serve what is counted at this address, for Prometheus [default: nowhere]
        #[arg(long, value_name = "ADDR", env = METRICS)]
        metrics: Option<SocketAddr>,
        /// End when standard input ends: the parent is gone
        #[arg(long, hide = true)]
        lifeline: bool,
    },
    /// Check a configuration, and try each server that it names; exit code 0: all is well, 1: a server is not, 2: the file is not
    Check {
        /// The cluster's configuration
        #[arg(long, value_name = "FILE", env = "DEPLOYCORE_CONFIG")]
        config: PathBuf,
        /// Try what this role needs, on its host [default: what all of them need]
        #[arg(long)]
        role: Option<RoleName>,
        #[command(flatten)]
        place: Place,
    },
}

/// Required regions that the goal shall do without.
#[derive(Debug, Clone, Args)]
pub struct Without {
    /// Go on although this region may lack the artifact: it is down; may be repeated
    #[arg(long, value_name = "REGION", requires_all = ["reason", "term"])]
    pub waive: Vec<RegionName>,
    /// Why; it stands in the goal
    #[arg(long, value_name = "TEXT", requires = "waive")]
    pub reason: Option<String>,
    /// How long the waiver holds; at most 24h
    #[arg(long = "for", value_name = "DURATION", requires = "waive", value_parser = parse_duration)]
    pub term: Option<Duration>,
    /// Who says so; it stands in the goal [default: the user of this shell]
    #[arg(long, value_name = "NAME", env = "USER")]
    pub by: Option<String>,
}

impl Without {
    /// A waiver for each region.
    pub fn waivers(self) -> Vec<WaiverRequest> {
        let Self { waive, reason, term, by } = self;
        let (reason, term) = (reason.unwrap_or_default(), term.unwrap_or_default());
        let waiver = |region| WaiverRequest { region, reason: reason.clone(), by: by.clone(), term };
        waive.into_iter().map(waiver).collect()
    }
}

/// Which host this is, where the configuration names several.
#[derive(Debug, Clone, Default, Args)]
pub struct Place {
    /// This host's region [default: the only one]
    #[arg(long, value_name = "NAME", env = "DEPLOYCORE_REGION")]
    pub region: Option<RegionName>,
    /// What this worker, host of a region or machine is called [default: as the host]
    #[arg(long, value_name = "NAME", env = "DEPLOYCORE_NAME")]
    pub name: Option<String>,
    /// A label of this machine, for selectors
    #[arg(long = "label", value_name = "KEY=VALUE", env = "DEPLOYCORE_LABELS", value_delimiter = ',', value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
}

/// The roles of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RoleName {
    /// HTTP API, global goals, deployer, reaper, registrar
    Control,
    /// Builds jobs
    Worker,
    /// Mirror, gateway, replicator lane, store gate, tracker
    Region,
    /// One machine
    Agent,
    /// Ends what outlives a killed cluster: of one host
    Warden,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_readiness(text: &str) -> Result<Readiness, String> {
    let wanted = "use http:/PATH, alive:DURATION (for instance alive:5s) or exit";
    match text.split_once(':') {
        None if text == "exit" => Ok(Readiness::Exit),
        Some(("http", path)) if path.starts_with('/') => Ok(Readiness::Http(path.to_owned())),
        Some(("alive", time)) => parse_duration(time).map(Readiness::Alive),
        _ => Err(wanted.to_owned()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    jiff::fmt::friendly::SpanParser::new().parse_unsigned_duration(text).map_err(|error| error.to_string())
}

/// A duration that may be in days.
fn parse_age(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('d').map(str::parse::<u32>) {
        Some(Ok(days)) => Ok(Duration::from_hours(24 * u64::from(days))),
        _ => parse_duration(text),
    }
}

fn parse_generation(text: &str) -> Result<Generation, String> {
    text.parse().map(Generation).map_err(|_| "a generation is a number, as `cluster status` shows it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_age_may_be_in_days() {
        assert_eq!(parse_age("30d").unwrap(), Duration::from_hours(720));
        assert_eq!(parse_age("36h").unwrap(), Duration::from_hours(36));
        assert!(parse_age("d").is_err() && parse_age("soon").is_err());
    }

    #[test]
    fn a_waiver_says_why_and_for_how_long() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        let waivers = |cli: Cli| match cli.command {
            Some(Command::Deploy { without, .. } | Command::Rollback { without, .. }) => without.waivers(),
            other => panic!("{other:?}"),
        };
        let said = "--waive r2 --waive r3 --reason fire --for 2h --by ann";
        for command in ["deploy web web-1", "rollback web"] {
            let given = waivers(parse(&format!("cluster {command} {said}")).unwrap());
            let wanted = ["r2", "r3"].map(|region| WaiverRequest {
                region: region.parse().unwrap(),
                reason: "fire".to_owned(),
                by: Some("ann".to_owned()),
                term: Duration::from_hours(2),
            });
            assert_eq!(given, wanted);
            assert!(waivers(parse(&format!("cluster {command}")).unwrap()).is_empty());
            for half in ["--waive r2", "--waive r2 --reason fire", "--waive r2 --for 2h", "--reason fire", "--for 2h"] {
                assert!(parse(&format!("cluster {command} {half}")).is_err(), "{half}");
            }
        }
    }

    #[test]
    fn readiness_is_read_as_the_help_says() {
        assert_eq!(parse_readiness("http:/healthz").unwrap(), Readiness::Http("/healthz".into()));
        assert_eq!(parse_readiness("alive:5s").unwrap(), Readiness::Alive(Duration::from_secs(5)));
        assert_eq!(parse_readiness("exit").unwrap(), Readiness::Exit);
        assert!(parse_readiness("http:healthz").is_err());
        assert!(parse_readiness("soon").is_err());
    }
}
