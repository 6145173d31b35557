//! The artifact store on local files, synced; and the hashing alone, which bounds it.

use deploycore::model::{Digest, Manifest, ManifestHasher};
use deploycore::port::{ArtifactStore, ArtifactStoreExt};
use deploycore::store::BlobStore;
use deploycore_benches::{folder, noise, runtime};
use divan::counter::BytesCount;
use futures::StreamExt;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use url::Url;

fn main() {
    divan::main();
}

const SIZE: usize = 64 << 20;

struct Bed {
    runtime: Runtime,
    store: BlobStore,
    _folder: TempDir,
}

impl Bed {
    fn new() -> Self {
        let (folder, path) = folder();
        let store = BlobStore::open(&Url::from_directory_path(path).unwrap()).unwrap();
        Self { runtime: runtime(), store, _folder: folder }
    }

    fn put(&self, seed: u64) -> Digest {
        let bytes = noise(SIZE, seed);
        let chunks: Vec<_> = (0..SIZE).step_by(1 << 20).map(|at| Ok(bytes.slice(at..at + (1 << 20)))).collect();
        self.runtime.block_on(self.store.put(futures::stream::iter(chunks).boxed())).unwrap().digest()
    }
}

#[divan::bench(sample_count = 20)]
fn hash_alone(bencher: divan::Bencher<'_, '_>) {
    let bytes = noise(SIZE, 1);
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| -> Manifest {
        let mut hasher = ManifestHasher::new();
        bytes.chunks(1 << 20).for_each(|chunk| hasher.update(chunk));
        hasher.finish()
    });
}

/// Fresh bytes each time: the second put of the same bytes would be cheaper.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn put_64_mib(bencher: divan::Bencher<'_, '_>) {
    let (bed, mut seed) = (Bed::new(), 0);
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| {
        seed += 1;
        bed.put(seed)
    });
}

#[divan::bench(sample_count = 20)]
fn read_64_mib(bencher: divan::Bencher<'_, '_>) {
    let bed = Bed::new();
    let digest = bed.put(0);
    bencher
        .counter(BytesCount::new(SIZE))
        .bench_local(|| bed.runtime.block_on(bed.store.read_all(&digest, 0..SIZE as u64)).unwrap());
}

#[divan::bench(sample_count = 20)]
fn verify_64_mib(bencher: divan::Bencher<'_, '_>) {
    let bed = Bed::new();
    let digest = bed.put(0);
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| bed.runtime.block_on(bed.store.verify(&digest)).unwrap());
}
