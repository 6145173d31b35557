//! Where a gate keeps its counts.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use deploycore::model::Digest;
use rustix::fs::{FlockOperation, flock};

use crate::core::gate::Record;

/// Durable counts, one record an artifact.
#[async_trait]
pub trait Counts: Send + Sync + Debug + 'static {
    /// The record of an artifact, or `None` if there never was one.
    ///
    /// Errors: `InvalidData` when there is one that cannot be read. The gate then refuses the artifact rather than count anew.
    async fn load(&self, digest: &Digest) -> io::Result<Option<Record>>;

    /// Replaces the record, all or nothing; it is durable on return.
    async fn save(&self, digest: &Digest, record: &Record) -> io::Result<()>;
}

/// One small file an artifact in a folder, which is locked for the lifetime of this value and of the writes that it began: two gates that counted in one folder would each
/// undo what the other counted.
#[derive(Debug)]
pub struct DiskCounts {
    folder: PathBuf,
    /// Also of writes that go on when the gate is gone.
    lock: Arc<File>,
}

impl DiskCounts {
    /// Counts in `folder`, which is made if it is not there.
    ///
    /// Errors: `ResourceBusy` when another gate uses the folder.
    pub fn open(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let folder = folder.into();
        make_folder(&folder)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("lock"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { folder, lock: Arc::new(lock) }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let reason = format!("{} is in use by another gate: give each a folder of its own", folder.display());
                Err(io::Error::new(io::ErrorKind::ResourceBusy, reason))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}.count"))
    }
}

#[async_trait]
impl Counts for DiskCounts {
    async fn load(&self, digest: &Digest) -> io::Result<Option<Record>> {
        let path = self.path(digest);
        let bytes = match tokio::fs::read(&path).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display()));
        let (hash, body) = bytes.split_first_chunk::<32>().ok_or_else(damaged)?;
        if blake3::hash(body).as_bytes() != hash {
            return Err(damaged());
        }
        postcard::from_bytes(body).map(Some).map_err(|_| damaged())
    }

    async fn save(&self, digest: &Digest, record: &Record) -> io::Result<()> {
        let body = postcard::to_stdvec(record).map_err(io::Error::other)?;
        let (folder, path, lock) = (self.folder.clone(), self.path(digest), Arc::clone(&self.lock));
        let write = move || {
            let _lock = lock;
            let fresh = path.with_extension("new");
            let mut file = File::create(&fresh)?;
            file.write_all(blake3::hash(&body).as_bytes())?;
            file.write_all(&body)?;
            file.sync_data()?;
            fs::rename(&fresh, &path)?;
            File::open(&folder)?.sync_all()
        };
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
    }
}

/// Makes a folder whose name outlives a loss of power: counts in a folder that is gone are no counts.
fn make_folder(folder: &Path) -> io::Result<()> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        make_folder(parent)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made?,
    }
    match File::open(parent) {
        // A folder of somebody else's, which was there before.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        opened => opened?.sync_all(),
    }
}

/// Counts in memory, for simulations: they outlive the gate that is given a clone.
#[derive(Debug, Clone, Default)]
pub struct MemoryCounts(Arc<Mutex<BTreeMap<Digest, Record>>>);

#[async_trait]
impl Counts for MemoryCounts {
    async fn load(&self, digest: &Digest) -> io::Result<Option<Record>> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned())
    }

    async fn save(&self, digest: &Digest, record: &Record) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(*digest, record.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_serves_one_gate_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        let counts = DiskCounts::open(&folder).unwrap();
        let (digest, record) = (Digest::of(b"a"), Record { size: 1, ..Record::default() });
        counts.save(&digest, &record).await.unwrap();
        let error = DiskCounts::open(&folder).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(error.to_string().contains("another gate"), "{error}");
        drop(counts);
        assert_eq!(DiskCounts::open(&folder).unwrap().load(&digest).await.unwrap(), Some(record));
    }
}
