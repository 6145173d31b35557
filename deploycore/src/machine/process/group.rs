//! Process groups, told apart by what `/proc` says of them.

use std::fs;
use std::io;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::machine::runner::Instance;

/// What `/proc/<pid>/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) start_time: u64,
    group: u32,
    dead: bool,
}

/// The id of this boot: start times of another boot mean nothing.
pub(super) fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

pub(super) fn stat(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The fields after the name, which stands in parentheses and may hold anything.
fn parse(line: &str) -> Option<Stat> {
    let mut fields = line.get(line.rfind(')')? + 1..)?.split_ascii_whitespace();
    // Fields 3, 5 and 22 of proc_pid_stat(5).
    let dead = matches!(fields.next()?, "Z" | "X" | "x");
    let group = fields.nth(1)?.parse().ok()?;
    let start_time = fields.nth(16)?.parse().ok()?;
    Some(Stat { start_time, group, dead })
}

/// Whether the instance itself lives; what it started does not count.
pub(super) fn is_alive(instance: &Instance, boot: &str) -> bool {
    let same = |stat: Stat| stat.start_time == instance.start_time && !stat.dead;
    instance.boot == boot && stat(instance.pid).is_some_and(same)
}

/// Whether the instance or anything that it started in its group lives.
pub(super) fn is_left(instance: &Instance, boot: &str) -> bool {
    if instance.boot != boot {
        return false;
    }
    match stat(instance.pid) {
        // The number is only given anew when nobody is left in the group of that number.
        Some(stat) if stat.start_time != instance.start_time => false,
        Some(stat) if !stat.dead => true,
        _ => has_members(instance),
    }
}

fn has_members(instance: &Instance) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(stat).any(|stat| stat.group == instance.pid && !stat.dead && stat.start_time >= instance.start_time)
}

/// Sends a signal to the group if something is left of it; whether there was.
pub(super) fn signal(instance: &Instance, boot: &str, signal: Signal) -> io::Result<bool> {
    let Some(group) = i32::try_from(instance.pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw) else {
        return Ok(false);
    };
    if !is_left(instance, boot) {
        return Ok(false);
    }
    match kill_process_group(group, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        let line = "42 (a) Z 1 (b) S 1 40 40 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1 1";
        assert_eq!(parse(line), Some(Stat { start_time: 777, group: 40, dead: false }));
        assert_eq!(parse("42 (x"), None);
    }

    #[test]
    fn this_process_is_itself_and_no_other() {
        let (pid, boot) = (std::process::id(), boot().unwrap());
        let start_time = stat(pid).unwrap().start_time;
        let me = Instance { pid, start_time, boot: boot.clone(), port: None };
        assert!(is_alive(&me, &boot) && is_left(&me, &boot));
        let later = Instance { start_time: start_time + 1, ..me.clone() };
        let before = Instance { boot: "another".to_owned(), ..me };
        for other in [later, before] {
            assert!(!is_alive(&other, &boot) && !is_left(&other, &boot));
            assert!(!signal(&other, &boot, Signal::KILL).unwrap());
        }
    }
}
