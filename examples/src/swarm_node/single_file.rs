//! A store of one artifact, which is a file that lies somewhere: what a gate needs to offer it without a copy.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::model::{Digest, LogName, Manifest, ManifestHasher};
use deploycore::port::store::{Chunks, Error, MAX_CHUNK, Source};
use deploycore::port::{ArtifactStore, BackendError};
use futures::stream::{self, BoxStream, StreamExt};
use indicatif::ProgressBar;

/// One file as an [`ArtifactStore`], for reading only.
#[derive(Debug)]
pub(super) struct SingleFile {
    file: Arc<File>,
    manifest: Arc<Manifest>,
}

impl SingleFile {
    /// Opens a file and hashes it.
    pub(super) async fn open(path: &Path, bar: &ProgressBar) -> io::Result<Self> {
        let (path, bar) = (path.to_owned(), bar.clone());
        blocking(move || {
            let file = File::open(path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            bar.set_length(file.metadata()?.len());
            let (mut hasher, mut buffer) = (ManifestHasher::new(), vec![0; 1 << 20]);
            loop {
                let count = io::Read::read(&mut &file, &mut buffer)?;
                if count == 0 {
                    break;
                }
                hasher.update(&buffer[..count]);
                bar.inc(count as u64);
            }
            Ok(Self { file: Arc::new(file), manifest: Arc::new(hasher.finish()) })
        })
        .await
    }

    pub(super) fn manifest(&self) -> Arc<Manifest> {
        Arc::clone(&self.manifest)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn read_only<T>() -> Result<T, Error> {
    Err(Error::Invalid("the gate's file is for reading only".to_owned()))
}

#[async_trait]
impl ArtifactStore for SingleFile {
    async fn put(&self, _: Source) -> Result<Manifest, Error> {
        read_only()
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        Ok((*digest == self.manifest.digest()).then(|| (*self.manifest).clone()))
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Chunks, Error> {
        if *digest != self.manifest.digest() {
            return Err(Error::NotFound { digest: *digest });
        }
        if range.start > range.end || range.end > self.manifest.size() {
            return Err(Error::Invalid(format!("{range:?} leaves an artifact of {} bytes", self.manifest.size())));
        }
        let file = Arc::clone(&self.file);
        let chunks = stream::try_unfold(range, move |range| {
            let file = Arc::clone(&file);
            async move {
                if range.is_empty() {
                    return Ok(None);
                }
                let len = (range.end - range.start).min(MAX_CHUNK as u64);
                let read = blocking(move || {
                    let mut bytes = vec![0; len as usize];
                    file.read_exact_at(&mut bytes, range.start)?;
                    Ok(Bytes::from(bytes))
                });
                let bytes = read.await.map_err(|error| BackendError::permanent("file", error))?;
                Ok(Some((bytes, range.start + len..range.end)))
            }
        });
        Ok(chunks.boxed())
    }

    async fn exists(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(*digest == self.manifest.digest())
    }

    async fn delete(&self, _: &Digest) -> Result<(), Error> {
        read_only()
    }

    fn list(&self) -> BoxStream<'_, Result<Digest, Error>> {
        stream::iter([Ok(self.manifest.digest())]).boxed()
    }

    async fn put_log(&self, _: &LogName, _: Bytes) -> Result<(), Error> {
        read_only()
    }

    async fn log(&self, _: &LogName) -> Result<Option<Bytes>, Error> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use deploycore::port::ArtifactStoreExt;

    use super::*;

    #[tokio::test]
    async fn a_file_is_a_store_of_one_artifact() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let store = SingleFile::open(file.path(), &ProgressBar::hidden()).await.unwrap();
        let digest = store.manifest().digest();
        assert_eq!(*store.manifest(), Manifest::of(&bytes));
        assert_eq!(store.verify(&digest).await.unwrap(), *store.manifest());
        assert_eq!(store.read_all(&digest, 5..2_500_000).await.unwrap(), bytes[5..2_500_000]);
        let beyond = store.read(&digest, 0..3_000_001).await.err().unwrap();
        assert!(matches!(beyond, Error::Invalid(_)), "{beyond}");
        let other = Manifest::of(b"other").digest();
        assert!(matches!(store.read(&other, 0..1).await.err(), Some(Error::NotFound { .. })));
        assert!(store.put_bytes(Bytes::from_static(b"x")).await.is_err());
    }
}
