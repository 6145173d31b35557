//! The swarm: tracker and gate share the store's link, as they would in a small region.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Done, Fetch, Place};
use crate::network::{STORE, address};
use crate::process::Process;

const TRACKER_PORT: u16 = 7500;

pub(super) async fn serve(place: &Place<'_>) -> Result<Vec<Process>> {
    let (tracker, host) = (tracker(), address(STORE));
    let mut command = place.network.command(STORE, place.swarm_node);
    command.args(["tracker", "--insecure", "--listen", &tracker]);
    let mut processes = vec![Process::spawn(&mut command, place.folder, "tracker")?];
    let mut command = place.network.command(STORE, place.swarm_node);
    command.args(["gate", "--insecure", "--tracker", &tracker, "--listen", &format!("{host}:7501"), "--manifest"]);
    command.arg(place.folder.join("manifest")).arg(&place.payload.path);
    processes.push(Process::spawn(&mut command, place.folder, "gate")?);
    // It is written once the gate serves.
    let manifest = place.folder.join("manifest");
    place.until("the manifest", &mut processes, || manifest.exists()).await?;
    Ok(processes)
}

pub(super) fn fetch(place: &Place<'_>, host: u16, folder: &Path) -> Fetch {
    let (out, stats) = (folder.join("payload"), folder.join("stats"));
    let mut command = place.network.command(host, place.swarm_node);
    command.args(["fetch", "--insecure", "--tracker", &tracker(), "--linger", "86400"]);
    command.args(["--listen", &format!("{}:7502", address(host)), "--name", &format!("host-{host}")]);
    command.arg("--manifest").arg(place.folder.join("manifest"));
    command.arg("--out").arg(&out).arg("--stats").arg(&stats);
    Fetch { command, out, done: Done::Appears(stats) }
}

pub(super) fn from_store(folder: &Path) -> Result<u64> {
    let stats: Value = serde_json::from_slice(&fs::read(folder.join("stats"))?)?;
    stats["from_store"].as_u64().context("the stats tell no from_store")
}

fn tracker() -> String {
    format!("{}:{TRACKER_PORT}", address(STORE))
}
