//! What a lab makes carries its name and its process's number, so that two labs do not collide and a later one finds what a dead one left.

use std::path::Path;

use anyhow::{Context, Result};

const NAME: &str = "swarm-lab-";

/// How all that this process makes is named.
pub(crate) fn prefix() -> String {
    format!("{NAME}{}-", std::process::id())
}

/// Whether a name is of a lab whose process is gone.
pub(crate) fn is_stale(name: &str) -> bool {
    pid_of(name).is_some_and(|pid| !is_lab(pid))
}

fn pid_of(name: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix(NAME)?.split_once('-')?;
    pid.parse().ok()
}

/// The system may have given the number to another program since.
fn is_lab(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| NAME.starts_with(comm.trim_end()))
}

/// Removes the files of labs that died.
pub(crate) fn remove_stale_folders(parent: &Path) -> Result<()> {
    for entry in parent.read_dir().with_context(|| parent.display().to_string())? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_stale) && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dead_lab_made_is_stale() {
        // No process has this number: it is above the kernel's limit.
        assert!(is_stale("swarm-lab-4194305-switch"));
        // This one lives, but it is no lab.
        assert!(is_stale("swarm-lab-1-3"));
        for other in ["swarm-lab", "swarm-lab-", "swarm-lab-x-1", "other-4194305-1", "swarm-lab-4194305"] {
            assert!(!is_stale(other), "{other}");
        }
        assert_eq!(pid_of(&format!("{}7", prefix())), Some(std::process::id()));
    }

    #[test]
    fn folders_of_the_dead_are_removed_and_no_others() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["swarm-lab-4194305-abc/inner", "other"] {
            std::fs::create_dir_all(parent.path().join(name)).unwrap();
        }
        remove_stale_folders(parent.path()).unwrap();
        let left: Vec<_> = parent.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["other"]);
    }
}
