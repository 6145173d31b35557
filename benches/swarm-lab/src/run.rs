//! One run of one tool: from an empty network to what it took.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::cli::Cli;
use crate::network::{Network, STORE};
use crate::payload::Payload;
use crate::process::{Cost, Process, Traffic};
use crate::tool::{Done, Fetch, Place, Tool};

/// What a run took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) tool: Tool,
    /// From the start of the first fetch to the end of the last.
    pub(crate) seconds: f64,
    /// Times the bound.
    pub(crate) ratio: f64,
    /// What the store's host sent while the fetches ran, headers and all, by the size of the file.
    pub(crate) store_copies: f64,
    /// What the hosts say they took from the store, by the size of the file.
    pub(crate) store_copies_told: Option<f64>,
    /// Of all processes of the run.
    pub(crate) cpu_seconds: f64,
    /// Of the largest process of a host that fetches.
    pub(crate) peak_bytes: u64,
    /// Packets that the shapers dropped.
    pub(crate) dropped: u64,
    /// Of the whole machine, over the last minute, before and after.
    pub(crate) load: [f64; 2],
    pub(crate) store: Vec<Cost>,
    pub(crate) hosts: Vec<Host>,
    /// What went over the links, the store's first, four times a second.
    pub(crate) samples: Vec<Sample>,
}

/// One host's part.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Host {
    /// When it was started, after the first.
    started: f64,
    /// From its own start.
    seconds: f64,
    cost: Cost,
}

/// The links at one moment.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    at: f64,
    links: Vec<Traffic>,
}

#[derive(Debug)]
struct Fetcher {
    process: Process,
    out: PathBuf,
    folder: PathBuf,
    done: Done,
    started: f64,
    seconds: Option<f64>,
}

/// How often it is looked whether a host is done.
const LOOK: Duration = Duration::from_millis(5);
/// How often the links' counters and the processes' costs are read.
const SAMPLE: Duration = Duration::from_millis(250);

pub(crate) async fn run(tool: Tool, cli: &Cli, folder: &Path, payload: &Payload) -> Result<Run> {
    let case = cli.case();
    // Gone with the run, so that the copies of one are on the disk at once. It outlives the processes that write to it.
    let folder = tempfile::Builder::new().prefix("run-").tempdir_in(folder)?;
    let network = Network::build(&case, &cli.congestion)?;
    let swarm_node = cli.swarm_node();
    let place = Place { network: &network, folder: folder.path(), payload, swarm_node: &swarm_node };
    let mut store = tool.serve(&place).await?;
    let before = network.sent(STORE)?.bytes;
    let load = load()?;

    let (mut fetchers, mut samples, start) = (Vec::new(), Vec::new(), Instant::now());
    for host in 1..=case.fetchers {
        fetchers.push(Fetcher::start(tool, &place, host, start)?);
    }
    // A star takes as many times the bound as there are hosts; whatever takes twice that is stuck.
    let limit = 60.0 + 2.0 * case.bound() * f64::from(case.fetchers + 1);
    let mut last_sample = Instant::now();
    while !all_done(&mut fetchers, start)? {
        if start.elapsed().as_secs_f64() > limit {
            let left = fetchers.iter().find(|fetcher| fetcher.seconds.is_none());
            bail!("not done after {limit:.0} s: {}", left.map(|left| left.process.last_words()).unwrap_or_default());
        }
        if last_sample.elapsed() >= SAMPLE {
            last_sample = Instant::now();
            let mut links: Vec<Traffic> = store.last().map(Process::traffic).into_iter().collect();
            links.extend(fetchers.iter().map(|fetcher| fetcher.process.traffic()));
            samples.push(Sample { at: start.elapsed().as_secs_f64(), links });
            for process in &mut store {
                process.must_run()?;
            }
            for fetcher in &mut fetchers {
                fetcher.process.note();
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    let sent = network.sent(STORE)?.bytes - before;
    let load = [load, self::load()?];
    let mut dropped = 0;
    for host in 0..=case.fetchers {
        dropped += network.sent(host)?.dropped + network.received(host)?.dropped;
    }

    let (mut hosts, mut told) = (Vec::new(), None);
    for fetcher in fetchers {
        let (out, folder) = (fetcher.out.clone(), fetcher.folder.clone());
        hosts.push(fetcher.end()?);
        payload.verify(&out)?;
        if let Some(bytes) = tool.told_from_store(&folder)? {
            *told.get_or_insert(0) += bytes;
        }
    }
    let store = store.into_iter().map(Process::end).collect::<Result<Vec<Cost>>>()?;
    let seconds = hosts.iter().map(|host| host.started + host.seconds).fold(0.0, f64::max);
    let costs = || store.iter().chain(hosts.iter().map(|host| &host.cost));
    Ok(Run {
        tool,
        seconds,
        ratio: seconds / case.bound(),
        store_copies: sent as f64 / case.size as f64,
        store_copies_told: told.map(|bytes: u64| bytes as f64 / case.size as f64),
        cpu_seconds: costs().map(|cost| cost.cpu_seconds).sum(),
        peak_bytes: hosts.iter().map(|host| host.cost.peak_bytes).max().unwrap_or_default(),
        dropped,
        load,
        store,
        hosts,
        samples,
    })
}

impl Fetcher {
    fn start(tool: Tool, place: &Place<'_>, host: u16, start: Instant) -> Result<Self> {
        let name = format!("host-{host}");
        let folder = place.folder.join(&name);
        std::fs::create_dir(&folder)?;
        let Fetch { mut command, out, done } = tool.fetch(place, host, &folder);
        let started = start.elapsed().as_secs_f64();
        let process = Process::spawn(&mut command, place.folder, &name)?;
        Ok(Self { process, out, folder, done, started, seconds: None })
    }

    fn is_done(&mut self) -> Result<bool> {
        match &self.done {
            Done::Appears(path) if path.exists() => Ok(true),
            Done::Appears(_) => self.process.must_run().map(|()| false),
            Done::Exits => match self.process.look()? {
                None => Ok(false),
                Some(status) if status.success() => Ok(true),
                Some(status) => bail!("{status}: {}", self.process.last_words()),
            },
        }
    }

    fn end(self) -> Result<Host> {
        let seconds = self.seconds.context("it is done")?;
        Ok(Host { started: self.started, seconds, cost: self.process.end()? })
    }
}

fn all_done(fetchers: &mut [Fetcher], start: Instant) -> Result<bool> {
    let mut all = true;
    for fetcher in fetchers.iter_mut().filter(|fetcher| fetcher.seconds.is_none()) {
        if fetcher.is_done()? {
            fetcher.seconds = Some(start.elapsed().as_secs_f64() - fetcher.started);
        } else {
            all = false;
        }
    }
    Ok(all)
}

fn load() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().context("no load")?.parse()?)
}
