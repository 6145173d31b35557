//! The main command: a whole cluster on this host, and the road through it.

mod children;
mod wanted;

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cli::RunArgs;
use super::client::Client;
use super::config::{self, Config};
use super::fixture;
use super::layout::DataDir;
use super::report::Report;
use super::scenario::{Plan, Scenario};
use super::supervisor::Supervisor;
use crate::files;
use crate::signals::told_to_end;

use children::Ends;
use wanted::Wanted;

const TIME_LIMIT: Duration = Duration::from_mins(30);

pub(super) async fn bring_up(mut args: RunArgs) -> Result<()> {
    let config = take_settings(&mut args)?;
    if let Some(report) = &args.report {
        files::check_writable(report).context("--report")?;
    }
    let temporary =
        if args.data_dir.is_none() { Some(tempfile::Builder::new().prefix("deploycore-").tempdir()?) } else { None };
    let folder = args.data_dir.clone().or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned()));
    let data = DataDir::create(&folder.context("a data folder is always known")?)?;
    let lock = data.lock("cluster.lock")?;
    let result = run_cluster(&args, config, &data).await;
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

async fn run_cluster(args: &RunArgs, config: Option<Config>, data: &DataDir) -> Result<()> {
    let wanted = Wanted::new(args, config, data)?;
    wanted.check_disk(data)?;
    let ends = Ends::prepare(args.listen, &wanted, data)?;
    // Only now: what was refused must not bind the folder to its settings.
    data.write_json("cluster.json", &wanted)?;
    let mut supervisor = Supervisor::new(data.clone())?;
    for child in &ends.children {
        supervisor.start(child.clone());
    }
    let client = Client::new(ends.api.clone())?;
    let regions = wanted.config.regions.len();
    let machines = regions * usize::from(wanted.machines);
    let versions = (!wanted.own_repository).then(|| fixture::VERSIONS.map(str::to_owned).to_vec());
    let plan = Plan {
        service: wanted.service.clone(),
        commits: wanted.commits.clone(),
        machines,
        versions,
        readiness: wanted.run().readiness.clone(),
    };
    eprintln!(
        "cluster: {} regions × {} machines, {} workers; data in {}",
        regions,
        wanted.machines,
        wanted.workers,
        data.path().display()
    );
    let scenario = Scenario::new(&plan, data, &client)?;
    let walk = async {
        let report = scenario.run(args.time_limit.unwrap_or(TIME_LIMIT)).await?;
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
    for (region, gateway) in &ends.gateways {
        println!("  {region:<14}  {gateway}");
    }
    println!("  try             cluster status --data-dir {dir}");
    println!("                  cluster machines --data-dir {dir}");
}

async fn interrupted() -> Result<()> {
    told_to_end()?.await;
    eprintln!("stopping");
    Ok(())
}

/// Reads the file, and takes from it what no flag says of the road.
fn take_settings(args: &mut RunArgs) -> Result<Option<Config>> {
    let Some(path) = &args.config else { return Ok(None) };
    let config = config::read(path)?;
    let local = &config.local;
    args.data_dir = args.data_dir.take().or_else(|| local.data_dir.clone());
    args.report = args.report.take().or_else(|| local.report.clone());
    args.time_limit = args.time_limit.or(Some(local.time_limit));
    args.keep_running |= local.keep_running;
    Ok(Some(config))
}
