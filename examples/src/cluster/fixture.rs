//! The git repository that the main job makes when it is given none: two real commits of a small HTTP service.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use deploycore::model::CommitId;

const CARGO_TOML: &str = include_str!("../../web-service/Cargo.toml");
const MAIN_RS: &str = include_str!("../../web-service/src/main.rs");

/// The versions of the two commits, as the service answers them.
pub const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];
/// Builds the service; it has no dependencies, so nothing is downloaded.
pub const BUILD_COMMAND: &str = "cargo build --release --offline --quiet";
/// What the build leaves.
pub const OUTPUT: &str = "target/release/web";

/// Makes the repository, or finds the one that an earlier run made whole; gives its commits, oldest first.
pub fn repository(path: &Path) -> Result<Vec<CommitId>> {
    if !path.exists() {
        let unfinished = path.with_extension("new");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)?;
        }
        make(&unfinished)?;
        std::fs::rename(&unfinished, path)?;
    }
    let log = run(path, &["log", "--reverse", "--format=%H"])?;
    log.lines().map(|line| CommitId::new(line).map_err(Into::into)).collect()
}

fn make(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path.join("src"))?;
    run(path, &["init", "--quiet", "--initial-branch=main"])?;
    std::fs::write(path.join("src/main.rs"), MAIN_RS)?;
    for version in VERSIONS {
        let manifest = CARGO_TOML.replace("version = \"1.0.0\"", &format!("version = \"{version}\""));
        std::fs::write(path.join("Cargo.toml"), manifest)?;
        run(path, &["add", "--all"])?;
        run(path, &["commit", "--quiet", "--message", &format!("web {version}")])?;
    }
    Ok(())
}

/// `git` without what this process's environment says of a repository: in a git hook that would be the user's own.
pub fn git() -> Command {
    let mut git = Command::new("git");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"GIT_")) {
        git.env_remove(name);
    }
    git.env("GIT_CONFIG_GLOBAL", "/dev/null");
    git
}

fn run(folder: &Path, args: &[&str]) -> Result<String> {
    let output = git()
        .args(["-c", "user.name=deploycore", "-c", "user.email=deploycore@localhost", "-c", "commit.gpgsign=false"])
        .args(args)
        .current_dir(folder)
        .output()
        .context("git could not be started: install it")?;
    if !output.status.success() {
        bail!("git {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_has_two_commits_and_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("repo");
        let commits = repository(&path).unwrap();
        assert_eq!(commits.len(), 2);
        assert_eq!(repository(&path).unwrap(), commits);
    }
}
