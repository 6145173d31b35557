//! The kit over each store of this crate.
#![cfg(all(feature = "conformance", feature = "object-store"))]

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytesize::ByteSize;
use deploycore::conformance::store::{Harness, Plain};
use deploycore::memory::Store;
use deploycore::model::Digest;
use deploycore::port::ArtifactStore;
use deploycore::store::{BlobStore, BlobStoreSettings};
use url::Url;

/// The reference.
#[derive(Debug)]
struct Memory(Store);

#[async_trait]
impl Harness for Memory {
    fn store(&self) -> Arc<dyn ArtifactStore> {
        Arc::new(self.0.clone())
    }

    async fn damage(&self, digest: &Digest, at: u64) -> bool {
        assert!(self.0.damage(digest, at));
        true
    }
}

/// A folder, in parts so small that the cases store in several.
#[derive(Debug)]
struct Folder(PathBuf, Arc<BlobStore>);

impl Folder {
    fn open(path: PathBuf) -> Self {
        let store = BlobStore::open(&Url::from_directory_path(&path).unwrap()).unwrap();
        let settings = BlobStoreSettings::default().with_part_size(ByteSize::kib(300)).with_parts_in_flight(2);
        Self(path, Arc::new(store.with_settings(settings)))
    }

    /// Where the bytes lie, as the documented layout says.
    fn blob(&self, digest: &Digest) -> PathBuf {
        let manifest = std::fs::read_to_string(self.0.join("manifests").join(digest.to_string())).unwrap();
        let header: serde_json::Value = serde_json::from_str(manifest.lines().next().unwrap()).unwrap();
        self.0.join("blobs").join(header["blob"].as_str().unwrap())
    }
}

#[async_trait]
impl Harness for Folder {
    fn store(&self) -> Arc<dyn ArtifactStore> {
        self.1.clone()
    }

    async fn reopen(&self) -> Arc<dyn ArtifactStore> {
        Self::open(self.0.clone()).1
    }

    async fn damage(&self, digest: &Digest, at: u64) -> bool {
        let blob = self.blob(digest);
        let mut bytes = std::fs::read(&blob).unwrap();
        bytes[at as usize] ^= 1;
        std::fs::write(blob, bytes).unwrap();
        true
    }

    async fn lose(&self, digest: &Digest) -> bool {
        std::fs::remove_file(self.blob(digest)).unwrap();
        true
    }
}

async fn memory() -> (Arc<dyn Harness>, impl Sized) {
    (Arc::new(Memory(Store::new())), ())
}

async fn objects_in_memory() -> (Arc<dyn Harness>, impl Sized) {
    let store = BlobStore::open(&Url::parse("memory://").unwrap()).unwrap();
    let settings = BlobStoreSettings::default().with_part_size(ByteSize::kib(300));
    (Arc::new(Plain(Arc::new(store.with_settings(settings)))), ())
}

async fn folder() -> (Arc<dyn Harness>, impl Sized) {
    let folder = tempfile::tempdir().unwrap();
    (Arc::new(Folder::open(folder.path().to_owned())), folder)
}

mod in_memory {
    use super::memory;
    deploycore::store_conformance!(memory, start_paused = true);
}

mod on_objects_in_memory {
    use super::objects_in_memory;
    deploycore::store_conformance!(objects_in_memory, start_paused = true);
}

mod in_a_folder {
    use super::folder;
    deploycore::store_conformance!(folder);
}
