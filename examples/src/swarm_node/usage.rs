//! What the process has cost so far.

use rustix::time::{ClockId, clock_gettime};

/// CPU seconds of all threads, in the kernel too.
pub(super) fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The most memory that was resident, in bytes, with pages of files in it; `None` where the system does not tell.
pub(super) fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_costs_something() {
        let before = cpu_seconds();
        let sum = (0..2_000_000_u64).fold(0_u64, |sum, n| std::hint::black_box(sum.wrapping_add(n)));
        assert!(cpu_seconds() > before, "{sum}");
        assert!(peak_rss().is_none_or(|bytes| bytes > 1 << 20));
    }
}
