//! aria2 as a BitTorrent client: one seed, opentracker beside it, no limit that would slow it down.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Done, Fetch, Place};
use crate::command::finish;
use crate::network::{STORE, address};
use crate::process::Process;

const TRACKER_PORT: &str = "6969";
const ALLOWED: &str = "allowed";

/// Pieces of 256 KiB: smaller ones spread sooner. Nobody is kept out, everybody is found through the tracker, and what was fetched is
/// passed on without end. Files are not laid out beforehand.
const OPTIONS: [&str; 17] = [
    "--no-conf=true",
    "--console-log-level=warn",
    "--summary-interval=0",
    "--download-result=hide",
    "--disable-ipv6=true",
    "--enable-dht=false",
    "--enable-dht6=false",
    "--bt-enable-lpd=false",
    "--enable-peer-exchange=false",
    "--bt-max-peers=0",
    "--bt-request-peer-speed-limit=10000M",
    "--bt-tracker-interval=5",
    "--max-overall-upload-limit=0",
    "--seed-ratio=0.0",
    "--file-allocation=none",
    "--listen-port=6881",
    "--allow-overwrite=true",
];

pub(super) async fn serve(place: &Place<'_>) -> Result<Vec<Process>> {
    let host = address(STORE).to_string();
    let torrent = place.folder.join("torrent");
    let announce = format!("http://{host}:{TRACKER_PORT}/announce");
    let mut command = Command::new("mktorrent");
    command.args(["-a", &announce, "-l", "18", "-o"]).arg(&torrent).arg(&place.payload.path);
    // What it says of its progress is more than a pipe holds.
    let mut maker = Process::spawn(&mut command, place.folder, "mktorrent")?;
    place.until("the torrent", &mut [], || maker.look().is_ok_and(|ended| ended.is_some())).await?;
    ensure!(maker.look()?.is_some_and(|status| status.success()), "mktorrent: {}", maker.last_words());
    let done = place.folder.join("done.sh");
    fs::write(&done, "#!/bin/sh\n: > \"$SWARM_LAB_DONE\"\n")?;
    fs::set_permissions(&done, Permissions::from_mode(0o755))?;

    let mut command = place.network.command(STORE, Path::new("opentracker"));
    command.args(["-i", &host, "-p", TRACKER_PORT, "-P", TRACKER_PORT]);
    command.arg("-d").arg(may_track(place.folder, &torrent)?).args(["-w", ALLOWED]);
    let mut processes = vec![Process::spawn(&mut command, place.folder, "opentracker")?];
    let mut command = place.network.command(STORE, Path::new("aria2c"));
    command.args(OPTIONS).arg("--check-integrity=true");
    command.arg("--dir").arg(place.payload.path.parent().context("the payload lies in a folder")?).arg(&torrent);
    processes.push(Process::spawn(&mut command, place.folder, "seed")?);
    // The tracker lists the seed once it has announced itself as complete.
    let scrape = format!("http://{host}:{TRACKER_PORT}/scrape");
    let seeds = || {
        let mut ask = place.network.command(STORE, Path::new("curl"));
        finish(ask.args(["-fsS", "-m", "2", "--output", "-", &scrape]), Duration::from_secs(5))
    };
    place.until("the seed", &mut processes, || seeds().is_ok_and(|answer| answer.contains("8:completei1e"))).await?;
    Ok(processes)
}

/// The folder to which opentracker confines itself, as a user without rights, with the list without which it tracks nothing.
fn may_track(folder: &Path, torrent: &Path) -> Result<PathBuf> {
    let told = finish(Command::new("aria2c").args(["--no-conf=true", "-S"]).arg(torrent), Duration::from_secs(10))?;
    let hash = told.lines().find_map(|line| line.strip_prefix("Info Hash: ")).context("aria2 tells no hash")?;
    let folder = folder.join("opentracker");
    fs::create_dir(&folder)?;
    fs::write(folder.join(ALLOWED), format!("{hash}\n"))?;
    fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
    fs::set_permissions(folder.join(ALLOWED), Permissions::from_mode(0o644))?;
    Ok(folder)
}

pub(super) fn fetch(place: &Place<'_>, host: u16, folder: &Path) -> Fetch {
    let done = folder.join("done");
    let mut command = place.network.command(host, Path::new("aria2c"));
    command.args(OPTIONS).env("SWARM_LAB_DONE", &done);
    command.arg("--on-bt-download-complete").arg(place.folder.join("done.sh"));
    command.arg("--dir").arg(folder).arg(place.folder.join("torrent"));
    Fetch { command, out: folder.join("payload"), done: Done::Appears(done) }
}
