//! What a store in a local folder needs beyond `object_store`.
//!
//! `LocalFileSystem::with_fsync` syncs each file that it writes and the folder that names it. Left to do: folders that exist before
//! the first write, so that no writer relies on a folder whose own entry another writer has not synced yet; a synced folder after a
//! deletion, where what follows relies on it; files of uploads that a killed process left, which `object_store` hides from lists.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::layout::Layout;

/// A job's folder that is empty and has not changed for so long is nobody's.
const EMPTY_AGE: Duration = Duration::from_hours(1);

/// The folder of a local store.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Makes the folder and those in it, durably.
    pub(super) fn create(root: &Path) -> io::Result<Self> {
        for name in [Layout::BLOBS, Layout::MANIFESTS, Layout::LOGS] {
            create_synced(&root.join(name), &mut sync)?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Makes a further folder in it, durably, unless it is there.
    pub(super) async fn make(&self, name: &'static str) -> io::Result<()> {
        let folder = self.root.join(name);
        blocking(move || if folder.is_dir() { Ok(()) } else { create_synced(&folder, &mut sync) }).await
    }

    /// Makes the entries of the manifests' folder durable.
    pub(super) async fn sync_manifests(&self) -> io::Result<()> {
        let folder = self.root.join(Layout::MANIFESTS);
        blocking(move || sync(&folder)).await
    }

    /// Removes the files of unfinished writes that nobody has touched for `min_age`; how many, and their bytes.
    pub(super) async fn sweep_unfinished(&self, min_age: Duration) -> io::Result<(u64, u64)> {
        let root = self.root.clone();
        blocking(move || {
            let mut swept = (0, 0);
            for name in [Layout::BLOBS, Layout::MANIFESTS, Layout::TOUCHES, Layout::DELETIONS] {
                let folder = root.join(name);
                if folder.is_dir() {
                    sweep(&folder, min_age, &mut swept)?;
                }
            }
            let logs = root.join(Layout::LOGS);
            for job in fs::read_dir(logs)? {
                let job = job?;
                if job.file_type()?.is_dir() {
                    sweep(&job.path(), min_age, &mut swept)?;
                }
            }
            Ok(swept)
        })
        .await
    }

    /// Removes the folders of jobs that hold no log any more. One whose first log is just being written has changed lately, and stays.
    pub(super) async fn sweep_empty_logs(&self) -> io::Result<()> {
        let logs = self.root.join(Layout::LOGS);
        blocking(move || {
            let now = SystemTime::now();
            for job in fs::read_dir(logs)? {
                let job = job?;
                // Another sweep may take the folder meanwhile.
                let Ok(metadata) = job.metadata() else { continue };
                let age = now.duration_since(metadata.modified()?).unwrap_or_default();
                if metadata.is_dir() && age >= EMPTY_AGE {
                    // One that holds something is not removed.
                    let _ = fs::remove_dir(job.path());
                }
            }
            Ok(())
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Makes a folder with its parents and syncs each folder that got a new entry. One that is there already may be what a killed process, or
/// another that is still at it, has made and not synced. No process makes a folder in one whose own entry it has not synced, so looking at
/// the nearest that exists is enough.
fn create_synced(path: &Path, sync: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let parent = path.parent();
    if path.is_dir() {
        return match parent.map_or(Ok(()), sync) {
            // Someone else has made the folder, for this program, in a place that it may not read.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced,
        };
    }
    if let Some(parent) = parent.filter(|parent| !parent.as_os_str().is_empty()) {
        create_synced(parent, sync)?;
    }
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(io::Error::new(error.kind(), format!("cannot create {}: {error}", path.display()))),
    }
    parent.map_or(Ok(()), sync)
}

fn sync(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

fn sweep(folder: &Path, min_age: Duration, swept: &mut (u64, u64)) -> io::Result<()> {
    let now = SystemTime::now();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(is_unfinished) {
            continue;
        }
        // Another sweep, or the end of the write, may take the file meanwhile.
        let Ok(metadata) = entry.metadata() else { continue };
        let age = now.duration_since(metadata.modified()?).unwrap_or_default();
        if age >= min_age && fs::remove_file(entry.path()).is_ok() {
            *swept = (swept.0 + 1, swept.1 + metadata.len());
        }
    }
    Ok(())
}

/// `object_store` writes `name#1`, `name#2` and so on, and links or renames the file to `name` when it is whole.
fn is_unfinished(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_a_killed_process_made_is_synced_by_the_next() {
        for killed_at in ["", "store"] {
            let folder = tempfile::tempdir().unwrap();
            let (killed_at, blobs) = (folder.path().join(killed_at), folder.path().join("store/blobs"));
            let mut killed = |path: &Path| if path == killed_at { Err(io::Error::other("killed")) } else { Ok(()) };
            create_synced(&blobs, &mut killed).unwrap_err();
            let mut synced = Vec::new();
            let mut next = |path: &Path| {
                synced.push(path.to_owned());
                Ok(())
            };
            create_synced(&blobs, &mut next).unwrap();
            assert!(synced.contains(&killed_at), "{}: {synced:?}", killed_at.display());
        }
    }

    #[tokio::test]
    async fn only_old_unfinished_files_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("deep/store");
        let local = Folder::create(&root).unwrap();
        Folder::create(&root).unwrap();
        fs::create_dir(root.join("logs/job")).unwrap();
        for name in ["blobs/a#1", "blobs/a", "manifests/b#12", "logs/job/1#3", "blobs/c#x"] {
            fs::write(root.join(name), b"12345").unwrap();
        }
        assert_eq!(local.sweep_unfinished(Duration::from_hours(1)).await.unwrap(), (0, 0));
        assert_eq!(local.sweep_unfinished(Duration::ZERO).await.unwrap(), (3, 15));
        assert_eq!(local.sweep_unfinished(Duration::ZERO).await.unwrap(), (0, 0));
        assert!(root.join("blobs/a").exists() && root.join("blobs/c#x").exists());
        local.sync_manifests().await.unwrap();
    }
}
