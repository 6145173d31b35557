//! Where everything of a cluster lies on disk.
//!
//! ```text
//! VERSION           what wrote this folder
//! cluster.lock      held by the running parent
//! cluster.json      what the cluster was asked for at its first start
//! cluster.toml      the configuration of its children
//! scenario.json     how far the main job came
//! repo/             the git repository made on the spot
//! main/             main store, queue, ledger, global goals
//! control/          nothing but a lock
//! workers/NAME/     scratch folders
//! regions/NAME/     region store; for each gateway a folder with its goals and its gate's counts
//! machines/REGION/NAME/   blobs, services, journals
//! **/role.lock      held by the child that a folder belongs to, with its pid
//! run/api           URL of the control plane's API
//! logs/NAME.log     what each child says
//! ```

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::{UNFINISHED, write_atomic};

/// The format that this program writes and reads.
const VERSION: &str = "deploycore cluster 2\n";
/// How long a lock of an ending process is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// The data folder of a cluster.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Opens a data folder, making it where it does not exist.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("data folder {} could not be made", path.display()))?;
        let dir = Self(path.canonicalize()?);
        let version = dir.0.join("VERSION");
        match fs::read_to_string(&version) {
            Ok(text) if text == VERSION => {}
            Ok(text) => bail!(
                "data folder {} was written by {:?}, this program writes {:?}: use another --data-dir, or the program that wrote it",
                dir.0.display(),
                text.trim(),
                VERSION.trim()
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !is_empty(&dir.0)? {
                    bail!(
                        "{} is not empty and not a data folder: name a new or empty folder with --data-dir",
                        dir.0.display()
                    );
                }
                write_atomic(&version, VERSION.as_bytes())?;
            }
            Err(error) => return Err(error).with_context(|| format!("{} could not be read", version.display())),
        }
        for name in ["main", "workers", "regions", "machines", "run", "logs"] {
            fs::create_dir_all(dir.0.join(name))?;
        }
        Ok(dir)
    }

    /// A path inside the folder.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Reads a JSON file of the folder; `None` where there is none.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.0.join(name);
        match fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{} could not be read", path.display())),
        }
    }

    /// Writes a JSON file of the folder, all or nothing and durably.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        write_atomic(&self.0.join(name), &serde_json::to_vec_pretty(value)?)
    }

    /// Takes a lock of the folder, waiting for a process that is about to end.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.0.join(name);
        let file = File::create(&path).with_context(|| format!("{} could not be made", path.display()))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(TryLockError::WouldBlock) => bail!(
                    "{} is locked: a cluster runs on {}; stop it, or use another --data-dir",
                    path.display(),
                    self.0.display()
                ),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
    }
}

/// Whether a folder holds nothing, but for what a start that was cut short left.
fn is_empty(folder: &Path) -> std::io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        if !entry?.file_name().to_string_lossy().starts_with(UNFINISHED) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::unfinished;

    #[test]
    fn a_folder_whose_first_start_was_cut_short_is_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let _cut_short = unfinished(&folder.path().join("VERSION")).unwrap().keep().unwrap();
        DataDir::create(folder.path()).unwrap();
        DataDir::create(folder.path()).unwrap();
    }
}
