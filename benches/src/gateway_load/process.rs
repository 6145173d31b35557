//! What the system says of a process, and allows it.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Raises the bound on open files of this process and those that it starts.
pub(crate) fn allow_open_files(wanted: usize) -> Result<()> {
    let wanted = wanted as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = maximum.map(|maximum| maximum.max(wanted));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
        .with_context(|| format!("{wanted} open files are not allowed: run `ulimit -Hn {wanted}` as root first"))
}

/// Binds this thread, and those that it starts, to the `nth` core that it may use; where there is one only, to that.
pub(crate) fn bind_to_core(nth: usize) -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let mut one = CpuSet::new();
    one.set(cores[nth.min(cores.len() - 1)]);
    sched_setaffinity(None, &one).context("the process cannot be bound to a core")
}

/// Memory of a process that is no file's, in bytes.
pub(crate) fn anonymous(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} has no RssAnon"))? * 1024)
}

/// CPU time of a process, its own and the kernel's for it, in seconds: of the threads that it has now.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/task");
    let mut nanos = 0;
    for thread in fs::read_dir(&path).with_context(|| format!("{path} cannot be read"))? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let first = text.split_whitespace().next().and_then(|run| run.parse::<u64>().ok());
        nanos += first.with_context(|| format!("{} has another form", path.display()))?;
    }
    Ok(nanos as f64 / 1e9)
}
