//! What is measured: how each tool is started, and how one sees that it is done.

mod aria2;
mod star;
mod swarm;

use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::network::Network;
use crate::payload::Payload;
use crate::process::Process;

/// A way to bring a file to many hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tool {
    /// `swarm-node`: tracker and gate on the store's host
    Swarm,
    /// aria2 as a BitTorrent client, seed and opentracker on the store's host
    Aria2,
    /// nginx on the store's host, curl on the others
    Star,
}

impl Display for Tool {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Swarm => "swarm",
            Self::Aria2 => "aria2",
            Self::Star => "HTTP star",
        })
    }
}

/// Where a tool runs and what it distributes.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) network: &'a Network,
    pub(crate) folder: &'a Path,
    pub(crate) payload: &'a Payload,
    pub(crate) swarm_node: &'a Path,
}

/// One host's part: what to start, and when it is done.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) command: Command,
    /// What it brings.
    pub(crate) out: PathBuf,
    pub(crate) done: Done,
}

/// How one sees that a fetch is done.
#[derive(Debug)]
pub(crate) enum Done {
    /// This file appears; the process goes on for the others.
    Appears(PathBuf),
    /// The process ends, with success.
    Exits,
}

/// How long a store may take until it serves.
const READY: Duration = Duration::from_mins(1);

impl Tool {
    /// Programs, each with the Debian package that holds it.
    pub(crate) fn needs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Swarm => &[],
            Self::Aria2 => {
                &[("aria2c", "aria2"), ("opentracker", "opentracker"), ("mktorrent", "mktorrent"), ("curl", "curl")]
            }
            Self::Star => &[("nginx", "nginx-light"), ("curl", "curl")],
        }
    }

    /// Starts what serves the file; returns when it does.
    pub(crate) async fn serve(self, place: &Place<'_>) -> Result<Vec<Process>> {
        match self {
            Self::Swarm => swarm::serve(place).await,
            Self::Aria2 => aria2::serve(place).await,
            Self::Star => star::serve(place).await,
        }
    }

    /// What a host starts to get the file. `folder` is its own.
    pub(crate) fn fetch(self, place: &Place<'_>, host: u16, folder: &Path) -> Fetch {
        match self {
            Self::Swarm => swarm::fetch(place, host, folder),
            Self::Aria2 => aria2::fetch(place, host, folder),
            Self::Star => star::fetch(place, host, folder),
        }
    }

    /// Bytes of the file that a host took from the store, by its own account.
    pub(crate) fn told_from_store(self, folder: &Path) -> Result<Option<u64>> {
        match self {
            Self::Swarm => swarm::from_store(folder).map(Some),
            Self::Aria2 | Self::Star => Ok(None),
        }
    }
}

impl Place<'_> {
    /// Waits until what is asked for is so, while the processes run.
    async fn until(&self, what: &str, processes: &mut [Process], mut ready: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        while !ready() {
            for process in &mut *processes {
                process.must_run()?;
            }
            if start.elapsed() > READY {
                bail!("{what}: not after {} s", READY.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}
