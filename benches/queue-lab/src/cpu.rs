//! CPU time of processes, user and system, as the kernel charges it.

use std::fs;
use std::time::Duration;

/// What this process has used so far, with the children that it has waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Own {
    /// All threads of this process.
    pub own: Duration,
    /// The children that have ended and were waited for.
    pub children: Duration,
}

/// Of this process.
pub fn own() -> Own {
    let times = times("self").unwrap_or_default();
    Own { own: times.own, children: times.ended_children }
}

/// Of a process and all that descend from it. Those that have ended count for the parent that waited for them.
///
/// Take two of these and subtract: between them, no process may end that its parent does not wait for.
pub fn tree(root: u32) -> Duration {
    let mut total = Duration::ZERO;
    let mut open = vec![root];
    while let Some(process) = open.pop() {
        if let Some(times) = times(&process.to_string()) {
            total += times.own + times.ended_children;
        }
        open.extend(children(process));
    }
    total
}

#[derive(Debug, Default)]
struct Times {
    own: Duration,
    ended_children: Duration,
}

fn times(process: &str) -> Option<Times> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    parse(&stat, rustix::param::clock_ticks_per_second())
}

/// The name stands in brackets and may hold anything, so fields are counted behind the last one.
fn parse(stat: &str, ticks_per_second: u64) -> Option<Times> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // proc(5): utime is field 14, and the first one here is field 3.
    let ticks = |field: usize| -> Option<u64> { fields.get(field - 3)?.parse().ok() };
    let time = |ticks: u64| Duration::from_millis(ticks * 1_000 / ticks_per_second.max(1));
    Some(Times { own: time(ticks(14)? + ticks(15)?), ended_children: time(ticks(16)? + ticks(17)?) })
}

fn children(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_moves_no_field() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 1 2 3 4 150 50 20 5 20 0 1 0 100 0 0";
        let times = parse(stat, 100).unwrap();
        assert_eq!((times.own, times.ended_children), (Duration::from_secs(2), Duration::from_millis(250)));
        assert!(parse("7 (a) S 1", 100).is_none());
    }

    #[test]
    fn work_of_this_process_and_of_a_child_shows_in_the_tree() {
        let before = tree(std::process::id());
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            std::hint::spin_loop();
        }
        let spin = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let children = own().children;
        assert!(Command::new("sh").args(["-c", spin]).status().unwrap().success());
        assert!(own().children > children, "a child that was waited for counts");
        assert!(tree(std::process::id()) > before);
    }
}
