//! The scratch folder: checkouts of builds under way, and what dead workers left.
//!
//! ```text
//! lock              held shared while a build folder is made, exclusively while dead ones are looked for
//! builds/NAME       a build's folder; NAME is also the mark of its processes
//! builds/NAME.lock  locked by the worker process as long as the build lives: the kernel lets go of it when the process dies
//! mirrors/          see the repository
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use rustix::fs::{StatVfs, statvfs};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::process::MARK;
use super::settings::OpenError;
use crate::model::Lease;

#[derive(Debug)]
pub(super) struct Scratch {
    root: PathBuf,
}

/// A build's own folder. Dropping it deletes it, in the background where there is a runtime.
#[derive(Debug)]
pub(super) struct Folder(Option<Owned>);

#[derive(Debug)]
struct Owned {
    path: PathBuf,
    lock_path: PathBuf,
    /// Held until the folder is deleted.
    lock: File,
}

impl Scratch {
    pub(super) async fn open(root: &Path) -> Result<Self, OpenError> {
        let given = root.to_owned();
        let make = move || {
            fs::create_dir_all(given.join("builds"))?;
            fs::create_dir_all(given.join("mirrors"))?;
            given.canonicalize()
        };
        let refuse = |source| OpenError::Scratch { path: root.to_owned(), source };
        Ok(Self { root: blocking(make).await.map_err(refuse)? })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn mirrors(&self) -> PathBuf {
        self.root.join("mirrors")
    }

    /// What its disk has too little of for a build, where `keep_free` bytes must be free; `None` when there is enough, or `keep_free` is zero.
    pub(super) async fn shortage(&self, keep_free: ByteSize) -> io::Result<Option<String>> {
        let root = self.root.clone();
        let disk = blocking(move || Ok(statvfs(&root)?)).await?;
        let lack = lack(&disk, keep_free);
        Ok(lack.map(|lack| format!("the disk of the scratch folder {} has {lack}", self.root.display())))
    }

    /// A fresh folder for an attempt; `None` when it was stopped before.
    pub(super) async fn folder(&self, lease: &Lease, stop: &CancellationToken) -> io::Result<Option<Folder>> {
        let root = self.root.clone();
        let name = format!("{}-{}-{:08x}", lease.job, lease.epoch, fastrand::u32(..));
        let Some(guard) = lock_within(root.join("lock"), File::try_lock_shared, LOCK_LIMIT, stop).await? else {
            return Ok(None);
        };
        blocking(move || {
            let _guard = guard;
            let (path, lock_path) = (root.join("builds").join(&name), root.join("builds").join(format!("{name}.lock")));
            let lock = File::create_new(&lock_path)?;
            lock.lock()?;
            let owned = Folder(Some(Owned { path, lock_path, lock }));
            fs::create_dir(owned.path())?;
            Ok(Some(owned))
        })
        .await
    }

    /// Ends the processes and deletes the folders of builds whose worker is dead, unless it is stopped before.
    pub(super) async fn sweep(&self, stop: &CancellationToken) -> Result<(), OpenError> {
        let root = self.root.clone();
        let refuse = |source| OpenError::Scratch { path: self.root.clone(), source };
        let guard = lock_within(root.join("lock"), File::try_lock, LOCK_LIMIT, stop).await.map_err(refuse)?;
        let Some(guard) = guard else { return Ok(()) };
        let dead = blocking(move || find_dead(&root, guard)).await.map_err(refuse)?;
        for folder in dead {
            tracing::warn!(folder = %folder.path().display(), "sweeping the build of a dead worker");
            blocking(move || {
                drop_now(folder);
                Ok(())
            })
            .await
            .map_err(refuse)?;
        }
        Ok(())
    }
}

/// A checkout with its build makes as many files, and more.
const FEW_FILES: u64 = 1_000;

fn lack(disk: &StatVfs, keep_free: ByteSize) -> Option<String> {
    let free = ByteSize::b(disk.f_bavail.saturating_mul(disk.f_frsize));
    // Some file systems make room for files as they need it, and say that they have none.
    let counts_files = disk.f_files > 0;
    if keep_free.as_u64() == 0 {
        None
    } else if free < keep_free {
        Some(format!("{free} free, less than the {keep_free} of keep_free"))
    } else if counts_files && disk.f_favail < FEW_FILES {
        Some(format!("room for {} more files, less than {FEW_FILES}", disk.f_favail))
    } else {
        None
    }
}

/// The guard is the lock of the scratch folder, held alone: no folder is half made meanwhile.
fn find_dead(root: &Path, _guard: File) -> io::Result<Vec<Folder>> {
    let mut dead = Vec::new();
    for entry in fs::read_dir(root.join("builds"))? {
        let lock_path = entry?.path();
        if lock_path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let lock = match File::open(&lock_path) {
            Ok(lock) => lock,
            // Its build has just ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        match lock.try_lock() {
            Ok(()) => dead.push(Folder(Some(Owned { path: lock_path.with_extension(""), lock_path, lock }))),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(dead)
}

/// Between tries to take a lock.
const LOCK_LOOK: Duration = Duration::from_millis(50);
/// The lock of the scratch folder is held for a look at a folder.
const LOCK_LIMIT: Duration = Duration::from_mins(1);

/// Takes the lock of a file; `None` when it was stopped before. A holder that stands still must not cost a job its whole time: another
/// attempt may find it gone.
pub(super) async fn lock_within(
    path: PathBuf,
    try_lock: fn(&File) -> Result<(), TryLockError>,
    limit: Duration,
    stop: &CancellationToken,
) -> io::Result<Option<File>> {
    let file = blocking(move || File::options().create(true).truncate(false).write(true).open(path)).await?;
    let take = async {
        loop {
            match try_lock(&file) {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => sleep(LOCK_LOOK).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    };
    match stop.run_until_cancelled(timeout(limit, take)).await {
        None => Ok(None),
        Some(Err(_)) => Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds it for too long")),
        Some(Ok(taken)) => taken.map(|()| Some(file)),
    }
}

/// Runs what blocks off the reactor.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

impl Folder {
    pub(super) fn path(&self) -> &Path {
        self.0.as_ref().map_or(Path::new(""), |owned| &owned.path)
    }

    /// What the processes of this build carry in their environment.
    pub(super) fn mark(&self) -> String {
        mark(self.path())
    }

    /// Ends every process that carries the mark, whatever group it moved to.
    pub(super) async fn end_processes(&self) {
        let mark = self.mark();
        let ended = blocking(move || {
            end_processes(&mark);
            Ok(())
        });
        if let Err(error) = ended.await {
            tracing::warn!(%error, "processes that left their build could not be looked for");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Some(owned) = self.0.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || owned.delete())),
            Err(_) => owned.delete(),
        }
    }
}

fn drop_now(mut folder: Folder) {
    if let Some(owned) = folder.0.take() {
        owned.delete();
    }
}

fn mark(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Owned {
    /// First the processes, which nobody could find once the folder with their mark is gone: a build that is dropped ends its group and
    /// no more. Then the folder, then its lock: a crash between leaves a lock that the next sweep finds free.
    fn delete(self) {
        end_processes(&mark(&self.path));
        let deleted = remove_all(&self.path).and_then(|()| fs::remove_file(&self.lock_path));
        if let Err(error) = deleted {
            tracing::warn!(%error, folder = %self.path.display(), "a build's folder could not be deleted; a later sweep tries again");
        }
        drop(self.lock);
    }
}

/// Deletes a folder, also one with folders that its owner made read-only, as some build tools do.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(path)?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

fn make_writable(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
}

fn end_processes(mark: &str) {
    let count = end_marked(format!("{MARK}={mark}").as_bytes());
    if count > 0 {
        tracing::warn!(count, mark, "processes that left their build were killed");
    }
}

/// Rounds of looking for marked processes: each may have started another since the round before.
const ROUNDS: usize = 50;

#[cfg(target_os = "linux")]
fn end_marked(mark: &[u8]) -> usize {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    let mut ended = 0;
    for _ in 0..ROUNDS {
        let Ok(processes) = fs::read_dir("/proc") else { break };
        let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut found = 0;
        for id in ids.filter_map(Pid::from_raw) {
            // Opened before the look, it cannot stand for a later process of the same id.
            let Ok(process) = pidfd_open(id, PidfdFlags::empty()) else { continue };
            let environment = fs::read(format!("/proc/{}/environ", id.as_raw_nonzero())).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|variable| variable == mark) {
                found += usize::from(pidfd_send_signal(&process, Signal::KILL).is_ok());
            }
        }
        if found == 0 {
            break;
        }
        ended += found;
        std::thread::sleep(Duration::from_millis(10));
    }
    ended
}

#[cfg(not(target_os = "linux"))]
fn end_marked(_mark: &[u8]) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_lacks_bytes_or_files_or_nothing() {
        let full = |bytes: u64, files: u64, of_files: u64| {
            let mut disk = statvfs("/").unwrap();
            (disk.f_frsize, disk.f_bavail) = (4096, bytes / 4096);
            (disk.f_files, disk.f_favail) = (of_files, files);
            disk
        };
        let gib = ByteSize::gib(1);
        assert_eq!(lack(&full(1 << 30, 1_000, 10_000), gib), None);
        assert_eq!(lack(&full(1 << 30, 0, 0), gib), None, "files are not counted");
        let bytes = lack(&full(512 << 20, 1_000, 10_000), gib).unwrap();
        assert_eq!(bytes, "512.0 MiB free, less than the 1.0 GiB of keep_free");
        let files = lack(&full(1 << 30, 999, 10_000), gib).unwrap();
        assert_eq!(files, "room for 999 more files, less than 1000");
        assert_eq!(lack(&full(0, 0, 10_000), ByteSize::b(0)), None);
    }
}
