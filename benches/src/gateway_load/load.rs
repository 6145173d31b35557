//! The load: machines that come and wait, polls while they do, a change that all must hear of.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use deploycore::port::GoalStateStore;
use deploycore::port::goals::Expect;
use deploycore_kv::gateway::GatewayClient;
use futures::future::join_all;
use tokio::task::JoinSet;
use url::Url;

use crate::http::{Line, get};
use crate::machine::{Fleet, Wait, hear};
use crate::{Figures, Load, Quantiles, process};

/// How long machines may take to come, and to hear of the change.
const PATIENCE: Duration = Duration::from_mins(1);
/// After the last machine has sent its request, until the gateway has surely read it.
const SETTLE: Duration = Duration::from_secs(1);
/// Of so many polls one asks for a goal, and the others whether the list has changed.
const ONE_GOAL_IN: usize = 10;

pub(crate) fn run(load: &Load) -> Result<Figures> {
    let own = match &load.url {
        Some(_) => None,
        None => Some(Own::start(load)?),
    };
    let url = match (&load.url, &own) {
        (Some(url), _) => url.clone(),
        (None, Some(own)) => own.url.clone(),
        (None, None) => unreachable!("it was started where no URL was given"),
    };
    process::bind_to_core(1)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(load, &url, own.as_ref().map(|own| own.child.id())))
}

/// The gateway of the driver's own. It ends with this value, by the end of its input or by force.
struct Own {
    child: Child,
    url: Url,
}

impl Own {
    fn start(load: &Load) -> Result<Self> {
        let store = match load.store {
            crate::serve::Store::Redb => "redb",
            crate::serve::Store::Memory => "memory",
        };
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--store", store, "--services", &load.services.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the gateway cannot be started")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("it has an output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let url = format!("http://{}", line.trim()).parse();
        let own = |url| Self { child, url };
        Ok(own(url.context("the gateway did not say its address")?))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn measure(load: &Load, url: &Url, pid: Option<u32>) -> Result<Figures> {
    let host =
        format!("{}:{}", url.host_str().context("the URL has no host")?, url.port_or_known_default().unwrap_or(80));
    let gateway = host.to_socket_addrs()?.next().context("the URL's host has no address")?;
    let goals = GatewayClient::new(url.clone())?;
    let revision = goals.list("").await.context("the gateway does not answer")?.revision;
    let polls = Polls::prepare(&host, gateway).await?;
    // What the process allocates once, for any load, is there before.
    polls.run(load.pollers, Duration::from_secs(1)).await?;
    let anonymous_before = pid.map(process::anonymous).transpose()?;

    let path = format!("/v1/changes?since={revision}&wait=60s");
    let list = get(&host, "/v1/goals", &[]);
    let wait = if load.reports { Wait::Reporting(host, path) } else { Wait::Plain(get(&host, &path, &[])) };
    let fleet = Arc::new(Fleet::new(gateway, wait, list));
    let mut machines: JoinSet<_> = (0..load.machines).map(|number| hear(fleet.clone(), number)).collect();
    let came = Instant::now();
    while fleet.waiting.load(Ordering::Relaxed) < load.machines {
        ensure!(came.elapsed() < PATIENCE, "only {} machines wait", fleet.waiting.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(SETTLE).await;
    let anonymous_held = pid.map(process::anonymous).transpose()?;

    let cpu = pid.map(process::cpu_seconds).transpose()?;
    let polled = polls.run(load.pollers, Duration::from_secs(load.seconds)).await?;
    let cpu = cpu.zip(pid.map(process::cpu_seconds).transpose()?).map(|(before, after)| after - before);

    let held = fleet.waiting.load(Ordering::Relaxed);
    let failures = fleet.failures.load(Ordering::Relaxed);
    let started = Instant::now();
    change(&goals).await?;
    let (mut heard, mut listed, mut change_bytes) = (Vec::with_capacity(load.machines), Vec::new(), 0);
    let all = async {
        while let Some(machine) = machines.join_next().await {
            let machine = machine?;
            heard.push(machine.at - started);
            listed.push(machine.listed - started);
            change_bytes = machine.bytes;
        }
        Ok::<_, anyhow::Error>(())
    };
    if let Ok(all) = tokio::time::timeout(PATIENCE, all).await {
        all?;
    }
    let grown = anonymous_held.zip(anonymous_before).map(|(held, before)| held.saturating_sub(before));
    Ok(Figures {
        machines: load.machines,
        held,
        anonymous_before,
        anonymous_held,
        bytes_per_machine: grown.map(|grown| grown / load.machines as u64),
        polls_per_s: polled.durations.len() as f64 / polled.elapsed.as_secs_f64(),
        polls_per_cpu_s: cpu.map(|cpu| polled.durations.len() as f64 / cpu),
        poll_ms: Quantiles::of(polled.durations),
        missed: load.machines - heard.len(),
        after_change_ms: Quantiles::of(heard),
        listed_ms: Quantiles::of(listed),
        failures,
        list_bytes: polls.list_bytes,
        change_bytes,
    })
}

/// Gives the first service its next goal.
async fn change(goals: &GatewayClient) -> Result<()> {
    let now = goals.list("").await?;
    let stored = now.goals.first().context("the gateway has no goals to change")?;
    let mut goal = stored.goal.clone();
    goal.position.generation.0 += 1;
    let refused = "the goal cannot be changed: with --url the gateway must be writable";
    goals.put(&goal, Expect::At(stored.revision)).await.context(refused)?;
    Ok(())
}

/// Polls of a client that holds the list.
struct Polls {
    gateway: SocketAddr,
    list: Vec<u8>,
    one: Vec<u8>,
    list_bytes: usize,
}

struct Polled {
    durations: Vec<Duration>,
    elapsed: Duration,
}

impl Polls {
    async fn prepare(host: &str, gateway: SocketAddr) -> Result<Self> {
        let mut line = Fleet::new(gateway, Wait::Plain(Vec::new()), Vec::new()).connect(0).await?;
        let first = line.ask(&get(host, "/v1/goals", &[])).await?;
        let tag = first.tag.context("the list of goals has no tag")?;
        let list = get(host, "/v1/goals", &[("if-none-match", &tag)]);
        let one = get(host, "/v1/goals/service-0", &[]);
        Ok(Self { gateway, list, one, list_bytes: first.body.len() })
    }

    /// Polls from `pollers` connections for so long.
    async fn run(&self, pollers: usize, span: Duration) -> Result<Polled> {
        let fleet = Fleet::new(self.gateway, Wait::Plain(Vec::new()), Vec::new());
        let lines: Vec<_> = join_all((0..pollers).map(|number| fleet.connect(number))).await;
        let (stop, started) = (AtomicBool::new(false), Instant::now());
        let polling = join_all(lines.into_iter().map(|line| self.poll(line, &stop)));
        let clock = async {
            tokio::time::sleep(span).await;
            stop.store(true, Ordering::Relaxed);
        };
        let (polled, ()) = futures::join!(polling, clock);
        let durations = polled.into_iter().collect::<Result<Vec<_>>>()?.concat();
        Ok(Polled { durations, elapsed: started.elapsed() })
    }

    async fn poll(&self, line: std::io::Result<Line>, stop: &AtomicBool) -> Result<Vec<Duration>> {
        let (mut line, mut durations) = (line?, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let (request, wanted) =
                if durations.len() % ONE_GOAL_IN == 0 { (&self.one, 200) } else { (&self.list, 304) };
            let asked = Instant::now();
            let answer = line.ask(request).await?;
            if answer.status != wanted {
                bail!("a poll was answered with {} instead of {wanted}", answer.status);
            }
            durations.push(asked.elapsed());
        }
        Ok(durations)
    }
}
