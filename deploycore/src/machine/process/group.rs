//! Process groups, told apart by what `/proc` says of them.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

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

/// The variable that holds the mark.
const MARK: &str = "DEPLOYCORE_INSTANCE";

/// What the processes of an instance carry in their environment.
pub(super) fn mark(instance: &Instance) -> String {
    format!("{}-{}-{}", instance.pid, instance.start_time, instance.boot)
}

/// Whether the instance's own process is there, alive or not yet waited for: as long as it is, nobody else has its number, and its
/// group is its own.
pub(super) fn is_there(instance: &Instance, boot: &str) -> bool {
    instance.boot == boot && stat(instance.pid).is_some_and(|stat| stat.start_time == instance.start_time)
}

/// Whether the instance or anything that it started lives. `known` says that the group was found to be its own a moment ago; of a group
/// whose leader went unseen only what carries the mark counts, as the number may have been given anew.
pub(super) fn is_left(instance: &Instance, boot: &str, known: bool) -> bool {
    instance.boot == boot
        && (is_alive(instance, boot) || (known && has_members(instance)) || marked(instance).next().is_some())
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn has_members(instance: &Instance) -> bool {
    let number_is_free = stat(instance.pid).is_none_or(|stat| stat.start_time == instance.start_time);
    number_is_free && processes().filter_map(stat).any(|stat| stat.group == instance.pid && !stat.dead)
}

/// The processes that carry the instance's mark, each held so that it cannot be taken for a later one of the same number.
fn marked(instance: &Instance) -> impl Iterator<Item = (Stat, OwnedFd)> {
    let mark = format!("{MARK}={}", mark(instance));
    processes().filter_map(move |pid| {
        let held = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let carries = environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes());
        let stat = stat(pid).filter(|stat| carries && !stat.dead)?;
        Some((stat, held))
    })
}

/// Sends a signal to what is left of the instance; whether there was anything. `known` as for [`is_left`].
pub(super) fn signal(instance: &Instance, boot: &str, known: bool, signal: Signal) -> io::Result<bool> {
    let Some(group) = i32::try_from(instance.pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw) else {
        return Ok(false);
    };
    if instance.boot != boot {
        return Ok(false);
    }
    let whole = is_alive(instance, boot) || (known && has_members(instance));
    let mut found = false;
    if whole {
        match kill_process_group(group, signal) {
            Ok(()) => found = true,
            Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // What left the group, or what a group without its leader left.
    for (_, process) in marked(instance).filter(|(stat, _)| !whole || stat.group != instance.pid) {
        match pidfd_send_signal(&process, signal) {
            Ok(()) => found = true,
            Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
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
        assert!(is_alive(&me, &boot) && is_left(&me, &boot, false));
        let later = Instance { start_time: start_time + 1, ..me.clone() };
        let before = Instance { boot: "another".to_owned(), ..me };
        for other in [later, before] {
            let known = is_there(&other, &boot);
            assert!(!known && !is_alive(&other, &boot) && !is_left(&other, &boot, known));
            assert!(!signal(&other, &boot, known, Signal::KILL).unwrap());
        }
    }
}
