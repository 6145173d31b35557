//! Where a gate keeps its counts.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use deploycore::model::Digest;

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

/// One small file an artifact in a folder.
#[derive(Debug, Clone)]
pub struct DiskCounts {
    folder: PathBuf,
}

impl DiskCounts {
    /// Counts in `folder`, which is made when it is needed.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
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
        let (folder, path) = (self.folder.clone(), self.path(digest));
        let write = move || {
            fs::create_dir_all(&folder)?;
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
