//! Where a server keeps its throw-away data.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Error;

/// A temporary folder that is removed when the guard is dropped, and also when this process dies, however it dies.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    sweeper: Child,
}

/// Waits for the end of its input, which comes when the other end of the pipe is closed by the guard or by the kernel, then removes
/// the folder. A server that was killed at the same moment may still write for a moment: it tries for some seconds.
const SWEEP: &str = r#"cat >/dev/null; for try in $(seq 100); do rm -rf -- "$1" 2>/dev/null && exit; sleep 0.1; done"#;

impl Folder {
    /// Makes a folder whose name tells the server.
    pub fn new(server: &str) -> Result<Self, Error> {
        let prefix = format!("deploycore-{server}-");
        let made = tempfile::Builder::new().prefix(&prefix).tempdir().map_err(Error::io(prefix))?;
        // A group of its own: the terminal's interrupt is for the tests, and the sweeper has its work after that.
        let sweeper = Command::new("sh")
            .args(["-c", SWEEP, "sweeper"])
            .arg(made.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(Error::io("sh"))?;
        Ok(Self { path: made.keep(), sweeper })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.sweeper.stdin.take());
        let _ = self.sweeper.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_guard() {
        let folder = Folder::new("test").unwrap();
        let path = folder.path().to_owned();
        std::fs::write(path.join("file"), "content").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
