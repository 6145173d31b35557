//! Commands to a running cluster.

mod collection;
mod machines;
mod replication;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use deploycore::model::{ArtifactName, FiguresRequest, Goal, JobId, OlderJobs, ServiceName, Waiver};
use deploycore::port::queue::Order;
use deploycore_p2p::core::tracker::SwarmStanding;
use serde::Serialize;
use url::Url;

use super::api::{BuildRequest, CollectRequest, DeployRequest, RollbackRequest, ServiceStatus, Status};
use super::cli::{Command, Target};
use super::client::Client;
use super::config;

/// How often something is asked for again while waiting.
const POLL: Duration = Duration::from_millis(500);
/// The longest wait for an artifact to be deployable, or for machines to converge.
const PATIENCE: Duration = Duration::from_mins(30);

/// Does one command.
pub(super) async fn run(command: Command) -> Result<()> {
    match command {
        Command::Build { commit, name, supersede, wait, target } => {
            let client = client(&target)?;
            let older_jobs = if supersede { OlderJobs::CancelQueued } else { OlderJobs::Keep };
            let request = BuildRequest { commit, name, job: Some(JobId::new()), priority: 0, older_jobs };
            let answer = client.build(&request).await?;
            show(&target, &answer, |answer| println!("job {}\nartifact {}", answer.job, answer.artifact))?;
            if wait { deployable(&client, answer.job, &answer.artifact).await } else { Ok(()) }
        }
        Command::Deploy { service, artifact, wait, without, target } => {
            let client = client(&target)?;
            let request = DeployRequest { waivers: without.waivers(), ..DeployRequest::new(service, artifact) };
            let goal = client.deploy(&request).await?;
            show(&target, &goal, show_goal)?;
            if wait { converged(&client, &goal).await } else { Ok(()) }
        }
        Command::Rollback { service, to, wait, without, target } => {
            let client = client(&target)?;
            let request = RollbackRequest { service, to, current: None, waivers: without.waivers() };
            let goal = client.rollback(&request).await?;
            show(&target, &goal, show_goal)?;
            if wait { converged(&client, &goal).await } else { Ok(()) }
        }
        Command::Status { watch, target } => {
            let client = client(&target)?;
            loop {
                let status = client.status().await?;
                if watch && !target.json {
                    // Home and clear, as `watch` does.
                    print!("\x1b[H\x1b[2J");
                }
                show(&target, &status, show_status)?;
                if !watch {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Command::Jobs { limit, target } => {
            let page = client(&target)?.jobs(limit).await?;
            show(&target, &page, |page| {
                for job in &page.jobs {
                    let artifact = job.artifact.as_ref().map_or(String::new(), |artifact| artifact.name.to_string());
                    let spec = &job.spec;
                    println!("{}  {:<10} {:<12} {}  {artifact}", spec.id, job.status, spec.service, spec.commit);
                }
            })
        }
        Command::Swarm { target } => {
            let regions = client(&target)?.swarm().await?;
            show(&target, &regions, |regions| {
                for (region, standings) in regions {
                    let Some(standings) = standings else {
                        println!("{region:<12} does not answer");
                        continue;
                    };
                    for standing in standings {
                        println!("{region:<12} {}", line(standing));
                        for (addr, what) in &standing.waiting {
                            println!("    {addr} waits for {what}");
                        }
                    }
                }
            })
        }
        Command::Machines { service: None, target } => {
            let found = client(&target)?.machines().await?;
            show(&target, &found.machines, |machines| machines.iter().for_each(machines::show))?;
            machines::warn(&found.incomplete);
            Ok(())
        }
        Command::Machines { service: Some(service), target } => {
            let found = client(&target)?.standings(&service).await?;
            show(&target, &found.machines, |machines| machines.iter().for_each(machines::show_standing))?;
            machines::warn(&found.incomplete);
            Ok(())
        }
        Command::Replication { window, threshold, target } => {
            let request = FiguresRequest { window, threshold };
            let figures = client(&target)?.replication(&request).await?;
            show(&target, &figures, replication::show)
        }
        Command::Prioritize { artifact, priority, target } => {
            let raised = client(&target)?.prioritize(&artifact, priority).await?;
            show(&target, &raised, |raised| println!("{} copies are {priority} now and were less", raised.copies))
        }
        Command::Collect { older_than, keep, delete, target } => {
            let answer = client(&target)?.collect(&CollectRequest { older_than, keep, delete }).await?;
            show(&target, &answer, collection::show)
        }
        Command::Role { .. } | Command::Check { .. } => unreachable!("these are dispatched before"),
    }
}

fn client(target: &Target) -> Result<Client> {
    match (&target.api, &target.config, &target.data_dir) {
        (Some(api), _, _) => Client::new(api.clone()),
        (None, Some(config), _) => Client::new(config::read(config)?.control.api_url()?),
        (None, None, Some(dir)) => Client::new(api_of(dir)?),
        (None, None, None) => bail!(
            "which cluster? name it with --api URL, --config FILE or --data-dir DIR, as `cluster --keep-running` printed them"
        ),
    }
}

fn api_of(dir: &Path) -> Result<Url> {
    let path = dir.join("run/api");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} is not the data folder of a cluster that was started", dir.display()))?;
    text.trim().parse().with_context(|| format!("{} holds no URL", path.display()))
}

fn show<T: Serialize>(target: &Target, value: &T, text: impl FnOnce(&T)) -> Result<()> {
    if target.json {
        println!("{}", serde_json::to_string_pretty(value)?);
    } else {
        text(value);
    }
    Ok(())
}

fn show_goal(goal: &Goal) {
    println!("{} generation {}: {}", goal.service, goal.position.generation, goal.artifact.name);
    for Waiver { region, reason, by, expires_at } in &goal.waivers {
        let by = by.as_ref().map_or(String::new(), |by| format!(", says {by}"));
        println!("          without {region} until {expires_at}: {reason}{by}");
    }
}

fn show_status(status: &Status) {
    for service in &status.services {
        show_goal(&service.goal);
        show_convergence(service);
    }
    let counts: BTreeMap<_, _> = status.queue.counts.iter().filter(|(_, count)| **count > 0).collect();
    let counts: Vec<_> = counts.iter().map(|(status, count)| format!("{status} {count}")).collect();
    let turns = if status.queue.order == Order::FairShare { "  (services take turns)" } else { "" };
    let paused = if status.queue.paused { "  (claiming is paused)" } else { "" };
    println!("queue     {}{turns}{paused}", counts.join(", "));
    for (name, region) in &status.regions {
        let there = if region.goals.is_some() { "answers" } else { "does not answer" };
        let gateways: Vec<_> = region.gateways.iter().map(|gateway| gateway_line(gateway, &region.silent)).collect();
        println!("{name:<9} {there}, {}", gateways.join(", "));
    }
}

fn gateway_line(gateway: &Url, silent: &[Url]) -> String {
    if silent.contains(gateway) { format!("{gateway} (silent)") } else { gateway.to_string() }
}

fn show_convergence(service: &ServiceStatus) {
    let convergence = &service.convergence;
    println!(
        "          {} good, {} behind, {} reverted, {} absent",
        convergence.converged(),
        convergence.behind(),
        convergence.reverted(),
        convergence.absent()
    );
    if let Some((region, machine, reason)) = convergence.first_reverted() {
        println!("          {} in {region} reverted: {reason}", machine.key.machine);
    }
    for (region, reason) in &convergence.unknown {
        println!("          {region} does not tell of its machines: {reason}");
    }
    let settling: Vec<_> = convergence.settling().map(ToString::to_string).collect();
    if !settling.is_empty() {
        println!("          {} has just started and may not know all its machines yet", settling.join(", "));
    }
}

async fn deployable(client: &Client, job: JobId, artifact: &ArtifactName) -> Result<()> {
    let wait = async {
        loop {
            let state = client.job(job).await?;
            if state.status.is_finished() && state.artifact.is_none() {
                let reason = state.failure.map_or(String::new(), |failure| format!(": {}", failure.message));
                bail!("job {job} is {}{reason}", state.status);
            }
            match client.artifact(artifact).await {
                Ok(status) if status.is_deployable() => return Ok(()),
                _ => tokio::time::sleep(POLL).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("{artifact} is still not deployable"))??;
    println!("deployable");
    Ok(())
}

async fn converged(client: &Client, goal: &Goal) -> Result<()> {
    let service: &ServiceName = &goal.service;
    let wait = async {
        loop {
            let status = client.service(service).await?;
            if status.goal.position > goal.position {
                bail!("{service} moved on to generation {}", status.goal.position.generation);
            }
            if let Some((region, machine, reason)) = status.convergence.first_reverted() {
                bail!("{} in {region} reverted: {reason}", machine.key.machine);
            }
            if status.convergence.is_converged() {
                println!("converged on {} machines", status.convergence.converged());
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("{service} has still not converged"))?
}

/// How far a region is with an artifact.
fn line(standing: &SwarmStanding) -> String {
    let SwarmStanding { digest, fetchers, complete, share, bound, ratios, .. } = standing;
    let seconds = |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
    let (p50, p99, max) = (seconds(standing.p50), seconds(standing.p99), seconds(standing.max));
    let bound = match (bound, ratios.and_then(|ratios| ratios.expected)) {
        (Some(bound), Some(expected)) => {
            let least = seconds(Some(bound.time));
            format!(", {expected:.2} times the bound of {least} by the {}", bound.term)
        }
        _ => String::new(),
    };
    format!(
        "{} {complete} of {fetchers} machines, {:.1} % of the bytes; p50 {p50}, p99 {p99}, all {max}, expected {}{bound}",
        digest.short(),
        share * 100.0,
        seconds(standing.expected)
    )
}
