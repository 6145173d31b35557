//! What a run cost.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// What processes used; of memory the most that one of them had.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Usage {
    /// User and system time.
    cpu_seconds: f64,
    /// Bytes.
    peak_rss: u64,
}

impl Usage {
    /// Of a process that runs, as the kernel counts.
    pub(super) fn of(pid: &str) -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold spaces. After it, user and system time are the 12th and 13th field.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        let cpu_seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Ok(Self { cpu_seconds, peak_rss: kib * 1024 })
    }

    pub(super) fn add(&mut self, other: Self) {
        self.cpu_seconds += other.cpu_seconds;
        self.peak_rss = self.peak_rss.max(other.peak_rss);
    }

    pub(super) fn write(&self, file: &Path) -> anyhow::Result<()> {
        Ok(std::fs::write(file, serde_json::to_vec(self)?)?)
    }

    pub(super) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(file).context("the copying process left no figures")?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// The figures of a run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figures {
    /// From the start of the copying process until it ended, all copies made.
    seconds: f64,
    /// Seconds of the copying process's CPU for each 10^9 bytes that arrived, verification included.
    cpu_s_per_gb: f64,
    /// The most memory that a copying process had, in bytes.
    peak_rss: u64,
    /// Bytes given to the stores beyond those that had to be.
    resent_bytes: u64,
    /// 10^9 bytes a second that arrived, all stores together.
    gb_per_second: f64,
    /// Bytes of the artifact.
    size: u64,
    /// Stores that it was copied to.
    targets: u64,
}

impl Figures {
    pub(super) fn new(seconds: f64, usage: Usage, sent: u64, size: u64, targets: u64) -> Self {
        let gb = (size * targets) as f64 / 1e9;
        Self {
            seconds,
            cpu_s_per_gb: usage.cpu_seconds / gb,
            peak_rss: usage.peak_rss,
            resent_bytes: sent.saturating_sub(size * targets),
            gb_per_second: gb / seconds,
            size,
            targets,
        }
    }
}
